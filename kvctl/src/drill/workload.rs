//! The clients of a drill: causal sessions that put, get and delete a few keys at any node, hand their contexts on, and
//! now and then begin anew without one. Dropped dependencies show only so.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use kvnode_client::{Answer, Client, Error, Session};
use reqwest::Method;
use serde_json::json;

use super::history::{Fate, Hand, Op, Recorder, Verb};
use super::rng::Rng;

/// A client that got no answer for so long gives up. Longer than any wait that a node allows itself.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two requests of a client, at most; more where a drill is long.
const THINK_MS_MAX: u64 = 30;
/// About as many requests as a drill makes at most: the judge has all of them in memory, some hundred bytes each.
const REQUESTS_MAX: u64 = 2_000_000;
/// A node that refused or gave no answer is mostly left alone for so long.
const SHUNNED: Duration = Duration::from_secs(1);
/// Contexts that wait for somebody to take them over.
const OFFERS_MAX: usize = 16;

/// A node as clients know it.
pub struct Target {
    pub name: String,
    pub endpoint: String,
    pub client: Client,
}

/// What all clients share.
pub struct Load<'a> {
    pub targets: &'a [Target],
    pub keys: &'a [String],
    pub recorder: &'a RefCell<Recorder>,
    think_ms_max: u64,
    shunned_until: RefCell<Vec<Option<Instant>>>,
    offers: RefCell<VecDeque<Hand>>,
    sessions: Cell<u32>,
    hands: Cell<u32>,
    stopped: Cell<bool>,
}

/// One client's session, as far as it goes.
pub struct Client1 {
    session: u32,
    /// What it has to hand back: up to two tokens, which the store merges.
    tokens: Vec<String>,
}

/// How long clients may pause between two requests, in ms: longer the more of them there are and the longer they work.
pub fn think_ms_max(clients: u64, duration: Duration) -> u64 {
    let duration = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    THINK_MS_MAX.max(clients.saturating_mul(duration).saturating_mul(2) / REQUESTS_MAX)
}

impl<'a> Load<'a> {
    /// `think_ms_max`: of [`think_ms_max`].
    pub fn new(targets: &'a [Target], keys: &'a [String], recorder: &'a RefCell<Recorder>, think_ms_max: u64) -> Self {
        Self {
            think_ms_max,
            targets,
            keys,
            recorder,
            shunned_until: RefCell::new(vec![None; targets.len()]),
            offers: RefCell::default(),
            sessions: Cell::new(0),
            hands: Cell::new(0),
            stopped: Cell::new(false),
        }
    }

    /// The clients finish what they are at, and stop.
    pub fn stop(&self) {
        self.stopped.set(true);
    }

    fn fresh(&self) -> Client1 {
        Client1 { session: next(&self.sessions), tokens: Vec::new() }
    }

    /// Works as a client until [`Self::stop`]; gives its session and the context it ends with.
    pub async fn client(&self, seed: u64) -> Option<(u32, String)> {
        let mut rng = Rng::new(seed);
        let mut client = self.fresh();
        while !self.stopped.get() {
            tokio::time::sleep(Duration::from_millis(rng.below(self.think_ms_max + 1))).await;
            if rng.percent(5) {
                client = self.fresh();
            }
            if rng.percent(10) {
                self.hand_on(&mut client);
            }
            let key = &self.keys[rng.below(self.keys.len() as u64) as usize];
            let verb = match rng.below(100) {
                0..52 => Verb::Get,
                52..88 => Verb::Put,
                _ => Verb::Delete,
            };
            let node = self.choose(&mut rng);
            self.request(&mut client, node, verb, key).await;
        }
        // Two that were never merged are not what the session has seen.
        if let [context] = client.tokens.as_slice() { Some((client.session, context.clone())) } else { None }
    }

    /// A session that takes over another's context.
    pub fn take_over(&self, session: u32, context: String) -> Client1 {
        let mut recorder = self.recorder.borrow_mut();
        let (call, at_ms, hand) = (recorder.event(), recorder.now_ms(), next(&self.hands));
        let offer = Hand { session, hand, call, at_ms, context };
        recorder.send(offer.clone());
        let client = Client1 { session: next(&self.sessions), tokens: vec![offer.context.clone()] };
        let (call, at_ms) = (recorder.event(), recorder.now_ms());
        recorder.recv(Hand { session: client.session, call, at_ms, ..offer });
        client
    }

