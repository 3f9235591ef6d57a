//! What such a store costs at least: six processes with everything that an operation must cross, and nothing of what this project is for.
//!
//! HTTP by hyper, one thread and one map a process, a stream of binary frames between each two, a frame carrying whatever has
//! come while the one before was out. A write is answered when another process has it, and goes to a third with what else comes
//! in the next milliseconds. No contexts, no versions, no log, no repair, no layout, no limits, and nothing may fail.
//!
//! Usage: cargo run --release -p kvnode --example mockup -- here|elsewhere INDEX IP:PORT,IP:PORT,... (six)
//!
//! The first three are one shard, the others the other. With `here` each answers itself, with `elsewhere` each passes every
//! request on to one of the other shard; between them they speak on PORT + 1. A key that nobody has written has a value, too.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

/// How long writes for the third process wait for others.
const LINGER: Duration = Duration::from_millis(5);
const PROCESSES: usize = 6;
const SHARD: usize = PROCESSES / 2;

#[derive(Deserialize)]
struct Put {
    value: Box<RawValue>,
}

/// What a frame is made of.
#[derive(Clone)]
enum Item {
    /// Pass this on; a value is written, otherwise read.
    Ask { id: u64, key: Bytes, value: Option<Bytes> },
    /// What became of it: the value read, or nothing.
    Done { id: u64, value: Option<Bytes> },
    /// Another process of the shard has written this.
    Write { id: u64, key: Bytes, value: Bytes },
}

impl Item {
    fn put(&self, frame: &mut BytesMut) {
        let (kind, id, key, value) = match self {
            Self::Ask { id, key, value } => (0, id, Some(key), value.as_ref()),
            Self::Done { id, value } => (1, id, None, value.as_ref()),
            Self::Write { id, key, value } => (2, id, Some(key), Some(value)),
        };
        frame.put_u8(kind);
        frame.put_u64_le(*id);
        for part in [key, value] {
            frame.put_u32_le(part.map_or(u32::MAX, |part| part.len() as u32));
            frame.put_slice(part.map_or(&[], |part| part));
        }
    }

    fn take(frame: &mut Bytes) -> Self {
        let (kind, id) = (frame.get_u8(), frame.get_u64_le());
        let mut part = || match frame.get_u32_le() {
            u32::MAX => None,
            length => Some(frame.split_to(length as usize)),
        };
        let (key, value) = (part(), part());
        match kind {
            0 => Self::Ask { id, key: key.unwrap_or_default(), value },
            1 => Self::Done { id, value },
            _ => Self::Write { id, key: key.unwrap_or_default(), value: value.unwrap_or_default() },
        }
    }
}

async fn send(stream: &mut TcpStream, items: &[Item], frame: &mut BytesMut) -> io::Result<()> {
    frame.clear();
    frame.put_u32_le(0);
    items.iter().for_each(|item| item.put(frame));
    let length = (frame.len() - 4) as u32;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    stream.write_all(frame).await
}

