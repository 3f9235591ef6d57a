//! A drill as one page that needs nothing else: the verdict, then on one time axis who suffered what, how long answers took,
//! how many there were, and how long contexts grew.

use std::fmt::Write;

use super::history::{Fate, History, Op};
use super::schedule::KIND_COLOURS;
use super::verdict::Verdict;

const WIDTH: f64 = 1_000.0;
/// Left of the plots: names and scales.
const LEFT: f64 = 90.0;
const RIGHT: f64 = 20.0;
const ROW: f64 = 22.0;
const PLOT: f64 = 120.0;
const GAP: f64 = 34.0;

/// Figures of one second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Second {
    count: usize,
    answered: usize,
    /// Of the answers; `None` without any.
    p50: Option<f64>,
    p99: Option<f64>,
    max: Option<f64>,
    context: Option<usize>,
}

fn seconds(history: &History, total: usize) -> Vec<Second> {
    let mut taken: Vec<Vec<&Op>> = vec![Vec::new(); total];
    for op in &history.ops {
        if let Some(second) = taken.get_mut((op.at_ms / 1_000.0) as usize) {
            second.push(op);
        }
    }
    taken.iter().map(|ops| second(ops)).collect()
}

fn second(ops: &[&Op]) -> Second {
    let mut took: Vec<f64> = ops.iter().filter(|op| op.is_answered()).map(|op| op.took_ms).collect();
    took.sort_by(f64::total_cmp);
    let at = |part: f64| took.get(((took.len() as f64 * part) as usize).min(took.len().saturating_sub(1)));
    Second {
        count: ops.len(),
        answered: took.len(),
        p50: at(0.5).copied(),
        p99: at(0.99).copied(),
        max: took.last().copied(),
        context: ops.iter().filter_map(|op| op.answered.as_ref()).map(String::len).max(),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// What is drawn so far, and how far down.
struct Picture {
    svg: String,
    y: f64,
    end_ms: f64,
}

impl Picture {
    fn x(&self, ms: f64) -> f64 {
        LEFT + (ms / self.end_ms).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn add(&mut self, text: std::fmt::Arguments<'_>) {
        self.svg.write_fmt(text).expect("writing to a string does not fail");
    }

    fn title(&mut self, text: &str) {
        let y = self.y;
        self.add(format_args!(r#"<text class="title" x="{LEFT}" y="{y:.0}">{}</text>"#, escape(text)));
        self.y += 10.0;
    }

    /// A row per node, a bar per fault that it suffered.
    fn faults(&mut self, history: &History) {
        self.title("Faults");
        let top = self.y;
        for (row, node) in history.head.nodes.iter().map(String::as_str).chain(["all nodes"]).enumerate() {
            let y = top + row as f64 * ROW;
            let (right, middle) = (WIDTH - RIGHT, y + ROW * 0.68);
            self.add(format_args!(
                r#"<text class="name" x="{:.0}" y="{middle:.0}">{}</text>"#,
                LEFT - 10.0,
                escape(node)
            ));
            self.add(format_args!(r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{0:.0}" y2="{0:.0}"/>"#, y + ROW));
            let suffers =
                |nodes: &[String]| nodes.iter().any(|one| one == node) || (nodes.is_empty() && node == "all nodes");
            for fault in history.faults.iter().filter(|fault| suffers(&fault.nodes)) {
                let (from, to) = (self.x(fault.from_ms), self.x(fault.to_ms));
                let colour = KIND_COLOURS[fault.fault as usize];
                let left_out = if fault.problem.is_some() { " fill-opacity=\"0.25\"" } else { "" };
                let why = fault.problem.as_ref().map(|why| format!(" (left out: {why})")).unwrap_or_default();
                let (width, height) = ((to - from).max(3.0), ROW - 8.0);
                let said = escape(&format!("{}: {}{why}", fault.fault, fault.what));
                self.add(format_args!(
                    r#"<rect x="{from:.1}" y="{:.1}" width="{width:.1}" height="{height:.0}" rx="3" fill="{colour}"{left_out}><title>{said}</title></rect>"#,
                    y + 4.0
                ));
            }
        }
        self.y = top + (history.head.nodes.len() + 1) as f64 * ROW + GAP;
    }

    /// Lines over time, with a scale from 0 to what is largest, or in powers of ten. Where there is no value, there is a gap.
    fn lines(&mut self, title: &str, unit: &str, logarithmic: bool, all: &[(&str, &str, Vec<Option<f64>>)]) {
        self.title(title);
        let (top, right) = (self.y, WIDTH - RIGHT);
        let largest = all.iter().flat_map(|(_, _, values)| values.iter().flatten()).copied().fold(1.0, f64::max);
        let power = largest.log10().ceil().max(1.0);
        let height = |value: f64| {
            if logarithmic { ((value.max(0.1).log10() + 1.0) / (power + 1.0)).clamp(0.0, 1.0) } else { value / largest }
        };
        let y = |value: f64| top + PLOT * (1.0 - height(value));
        let ticks: Vec<f64> = if logarithmic {
            (0..=power as i32).map(|power| 10_f64.powi(power)).collect()
        } else {
            vec![0.0, largest / 2.0, largest]
        };
        for tick in ticks {
            let at = y(tick);
            self.add(format_args!(r#"<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1}" y2="{at:.1}"/>"#));
            let said = if tick.fract() == 0.0 { format!("{tick:.0}") } else { format!("{tick:.1}") };
            self.add(format_args!(
                r#"<text class="name" x="{:.0}" y="{:.1}">{said}{unit}</text>"#,
                LEFT - 10.0,
                at + 4.0
            ));
        }
        for (name, colour, values) in all {
            let point =
                |(at, value): (usize, f64)| format!("{:.1},{:.1}", self.x(at as f64 * 1_000.0 + 500.0), y(value));
            let drawn: Vec<Vec<String>> =
                runs(values).into_iter().map(|run| run.into_iter().map(point).collect()).collect();
            for mut points in drawn {
                if let [lonely] = points.as_slice() {
                    // A line to itself: the round ends make it a dot.
                    points.push(lonely.clone());
                }
                let points = points.join(" ");
                self.add(format_args!(
                    r#"<polyline points="{points}" stroke="{colour}"><title>{name}</title></polyline>"#
                ));
            }
        }
        let mut x = right;
        for (name, colour, _) in all.iter().rev() {
            x -= 14.0 + 7.0 * name.len() as f64;
            self.add(format_args!(
                r#"<text class="key" x="{x:.0}" y="{:.0}" style="fill: {colour}">{name}</text>"#,
                top - 8.0
            ));
        }
        self.y = top + PLOT + GAP;
    }

    fn axis(&mut self) {
        let (y, seconds) = (self.y - GAP + 18.0, self.end_ms / 1_000.0);
        let step = [1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0, 3_600.0].into_iter().find(|step| seconds / step <= 14.0);
        let step = step.unwrap_or(7_200.0);
        for tick in 0..=(seconds / step) as usize {
            let x = self.x(tick as f64 * step * 1_000.0);
            self.add(format_args!(r#"<text class="tick" x="{x:.0}" y="{y:.0}">{:.0} s</text>"#, tick as f64 * step));
        }
        self.y += 10.0;
    }
}

/// The values without the gaps between them, each with its place.
fn runs(values: &[Option<f64>]) -> Vec<Vec<(usize, f64)>> {
    let numbered: Vec<Option<(usize, f64)>> =
        values.iter().enumerate().map(|(at, value)| Some((at, (*value)?))).collect();
    let runs = numbered.split(Option::is_none).filter(|run| !run.is_empty());
    runs.map(|run| run.iter().flatten().copied().collect()).collect()
}

fn picture(history: &History) -> String {
    let last = history.ops.iter().map(|op| op.at_ms + op.took_ms).fold(1_000.0, f64::max);
    let mut picture = Picture { svg: String::new(), y: 20.0, end_ms: last };
    let seconds = seconds(history, (last / 1_000.0).ceil() as usize);
    let series = |of: fn(&Second) -> Option<f64>| seconds.iter().map(of).collect::<Vec<Option<f64>>>();
    picture.faults(history);
    let latency = [
        ("median", "#2e86ab", series(|second| second.p50)),
        ("p99", "#d1495b", series(|second| second.p99)),
        ("longest", "#9a9a9a", series(|second| second.max)),
    ];
    picture.lines("Time until an answer", " ms", true, &latency);
    let done = [
        ("asked", "#9a9a9a", series(|second| Some(second.count as f64))),
        ("answered", "#3a7d44", series(|second| Some(second.answered as f64))),
    ];
    picture.lines("Operations per second", "", false, &done);
    let context = [("longest context", "#8d5a97", series(|second| second.context.map(|length| length as f64)))];
    picture.lines("Characters of a context", "", false, &context);
    picture.axis();
    let (height, svg) = (picture.y, picture.svg);
    format!(r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="what happened when">{svg}</svg>"#)
}

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #222; --faint: #8884; --paper: #fdfcf9; }
@media (prefers-color-scheme: dark) { :root { --ink: #ddd; --paper: #1b1c1e; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1060px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h1.kept { color: #3a7d44; } h1.broken { color: #d1495b; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg text.title { font-weight: 600; } svg text.name { text-anchor: end; } svg text.tick { text-anchor: middle; }
svg line.grid { stroke: var(--faint); } svg polyline { fill: none; stroke-width: 1.6; stroke-linecap: round; }
table { border-collapse: collapse; } td, th { padding: .2em 1.4em .2em 0; text-align: left; } td.number { text-align: right; }
pre { overflow-x: auto; background: var(--faint); padding: .8em; border-radius: 4px; }
.swatch { display: inline-block; width: .9em; height: .9em; border-radius: 3px; margin: 0 .35em 0 1em; vertical-align: -.1em; }
";

/// The page.
pub fn page(history: &History, verdict: &Verdict) -> String {
    let mut page = String::from("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    let mut add = |text: String| page.push_str(&text);
    let (class, heading) =
        if verdict.kept { ("kept", "Every promise was kept") } else { ("broken", "Promises were broken") };
    let cluster = escape(&history.head.cluster);
    add(format!("<title>Drill of {cluster}: {heading}</title><style>{STYLE}</style></head><body>"));
    add(format!("<h1 class=\"{class}\">{heading}</h1>"));
    add(format!(
        "<p>Cluster {cluster}, {} nodes, seed {}: {} operations by {} sessions, {} faults.</p>",
        history.head.nodes.len(),
        verdict.seed,
        verdict.operations,
        verdict.sessions,
        verdict.faults
    ));
    for offence in &verdict.offences {
        let operations = escape(&offence.operations.join("\n"));
        add(format!("<h2>{}</h2><pre>{operations}</pre>", escape(&offence.what)));
    }
    add(picture(history));
    add("<p>".to_owned());
    for kind in super::fault::KINDS.iter().filter(|kind| history.faults.iter().any(|fault| fault.fault == **kind)) {
        let colour = KIND_COLOURS[*kind as usize];
        add(format!("<span class=\"swatch\" style=\"background:{colour}\"></span>{kind}"));
    }
    add("</p><table>".to_owned());
    let count = |fate: Fate| history.ops.iter().filter(|op| op.result == fate).count().to_string();
    let quiet = verdict.context_quiet.map_or_else(|| "-".to_owned(), |length| length.to_string());
    let equal = verdict.converged_ms.map_or_else(|| "never".to_owned(), |ms| format!("{:.1} s", ms / 1_000.0));
    let rows = [
        ("answered", format!("{:.2} %", verdict.availability * 100.0)),
        ("done", count(Fate::Ok)),
        ("refused, without effect", count(Fate::Fail)),
        ("of unknown fate", count(Fate::Info)),
        ("contexts handed on", verdict.handed_over.to_string()),
        ("may be lost (one copy, wiped)", verdict.may_be_lost.to_string()),
        ("characters of a context at most, at rest", format!("{}, {quiet}", verdict.context_max)),
        ("replicas equal after healing", equal),
        ("faults left out", verdict.left_out.to_string()),
    ];
    for (name, value) in rows {
        add(format!("<tr><td>{name}</td><td class=\"number\">{value}</td></tr>"));
    }
    add("</table></body></html>\n".to_owned());
    page
}

#[cfg(test)]
mod tests {
    use super::super::history::tests::{PUT, history};
    use super::super::verdict;
    use super::*;

    #[test]
    fn a_page_stands_alone_and_escapes_what_it_shows() {
        let fault = r#"{"kind":"fault","fault":"kill","nodes":["bob"],"what":"<b>","from-ms":1.0,"to-ms":2.0}"#;
        let end = r#"{"kind":"end","stopped-ms":10.0,"healed-ms":11.0,"equal-ms":null,"unmet":["bob: <late>"],"quiet-context":null}"#;
        let history = history(&[PUT, fault, end].join("\n"));
        let page = page(&history, &verdict::of(&history).unwrap());
        assert!(
            page.contains("Promises were broken") && page.contains("&lt;late&gt;") && page.contains("kill: &lt;b&gt;")
        );
        assert!(
            !page.contains("http://") && !page.contains("https://") && !page.contains("<script"),
            "it needs nothing else"
        );
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }

    /// The points of the lines in a colour, each run by itself.
    fn runs<'a>(page: &'a str, colour: &str) -> Vec<&'a str> {
        let end = format!("\" stroke=\"{colour}\"");
        page.split("<polyline points=\"").filter_map(|part| Some(part.split_once(&end)?.0)).collect()
    }

    #[test]
    fn a_second_without_answers_is_a_gap() {
        let at = |ms: u32, value: u32| {
            let events = format!(r#""call":{},"return":{}"#, ms + 1, ms + 2);
            PUT.replace("1000001", &value.to_string())
                .replace(r#""call":1,"return":2"#, &events)
                .replace("\"at-ms\":1.5", &format!("\"at-ms\":{ms}"))
        };
        let silent =
            at(2_500, 1_000_003).replace("\"status\":201,\"replicas\":2,", "").replace(",\"answered\":\"T2\"", "");
        let end = r#"{"kind":"end","stopped-ms":5000.0,"healed-ms":5000.0,"equal-ms":5000.0,"unmet":[],"quiet-context":null}"#;
        let lines = [at(100, 1_000_001), at(1_100, 1_000_002), silent, at(4_100, 1_000_004), end.to_owned()];
        let history = history(&lines.join("\n"));
        let page = page(&history, &verdict::of(&history).unwrap());
        for colour in ["#2e86ab", "#d1495b", "#8d5a97"] {
            let runs = runs(&page, colour);
            assert_eq!(runs.len(), 2, "{colour}: {runs:?}");
            assert!(runs.iter().all(|run| run.split(' ').count() == 2), "a lonely point is seen, too: {runs:?}");
        }
        assert_eq!(runs(&page, "#3a7d44").len(), 1, "none answered is a number");
    }

    #[test]
    fn a_second_tells_its_percentiles() {
        let ops: Vec<Op> =
            (1..=100).map(|ms| Op { took_ms: f64::from(ms), status: Some(200), ..Op::default() }).collect();
        let second = second(&ops.iter().collect::<Vec<_>>());
        let latencies = (second.p50, second.p99, second.max);
        assert_eq!((latencies, second.answered), ((Some(51.0), Some(100.0), Some(100.0)), 100));
        assert_eq!(super::second(&[]), Second::default());
    }
}
