//! Faults that a node makes itself suffer, for drills: links that are cut or slow, a clock that is wrong.
//!
//! A container has no clock of its own, and one that Docker disconnects loses its published port too; so these faults are
//! made inside the node. They sit in the shells alone: where batches of peers leave and arrive ([`crate::link`],
//! [`crate::node`]), and where the wall clock is read. The protocol core knows nothing of them.
//!
//! A link has two directions, and each carries two things: the batches of the one node, and its answers to the batches of the
//! other. What is cut or slow *to* a peer is what leaves for it, *from* a peer what arrives from it, as if packets were lost
//! or held up on the way. A cut loses what it meets after a time, as a network does: the sender can't tell it from slowness.
//!
//! A node that was not started with `--drill` has none of this, whatever it is asked.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use kvnode_core::topology::NODES_MAX;
use kvnode_types::ident::Addr;

/// Longest delay of one direction of a link.
pub const DELAY_MS_MAX: u64 = 10_000;
/// Furthest that a wall clock is put ahead or back: a week.
pub const CLOCK_OFFSET_MS_MAX: i64 = 7 * 24 * 3_600_000;
/// Longest that faults may be asked to last: a day.
pub const FOR_MS_MAX: u64 = 24 * 3_600_000;
/// What meets a cut is held for so long before it is lost: as long as a link waits for an answer, so that whoever sent it
/// has given up by then.
const LOST_AFTER: Duration = Duration::from_secs(2);

/// All that is injected at a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Injected {
    pub links: Vec<LinkFault>,
    /// Added to the wall clock; the clock that measures time-outs is not touched.
    pub clock_offset_ms: i64,
    /// The store takes no writes beyond so many bytes, as if the disk were full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_bytes_max: Option<u64>,
    /// All of it ends by itself after so long, whatever became of whoever asked for it. Absent: when it is asked to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<u64>,
}

/// What is wrong with one direction of a link. Exactly one of `to` and `from` names the peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct LinkFault {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Addr>,
    pub cut: bool,
    pub delay_ms: u64,
}

/// A direction of a link, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    To,
    From,
}

/// Lost on a link that is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

impl LinkFault {
    fn concerns(&self, way: Way, peer: &Addr) -> bool {
        let named = match way {
            Way::To => &self.to,
            Way::From => &self.from,
        };
        named.as_ref() == Some(peer)
    }

    fn check(&self, known: &[Addr]) -> Result<(), String> {
        let peer = match (&self.to, &self.from) {
            (Some(peer), None) | (None, Some(peer)) => peer,
            _ => return Err("each of \"links\" names a peer, with either \"to\" or \"from\"".into()),
        };
        if !known.contains(peer) {
            return Err(format!("{peer} is no peer of this node"));
        }
        if self.delay_ms > DELAY_MS_MAX {
            return Err(format!("\"delay-ms\" is at most {DELAY_MS_MAX}"));
        }
        if !self.cut && self.delay_ms == 0 {
            return Err(format!("the link with {peer} has neither \"cut\" nor \"delay-ms\""));
        }
        Ok(())
    }
}

impl Injected {
    /// Whether it can be injected at a node with these peers.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(&self, peers: &[Addr]) -> Result<(), String> {
        if self.links.len() > 2 * NODES_MAX {
            return Err(format!("\"links\" has at most {} entries", 2 * NODES_MAX));
        }
        self.links.iter().try_for_each(|link| link.check(peers))?;
        if self.clock_offset_ms.unsigned_abs() > CLOCK_OFFSET_MS_MAX.unsigned_abs() {
            return Err(format!("\"clock-offset-ms\" is at most {CLOCK_OFFSET_MS_MAX} either way"));
        }
        if self.for_ms.is_some_and(|ms| ms == 0 || ms > FOR_MS_MAX) {
            return Err(format!("\"for-ms\" is 1 to {FOR_MS_MAX}"));
        }
        Ok(())
    }
}

struct State {
    injected: Injected,
    /// When it ends by itself.
    until: Option<Instant>,
}

/// The faults of a node, shared by all its shells.
pub struct Drill {
    allowed: bool,
    state: Mutex<State>,
    /// Beside the state, because the clock is read on every turn; moves only with it.
    clock_offset_ms: AtomicI64,
}

impl Drill {
    /// `allowed`: whether the node was started for drills.
    pub fn new(allowed: bool) -> Self {
        let state = State { injected: Injected::default(), until: None };
        Self { allowed, state: Mutex::new(state), clock_offset_ms: AtomicI64::new(0) }
    }

    pub fn is_allowed(&self) -> bool {
        self.allowed
    }

