//! Clusters of real processes, each test's on loopback addresses of its own.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http::{Answer, Body, READ_TIMEOUT, exchange, request};

pub const START: Duration = Duration::from_secs(20);

/// Asks every 10 ms until there is a result or the time is over: the one place that sleeps.
pub fn poll<T>(time: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + time;
    loop {
        let found = ask();
        if found.is_some() || Instant::now() >= end {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
pub fn within(time: Duration, what: &str, mut ask: impl FnMut() -> bool) {
    assert!(poll(time, || ask().then_some(())).is_some(), "not within {time:?}: {what}");
}

/// A first half of an address block that no other test has; the third byte keeps concurrent runs apart.
pub fn block() -> (u8, u8) {
    static NEXT: AtomicU8 = AtomicU8::new(20);
    (NEXT.fetch_add(1, Ordering::Relaxed), (std::process::id() % 251) as u8)
}

pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvnode"));
    command.env_clear().stdin(Stdio::null());
    command
}

struct Node {
    address: SocketAddr,
    child: Option<Child>,
    log: PathBuf,
}

pub struct Cluster {
    nodes: Vec<Node>,
    environment: Vec<(String, String)>,
    pub directory: tempfile::TempDir,
}

impl Cluster {
    /// Addresses and settings of a cluster of which no node runs yet.
    pub fn planned(nodes: u8, shards: u8, environment: &[(&str, &str)]) -> Self {
        let (b, c) = block();
        let directory = tempfile::tempdir().unwrap();
        let nodes: Vec<Node> = (0..nodes)
            .map(|i| Node {
                address: SocketAddr::from((Ipv4Addr::new(127, b, c, i + 2), 8090)),
                child: None,
                log: directory.path().join(format!("log-{i}")),
            })
            .collect();
        let view: Vec<String> = nodes.iter().map(|n| n.address.to_string()).collect();
        let mut all = vec![("VIEW".to_owned(), view.join(",")), ("SHARD_COUNT".to_owned(), shards.to_string())];
        all.extend(environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())));
        Self { nodes, environment: all, directory }
    }

    pub fn start(nodes: u8, shards: u8, environment: &[(&str, &str)]) -> Self {
        let mut cluster = Self::planned(nodes, shards, environment);
        for i in cluster.all() {
            cluster.run(i, &[]);
        }
        cluster.wait_ready(&cluster.all());
        cluster
    }

    /// Six nodes in memory, two shards: nodes 0 to 2 are `s1`, nodes 3 to 5 are `s2`.
    pub fn six() -> Self {
        Self::start(6, 2, &[])
    }

    pub fn all(&self) -> Vec<usize> {
        (0..self.nodes.len()).collect()
    }

    pub fn address(&self, node: usize) -> SocketAddr {
        self.nodes[node].address
    }

    pub fn name(&self, node: usize) -> String {
        self.nodes[node].address.to_string()
    }

    /// Starts a node's process; later settings win.
    pub fn run(&mut self, node: usize, environment: &[(&str, &str)]) {
        assert!(self.nodes[node].child.is_none(), "node {node} runs already");
        let log = File::options().create(true).append(true).open(&self.nodes[node].log).unwrap();
        let name = self.name(node);
        let mut command = command();
        command.env("SOCKET_ADDRESS", &name).env("LISTEN_ADDRESS", &name);
        command.envs(self.environment.iter().map(|(n, v)| (n, v))).envs(environment.iter().copied());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.nodes[node].child = Some(command.spawn().unwrap());
    }

    /// What a node has logged.
    pub fn log(&self, node: usize) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.nodes[node].log).unwrap()).into_owned()
    }

    pub fn data_directory(&self, node: usize) -> String {
        self.directory.path().join(format!("data-{node}")).display().to_string()
    }

    #[track_caller]
    pub fn wait_ready(&self, nodes: &[usize]) {
        let end = Instant::now() + START;
        for &node in nodes {
            let mut last = String::new();
            let ready = poll(end.saturating_duration_since(Instant::now()), || {
                let answer = self.try_send(node, "GET", "/ready", &[], Body::None);
                last = answer.as_ref().map_or_else(ToString::to_string, ToString::to_string);
                answer.is_ok_and(|a| a.status == 200).then_some(())
            });
            assert!(ready.is_some(), "node {node} is not ready within {START:?}: {last}");
        }
    }

    /// The process's id.
    pub fn process(&self, node: usize) -> u32 {
        self.nodes[node].child.as_ref().expect("the node runs").id()
    }

    pub fn signal(&self, node: usize, signal: &str) {
        let id = self.process(node).to_string();
        assert!(Command::new("kill").arg(format!("-{signal}")).arg(id).status().unwrap().success());
    }

    /// SIGKILL, and wait for the end.
    pub fn kill(&mut self, nodes: &[usize]) {
        for &node in nodes {
            self.nodes[node].child.as_mut().expect("the node runs").kill().unwrap();
        }
        for &node in nodes {
            self.nodes[node].child.take().unwrap().wait().unwrap();
        }
    }

    pub fn wait_end(&mut self, node: usize, time: Duration) -> Option<ExitStatus> {
        let status = poll(time, || self.nodes[node].child.as_mut().unwrap().try_wait().unwrap());
        if status.is_some() {
            self.nodes[node].child = None;
        }
        status
    }

    pub fn try_send(
        &self,
        node: usize,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body<'_>,
    ) -> std::io::Result<Answer> {
        exchange(self.address(node), &request(method, path.as_bytes(), headers, body), READ_TIMEOUT)
    }

    #[track_caller]
    pub fn send(&self, node: usize, method: &str, path: &str, body: &str) -> Answer {
        let body = if body.is_empty() { Body::None } else { Body::Plain(body.as_bytes()) };
        let answer = self.try_send(node, method, path, &[], body);
        answer.unwrap_or_else(|e| panic!("{method} {path} at node {node}: {e}"))
    }

    #[track_caller]
    pub fn get(&self, node: usize, path: &str) -> Answer {
        self.send(node, "GET", path, "")
    }

    /// Writes JSON text under a key (as it stands in the path) with a context.
    #[track_caller]
    pub fn put(&self, node: usize, key: &str, value: &str, token: &str) -> Answer {
        self.send(node, "PUT", &format!("/kvs/{key}"), &put_body(value, token))
    }

    #[track_caller]
    pub fn read(&self, node: usize, key: &str, token: &str) -> Answer {
        self.send(node, "GET", &format!("/kvs/{key}"), &format!(r#"{{"causal-metadata":"{token}"}}"#))
    }

    #[track_caller]
    pub fn view(&self, node: usize) -> Vec<String> {
        strings(&self.get(node, "/view").expect(200).json()["view"])
    }

    #[track_caller]
    pub fn key_count(&self, node: usize, shard: &str) -> u64 {
        let answer = self.get(node, &format!("/shard/key-count/{shard}")).expect(200);
        answer.json()["shard-key-count"].as_u64().unwrap_or_else(|| panic!("{answer}"))
    }

    /// Until these nodes list exactly each other.
    #[track_caller]
    pub fn wait_view(&self, nodes: &[usize], time: Duration) {
        let mut expected: Vec<String> = nodes.iter().map(|&n| self.name(n)).collect();
        expected.sort();
        within(time, &format!("views of {expected:?}"), || {
            nodes.iter().all(|&node| {
                let mut view = self.view(node);
                view.sort();
                view == expected
            })
        });
    }
}

pub fn put_body(value: &str, token: &str) -> String {
    format!(r#"{{"value":{value},"causal-metadata":"{token}"}}"#)
}

#[track_caller]
pub fn strings(value: &Value) -> Vec<String> {
    let array = value.as_array().unwrap_or_else(|| panic!("no array: {value}"));
    array.iter().map(|s| s.as_str().expect("a string").to_owned()).collect()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (i, node) in self.nodes.iter_mut().enumerate() {
            if let Some(mut child) = node.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            if std::thread::panicking() {
                let log = std::fs::read(&node.log).unwrap_or_default();
                eprintln!("--- log of node {i} ({})\n{}", node.address, String::from_utf8_lossy(&log));
            }
        }
    }
}
