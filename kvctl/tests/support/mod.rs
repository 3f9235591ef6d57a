//! The real kvctl, with a state folder and a cluster of its own.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kvnode_client::{Answer, Client, Session};
use serde_json::Value;

pub mod mock;

/// One cluster under test; it is taken down when dropped.
pub struct Cluster {
    pub name: String,
    home: tempfile::TempDir,
    up: Vec<String>,
    environment: Vec<(String, String)>,
    program: PathBuf,
    /// What KVNODE names.
    kvnode: Option<PathBuf>,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("kvctl says text");
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// kvnode, built beside kvctl.
pub fn kvnode() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_kvctl")).with_file_name("kvnode");
    assert!(path.is_file(), "{} is missing: run `cargo test --workspace`, or `cargo build` first", path.display());
    path
}

/// A node that dies is gone from the view within 3 s, and no answer about it takes longer than 2 s.
const NOTICED_WITHIN: Duration = Duration::from_secs(5);

/// Standard output that nobody reads any more, as behind `| head`.
pub fn unread() -> std::io::PipeWriter {
    std::io::pipe().expect("a pipe").1
}

/// Tries until `holds`, at most 30 s.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Reads what a command says on standard error, a byte at a time so that the next call goes on from there, until it
/// has said `text`.
pub fn hear(child: &mut Child, text: &str) {
    read_until(child.stderr.as_mut().expect("piped"), text);
}

/// The same with any pipe.
pub fn read_until(pipe: &mut impl Read, text: &str) {
    let mut said = String::new();
    let mut byte = [0];
    while !said.contains(text) {
        assert_eq!(pipe.read(&mut byte).expect("a byte"), 1, "it never said '{text}', only: {said}");
        said.push(char::from(byte[0]));
    }
}

/// What Ctrl-C does.
pub fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_raw(child.id() as i32).expect("not 0");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
}

impl Cluster {
    /// A cluster that is not up yet. `up`: the options that make it.
    pub fn new(name: &str, up: &[impl ToString]) -> Self {
        let name = format!("{name}{}", std::process::id());
        let home = tempfile::tempdir().expect("a folder");
        let (up, environment) = (up.iter().map(ToString::to_string).collect(), Vec::new());
        let program = PathBuf::from(env!("CARGO_BIN_EXE_kvctl"));
        Self { name, home, up, environment, program, kvnode: Some(kvnode()) }
    }

    /// From now on kvctl is told of no kvnode, and has `beside` beside it, if anything.
    pub fn set_apart(&mut self, beside: Option<&Path>) {
        let folder = self.home.path().join("bin");
        std::fs::create_dir(&folder).expect("a folder");
        self.program = folder.join("kvctl");
        std::fs::copy(env!("CARGO_BIN_EXE_kvctl"), &self.program).expect("a copy");
        if let Some(beside) = beside {
            std::fs::copy(beside, folder.join("kvnode")).expect("a copy");
        }
        self.kvnode = None;
    }

    /// Sets a variable for all commands; empty is as good as not set.
    pub fn set(&mut self, variable: &str, value: impl Into<String>) {
        self.environment.push((variable.to_owned(), value.into()));
    }

