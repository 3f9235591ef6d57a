//! reshard against stand-ins for nodes: the plan, the question, the watching, the receipt.

mod support;

use std::process::Stdio;

use serde_json::{Value, json};
use support::mock::Mock;
use support::{Said, hear, interrupt, unread};

const DRY: &str = "PUT /shard/reshard?dry-run=true";
const BEGIN: &str = "PUT /shard/reshard?wait=false";

/// The reply to a dry run: three shards of two.
fn plan(mock: &Mock) -> Value {
    let a = &mock.addresses;
    let shard = |id: &str, members: [&String; 2], before: &[String], slots_before: u64, slots: u64| json!({ "id": id, "members": members, "members-before": before, "slots": slots, "slots-before": slots_before });
    let shards = [
        shard("s1", [&a[0], &a[1]], &a[..3], 8192, 5461),
        shard("s2", [&a[3], &a[4]], &a[3..], 8192, 5462),
        shard("s3", [&a[2], &a[5]], &[], 0, 5461),
    ];
    let warnings = ["shard s3 has 2 replicas: it survives fewer failures"];
    json!({ "epoch": 1, "plan": { "shards": shards, "moved-slots": 5461 }, "warnings": warnings })
}

/// What a node says after the change.
fn status_after(mock: &Mock, node: usize) -> Value {
    let a = &mock.addresses;
    let shard = ["s1", "s1", "s3", "s2", "s2", "s3"][node];
    let shards = json!([
        { "id": "s1", "members": [a[0], a[1]] }, { "id": "s2", "members": [a[3], a[4]] },
        { "id": "s3", "members": [a[2], a[5]] },
    ]);
    json!({ "epoch": 2, "shard": shard, "keys": 200, "digest": format!("of-{shard}"), "shards": shards, "peers": [] })
}

/// What `GET /shard/reshard` says.
fn job(mock: &Mock, phase: &str, keys: u64) -> Value {
    let part = |from: &str, node: usize| json!({ "from": from, "to": "s3", "node": mock.addresses[node], "keys": keys, "keys-total": 100, "bytes": 20 * keys });
    let moves = [part("s1", 2), part("s1", 5), part("s2", 2), part("s2", 5)];
    json!({ "job": 3, "kind": "reshard", "phase": phase, "epoch": 2, "moves": moves, "waiting-for": [] })
}

/// A cluster that goes through these phases, one a look.
fn resharding(name: &str, block: u8, phases: &'static [(&'static str, u64)]) -> Mock {
    let mock = Mock::new(name, block);
    let plan = plan(&mock);
    let after: Vec<Value> = (0..6).map(|node| status_after(&mock, node)).collect();
    let looks: Vec<Value> = phases.iter().map(|(phase, keys)| job(&mock, phase, *keys)).collect();
    let (mut begun, mut look) = (false, 0);
    mock.script(move |asked| match asked.what.as_str() {
        DRY => Some((200, plan.clone())),
        BEGIN => {
            begun = true;
            Some((202, json!({ "job": 3 })))
        }
        "GET /shard/reshard" => {
            look += 1;
            Some((200, looks[(look - 1).min(looks.len() - 1)].clone()))
        }
        "GET /status" if begun => Some((200, after[asked.node].clone())),
        "DELETE /shard/reshard" => Some((200, json!({ "result": "aborted" }))),
        _ => None,
    });
    mock
}

