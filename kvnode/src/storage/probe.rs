//! Trying a store in another process first.
//!
//! fjall asserts a part of what it reads instead of reporting it, its destructors panic once more on what is poisoned then, and
//! a damaged length may make it ask for more memory than there is: each of them ends the process. So a store whose process did
//! not end in order is first opened and read by a child, this same program; what the child dies of is told in one line.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use kvnode_core::store::{Result, Store, StoreError};

use super::durable::DurableStore;

/// The argument that makes the program a probe.
pub const ARGUMENT: &str = "--probe-store";
/// What a probe ends with if the store is damaged, and if it can't be read otherwise; why is on its standard output.
const EXIT_DAMAGED: u8 = 3;
const EXIT_UNREADABLE: u8 = 4;
/// How long a probe may read.
const PROBE_MAX: Duration = Duration::from_secs(600);

/// Names the process that a probe is for.
const PARENT: &str = "PROBE_PARENT";

/// The child's part: opens the store and reads all of it.
pub fn run(dir: &Path) -> ExitCode {
    if !dies_with_its_parent() {
        return ExitCode::FAILURE;
    }
    std::panic::set_hook(Box::new(|panic| {
        let what = panic.to_string();
        // The engine reports a failed checksum, and then some of its callers don't expect any error.
        let code = if what.contains("ChecksumMismatch") { EXIT_DAMAGED } else { EXIT_UNREADABLE };
        say(&what);
        // At once: what is being dropped would panic again.
        std::process::exit(code.into());
    }));
    match DurableStore::open(dir).and_then(|store| store.scan(&mut |_, _, _| {})) {
        Ok(()) => ExitCode::SUCCESS,
        Err(StoreError::Damaged(what)) => {
            say(&what);
            ExitCode::from(EXIT_DAMAGED)
        }
        Err(StoreError::Unreadable(what)) => {
            say(&what);
            ExitCode::from(EXIT_UNREADABLE)
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Nobody else can open the store as long as a probe has it. Whether there still is somebody to do it for.
#[cfg(target_os = "linux")]
fn dies_with_its_parent() -> bool {
    use rustix::process::{Signal, set_parent_process_death_signal};
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        say(&format!("it would not end with its parent: {error}"));
        return false;
    }
    // Somebody who has died before that is not told of any more.
    let parent = std::env::var(PARENT).ok().and_then(|parent| parent.parse::<u32>().ok());
    parent.is_none_or(|parent| parent == std::os::unix::process::parent_id())
}

#[cfg(not(target_os = "linux"))]
fn dies_with_its_parent() -> bool {
    true
}

/// If nobody listens, the exit code says it all.
fn say(what: &str) {
    let _ = std::io::stdout().write_all(what.as_bytes());
}

/// Lets `program` try the store in `dir`. What says nothing about the files (no such program, killed, no room) is left to
/// whoever opens them next.
///
/// # Errors
/// [`StoreError::Damaged`] or [`StoreError::Unreadable`] if the files are; [`StoreError::Io`] if they could not be read in time.
pub fn probe(program: &Path, dir: &Path) -> Result<()> {
    let mut command = Command::new(program);
    command.arg(ARGUMENT).arg(dir).env("RUST_BACKTRACE", "0");
    command.env(PARENT, std::process::id().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return Ok(()) };
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if began.elapsed() < PROBE_MAX => std::thread::sleep(Duration::from_millis(2)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                let text = format!("what is stored could not be read within {} s", PROBE_MAX.as_secs());
                return Err(StoreError::Io(text));
            }
        }
    };
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        let _ = stdout.read_to_string(&mut said);
    }
    verdict(status, said)
}

fn verdict(status: ExitStatus, said: String) -> Result<()> {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    match code {
        Some(EXIT_DAMAGED) => Err(StoreError::Damaged(said)),
        Some(EXIT_UNREADABLE) => Err(StoreError::Unreadable(one_line(&said))),
        _ if died_of_itself(status) => Err(StoreError::Unreadable(format!("the engine ended at it ({status})"))),
        _ => Ok(()),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<&str>>().join(" ")
}

/// Not by somebody's word (SIGKILL, SIGTERM, …).
#[cfg(unix)]
fn died_of_itself(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;

    use rustix::process::Signal;
    let own = [Signal::ABORT, Signal::SEGV, Signal::BUS, Signal::ILL, Signal::FPE, Signal::TRAP];
    status.signal().is_some_and(|signal| own.iter().any(|own| own.as_raw() == signal))
}

#[cfg(not(unix))]
fn died_of_itself(status: ExitStatus) -> bool {
    status.code().is_none()
}
