//! Drills on local processes: green with all faults, red when a history says so, and out of the way when asked for too much.

mod support;

use std::process::Stdio;

use serde_json::Value;
use support::{Cluster, hear, interrupt};

fn cluster(name: &str, block: u8, more: &[&str]) -> Cluster {
    let second = 80 + (std::process::id() % 100) as u8;
    let subnet = format!("10.{second}.{block}.0/24");
    let all: Vec<&str> = ["--runtime", "local", "--subnet", &subnet].iter().chain(more).copied().collect();
    Cluster::new(name, &all)
}

#[test]
fn all_faults_break_no_promise_and_a_changed_history_does() {
    let cluster = cluster("drill", 63, &["--drill"]);
    cluster.up();
    let refused = cluster.run(&["drill"]);
    assert_eq!((refused.code, refused.err.contains("--yes")), (2, true), "nobody can be asked: {refused:?}");
    let path = |name: &str| cluster.home().join(name).to_str().expect("UTF-8").to_owned();
    let (history, page) = (path("history"), path("page"));
    let faults = "kill,pause,partition,one-way,slow,clock,reshard,wipe,disk-full";
    let arguments = [
        "drill",
        "--yes",
        "--duration",
        "12s",
        "--seed",
        "5",
        "--faults",
        faults,
        "--history",
        &history,
        "--report",
        &page,
    ];
    let said = cluster.run(&[&["--output", "json"], &arguments[..]].concat());
    assert_eq!(said.code, 0, "{said:?}");
    let verdict: Value = serde_json::from_str(&said.out).expect("one document");
    assert!(verdict["kept"] == true && verdict["faults"].as_u64() >= Some(8), "{verdict}");
    assert!(verdict["operations"].as_u64() > Some(200) && verdict["handed-over"].as_u64() > Some(0), "{verdict}");
    assert!(std::fs::read_to_string(&page).unwrap().contains("Every promise was kept"));
    assert!(cluster.all_ready(), "everything is healed");
    assert_eq!(cluster.ok(&["shard", "ids"]).lines().count(), 2, "as many shards as before");

    assert_eq!(cluster.run(&["drill", "--judge", &history]).code, 0);
    // A session that reads, after its own acknowledged write, what the key was before.
    let text = std::fs::read_to_string(&history).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(out_of_nowhere(&lines), None, "a context that its session was neither answered nor handed");
    let (at, older) = stale_read(&lines).expect("somebody reads a key again that it has written");
    let mut lines = lines;
    lines[at]["value"] = older.into();
    let changed: Vec<String> = lines.iter().map(Value::to_string).collect();
    std::fs::write(path("changed"), changed.join("\n")).unwrap();
    let red = cluster.run(&["drill", "--judge", &path("changed"), "--report", &page]);
    assert_eq!(red.code, 8, "{red:?}");
    assert!(red.out.contains("BROKEN") && red.out.contains("context ["), "{red:?}");
    assert!(std::fs::read_to_string(&page).unwrap().contains("Promises were broken"));
}

/// An operation with a context that its session had not got before: neither with an answer nor from another session.
fn out_of_nowhere(lines: &[Value]) -> Option<&Value> {
    let mut has = std::collections::BTreeSet::new();
    // In the order of events: a context is got at the end of an operation, or when it is received.
    let mut events: Vec<(u64, &Value)> = Vec::new();
    for line in lines.iter().filter(|line| line["session"].is_u64()) {
        events.extend(["call", "return"].iter().filter_map(|end| Some((line[*end].as_u64()?, line))));
    }
    events.sort_by_key(|(event, _)| *event);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    for (event, line) in events {
        let session = line["session"].as_u64();
        if line["kind"] == "recv" {
            has.insert((session, text(&line["context"])));
        } else if line["return"] == event {
            has.insert((session, text(&line["answered"])));
        } else if line["context"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| !has.contains(&(session, text(one)))))
        {
            return Some(line);
        }
    }
    None
}

/// A read by a session of a key that the same session had put twice before, and what it put first.
fn stale_read(lines: &[Value]) -> Option<(usize, u64)> {
    let is = |line: &Value, kind: &str| line["kind"] == kind && line["result"] == "ok" && line["status"] != 404;
    lines.iter().enumerate().find_map(|(at, read)| {
        let same = |other: &&Value| other["session"] == read["session"] && other["key"] == read["key"];
        let puts: Vec<u64> = lines[..at]
            .iter()
            .filter(|line| is(line, "put"))
            .filter(same)
            .filter_map(|put| put["value"].as_u64())
            .collect();
        (is(read, "get") && puts.len() >= 2 && read["value"].as_u64() != Some(puts[0])).then(|| (at, puts[0]))
    })
}

#[test]
fn ctrl_c_heals_and_nodes_that_were_not_started_for_it_refuse() {
    let plain = cluster("plain", 64, &[]);
    plain.up();
    let refused = plain.run(&["drill", "--yes", "--faults", "partition"]);
    assert_eq!((refused.code, refused.err.contains("--drill")), (5, true), "{refused:?}");
    assert_eq!(plain.run(&["drill", "--faults", "fire"]).code, 2);
    assert_eq!(plain.run(&["drill", "--judge", "/nothing/there"]).code, 2);
    let history = plain.home().join("history");
    let mut child = plain
        .command(&["drill", "--yes", "--duration", "60s", "--faults", "kill,pause", "--seed", "3"])
        .arg("--history")
        .arg(&history)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The plan names it first; then it happens.
    hear(&mut child, "healed");
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(plain.all_ready(), "everything is healed");

    // One that somebody has stopped is neither started nor called a broken promise.
    plain.ok(&["node", "kill", "bob"]);
    let refused = plain.run(&["drill", "--yes", "--faults", "kill", "--duration", "5s"]);
    assert_eq!((refused.code, refused.err.contains("bob does not run")), (5, true), "{refused:?}");
    assert!(!plain.all_ready());
}

/// A history in which every fault was left out shows nothing, and is not green.
#[test]
fn a_drill_without_a_fault_is_not_green() {
    let cluster = cluster("left", 65, &["--drill"]);
    cluster.up();
    let path = |name: &str| cluster.home().join(name).to_str().expect("UTF-8").to_owned();
    let (history, changed, page) = (path("history"), path("changed"), path("page"));
    let arguments =
        ["drill", "--yes", "--duration", "5s", "--faults", "pause", "--history", &history, "--report", &page];
    cluster.ok(&arguments);
    let lines = std::fs::read_to_string(&history).unwrap();
    let lines: Vec<String> = lines
        .lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            if line["kind"] == "fault" {
                line["problem"] = "no node took it".into();
            }
            line.to_string()
        })
        .collect();
    std::fs::write(&changed, lines.join("\n")).unwrap();
    let said = cluster.run(&["drill", "--judge", &changed, "--report", &page]);
    assert_eq!((said.code, said.err.contains("no node took it")), (1, true), "{said:?}");
}