    /// The folder that is HOME for all commands.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// A program that is taken for kvnode: a shell script of these lines.
    pub fn stand_in(&self, lines: &str) -> PathBuf {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.home.path().join("stand-in");
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&path);
        let file = file.as_mut().expect("a file");
        std::io::Write::write_all(file, format!("#!/bin/sh\n{lines}\n").as_bytes()).expect("written");
        path
    }

    /// What kvctl keeps of this cluster.
    pub fn state(&self) -> PathBuf {
        self.home.path().join("state/kvctl").join(&self.name)
    }

    /// `cluster up` with the cluster's options.
    pub fn up_command(&self) -> Command {
        let mut command = self.command(&["cluster", "up"]);
        command.args(&self.up);
        command
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env("HOME", self.home.path()).env("XDG_STATE_HOME", self.home.path().join("state"));
        command.env("KVCTL_NAME", &self.name).env_remove("KVNODE").args(arguments).stdin(Stdio::null());
        command.envs(self.kvnode.iter().map(|kvnode| ("KVNODE", kvnode)));
        command.envs(self.environment.iter().map(|(variable, value)| (variable, value)));
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Said {
        self.command(arguments).output().expect("kvctl starts").into()
    }

    /// Runs a command that must succeed; what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let said = self.run(arguments);
        assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
        said.out
    }

    pub fn try_up(&self) -> Said {
        self.up_command().output().expect("kvctl starts").into()
    }

    pub fn up(&self) -> String {
        let said = self.try_up();
        assert_eq!(said.code, 0, "{said:?}");
        said.out
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["cluster", "status", "-o", "json"])).expect("one JSON document")
    }

    /// Where each node is reached from here.
    pub fn endpoints(&self) -> Vec<String> {
        let status = self.status();
        let nodes = status["nodes"].as_array().expect("nodes").clone();
        nodes.iter().map(|node| node["endpoint"].as_str().expect("an endpoint").to_owned()).collect()
    }

    pub fn all_ready(&self) -> bool {
        self.status()["nodes"].as_array().is_some_and(|nodes| nodes.iter().all(|node| node["ready"] == true))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let said = self.run(&["cluster", "down", "--yes"]);
        if said.code != 0 && !said.err.contains("there is no cluster") {
            eprintln!("cluster {} was not taken down: {said:?}", self.name);
        }
    }
}

/// 600 keys in one causal chain through all nodes, each read back through another; `half_way` is called in the middle and
/// names the nodes that take part from then on. No answer may be a 503 but one: where a node has just died, a write that was
/// passed on to it has a fate that nobody can know. The contract says so, and leaves it to the client to write again.
pub fn chain(endpoints: &[String], half_way: impl FnOnce() -> Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut session = Session::default();
    let mut nodes = endpoints.to_vec();
    let mut half_way = Some(half_way);
    let mut changed = None;
    for number in 0..600 {
        if number == 300 {
            nodes = half_way.take().expect("once")();
            changed = (nodes.len() < endpoints.len()).then(Instant::now);
        }
        let client = Client::new(vec![nodes[number % nodes.len()].clone()]);
        let value = serde_json::value::to_raw_value(&number).expect("a number");
        let key = format!("chain-{number}");
        let mut put = || runtime.block_on(client.put(&key, &value, &mut session)).expect("an answer");
        let answer = put();
        let just_died = changed.is_some_and(|at: Instant| at.elapsed() < NOTICED_WITHIN);
        if just_died && answer.json()["outcome"] == "unknown" {
            let again = put();
            assert!(again.is_success(), "key {number}, again: {}", again.error());
            continue;
        }
        assert_eq!(answer.status, 201, "key {number}: {}", answer.error());
    }
    for number in 0..600 {
        let client = Client::new(vec![nodes[(number * 7 + 3) % nodes.len()].clone()]);
        let key = format!("chain-{number}");
        let get = client.get(&key, &mut session);
        let answer = runtime.block_on(get).expect("an answer");
        assert_eq!((answer.status, answer.json()["value"].as_u64()), (200, Some(number as u64)), "{}", answer.error());
    }
    let count = |shard: &str| -> u64 {
        let path = format!("/shard/key-count/{shard}");
        let look = Client::new(vec![nodes[0].clone()]);
        let answer: Answer = runtime.block_on(look.look(&path)).expect("an answer");
        answer.json()["shard-key-count"].as_u64().expect("a count")
    };
    let counts = [count("s1"), count("s2")];
    assert_eq!(counts.iter().sum::<u64>(), 600, "{counts:?}");
    assert!(counts.iter().all(|count| (225..=375).contains(count)), "a fair share is 300: {counts:?}");
}