    /// Takes over a context that another session offers, or offers its own.
    fn hand_on(&self, client: &mut Client1) {
        let mut recorder = self.recorder.borrow_mut();
        let mut offers = self.offers.borrow_mut();
        let foreign = offers.iter().position(|offer| offer.session != client.session);
        if let Some(offer) = foreign.filter(|_| client.tokens.len() < 2).and_then(|at| offers.remove(at)) {
            client.tokens.push(offer.context.clone());
            let (call, at_ms) = (recorder.event(), recorder.now_ms());
            recorder.recv(Hand { session: client.session, call, at_ms, ..offer });
        } else if let [context] = client.tokens.as_slice()
            && offers.len() < OFFERS_MAX
        {
            let (call, at_ms) = (recorder.event(), recorder.now_ms());
            let hand = next(&self.hands);
            let offer = Hand { session: client.session, hand, call, at_ms, context: context.clone() };
            recorder.send(offer.clone());
            offers.push_back(offer);
        }
    }

    fn choose(&self, rng: &mut Rng) -> usize {
        let node = rng.below(self.targets.len() as u64) as usize;
        let shunned = self.shunned_until.borrow()[node].is_some_and(|until| Instant::now() < until);
        if shunned && rng.percent(85) { rng.below(self.targets.len() as u64) as usize } else { node }
    }

    async fn request(&self, client: &mut Client1, node: usize, verb: Verb, key: &str) -> Op {
        let (call, value, at_ms) = {
            let mut recorder = self.recorder.borrow_mut();
            let value = if verb == Verb::Get { None } else { Some(recorder.unique()) };
            (recorder.event(), value, recorder.now_ms())
        };
        let target = &self.targets[node];
        let context = client.tokens.clone();
        let mut session = Session { metadata: context.first().cloned() };
        let mut body = serde_json::Map::new();
        if let (Verb::Put, Some(value)) = (verb, value) {
            body.insert("value".into(), json!(value));
        }
        if let Some(second) = context.get(1) {
            body.insert("causal-metadata".into(), json!(second));
        }
        let method = match verb {
            Verb::Put => Method::PUT,
            Verb::Get => Method::GET,
            Verb::Delete => Method::DELETE,
        };
        let body = (!body.is_empty()).then(|| serde_json::Value::Object(body).to_string());
        let path = format!("/kvs/{}", kvnode_client::encode(key));
        let request = target.client.request(method, &path, body, &mut session);
        let answer = match tokio::time::timeout(PATIENCE, request).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::TimedOut(target.endpoint.clone())),
        };
        if answer.is_err() {
            self.shunned_until.borrow_mut()[node] = Some(Instant::now() + SHUNNED);
        }
        let mut recorder = self.recorder.borrow_mut();
        let took_ms = recorder.now_ms() - at_ms;
        let (session, key, node) = (client.session, key.to_owned(), target.name.clone());
        let op = Op { verb, session, key, value, call, at_ms, took_ms, node, context, ..Op::default() };
        let op = Op { returned: recorder.event(), ..told(op, answer) };
        if let Some(answered) = &op.answered {
            client.tokens = vec![answered.clone()];
        }
        recorder.op(op.clone());
        op
    }

    /// Reads a key at a node, as a session of its own that has seen nothing.
    pub async fn look(&self, node: usize, key: &str) -> Op {
        self.request(&mut self.fresh(), node, Verb::Get, key).await
    }

    /// Reads a key at a node; the context that the session has then.
    pub async fn go_round<'c>(&self, client: &'c mut Client1, node: usize, key: &str) -> &'c str {
        self.request(client, node, Verb::Get, key).await;
        client.tokens.first().map_or("", String::as_str)
    }
}

fn next(counter: &Cell<u32>) -> u32 {
    counter.set(counter.get() + 1);
    counter.get()
}

