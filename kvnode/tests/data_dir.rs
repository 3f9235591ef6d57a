//! What a node does with a data directory: of another release, of a format that it does not know, damaged, and without its data.

mod http_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use http_support::{Node, free_address, kvnode, until};

/// The address of the node whose data directory is in [`unpacked`].
const OWNER: &str = "10.10.0.2:8090";

/// A data directory as release 0.1.0 left it, which wrote no `FORMAT` yet: 31 keys, five of them deleted, 15 overwritten.
fn unpacked() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/release-0.1.0.tar");
    let packed = fs::File::open(packed).expect("it is in the tree");
    tar::Archive::new(packed).unpack(folder.path()).expect("it can be unpacked");
    folder
}

/// A node on the directory, with more arguments, once it answers; and what it says to `/ready` when it has made up its mind.
fn unready(folder: &Path, says: &str) -> Node {
    let (mut command, address) = owner(folder);
    let node = Node { address, child: command.arg("--log-level=error").spawn().expect("kvnode starts") };
    until(says, || {
        let answer = std::net::TcpStream::connect(address).map(|_| node.request("GET", "/ready", &[], ""));
        answer.is_ok_and(|answer| {
            assert_eq!(answer.status, 503, "{}", answer.body);
            answer.body.contains(says)
        })
    });
    node
}

fn ended_in_order(mut node: Node) {
    node.signal(rustix::process::Signal::TERM);
    until("it has ended", || node.child.try_wait().expect("a child").is_some());
}

fn remove_the_engine(folder: &Path) {
    fs::remove_dir_all(folder.join("fjall")).expect("it was there");
    fs::remove_file(folder.join("synced")).expect("it was there");
}

/// A node that owns the directory, not started yet.
fn owner(folder: &Path) -> (Command, std::net::SocketAddr) {
    let listen = free_address();
    let mut command = kvnode(&["--socket-address", OWNER, "--listen-address", &listen.to_string(), "--data-dir"]);
    command.arg(folder).stdout(Stdio::null());
    (command, listen)
}

fn started(folder: &Path) -> Node {
    let (mut command, address) = owner(folder);
    let node = Node { address, child: command.arg("--log-level=error").spawn().expect("kvnode starts") };
    until("the node is ready", || {
        std::net::TcpStream::connect(address).is_ok() && node.request("GET", "/ready", &[], "").status == 200
    });
    node
}

/// What a node that has to end with status 2 says: one line.
fn refused(folder: &Path) -> String {
    let (mut command, _) = owner(folder);
    let output = command.arg("--log-level=error").output().expect("kvnode starts");
    let text = String::from_utf8(output.stderr).expect("messages are text");
    assert_eq!((output.status.code(), text.trim_end().lines().count()), (Some(2), 1), "{text}");
    text
}

/// Every file below a folder with its bytes.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.clone(), fs::read(&path).expect("a file"));
            }
        }
    }
    files
}

fn value_of(node: &Node, key: &str) -> serde_json::Value {
    node.request("GET", &format!("/kvs/{key}"), &[], "").json()["value"].clone()
}

fn has_all(node: &Node) {
    for number in 1..=30 {
        let expected = match number {
            1..=5 => serde_json::Value::Null,
            6..=20 => format!("again {number}").into(),
            _ => number.into(),
        };
        assert_eq!(value_of(node, &format!("key-{number}")), expected, "key-{number}");
    }
    assert_eq!(value_of(node, "key-31"), serde_json::json!({"a": [1, 2.50, null, "é"]}));
}

fn format_of(folder: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(folder.join("FORMAT")).expect("it was written")).expect("it is JSON")
}

#[test]
fn what_the_release_before_wrote_is_read() {
    let folder = unpacked();
    for round in 0..2 {
        let node = started(folder.path());
        has_all(&node);
        let format = format_of(folder.path());
        assert_eq!((&format["format"], &format["oldest-reader"]), (&1.into(), &1.into()), "round {round}: {format}");
        assert_eq!(format["release"], env!("CARGO_PKG_VERSION"));
    }
}

#[test]
fn a_format_that_is_not_known_is_refused_and_nothing_is_touched() {
    let newer = r#"{"format":2,"oldest-reader":2,"release":"7.8.9"}"#;
    let later = [("FORMAT", newer.as_bytes(), "7.8.9"), ("FORMAT", b"what?", "FORMAT"), ("FORMAT", b"", "FORMAT")];
    let engines = [("fjall/version", &b"FJL\x04"[..], "fjall"), ("fjall/version", b"FJ", "fjall")];
    for (name, bytes, says) in later.into_iter().chain(engines) {
        let folder = unpacked();
        fs::write(folder.path().join(name), bytes).expect("a file");
        let before = tree(folder.path());
        for start in 1..=3 {
            let text = refused(folder.path());
            assert!(text.starts_with("DATA_DIR") && text.contains(says), "{name}, start {start}: {text}");
            assert_eq!(tree(folder.path()), before, "{name}, start {start}: {text}");
        }
    }
}

