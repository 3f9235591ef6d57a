//! What a person or a program sees: data on standard output, everything else on standard error.
//!
//! Much of it was written by others: keys, values, what nodes say. Nothing gets out that a terminal would act on, but the line feeds that are
//! kvctl's own; whoever puts a text of others into a line makes it one [`printable`] line first. Only [`value`] gives a program what is stored
//! as it is.

use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};

use comfy_table::Table;
pub use kvnode_client::printable;
use serde::Serialize;

use crate::args::Output;
use crate::error::{Code, Failure};

mod ask;
mod pace;
mod progress;
mod transfers;

pub use ask::{confirm, confirm_twice};
pub use pace::bytes;
pub use progress::Progress;
pub use transfers::{Transfer, Transfers};

/// Writes data. That nobody reads it any more (`| head`) is no reason to stop in the middle of what the command is for, nor to
/// fail; data that can't be written (a full disk) is a failure.
fn write_out(bytes: &[u8]) {
    let _ = try_write_out(bytes);
}

/// Writes a part of data that may be long, for a command that does nothing else: it ends, quietly, when its reader goes away.
pub fn stream_out(bytes: &[u8]) {
    if !try_write_out(bytes) {
        std::process::exit(0);
    }
}

/// Whether anybody reads it.
fn try_write_out(bytes: &[u8]) -> bool {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => false,
        Err(error) => {
            say(&format!("kvctl: standard output: {error}"));
            std::process::exit(i32::from(Code::Environment as u8));
        }
    }
}

/// Some lines that do nothing to a terminal.
fn lines(text: &str) -> Cow<'_, str> {
    if printable(text) == text {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.split('\n').map(printable).collect::<Vec<Cow<'_, str>>>().join("\n"))
}

/// Writes one line of data, or several.
pub fn line(text: &str) {
    write_out(format!("{}\n", lines(text)).as_bytes());
}

/// Writes a stored text: to a program as it is, to people so that their terminal does nothing but show it.
pub fn value(text: &str) {
    write_out(format!("{}\n", stored(text, std::io::stdout().is_terminal())).as_bytes());
}

fn stored(text: &str, for_people: bool) -> Cow<'_, str> {
    if for_people { printable(text) } else { Cow::Borrowed(text) }
}

/// Gives on lines of a log: to a file or a program as they are, to people so that their terminal does nothing but show them.
pub struct LogOut {
    for_people: bool,
    /// The beginning of a line whose end has not come yet.
    begun: Vec<u8>,
}

/// A line of a log that is longer is shown in parts.
const LOG_LINE_MAX: usize = 64 << 10;

impl LogOut {
    pub fn new() -> Self {
        Self { for_people: std::io::stdout().is_terminal(), begun: Vec::new() }
    }

    /// A part of the log, wherever it begins and ends.
    pub fn write(&mut self, part: &[u8]) {
        if self.for_people { stream_out(self.whole_lines(part).as_bytes()) } else { stream_out(part) }
    }

    fn whole_lines(&mut self, part: &[u8]) -> String {
        self.begun.extend_from_slice(part);
        let end = self.begun.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let end = if self.begun.len() - end > LOG_LINE_MAX { self.begun.len() } else { end };
        let whole: Vec<u8> = self.begun.drain(..end).collect();
        lines(&String::from_utf8_lossy(&whole)).into_owned()
    }
}

/// Writes one JSON document, or what `text` makes of it.
pub fn show<T: Serialize>(output: Output, value: &T, text: impl FnOnce()) {
    match output {
        Output::Json => line(&serde_json::to_string(value).expect("answers are plain data")),
        Output::Text => text(),
    }
}

/// A table without borders: columns line up for people and split well for programs.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.iter().map(ToString::to_string));
    rows.into_iter().for_each(|row| {
        table.add_row(row.iter().map(|cell| printable(cell)));
    });
    let text: Vec<String> = table.to_string().lines().map(|line| line.trim().to_owned()).collect();
    line(&text.join("\n"));
}

/// Whether people want colours.
fn coloured() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A line for people. Nobody may be listening; that is no reason to fail.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", lines(text));
}

/// A question, answered on the same line.
fn prompt(text: &str) {
    let mut err = std::io::stderr();
    let _ = write!(err, "{}", lines(text)).and_then(|()| err.flush());
}

/// Tells why the command failed: people on standard error, and programs that asked for a document by one.
pub fn failed(output: Output, failure: &Failure) {
    say(&format!("kvctl: {failure}"));
    if output == Output::Json {
        let plain = || serde_json::json!({"error": failure.message, "exit-code": failure.code as u8}).into();
        line(&failure.document.clone().unwrap_or_else(plain).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_shows_what_programs_get_as_it_is() {
        let text = "a\n\u{1b}[2Jb";
        assert_eq!((stored(text, true), stored(text, false)), ("a\\n\\u001b[2Jb".into(), text.into()));
        assert_eq!(lines(text), "a\n\\u001b[2Jb", "kvctl's own line feeds stay");
    }

    #[test]
    fn a_log_is_shown_line_by_line_wherever_it_is_cut() {
        let text = "one ü\n\u{1b}]0;two\u{7}\nthree";
        for cut in 0..text.len() {
            let mut out = LogOut { for_people: true, begun: Vec::new() };
            let shown = out.whole_lines(&text.as_bytes()[..cut]) + &out.whole_lines(&text.as_bytes()[cut..]);
            assert_eq!((shown.as_str(), &out.begun[..]), ("one ü\n\\u001b]0;two\\u0007\n", &b"three"[..]), "{cut}");
        }
        let mut out = LogOut { for_people: true, begun: Vec::new() };
        assert_eq!(out.whole_lines(&[b'x'; LOG_LINE_MAX + 1]).len(), LOG_LINE_MAX + 1);
    }
}
