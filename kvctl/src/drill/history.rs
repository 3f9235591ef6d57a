//! The history of a drill: what every client asked and was told, and what went wrong meanwhile. One JSON object a line, so
//! that any checker can read it; ARCHITECTURE.md tells what each field means.
//!
//! Events are numbered: an operation has the number of its call and that of its return, so a reader knows what was known
//! before what, whatever clocks say.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::fault::Kind;
use crate::error::{Failure, Result};

/// The form of the lines. A reader refuses later ones.
pub const FORMAT: u32 = 1;
/// Longest line that is read.
const LINE_BYTES_MAX: usize = 1 << 20;

/// What a drill is, in the first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Head {
    pub format: u32,
    pub cluster: String,
    pub seed: u64,
    /// Milliseconds since 1970 at the time 0 of all other lines.
    pub begun_unix_ms: u64,
    pub nodes: Vec<String>,
    pub keys: Vec<String>,
    pub sessions: usize,
    pub faults: Vec<Kind>,
}

/// What a client asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verb {
    #[default]
    Put,
    Get,
    Delete,
}

/// What became of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It was done.
    Ok,
    /// A write that may or may not have taken effect, or may yet.
    #[default]
    Info,
    /// It had no effect, and never will have.
    Fail,
}

/// One operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Op {
    #[serde(skip)]
    pub verb: Verb,
    pub session: u32,
    pub key: String,
    /// A put: the value. A delete: a number that names it, which the store never sees. A get: the value that was found.
    pub value: Option<u64>,
    pub result: Fate,
    /// The numbers of two events: before the request was sent; after its answer had come, or was waited for no longer.
    pub call: u64,
    #[serde(rename = "return")]
    pub returned: u64,
    /// When, and how long until the answer.
    pub at_ms: f64,
    pub took_ms: f64,
    pub node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// The causal metadata that went with it: none, one, or two that the store merges.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub context: Vec<String>,
    /// The causal metadata of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered: Option<String>,
    /// A delete: the tombstone it made. No such key: the tombstone that was found, if any was left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tombstone: Option<String>,
}

impl Op {
    pub fn is_write(&self) -> bool {
        self.verb != Verb::Get
    }

    /// Whether the store did what it is there for: "no such key" is an answer, too.
    pub fn is_answered(&self) -> bool {
        matches!(self.status, Some(200 | 201 | 404))
    }
}

/// A context leaves a session, or another takes it over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Hand {
    pub session: u32,
    /// The same at both ends.
    pub hand: u32,
    pub call: u64,
    pub at_ms: f64,
    pub context: String,
}

/// A fault that was injected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Happened {
    pub fault: Kind,
    pub nodes: Vec<String>,
    pub what: String,
    pub from_ms: f64,
    pub to_ms: f64,
    /// Why it was not injected after all, or not undone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// A wipe: when all replicas were last seen to be equal before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub equal_ms: Option<f64>,
}

/// What a key was at a node in the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Final {
    pub node: String,
    pub key: String,
    pub value: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tombstone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How it ended. Without this line the drill was broken off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct End {
    /// When the clients stopped.
    pub stopped_ms: f64,
    /// When all was healed.
    pub healed_ms: f64,
    /// When all replicas were equal, if they ever were.
    pub equal_ms: Option<f64>,
    /// What was still missing, if they were not.
    pub unmet: Vec<String>,
    /// What went wrong that nobody had injected: nodes that ended by themselves, or could not be healed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<String>,
    /// A context that went round in the quiet cluster.
    pub quiet_context: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Line {
    Drill(Head),
    Put(Op),
    Get(Op),
    Delete(Op),
    Send(Hand),
    Recv(Hand),
    Fault(Happened),
    Final(Final),
    End(End),
}

/// All that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    pub head: Head,
    pub ops: Vec<Op>,
    pub sends: Vec<Hand>,
    pub recvs: Vec<Hand>,
    pub faults: Vec<Happened>,
    pub finals: Vec<Final>,
    pub end: Option<End>,
}

