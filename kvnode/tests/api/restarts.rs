//! Nodes in memory that come back with nothing.

use std::time::Duration;

use crate::http::{Answer, Body};
use crate::support::{Cluster, poll, within};

fn filled(c: &Cluster, keys: usize) -> String {
    let mut token = String::new();
    for i in 0..keys {
        token = c.put(i % c.all().len(), &format!("k{i}"), &i.to_string(), &token).expect(201).token();
    }
    token
}

#[test]
fn a_wiped_shard_starts_empty_and_old_contexts_work() {
    let mut c = Cluster::six();
    let keys = 60;
    let token = filled(&c, keys);
    let kept = c.key_count(3, "s2");
    c.kill(&[0, 1, 2]);
    for node in [0, 1, 2] {
        c.run(node, &[]);
    }
    c.wait_ready(&c.all());
    within(Duration::from_secs(5), "s1 empty and s2 whole from every node", || {
        c.all().into_iter().all(|n| {
            let count = |shard: &str| {
                let answer = c.get(n, &format!("/shard/key-count/{shard}"));
                answer.json()["shard-key-count"].as_u64()
            };
            count("s1") == Some(0) && count("s2") == Some(kept)
        })
    });
    // What is lost is lost; nobody waits for it for ever.
    within(Duration::from_secs(5), "no more 503 for an old context", || {
        c.all().into_iter().all(|n| c.read(n, "k0", &token).status != 503)
    });
    let mut found = 0;
    for i in 0..keys {
        let answer = c.read(i % 6, &format!("k{i}"), &token);
        assert!([200, 404].contains(&answer.status), "k{i}: {answer}");
        found += u64::from(answer.status == 200);
    }
    assert_eq!(found, kept);
    let mut token = token;
    for i in 0..keys {
        let answer = c.put(i % 6, &format!("k{i}"), "\"again\"", &token);
        assert!([200, 201].contains(&answer.status), "k{i}: {answer}");
        token = answer.token();
        let answer = c.read((i + 1) % 6, &format!("k{i}"), &token).expect_result(200, "found");
        assert_eq!(answer.json()["value"], "again", "{answer}");
    }
}

#[test]
fn a_wiped_node_is_ready_once_it_has_everything() {
    let mut c = Cluster::six();
    let keys = 200;
    let token = filled(&c, keys);
    let count = c.key_count(0, "s1");
    c.kill(&[1]);
    c.run(1, &[]);
    c.wait_ready(&[1]);
    // From here on it answers alone for its shard.
    c.kill(&[0, 2]);
    assert_eq!(c.get(1, "/status").expect(200).json()["keys"], count);
    c.wait_view(&[1, 3, 4, 5], Duration::from_secs(3));
    for i in 0..keys {
        let node = [1, 3, 4, 5][i % 4];
        let answer = c.read(node, &format!("k{i}"), &token).expect_result(200, "found");
        assert_eq!(answer.json()["value"], i, "{answer}");
    }
}

