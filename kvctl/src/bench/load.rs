//! The connections of a run, each a task of one thread.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::keys::{Picker, filler, write_key};
use super::pace::Pace;
use super::tally::{Operation, Outcome, Tally, Times, kind_of};
use super::targets::Routing;
use super::wire::Connection;
use crate::args::{BenchArgs, Mix, Switch};
use crate::error::{Code, Failure, Result};

/// A connection that can't be made is tried again after this.
const CONNECT_AGAIN: Duration = Duration::from_millis(20);
/// How often a key is tried that has to be there before the run, and how long between.
const FILL_TRIES: usize = 50;
const FILL_AGAIN: Duration = Duration::from_millis(100);

/// What all connections of a run have in common.
pub struct Load {
    args: BenchArgs,
    routing: Routing,
    picker: Picker,
    filler: Vec<u8>,
    tally: RefCell<Tally>,
    /// Operations that were due earlier are not counted.
    counted_from: Cell<Instant>,
}

/// One operation.
#[derive(Clone, Copy, Debug)]
struct Job {
    operation: Operation,
    key: u64,
}

/// One connection of the run: one request under way, a socket for each shard that requests are routed to.
struct Worker {
    load: Rc<Load>,
    number: usize,
    random: fastrand::Rng,
    sockets: Vec<Option<Connection>>,
    context: String,
    request: Vec<u8>,
}

impl Load {
    async fn connect(&self, group: usize, number: usize) -> std::io::Result<Connection> {
        Connection::open(&self.routing.target(group, number).endpoint, self.args.value_size as usize).await
    }

    pub fn new(args: BenchArgs, routing: Routing) -> Rc<Self> {
        Rc::new(Self {
            picker: Picker::new(args.distribution, args.keys),
            filler: filler(args.value_size as usize),
            tally: RefCell::new(Tally::new()),
            counted_from: Cell::new(Instant::now()),
            args,
            routing,
        })
    }

    pub fn routing(&self) -> &Routing {
        &self.routing
    }

    fn worker(self: &Rc<Self>, number: usize) -> Worker {
        let sockets = (0..self.routing.groups()).map(|_| None).collect();
        let random = fastrand::Rng::with_seed(self.args.seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
        Worker { load: self.clone(), number, random, sockets, context: String::new(), request: Vec::new() }
    }

    /// Writes every key once.
    ///
    /// # Errors
    /// If a key can't be written.
    pub async fn fill(self: &Rc<Self>) -> Result<()> {
        let next = Rc::new(Cell::new(0));
        let mut workers = JoinSet::<Result<()>>::new();
        for number in 0..self.args.connections {
            let (mut worker, next, keys) = (self.worker(number), next.clone(), self.args.keys);
            workers.spawn_local(async move {
                while next.get() < keys {
                    let key = next.replace(next.get() + 1);
                    worker.fill(key).await?;
                }
                Ok(())
            });
        }
        while let Some(done) = workers.join_next().await {
            done.expect("no worker panics")?;
        }
        Ok(())
    }

    /// Runs until the pace says that it is over and everything begun has ended. What is due from `counted_from` on is counted.
    pub async fn run(self: &Rc<Self>, pace: Rc<Pace>, counted_from: Instant) {
        self.counted_from.set(counted_from);
        let mut workers = JoinSet::new();
        for number in 0..self.args.connections {
            let (mut worker, pace) = (self.worker(number), pace.clone());
            workers.spawn_local(async move {
                while let Some(due) = pace.next().await {
                    worker.work(due).await;
                }
            });
        }
        while let Some(done) = workers.join_next().await {
            done.expect("no worker panics");
        }
    }

    /// Ends the counting at `end`: what was due and never sent counts with the time it has waited. Gives the counts away.
    pub fn close(&self, pace: &Pace, end: Instant) -> Tally {
        let mut tally = self.tally.replace(Tally::new());
        let mut random = fastrand::Rng::with_seed(self.args.seed);
        for due in pace.unsent(end).into_iter().filter(|due| *due >= self.counted_from.get()) {
            tally.count_unsent(operation(self.args.mix, &mut random), end - due);
        }
        tally
    }
}

fn operation(mix: Mix, random: &mut fastrand::Rng) -> Operation {
    let at = random.u32(..mix.reads + mix.writes + mix.deletes);
    match at {
        at if at < mix.reads => Operation::Get,
        at if at < mix.reads + mix.writes => Operation::Put,
        _ => Operation::Delete,
    }
}

impl Worker {
    async fn work(&mut self, due: Instant) {
        let key = self.load.picker.pick(&mut self.random);
        let job = Job { operation: operation(self.load.args.mix, &mut self.random), key };
        let sent = Instant::now();
        let outcome = self.ask(job).await;
        let now = Instant::now();
        if due >= self.load.counted_from.get() {
            // In a closed loop it is due when it is sent.
            let times = Times { latency: now - due.min(now), service: now - sent };
            self.load.tally.borrow_mut().count(job.operation, times, outcome);
        }
    }

