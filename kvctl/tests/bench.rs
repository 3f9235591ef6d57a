//! The load generator against a small cluster of local processes. Nothing here is a measurement.

mod support;

use std::process::Stdio;

use serde_json::Value;
use support::{Cluster, hear, interrupt};

fn cluster(name: &str, block: u8) -> Cluster {
    let second = 80 + (std::process::id() % 100) as u8;
    Cluster::new(name, &["--runtime", "local", "--subnet", &format!("10.{second}.{block}.0/24")])
}

fn run(cluster: &Cluster, more: &[&str]) -> Value {
    let common = ["--output", "json", "bench", "--duration", "1s", "--warmup", "200ms", "--keys", "200"];
    let arguments: Vec<&str> = common.iter().chain(more).copied().collect();
    let said = cluster.ok(&arguments);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[test]
fn a_run_counts_what_it_did() {
    let cluster = cluster("bench", 61);
    cluster.up();
    let report = run(&cluster, &["--prepare", "--mix", "50/40/10", "--route", "owner", "--distribution", "zipfian"]);
    let count = |kind: &str| report["latency-us"][kind]["count"].as_u64().unwrap_or(0);
    let (get, put, delete) = (count("get"), count("put"), count("delete"));
    assert!(get > put && put > delete && delete > 0, "{report}");
    assert_eq!(get + put + delete, count("all"));
    assert_eq!(report["operations"].as_u64(), Some(count("all")), "nothing fails: {report}");
    assert!(["get", "put", "delete", "all"].iter().all(|kind| report["answered"][kind] == count(kind)), "{report}");
    assert!(report["errors"].as_object().is_some_and(serde_json::Map::is_empty), "{report}");
    assert!(report["cpu"]["servers-us"].as_f64().is_some_and(|us| us > 0.0), "the nodes run here: {report}");
    assert_eq!(report["cpu"]["nodes-us"].as_object().map(serde_json::Map::len), Some(6));

    let picture = tempfile::tempdir().unwrap();
    let path = picture.path().join("curve.svg");
    let report =
        run(&cluster, &["--rate", "200", "--route", "one:frank", "--causal", "off", "--plot", path.to_str().unwrap()]);
    // An open loop begins what is due, no more and no less.
    let (done, unsent) = (report["operations"].as_u64().unwrap(), report["unsent"].as_u64().unwrap());
    assert!((190..=210).contains(&(done + unsent)), "{report}");
    let svg = std::fs::read_to_string(path).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");

    let table = cluster.ok(&["bench", "--duration", "300ms", "--warmup", "0s", "--keys", "200"]);
    assert!(table.contains("P99.99") && table.contains("CPU per operation"), "{table}");

    // Ctrl-C ends the run early, and what was counted is told.
    let mut child = cluster
        .command(&["bench", "--duration", "60s", "--warmup", "0s"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    hear(&mut child, "measuring");
    cluster.ok(&["view"]);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("interrupted"), "{said}");
}

#[test]
fn wrong_usage_and_nobody_there() {
    let cluster = cluster("benchno", 62);
    for bad in
        [&["--mix", "0/0"][..], &["--rate", "0"], &["--connections", "0"], &["--route", "all"], &["--duration", "0s"]]
    {
        let said = cluster.run(&[&["bench"], bad].concat());
        assert_eq!(said.code, 2, "{bad:?}: {said:?}");
    }
    assert_eq!(cluster.run(&["bench"]).code, 10, "there is no such cluster");
    let said = cluster.run(&["bench", "--url", "127.0.0.1:9", "--duration", "200ms", "--warmup", "0s"]);
    assert_eq!(said.code, 4, "{said:?}");
}