#[test]
fn a_node_that_reaches_nobody_founds_nothing() {
    let mut c = Cluster::six();
    let keys = 60;
    let token = filled(&c, keys);
    c.kill(&[0]);
    let others = [1, 2, 3, 4, 5];
    for node in others {
        c.signal(node, "STOP");
    }
    c.run(0, &[]);
    let mut reason = String::new();
    let served = poll(Duration::from_secs(3), || {
        let answer = c.try_send(0, "GET", "/ready", &[], Body::None).ok()?;
        if answer.status == 503 {
            reason = answer.expect_error(503);
            return None;
        }
        Some(answer)
    });
    assert!(served.is_none(), "it must not serve: {}", served.unwrap());
    for node in others {
        assert!(reason.contains(&c.name(node)), "{} is not named: {reason}", c.name(node));
    }
    let refused = c.try_send(0, "PUT", "/kvs/split", &[], Body::Plain(br#"{"value":1}"#)).unwrap();
    refused.expect_error(503);
    for node in others {
        c.signal(node, "CONT");
    }
    c.wait_ready(&c.all());
    for i in 0..keys {
        let answer = c.read(0, &format!("k{i}"), &token).expect_result(200, "found");
        assert_eq!(answer.json()["value"], i, "{answer}");
    }
    c.wait_view(&c.all(), Duration::from_secs(3));
}

#[test]
fn a_node_with_another_secret_never_joins() {
    let mut c = Cluster::start(3, 1, &[("CLUSTER_SECRET", "one")]);
    let token = filled(&c, 10);
    c.kill(&[2]);
    c.wait_view(&[0, 1], Duration::from_secs(3));
    for secret in ["two", ""] {
        c.run(2, &[("CLUSTER_SECRET", secret)]);
        let joined = poll(Duration::from_secs(3), || {
            let answer = c.try_send(2, "GET", "/ready", &[], Body::None).ok()?;
            let seen = [0, 1].into_iter().any(|n| c.view(n).contains(&c.name(2)));
            (answer.status == 200 || seen).then_some((answer, seen))
        });
        assert!(joined.is_none(), "with the secret {secret:?}: {joined:?}");
        assert_ne!(c.read(2, "k1", &token).status, 200);
        c.kill(&[2]);
    }
    c.put(0, "k1", "\"new\"", &token).expect_result(200, "replaced");
    c.run(2, &[]);
    c.wait_ready(&[2]);
    c.read(2, "k1", &token).expect_result(200, "found");
}

#[test]
fn nodes_with_different_secrets_form_nothing() {
    let mut c = Cluster::planned(3, 1, &[]);
    for (node, secret) in [(0, "one"), (1, "one"), (2, "two")] {
        c.run(node, &[("CLUSTER_SECRET", secret)]);
    }
    let formed = poll(Duration::from_secs(3), || {
        c.all().into_iter().find(|n| c.try_send(*n, "GET", "/ready", &[], Body::None).is_ok_and(|a| a.status == 200))
    });
    assert_eq!(formed, None, "a node serves");
    c.kill(&[2]);
    c.run(2, &[("CLUSTER_SECRET", "one")]);
    c.wait_ready(&c.all());
    assert!(c.put(0, "a", "1", "").expect(201).json()["replicas"].as_u64() >= Some(1));
}

#[test]
fn data_on_disk_survives_the_death_of_all() {
    let mut c = Cluster::planned(3, 1, &[]);
    let start = |c: &mut Cluster| {
        for node in c.all() {
            let data = c.data_directory(node);
            c.run(node, &[("DATA_DIR", &data), ("FSYNC", "always")]);
        }
        c.wait_ready(&c.all());
    };
    start(&mut c);
    let token = filled(&c, 50);
    c.kill(&[0, 1, 2]);
    start(&mut c);
    for i in 0..50 {
        let answer = c.read(i % 3, &format!("k{i}"), &token).expect_result(200, "found");
        assert_eq!(answer.json()["value"], i, "{answer}");
    }
}

/// What only a node had that was removed while it was dead is not brought back behind the clients' backs, and not thrown away.
#[test]
fn what_only_a_removed_node_had_is_set_aside() {
    let mut c = Cluster::planned(3, 1, &[]);
    let run = |c: &mut Cluster, node: usize| {
        let directory = c.data_directory(node);
        c.run(node, &[("DATA_DIR", &directory)]);
    };
    c.all().into_iter().for_each(|node| run(&mut c, node));
    c.wait_ready(&c.all());
    let token = c.put(0, "shared", "1", "").expect(201).token();
    // A context that names nothing any more says that all have it.
    let names_it = |c: &Cluster| c.read(0, "shared", &token).expect(200).token().len() >= token.len();
    within(Duration::from_secs(15), "all have what is shared", || !names_it(&c));
    c.signal(1, "STOP");
    c.signal(2, "STOP");
    // From here on its links are busy with what was not answered, or closed, and those two open no others: nothing that comes now
    // waits in their sockets for the moment when they go on.
    within(Duration::from_secs(15), "a view of one", || c.view(0) == [c.name(0)]);
    let alone = c.put(0, "alone", r#"{"n":1}"#, &token).expect(201);
    assert_eq!(alone.json()["replicas"], 1, "{alone}");
    c.kill(&[0]);
    c.signal(1, "CONT");
    c.signal(2, "CONT");
    let name = format!(r#"{{"socket-address":"{}"}}"#, c.name(0));
    within(Duration::from_secs(15), "the removal", || c.send(1, "DELETE", "/view", &name).status == 200);
    within(Duration::from_secs(15), "a view without it", || !c.view(1).contains(&c.name(0)));
    // No session waits for it, and it can be written anew.
    c.read(1, "alone", &alone.token()).expect(404);
    run(&mut c, 0);
    let file = format!("{}/set-aside.jsonl", c.data_directory(0));
    let lines =
        poll(Duration::from_secs(30), || std::fs::read_to_string(&file).ok()).expect("a file of what is set aside");
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let alone = lines.iter().find(|line| line["key"] == "alone").unwrap_or_else(|| panic!("{lines:?}"));
    assert_eq!(alone["value"], serde_json::json!({"n": 1}));
    assert!(lines.iter().all(|line| line["key"] != "shared"), "it was at all of them: {lines:?}");
    c.read(1, "shared", &token).expect_result(200, "found");
}

/// FORM_WITHOUT is about the formation. A replica that has lost its data later must not take another for empty that is there and only
/// silent: it may have all there is.
#[test]
fn who_may_be_missing_at_the_formation_is_waited_for_later() {
    let mut c = Cluster::planned(4, 2, &[]);
    let may_be_missing = c.name(1);
    c.run(0, &[("FORM_WITHOUT", &may_be_missing)]);
    [1, 2, 3].into_iter().for_each(|node| c.run(node, &[]));
    c.wait_ready(&c.all());
    let mut token = String::new();
    for number in 0..20 {
        token = c.put(0, &format!("k{number}"), "1", &token).expect(201).token();
    }
    c.kill(&[0]);
    c.signal(1, "STOP");
    within(Duration::from_secs(15), "a view of two", || c.view(2).len() == 2);
    // It gets the topology from the other shard's nodes, and no data from anybody.
    c.run(0, &[("FORM_WITHOUT", &may_be_missing)]);
    within(Duration::from_secs(15), "the topology", || {
        c.try_send(0, "GET", "/shard/ids", &[], Body::None).is_ok_and(|answer| answer.status == 200)
    });
    let waits = format!("waiting for {may_be_missing}");
    let says_so = |answer: Answer| answer.status == 503 && answer.text().contains(&waits);
    within(Duration::from_secs(15), "a word of whom it waits for", || says_so(c.get(0, "/ready")));
    // Longer than it waits for anybody.
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        assert_eq!(c.get(0, "/ready").status, 503, "it serves without data");
        std::thread::sleep(Duration::from_millis(50));
    }
    c.signal(1, "CONT");
    c.wait_ready(&c.all());
    for number in 0..20 {
        c.read(0, &format!("k{number}"), &token).expect_result(200, "found");
    }
}
