//! What a person or a program sees: data on standard output, everything else on standard error.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use comfy_table::Table;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::Output;

/// Writes data. A reader that has gone away ends the command quietly.
pub fn write_out(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Writes one line of data.
pub fn line(text: &str) {
    write_out(format!("{text}\n").as_bytes());
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
        table.add_row(row);
    });
    let text: Vec<String> = table.to_string().lines().map(|line| line.trim().to_owned()).collect();
    line(&text.join("\n"));
}

/// Tells how far a long command is: a spinner on a terminal, else plain lines, on standard error either way.
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub fn new() -> Self {
        let plain = !std::io::stderr().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let bar = (!plain).then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner:.cyan} {wide_msg} {elapsed:.dim}");
            bar.set_style(style.expect("the template is a constant"));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar }
    }

    /// What happens now.
    pub fn step(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => say(text),
        }
    }

    /// Takes the spinner away.
    pub fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.done();
    }
}

/// A line for people. Nobody may be listening; that is no reason to fail.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
