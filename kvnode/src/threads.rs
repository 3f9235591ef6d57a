//! The threads that a node needs, asked for before it depends on them.
//!
//! A system that refuses one later (a bound on a container's or a user's processes) would end the node in the middle of its work.

use std::sync::mpsc;
use std::thread::Builder;

/// For tasks that block: a sync that is due, one that a turn waits for, and what may come beside them.
pub const BLOCKING_MAX: usize = 4;
/// Looking up names.
const NAMES: usize = 1;
/// What the engine works with.
const ENGINE: usize = 2;
/// The first one.
const MAIN: usize = 1;

/// Whether the system gives this process what it will need.
///
/// # Errors
/// One line, if it does not.
pub fn check(has_engine: bool) -> Result<(), String> {
    let more = NAMES + BLOCKING_MAX + if has_engine { ENGINE } else { 0 };
    let (end, ended) = mpsc::channel::<()>();
    let ended = std::sync::Arc::new(std::sync::Mutex::new(ended));
    let wait = || {
        let ended = ended.clone();
        move || drop(ended.lock().map(|ended| ended.recv()))
    };
    let started: Result<Vec<_>, _> = (0..more).map(|_| Builder::new().spawn(wait())).collect();
    drop(end);
    match started {
        Ok(threads) => {
            threads.into_iter().for_each(|thread| drop(thread.join()));
            Ok(())
        }
        Err(error) => Err(format!(
            "this process needs {} threads and the system refuses them ({error}): raise the limit (docker --pids-limit, ulimit -u, \
             TasksMax of systemd)",
            MAIN + more
        )),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_are_enough_here() {
        super::check(true).unwrap();
    }
}
