//! What has happened and waits for the loop, and who waits for what comes of it.

use std::any::Any;
use std::collections::{BTreeSet, HashMap};

use kvnode_core::Event;
use kvnode_core::admin::AdminAnswer;
use kvnode_core::messages::Batch;
use kvnode_core::request::Answer;
use kvnode_types::ident::Addr;
use tokio::sync::oneshot;

use super::turn::Handled;

/// An event, and who is to learn that it was handled.
pub(super) struct Incoming {
    pub event: Event,
    pub source: Source,
}

pub(super) enum Source {
    /// Nobody: the core answers by an effect, if at all.
    Here,
    /// A peer that waits for the answer to its batch.
    Asks(oneshot::Sender<Batch>),
    /// The link to this peer tells what has become of its batch.
    Link(Addr),
}

impl Incoming {
    /// The peer whose link tells this.
    pub fn link(&self) -> Option<&Addr> {
        match &self.source {
            Source::Link(peer) => Some(peer),
            Source::Here | Source::Asks(_) => None,
        }
    }
}

impl From<Event> for Incoming {
    fn from(event: Event) -> Self {
        Self { event, source: Source::Here }
    }
}

#[derive(Default)]
pub(super) struct Inbox {
    pub events: Vec<Incoming>,
    /// Links that have an event here. They carry nothing further before it is handled: what a peer owes is counted by that order.
    pub unheard: BTreeSet<Addr>,
    /// A turn that was begun outside of the loop and has to wait for the disk.
    pub begun: Option<Handled>,
    pub clients: HashMap<u64, Waiting>,
    pub admins: HashMap<u64, oneshot::Sender<AdminAnswer>>,
    pub last_client: u64,
    /// The loop has ended: nobody is answered any more.
    pub closed: bool,
}

/// A client that waits, and what is held until it is answered, whether it still listens or not.
pub(super) struct Waiting {
    pub sender: oneshot::Sender<Answer<String>>,
    pub _held: Option<Box<dyn Any + Send>>,
}

impl Inbox {
    /// Whoever waits learns that there is no answer.
    pub fn close(&mut self) {
        let last_client = self.last_client;
        *self = Self { closed: true, last_client, ..Self::default() };
    }
}
