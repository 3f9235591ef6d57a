//! Changes of the topology, and waiting, against stand-ins for nodes: what kvctl asks of them, and what it says.

mod support;

use std::process::Stdio;

use serde_json::{Value, json};
use support::mock::{Asked, Mock};
use support::{Said, hear, interrupt, until};

/// `PUT /view {…}`.
fn asked(all: &[Asked]) -> Vec<String> {
    all.iter().map(|asked| format!("{} {}", asked.what, asked.body)).collect()
}

/// The one JSON document that a command printed.
fn document(said: &Said) -> Value {
    let documents: Vec<_> = serde_json::Deserializer::from_str(&said.out).into_iter::<Value>().collect();
    assert_eq!(documents.len(), 1, "{said:?}");
    documents.into_iter().next().and_then(Result::ok).expect("JSON")
}

#[test]
fn members_of_the_view_are_added_and_removed() {
    let mock = Mock::new("view", 40);
    let grace = format!("{}8:8090", mock.prefix);
    mock.answer("PUT /view", 201, json!({ "result": "added" }));
    assert_eq!(mock.cluster.ok(&["view", "add", &grace]), "added\n");
    assert_eq!(asked(&mock.changes()), [format!(r#"PUT /view {{"socket-address":"{grace}"}}"#)]);
    assert_eq!(mock.cluster.ok(&["view"]).lines().count(), 6);

    let warning = "shard s2 has 1 replica";
    mock.answer("DELETE /view", 200, json!({ "result": "deleted", "warning": warning }));
    for _ in 0..8 {
        let said = mock.cluster.run(&["view", "remove", "frank"]);
        assert_eq!((said.code, said.out.as_str()), (0, "deleted\n"), "{said:?}");
        assert!(said.err.contains(&format!("warning: {warning}")) && said.err.contains("node stop frank"), "{said:?}");
    }
    let changes = mock.changes();
    assert!(changes.iter().all(|one| one.body["socket-address"] == *mock.addresses[5]), "{changes:?}");
    let state = || std::fs::read_to_string(mock.cluster.state().join("cluster.json")).expect("a file");
    assert!(state().contains("removed"));
    mock.answer("PUT /view", 201, json!({ "result": "added" }));
    mock.cluster.ok(&["view", "add", "frank"]);
    assert!(!state().contains("removed"), "it is a member again");
    mock.answer("DELETE /view", 200, json!({ "result": "deleted", "warning": warning }));
    let document = document(&mock.cluster.run(&["view", "remove", "frank", "-o", "json"]));
    assert_eq!(document, json!({ "result": "deleted", "warning": warning }));

    mock.answer("DELETE /view", 404, json!({ "error": "View has no such replica" }));
    assert_eq!(mock.cluster.run(&["view", "remove", &grace]).code, 3);
    assert!(!state().contains("grace"));
    mock.cluster.run(&["view", "add", "frank"]);
    assert_eq!(mock.cluster.run(&["view", "remove", "frank"]).code, 3);
    assert!(state().contains("removed"), "an earlier command had not waited for the answer");
    mock.answer("DELETE /view", 409, json!({ "error": "the last replica of s2" }));
    let said = mock.cluster.run(&["view", "remove", "dave"]);
    assert!(said.code == 5 && said.err.contains("the last replica of s2"), "{said:?}");
    mock.script(|_| None);
    let said = mock.cluster.run(&["view", "add", &grace]);
    assert!(said.code == 10 && said.err.contains("newer kvnode"), "{said:?}");
    mock.answer("PUT /view", 400, json!({ "error": "no address" }));
    assert_eq!(mock.cluster.run(&["view", "add", "x:y:z"]).code, 2);
    assert_eq!(mock.cluster.run(&["view", "add", "nobody"]).code, 3, "it is no address and no node's name");
}

#[test]
fn a_node_that_leaves_is_asked_last() {
    let mock = Mock::new("leave", 41);
    let path = mock.cluster.state().join("cluster.json");
    let mut record: Value = serde_json::from_str(&std::fs::read_to_string(&path).expect("a file")).expect("JSON");
    // Two nodes: with the leaving one asked at random, ten times without it would be a wonder.
    record["spec"]["nodes"] = json!(2);
    record["spec"]["shards"] = json!(1);
    std::fs::write(&path, record.to_string()).expect("written");
    mock.answer("DELETE /view", 200, json!({ "result": "deleted" }));
    for _ in 0..10 {
        mock.cluster.ok(&["view", "remove", "bob"]);
    }
    assert!(mock.changes().iter().all(|asked| asked.node == 0));
    mock.cluster.ok(&["view", "remove", "bob", "--via", "bob"]);
    assert!(mock.changes().iter().all(|asked| asked.node == 1), "but it can be chosen");
}

#[test]
fn a_shard_gets_a_member_or_says_why_not() {
    let mock = Mock::new("member", 42);
    mock.answer("PUT /shard/add-member/s1", 200, json!({ "result": "node added to shard" }));
    assert_eq!(mock.cluster.ok(&["shard", "add-member", "s1", "erin"]), "node added to shard\n");
    let wanted = format!(r#"PUT /shard/add-member/s1 {{"socket-address":"{}"}}"#, mock.addresses[4]);
    assert_eq!(asked(&mock.changes()), [wanted]);
    let said = mock.cluster.run(&["shard", "add-member", "s1", &mock.addresses[4], "-o", "json"]);
    assert_eq!(document(&said)["result"], "node added to shard");
    for (status, code) in [(404, 3), (409, 5), (503, 1)] {
        mock.answer("PUT /shard/add-member/s1", status, json!({ "error": "no" }));
        assert_eq!(mock.cluster.run(&["shard", "add-member", "s1", "erin"]).code, code);
    }
    mock.answer("PUT /shard/add-member/s1", 0, Value::Null);
    let said = mock.cluster.run(&["shard", "add-member", "s1", "erin", "--timeout", "200ms"]);
    assert!(said.code == 6 && said.err.contains("still go on"), "{said:?}");
}

#[test]
fn a_node_is_added_and_belongs_to_the_cluster_from_then_on() {
    let mock = Mock::new("add", 43);
    let (cluster, grace) = (&mock.cluster, format!("{}8:8090", mock.prefix));
    let stand_in = cluster.stand_in(
        "export -p > \"$DATA_DIR.env\"; mkdir() { /bin/mkdir \"$@\"; }; mkdir -p \"$DATA_DIR\"; exec /bin/sleep 100",
    );
    std::fs::write(cluster.state().join("pids/.kvnode"), stand_in.to_str().expect("text")).expect("written");
    let (told, view, lists) = (cluster.state().join("data/grace.env"), mock.addresses.clone(), grace.clone());
    mock.script(move |asked| {
        let joined = asked.what == "GET /view" && std::fs::exists(&told).is_ok_and(|there| there);
        let all = [view.clone(), vec![lists.clone()]].concat();
        joined.then(|| (200, json!({ "view": all })))
    });
    let said = cluster.run(&["node", "add", "grace"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(said.out, format!("grace joined: {grace} at http://{grace}, in no shard yet\n"));
    assert!(mock.changes().is_empty(), "it joins by itself");
    let variables = std::fs::read_to_string(cluster.state().join("data/grace.env")).expect("it was started");
    let all = [mock.addresses.clone(), vec![grace.clone()]].concat().join(",");
    assert!(variables.contains(&format!("VIEW='{all}'")) && !variables.contains("SHARD_COUNT"), "{variables}");
    assert!(variables.contains(&format!("SOCKET_ADDRESS='{grace}'")), "{variables}");

    let nodes = cluster.status()["nodes"].as_array().expect("nodes").clone();
    assert_eq!((nodes.len(), &nodes[6]["name"], &nodes[6]["state"]), (7, &json!("grace"), &json!("running")));
    let said = cluster.run(&["node", "add", "grace"]);
    assert!(said.code == 5 && said.err.contains("node start grace"), "{said:?}");
    assert_eq!(cluster.run(&["node", "add", "../x"]).code, 2);
    let heidi = document(&cluster.run(&["node", "add", "--timeout", "200ms", "-o", "json"]));
    assert_eq!(heidi["exit-code"], 6, "the view does not list it: {heidi}");
    assert_eq!(cluster.ok(&["node", "kill", "grace"]), "grace stopped\n");
    assert_eq!(cluster.ok(&["node", "start", "grace"]), "grace running\n");
    let pid = std::fs::read_to_string(cluster.state().join("pids/grace")).expect("it runs");
    cluster.ok(&["cluster", "down", "--yes"]);
    let process = format!("/proc/{}", pid.split(' ').next().expect("a number"));
    until("down has ended it, too", || !std::path::Path::new(&process).exists());
}

#[test]
fn a_node_that_does_not_join_is_taken_back() {
    let mock = Mock::new("stray", 44);
    let cluster = &mock.cluster;
    let state = || std::fs::read_to_string(cluster.state().join("cluster.json")).expect("a file");
    let nodes = || cluster.status()["nodes"].as_array().map_or(0, Vec::len);
    let run = |lines: &str| {
        let stand_in = cluster.stand_in(lines);
        std::fs::write(cluster.state().join("pids/.kvnode"), stand_in.to_str().expect("text")).expect("written");
        cluster.run(&["node", "add", "grace", "--timeout", "300ms"])
    };
    let said = run("/bin/mkdir -p \"$DATA_DIR\"; exec /bin/sleep 100");
    assert!(said.code == 6 && said.err.contains("not in the view after 300ms: it does not answer"), "{said:?}");
    assert!(nodes() == 6 && !state().contains("grace") && !cluster.state().join("data/grace").exists());
    let said = run("echo its last words; exit 1");
    assert!(said.code == 1 && said.err.contains("its last words"), "{said:?}");
    assert_eq!(nodes(), 6);
    let stand_in = cluster.stand_in("/bin/mkdir -p \"$DATA_DIR\"; exec /bin/sleep 100");
    std::fs::write(cluster.state().join("pids/.kvnode"), stand_in.to_str().expect("text")).expect("written");
    let mut child = cluster.command(&["node", "add"]).stderr(Stdio::piped()).spawn().expect("it starts");
    hear(&mut child, "waiting until the others list grace");
    interrupt(&child);
    hear(&mut child, "interrupted");
    assert_eq!((child.wait().expect("it ends").code(), nodes()), (Some(1), 6));
    let _holder = std::net::TcpListener::bind(format!("{}8:8090", mock.prefix)).expect("a free address");
    let said = run("exec /bin/sleep 100");
    assert!(said.code == 10 && said.err.contains("is held by"), "{said:?}");
    assert_eq!(nodes(), 6);
}

#[test]
fn waiting_ends_when_the_goal_is_reached() {
    let mock = Mock::new("wait", 45);
    let wait = |goal: &str, more: &[&str]| mock.cluster.run(&[&["wait", "--for", goal][..], more].concat());
    for goal in ["ready", "converged", "epoch=1"] {
        let said = wait(goal, &[]);
        assert_eq!((said.code, said.out), (0, format!("{goal}\n")));
    }
    assert_eq!(document(&wait("ready", &["-o", "json"]))["for"], "ready");
    assert_eq!(wait("soon", &[]).code, 2);
    assert_eq!(wait("ready", &["--timeout", "soon"]).code, 2);

    mock.script(|asked| (asked.node == 2 && asked.what == "GET /ready").then(|| (503, json!({ "error": "filling" }))));
    let said = wait("ready", &["--timeout", "300ms"]);
    assert!(said.code == 6 && said.err.contains("not ready after 300ms\n  carol: filling"), "{said:?}");
    let said = wait("epoch=2", &["--timeout", "0s"]);
    assert!(said.code == 6 && said.err.contains("alice: it is at epoch 1"), "{said:?}");

    // One replica catches up while it is waited for.
    let (behind, mut asked_for) = (mock.status(4), 0);
    mock.script(move |asked| {
        let late = asked.node == 4 && asked.what == "GET /status" && asked_for < 3;
        asked_for += usize::from(late);
        let mut status = behind.clone();
        status["digest"] = json!("behind");
        late.then_some((200, status))
    });
    let said = wait("converged", &[]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.err.contains("waiting until converged: s2"), "{said:?}");
    mock.cluster.ok(&["wait", "--for", "converged"]);
}

#[test]
fn a_recovery_is_not_begun_by_mistake() {
    let mock = Mock::new("recover", 46);
    let (here, result) = (mock.addresses[..2].to_vec(), json!({ "result": "recovered" }));
    mock.script(move |asked| match asked.what.as_str() {
        "GET /view" => Some((200, json!({ "view": here }))),
        "PUT /view/recover" => Some((200, result.clone())),
        _ => None,
    });
    let said = mock.cluster.run(&["view", "recover"]);
    assert!(said.code == 2 && said.err.contains("--via"), "{said:?}");
    let said = mock.cluster.run(&["view", "recover", "--via", "bob"]);
    assert!(said.code == 2 && said.err.contains("--yes-i-may-lose-writes"), "{said:?}");
    assert!(
        said.err.contains("leaves behind: carol,dave,erin,frank") && said.err.contains("ALL KEYS of s2"),
        "{said:?}"
    );
    assert_eq!(mock.changes(), []);
    let sure = ["view", "recover", "--via", "bob", "--yes-i-may-lose-writes"];
    assert_eq!(mock.cluster.ok(&sure), "recovered\n");
    let changes = mock.changes();
    assert_eq!((asked(&changes), changes[0].node), (vec![r#"PUT /view/recover {"confirm":true}"#.to_owned()], 1));
    let said = document(&mock.cluster.run(&[&sure[..], &["-o", "json"]].concat()));
    assert_eq!(said, json!({ "result": "recovered" }));
    assert_eq!(mock.cluster.run(&["view", "recover", "--via", "nobody"]).code, 3);
    mock.script(|_| None);
    let said = mock.cluster.run(&sure);
    assert!(said.code == 5 && said.err.contains("bob reaches all nodes"), "{said:?}");
    assert_eq!(mock.changes().len(), 1, "the one before");
}
