//! Real processes killed in the middle: nothing acknowledged may be lost, and nobody else's data may be touched.

mod http_support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_support::{Node, free_address, kvnode, request, until};

/// A node with its data in `folder`, waited for until it serves.
fn start(address: SocketAddr, folder: &Path, fsync: &str) -> Node {
    let text = address.to_string();
    let arguments =
        ["--socket-address", &text, "--listen-address", &text, "--log-level", "error", "--fsync", fsync, "--data-dir"];
    let child = kvnode(&arguments).arg(folder).stdout(Stdio::null()).spawn().expect("kvnode starts");
    let node = Node { address, child };
    until("the node is ready", || {
        std::net::TcpStream::connect(address).is_ok() && node.request("GET", "/ready", &[], "").status == 200
    });
    node
}

/// Writes keys one after another until the node dies. The last number that was acknowledged.
fn write_until_dead(address: SocketAddr, from: u64, killed: &AtomicBool, acknowledged: &AtomicU64) {
    for number in from.. {
        let Ok(stream) = std::net::TcpStream::connect(address) else { break };
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out can be set");
        let body = format!(r#"{{"value":{number}}}"#);
        let mut client = http_support::Client(stream);
        if !client.try_send(&request("PUT", &format!("/kvs/key-{number}"), &[], &body)) {
            break;
        }
        let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| client.answer()));
        match answer {
            // 200: the write that the last round did not see acknowledged had happened.
            Ok(answer) if matches!(answer.status, 200 | 201) => acknowledged.store(number, Ordering::SeqCst),
            _ => break,
        }
    }
    assert!(killed.load(Ordering::SeqCst), "the node refused a write while it was alive");
}

fn nothing_is_lost(fsync: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let address = free_address();
    let acknowledged = AtomicU64::new(0);
    for round in 0..5 {
        let mut node = start(address, folder.path(), fsync);
        for number in 1..=acknowledged.load(Ordering::SeqCst) {
            let answer = node.request("GET", &format!("/kvs/key-{number}"), &[], "");
            assert_eq!((answer.status, &answer.json()["value"]), (200, &number.into()), "round {round}");
        }
        let begun = acknowledged.load(Ordering::SeqCst);
        let killed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| write_until_dead(address, begun + 1, &killed, &acknowledged));
            until("some writes are acknowledged", || acknowledged.load(Ordering::SeqCst) >= begun + 30 + round * 13);
            killed.store(true, Ordering::SeqCst);
            node.child.kill().expect("it can be killed");
        });
    }
    assert!(acknowledged.load(Ordering::SeqCst) >= 150);
}

#[test]
fn kill_under_load_loses_nothing_acknowledged() {
    nothing_is_lost("interval");
}

#[test]
fn kill_under_load_loses_nothing_acknowledged_when_every_write_is_synced() {
    nothing_is_lost("always");
}

#[test]
fn deletions_and_causal_context_survive_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let address = free_address();
    let node = start(address, folder.path(), "interval");
    node.request("PUT", "/kvs/gone", &[], r#"{"value":1}"#);
    let deleted = node.request("DELETE", "/kvs/gone", &[], "");
    let context = deleted.header("x-causal-metadata").expect("answers carry the context").to_owned();
    drop(node);
    let node = start(address, folder.path(), "interval");
    let answer = node.request("GET", "/kvs/gone", &[("x-causal-metadata", &context)], "");
    assert_eq!(answer.status, 404, "{answer:?}");
}

/// Runs kvnode to its end: its exit code and what it said.
fn refused(address: SocketAddr, folder: &Path) -> (Option<i32>, String) {
    let text = address.to_string();
    let arguments = ["--socket-address", &text, "--listen-address", &text, "--log-level", "off", "--data-dir"];
    let output = kvnode(&arguments).arg(folder).output().expect("kvnode starts");
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

#[test]
fn a_folder_in_use_or_of_another_node_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (address, other) = (free_address(), free_address());
    let node = start(address, folder.path(), "interval");
    let begun = Instant::now();
    let (code, said) = refused(other, folder.path());
    assert_eq!((code, said.lines().count()), (Some(2), 1), "{said}");
    assert!(said.contains("DATA_DIR") && said.contains(&address.to_string()), "{said}");
    assert!(begun.elapsed() < http_support::PATIENCE);
    node.request("PUT", "/kvs/a", &[], r#"{"value":1}"#);
    drop(node);
    let (code, said) = refused(other, folder.path());
    assert_eq!((code, said.lines().count()), (Some(2), 1), "{said}");
    let node = start(address, folder.path(), "interval");
    assert_eq!(node.request("GET", "/kvs/a", &[], "").status, 200, "nothing was touched");
}

#[test]
fn a_second_process_of_the_same_node_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let address = free_address();
    let _node = start(address, folder.path(), "interval");
    let text = address.to_string();
    let elsewhere = free_address().to_string();
    let arguments = ["--socket-address", &text, "--listen-address", &elsewhere, "--log-level", "off", "--data-dir"];
    let output = kvnode(&arguments).arg(folder.path()).output().expect("kvnode starts");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
    assert!(said.contains("in use"), "{said}");
}
