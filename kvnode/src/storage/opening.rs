//! How far a store is that is being opened: told to whoever asks meanwhile.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is done one after the other.
const STEPS: [&str; 4] = [
    "waiting for the folder",
    "having a child try it, because its last process did not end in order",
    "reading its journal",
    "counting its keys",
];

/// Shared by who opens it and who is asked.
#[derive(Debug)]
pub struct Opening {
    began: Instant,
    step: AtomicU8,
    versions: AtomicU64,
}

impl Default for Opening {
    fn default() -> Self {
        Self { began: Instant::now(), step: AtomicU8::new(0), versions: AtomicU64::new(0) }
    }
}

impl Opening {
    pub fn is_tried(&self) {
        self.step.store(1, Ordering::Relaxed);
    }

    pub fn is_read(&self) {
        self.step.store(2, Ordering::Relaxed);
    }

    /// One more key, deleted ones included.
    pub fn counts(&self) {
        self.step.store(3, Ordering::Relaxed);
        self.versions.fetch_add(1, Ordering::Relaxed);
    }

    pub fn took(&self) -> Duration {
        self.began.elapsed()
    }

    /// For `/ready`.
    pub fn reason(&self) -> String {
        let step = STEPS[usize::from(self.step.load(Ordering::Relaxed)).min(STEPS.len() - 1)];
        let (seconds, versions) = (self.took().as_secs(), self.versions.load(Ordering::Relaxed));
        let counted = if versions > 0 { format!(" ({versions} so far)") } else { String::new() };
        format!("opening the store for {seconds} s: {step}{counted}")
    }
}
