//! Clients that stall, drip, flood or send nonsense: each is ended at its limit, and nobody else notices.

mod http_support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use http_support::{Client, Node, PATIENCE, request, until};
use kvnode_core::messages::{Batch, Message, encode};
use kvnode_types::ident::Incarnation;

const CHUNKED_PUT: &str = "PUT /kvs/x HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n";

/// Drips `piece` until the node has had enough. Returns without having read anything.
fn drip(client: &mut Client, piece: &str) {
    let begun = Instant::now();
    client.0.set_nonblocking(true).unwrap();
    let mut byte = [0];
    // Peeking tells an answer or an end from silence.
    while client.0.peek(&mut byte).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock) {
        assert!(begun.elapsed() < PATIENCE, "the node takes an endless request");
        client.try_send(piece);
        std::thread::sleep(Duration::from_millis(5));
    }
    client.0.set_nonblocking(false).unwrap();
}

#[test]
fn half_a_header_is_cut_off() {
    let node = Node::start(&["--header-timeout", "300ms"]);
    for start in ["", "GET /health HTTP/1.1\r\nhost: te"] {
        let mut client = node.connect();
        client.send(start);
        let waited = client.closed();
        assert!(waited >= Duration::from_millis(200) && waited < Duration::from_secs(10), "{start:?}: {waited:?}");
    }
    // Also if it keeps coming, a little at a time, and on a connection that has served before.
    let mut client = node.connect();
    client.send(&request("GET", "/health", &[], ""));
    assert_eq!(client.answer().status, 200);
    client.send("GET /health HTTP/1.1\r\nx: ");
    drip(&mut client, "y");
}

#[test]
fn an_idle_connection_lives_longer_than_half_a_header() {
    let node = Node::start(&["--header-timeout", "100ms", "--idle-timeout", "1s"]);
    let mut client = node.connect();
    client.send(&request("GET", "/health", &[], ""));
    assert_eq!(client.answer().status, 200);
    let waited = client.closed();
    assert!(waited >= Duration::from_millis(800) && waited < Duration::from_secs(15), "{waited:?}");
}

#[test]
fn a_stalled_body_gets_408() {
    let node = Node::start(&["--body-timeout", "200ms"]);
    for start in ["PUT /kvs/x HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n{\"val", CHUNKED_PUT] {
        let mut client = node.connect();
        client.send(start);
        let answer = client.answer();
        answer.is_error(408);
        assert_eq!(answer.header("connection"), Some("close"));
        client.closed();
    }
}

#[test]
fn a_dripping_body_gets_408() {
    let node = Node::start(&["--body-timeout", "10s", "--body-total-timeout", "300ms"]);
    let mut client = node.connect();
    client.send(CHUNKED_PUT);
    drip(&mut client, "1\r\nx\r\n");
    client.answer().is_error(408);
}

#[test]
fn large_bodies_get_413() {
    let node = Node::start(&["--max-body", "4KiB"]);
    // More than the kernel's buffers take, all of it sent before the client reads: neither that nor the answer may fail.
    let large = "x".repeat(32 << 20);
    let mut client = node.connect();
    client.send(&request("PUT", "/kvs/x", &[], &large));
    client.answer().is_error(413);

    let mut client = node.connect();
    client.send(CHUNKED_PUT);
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    drip(&mut client, &chunk);
    client.answer().is_error(413);
    client.closed();

    // Nobody asks for a body that will be refused.
    let mut client = node.connect();
    client.send("PUT /kvs/x HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 1000000\r\n\r\n");
    client.answer().is_error(413);

    let value = "y".repeat(4000);
    let fits = node.request("PUT", "/kvs/x", &[], &format!(r#"{{"value":"{value}"}}"#));
    assert_eq!(fits.status, 201, "{fits:?}");
    assert_eq!(node.request("GET", "/kvs/x", &[], "").json()["value"], value);
}

/// A connection that has become a stream of batches.
fn stream(node: &Node) -> Client {
    let protocol = format!("kvnode-peer/{}", kvnode_core::messages::PROTOCOL_VERSION);
    let mut client = node.connect();
    client.send(&request("GET", "/peer", &[("connection", "upgrade"), ("upgrade", &protocol)], ""));
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("upgrade")), (101, Some(&protocol[..])), "{answer:?}");
    client
}