impl History {
    fn new(head: Head) -> Self {
        let (ops, sends, recvs) = (Vec::new(), Vec::new(), Vec::new());
        Self { head, ops, sends, recvs, faults: Vec::new(), finals: Vec::new(), end: None }
    }

    fn take(&mut self, line: Line) -> std::result::Result<(), &'static str> {
        match line {
            Line::Drill(_) => return Err("a second head"),
            Line::Put(op) => self.ops.push(Op { verb: Verb::Put, ..op }),
            Line::Get(op) => self.ops.push(Op { verb: Verb::Get, ..op }),
            Line::Delete(op) => self.ops.push(Op { verb: Verb::Delete, ..op }),
            Line::Send(hand) => self.sends.push(hand),
            Line::Recv(hand) => self.recvs.push(hand),
            Line::Fault(happened) => self.faults.push(happened),
            Line::Final(last) => self.finals.push(last),
            Line::End(end) => self.end = Some(end),
        }
        Ok(())
    }

    /// Reads a history that was kept.
    ///
    /// # Errors
    /// Usage: the file can't be read, or is no history.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| Failure::usage(format!("{shown}: {error}")))?;
        Self::parse(&text).map_err(|why| Failure::usage(format!("{shown} is no history of a drill: {why}")))
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        let mut history: Option<Self> = None;
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let bad = |why: &str| format!("line {}: {why}", number + 1);
            if line.len() > LINE_BYTES_MAX {
                return Err(bad("it is too long"));
            }
            let line: Line = serde_json::from_str(line).map_err(|error| bad(&error.to_string()))?;
            match (&mut history, line) {
                (None, Line::Drill(head)) if head.format == FORMAT => history = Some(Self::new(head)),
                (None, Line::Drill(_)) => return Err(bad("it is of another version of kvctl")),
                (None, _) => return Err(bad("the first line is not of kind 'drill'")),
                (Some(history), line) => history.take(line).map_err(bad)?,
            }
        }
        history.ok_or_else(|| "it is empty".to_owned())
    }
}

/// Writes a history as it happens, and keeps it.
pub struct Recorder {
    history: History,
    file: BufWriter<File>,
    /// What went wrong with the file, once.
    problem: Option<std::io::Error>,
    begun: Instant,
    events: u64,
    writes: u64,
}

/// Written values begin here: no count and no index is taken for one.
const FIRST_VALUE: u64 = 1_000_001;

impl Recorder {
    pub fn new(file: File, head: Head) -> Self {
        let mut recorder = Self {
            history: History::new(head.clone()),
            file: BufWriter::new(file),
            problem: None,
            begun: Instant::now(),
            events: 0,
            writes: 0,
        };
        recorder.write(&Line::Drill(head));
        recorder
    }

    /// Since the drill began.
    pub fn now_ms(&self) -> f64 {
        self.begun.elapsed().as_micros() as f64 / 1_000.0
    }

