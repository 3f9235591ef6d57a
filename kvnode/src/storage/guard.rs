//! Opening files that may be damaged with an engine that panics at some of them.
//!
//! fjall asserts a part of what it reads instead of reporting it, and its destructors panic once more on the locks that are
//! poisoned then, which would abort the process. So a store is opened on a thread of its own, and where that panics it is
//! stopped for good in the panic hook, before anything is unwound. What it held (memory, files that are about to be renamed) is
//! never used again, and stays until the process ends.

use std::cell::RefCell;
use std::sync::Once;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use super::{Result, StoreError};

thread_local! {
    /// Who wants to know that this thread panics.
    static TOLD: RefCell<Option<Sender<String>>> = const { RefCell::new(None) };
}

fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let told = TOLD.with(|told| told.take());
            let Some(told) = told else { return before(panic) };
            if told.send(panic.to_string()).is_ok() {
                loop {
                    thread::park();
                }
            }
        }));
    });
}

/// Does `work`, which a panic ends with [`StoreError::Damaged`].
pub(super) fn guarded<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    install_hook();
    let (panics, told) = channel();
    let (results, result) = channel();
    let worker = move || {
        TOLD.with(|told| told.replace(Some(panics)));
        // Nobody else listens if this fails.
        let _ = results.send(work());
        // Drops the sender: nothing is left that could panic.
        TOLD.with(RefCell::take);
    };
    let worker = thread::Builder::new().name("opening".into()).spawn(worker);
    worker.map_err(|error| StoreError::Io(error.to_string()))?;
    match told.recv() {
        Ok(panic) => Err(StoreError::Damaged(panic.replace('\n', " "))),
        Err(_) => {
            result.recv().unwrap_or_else(|_| Err(StoreError::Io("the thread that opened the store is gone".into())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct PanicsAgain;

    impl Drop for PanicsAgain {
        fn drop(&mut self) {
            panic!("a destructor that would abort the process");
        }
    }

    #[test]
    fn a_panic_is_damage() {
        assert_eq!(guarded(|| Ok(7)).unwrap(), 7);
        let damaged = guarded::<()>(|| {
            let _held = PanicsAgain;
            panic!("bad\nfile")
        });
        assert!(matches!(damaged, Err(StoreError::Damaged(why)) if why.contains("bad file")));
        assert!(matches!(guarded::<()>(|| Err(StoreError::Io("x".into()))), Err(StoreError::Io(_))));
        assert_eq!(guarded(|| Ok(8)).unwrap(), 8);
    }
}
