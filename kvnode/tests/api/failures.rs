//! Dead nodes: who notices, and what the rest of the cluster still does.

use std::time::{Duration, Instant};

use crate::http::Answer;
use crate::support::{Cluster, within};

const THREE_SECONDS: Duration = Duration::from_secs(3);

/// Twenty keys or so in each shard, and the context.
fn filled(c: &Cluster) -> (Vec<String>, String) {
    let keys: Vec<String> = (0..40).map(|i| format!("k{i}")).collect();
    let mut token = String::new();
    for (i, key) in keys.iter().enumerate() {
        token = c.put(i % c.all().len(), key, &i.to_string(), &token).expect(201).token();
    }
    (keys, token)
}

/// One request for each key, all at the same time, with how long each took.
fn at_once(keys: &[String], ask: impl Fn(usize, &str) -> Answer + Sync) -> Vec<(&str, Answer, Duration)> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = keys
            .iter()
            .enumerate()
            .map(|(i, key)| {
                let ask = &ask;
                scope.spawn(move || {
                    let start = Instant::now();
                    let answer = ask(i, key);
                    (key.as_str(), answer, start.elapsed())
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

#[test]
fn a_killed_node_leaves_the_view_and_comes_back() {
    let mut c = Cluster::six();
    c.wait_view(&c.all(), THREE_SECONDS);
    for node in [1, 5] {
        c.kill(&[node]);
        let left: Vec<usize> = c.all().into_iter().filter(|n| *n != node).collect();
        c.wait_view(&left, THREE_SECONDS);
        c.run(node, &[]);
        within(THREE_SECONDS, "back in the view", || left.iter().all(|n| c.view(*n).contains(&c.name(node))));
        c.wait_ready(&[node]);
        c.wait_view(&c.all(), THREE_SECONDS);
    }
}

#[test]
fn one_replica_alone_serves_reads_and_writes() {
    let mut c = Cluster::six();
    let (keys, mut token) = filled(&c);
    c.kill(&[0, 1]);
    let left = [2, 3, 4, 5];
    c.wait_view(&left, THREE_SECONDS);
    for (i, key) in keys.iter().enumerate() {
        let answer = c.read(left[i % 4], key, &token).expect_result(200, "found");
        assert_eq!(answer.json()["value"], i, "{answer}");
    }
    let mut alone = 0;
    for (i, key) in keys.iter().enumerate() {
        let answer = c.put(left[i % 4], key, "\"new\"", &token).expect_result(200, "replaced");
        alone += usize::from(answer.json()["replicas"] == 1);
        token = answer.token();
        let answer = c.read(left[(i + 1) % 4], key, &token).expect_result(200, "found");
        assert_eq!(answer.json()["value"], "new", "{answer}");
    }
    let expected = c.key_count(2, "s1");
    assert!(alone as u64 == expected, "{alone} answers with one replica, {expected} keys in the shard");
    c.run(0, &[]);
    c.run(1, &[]);
    c.wait_ready(&[0, 1]);
    for (i, key) in keys.iter().enumerate() {
        let answer = c.read(i % 2, key, &token).expect_result(200, "found");
        assert_eq!(answer.json()["value"], "new", "{answer}");
    }
}

#[test]
fn a_shard_without_replicas_is_named() {
    let mut c = Cluster::six();
    let (keys, token) = filled(&c);
    c.kill(&[0, 1, 2]);
    let check = |answers: Vec<(&str, Answer, Duration)>, served: &[u16]| {
        let mut refused = 0;
        for (key, answer, time) in answers {
            assert!(time < Duration::from_millis(2500), "{key} took {time:?}: {answer}");
            if answer.status == 503 {
                refused += 1;
                assert_eq!(answer.expect_error(503), "No replica of shard s1 is reachable", "{key}");
            } else {
                assert!(served.contains(&answer.status), "{key}: {answer}");
            }
        }
        assert!((10..=30).contains(&refused), "{refused} of 40 refused");
    };
    // At once, while nobody knows that they are dead; and when everybody does.
    check(at_once(&keys, |i, key| c.read(3 + i % 3, key, &token)), &[200]);
    c.wait_view(&[3, 4, 5], THREE_SECONDS);
    check(at_once(&keys, |i, key| c.read(3 + i % 3, key, &token)), &[200]);
    check(at_once(&keys, |i, key| c.read(3 + i % 3, key, "")), &[200]);
    check(at_once(&keys, |i, key| c.put(3 + i % 3, key, "1", &token)), &[200]);
    // A page that lacks a shard is none.
    let start = Instant::now();
    c.get(4, "/kvs").expect_error(503);
    assert!(start.elapsed() < Duration::from_millis(2500));
    for node in [3, 4, 5] {
        c.get(node, "/ready").expect(200);
    }
}

#[test]
fn a_killed_replica_does_not_make_reads_of_others_fail() {
    let mut c = Cluster::six();
    let (keys, token) = filled(&c);
    c.kill(&[2, 4]);
    let left = [0, 1, 3, 5];
    for (key, answer, _) in at_once(&keys, |i, key| c.read(left[i % 4], key, &token)) {
        assert_eq!(answer.status, 200, "{key}: {answer}");
    }
}