fn changes(mock: &Mock) -> Vec<String> {
    mock.changes().iter().map(|asked| format!("{} {}", asked.what, asked.body)).collect()
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

const PHASES: &[(&str, u64)] = &[("copying", 0), ("copying", 60), ("settling", 100), ("done", 100)];

#[test]
fn a_dry_run_shows_the_plan_and_changes_nothing() {
    let mock = resharding("dry", 50, PHASES);
    let said = mock.cluster.run(&["reshard", "3", "--dry-run"]);
    assert_eq!(said.code, 0, "{said:?}");
    let lines: Vec<Vec<&str>> = said.out.lines().map(words).collect();
    assert_eq!(lines[0], ["SHARD", "MEMBERS", "MEMBERS-AFTER", "SLOTS", "SLOTS-AFTER", "KEYS", "KEYS-AFTER(ESTIMATE)"]);
    assert_eq!(lines[1], ["s1", "alice,bob,carol", "alice,bob", "8192", "5461", "301", "~200"]);
    assert_eq!(lines[3], ["s3", "-", "carol,frank", "0", "5461", "0", "~200"]);
    assert_eq!(said.out.lines().nth(4), Some("5461 of 16384 slots move"));
    assert_eq!(said.err, "warning: shard s3 has 2 replicas: it survives fewer failures\n");
    assert_eq!(changes(&mock), [format!(r#"{DRY} {{"shard-count":3}}"#)]);

    let said = mock.cluster.run(&["reshard", "3", "--dry-run", "-o", "json"]);
    let document: Value = serde_json::from_str(&said.out).expect("one document");
    assert_eq!((&document["epoch"], &document["moved-slots"]), (&json!(1), &json!(5461)));
    assert_eq!(document["shards"][0]["keys-before"], 301);
    assert_eq!(document["shards"][2]["keys-estimated"], 200);
}

#[test]
fn a_plan_that_needs_a_shard_which_is_gone_is_no_normal_plan() {
    let mock = Mock::new("gone", 61);
    let plan = plan(&mock);
    mock.script(move |asked| match asked.what.as_str() {
        DRY => Some((200, plan.clone())),
        "GET /shard/key-count/s2" => Some((503, json!({ "error": "No replica of shard s2 is reachable" }))),
        _ => None,
    });
    let why = "this can't be done now: no replica of s2 can be reached";
    for arguments in [&["reshard", "3", "--dry-run"][..], &["reshard", "3", "--yes"]] {
        let said = mock.cluster.run(arguments);
        assert!(said.code == 4 && said.err.contains(why), "{said:?}");
        assert_eq!(said.out.lines().nth(2).map(|line| words(line)[5]), Some("-"), "the plan is shown: {said:?}");
    }
    assert!(changes(&mock).iter().all(|change| change.starts_with(DRY)), "nothing was begun");
    let said = mock.cluster.run(&["reshard", "3", "--dry-run", "-o", "json"]);
    let document: Value = serde_json::from_str(&said.out).expect("one document");
    assert_eq!((said.code, &document["exit-code"]), (4, &json!(4)));
    assert_eq!((&document["unreachable-shards"], &document["moved-slots"]), (&json!(["s2"]), &json!(5461)));
}

#[test]
fn nobody_is_asked_who_can_not_answer() {
    let mock = resharding("ask", 51, PHASES);
    for arguments in [&["reshard", "3"][..], &["reshard", "3", "-o", "json"]] {
        let said = mock.cluster.run(arguments);
        assert!(said.code == 2 && said.err.contains("--yes"), "{said:?}");
    }
    assert!(changes(&mock).iter().all(|change| change.starts_with(DRY)));
    for arguments in [&["reshard"][..], &["reshard", "x"], &["reshard", "3", "status"]] {
        assert_eq!(mock.cluster.run(arguments).code, 2, "{arguments:?}");
    }
}

#[test]
fn a_reshard_is_watched_to_its_end_and_gives_a_receipt() {
    let mock = resharding("watch", 52, PHASES);
    let said = mock.cluster.run(&["reshard", "3", "--yes"]);
    assert_eq!(said.code, 0, "{said:?}");
    let begin = format!(r#"{BEGIN} {{"epoch":1,"shard-count":3}}"#);
    assert_eq!(changes(&mock), [format!(r#"{DRY} {{"shard-count":3}}"#), begin]);
    assert!(said.err.contains("copying\ns1 → s3: 0 of 200 keys, 0 B\ns2 → s3: 0 of 200 keys, 0 B\n"), "{said:?}");
    assert!(said.err.contains("settling\ns1 → s3: 200 of 200 keys, 4.0 kB\n"), "{said:?}");
    let receipt: Vec<Vec<&str>> = said.out.lines().skip(5).map(words).collect();
    assert_eq!(receipt[0], ["SHARD", "MEMBERS", "KEYS-BEFORE", "KEYS", "REPLICAS", "DIGEST"]);
    assert_eq!(receipt[1], ["s1", "alice,bob", "301", "200", "equal", "of-s1"]);
    assert_eq!(receipt[3], ["s3", "carol,frank", "-", "200", "equal", "of-s3"]);
    assert_eq!(receipt[4], ["all", "600", "600"]);
    assert!(!said.err.contains("agree"), "{said:?}");

    let mock = resharding("watchj", 53, PHASES);
    let said = mock.cluster.run(&["reshard", "3", "--yes", "-o", "json"]);
    let document: Value = serde_json::from_str(&said.out).expect("one document");
    assert_eq!((&document["job"], &document["phase"], &document["epoch"]), (&json!(3), &json!("done"), &json!(2)));
    assert_eq!((&document["receipt"]["keys-before"], &document["receipt"]["keys"]), (&json!(600), &json!(600)));
    assert_eq!(document["receipt"]["converged"], true);
}

/// The plan is the first thing that is printed, and there is more to be done.
#[test]
fn a_reader_that_goes_away_stops_nothing_half_way() {
    let mock = resharding("unread", 60, PHASES);
    let said: Said =
        mock.cluster.command(&["reshard", "3", "--yes"]).stdout(unread()).output().expect("it starts").into();
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(changes(&mock).len(), 2, "the plan was asked for, and the change");
    assert!(said.err.contains("settling"), "it is watched to its end: {said:?}");
}

#[test]
fn what_is_refused_has_its_exit_code() {
    let mock = Mock::new("refuse", 54);
    let error = "Not enough nodes to provide fault tolerance with requested shard count";
    mock.answer(DRY, 400, json!({ "error": error }));
    let said = mock.cluster.run(&["reshard", "4", "--yes"]);
    assert!(said.code == 2 && said.err.contains(error), "{said:?}");
    let plan = plan(&mock);
    mock.script(move |asked| match asked.what.as_str() {
        DRY => Some((200, plan.clone())),
        BEGIN => Some((409, json!({ "error": "the epoch has moved to 2" }))),
        _ => None,
    });
    let said = mock.cluster.run(&["reshard", "3", "--yes"]);
    assert!(said.code == 5 && said.err.contains("moved to 2") && said.err.contains("reshard status"), "{said:?}");
    mock.answer("DELETE /shard/reshard", 409, json!({ "error": "none runs" }));
    assert_eq!(mock.cluster.run(&["reshard", "abort"]).code, 5);
}

#[test]
fn an_interrupt_only_detaches() {
    let mock = resharding("detach", 55, &[("copying", 10)]);
    let mut command = mock.cluster.command(&["reshard", "3", "--yes"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    hear(&mut child, "20 of 200 keys");
    interrupt(&child);
    hear(&mut child, "`kvctl reshard status` shows it, `kvctl reshard abort` gives it up");
    assert_eq!(child.wait().expect("it ends").code(), Some(1), "it is not done");
    assert!(changes(&mock).iter().all(|change| !change.starts_with("DELETE")));

    let status = mock.cluster.ok(&["reshard", "status"]);
    assert!(status.starts_with("job 3 (reshard): copying, epoch 2\n"), "{status}");
    assert_eq!(status.lines().nth(2).map(words), Some(vec!["s1", "s3", "carol", "10", "100", "200", "B"]));
    let json = |arguments: &[&str]| -> Value {
        serde_json::from_str(&mock.cluster.ok(&[arguments, &["-o", "json"]].concat())).expect("one document")
    };
    assert_eq!(json(&["reshard", "status"]), job(&mock, "copying", 10));
    assert_eq!(json(&["reshard", "abort"]), json!({ "result": "aborted" }));
    changes(&mock);
    assert_eq!(mock.cluster.ok(&["reshard", "abort"]), "aborted\n");
    assert_eq!(changes(&mock), ["DELETE /shard/reshard null"]);
}

#[test]
fn one_that_is_not_waited_for_goes_on_alone() {
    let mock = resharding("alone", 56, &[("copying", 10)]);
    let said = mock.cluster.run(&["reshard", "3", "--yes", "--no-wait"]);
    assert_eq!(
        (said.code, said.out.lines().last()),
        (0, Some("job 3 begun; `kvctl reshard status` shows how far it is"))
    );
    let said = mock.cluster.run(&["reshard", "3", "--yes", "--no-wait", "-o", "json"]);
    let document: Value = serde_json::from_str(&said.out).expect("one document");
    assert_eq!(document["job"], 3);
}

#[test]
fn an_abort_ends_the_watching_in_failure() {
    let mock = resharding("abort", 57, &[("copying", 10), ("aborted", 10)]);
    let said = mock.cluster.run(&["reshard", "3", "--yes"]);
    assert!(said.code == 1 && said.err.contains("job 3 was aborted"), "{said:?}");
}

#[test]
fn a_layout_that_is_there_already_is_left_alone() {
    let mock = Mock::new("same", 58);
    let shard = |id: &str, members: &[String]| json!({ "id": id, "members": members, "members-before": members, "slots": 8192, "slots-before": 8192 });
    let shards = [shard("s1", &mock.addresses[..3]), shard("s2", &mock.addresses[3..])];
    mock.answer(DRY, 200, json!({ "epoch": 1, "plan": { "shards": shards, "moved-slots": 0 }, "warnings": [] }));
    let Said { code, out, .. } = mock.cluster.run(&["reshard", "2", "--yes"]);
    assert_eq!((code, out.lines().last()), (0, Some("nothing to do")));
    assert!(changes(&mock).iter().all(|change| change.starts_with(DRY)));
    mock.answer("GET /shard/reshard", 200, json!({ "job": null, "phase": "idle", "moves": [], "waiting-for": [] }));
    assert_eq!(mock.cluster.ok(&["reshard", "status"]), "no change has run yet\n");
}

#[test]
fn replicas_that_differ_are_said_in_the_receipt_and_do_not_fail_it() {
    let mock = resharding("differ", 59, &[("done", 100)]);
    let plan = plan(&mock);
    let after: Vec<Value> = (0..6).map(|node| status_after(&mock, node)).collect();
    let done = job(&mock, "done", 100);
    let mut begun = false;
    mock.script(move |asked| match asked.what.as_str() {
        DRY => Some((200, plan.clone())),
        BEGIN => {
            begun = true;
            Some((202, json!({ "job": 3 })))
        }
        "GET /shard/reshard" => Some((200, done.clone())),
        "GET /status" if begun => {
            let mut status = after[asked.node].clone();
            if asked.node == 5 {
                status["digest"] = json!("another");
            }
            Some((200, status))
        }
        _ => None,
    });
    let said = mock.cluster.run(&["reshard", "3", "--yes"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.err.contains("warning: s3: ") && said.err.contains("kvctl wait --for converged"), "{said:?}");
    assert!(said.out.lines().any(|line| words(line) == ["s3", "carol,frank", "-", "200", "differ", "-"]), "{said:?}");
}
