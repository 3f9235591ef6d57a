//! Nodes that mean harm, or hold what somebody wrote who does: terminals show it, and nothing more comes of it.

mod support;

use serde_json::{Value, json};
use support::Said;
use support::mock::Mock;

/// Clears the screen, begins another line, turns the rest around.
const EVIL: &str = "\u{1b}[2J\nfrank is gone\u{202e}\u{9b}31m";
const SHOWN: &str = r"\u001b[2J\nfrank is gone\u202e\u009b31m";

fn is_harmless(said: &Said) {
    for text in [&said.out, &said.err] {
        let acts = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202e}' | '\u{2028}');
        assert!(!text.contains(acts), "{said:?}");
        assert!(!text.lines().any(|line| line.starts_with("frank is gone")), "{said:?}");
    }
}

#[test]
fn what_nodes_say_does_nothing_to_a_terminal() {
    let mock = Mock::new("hostile", 94);
    let members = [mock.addresses[0].clone(), format!("{EVIL}:1")];
    let mut status = mock.status(0);
    status["reason"] = json!(EVIL);
    status["shard"] = json!(EVIL);
    status["shards"] = json!([{ "id": EVIL, "members": members }]);
    let job = json!({
        "job": 1, "kind": EVIL, "phase": EVIL, "epoch": 1, "waiting-for": [EVIL],
        "moves": [{ "from": EVIL, "to": EVIL, "node": EVIL, "keys": 1, "keys-total": 2, "bytes": 3 }],
    });
    mock.script(move |asked| {
        Some(match asked.what.as_str() {
            "GET /status" => (200, status.clone()),
            "GET /kvs/found" => (200, json!({ "value": EVIL })),
            "GET /kvs?prefix=&limit=1000" => (200, json!({ "keys": [EVIL, "plain"], "cursor": null })),
            "GET /view" => (200, json!({ "view": [EVIL] })),
            "GET /shard/ids" => (200, json!({ "shard-ids": [EVIL] })),
            "GET /shard/reshard" => (200, job.clone()),
            "PUT /view" => (200, json!({ "result": EVIL })),
            "DELETE /view" => (200, json!({ "result": EVIL, "warning": EVIL })),
            "PUT /shard/reshard?dry-run=true" => (200, json!({ "warnings": [EVIL], "plan": {} })),
            "PUT /kvs/written" => (200, json!({ "result": EVIL, "replicas": 2 })),
            _ => (400, json!({ "error": EVIL })),
        })
    });
    let run = |line: &str| {
        let said = mock.cluster.run(&line.split(' ').collect::<Vec<&str>>());
        is_harmless(&said);
        assert!(said.out.contains(SHOWN) || said.err.contains(SHOWN), "{line}: {said:?}");
        said
    };
    for line in [
        "get refused",
        "put refused 1",
        "put written 1",
        "delete refused",
        "view",
        "view add x:1",
        "view remove x:1",
        "shard ids",
        "shard members s1",
        "reshard status",
        "reshard 3 --dry-run",
        "wait --for ready --timeout 0s",
        "wait --for converged --timeout 0s",
    ] {
        run(line);
    }
    assert_eq!(run("keys").out, format!("{SHOWN}\nplain\n"), "a line for each key");
    for line in ["get found", "keys", "get refused", "view", "reshard status", "put written 1"] {
        let said = run(&format!("{line} -o json"));
        let _: Value = serde_json::from_str(&said.out).expect("one document");
    }
    let document: Value = serde_json::from_str(&run("get found -o json").out).expect("one document");
    assert_eq!(document["value"], EVIL, "the same value");
    assert_eq!(mock.cluster.ok(&["get", "found"]), format!("{EVIL}\n"), "a program gets it as it is");
}

#[test]
fn cluster_status_stays_a_table() {
    let mock = Mock::new("table", 95);
    let mut status = mock.status(0);
    status["reason"] = json!(EVIL);
    status["shards"] = json!([{ "id": EVIL, "members": [mock.addresses[0]] }]);
    mock.script(move |asked| (asked.what == "GET /status").then(|| (200, status.clone())));
    // Only of nodes that run the status is asked for.
    let mut runs = std::process::Command::new("/bin/sleep").arg("100").spawn().expect("it starts");
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", runs.id())).expect("Linux");
    let started = stat.rsplit_once(") ").expect("a name").1.split(' ').nth(19).expect("a field").to_owned();
    std::fs::write(mock.cluster.state().join("pids/alice"), format!("{} {started}", runs.id())).expect("written");
    let said = mock.cluster.run(&["cluster", "status"]);
    runs.kill().and_then(|()| runs.wait()).expect("it runs");
    is_harmless(&said);
    assert_eq!((said.code, said.out.lines().count()), (0, 8), "{said:?}");
    assert_eq!(said.out.matches(SHOWN).count(), 2, "{said:?}");
}