/// A length, and nothing behind it yet.
fn begin_frame(client: &mut Client, length: u32) {
    client.0.write_all(&length.to_le_bytes()).expect("the node takes it");
}

#[test]
fn batches_of_nodes_have_bounds_of_their_own() {
    let node = Node::start(&["--max-body", "4KiB", "--max-peer-body", "2052KiB", "--body-timeout", "300ms"]);
    let mut large = stream(&node);
    begin_frame(&mut large, 3 << 20);
    assert!(large.closed() < Duration::from_secs(5), "it is too large");
    // A frame that fits is waited for, but not for ever.
    let mut stalled = stream(&node);
    begin_frame(&mut stalled, 1 << 20);
    assert!(stalled.closed() >= Duration::from_millis(290));
    // Nothing of this harms anybody else.
    assert_eq!(node.request("PUT", "/kvs/x", &[], r#"{"value":1}"#).status, 201);
}

/// A node with a second one in its view, which is this test.
fn node_with_a_peer(arguments: &[&str]) -> (Node, String) {
    let other = http_support::free_address().to_string();
    let node = Node::start(&[arguments, &["--view", &other, "--form-without", &other]].concat());
    (node, other)
}

/// A frame: a batch of another node, with about so many bytes that mean nothing.
fn frame(from: &str, bytes: usize) -> Vec<u8> {
    let batch = Batch {
        cluster: None,
        version: Default::default(),
        from: from.parse().expect("an address"),
        life: Incarnation(1),
        to_life: None,
        sent_ms: 1,
        echo_ms: 0,
        messages: vec![Message::Raft { generation: 0, bytes: vec![0; bytes] }],
    };
    let batch = encode(&batch);
    [&u32::try_from(batch.len()).expect("it is small").to_le_bytes()[..], &batch].concat()
}

/// Sends a frame; whether it is answered.
fn is_answered(stream: &mut Client, frame: &[u8]) -> bool {
    let mut length = [0; 4];
    let answered = stream.0.write_all(frame).and_then(|()| stream.0.read_exact(&mut length));
    let mut answer = vec![0; u32::from_le_bytes(length) as usize];
    answered.and_then(|()| stream.0.read_exact(&mut answer)).is_ok()
}

/// A length alone takes nothing, and what strangers send takes nothing of what is a node's.
#[test]
fn strangers_leave_nodes_their_room() {
    let (node, other) = node_with_a_peer(&["--max-peer-body", "4MiB"]);
    let mut of_a_node = stream(&node);
    assert!(is_answered(&mut of_a_node, &frame(&other, 10)));
    let mut announced: Vec<Client> = (0..24).map(|_| stream(&node)).collect();
    announced.iter_mut().for_each(|client| begin_frame(client, 4 << 20));
    let mut begun: Vec<Client> = (0..24).map(|_| stream(&node)).collect();
    for client in &mut begun {
        begin_frame(client, 4 << 20);
        // Most of them are closed at once: there is no room.
        let _ = client.0.write_all(&vec![0; 3 << 20]);
    }
    assert!(is_answered(&mut of_a_node, &frame(&other, 3 << 20)), "a node's batch is taken");
    // Also a node that has not spoken yet, while strangers only announce.
    drop(begun);
    until("a node that opens another stream is heard", || is_answered(&mut stream(&node), &frame(&other, 2 << 20)));
}

#[test]
fn a_frame_that_drips_is_ended() {
    let node = Node::start(&[]);
    let mut client = stream(&node);
    begin_frame(&mut client, 1 << 20);
    let begun = Instant::now();
    drip(&mut client, "x");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// What a node sends has a bound, and so has what it sends on several streams.
#[test]
fn each_node_has_its_share() {
    let (node, other) = node_with_a_peer(&["--max-body", "4KiB", "--max-peer-body", "2052KiB"]);
    let named = || {
        let mut client = stream(&node);
        assert!(is_answered(&mut client, &frame(&other, 10)));
        client
    };
    let most = frame(&other, 2_000_000);
    let (begins, ends) = most.split_at(most.len() - 1);
    let is_refused = |client: &mut Client| {
        client.0.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let silent = client.0.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        client.0.set_read_timeout(Some(PATIENCE)).unwrap();
        !silent
    };
    // Either of them may come first.
    let (mut one, mut other_one) = (named(), named());
    let _ = (one.0.write_all(begins), other_one.0.write_all(begins));
    let mut refused = [false; 2];
    until("there is no room for a second", || {
        refused = [is_refused(&mut one), is_refused(&mut other_one)];
        refused != [false; 2]
    });
    assert!(refused != [true; 2], "there is room for one");
    assert!(is_answered(if refused[0] { &mut other_one } else { &mut one }, ends));
    assert!(is_answered(&mut named(), &most), "there is room again");
}

/// A node whose link breaks again and again opens a new stream each time; the old ones go before their silence is noticed.
#[test]
fn the_newest_streams_of_a_node_count() {
    let (node, other) = node_with_a_peer(&[]);
    let mut streams: Vec<Client> = (0..6).map(|_| stream(&node)).collect();
    for client in &mut streams {
        assert!(is_answered(client, &frame(&other, 10)));
    }
    assert!(streams[0].closed() < Duration::from_secs(10));
    assert!(streams[1].closed() < Duration::from_secs(10));
    for client in &mut streams[2..] {
        assert!(is_answered(client, &frame(&other, 10)));
    }
}

#[test]
fn only_nodes_get_a_stream() {
    let node = Node::start(&["--cluster-secret", "s"]);
    let refused = node.request("GET", "/peer", &[], "");
    refused.is_error(426);
    let protocol = refused.header("upgrade").expect("it says what it speaks").to_owned();
    for (upgrade, status) in [("websocket", 426), ("kvnode-peer/1", 426), (&protocol[..], 403)] {
        let answer = node.request("GET", "/peer", &[("connection", "upgrade"), ("upgrade", upgrade)], "");
        answer.is_error(status);
    }
}

#[test]
fn a_stream_ends_when_the_node_stops() {
    let mut node = Node::start(&[]);
    let mut idle = stream(&node);
    node.signal(rustix::process::Signal::TERM);
    idle.closed();
    assert!(node.child.wait().expect("it ends").success());
}

#[test]
fn an_idle_stream_ends() {
    let node = Node::start(&["--idle-timeout", "300ms"]);
    let waited = stream(&node).closed();
    assert!(waited >= Duration::from_millis(290) && waited < Duration::from_secs(15), "{waited:?}");
}

#[test]
fn all_bodies_together_are_bounded() {
    let node = Node::start(&["--max-bodies", "1KiB"]);
    let mut holder = node.connect();
    holder.send(&format!("PUT /kvs/x HTTP/1.1\r\nhost: test\r\ncontent-length: 2000\r\n\r\n{}", "x".repeat(900)));
    let body = format!(r#"{{"value":"{}"}}"#, "y".repeat(400));
    until("there is no room", || {
        let answer = node.request("PUT", "/kvs/y", &[], &body);
        answer.status == 503 && answer.header("retry-after").is_some()
    });
    drop(holder);
    until("there is room again", || node.request("PUT", "/kvs/y", &[], &body).status < 300);
}

#[test]
fn answers_that_nobody_takes_are_bounded() {
    let node = Node::start(&["--max-bodies", "1500KiB"]);
    let body = format!(r#"{{"value":"{}"}}"#, "y".repeat(1_000_000));
    assert_eq!(node.request("PUT", "/kvs/large", &[], &body).status, 201);
    let mut holder = node.connect();
    // More than the kernel's buffers take: one answer stays with the node.
    holder.send(&request("GET", "/kvs/large", &[], "").repeat(50));
    until("there is no room", || node.request("GET", "/kvs/large", &[], "").status == 503);
    assert_eq!(node.request("PUT", "/kvs/small", &[], r#"{"value":1}"#).status, 201);
    drop(holder);
    until("there is room again", || node.request("GET", "/kvs/large", &[], "").status == 200);
}

#[test]
fn large_headers_get_431() {
    let node = Node::start(&["--max-headers", "20", "--max-header-bytes", "8KiB"]);
    let names: Vec<String> = (0..30).map(|n| format!("x-{n}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
    let long = "y".repeat(20_000);
    for headers in [&many[..], &[("x", &long)]] {
        let mut client = node.connect();
        client.try_send(&request("GET", "/health", headers, ""));
        client.answer().is_error(431);
        client.closed();
    }
    assert_eq!(node.request("GET", "/health", &many[..10], "").status, 200);
}

#[test]
fn nonsense_gets_400() {
    let node = Node::start(&[]);
    for text in
        ["nonsense\r\n\r\n", "\x16\x03\x01\x02\r\n\r\n", "GET /kvs/a<b HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nx\r\n\r\n"]
    {
        let mut client = node.connect();
        client.send(text);
        client.answer().is_error(400);
        client.closed();
    }
    let mut client = node.connect();
    client.send(&format!("{CHUNKED_PUT}zz\r\n"));
    client.answer().is_error(400);
    client.closed();
}

#[test]
fn requests_sent_ahead_are_answered_in_order() {
    let node = Node::start(&[]);
    let mut client = node.connect();
    let three = request("PUT", "/kvs/a", &[], r#"{"value":1}"#) + &request("GET", "/kvs/a", &[], "") + "GET /view HT";
    client.send(&three);
    assert_eq!((client.answer().status, client.answer().status), (201, 200));
    client.send("TP/1.1\r\n\r\n");
    assert_eq!(client.answer().status, 200);
}

#[test]
fn a_client_that_takes_no_answers_is_cut_off() {
    let node = Node::start(&["--write-timeout", "300ms"]);
    let body = format!(r#"{{"value":"{}"}}"#, "y".repeat(1_000_000));
    assert_eq!(node.request("PUT", "/kvs/large", &[], &body).status, 201);
    let mut client = node.connect();
    client.0.set_write_timeout(Some(PATIENCE)).unwrap();
    let get = request("GET", "/kvs/large", &[], "");
    until("the node has had enough", || !client.try_send(&get));
}

#[test]
fn connections_beyond_the_bound_are_told() {
    let node = Node::start(&["--max-connections", "5"]);
    until("the connections of the start are gone", || node.request("GET", "/health", &[], "").status == 200);
    let mut held: Vec<Client> = Vec::new();
    until("five are held", || {
        let mut client = node.connect();
        client.send(&request("GET", "/health", &[], ""));
        let admitted = client.answer().status == 200;
        if admitted {
            held.push(client);
        }
        held.len() == 5
    });
    let mut client = node.connect();
    client.try_send(&request("GET", "/health", &[], ""));
    let answer = client.answer();
    answer.is_error(503);
    assert!(answer.header("retry-after").is_some());
    client.closed();
    // Another node finds a place, and for that alone.
    drop(stream(&node));
    let mut client = node.connect();
    client.send(&request("GET", "/peer", &[], ""));
    client.answer().is_error(426);
    client.closed();
    held.pop();
    until("a place is free", || node.request("GET", "/health", &[], "").status == 200);
}

#[test]
fn a_thousand_stalled_connections_leave_others_untouched() {
    let node = Node::start(&["--header-timeout", "60s", "--body-timeout", "60s"]);
    let starts = [
        "",
        "GET /health HTTP/1.1\r\nhost: te",
        "PUT /kvs/x HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n{\"val",
        CHUNKED_PUT,
    ];
    let mut stalled: Vec<Client> = (0..1000).map(|_| node.connect()).collect();
    for (number, client) in stalled.iter_mut().enumerate() {
        client.send(starts[number % starts.len()]);
    }
    for number in 0..50 {
        let begun = Instant::now();
        let body = format!(r#"{{"value":{number}}}"#);
        let put = node.request("PUT", "/kvs/other", &[], &body);
        assert!(put.status < 300, "{put:?}");
        assert_eq!(node.request("GET", "/kvs/other", &[], "").json()["value"], number);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
    for client in &mut stalled {
        client.0.set_nonblocking(true).unwrap();
        let silent = client.0.peek(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
        assert!(silent, "a connection was closed early");
    }
}
