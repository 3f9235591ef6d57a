//! Stand-ins for nodes: they speak HTTP, answer from a script, and remember what they were asked.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use super::Cluster;

/// A request that a stand-in got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Number of the node, from 0: alice, bob, …
    pub node: usize,
    /// `PUT /view`.
    pub what: String,
    pub body: Value,
}

/// Answers instead of the usual; `None` leaves a request to them.
type Script = Box<dyn FnMut(&Asked) -> Option<(u16, Value)> + Send>;

struct Inner {
    view: Vec<String>,
    script: Script,
    asked: Vec<Asked>,
}

/// Six nodes of kvctl's reference layout, healthy unless the script says otherwise, and a kvctl that knows them.
pub struct Mock {
    pub cluster: Cluster,
    pub addresses: Vec<String>,
    /// What all addresses of the network begin with.
    pub prefix: String,
    inner: Arc<Mutex<Inner>>,
}

impl Mock {
    pub fn new(name: &str, block: u8) -> Self {
        let second = 80 + (std::process::id() % 100) as u8;
        let cluster = Cluster::new(name, &[""; 0]);
        let prefix = format!("127.{second}.{block}.");
        let addresses: Vec<String> = (2..8).map(|last| format!("{prefix}{last}:8090")).collect();
        let inner = Inner { view: addresses.clone(), script: Box::new(|_| None), asked: Vec::new() };
        let inner = Arc::new(Mutex::new(inner));
        for (node, address) in addresses.iter().enumerate() {
            let listener = TcpListener::bind(address).expect("a free address");
            let inner = inner.clone();
            std::thread::spawn(move || {
                listener.incoming().flatten().for_each(|stream| serve(node, stream, inner.clone()));
            });
        }
        let spec = json!({
            "name": cluster.name, "nodes": 6, "shards": 2, "subnet": [format!("10.{second}.{block}.0"), 24],
            "ports_from": 8082, "image": "none",
        });
        let record = json!({ "runtime": "local", "spec": spec, "secret": "s" });
        std::fs::create_dir_all(cluster.state().join("pids")).expect("a folder");
        std::fs::write(cluster.state().join("cluster.json"), record.to_string()).expect("written");
        Self { cluster, addresses, prefix, inner }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test panics in a script")
    }

    pub fn script(&self, script: impl FnMut(&Asked) -> Option<(u16, Value)> + Send + 'static) {
        self.inner().script = Box::new(script);
    }

    /// Answers requests that are written like `PUT /view` with this.
    pub fn answer(&self, what: &str, status: u16, body: Value) {
        let what = what.to_owned();
        self.script(move |asked| (asked.what == what).then(|| (status, body.clone())));
    }

    /// The requests since the last call that were to change something.
    pub fn changes(&self) -> Vec<Asked> {
        let asked = std::mem::take(&mut self.inner().asked);
        asked.into_iter().filter(|asked| !asked.what.starts_with("GET")).collect()
    }

    /// What a healthy node says.
    pub fn status(&self, node: usize) -> Value {
        status(node, &self.addresses)
    }
}

fn status(node: usize, addresses: &[String]) -> Value {
    let (own, mates) = if node < 3 { ("s1", 0..3) } else { ("s2", 3..6) };
    let peers = mates.filter(|mate| *mate != node).map(|mate| json!({ "node": addresses[mate], "lag": 0 }));
    let shards = json!([
        { "id": "s1", "members": addresses[..3], "slots": 8192 },
        { "id": "s2", "members": addresses[3..], "slots": 8192 },
    ]);
    json!({
        "node": addresses[node], "epoch": 1, "shard": own, "stage": "serving", "reason": "", "keys": 300,
        "digest": format!("digest-{own}"), "shards": shards, "peers": peers.collect::<Vec<Value>>(),
    })
}

/// What a healthy node answers.
fn usual(asked: &Asked, view: &[String]) -> (u16, Value) {
    let addresses = view;
    match asked.what.as_str() {
        "GET /ready" => (200, json!({})),
        "GET /status" => (200, status(asked.node, addresses)),
        "GET /view" => (200, json!({ "view": view })),
        "GET /shard/ids" => (200, json!({ "shard-ids": ["s1", "s2"] })),
        "GET /shard/key-count/s1" => (200, json!({ "shard-key-count": 301 })),
        "GET /shard/key-count/s2" => (200, json!({ "shard-key-count": 299 })),
        _ => (404, json!({ "error": "No such path" })),
    }
}

/// Answers one request and closes the connection. A status of 0 leaves the request without an answer.
fn serve(node: usize, stream: TcpStream, inner: Arc<Mutex<Inner>>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let length = head.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body).expect("the whole body");
        let what = head[0].trim_end_matches(" HTTP/1.1").to_owned();
        let asked = Asked { node, what, body: serde_json::from_slice(&body).unwrap_or_default() };
        let (status, body) = {
            let mut inner = inner.lock().expect("no test panics in a script");
            inner.asked.push(asked.clone());
            let scripted = (inner.script)(&asked);
            scripted.unwrap_or_else(|| usual(&asked, &inner.view))
        };
        if status == 0 {
            // Until the client gives up and closes; an error is a close, too.
            let _ = std::io::copy(&mut reader, &mut std::io::sink());
            return;
        }
        let metadata = body["causal-metadata"].as_str().map(|text| format!("X-Causal-Metadata: {text}\r\n"));
        let (metadata, body) = (metadata.unwrap_or_default(), body.to_string());
        let length = body.len();
        let head = format!("HTTP/1.1 {status} X\r\n{metadata}Content-Length: {length}\r\nConnection: close\r\n\r\n");
        // A client that has gone away wants no answer.
        let _ = reader.get_mut().write_all(format!("{head}{body}").as_bytes());
    });
}
