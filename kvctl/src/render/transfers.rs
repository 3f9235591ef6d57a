//! How far each shard's keys are on their way to another.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::pace::{Pace, bytes};
use super::{coloured, printable, say};

/// Off a terminal, a line this often at most.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What moves from one shard to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    pub from: String,
    pub to: String,
    pub keys: u64,
    pub keys_total: u64,
    pub bytes: u64,
}

/// A bar for each pair of shards on a terminal, else a plain line now and then; on standard error either way.
pub struct Transfers {
    begun: Instant,
    screen: Option<Screen>,
    paces: BTreeMap<(String, String), Pace>,
    said: Option<Said>,
}

/// What was said last off a terminal, and when.
struct Said {
    at: Instant,
    now: String,
    lines: Vec<String>,
}

struct Screen {
    all: MultiProgress,
    /// What happens as a whole, below the bars.
    now: ProgressBar,
    bars: BTreeMap<(String, String), ProgressBar>,
}

impl Transfers {
    pub fn new() -> Self {
        let screen = std::io::stderr().is_terminal().then(Screen::new);
        Self { begun: Instant::now(), screen, paces: BTreeMap::new(), said: None }
    }

    /// How far all are; in a word what happens, and what for it waits.
    pub fn show(&mut self, transfers: &[Transfer], now: &str, waits_for: &[String]) {
        let time = self.begun.elapsed();
        for one in transfers {
            self.paces.entry(pair(one)).or_default().sample(time, one.keys);
        }
        let texts = transfers.iter().map(|one| (one, details(one, &self.paces[&pair(one)])));
        match &mut self.screen {
            Some(screen) => {
                texts.for_each(|(one, text)| screen.draw(one, text));
                screen.now.set_message(printable(&sentence(now, waits_for)).into_owned());
            }
            None => {
                let first = sentence(now, waits_for);
                let all = texts.map(|(one, text)| line(one, &text));
                let lines: Vec<String> = std::iter::once(first).chain(all).collect();
                if self.said.as_ref().is_none_or(|said| said.is_old(now, &lines)) {
                    lines.iter().for_each(|line| say(&printable(line)));
                    self.said = Some(Said { at: Instant::now(), now: now.to_owned(), lines });
                }
            }
        }
    }
}

impl Said {
    /// Whether there is something new, and it is time to say it.
    fn is_old(&self, now: &str, lines: &[String]) -> bool {
        self.now != now || (self.at.elapsed() >= LINE_EVERY && self.lines != lines)
    }
}

impl Drop for Transfers {
    /// Takes the bars away, so that what follows stands alone.
    fn drop(&mut self) {
        if let Some(screen) = &self.screen {
            screen.bars.values().for_each(ProgressBar::finish_and_clear);
            screen.now.finish_and_clear();
        }
    }
}

/// `copying; waits for carol`.
fn sentence(now: &str, waits_for: &[String]) -> String {
    if waits_for.is_empty() { now.to_owned() } else { format!("{now}; waits for {}", waits_for.join(", ")) }
}

fn pair(transfer: &Transfer) -> (String, String) {
    (transfer.from.clone(), transfer.to.clone())
}

/// `1200 keys/s, 8 s left, 45.7 kB`: what a narrow terminal cuts off comes last.
fn details(transfer: &Transfer, pace: &Pace) -> String {
    let pace = pace.text(transfer.keys_total);
    let comma = if pace.is_empty() { "" } else { ", " };
    format!("{pace}{comma}{}", bytes(transfer.bytes))
}

/// `s1 → s3: 123 of 1000 keys, 1200 keys/s, 1 s left, 45.7 kB`.
fn line(transfer: &Transfer, details: &str) -> String {
    let Transfer { from, to, keys, keys_total, .. } = transfer;
    format!("{from} → {to}: {keys} of {keys_total} keys, {details}")
}

impl Screen {
    fn new() -> Self {
        let all = MultiProgress::new();
        let style =
            if coloured() { "{spinner:.cyan} {wide_msg} {elapsed:.dim}" } else { "{spinner} {wide_msg} {elapsed}" };
        let style = ProgressStyle::with_template(style).expect("the templates are constants");
        let now = all.add(ProgressBar::new_spinner().with_style(style));
        now.enable_steady_tick(Duration::from_millis(100));
        Self { all, now, bars: BTreeMap::new() }
    }

    fn draw(&mut self, transfer: &Transfer, details: String) {
        let (all, now) = (&self.all, &self.now);
        let bar = self.bars.entry(pair(transfer)).or_insert_with(|| {
            let bar = if coloured() { "[{bar:16.cyan}]" } else { "[{bar:16}]" };
            let style = ProgressStyle::with_template(&format!("{{prefix}} {bar} {{pos}}/{{len}} keys, {{wide_msg}}"));
            let style = style.expect("the templates are constants").progress_chars("=> ");
            let prefix = printable(&format!("{} → {}", transfer.from, transfer.to)).into_owned();
            all.insert_before(now, ProgressBar::new(0).with_style(style).with_prefix(prefix))
        });
        bar.set_length(transfer.keys_total);
        bar.set_position(transfer.keys);
        bar.set_message(details);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_tells_all_that_is_known() {
        let transfer = Transfer { from: "s1".into(), to: "s3".into(), keys: 1200, keys_total: 2400, bytes: 45_678 };
        let mut pace = Pace::default();
        assert_eq!(line(&transfer, &details(&transfer, &pace)), "s1 → s3: 1200 of 2400 keys, 45.7 kB");
        pace.sample(Duration::ZERO, 0);
        pace.sample(Duration::from_secs(1), 1200);
        let said = "s1 → s3: 1200 of 2400 keys, 1200 keys/s, 1 s left, 45.7 kB";
        assert_eq!(line(&transfer, &details(&transfer, &pace)), said);
        assert_eq!(sentence("copying", &["carol".into(), "dave".into()]), "copying; waits for carol, dave");
    }
}
