//! Changes of who is in the view, in which shard, and of how many shards there are.

use std::time::Duration;

use serde_json::{Value, json};

use crate::http::{Answer, Body};
use crate::support::{Cluster, block, poll, strings, within};

pub const THREE_SECONDS: Duration = Duration::from_secs(3);
const NOT_ENOUGH: &str = "Not enough nodes to provide fault tolerance with requested shard count";

/// Numbered keys, spread over all nodes, and the context of the last write.
#[track_caller]
pub fn fill(c: &Cluster, nodes: &[usize], keys: usize) -> String {
    let mut token = String::new();
    for i in 0..keys {
        token = c.put(nodes[i % nodes.len()], &format!("k{i}"), &i.to_string(), &token).expect(201).token();
    }
    token
}

/// Every key through every one of these nodes, with a context.
#[track_caller]
fn readable(c: &Cluster, nodes: &[usize], keys: usize, token: &str) {
    for node in nodes {
        for i in 0..keys {
            let answer = c.read(*node, &format!("k{i}"), token).expect_result(200, "found");
            assert_eq!(answer.json()["value"], i, "k{i} at node {node}: {answer}");
        }
    }
}

/// The key counts of all shards add up, and are the same from everywhere.
#[track_caller]
fn counted(c: &Cluster, nodes: &[usize], keys: u64) {
    let shards = shards(c, nodes[0]);
    within(Duration::from_secs(5), &format!("{keys} keys in {shards:?} from each of {nodes:?}"), || {
        let counts = |node: usize| shards.iter().map(|s| c.key_count(node, s)).collect::<Vec<_>>();
        let first = counts(nodes[0]);
        first.iter().sum::<u64>() == keys && nodes.iter().all(|n| counts(*n) == first)
    });
}

#[track_caller]
pub fn shards(c: &Cluster, node: usize) -> Vec<String> {
    strings(&c.get(node, "/shard/ids").expect(200).json()["shard-ids"])
}

#[track_caller]
pub fn members(c: &Cluster, node: usize, shard: &str) -> Vec<String> {
    strings(&c.get(node, &format!("/shard/members/{shard}")).expect(200).json()["shard-members"])
}

pub fn address(name: &str) -> String {
    json!({ "socket-address": name }).to_string()
}

#[track_caller]
pub fn add(c: &Cluster, at: usize, name: &str) -> Answer {
    c.send(at, "PUT", "/view", &address(name))
}

#[track_caller]
pub fn remove(c: &Cluster, at: usize, name: &str) -> Answer {
    c.send(at, "DELETE", "/view", &address(name))
}

#[track_caller]
pub fn reshard(c: &Cluster, at: usize, count: u64) -> Answer {
    c.send(at, "PUT", "/shard/reshard", &json!({ "shard-count": count }).to_string())
}

/// Six nodes that serve, and the address of a seventh that does not run and that nobody names.
pub fn six_of_seven(environment: &[(&str, &str)]) -> Cluster {
    let mut c = Cluster::planned(7, 2, environment);
    let six: Vec<String> = (0..6).map(|n| c.name(n)).collect();
    for node in 0..6 {
        c.run(node, &[("VIEW", &six.join(","))]);
    }
    c.wait_ready(&[0, 1, 2, 3, 4, 5]);
    c
}

pub const SIX: [usize; 6] = [0, 1, 2, 3, 4, 5];
pub const SEVEN: [usize; 7] = [0, 1, 2, 3, 4, 5, 6];

#[test]
fn a_seventh_that_names_all_joins_by_itself() {
    let mut c = six_of_seven(&[]);
    let token = fill(&c, &SIX, 30);
    c.run(6, &[]);
    // The first answer of any kind is the begin of its three seconds.
    within(Duration::from_secs(10), "its port answers", || c.try_send(6, "GET", "/health", &[], Body::None).is_ok());
    let view = |node: usize| c.try_send(node, "GET", "/view", &[], Body::None).ok().filter(|a| a.status == 200);
    within(THREE_SECONDS, "seven in every view", || {
        SEVEN.iter().all(|n| view(*n).is_some_and(|a| strings(&a.json()["view"]).len() == 7))
    });
    assert_eq!(c.get(6, "/shard/node-shard-id").expect(200).json()["node-shard-id"], Value::Null);
    assert_eq!(shards(&c, 6), ["s1", "s2"]);
    readable(&c, &SEVEN, 30, &token);
}