    async fn fill(&mut self, key: u64) -> Result<()> {
        let mut last = Outcome::TimedOut;
        for _ in 0..FILL_TRIES {
            last = self.ask(Job { operation: Operation::Put, key }).await;
            match &last {
                Outcome::Done | Outcome::Missing => return Ok(()),
                // It may pass; the same write twice does no harm.
                Outcome::TimedOut => {}
                Outcome::Failed(kind) if kind.starts_with("503") || !kind.starts_with(|c: char| c.is_ascii_digit()) => {
                }
                Outcome::Failed(_) => break,
            }
            tokio::time::sleep(FILL_AGAIN).await;
        }
        let (code, why) = match last {
            Outcome::Failed(kind) if kind.starts_with("can't connect") => (Code::Unreachable, kind),
            Outcome::Failed(kind) => (Code::Failed, kind),
            _ => (Code::TimedOut, "no answer in time".to_owned()),
        };
        Err(Failure::new(code, format!("the keys can't be written: {why}")))
    }

    /// Does one operation. A connection that broke is made anew with the next.
    async fn ask(&mut self, job: Job) -> Outcome {
        let limit = self.load.args.timeout;
        let group = self.write_request(job);
        match tokio::time::timeout(limit, self.exchange(job.operation, group)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.sockets[group] = None;
                Outcome::TimedOut
            }
        }
    }

    async fn exchange(&mut self, operation: Operation, group: usize) -> Outcome {
        let load = &self.load;
        let mut socket = match self.sockets[group].take() {
            Some(socket) => socket,
            None => match load.connect(group, self.number).await {
                Ok(socket) => socket,
                Err(error) => {
                    tokio::time::sleep(CONNECT_AGAIN).await;
                    return Outcome::Failed(format!("can't connect: {}", said(&error)));
                }
            },
        };
        let answer = match socket.exchange(&self.request).await {
            Ok(answer) => answer,
            Err(error) => return Outcome::Failed(format!("the connection broke: {}", said(&error))),
        };
        if load.args.causal == Switch::On
            && let Some(metadata) = answer.metadata
        {
            self.context.clear();
            self.context.push_str(metadata);
        }
        let outcome = match answer.status {
            200..=299 => Outcome::Done,
            404 if operation != Operation::Put => Outcome::Missing,
            status => Outcome::Failed(kind_of(status, answer.body)),
        };
        if !answer.closes {
            self.sockets[group] = Some(socket);
        }
        outcome
    }

    /// Puts the request together, in the same place every time; the group that it goes to.
    fn write_request(&mut self, job: Job) -> usize {
        let (args, out) = (&self.load.args, &mut self.request);
        out.clear();
        out.extend_from_slice(match job.operation {
            Operation::Get => b"GET /kvs/",
            Operation::Put => b"PUT /kvs/",
            Operation::Delete => b"DELETE /kvs/",
        });
        let key_at = out.len();
        write_key(out, job.key, usize::from(args.key_size));
        let key = std::str::from_utf8(&out[key_at..]).expect("keys are ASCII");
        let group = self.load.routing.group_of(key);
        out.extend_from_slice(b" HTTP/1.1\r\nhost: kv\r\n");
        if !self.context.is_empty() {
            out.extend_from_slice(b"x-causal-metadata: ");
            out.extend_from_slice(self.context.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        if job.operation == Operation::Put {
            let size = args.value_size as usize;
            let from = self.random.usize(..self.load.filler.len() - size);
            let length = size + r#"{"value":""}"#.len();
            out.extend_from_slice(b"content-type: application/json\r\ncontent-length: ");
            out.extend_from_slice(length.to_string().as_bytes());
            out.extend_from_slice(b"\r\n\r\n{\"value\":\"");
            out.extend_from_slice(&self.load.filler[from..from + size]);
            out.extend_from_slice(b"\"}");
        } else {
            out.extend_from_slice(b"\r\n");
        }
        group
    }
}

/// What an error says, without the numbers in it.
fn said(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused".into(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "reset".into(),
        ErrorKind::UnexpectedEof => "closed without an answer".into(),
        kind => kind.to_string(),
    }
}
