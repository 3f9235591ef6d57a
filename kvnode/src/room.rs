//! The loop's side of [`core::room`](kvnode_core::room): measures the store before the core takes what is to be stored.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvnode_core::Event;
use kvnode_core::messages::{Batch, Message};
use kvnode_core::request::Op;
use kvnode_core::room::Room;
use kvnode_core::store::gauge::{Gauge, Usage};

/// A measurement holds for so long.
const MEASURE_EVERY: Duration = Duration::from_millis(50);
/// And for so many bytes.
const MEASURE_BYTES: u64 = 256 << 10;
/// Before more is taken again there must be room for what was refused, and for so much; less under a small limit. Without that
/// the node would say no and yes by turns where it has just what it needs.
const MARGIN_BYTES: u64 = 1 << 20;
/// One batch may be larger, and is worth no longer wait.
const REFUSED_BYTES_MAX: u64 = 8 << 20;
/// What one write takes beyond its key and value.
const WRITE_BYTES: u64 = 256;

/// Bytes that an event may bring into the store.
pub fn weight(event: &Event) -> u64 {
    match event {
        Event::Client { op, .. } => weight_of_op(op),
        Event::Batch(batch) => weight_of_batch(batch),
        _ => 0,
    }
}

fn weight_of_op(op: &Op) -> u64 {
    match op {
        Op::Put { key, value } => WRITE_BYTES + (key.len() + value.len()) as u64,
        Op::Delete { key } => WRITE_BYTES + key.len() as u64,
        Op::Get { .. } | Op::List { .. } | Op::KeyCount { .. } => 0,
    }
}

fn weight_of_batch(batch: &Batch) -> u64 {
    let stored = |message: &Message| match message {
        Message::Forward { op, .. } => weight_of_op(op),
        Message::Writes { .. } | Message::RepairData { .. } => message.weight() as u64,
        _ => 0,
    };
    batch.messages.iter().map(stored).sum()
}

/// Measures, and reckons between measurements.
pub struct RoomGauge {
    gauge: Option<Arc<dyn Gauge>>,
    measured: Option<(Instant, Usage)>,
    staged: u64,
    bytes_max: u64,
    told: Room,
    /// The weight of what there was no room for.
    refused: u64,
}

impl RoomGauge {
    pub fn new(gauge: Option<Arc<dyn Gauge>>) -> Self {
        Self { gauge, measured: None, staged: 0, bytes_max: u64::MAX, told: Room::Enough, refused: 0 }
    }

    /// What the core has to be told before it handles an event of this weight, if anything.
    /// `bytes_max`: the limit on the bytes of the store; `u64::MAX`: none.
    pub fn before(&mut self, weight: u64, bytes_max: u64) -> Option<Event> {
        let stale = |at: &Instant| at.elapsed() >= MEASURE_EVERY;
        let usage = match &self.measured {
            Some((at, usage)) if self.staged < MEASURE_BYTES && bytes_max == self.bytes_max && !stale(at) => *usage,
            _ => self.measure(bytes_max)?,
        };
        let more = self.staged.saturating_add(weight);
        let room = match usage.room(more, bytes_max) {
            better if better < self.told => {
                let margin = self.refused.max(MARGIN_BYTES.min(bytes_max / 16));
                usage.room(more.saturating_add(margin), bytes_max).min(self.told)
            }
            other => other,
        };
        // Only what weighs anything is staged.
        self.staged = self.staged.saturating_add(weight);
        if room == self.told {
            return None;
        }
        if room > self.told {
            self.refused = weight.min(REFUSED_BYTES_MAX);
        }
        self.told = room;
        Some(Event::Room(room))
    }

    fn measure(&mut self, bytes_max: u64) -> Option<Usage> {
        let gauge = self.gauge.as_ref()?;
        // A system that can't say how much room there is has to be believed to have some.
        let usage = gauge.measure().unwrap_or_default();
        gauge.judged(usage.room(0, bytes_max));
        (self.measured, self.staged, self.bytes_max) = (Some((Instant::now(), usage)), 0, bytes_max);
        Some(usage)
    }
}
