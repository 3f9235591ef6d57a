//! What an engine that blocks in a commit holds up. The commit runs on the runtime's only thread, under the core's lock.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;

use super::*;

const STALL: Duration = Duration::from_secs(2);
/// Far more than any step takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node as the daemon runs it: with a thread of its own. It ends with what is returned last.
fn on_its_own_thread(
    listener: std::net::TcpListener,
    disk: Option<Arc<SlowDisk>>,
    view: Vec<Addr>,
) -> (NodeHandle, mpsc::Sender<()>) {
    let (told, node) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let store: Box<dyn Store> = match disk {
                Some(disk) => Box::new(SyncedStore(MemoryStore::new(), disk)),
                None => Box::new(MemoryStore::new()),
            };
            let (node, _open) = listening(store, listener, view);
            told.send(node).unwrap();
            tokio::task::spawn_blocking(move || ended.recv()).await.unwrap().unwrap_err();
        });
    });
    (node.recv().unwrap(), end)
}

/// One request; its status, and how long it took.
fn ask(at: SocketAddr, text: &str) -> (u16, Duration) {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer[9..12].parse().unwrap(), begun.elapsed())
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
}

fn put(value: u32) -> String {
    let body = format!("{{\"value\":{value}}}");
    let length = body.len();
    format!("PUT /kvs/k HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Everything at that node waits: reads of keys that are in memory, and what needs no key at all. The other replica takes it for
/// unreachable meanwhile, and goes on alone.
#[test]
fn a_disk_that_stalls_holds_up_its_own_node_alone() {
    let disk = Arc::new(SlowDisk::default());
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let at = [listeners[0].local_addr().unwrap(), listeners[1].local_addr().unwrap()];
    let view: Vec<Addr> = at.iter().map(|at| at.to_string().parse().unwrap()).collect();
    let [one, other] = listeners;
    let (_stalled, _end_one) = on_its_own_thread(one, Some(disk.clone()), view.clone());
    let (other, _end_other) = on_its_own_thread(other, None, view.clone());
    until("both serve", || at.iter().all(|&at| ask(at, &get("/ready")).0 == 200));
    assert!(ask(at[0], &put(1)).0 < 300);
    until("it is at both", || at.iter().all(|&at| ask(at, &get("/kvs/k")).0 == 200));
    until("both are in the view", || other.view().len() == 2);

    lock(&disk.state).stall = Some(STALL);
    let begun = Instant::now();
    let write = thread::spawn(move || ask(at[0], &put(2)));
    until("the disk stalls", || lock(&disk.state).stall.is_none());
    let reads = ["/kvs/k", "/health"].map(|path| thread::spawn(move || ask(at[0], &get(path))));
    let elsewhere = thread::spawn(move || {
        let mut slowest = Duration::ZERO;
        while begun.elapsed() < STALL {
            let (read, took) = ask(at[1], &get("/kvs/k"));
            let (written, also) = ask(at[1], &put(3));
            assert!(read == 200 && written < 300, "{read}, {written}");
            slowest = slowest.max(took).max(also);
        }
        slowest
    });
    let (mut missing_from, mut missing_to) = (None, None);
    until("it is in the view again", || {
        let is_missing = other.view().len() < 2;
        if is_missing {
            missing_from.get_or_insert(begun.elapsed());
        } else if missing_from.is_some() {
            missing_to.get_or_insert(begun.elapsed());
        }
        missing_to.is_some() || (begun.elapsed() > 2 * STALL && missing_from.is_none())
    });
    let (written, write_took) = write.join().unwrap();
    let [(read, read_took), (health, health_took)] = reads.map(|read| read.join().unwrap());
    let slowest = elsewhere.join().unwrap();
    assert!(written < 300 && read == 200 && health == 200, "{written}, {read}, {health}");
    assert!(slowest < STALL, "the other replica waits at most for the copy: {slowest:?}");
    eprintln!(
        "a disk that stalls for {STALL:?}: at that node the write took {write_took:?}, a read of a key in memory {read_took:?}, /health \
         {health_took:?}; at the other replica the slowest request {slowest:?}, and the node was missing from its view from \
         {missing_from:?} to {missing_to:?}"
    );
}