async fn receive(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Vec<Item>> {
    loop {
        if let Some(length) = buffer.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize)
            && buffer.len() >= 4 + length
        {
            buffer.advance(4);
            let mut frame = buffer.split_to(length).freeze();
            let mut items = Vec::new();
            while frame.has_remaining() {
                items.push(Item::take(&mut frame));
            }
            return Ok(items);
        }
        buffer.reserve(16 << 10);
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// What waits for a frame to another process.
#[derive(Default)]
struct Link {
    items: Mutex<Vec<Item>>,
    /// Something waits.
    some: Notify,
    /// Somebody waits for what becomes of it.
    urgent: Notify,
}

impl Link {
    fn late(&self, item: Item) {
        self.items.lock().expect("nobody panics").push(item);
        self.some.notify_one();
    }

    fn urgent(&self, item: Item) {
        self.urgent.notify_one();
        self.late(item);
    }

    async fn next(&self) -> Vec<Item> {
        loop {
            self.some.notified().await;
            let _ = timeout(LINGER, self.urgent.notified()).await;
            let items = std::mem::take(&mut *self.items.lock().expect("nobody panics"));
            // A mark may be left of what went with the frame before.
            if !items.is_empty() {
                return items;
            }
        }
    }
}

#[derive(Default)]
struct Waiting {
    last_id: u64,
    senders: HashMap<u64, oneshot::Sender<Option<Bytes>>>,
}

struct Process {
    index: usize,
    elsewhere: bool,
    map: Mutex<HashMap<Bytes, Bytes>>,
    default: Bytes,
    links: Vec<Link>,
    waiting: Mutex<Waiting>,
}

impl Process {
    /// The others of this one's shard: who has a write before it is answered, and who gets it later.
    fn mates(&self) -> (usize, usize) {
        let (first, at) = (self.index / SHARD * SHARD, self.index % SHARD);
        (first + (at + 1) % SHARD, first + (at + 2) % SHARD)
    }

    /// Waits for what becomes of what `item` makes of a number.
    async fn ask(&self, to: usize, item: impl FnOnce(u64) -> Item) -> Option<Bytes> {
        let (tell, told) = oneshot::channel();
        let id = {
            let mut waiting = self.waiting.lock().expect("nobody panics");
            waiting.last_id += 1;
            let id = waiting.last_id;
            waiting.senders.insert(id, tell);
            id
        };
        self.links[to].urgent(item(id));
        told.await.expect("nothing is lost")
    }

    fn read(&self, key: &Bytes) -> Bytes {
        self.map.lock().expect("nobody panics").get(key).unwrap_or(&self.default).clone()
    }

    fn insert(&self, key: Bytes, value: Bytes) {
        self.map.lock().expect("nobody panics").insert(key, value);
    }

    /// Writes here and at another.
    async fn write(&self, key: Bytes, value: Bytes) {
        self.insert(key.clone(), value.clone());
        let (second, third) = self.mates();
        let late = Item::Write { id: 0, key: key.clone(), value: value.clone() };
        self.links[third].late(late);
        self.ask(second, |id| Item::Write { id, key, value }).await;
    }

    async fn serve(&self, key: Bytes, value: Option<Bytes>) -> Option<Bytes> {
        if self.elsewhere {
            return self.ask((self.index + SHARD) % PROCESSES, |id| Item::Ask { id, key, value }).await;
        }
        match value {
            Some(value) => {
                self.write(key, value).await;
                None
            }
            None => Some(self.read(&key)),
        }
    }

    /// Acts on what came from another process; gives what can be answered at once.
    fn take_in(self: &Arc<Self>, from: usize, items: Vec<Item>) -> Vec<Item> {
        let mut answers = Vec::new();
        for item in items {
            match item {
                Item::Ask { id, key, value: None } => answers.push(Item::Done { id, value: Some(self.read(&key)) }),
                Item::Ask { id, key, value: Some(value) } => {
                    let process = self.clone();
                    tokio::spawn(async move {
                        process.write(key, value).await;
                        process.links[from].urgent(Item::Done { id, value: None });
                    });
                }
                Item::Write { id, key, value } => {
                    self.insert(key, value);
                    if id != 0 {
                        answers.push(Item::Done { id, value: None });
                    }
                }
                Item::Done { id, value } => {
                    let who = self.waiting.lock().expect("nobody panics").senders.remove(&id);
                    drop(who.map(|who| who.send(value)));
                }
            }
        }
        answers
    }

    async fn link(self: Arc<Self>, to: usize, address: SocketAddr) -> io::Result<()> {
        let mut stream = loop {
            match TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(LINGER).await,
            }
        };
        stream.set_nodelay(true)?;
        stream.write_u8(self.index as u8).await?;
        let (mut frame, mut buffer) = (BytesMut::new(), BytesMut::new());
        loop {
            let items = self.links[to].next().await;
            send(&mut stream, &items, &mut frame).await?;
            let answers = receive(&mut stream, &mut buffer).await?;
            self.take_in(to, answers);
        }
    }

    async fn other(self: Arc<Self>, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let from = stream.read_u8().await? as usize;
        let (mut frame, mut buffer) = (BytesMut::new(), BytesMut::new());
        loop {
            let items = receive(&mut stream, &mut buffer).await?;
            let answers = self.take_in(from, items);
            send(&mut stream, &answers, &mut frame).await?;
        }
    }
}

async fn answer(process: &Process, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let reply = |status, text: String| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    };
    // The load generator asks before it begins.
    let Some(key) = head.uri.path().strip_prefix("/kvs/") else { return reply(StatusCode::OK, "{}".into()) };
    let key = Bytes::copy_from_slice(key.as_bytes());
    if head.method == Method::GET {
        let value = process.serve(key, None).await.unwrap_or_default();
        let value = String::from_utf8_lossy(&value);
        return reply(StatusCode::OK, format!(r#"{{"result":"found","value":{value}}}"#));
    }
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let Ok(put) = serde_json::from_slice::<Put>(&body) else {
        return reply(StatusCode::BAD_REQUEST, r#"{"error":"no value"}"#.into());
    };
    process.serve(key, Some(Bytes::copy_from_slice(put.value.get().as_bytes()))).await;
    reply(StatusCode::OK, r#"{"result":"replaced"}"#.into())
}

async fn run(process: Arc<Process>, all: Vec<SocketAddr>) -> io::Result<()> {
    let beside = |address: SocketAddr| SocketAddr::new(address.ip(), address.port() + 1);
    let clients = TcpListener::bind(all[process.index]).await?;
    let others = TcpListener::bind(beside(all[process.index])).await?;
    for (to, &address) in all.iter().enumerate().filter(|&(to, _)| to != process.index) {
        tokio::spawn(process.clone().link(to, beside(address)));
    }
    let taking = process.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = others.accept().await {
            tokio::spawn(taking.clone().other(stream));
        }
    });
    loop {
        let (stream, _) = clients.accept().await?;
        stream.set_nodelay(true)?;
        let process = process.clone();
        let service = service_fn(move |request| {
            let process = process.clone();
            async move { Ok::<_, Infallible>(answer(&process, request).await) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match &arguments[..] {
        [mode, index, all] if ["here", "elsewhere"].contains(&mode.as_str()) => {
            let all: Option<Vec<SocketAddr>> = all.split(',').map(|one| one.parse().ok()).collect();
            let all = all.filter(|all| all.len() == PROCESSES);
            index.parse::<usize>().ok().filter(|index| *index < PROCESSES).zip(all).map(|it| (mode == "elsewhere", it))
        }
        _ => None,
    };
    let Some((elsewhere, (index, all))) = parsed else {
        eprintln!("usage: mockup here|elsewhere INDEX IP:PORT,IP:PORT,... (six)");
        std::process::exit(2);
    };
    let links = (0..PROCESSES).map(|_| Link::default()).collect();
    let default = Bytes::from(format!("\"{}\"", "v".repeat(98)));
    let process = Process { index, elsewhere, map: Mutex::default(), default, links, waiting: Mutex::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(Arc::new(process), all))
}