    /// The number of the next event.
    pub fn event(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    /// A value that no other write has.
    pub fn unique(&mut self) -> u64 {
        self.writes += 1;
        FIRST_VALUE + self.writes - 1
    }

    fn write(&mut self, line: &Line) {
        let text = serde_json::to_string(line).expect("lines are plain data");
        if let Err(error) = writeln!(self.file, "{text}") {
            self.problem.get_or_insert(error);
        }
    }

    fn keep(&mut self, line: Line) {
        self.write(&line);
        self.history.take(line).expect("no second head is recorded");
    }

    pub fn op(&mut self, op: Op) {
        self.keep(match op.verb {
            Verb::Put => Line::Put(op),
            Verb::Get => Line::Get(op),
            Verb::Delete => Line::Delete(op),
        });
    }

    pub fn send(&mut self, hand: Hand) {
        self.keep(Line::Send(hand));
    }

    pub fn recv(&mut self, hand: Hand) {
        self.keep(Line::Recv(hand));
    }

    pub fn fault(&mut self, happened: Happened) {
        self.keep(Line::Fault(happened));
    }

    pub fn last(&mut self, last: Final) {
        self.keep(Line::Final(last));
    }

    pub fn end(&mut self, end: End) {
        self.keep(Line::End(end));
    }

    /// The history so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Everything is in the file.
    ///
    /// # Errors
    /// If it is not.
    pub fn finish(mut self, path: &Path) -> Result<History> {
        let flushed = self.file.flush();
        match self.problem.map_or(flushed, Err) {
            Ok(()) => Ok(self.history),
            Err(error) => Err(Failure::environment(format!("{}: {error}", path.display()))),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn head() -> Head {
        Head {
            format: FORMAT,
            cluster: "test".into(),
            seed: 1,
            begun_unix_ms: 0,
            nodes: vec!["alice".into(), "bob".into()],
            keys: vec!["a".into(), "b".into()],
            sessions: 2,
            faults: vec![Kind::Kill],
        }
    }

    /// A history of these lines after the head.
    pub fn history(lines: &str) -> History {
        let head = serde_json::to_string(&Line::Drill(head())).unwrap();
        History::parse(&format!("{head}\n{lines}")).unwrap()
    }

    /// The documented line of an operation.
    pub const PUT: &str = r#"{"kind":"put","session":3,"key":"a","value":1000001,"result":"ok","call":1,"return":2,"at-ms":1.5,"took-ms":2.0,"node":"alice","status":201,"replicas":2,"context":["T1"],"answered":"T2"}"#;

    #[test]
    fn what_is_written_is_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        let mut recorder = Recorder::new(File::create(&path).unwrap(), head());
        let (call, value) = (recorder.event(), recorder.unique());
        let op = Op { key: "a".into(), value: Some(value), call, returned: recorder.event(), ..Op::default() };
        recorder.op(op.clone());
        recorder.op(Op { verb: Verb::Get, value: None, result: Fate::Ok, status: Some(404), ..op.clone() });
        let (context, tombstone) = (vec!["x".into(), "y".into()], Some("n1.e1.9:1".into()));
        recorder.op(Op { verb: Verb::Delete, context, tombstone: tombstone.clone(), ..op });
        let hand = Hand { session: 1, hand: 1, call: 9, at_ms: 0.25, context: "t".into() };
        recorder.send(hand.clone());
        recorder.recv(Hand { session: 2, ..hand });
        recorder.fault(Happened {
            fault: Kind::Wipe,
            nodes: vec!["bob".into()],
            what: "bob".into(),
            from_ms: 1.0,
            to_ms: 2.0,
            problem: None,
            equal_ms: Some(0.5),
        });
        recorder.last(Final { node: "bob".into(), key: "a".into(), value: None, tombstone, error: None });
        let (unmet, quiet_context) = (Vec::new(), None);
        recorder.end(End {
            stopped_ms: 1.0,
            healed_ms: 2.0,
            equal_ms: Some(3.0),
            unmet,
            troubles: Vec::new(),
            quiet_context,
        });
        let kept = recorder.finish(&path).unwrap();
        assert_eq!(History::read(&path).unwrap(), kept);
        assert_eq!(kept.ops.len(), 3);
    }

    #[test]
    fn a_line_is_as_documented() {
        let history = history(PUT);
        let Op { verb, session, value, result, .. } = history.ops[0];
        assert_eq!((verb, session, value, result), (Verb::Put, 3, Some(1_000_001), Fate::Ok));
        assert_eq!(serde_json::to_string(&Line::Put(history.ops[0].clone())).unwrap(), PUT);
    }

    #[test]
    fn what_is_no_history_says_where() {
        let head = serde_json::to_string(&Line::Drill(head())).unwrap();
        for (text, why) in [
            (String::new(), "empty"),
            ("x".to_owned(), "line 1"),
            (PUT.to_owned(), "not of kind 'drill'"),
            (format!("{head}\n{head}"), "line 2: a second head"),
            (format!("{head}\n\n{{\"kind\":\"frob\"}}"), "line 3: unknown variant"),
            (head.replace("\"format\":1", "\"format\":2"), "another version"),
        ] {
            let refused = History::parse(&text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
