//! What has happened and waits for the next turn, and who waits for what comes of it.

use std::any::Any;
use std::collections::HashMap;

use tokio::sync::oneshot;

use crate::core::Event;
use crate::core::admin::AdminAnswer;
use crate::core::request::Answer;
use crate::wire::ident::Addr;
use crate::wire::peer::Batch;

#[derive(Default)]
pub(super) struct Inbox {
    pub events: Vec<Event>,
    pub batches: Vec<(Batch, oneshot::Sender<Batch>)>,
    /// Links whose last batch is done.
    pub idle: Vec<Addr>,
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