#[test]
fn a_newer_format_that_this_release_may_read_is_read_and_stays() {
    let folder = unpacked();
    let newer = r#"{"format":9,"oldest-reader":1,"release":"7.8.9","more":[1]}"#;
    fs::write(folder.path().join("FORMAT"), newer).expect("a file");
    has_all(&started(folder.path()));
    assert_eq!(fs::read_to_string(folder.path().join("FORMAT")).expect("a file"), newer);
}

/// The engine ends in an error, or in a panic, wherever it lacks a handle first.
#[test]
fn want_of_file_handles_is_no_damage() {
    const DAMAGED: i32 = 3;
    let folder = unpacked();
    let mut ends = std::collections::BTreeSet::new();
    for handles in 4..60 {
        let mut limited = Command::new("sh");
        limited.arg("-c").arg(format!(r#"ulimit -n {handles}; exec "$0" "$@""#)).env_clear().stdin(Stdio::null());
        let output = limited.arg(env!("CARGO_BIN_EXE_kvnode")).arg("--probe-store").arg(folder.path()).output();
        ends.insert(output.expect("a shell").status.code());
    }
    assert!(ends.contains(&Some(0)) && ends.len() > 1 && !ends.contains(&Some(DAMAGED)), "{ends:?}");
    has_all(&started(folder.path()));
}

#[test]
fn data_that_is_gone_is_not_taken_for_none() {
    let folder = unpacked();
    ended_in_order(started(folder.path()));
    let identity = fs::read_to_string(folder.path().join("identity")).expect("it was written");
    let identity: serde_json::Value = serde_json::from_str(&identity).expect("it is JSON");
    assert!(identity["node"] == 1 && identity["cluster"].as_str().is_some_and(|id| id.len() == 32), "{identity}");
    remove_the_engine(folder.path());
    for start in 1..=3 {
        let node = unready(folder.path(), "ACCEPT_DATA_LOSS");
        let why = node.request("GET", "/ready", &[], "").body;
        let names = [identity["cluster"].as_str().expect("text"), "bring its files back", "is gone from"];
        assert!(names.iter().all(|name| why.contains(name)), "start {start}: {why}");
        assert_eq!(node.request("GET", "/kvs/key-31", &[], "").status, 503, "start {start}");
        if start == 2 {
            ended_in_order(node);
        }
    }
    let (mut command, address) = owner(folder.path());
    let node = Node { address, child: command.arg("--accept-data-loss").spawn().expect("kvnode starts") };
    until("the operator's word counts", || {
        std::net::TcpStream::connect(address).is_ok() && node.request("GET", "/ready", &[], "").status == 200
    });
    assert_eq!(node.request("GET", "/kvs/key-31", &[], "").status, 404);
    assert_eq!(node.request("PUT", "/kvs/new", &[], r#"{"value":1}"#).status, 201);
    drop(node);
    assert_eq!(value_of(&started(folder.path()), "new"), 1, "once is enough");
}

#[test]
fn damaged_data_is_not_taken_for_none_either() {
    let folder = unpacked();
    let journal = folder.path().join("fjall/0.jnl");
    let mut bytes = fs::read(&journal).expect("a journal");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&journal, &bytes).expect("a file");
    for _ in 0..2 {
        let node = unready(folder.path(), "ACCEPT_DATA_LOSS");
        let why = node.request("GET", "/ready", &[], "").body;
        assert!(why.contains("damaged-1") && !why.contains("peers"), "{why}");
    }
    assert!(!folder.path().join("damaged-2").exists());
    assert_eq!(fs::read(folder.path().join("damaged-1/fjall/0.jnl")).expect("moved"), bytes);
    // Whole files from a backup.
    remove_the_engine(folder.path());
    let backup = unpacked();
    fs::rename(backup.path().join("fjall"), folder.path().join("fjall")).expect("one file system");
    has_all(&started(folder.path()));
}

/// The next start has to look whether what is stored can be read.
#[test]
fn a_node_that_fails_does_not_end_in_order() {
    let folder = unpacked();
    let (command, address) = owner(folder.path());
    let mut limited = Command::new("sh");
    // No file may become larger: the engine fails in the middle of a batch.
    limited.arg("-c").arg(r#"trap "" XFSZ; ulimit -f 4000; exec "$0" "$@""#).env_clear();
    limited.arg(command.get_program()).args(command.get_args()).arg("--log-level=error");
    let mut node =
        Node { address, child: limited.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("a shell") };
    until("the node is ready", || {
        std::net::TcpStream::connect(address).is_ok() && node.request("GET", "/ready", &[], "").status == 200
    });
    let body = format!(r#"{{"value":"{}"}}"#, "x".repeat(900_000));
    until("a write fails", || {
        let mut client = http_support::Client(std::net::TcpStream::connect(address).expect("it listens"));
        let wrote = client.try_send(&http_support::request("PUT", "/kvs/large", &[], &body));
        !wrote || !matches!(client.answer().status, 200 | 201)
    });
    let mut status = None;
    until("it has ended", || {
        status = node.child.try_wait().expect("a child");
        status.is_some()
    });
    assert_eq!(status.and_then(|status| status.code()), Some(1));
    assert!(!folder.path().join("ended-in-order").exists());
    has_all(&started(folder.path()));
}

/// Whatever is read of the store waits at this file for ever.
fn stuck(folder: &Path) {
    let file = folder.join("fjall/keyspaces/1/current");
    fs::remove_file(&file).expect("it was there");
    assert!(Command::new("mkfifo").arg(&file).status().expect("mkfifo").success());
}

/// The processes that this one has started.
fn children(parent: u32) -> Vec<u32> {
    let processes =
        fs::read_dir("/proc").expect("Linux").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        after_name.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    processes.filter(is_child).collect()
}

fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim_start().starts_with('Z'))
}

#[test]
fn a_node_answers_and_can_be_stopped_while_its_store_is_opened() {
    // With a child that tries it first, and without.
    for in_order in [false, true] {
        let folder = unpacked();
        stuck(folder.path());
        if !in_order {
            fs::remove_file(folder.path().join("ended-in-order")).expect("it was there");
        }
        let (mut command, address) = owner(folder.path());
        let mut node = Node { address, child: command.stderr(Stdio::piped()).spawn().expect("kvnode starts") };
        until("it answers", || std::net::TcpStream::connect(address).is_ok());
        assert_eq!(node.request("GET", "/health", &[], "").status, 200);
        let step = if in_order { "reading its journal" } else { "having a child try it" };
        until(step, || node.request("GET", "/ready", &[], "").body.contains(step));
        for (method, path) in [("GET", "/ready"), ("PUT", "/kvs/key-1"), ("GET", "/nowhere"), ("GET", "/peer")] {
            let answer = node.request(method, path, &[], r#"{"value":1}"#);
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{method} {path}");
            assert!(
                answer.json()["error"].as_str().is_some_and(|why| why.starts_with("opening the store")),
                "{answer:?}"
            );
        }
        let mut tried_by = Vec::new();
        until("as many children as there should be", || {
            tried_by = children(node.child.id());
            tried_by.len() == usize::from(!in_order)
        });
        let told = std::time::Instant::now();
        node.signal(rustix::process::Signal::TERM);
        until("it has ended", || node.child.try_wait().expect("a child").is_some());
        assert!(told.elapsed() < std::time::Duration::from_secs(10));
        assert_eq!(node.child.wait().expect("it has ended").code(), Some(0));
        until("its child has ended", || !tried_by.iter().copied().any(runs));
        let log = std::io::read_to_string(node.child.stderr.take().expect("piped")).expect("text");
        assert!(log.contains("opening the store") && !log.contains("recovered"), "{log}");
    }
}

#[test]
fn a_child_that_tries_a_store_dies_with_its_parent() {
    let folder = unpacked();
    stuck(folder.path());
    fs::remove_file(folder.path().join("ended-in-order")).expect("it was there");
    let (mut command, address) = owner(folder.path());
    let mut node = Node { address, child: command.stderr(Stdio::null()).spawn().expect("kvnode starts") };
    until("a child tries the store", || !children(node.child.id()).is_empty());
    let tried_by = children(node.child.id());
    node.child.kill().expect("it runs");
    node.child.wait().expect("it was killed");
    until("its child has ended", || !tried_by.iter().copied().any(runs));
}

#[test]
fn what_was_recovered_is_said() {
    let folder = unpacked();
    let (mut command, address) = owner(folder.path());
    let node = Node { address, child: command.stderr(Stdio::piped()).spawn().expect("kvnode starts") };
    until("the node is ready", || {
        std::net::TcpStream::connect(address).is_ok() && node.request("GET", "/ready", &[], "").status == 200
    });
    node.signal(rustix::process::Signal::TERM);
    let mut node = node;
    let log = std::io::read_to_string(node.child.stderr.take().expect("piped")).expect("text");
    assert!(log.contains("recovered 26 keys in "), "{log}");
}
