//! Ctrl-C and its kin, as something that a command asks about between two steps.
//!
//! A step that makes something is never cut short: a request that the engine has got may still take effect, and what this
//! command made could then not be taken back. Only waiting and building are.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::error::{Code, Failure, Result};

/// Whether the user wants the command to end.
pub struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    /// From here on SIGINT, SIGTERM and SIGHUP are noted instead of ending the process, however often they come.
    pub fn listen() -> Result<Self> {
        let (noted, receiver) = watch::channel(false);
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            let mut signals = signal(kind).map_err(|error| Failure::environment(error.to_string()))?;
            let noted = noted.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    noted.send_replace(true);
                }
            });
        }
        Ok(Self(receiver))
    }

    /// An error once the user wants the command to end.
    pub fn check(&self) -> Result<()> {
        if *self.0.borrow() { Err(Failure::new(Code::Failed, "interrupted")) } else { Ok(()) }
    }

    /// Does `work` unless interrupted; for what may be dropped half done.
    pub async fn or<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut noted = self.0.clone();
        tokio::select! {
            done = work => done,
            _ = noted.wait_for(|noted| *noted) => Err(Failure::new(Code::Failed, "interrupted")),
        }
    }
}
