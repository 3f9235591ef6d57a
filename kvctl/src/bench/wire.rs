//! A connection of the load generator: plain HTTP/1.1, one request at a time, nothing that isn't needed.
//!
//! It shares the machine with the servers as often as not, so its own cost per request distorts what it measures. A general
//! client costs 50 to 80 µs a request; hyper's bare connection still a task, two channels and a header map. Here a request is
//! one write from a buffer that is used again, an answer one read into another, and parsing stays in place.

use std::io::{Error, ErrorKind, Result};

use kvnode_client::ANSWER_BYTES_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes of an answer's head.
const HEAD_MAX: usize = 128 << 10;
/// Bytes of an answer beside the value in it.
const BESIDE_VALUE: usize = 64 << 10;
const HEADERS_MAX: usize = 32;

pub struct Connection {
    stream: TcpStream,
    body_max: usize,
    buffer: Vec<u8>,
}

/// What came back; lives in the connection's buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    pub status: u16,
    pub metadata: Option<&'a str>,
    pub body: &'a [u8],
    /// The server closes the connection now.
    pub closes: bool,
}

/// The part of an answer before its body.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    /// Where the body begins, and how long it is.
    body_at: usize,
    length: usize,
    metadata: Option<(usize, usize)>,
    closes: bool,
}

impl Connection {
    /// For answers with values of up to `value_max` bytes, or what any client takes.
    pub async fn open(address: &str, value_max: usize) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let body_max = ANSWER_BYTES_MAX.max(value_max.saturating_add(BESIDE_VALUE));
        Ok(Self { stream, body_max, buffer: Vec::with_capacity(4_096) })
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// If the connection breaks, or what comes is no answer. The connection is of no use afterwards.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        self.buffer.clear();
        self.stream.write_all(request).await?;
        let head = loop {
            if let Some(head) = parse(&self.buffer, self.body_max)? {
                break head;
            }
            self.read().await?;
        };
        let end = head.body_at + head.length;
        while self.buffer.len() < end {
            self.read().await?;
        }
        let metadata = head.metadata.and_then(|(from, to)| std::str::from_utf8(&self.buffer[from..to]).ok());
        Ok(Answer { status: head.status, metadata, body: &self.buffer[head.body_at..end], closes: head.closes })
    }

    async fn read(&mut self) -> Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(Error::new(ErrorKind::UnexpectedEof, "closed without an answer")),
            _ => Ok(()),
        }
    }
}

fn bad(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

/// `None`: the head is not complete yet.
fn parse(bytes: &[u8], body_max: usize) -> Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let body_at = match response.parse(bytes).map_err(|_| bad("no HTTP"))? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial if bytes.len() > HEAD_MAX => return Err(bad("a head without an end")),
        httparse::Status::Partial => return Ok(None),
    };
    let mut head =
        Head { status: response.code.unwrap_or_default(), body_at, length: 0, metadata: None, closes: false };
    let mut sized = false;
    for header in response.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            let length = std::str::from_utf8(header.value).ok().and_then(|text| text.parse().ok());
            head.length = length.filter(|length| *length <= body_max).ok_or_else(|| bad("an answer of no length"))?;
            sized = true;
        } else if is(kvnode_client::METADATA_HEADER) {
            let at = header.value.as_ptr() as usize - bytes.as_ptr() as usize;
            head.metadata = Some((at, at + header.value.len()));
        } else if is("connection") {
            head.closes = header.value.eq_ignore_ascii_case(b"close");
        }
    }
    if sized { Ok(Some(head)) } else { Err(bad("an answer that does not say how long it is")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart_wherever_it_is_cut() {
        let text =
            b"HTTP/1.1 201 Created\r\nX-Causal-Metadata: AbC\r\ncontent-length: 4\r\nConnection: close\r\n\r\nbody";
        let whole = parse(text, 4).unwrap().unwrap();
        assert_eq!((whole.status, whole.length, whole.closes), (201, 4, true));
        assert_eq!(&text[whole.body_at..], b"body");
        let (from, to) = whole.metadata.unwrap();
        assert_eq!(&text[from..to], b"AbC");
        for cut in 0..text.len() - 4 {
            assert_eq!(parse(&text[..cut], 4).unwrap(), None, "{cut}");
        }
    }

    #[test]
    fn what_is_no_answer_of_a_node_is_an_error() {
        let unsized_ = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        for bad in ["SSH-2.0\r\n\r\n", unsized_, "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"] {
            assert!(parse(bad.as_bytes(), 4).is_err(), "{bad}");
        }
        let long = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
        assert!(parse(long, 4).is_err() && parse(long, 5).is_ok());
        let endless = [&b"HTTP/1.1 200 OK\r\nx: "[..], &[b'x'; HEAD_MAX]].concat();
        assert!(parse(&endless, 4).is_err());
    }
}
