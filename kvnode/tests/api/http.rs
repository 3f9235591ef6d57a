//! A raw HTTP/1.1 client: one connection a request, every byte in the test's hand.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

pub const READ_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        let kind = self.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("application/json"), "not JSON: {self}");
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self}"))
    }

    /// The causal metadata, which has to be the same in the body and in the header.
    #[track_caller]
    pub fn token(&self) -> String {
        let json = self.json();
        let token = json["causal-metadata"].as_str().unwrap_or_else(|| panic!("no causal-metadata: {self}"));
        assert_eq!(self.header("x-causal-metadata"), Some(token), "header and body differ: {self}");
        token.to_owned()
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// A 4xx or 5xx as JSON with a non-empty reason.
    #[track_caller]
    pub fn expect_error(self, status: u16) -> String {
        assert_eq!(self.status, status, "{self}");
        let reason = self.json()["error"].as_str().unwrap_or_else(|| panic!("no reason: {self}")).to_owned();
        assert!(!reason.is_empty(), "{self}");
        reason
    }

    #[track_caller]
    pub fn expect_result(self, status: u16, result: &str) -> Self {
        assert_eq!(self.status, status, "{self}");
        assert_eq!(self.json()["result"], result, "{self}");
        self
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body: String = self.text().chars().take(600).collect();
        write!(f, "{} {:?} {body}", self.status, self.headers)
    }
}

pub enum Body<'a> {
    None,
    Plain(&'a [u8]),
    Chunked(&'a [u8], usize),
}

/// The bytes of a request.
pub fn request(method: &str, path: &[u8], headers: &[(&str, &str)], body: Body<'_>) -> Vec<u8> {
    let mut bytes = method.as_bytes().to_vec();
    bytes.push(b' ');
    bytes.extend_from_slice(path);
    bytes.extend_from_slice(b" HTTP/1.1\r\nHost: kv\r\nConnection: close\r\n");
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    match body {
        Body::None => bytes.extend_from_slice(b"\r\n"),
        Body::Plain(body) => {
            bytes.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            bytes.extend_from_slice(body);
        }
        Body::Chunked(body, size) => {
            bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for chunk in body.chunks(size) {
                bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
        }
    }
    bytes
}

/// Sends the bytes and reads one answer. A peer that answers before it has read everything is no error.
pub fn exchange(address: SocketAddr, bytes: &[u8], timeout: Duration) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    let sent = stream.write_all(bytes);
    let answer = read_answer(&mut stream);
    if answer.is_err() {
        sent?;
    }
    answer
}

fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn read_answer(stream: &mut TcpStream) -> Result<Answer> {
    let bad = |what: &str| Error::new(ErrorKind::InvalidData, what.to_owned());
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        match read(stream, &mut buffer)? {
            0 => return Err(Error::new(ErrorKind::UnexpectedEof, "closed without an answer")),
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec()).map_err(|_| bad("the header is not UTF-8"))?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok());
    let status = status.ok_or_else(|| bad("no status line"))?;
    let headers: Vec<(String, String)> =
        lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.to_owned(), v.trim().to_owned())).collect();
    let mut answer = Answer { status, headers, body: bytes[head + 4..].to_vec() };
    let length: Option<usize> = answer.header("content-length").and_then(|v| v.parse().ok());
    while length.is_none_or(|length| answer.body.len() < length) {
        match read(stream, &mut buffer)? {
            0 if length.is_none() => break,
            0 => return Err(Error::new(ErrorKind::UnexpectedEof, "closed within the body")),
            n => answer.body.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(answer)
}