#[test]
fn an_address_is_added_before_anything_runs_there() {
    let mut c = six_of_seven(&[]);
    let seventh = c.name(6);
    add(&c, 4, &seventh).expect_result(201, "added");
    add(&c, 1, &seventh).expect_result(200, "already present");
    add(&c, 5, &c.name(5)).expect_result(200, "already present");
    // A member that can't be reached is not in the view.
    c.wait_view(&SIX, Duration::ZERO);
    c.run(6, &[]);
    c.wait_view(&SEVEN, THREE_SECONDS);
    assert_eq!(c.get(6, "/shard/node-shard-id").expect(200).json()["node-shard-id"], Value::Null);
    add(&c, 6, &seventh).expect_result(200, "already present");
    remove(&c, 6, &seventh).expect_result(200, "deleted");
    c.wait_view(&SIX, THREE_SECONDS);
    assert_eq!(remove(&c, 2, &seventh).expect_error(404), "View has no such replica");
}

#[test]
fn an_added_member_gets_its_shards_keys_and_serves() {
    let mut c = six_of_seven(&[]);
    let token = fill(&c, &SIX, 60);
    let seventh = c.name(6);
    let join =
        |at: usize, shard: &str, name: &str| c.send(at, "PUT", &format!("/shard/add-member/{shard}"), &address(name));
    assert_eq!(join(0, "s1", &seventh).expect_error(404), "View has no such replica");
    assert_eq!(join(0, "s3", &c.name(0)).expect_error(404), "Shard ID not found");
    join(3, "s2", &c.name(0)).expect_error(409);
    add(&c, 0, &seventh).expect_result(201, "added");
    // It is in the view for who adds it again, and so it is for who gives it a shard.
    add(&c, 0, &seventh).expect_result(200, "already present");
    let reason = join(0, "s1", &seventh).expect_error(409);
    assert!(reason.contains(&seventh) && reason.contains("can't be reached"), "{reason}");
    c.run(6, &[]);
    c.wait_view(&SEVEN, THREE_SECONDS);
    let join =
        |at: usize, shard: &str, name: &str| c.send(at, "PUT", &format!("/shard/add-member/{shard}"), &address(name));
    join(1, "s2", &seventh).expect_result(200, "node added to shard");
    // It serves from this moment on.
    c.get(6, "/ready").expect(200);
    assert_eq!(c.get(6, "/shard/node-shard-id").expect(200).json()["node-shard-id"], "s2");
    within(THREE_SECONDS, "everybody knows the new member", || {
        SEVEN.iter().all(|n| members(&c, *n, "s2").contains(&seventh) && members(&c, *n, "s1").len() == 3)
    });
    join(6, "s1", &seventh).expect_error(409);
    counted(&c, &SEVEN, 60);
    // Alone for its shard it has everything.
    let count = c.key_count(6, "s2");
    c.kill(&[3, 4, 5]);
    c.wait_view(&[0, 1, 2, 6], THREE_SECONDS);
    assert_eq!(c.key_count(6, "s2"), count);
    readable(&c, &[0, 6], 60, &token);
}

#[test]
fn keys_and_contexts_outlive_every_change_of_the_shard_count() {
    let c = Cluster::six();
    let keys = 120;
    let oldest = c.put(0, "first", "1", "").expect(201).token();
    let old = fill(&c, &SIX, keys);
    let mut newest = old.clone();
    for (at, count) in [(1, 3), (5, 2), (0, 1), (3, 3)] {
        let before = newest.clone();
        reshard(&c, at, count).expect_result(200, "resharded");
        let ids = shards(&c, at);
        assert_eq!(ids.len() as u64, count, "{ids:?}");
        within(THREE_SECONDS, "one layout everywhere", || SIX.iter().all(|n| shards(&c, *n) == ids));
        let mut all: Vec<String> = ids.iter().flat_map(|id| members(&c, 2, id)).collect();
        assert!(ids.iter().all(|id| members(&c, 2, id).len() >= 2), "{ids:?}");
        all.sort();
        let mut names: Vec<String> = SIX.iter().map(|n| c.name(*n)).collect();
        names.sort();
        assert_eq!(all, names, "every node is in one shard");
        for token in [&oldest, &old, &before] {
            readable(&c, &SIX, keys, token);
        }
        counted(&c, &SIX, keys as u64 + 1);
        newest = c.put(at, "first", &count.to_string(), &before).expect_result(200, "replaced").token();
        for node in SIX {
            let answer = c.read(node, "first", &newest).expect_result(200, "found");
            assert_eq!(answer.json()["value"], count, "{answer}");
        }
    }
}

