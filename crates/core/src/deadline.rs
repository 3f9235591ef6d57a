//! One deadline for a request, whatever comes together.
//!
//! Problem: a request may wait for what it depends on, be passed on, be refused, be passed on again, meet a change of the layout, and
//! wait for copies. If each of these had a time of its own, a client would wait for their sum.
//!
//! Rule: a request has one [`Span`], from its arrival, and it goes with it through every hop and every try. What it waits for ends with
//! it. The wait for dependencies counts from the arrival; a change of the layout gives it anew, because the replica that has the
//! key now may have to fetch them, but never beyond the deadline.
//!
//! A replica that a request was passed on to acts on it [`ANSWER_MARGIN_MS`] before the deadline at the latest. After that its sender may
//! say that nobody knows what became of a write, and the client's next write can't be overtaken by it.

use super::Core;
use super::settings::Settings;

/// The least time that a request may take.
const REQUEST_MS_MIN: u64 = 2_000;
/// What is left of a request's time for copies and for the answer's way when a replica that it was passed on to acts at last.
pub(super) const ANSWER_MARGIN_MS: u64 = 500;
/// Of that, for the answer's way back.
const WAY_BACK_MS: u64 = 100;

/// The times of a request, in ms on this node's clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// When all of it had arrived at the node that the client asked.
    arrived_ms: u64,
    /// Until when a replica may act on it.
    act_until_ms: u64,
    /// When it is answered at the latest.
    deadline_ms: u64,
}

impl Settings {
    /// How long a request may take, from the arrival of its last byte.
    pub fn request_ms(&self) -> u64 {
        REQUEST_MS_MIN.max(self.causal_wait_ms + self.ack_wait_ms + ANSWER_MARGIN_MS)
    }
}

impl Span {
    /// That of a request of this node's own client.
    pub fn of_client(settings: &Settings, arrived_ms: u64) -> Self {
        let deadline_ms = arrived_ms.saturating_add(settings.request_ms());
        Self { arrived_ms, act_until_ms: deadline_ms, deadline_ms }
    }

    /// That of a request that another node has passed on, which may be acted on until then. All nodes of a cluster have the same
    /// settings, so that tells its arrival. None has arrived later than now, whatever is said.
    pub fn passed_on(settings: &Settings, act_until_ms: u64, now_ms: u64) -> Self {
        let latest_ms = now_ms.saturating_add(settings.request_ms() - ANSWER_MARGIN_MS);
        let act_until_ms = act_until_ms.min(latest_ms);
        let its_deadline_ms = act_until_ms.saturating_add(ANSWER_MARGIN_MS);
        Self {
            arrived_ms: its_deadline_ms.saturating_sub(settings.request_ms()),
            act_until_ms,
            deadline_ms: its_deadline_ms - WAY_BACK_MS,
        }
    }

    pub fn arrived_ms(self) -> u64 {
        self.arrived_ms
    }

    pub fn deadline_ms(self) -> u64 {
        self.deadline_ms
    }

    pub fn may_act(self, now_ms: u64) -> bool {
        now_ms < self.act_until_ms
    }

    /// Until when another replica may act on it.
    pub fn others_act_until_ms(self) -> u64 {
        self.deadline_ms.saturating_sub(ANSWER_MARGIN_MS)
    }
}

impl Core {
    /// Until when a request may wait for what it depends on.
    pub(super) fn causal_until_ms(&self, span: Span) -> u64 {
        let since_ms = span.arrived_ms.max(self.flipped_ms);
        span.act_until_ms.min(since_ms.saturating_add(self.settings.causal_wait_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(causal_wait_ms: u64, ack_wait_ms: u64) -> Settings {
        Settings { causal_wait_ms, ack_wait_ms, ..Settings::alone("127.0.0.1:1".parse().unwrap()) }
    }

    #[test]
    fn a_request_takes_two_seconds_or_what_its_waits_need() {
        assert_eq!(settings(1_000, 500).request_ms(), 2_000);
        assert_eq!(settings(0, 0).request_ms(), 2_000);
        assert_eq!(settings(5_000, 3_000).request_ms(), 8_500);
    }

    #[test]
    fn nobody_acts_for_ever_on_what_is_passed_on() {
        for said in [u64::MAX, 1 << 62, 60_000] {
            let span = Span::passed_on(&settings(1_000, 500), said, 20_000);
            assert!(span.may_act(21_499) && !span.may_act(21_500), "{said}");
        }
    }

    #[test]
    fn what_is_passed_on_keeps_its_times() {
        for settings in [settings(1_000, 500), settings(5_000, 3_000), settings(0, 0)] {
            let own = Span::of_client(&settings, 10_000);
            let there = Span::passed_on(&settings, own.others_act_until_ms(), 10_050);
            assert_eq!(there.arrived_ms(), 10_000);
            assert!(there.may_act(own.deadline_ms() - 501) && !there.may_act(own.deadline_ms() - 500));
            // Its answer has a way to go.
            assert_eq!(there.deadline_ms(), own.deadline_ms() - 100);
        }
    }
}