    /// The state, with what has ended by itself gone from it.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.until.is_some_and(|until| Instant::now() >= until) {
            *state = State { injected: Injected::default(), until: None };
            self.clock_offset_ms.store(0, Ordering::Relaxed);
        }
        state
    }

    pub fn injected(&self) -> Injected {
        self.state().injected.clone()
    }

    /// Puts this in the place of all that was injected before.
    pub fn inject(&self, injected: Injected) {
        let mut state = self.state();
        self.clock_offset_ms.store(injected.clock_offset_ms, Ordering::Relaxed);
        let until = injected.for_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        *state = State { injected, until };
    }

    /// What the wall clock shows instead of `wall_ms`.
    pub fn wall_ms(&self, wall_ms: u64) -> u64 {
        // The state is looked at, and so ends in time, only where there is an offset.
        match self.clock_offset_ms.load(Ordering::Relaxed) {
            0 => wall_ms,
            _ => wall_ms.saturating_add_signed(self.state().injected.clock_offset_ms),
        }
    }

    /// The limit on the bytes of the store that is injected, if any.
    pub fn store_bytes_max(&self) -> Option<u64> {
        if self.allowed { self.state().injected.store_bytes_max } else { None }
    }

    /// What is wrong with a link: whether it is cut, and how long it takes.
    fn fault(&self, way: Way, peer: &Addr) -> (bool, Duration) {
        let state = self.state();
        let faults = || state.injected.links.iter().filter(|link| link.concerns(way, peer));
        let delay_ms = faults().map(|link| link.delay_ms).max().unwrap_or(0);
        (faults().any(|link| link.cut), Duration::from_millis(delay_ms))
    }

    /// Something goes along a link: returns when it has passed.
    ///
    /// # Errors
    /// If it is lost, after a time.
    pub async fn pass(&self, way: Way, peer: &Addr) -> Result<(), Lost> {
        if !self.allowed {
            return Ok(());
        }
        let (cut, delay) = self.fault(way, peer);
        if cut {
            tokio::time::sleep(LOST_AFTER).await;
            return Err(Lost);
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse().unwrap()
    }

    fn injected(json: &str) -> Result<Injected, String> {
        let injected: Injected = serde_json::from_str(json).map_err(|error| error.to_string())?;
        injected.check(&[addr("10.0.0.3:1"), addr("10.0.0.4:1")]).map(|()| injected)
    }

    #[test]
    fn what_can_be_injected() {
        let good = injected(
            r#"{"links":[{"to":"10.0.0.3:1","cut":true},{"from":"10.0.0.4:1","delay-ms":80}],"clock-offset-ms":-3600000}"#,
        );
        let good = good.unwrap();
        assert_eq!((good.links.len(), good.clock_offset_ms, good.store_bytes_max), (2, -3_600_000, None));
        assert!(injected(r#"{"store-bytes-max":0,"for-ms":1}"#).is_ok() && injected("{}").is_ok());
    }

    #[test]
    fn what_can_not() {
        let many =
            format!(r#"{{"links":[{}]}}"#, vec![r#"{"to":"10.0.0.3:1","cut":true}"#; 2 * NODES_MAX + 1].join(","));
        for (json, why) in [
            (r#"{"link":[]}"#, "unknown field"),
            (r#"{"links":[{"to":"10.0.0.3:1","cut":true,"loss":1}]}"#, "unknown field"),
            (r#"{"links":[{"to":"10.0.0.9:1","cut":true}]}"#, "no peer"),
            (r#"{"links":[{"cut":true}]}"#, "either"),
            (r#"{"links":[{"to":"10.0.0.3:1","from":"10.0.0.3:1","cut":true}]}"#, "either"),
            (r#"{"links":[{"to":"10.0.0.3:1"}]}"#, "neither"),
            (r#"{"links":[{"to":"10.0.0.3:1","delay-ms":10001}]}"#, "at most"),
            (r#"{"links":[{"to":"10.0.0.3:1","delay-ms":-1}]}"#, "invalid value"),
            (r#"{"clock-offset-ms":604800001}"#, "at most"),
            (r#"{"clock-offset-ms":-9223372036854775808}"#, "at most"),
            (r#"{"store-bytes-max":-1}"#, "invalid value"),
            (r#"{"for-ms":0}"#, "for-ms"),
            (&many, "at most"),
        ] {
            let refused = injected(json).unwrap_err();
            assert!(refused.contains(why), "{json}: {refused}");
        }
    }

    #[test]
    fn a_fault_concerns_one_direction_of_one_link() {
        let drill = Drill::new(true);
        drill.inject(
            injected(r#"{"links":[{"to":"10.0.0.3:1","cut":true},{"from":"10.0.0.4:1","delay-ms":80}]}"#).unwrap(),
        );
        let (three, four) = (addr("10.0.0.3:1"), addr("10.0.0.4:1"));
        for (way, peer, cut, ms) in [
            (Way::To, &three, true, 0),
            (Way::From, &three, false, 0),
            (Way::To, &four, false, 0),
            (Way::From, &four, false, 80),
        ] {
            assert_eq!(drill.fault(way, peer), (cut, Duration::from_millis(ms)), "{way:?} {peer}");
        }
        drill.inject(Injected::default());
        assert_eq!(drill.fault(Way::To, &three), (false, Duration::ZERO));
    }

    #[test]
    fn the_wall_clock_goes_wrong_and_right_again() {
        let drill = Drill::new(true);
        drill.inject(Injected { clock_offset_ms: -500, ..Injected::default() });
        assert_eq!((drill.wall_ms(1_000), drill.wall_ms(100)), (500, 0));
        drill.inject(Injected { clock_offset_ms: 500, for_ms: Some(1), ..Injected::default() });
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!((drill.wall_ms(1_000), drill.injected()), (1_000, Injected::default()), "it ended by itself");
    }
}
