//! The order of every list: nodes as they joined, VIEW's order first, at every node, before and after every change. And who joins again.

use std::time::Duration;

use serde_json::Value;

use crate::support::{Cluster, strings, within};
use crate::topology::{SEVEN, SIX, THREE_SECONDS, add, address, fill, members, remove, reshard, shards, six_of_seven};

/// Every list of nodes that a node tells, with its name.
fn lists(c: &Cluster, node: usize) -> Vec<(String, Vec<String>)> {
    let status = c.get(node, "/status").expect(200).json();
    let mut all = vec![("view".to_owned(), c.view(node)), ("voters".to_owned(), strings(&status["voters"]))];
    all.extend(shards(c, node).into_iter().map(|id| (id.clone(), members(c, node, &id))));
    let listed = |shard: &Value| (format!("status of {}", shard["id"]), strings(&shard["members"]));
    all.extend(status["shards"].as_array().unwrap().iter().map(listed));
    let peers = status["peers"].as_array().unwrap().iter().map(|peer| peer["node"].as_str().unwrap().to_owned());
    all.push(("peers".to_owned(), peers.collect()));
    let plan = c.send(node, "PUT", "/shard/reshard?dry-run", r#"{"shard-count":3}"#).expect(200).json();
    for shard in plan["plan"]["shards"].as_array().unwrap() {
        all.push((format!("planned {}", shard["id"]), strings(&shard["members"])));
        all.push((format!("before the plan {}", shard["id"]), strings(&shard["members-before"])));
    }
    all
}

/// `joined`: all nodes in the order in which they came.
#[track_caller]
fn in_order(c: &Cluster, nodes: &[usize], joined: &[usize]) {
    let names: Vec<String> = joined.iter().map(|node| c.name(*node)).collect();
    for &node in nodes {
        for (what, list) in lists(c, node) {
            let wanted: Vec<&String> = names.iter().filter(|name| list.contains(name)).collect();
            assert_eq!(list.iter().collect::<Vec<_>>(), wanted, "{what} at node {node}");
        }
    }
}

#[test]
fn members_are_listed_as_they_joined_whatever_changes() {
    // Not the order of their addresses.
    let mut c = Cluster::planned(7, 2, &[]);
    let first = [4, 2, 5, 0, 3, 1];
    let view: Vec<String> = first.iter().map(|node| c.name(*node)).collect();
    for node in SIX {
        c.run(node, &[("VIEW", &view.join(","))]);
    }
    c.wait_ready(&SIX);
    fill(&c, &SIX, 30);
    in_order(&c, &SIX, &first);
    c.run(6, &[("VIEW", &view.join(","))]);
    c.wait_view(&SEVEN, THREE_SECONDS);
    let mut joined = first.to_vec();
    joined.push(6);
    let seventh = address(&c.name(6));
    c.send(0, "PUT", "/shard/add-member/s1", &seventh).expect_result(200, "node added to shard");
    in_order(&c, &[0, 6], &joined);
    for count in [3, 2, 3] {
        reshard(&c, 3, count).expect_result(200, "resharded");
        within(THREE_SECONDS, "one layout everywhere", || SEVEN.iter().all(|n| shards(&c, *n).len() as u64 == count));
        in_order(&c, &SEVEN, &joined);
    }
    // Who goes and comes back has joined last.
    remove(&c, 3, &c.name(4)).expect_result(200, "deleted");
    c.kill(&[4]);
    c.run(4, &[("VIEW", &view.join(","))]);
    c.wait_view(&SEVEN, Duration::from_secs(10));
    in_order(&c, &[0, 4, 6], &[2, 5, 0, 3, 1, 6, 4]);
}

/// With its data, and the topology that lists it.
#[test]
fn a_node_that_was_removed_while_it_was_down_joins_when_it_is_started() {
    let mut c = Cluster::planned(6, 2, &[]);
    let own = |c: &Cluster, node: usize| c.data_directory(node);
    for node in SIX {
        c.run(node, &[("DATA_DIR", &own(&c, node))]);
    }
    c.wait_ready(&SIX);
    fill(&c, &SIX, 20);
    for (gone, asked) in [(5, 0), (1, 0)] {
        let left: Vec<usize> = SIX.into_iter().filter(|node| *node != gone).collect();
        c.kill(&[gone]);
        c.wait_view(&left, THREE_SECONDS);
        remove(&c, asked, &c.name(gone)).expect_result(200, "deleted");
        c.run(gone, &[("DATA_DIR", &own(&c, gone))]);
        c.wait_view(&SIX, Duration::from_secs(10));
        assert_eq!(c.get(gone, "/shard/node-shard-id").expect(200).json()["node-shard-id"], Value::Null);
        c.get(gone, "/ready").expect(200);
        let id = if gone == 5 { "s2" } else { "s1" };
        let body = address(&c.name(gone));
        c.send(asked, "PUT", &format!("/shard/add-member/{id}"), &body).expect_result(200, "node added to shard");
    }
}

#[test]
fn a_node_that_is_removed_while_it_runs_and_killed_at_once_joins_when_it_is_started() {
    let mut c = Cluster::planned(6, 2, &[]);
    let own = |c: &Cluster, node: usize| c.data_directory(node);
    for node in SIX {
        c.run(node, &[("DATA_DIR", &own(&c, node))]);
    }
    c.wait_ready(&SIX);
    remove(&c, 0, &c.name(4)).expect_result(200, "deleted");
    c.kill(&[4]);
    c.run(4, &[("DATA_DIR", &own(&c, 4))]);
    c.wait_view(&SIX, Duration::from_secs(10));
}

#[test]
fn spellings_of_an_address_are_one_node() {
    let mut c = six_of_seven(&[]);
    let first = c.name(0);
    let (host, port) = first.rsplit_once(':').unwrap();
    for spelled in [format!("{host}:0{port}"), format!("[::ffff:{host}]:{port}"), format!("[::FFFF:{host}]:00{port}")] {
        add(&c, 3, &spelled).expect_result(200, "already present");
    }
    c.wait_view(&SIX, Duration::ZERO);
    // One that names itself and the others in other words is no stranger.
    let (seventh, all) = (c.name(6), (0..6).map(|n| c.name(n).replace(":8090", ":08090")));
    let (view, own) = (all.collect::<Vec<_>>().join(","), seventh.replace(":8090", ":08090"));
    c.run(6, &[("VIEW", &view), ("SOCKET_ADDRESS", &own)]);
    c.wait_view(&SEVEN, Duration::from_secs(10));
}