/// The operation with what came of it.
fn told(op: Op, answer: Result<Answer, Error>) -> Op {
    let lost = if op.is_write() { Fate::Info } else { Fate::Fail };
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            let unsent = matches!(error, Error::Unreachable(_) | Error::NoUrl(_));
            let result = if unsent { Fate::Fail } else { lost };
            return Op { result, error: Some(error.to_string()), ..op };
        }
    };
    let json = answer.json();
    let text = |member: &str| json.get(member).and_then(serde_json::Value::as_str).map(str::to_owned);
    let (answered, tombstone) = (text("causal-metadata"), text("tombstone"));
    let op = Op { status: Some(answer.status), answered, tombstone, ..op };
    match (op.verb, answer.status) {
        (Verb::Get, 200) => match json.get("value").and_then(serde_json::Value::as_u64) {
            Some(value) => Op { value: Some(value), result: Fate::Ok, ..op },
            None => Op { result: Fate::Fail, error: Some("a value that nobody wrote".into()), ..op },
        },
        (Verb::Get, 404) => Op { result: Fate::Ok, ..op },
        (Verb::Put | Verb::Delete, 200 | 201) => {
            let replicas = json.get("replicas").and_then(serde_json::Value::as_u64);
            Op { result: Fate::Ok, replicas: replicas.and_then(|count| u32::try_from(count).ok()), ..op }
        }
        _ => {
            // A node that fails can't say what became of a write.
            let unknown = answer.status == 500 || json.get("outcome").is_some_and(|outcome| outcome == "unknown");
            let result = if unknown { lost } else { Fate::Fail };
            Op { result, error: Some(answer.error()), ..op }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(verb: Verb, status: u16, body: &'static str) -> Op {
        let answer = Answer { status, body: body.into(), node: "n".into() };
        told(Op { verb, ..Op::default() }, Ok(answer))
    }

    #[test]
    fn answers_have_their_fates() {
        for (verb, status, body, fate) in [
            (Verb::Put, 201, r#"{"replicas":2}"#, Fate::Ok),
            (Verb::Put, 503, r#"{"error":"x"}"#, Fate::Fail),
            (Verb::Put, 503, r#"{"error":"x","outcome":"unknown"}"#, Fate::Info),
            (Verb::Put, 507, "{}", Fate::Fail),
            (Verb::Put, 500, "{}", Fate::Info),
            (Verb::Delete, 404, "{}", Fate::Fail),
            (Verb::Get, 404, "{}", Fate::Ok),
            (Verb::Get, 200, r#"{"value":7}"#, Fate::Ok),
            (Verb::Get, 200, r#"{"value":"x"}"#, Fate::Fail),
            (Verb::Get, 503, "{}", Fate::Fail),
        ] {
            assert_eq!(tell(verb, status, body).result, fate, "{verb:?} {status} {body}");
        }
        let op = tell(Verb::Get, 200, r#"{"value":7,"causal-metadata":"T"}"#);
        assert_eq!((op.value, op.answered.as_deref()), (Some(7), Some("T")));
        assert_eq!(tell(Verb::Put, 200, r#"{"replicas":1}"#).replicas, Some(1));
        for (verb, status) in [(Verb::Delete, 200), (Verb::Delete, 404), (Verb::Get, 404)] {
            assert_eq!(tell(verb, status, r#"{"tombstone":"n1.e1.9:1"}"#).tombstone.as_deref(), Some("n1.e1.9:1"));
            assert_eq!(tell(verb, status, "{}").tombstone, None);
        }
    }

    #[test]
    fn no_answer_to_a_write_is_unknown_unless_nobody_listened() {
        let put = |error| told(Op::default(), Err(error)).result;
        assert_eq!(put(Error::TimedOut("n".into())), Fate::Info);
        assert_eq!(put(Error::Broken("n".into())), Fate::Info);
        assert_eq!(put(Error::Unreachable("n".into())), Fate::Fail);
        let get = told(Op { verb: Verb::Get, ..Op::default() }, Err(Error::TimedOut("n".into())));
        assert_eq!(get.result, Fate::Fail);
    }

    #[test]
    fn a_long_drill_makes_no_more_requests_than_the_judge_can_hold() {
        assert_eq!(think_ms_max(12, Duration::from_secs(60)), THINK_MS_MAX);
        for (clients, seconds) in [(12, 24 * 3_600), (200, 3_600), (200, 24 * 3_600)] {
            let requests = clients * seconds * 2_000 / think_ms_max(clients, Duration::from_secs(seconds));
            assert!((REQUESTS_MAX - 10_000..=REQUESTS_MAX + 10_000).contains(&requests), "{requests}");
        }
        assert!(think_ms_max(u64::MAX, Duration::MAX) > 0);
    }
}
