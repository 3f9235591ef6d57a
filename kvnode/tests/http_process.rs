//! Starting with bad settings, and stopping.

mod http_support;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use http_support::{Node, PATIENCE, free_address, kvnode, request, until};
use rustix::process::Signal;

/// Runs `kvnode` to its end: status and what it wrote to standard error.
fn refused(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let output = kvnode(arguments).envs(variables.iter().copied()).output().expect("kvnode starts");
    let text = String::from_utf8(output.stderr).expect("messages are text");
    assert_eq!(output.status.code(), Some(2), "{arguments:?} {variables:?}: {text}");
    assert!(output.stdout.is_empty());
    text
}

#[test]
fn bad_settings_end_with_status_2_and_one_line() {
    let me = ("SOCKET_ADDRESS", "127.0.0.1:8090");
    let table = [
        (vec![], "SOCKET_ADDRESS"),
        (vec![("SOCKET_ADDRESS", "")], "SOCKET_ADDRESS"),
        (vec![("SOCKET_ADDRESS", "127.0.0.1")], "SOCKET_ADDRESS"),
        (vec![me, ("VIEW", "127.0.0.1:8090,x")], "VIEW"),
        (vec![me, ("SHARD_COUNT", "0")], "SHARD_COUNT"),
        (vec![me, ("SHARD_COUNT", "-1")], "SHARD_COUNT"),
        (vec![me, ("SHARD_COUNT", "x")], "SHARD_COUNT"),
        (vec![me, ("SHARD_COUNT", "1180591620717411303424")], "SHARD_COUNT"),
        (vec![me, ("LISTEN_ADDRESS", "x")], "LISTEN_ADDRESS"),
        (vec![me, ("MAX_BODY", "much")], "MAX_BODY"),
        (vec![me, ("CAUSAL_WAIT", "1")], "CAUSAL_WAIT"),
        (vec![me, ("LOG_FORMAT", "xml")], "LOG_FORMAT"),
    ];
    for (variables, name) in table {
        let text = refused(&[], &variables);
        assert!(text.starts_with(name) && text.trim_end().lines().count() == 1, "{text}");
    }
    let too_few = "Not enough nodes to provide fault tolerance with requested shard count\n";
    assert_eq!(
        refused(&["--shard-count", "2"], &[me, ("VIEW", "127.0.0.1:8090,127.0.0.2:8090,127.0.0.3:8090")]),
        too_few
    );
    assert!(refused(&["--shard-count", "-1"], &[me]).starts_with("SHARD_COUNT"));
}

#[test]
fn a_taken_address_ends_with_status_2() {
    let taken = TcpListener::bind("127.7.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let text = refused(&["--socket-address", &address, "--listen-address", &address], &[]);
    assert!(text.starts_with("LISTEN_ADDRESS") && text.trim_end().lines().count() == 1, "{text}");
}

#[test]
fn settings_are_in_the_help() {
    let output = kvnode(&["--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for name in
        ["SOCKET_ADDRESS", "SHARD_COUNT", "MAX_BODY", "HEADER_TIMEOUT", "FSYNC", "default: 10s", "default: 1MiB"]
    {
        assert!(help.contains(name), "{name}");
    }
    assert!(output.status.success());
}

#[test]
fn empty_variables_are_missing_ones() {
    let address = free_address().to_string();
    let mut child = kvnode(&["--socket-address", &address, "--listen-address", &address, "--log-level", "error"])
        .envs([("VIEW", ""), ("SHARD_COUNT", ""), ("DATA_DIR", ""), ("CLUSTER_SECRET", ""), ("MAX_BODY", "")])
        .spawn()
        .unwrap();
    until("it listens", || std::net::TcpStream::connect(&address).is_ok());
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Waits for the node's end.
fn status_of(node: &mut Node) -> Option<i32> {
    let mut status = None;
    until("it has ended", || {
        status = node.child.try_wait().unwrap();
        status.is_some()
    });
    status.and_then(|status| status.code())
}

#[test]
fn a_signal_ends_a_quiet_node_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut node = Node::start(&[]);
        let mut idle = node.connect();
        idle.send(&request("GET", "/health", &[], ""));
        assert_eq!(idle.answer().status, 200);
        let begun = Instant::now();
        node.signal(signal);
        assert_eq!(status_of(&mut node), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
}

#[test]
fn clients_that_stall_do_not_keep_a_node_from_ending() {
    let mut node = Node::start(&[]);
    let mut half = node.connect();
    half.send("GET /hea");
    let mut stalled = node.connect();
    stalled.send("PUT /kvs/x HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\n\r\n{");
    // Accepted after the others: by then the node has seen them.
    assert_eq!(node.request("GET", "/ready", &[], "").status, 200);
    let begun = Instant::now();
    node.signal(Signal::TERM);
    assert_eq!(status_of(&mut node), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_stopping_node_says_so_and_finishes_what_it_has() {
    let mut node = Node::start(&[]);
    let body = r#"{"value":1}"#;
    let whole = request("PUT", "/kvs/x", &[], body);
    let mut in_flight = node.connect();
    in_flight.send(&whole[..whole.len() - 1]);
    // Another connection served after it: by then the node has seen the request's header.
    assert_eq!(node.request("GET", "/ready", &[], "").status, 200);
    let mut watcher = node.connect();
    node.signal(Signal::TERM);
    until("it is not ready", || {
        watcher.send(&request("GET", "/ready", &[], ""));
        watcher.answer().status == 503
    });
    let late = node.request("GET", "/kvs/x", &[], "");
    late.is_error(503);
    assert!(late.header("retry-after").is_some());
    in_flight.send(&whole[whole.len() - 1..]);
    assert_eq!(in_flight.answer().status, 201);
    let begun = Instant::now();
    assert_eq!(node.child.wait().unwrap().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut node = Node::start(&[]);
    let mut stalled = node.connect();
    stalled.send("PUT /kvs/x HTTP/1.1\r\nhost: test\r\ncontent-length: 9\r\n\r\n{");
    assert_eq!(node.request("GET", "/ready", &[], "").status, 200);
    node.signal(Signal::TERM);
    until("it is stopping", || node.request("GET", "/ready", &[], "").status == 503);
    let begun = Instant::now();
    node.signal(Signal::TERM);
    assert_eq!(node.child.wait().unwrap().code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(2) && begun.elapsed() < PATIENCE);
}
