//! Causal chains through all nodes, also while nodes die, pause or stop.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::http::{Answer, Body};
use crate::support::{Cluster, put_body, within};

const KEYS: usize = 600;

/// Sends through a node, and through the next ones as long as it is dead or does not know what became of the write.
#[track_caller]
pub fn retried(c: &Cluster, nodes: &[usize], first: usize, method: &str, path: &str, body: &str) -> Answer {
    let mut last = String::new();
    for i in 0..nodes.len() {
        let node = nodes[(first + i) % nodes.len()];
        match c.try_send(node, method, path, &[], Body::Plain(body.as_bytes())) {
            Ok(answer) if answer.status == 503 && answer.json()["outcome"] == "unknown" => last = answer.to_string(),
            Ok(answer) => return answer,
            Err(error) => last = error.to_string(),
        }
    }
    panic!("no node answers {method} {path}: {last}");
}

#[track_caller]
fn fair_and_equal_counts(c: &Cluster, nodes: &[usize], keys: usize) {
    within(Duration::from_secs(5), "equal key counts that add up", || {
        let counts = |node: &usize| [c.key_count(*node, "s1"), c.key_count(*node, "s2")];
        let first = counts(&nodes[0]);
        first.iter().sum::<u64>() == keys as u64 && nodes.iter().all(|n| counts(n) == first)
    });
    let fair = keys as f64 / 2.0;
    for shard in ["s1", "s2"] {
        let count = c.key_count(nodes[0], shard) as f64;
        assert!((count - fair).abs() <= fair / 4.0, "{shard} has {count} keys of {keys}");
    }
}

#[test]
fn a_chain_through_six_nodes_loses_nothing() {
    let c = Cluster::six();
    let mut token = String::new();
    for i in 0..KEYS {
        token = c.put(i % 6, &format!("key{i}"), &i.to_string(), &token).expect_result(201, "created").token();
        // What was just written is there at once, for whoever knows of it.
        let answer = c.read((i + 3) % 6, &format!("key{i}"), &token).expect_result(200, "found");
        assert_eq!(answer.json()["value"], i, "{answer}");
    }
    for i in 0..KEYS {
        let answer = c.read((i + 4) % 6, &format!("key{i}"), &token).expect_result(200, "found");
        assert_eq!(answer.json()["value"], i, "{answer}");
        token = answer.token();
    }
    fair_and_equal_counts(&c, &c.all(), KEYS);
}

#[test]
fn a_chain_survives_a_node_killed_half_way() {
    let mut c = Cluster::six();
    let mut token = String::new();
    for i in 0..KEYS {
        if i == KEYS / 2 {
            c.kill(&[1]);
        }
        let nodes = c.all();
        let body = put_body(&i.to_string(), &token);
        let answer = retried(&c, &nodes, i, "PUT", &format!("/kvs/key{i}"), &body);
        assert!([200, 201].contains(&answer.status), "key {i}: {answer}");
        token = answer.token();
    }
    let left = [0, 2, 3, 4, 5];
    for i in 0..KEYS {
        let body = json!({ "causal-metadata": token }).to_string();
        let answer = retried(&c, &left, i + 2, "GET", &format!("/kvs/key{i}"), &body).expect_result(200, "found");
        assert_eq!(answer.json()["value"], i, "{answer}");
    }
    fair_and_equal_counts(&c, &left, KEYS);
}

#[test]
fn a_context_holds_across_shards_and_behind_a_pause() {
    let c = Cluster::six();
    let keys: Vec<String> = (0..20).map(|i| format!("k{i}")).collect();
    let mut token = String::new();
    for key in &keys {
        token = c.put(1, key, "0", &token).expect(201).token();
    }
    for (round, (paused, through)) in [(0, 1), (4, 2), (2, 5)].into_iter().enumerate() {
        c.signal(paused, "STOP");
        let awake: Vec<usize> = c.all().into_iter().filter(|n| *n != paused).collect();
        for key in &keys {
            let body = put_body(&(round + 1).to_string(), &token);
            let answer = retried(&c, &awake, through, "PUT", &format!("/kvs/{key}"), &body);
            token = answer.expect_result(200, "replaced").token();
        }
        c.signal(paused, "CONT");
        // The node that slept must not answer from what it knew before.
        for key in keys.iter().rev() {
            let answer = c.read(paused, key, &token).expect_result(200, "found");
            assert_eq!(answer.json()["value"], round + 1, "{key} at node {paused}: {answer}");
        }
    }
}

#[test]
fn a_paused_replica_does_not_make_reads_of_others_fail() {
    let c = Cluster::six();
    let mut token = String::new();
    for i in 0..40 {
        token = c.put(i % 6, &format!("k{i}"), &i.to_string(), &token).expect(201).token();
    }
    c.signal(0, "STOP");
    c.signal(3, "STOP");
    std::thread::scope(|scope| {
        for node in [1, 2, 4, 5] {
            let (c, token) = (&c, &token);
            scope.spawn(move || {
                for i in 0..40 {
                    let answer = c.read(node, &format!("k{i}"), token).expect_result(200, "found");
                    assert_eq!(answer.json()["value"], i, "{answer}");
                }
            });
        }
    });
    c.signal(0, "CONT");
    c.signal(3, "CONT");
    c.wait_view(&c.all(), Duration::from_secs(3));
}

#[test]
fn a_stopped_node_in_memory_loses_nothing_that_it_acknowledged() {
    let mut c = Cluster::start(3, 1, &[]);
    let stop = AtomicBool::new(false);
    let written = AtomicUsize::new(0);
    let mut acknowledged: Vec<(String, String)> = Vec::new();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (c, stop, written) = (&c, &stop, &written);
                scope.spawn(move || {
                    let mut done = Vec::new();
                    for i in 0..20_000 {
                        let key = format!("w{writer}-{i}");
                        let body = put_body("1", "");
                        let body = Body::Plain(body.as_bytes());
                        match c.try_send(0, "PUT", &format!("/kvs/{key}"), &[], body) {
                            Ok(answer) if answer.status == 201 => done.push((key, answer.token())),
                            // Nothing else is acknowledged; and nothing else may happen before the signal.
                            other if stop.load(Ordering::SeqCst) => drop(other),
                            other => panic!("before the signal: {other:?}"),
                        }
                        if stop.load(Ordering::SeqCst)
                            && done.last().is_none_or(|(last, _)| !last.ends_with(&format!("-{i}")))
                        {
                            break;
                        }
                        written.fetch_add(1, Ordering::SeqCst);
                    }
                    done
                })
            })
            .collect();
        within(Duration::from_secs(10), "200 writes", || written.load(Ordering::SeqCst) >= 200);
        stop.store(true, Ordering::SeqCst);
        c.signal(0, "TERM");
        for writer in writers {
            acknowledged.extend(writer.join().unwrap());
        }
    });
    let status = c.wait_end(0, Duration::from_secs(10)).expect("it ends within 10 s");
    assert_eq!(status.code(), Some(0));
    for (i, (key, token)) in acknowledged.iter().enumerate() {
        c.read(1 + i % 2, key, token).expect_result(200, "found");
    }
    assert!(acknowledged.len() >= 200);
}

#[test]
fn a_stopped_cluster_ends_cleanly() {
    let mut c = Cluster::six();
    for node in c.all() {
        c.signal(node, "TERM");
    }
    for node in c.all() {
        let status = c.wait_end(node, Duration::from_secs(10)).expect("it ends within 10 s");
        assert_eq!(status.code(), Some(0), "node {node}");
    }
}
