//! A real `kvnode` process and a client that can misbehave: plain sockets, no HTTP library between.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// No step of any test takes longer, however busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A node of a cluster of its own; killed when dropped.
pub struct Node {
    pub address: SocketAddr,
    pub child: Child,
}

/// `kvnode` with these arguments and nothing in its environment.
pub fn kvnode(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvnode"));
    command.env_clear().args(arguments).stdin(Stdio::null());
    command
}

/// An address of this host that nobody listens at: a loopback address of its own, by process and count. (A port that the
/// system gives for a moment may be given to the next test at the same time.)
pub fn free_address() -> SocketAddr {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let third = u8::try_from(pid % 250).expect("below 250");
    SocketAddr::from(([127, 7, third, count], 8_090))
}

impl Node {
    /// Starts a node and waits until it is ready.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_by(kvnode(&[]), arguments)
    }

    /// The same with a command that ends in `kvnode`.
    pub fn start_by(mut command: Command, arguments: &[&str]) -> Self {
        let address = free_address();
        let text = address.to_string();
        command.args(["--socket-address", &text, "--listen-address", &text, "--log-level", "error"]);
        let child = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("kvnode starts");
        let node = Self { address, child };
        until("the node is ready", || {
            TcpStream::connect(address).is_ok() && node.request("GET", "/ready", &[], "").status == 200
        });
        node
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// One request on a connection of its own.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut client = self.connect();
        client.send(&request(method, path, headers, body));
        client.answer()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the process is there");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The text of a whole request.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        text += &format!("content-length: {}\r\n", body.len());
    }
    text + "\r\n" + body
}

/// Tries until `holds`, at most [`PATIENCE`].
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.0 == name).map(|header| header.1.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Checks a refusal: its status, and that it says what is wrong in the form of the contract.
    pub fn is_error(&self, status: u16) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.json()["error"].as_str().is_some_and(|text| !text.is_empty()), "{self:?}");
    }
}

/// A connection.
pub struct Client(pub TcpStream);

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the node accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
        stream.set_nodelay(true).expect("nodelay can be set");
        Self(stream)
    }

    pub fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).expect("the node takes it");
    }

    /// Sends although the node may have closed the connection already.
    pub fn try_send(&mut self, text: &str) -> bool {
        self.0.write_all(text.as_bytes()).is_ok()
    }

    /// Reads one answer, by its `content-length`.
    pub fn answer(&mut self) -> Answer {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            let count = self.0.read(&mut byte).expect("an answer comes");
            assert_eq!(count, 1, "closed after {:?}", String::from_utf8_lossy(&head));
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).expect("a head is text");
        let mut lines = head.lines();
        let status =
            lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line").parse().expect("a status");
        let split = |line: &str| line.split_once(": ").map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()));
        let headers: Vec<_> = lines.filter_map(split).collect();
        let mut answer = Answer { status, headers, body: String::new() };
        let length = answer.header("content-length").map_or(0, |text| text.parse().expect("a length"));
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("the whole body comes");
        answer.body = String::from_utf8(body).expect("a body is text");
        answer
    }

    /// Waits until the node closes the connection; how long that took.
    pub fn closed(&mut self) -> Duration {
        let begun = Instant::now();
        let mut rest = [0; 4096];
        loop {
            match self.0.read(&mut rest) {
                Ok(0) => return begun.elapsed(),
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return begun.elapsed(),
                Err(e) => panic!("still open: {e}"),
            }
        }
    }
}
