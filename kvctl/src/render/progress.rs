//! How far a long command is.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{coloured, printable, say};

/// A bar on a terminal, else plain lines, because indicatif draws nothing off a terminal; on standard error either way.
pub struct Progress {
    bar: Option<ProgressBar>,
    /// What was said last: plain lines don't repeat it.
    last: RefCell<String>,
}

impl Progress {
    /// For work of so many steps.
    pub fn new() -> Self {
        Self::with(if coloured() {
            "{spinner:.cyan} [{bar:24.cyan}] {pos}/{len} {wide_msg} {elapsed:.dim}"
        } else {
            "{spinner} [{bar:24}] {pos}/{len} {wide_msg} {elapsed}"
        })
    }

    /// For waiting, which has no steps.
    pub fn waiting() -> Self {
        Self::with(if coloured() {
            "{spinner:.cyan} {wide_msg} {elapsed:.dim}"
        } else {
            "{spinner} {wide_msg} {elapsed}"
        })
    }

    fn with(template: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(template).expect("the templates are constants");
            let bar = ProgressBar::new(0).with_style(style.progress_chars("=> "));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar, last: RefCell::default() }
    }

    /// So many steps more are to come.
    pub fn expect(&self, steps: usize) {
        if let Some(bar) = &self.bar {
            bar.inc_length(steps as u64);
        }
    }

    /// So many of the expected steps are done.
    pub fn did(&self, steps: usize) {
        if let Some(bar) = &self.bar {
            bar.inc(steps as u64);
        }
    }

    /// What happens now.
    pub fn step(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(printable(text).into_owned()),
            None if *self.last.borrow() == text => {}
            None => {
                say(text);
                text.clone_into(&mut self.last.borrow_mut());
            }
        }
    }

    /// Takes the bar away, so that what follows stands alone.
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
