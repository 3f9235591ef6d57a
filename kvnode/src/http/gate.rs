//! Who may still come in: the gate that closes when the node stops, and the bytes that bodies may hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Counts the data requests in flight, and lets no more in once it is closed.
#[derive(Debug, Default)]
pub struct Gate {
    closed: AtomicBool,
    in_flight: AtomicUsize,
    emptied: Notify,
}

/// One request in flight.
#[derive(Debug)]
pub struct Ticket(Arc<Gate>);

impl Gate {
    /// `None` once the gate is closed.
    pub fn enter(self: &Arc<Self>) -> Option<Ticket> {
        // Counted before the look at `closed`: whoever closes the gate then either sees this request or refuses it.
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let ticket = Ticket(self.clone());
        if self.is_closed() { None } else { Some(ticket) }
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Waits until no request is in flight. To be called after [`Gate::close`].
    pub async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.in_flight.load(Ordering::SeqCst) == 0 {
                return;
            }
            emptied.await;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.emptied.notify_waiters();
        }
    }
}

/// A bound on bytes that many requests share.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    max: usize,
}

/// Bodies and answers below this size are not counted while they wait: requests and connections are, and that bounds them.
pub const SMALL: usize = 4 << 10;

/// A part of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub struct Lease {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), max })
    }

    pub fn lease(self: &Arc<Self>) -> Lease {
        Lease { budget: self.clone(), bytes: 0 }
    }
}

impl Lease {
    /// Whether it is worth to be kept for what is held no longer than a request waits.
    pub fn is_large(&self) -> bool {
        self.bytes >= SMALL
    }

    /// Takes `more` bytes; `false`, and nothing taken, if they are not there.
    pub fn grow(&mut self, more: usize) -> bool {
        let before = self.budget.held.fetch_add(more, Ordering::SeqCst);
        if before.saturating_add(more) > self.budget.max {
            self.budget.held.fetch_sub(more, Ordering::SeqCst);
            return false;
        }
        self.bytes += more;
        true
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_closed_gate_empties() {
        let gate = Arc::new(Gate::default());
        let ticket = gate.enter().unwrap();
        gate.close();
        assert!(gate.enter().is_none());
        let emptied = gate.emptied();
        tokio::pin!(emptied);
        tokio::select! {
            biased;
            () = &mut emptied => panic!("a request is still in flight"),
            () = std::future::ready(()) => {}
        }
        drop(ticket);
        emptied.await;
    }

    #[test]
    fn leases_are_given_back() {
        let budget = Budget::new(10);
        let mut first = budget.lease();
        assert!(first.grow(6) && first.grow(4) && !first.grow(1));
        let mut second = budget.lease();
        assert!(!second.grow(1));
        drop(first);
        assert!(second.grow(10));
    }
}
