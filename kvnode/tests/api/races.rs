//! Several clients at once, and replicas that lag.

use std::time::Duration;

use serde_json::json;

use crate::chains::retried;
use crate::http::Body;
use crate::support::{Cluster, put_body, within};

#[test]
fn a_replica_that_lags_never_answers_from_the_past() {
    let c = Cluster::start(3, 1, &[("CAUSAL_WAIT", "300ms")]);
    let old = c.put(0, "k", "\"old\"", "").expect(201).token();
    c.read(2, "k", &old).expect_result(200, "found");
    c.signal(2, "STOP");
    c.wait_view(&[0, 1], Duration::from_secs(3));
    // More than the buffers of a connection hold: what is missing at node 2 stays missing.
    let filler = format!("\"{}\"", "x".repeat(900_000));
    let mut new = old.clone();
    for i in 0..16 {
        new = c.put(i % 2, &format!("filler{i}"), &filler, &new).expect(201).token();
    }
    new = c.put(0, "k", "\"new\"", &new).expect(200).token();
    c.signal(0, "STOP");
    c.signal(1, "STOP");
    c.signal(2, "CONT");

    let send = |header: &str, body: &str| {
        let body = json!({ "causal-metadata": body }).to_string();
        c.try_send(2, "GET", "/kvs/k", &[("X-Causal-Metadata", header)], Body::Plain(body.as_bytes())).unwrap()
    };
    let unsatisfied = "Causal dependencies not satisfied; try again later";
    for (header, body) in [("", &*new), (&*new, ""), (&*new, &*old), (&*old, &*new), (&*new, &*new)] {
        let answer = send(header, body);
        assert_eq!(answer.clone().expect_error(503), unsatisfied);
        // It says what is missing and who has it.
        assert!(answer.text().contains(&c.name(0)), "{answer}");
    }
    assert_eq!(c.put(2, "k", "1", &new).expect_error(503), unsatisfied);
    let body = json!({ "causal-metadata": new }).to_string();
    assert_eq!(c.send(2, "DELETE", "/kvs/k", &body).expect_error(503), unsatisfied);
    assert_eq!(send(&old, &old).expect_result(200, "found").json()["value"], "old");

    c.signal(0, "CONT");
    c.signal(1, "CONT");
    within(Duration::from_secs(10), "node 2 catches up", || send(&new, &old).status == 200);
    assert_eq!(send(&new, &old).expect_result(200, "found").json()["value"], "new");
}

#[test]
fn concurrent_writes_end_in_one_value_everywhere() {
    let c = Cluster::six();
    std::thread::scope(|scope| {
        for client in 0..6 {
            let c = &c;
            scope.spawn(move || {
                let mut token = String::new();
                for round in 0..20 {
                    for key in ["a", "b", "c", "d"] {
                        let path = format!("/kvs/{key}");
                        let body = json!({ "value": [client, round], "causal-metadata": token }).to_string();
                        let method = if (client + round) % 5 == 0 { "DELETE" } else { "PUT" };
                        let answer = c.send((client + round) % 6, method, &path, &body);
                        assert!([200, 201, 404].contains(&answer.status), "{method}: {answer}");
                        token = answer.token();
                    }
                }
            });
        }
    });
    within(Duration::from_secs(5), "one state everywhere", || {
        let state = |node: usize| {
            let values = ["a", "b", "c", "d"].map(|k| c.get(node, &format!("/kvs/{k}")).json()["value"].clone());
            (values, c.key_count(node, "s1") + c.key_count(node, "s2"))
        };
        let first = state(0);
        first.1 == first.0.iter().filter(|v| v.is_array()).count() as u64
            && c.all().into_iter().all(|n| state(n) == first)
    });
}

#[test]
fn a_deleted_key_stays_deleted() {
    let mut c = Cluster::six();
    let mut token = String::new();
    for i in 0..20 {
        token = c.put(i % 6, &format!("k{i}"), "1", &token).expect(201).token();
    }
    c.signal(1, "STOP");
    c.kill(&[4]);
    c.wait_view(&[0, 2, 3, 5], Duration::from_secs(3));
    for i in 0..20 {
        let body = json!({ "causal-metadata": token }).to_string();
        let node = [0, 2, 3, 5][i % 4];
        token = c.send(node, "DELETE", &format!("/kvs/k{i}"), &body).expect_result(200, "deleted").token();
    }
    c.signal(1, "CONT");
    c.run(4, &[]);
    c.wait_ready(&c.all());
    for i in 0..20 {
        for node in c.all() {
            assert_eq!(c.read(node, &format!("k{i}"), &token).expect_error(404), "Key does not exist");
        }
    }
    within(Duration::from_secs(5), "nothing left anywhere", || {
        c.all().into_iter().all(|n| c.key_count(n, "s1") + c.key_count(n, "s2") == 0)
    });
}

#[test]
fn clients_go_on_while_nodes_die_and_return() {
    let mut c = Cluster::six();
    let mut token = vec![String::new(); 4];
    let mut written = 0;
    for (round, dead) in [None, Some(0), Some(4), Some(2), Some(3)].into_iter().enumerate() {
        if let Some(dead) = dead {
            c.kill(&[dead]);
        }
        std::thread::scope(|scope| {
            for (client, token) in token.iter_mut().enumerate() {
                let c = &c;
                scope.spawn(move || {
                    let alive: Vec<usize> = c.all().into_iter().filter(|n| Some(*n) != dead).collect();
                    for i in 0..40 {
                        let path = format!("/kvs/c{client}-{}", round * 40 + i);
                        let body = put_body(&i.to_string(), token);
                        let answer = retried(c, &alive, client + i, "PUT", &path, &body);
                        assert!([200, 201].contains(&answer.status), "round {round}, {path}: {answer}");
                        *token = answer.token();
                        let body = json!({ "causal-metadata": token }).to_string();
                        let answer = retried(c, &alive, client + i + 3, "GET", &path, &body);
                        assert_eq!(answer.expect_result(200, "found").json()["value"], i, "round {round}, {path}");
                    }
                });
            }
        });
        written += 40;
        if let Some(dead) = dead {
            c.run(dead, &[]);
            c.wait_ready(&[dead]);
        }
    }
    c.wait_view(&c.all(), Duration::from_secs(3));
    for (client, token) in token.iter().enumerate() {
        for i in 0..written {
            c.read(i % 6, &format!("c{client}-{i}"), token).expect_result(200, "found");
        }
    }
}