#[test]
fn shard_counts_without_fault_tolerance_are_refused() {
    let c = Cluster::six();
    let token = fill(&c, &SIX, 10);
    for count in [4, 7, 1000, 1 << 40] {
        assert_eq!(reshard(&c, 2, count).expect_error(400), NOT_ENOUGH, "{count}");
    }
    assert_eq!(shards(&c, 2), ["s1", "s2"]);
    let same = reshard(&c, 2, 2).expect_result(200, "resharded").json();
    assert_eq!(same["unchanged"], true, "{same}");
    readable(&c, &[0, 4], 10, &token);
}

#[test]
fn a_job_is_told_of_while_it_runs_and_afterwards() {
    let c = Cluster::six();
    fill(&c, &SIX, 60);
    c.send(1, "DELETE", "/shard/reshard", "").expect_error(409);
    let answer = c.send(4, "PUT", "/shard/reshard?wait=false", r#"{"shard-count":3}"#).expect(202);
    let job = answer.json()["job"].clone();
    assert!(job.is_u64() || job.is_string(), "no id of a job: {answer}");
    within(Duration::from_secs(10), "the new layout everywhere", || SIX.iter().all(|n| shards(&c, *n).len() == 3));
    let mut last = Value::Null;
    let ended = poll(Duration::from_secs(10), || {
        last = c.get(4, "/shard/reshard").expect(200).json();
        (last["phase"] == "done").then_some(())
    });
    assert!(ended.is_some(), "{last}");
    assert!(last.to_string().contains(&job.to_string()), "job {job} is not the last: {last}");
    let figure = |name: &str| last[name].as_u64().unwrap_or_else(|| panic!("no {name}: {last}"));
    assert!(figure("keys") > 0 && figure("keys") <= figure("keys-total"), "{last}");
    assert!(figure("bytes") > 0 && figure("bytes") <= figure("bytes-total"), "{last}");
    assert_eq!(last["rate"], json!({ "keys": 0, "bytes": 0 }), "nothing moves any more");
    // From a node that was not asked, too.
    within(THREE_SECONDS, "the last job at node 0", || {
        c.get(0, "/shard/reshard").expect(200).json()["phase"] == "done"
    });
    c.send(4, "DELETE", "/shard/reshard", "").expect_error(409);
    counted(&c, &SIX, 60);
}

/// One shard of four nodes out of two: each node is to get slots, and one of them sleeps, so copying lasts.
#[test]
fn a_job_that_copies_says_what_it_waits_for_and_can_be_aborted() {
    let c = Cluster::start(4, 2, &[]);
    let token = fill(&c, &[0, 1, 2, 3], 40);
    c.signal(3, "STOP");
    c.wait_view(&[0, 1, 2], THREE_SECONDS);
    c.send(1, "PUT", "/shard/reshard?wait=false", r#"{"shard-count":1}"#).expect(202);
    let sleeper = c.name(3);
    let mut last = String::new();
    let named = poll(Duration::from_secs(5), || {
        last = c.get(0, "/shard/reshard").expect(200).text();
        last.contains(&sleeper).then_some(())
    });
    assert!(named.is_some(), "it does not say that it waits for {sleeper}: {last}");
    // Only one change at a time, and the other is told what runs.
    let busy = reshard(&c, 2, 2);
    if busy.status != 200 {
        let reason = busy.expect_error(409);
        assert!(reason.contains("reshard"), "{reason}");
    }
    assert_eq!(shards(&c, 0), ["s1", "s2"]);
    c.send(2, "DELETE", "/shard/reshard", "").expect(200);
    within(THREE_SECONDS, "nothing runs", || c.send(0, "DELETE", "/shard/reshard", "").status == 409);
    c.signal(3, "CONT");
    c.wait_view(&[0, 1, 2, 3], THREE_SECONDS);
    assert!([0, 1, 2, 3].iter().all(|n| shards(&c, *n) == ["s1", "s2"]));
    readable(&c, &[0, 1, 2, 3], 40, &token);
    counted(&c, &[0, 1, 2, 3], 40);
    // And the way is free for another.
    reshard(&c, 3, 1).expect_result(200, "resharded");
    readable(&c, &[0, 1, 2, 3], 40, &token);
}

#[test]
fn a_removed_node_hands_over_what_only_it_has_and_serves_no_more() {
    let mut c = Cluster::six();
    let token = fill(&c, &SIX, 30);
    let unknown = "127.0.0.1:1";
    assert_eq!(remove(&c, 0, unknown).expect_error(404), "View has no such replica");
    c.signal(0, "STOP");
    c.signal(1, "STOP");
    c.wait_view(&[2, 3, 4, 5], THREE_SECONDS);
    // Keys of its shard that nobody else has.
    let mut token = token;
    let mut alone = Vec::new();
    for i in 0..20 {
        let answer = c.put(2, &format!("alone{i}"), &i.to_string(), &token).expect(201);
        if answer.json()["replicas"] == 1 {
            alone.push(i);
        }
        token = answer.token();
    }
    assert!(!alone.is_empty());
    c.signal(0, "CONT");
    c.signal(1, "CONT");
    let gone = c.name(2);
    remove(&c, 4, &gone).expect_result(200, "deleted");
    let mut said = String::new();
    let refused = poll(THREE_SECONDS, || {
        let answer = c.get(2, "/kvs/k0");
        said = answer.to_string();
        (answer.status == 503).then(|| answer.expect_error(503))
    });
    assert!(refused.is_some(), "a removed node answers {said}");
    c.put(2, "new", "1", "").expect_error(503);
    c.get(2, "/ready").expect_error(503);
    c.get(2, "/health").expect(200);
    c.kill(&[2]);
    let left = [0, 1, 3, 4, 5];
    c.wait_view(&left, THREE_SECONDS);
    for i in 0..20 {
        for node in left {
            let answer = c.read(node, &format!("alone{i}"), &token).expect_result(200, "found");
            assert_eq!(answer.json()["value"], i, "{answer}");
        }
    }
    readable(&c, &left, 30, &token);
    counted(&c, &left, 50);
    assert!(!members(&c, 5, "s1").contains(&gone));
    assert_eq!(remove(&c, 0, &gone).expect_error(404), "View has no such replica");
}

#[test]
fn the_last_replica_stays() {
    let mut c = Cluster::start(4, 2, &[]);
    let token = fill(&c, &[0, 1, 2, 3], 20);
    let answer = remove(&c, 3, &c.name(1)).expect_result(200, "deleted");
    assert!(answer.json()["warning"].as_str().is_some_and(|w| !w.is_empty()), "{answer}");
    for at in [0, 2, 3] {
        remove(&c, at, &c.name(0)).expect_error(409);
    }
    readable(&c, &[0, 2, 3], 20, &token);
    // A dead one can be removed, too.
    c.kill(&[3]);
    let answer = remove(&c, 0, &c.name(3)).expect_result(200, "deleted");
    assert!(answer.json()["warning"].is_string(), "{answer}");
    readable(&c, &[0, 2], 20, &token);
    assert_eq!(c.put(2, "more", "1", &token).expect(201).json()["replicas"], 1);
}

#[test]
fn of_two_requests_at_once_each_is_done_or_told_what_runs() {
    let mut c = six_of_seven(&[]);
    c.run(6, &[]);
    c.wait_view(&SEVEN, THREE_SECONDS);
    let token = fill(&c, &SEVEN, 40);
    let seventh = address(&c.name(6));
    let rounds = [
        (("PUT", "/shard/reshard", r#"{"shard-count":3}"#), ("PUT", "/shard/reshard", r#"{"shard-count":1}"#)),
        (("PUT", "/shard/reshard", r#"{"shard-count":2}"#), ("DELETE", "/view", &*seventh)),
        (("PUT", "/view", r#"{"socket-address":"127.0.0.9:1"}"#), ("PUT", "/shard/reshard", r#"{"shard-count":3}"#)),
        (("PUT", "/shard/reshard", r#"{"shard-count":3}"#), ("PUT", "/shard/reshard", r#"{"shard-count":3}"#)),
    ];
    for (one, other) in rounds {
        let (one, other) = std::thread::scope(|scope| {
            let send = |at, (method, path, body): (&'static str, &'static str, &str)| {
                let body = body.to_owned();
                let c = &c;
                scope.spawn(move || c.send(at, method, path, &body))
            };
            let threads = (send(0, one), send(5, other));
            (threads.0.join().unwrap(), threads.1.join().unwrap())
        });
        let refused = [&one, &other].into_iter().filter(|a| !matches!(a.status, 200 | 201)).cloned();
        let refused: Vec<String> = refused.map(|a| a.expect_error(409)).collect();
        assert!(refused.len() < 2, "{one} {other}");
        assert!(refused.iter().all(|r| r.contains("reshard") || r.contains("remov")), "{refused:?}");
        within(Duration::from_secs(10), "one layout everywhere", || {
            let ids = shards(&c, 0);
            SIX.iter().all(|n| shards(&c, *n) == ids && c.get(*n, "/ready").status == 200)
        });
        // A change is over when nothing can be aborted and nothing new is refused.
        readable(&c, &SIX, 40, &token);
        counted(&c, &SIX, 40);
    }
}

#[test]
fn bad_requests_change_nothing() {
    let c = Cluster::start(4, 2, &[]);
    let (b, third) = block();
    let free = format!("127.{b}.{third}.2:8090");
    let addresses = [
        "",
        "{",
        "[]",
        "{}",
        "null",
        r#""127.0.0.1:8090""#,
        r#"{"socket-address":7}"#,
        r#"{"socket-address":null}"#,
        r#"{"socket-address":""}"#,
        r#"{"socket-address":"127.0.0.1"}"#,
        r#"{"socket-address":"127.0.0.1:x"}"#,
        r#"{"socket-address":"127.0.0.1:0"}"#,
        r#"{"socket-address":"127.0.0.1:65536"}"#,
        r#"{"socket-address":":8090"}"#,
        r#"{"socket-address":"a b:8090"}"#,
        r#"{"socket-address":"a,b:8090"}"#,
        r#"{"socket-address":["127.0.0.1:8090"]}"#,
    ];
    for body in addresses {
        for (method, path) in [("PUT", "/view"), ("DELETE", "/view"), ("PUT", "/shard/add-member/s1")] {
            let answer = c.send(1, method, path, body);
            assert_eq!(answer.status, 400, "{method} {path} {body}: {answer}");
            answer.expect_error(400);
        }
    }
    let counts = [
        "",
        "{",
        "[]",
        "{}",
        "3",
        r#"{"shard-count":"x"}"#,
        r#"{"shard-count":"3"}"#,
        r#"{"shard-count":-1}"#,
        r#"{"shard-count":0}"#,
        r#"{"shard-count":1.5}"#,
        r#"{"shard-count":null}"#,
        r#"{"shard-count":[1]}"#,
        r#"{"shard-count":1180591620717411303424}"#,
    ];
    for body in counts {
        for query in ["", "?wait=false"] {
            let answer = c.send(1, "PUT", &format!("/shard/reshard{query}"), body);
            assert_eq!(answer.status, 400, "{body}{query}: {answer}");
            answer.expect_error(400);
        }
    }
    let bytes = c.try_send(0, "PUT", "/view", &[], Body::Plain(b"{\"socket-address\":\"\xff:8090\"}")).unwrap();
    bytes.expect_error(400);
    assert_eq!(remove(&c, 0, &free).expect_error(404), "View has no such replica");
    assert_eq!(shards(&c, 3), ["s1", "s2"]);
    c.wait_view(&[0, 1, 2, 3], THREE_SECONDS);
    c.send(1, "DELETE", "/shard/reshard", "").expect_error(409);
}
