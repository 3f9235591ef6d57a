//! What a person or a program sees: data on standard output, everything else on standard error.

use std::io::{ErrorKind, Write};

use comfy_table::Table;
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

/// Whether people want colours.
fn coloured() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A line for people. Nobody may be listening; that is no reason to fail.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A question, answered on the same line.
fn prompt(text: &str) {
    let mut err = std::io::stderr();
    let _ = write!(err, "{text}").and_then(|()| err.flush());
}

/// Tells why the command failed: people on standard error, and programs that asked for a document by one.
pub fn failed(output: Output, failure: &Failure) {
    say(&format!("kvctl: {failure}"));
    if output == Output::Json {
        let plain = || serde_json::json!({"error": failure.message, "exit-code": failure.code as u8}).into();
        line(&failure.document.clone().unwrap_or_else(plain).to_string());
    }
}
