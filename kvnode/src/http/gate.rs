//! Who may still come in: the gate that closes when the node stops, and the bytes that bodies may hold.

use std::ops::Deref;
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
pub struct Ticket<G: Deref<Target = Gate>>(G);

impl Gate {
    /// `None` once the gate is closed. A borrowed gate will do where the request does not outlive it, and costs less.
    pub fn enter<G: Deref<Target = Self>>(gate: G) -> Option<Ticket<G>> {
        // Counted before the look at `closed`: whoever closes the gate then either sees this request or refuses it.
        gate.in_flight.fetch_add(1, Ordering::SeqCst);
        let ticket = Ticket(gate);
        if ticket.0.is_closed() { None } else { Some(ticket) }
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

impl<G: Deref<Target = Gate>> Drop for Ticket<G> {
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
    /// The budget that this one is a share of, if it is.
    whole: Option<Arc<Self>>,
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
        Arc::new(Self { held: AtomicUsize::new(0), max, whole: None })
    }

    /// A part of this budget that is bounded by itself, too.
    pub fn share(self: &Arc<Self>, max: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), max, whole: Some(self.clone()) })
    }

    pub fn lease(self: &Arc<Self>) -> Lease {
        Lease { budget: self.clone(), bytes: 0 }
    }

    fn take(&self, more: usize) -> bool {
        let before = self.held.fetch_add(more, Ordering::SeqCst);
        let fits = before.saturating_add(more) <= self.max && self.whole.as_ref().is_none_or(|whole| whole.take(more));
        if !fits {
            self.held.fetch_sub(more, Ordering::SeqCst);
        }
        fits
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::SeqCst);
        if let Some(whole) = &self.whole {
            whole.give_back(bytes);
        }
    }
}

impl Lease {
    /// Whether it is worth to be kept for what is held no longer than a request waits.
    pub fn is_large(&self) -> bool {
        self.bytes >= SMALL
    }

    /// Takes `more` bytes; `false`, and nothing taken, if they are not there.
    pub fn grow(&mut self, more: usize) -> bool {
        let fits = self.budget.take(more);
        self.bytes += if fits { more } else { 0 };
        fits
    }

    /// Takes what is missing to so many bytes in all.
    pub fn cover(&mut self, bytes: usize) -> bool {
        self.grow(bytes.saturating_sub(self.bytes))
    }

    /// Gives back what is more than so many bytes.
    pub fn shrink(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        self.budget.give_back(less);
        self.bytes -= less;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_closed_gate_empties() {
        let gate = Arc::new(Gate::default());
        let ticket = Gate::enter(gate.clone()).unwrap();
        gate.close();
        assert!(Gate::enter(&*gate).is_none());
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

    #[test]
    fn a_share_is_bounded_by_itself_and_by_the_whole() {
        let whole = Budget::new(10);
        let (one, other) = (whole.share(6), whole.share(6));
        let (mut first, mut second) = (one.lease(), other.lease());
        assert!(first.cover(6) && !first.cover(7), "it has its own bound");
        assert!(!second.cover(5) && second.cover(4), "and both have one");
        first.shrink(2);
        assert!(second.cover(6));
        drop(first);
        drop(second);
        assert!(whole.lease().grow(10), "what was refused was not taken");
    }
}
