//! At the bounds of memory, again and again: what is too much is refused with Retry-After, nothing piles up, and when the
//! pressure is gone all is served.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use crate::http::{Answer, Body, READ_TIMEOUT, exchange, request};
use crate::support::{Cluster, put_body, within};

/// Bounds far below what the clients here ask for, and none that the healthy cluster needs.
const BOUNDS: [(&str, &str); 6] = [
    ("MAX_PARKED", "16"),
    ("MAX_FORWARDS", "16"),
    ("MAX_PEER_QUEUE", "1MiB"),
    ("MAX_BODIES", "2MiB"),
    ("LOG_BYTES", "64KiB"),
    ("BODY_TIMEOUT", "60s"),
];
/// `MAX_BODIES`
const BODIES: usize = 2 << 20;
const CYCLES: usize = 6;
/// The nodes that are pressed, one a cycle: of each shard one.
const FRONTS: [usize; 2] = [0, 3];
/// The same in each cycle: what is stored does not grow.
const KEYS: usize = 100;
const VALUE: usize = 16 << 10;
/// Less than a value: when no more fits, no write fits either.
const SLOW: usize = VALUE / 2;
/// Writes of the healthy cluster in each cycle, by as many clients as there are nodes.
const FLOOD: usize = 1_200;
/// What allocators and buffers may take beyond the peak of the first half. A node that kept what passed through it in the second half
/// of the cycles would keep several times this.
const SLACK: u64 = 8 << 20;

fn put(c: &Cluster, node: usize, key: usize) -> Answer {
    let body = put_body(&format!("\"{}\"", "v".repeat(VALUE)), "");
    let path = format!("/kvs/key{key}");
    let bytes = request("PUT", path.as_bytes(), &[], Body::Plain(body.as_bytes()));
    exchange(c.address(node), &bytes, READ_TIMEOUT).unwrap_or_else(|error| panic!("PUT at node {node}: {error}"))
}

/// Whether the node refused because there is too much already; anything else has to be another answer of the contract.
fn too_much(answer: &Answer) -> bool {
    if answer.status == 503 && answer.header("retry-after").is_some() {
        assert!(!answer.clone().expect_error(503).is_empty());
        return true;
    }
    let fate = answer.status == 503 && answer.json()["outcome"] == "unknown";
    let nobody = answer.status == 503 && answer.text().contains("is reachable");
    assert!(fate || nobody || [200, 201].contains(&answer.status), "{answer}");
    false
}

/// All other nodes pause, and clients write all keys at once: more than may wait for copies or for other nodes.
fn press_by_waiting(c: &Cluster, front: usize) {
    let others: Vec<usize> = c.all().into_iter().filter(|node| *node != front).collect();
    others.iter().for_each(|node| c.signal(*node, "STOP"));
    let refused: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..KEYS).map(|key| scope.spawn(move || too_much(&put(c, front, key)))).collect();
        clients.into_iter().map(|client| usize::from(client.join().unwrap())).sum()
    });
    others.iter().for_each(|node| c.signal(*node, "CONT"));
    assert!(refused > 0, "{KEYS} writes at once, and none was too much");
    c.wait_ready(&c.all());
    c.wait_view(&c.all(), Duration::from_secs(10));
}

/// Clients send half a body and stop, until there is no room for another one.
fn press_by_slow_bodies(c: &Cluster, front: usize) {
    let head = format!("PUT /kvs/slow HTTP/1.1\r\nHost: kv\r\nContent-Length: {}\r\n\r\n", 2 * SLOW);
    let bytes = [head.as_bytes(), &[b'x'; SLOW]].concat();
    let mut held = Vec::new();
    let full = (0..4 * BODIES / SLOW).any(|_| {
        let mut stream = TcpStream::connect(c.address(front)).unwrap();
        stream.write_all(&bytes).unwrap();
        held.push(stream);
        held.len() >= BODIES / SLOW && too_much(&put(c, front, 0))
    });
    assert!(full, "{} bodies are under way, and there is room for another", held.len());
    drop(held);
    within(Duration::from_secs(10), "there is room again", || !too_much(&put(c, front, 0)));
}

/// The healthy cluster under load.
fn flood(c: &Cluster) {
    std::thread::scope(|scope| {
        for node in c.all() {
            scope.spawn(move || {
                for i in 0..FLOOD / 6 {
                    let answer = put(c, node, (i * 7 + node) % KEYS);
                    assert!([200, 201].contains(&answer.status), "{answer}");
                }
            });
        }
    });
}

/// Bytes of each node's memory that are resident.
fn resident(c: &Cluster) -> Vec<u64> {
    let of = |node| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", c.process(node))).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a running process");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    c.all().into_iter().map(of).collect()
}

#[test]
fn memory_levels_off_at_the_bounds_and_all_is_served_afterwards() {
    let c = Cluster::start(6, 2, &BOUNDS);
    let mut after = vec![resident(&c)];
    for cycle in 0..CYCLES {
        let front = FRONTS[cycle % FRONTS.len()];
        press_by_waiting(&c, front);
        press_by_slow_bodies(&c, front);
        flood(&c);
        after.push(resident(&c));
    }
    for node in c.all() {
        // What an allocator gives back, and when, goes up and down: peaks are compared.
        let course: Vec<u64> = after.iter().map(|resident| resident[node]).collect();
        let peak = |cycles: &[u64]| cycles.iter().copied().max().expect("some");
        let (first, second) = course.split_at(CYCLES / 2 + 1);
        let grows = peak(second) > peak(first) + SLACK;
        assert!(!grows, "node {node} grows on; bytes resident after each cycle: {course:?}");
    }

    let mut token = String::new();
    for key in 0..KEYS {
        let answer = c.put(key % 6, &format!("key{key}"), &key.to_string(), &token);
        token = answer.expect_result(200, "replaced").token();
    }
    for node in c.all() {
        for key in 0..KEYS {
            let answer = c.read(node, &format!("key{key}"), &token).expect_result(200, "found");
            assert_eq!(answer.json()["value"], key, "{answer}");
        }
        assert_eq!(c.key_count(node, "s1") + c.key_count(node, "s2"), KEYS as u64);
    }
}
