//! Lists, views, shards and operations.

use std::time::Duration;

use serde_json::json;

use crate::support::{Cluster, strings, within};

/// All pages of a list.
#[track_caller]
fn list(c: &Cluster, node: usize, query: &str, limit: usize, token: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/kvs?limit={limit}{query}{cursor}");
        let answer = c.send(node, "GET", &path, &json!({ "causal-metadata": token }).to_string()).expect(200);
        answer.token();
        let page = strings(&answer.json()["keys"]);
        assert!(page.len() <= limit, "{} keys on a page of {limit}", page.len());
        keys.extend(page);
        match &answer.json()["cursor"] {
            serde_json::Value::Null => return keys,
            next => {
                let next = next.as_str().unwrap_or_else(|| panic!("the cursor is no string: {answer}"));
                cursor = format!("&cursor={next}");
            }
        }
    }
}

#[test]
fn keys_are_listed_in_order_through_every_node() {
    let c = Cluster::start(4, 2, &[]);
    let mut keys: Vec<String> = (0..60).map(|i| format!("k{i}")).collect();
    keys.extend(["a/b", "a/c", "Z", "ž", "🐎", "k", "%"].map(str::to_owned));
    let mut token = String::new();
    for (i, key) in keys.iter().enumerate() {
        let encoded: String = key.bytes().map(|b| format!("%{b:02X}")).collect();
        token = c.put(i % 4, &encoded, "1", &token).expect(201).token();
    }
    let gone = json!({ "causal-metadata": token }).to_string();
    token = c.send(1, "DELETE", "/kvs/k30", &gone).expect(200).token();
    keys.retain(|k| k != "k30");
    keys.sort();
    for node in c.all() {
        for limit in [1, 7, 1000] {
            assert_eq!(list(&c, node, "", limit, &token), keys, "node {node}, limit {limit}");
        }
        let some: Vec<&String> = keys.iter().filter(|k| k.starts_with("k1")).collect();
        for limit in [1, 3, 11, 100] {
            assert_eq!(list(&c, node, "&prefix=k1", limit, &token).iter().collect::<Vec<_>>(), some);
        }
        assert_eq!(list(&c, node, "&prefix=a%2F", 10, &token), ["a/b", "a/c"]);
        assert_eq!(list(&c, node, "&prefix=%C5%BE", 10, &token), ["ž"]);
        assert!(list(&c, node, "&prefix=none", 10, &token).is_empty());
    }
    let all = strings(&c.send(2, "GET", "/kvs", &json!({ "causal-metadata": token }).to_string()).json()["keys"]);
    assert_eq!(all, keys);
    for bad in ["limit=x", "limit=-1", "limit=1180591620717411303424", "limit=1.5", "cursor=%2A%2A", "prefix=%FF"] {
        c.get(0, &format!("/kvs?{bad}")).expect_error(400);
    }
    assert!(c.get(0, "/kvs?limit=0").status < 500);
}

#[test]
fn a_cursor_may_be_percent_encoded() {
    let c = Cluster::start(1, 1, &[]);
    for key in ["a", "b"] {
        c.put(0, key, "1", "").expect(201);
    }
    let answer = c.get(0, "/kvs?limit=1").expect(200).json();
    let encoded: String = answer["cursor"].as_str().unwrap().bytes().map(|b| format!("%{b:02X}")).collect();
    let answer = c.get(0, &format!("/kvs?limit=1&cursor={encoded}")).expect(200);
    assert_eq!(answer.json()["keys"], json!(["b"]));
}

#[test]
fn views_and_shards_are_the_same_everywhere() {
    let c = Cluster::six();
    let names: Vec<String> = c.all().into_iter().map(|n| c.name(n)).collect();
    c.wait_view(&c.all(), Duration::from_secs(3));
    for node in c.all() {
        assert_eq!(c.get(node, "/shard/ids").expect(200).json(), json!({ "shard-ids": ["s1", "s2"] }));
        let own = if node < 3 { "s1" } else { "s2" };
        assert_eq!(c.get(node, "/shard/node-shard-id").expect(200).json()["node-shard-id"], own);
        for (shard, members) in [("s1", &names[..3]), ("s2", &names[3..])] {
            let answer = c.get(node, &format!("/shard/members/{shard}")).expect(200);
            assert_eq!(strings(&answer.json()["shard-members"]), members, "{answer}");
            assert_eq!(c.key_count(node, shard), 0);
        }
        for unknown in ["s3", "S1", "1", "%20", "s1%2F"] {
            for what in ["members", "key-count"] {
                let answer = c.get(node, &format!("/shard/{what}/{unknown}"));
                assert_eq!(answer.expect_error(404), "Shard ID not found");
            }
        }
    }
}

#[test]
fn uneven_views_are_split_into_contiguous_blocks() {
    let c = Cluster::start(5, 2, &[]);
    let members = |shard: &str| {
        let answer = c.get(4, &format!("/shard/members/{shard}")).expect(200);
        strings(&answer.json()["shard-members"])
    };
    let all: Vec<String> = c.all().into_iter().map(|n| c.name(n)).collect();
    let (one, two) = (members("s1"), members("s2"));
    assert_eq!(one.len().abs_diff(two.len()), 1, "{one:?} {two:?}");
    assert_eq!([one, two].concat(), all);
}

#[test]
fn key_counts_are_of_live_keys() {
    let c = Cluster::start(4, 2, &[]);
    let mut token = String::new();
    for i in 0..20 {
        token = c.put(i % 4, &format!("k{i}"), "1", &token).expect(201).token();
    }
    token = c.put(0, "k3", "2", &token).expect(200).token();
    for i in 0..5 {
        let body = json!({ "causal-metadata": token }).to_string();
        token = c.send(i % 4, "DELETE", &format!("/kvs/k{i}"), &body).expect(200).token();
    }
    within(Duration::from_secs(5), "15 keys from every node", || {
        let counts = |node| (c.key_count(node, "s1"), c.key_count(node, "s2"));
        let first = counts(0);
        first.0 + first.1 == 15 && c.all().into_iter().all(|n| counts(n) == first)
    });
}

#[test]
fn operations_answer() {
    let c = Cluster::start(2, 1, &[]);
    for node in c.all() {
        c.get(node, "/health").expect(200).json();
        c.get(node, "/ready").expect(200).json();
        let status = c.get(node, "/status").expect(200).json();
        assert!(status["epoch"].is_u64(), "{status}");
        assert!(status["shards"].is_array() || status["shards"].is_object(), "{status}");
        assert!(status["keys"].is_u64(), "{status}");
        for name in [c.name(0), c.name(1)] {
            assert!(status.to_string().contains(&name), "{name} is not in {status}");
        }
        let metrics = c.get(node, "/metrics").expect(200);
        assert!(metrics.header("content-type").is_some_and(|t| t.starts_with("text/plain")), "{metrics}");
        for line in metrics.text().lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
            let value = line.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok(), "no sample: {line}");
        }
    }
}
