//! Sessions that don't fit the cluster any more: told which, why, and what to do; or begun anew where that can harm nobody.

mod support;

use std::fs;
use std::sync::{Arc, Mutex};

use serde_json::json;
use support::mock::Mock;
use support::{Cluster, Said};

fn cluster(name: &str, block: u8) -> Cluster {
    let second = 80 + (std::process::id() % 100) as u8;
    Cluster::new(name, &["--runtime", "local", "--subnet", &format!("10.{second}.{block}.0/24")])
}

/// The nodes lose all they have and form another cluster.
fn lose_all(cluster: &Cluster) {
    cluster.ok(&["cluster", "down", "--keep-data"]);
    fs::remove_dir_all(cluster.state().join("data")).expect("removed");
    cluster.ok(&["cluster", "up", "--accept-data-loss"]);
}

#[test]
fn a_session_of_a_cluster_that_is_gone_begins_anew_by_itself() {
    let cluster = cluster("anew", 80);
    cluster.up();
    cluster.ok(&["put", "x", "1"]);
    cluster.ok(&["put", "y", "1", "--session", "mine"]);
    lose_all(&cluster);
    let said = cluster.run(&["get", "x"]);
    assert_eq!(said.code, 3, "{said:?}");
    for word in ["session 'default'", "begins anew"] {
        assert!(said.err.contains(word), "{word}: {said:?}");
    }
    let said = cluster.run(&["put", "y", "2", "--session", "mine"]);
    assert_eq!((said.code, said.out.as_str()), (0, "created (2 replicas)\n"), "{said:?}");
    assert!(!cluster.run(&["get", "y", "--session", "mine"]).err.contains("begins anew"), "once is enough");
    assert_eq!(cluster.ok(&["keys"]), "y\n");
}

#[test]
fn a_session_that_can_not_be_understood_says_which_and_the_ways_out() {
    let cluster = cluster("torn", 81);
    cluster.up();
    cluster.ok(&["put", "x", "1"]);
    let path = cluster.state().join("sessions/default.context");
    let good = fs::read(&path).expect("a session");
    let mut torn = good.clone();
    torn.truncate(12);
    for damaged in [torn, b"\xff\xfe".to_vec(), b"not a\x01token".to_vec(), vec![b'x'; 1 << 20]] {
        fs::write(&path, &damaged).expect("written");
        for command in [&["get", "x"][..], &["put", "x", "2"], &["delete", "x"], &["keys"]] {
            let said = cluster.run(command);
            assert_eq!(said.code, 2, "{command:?}: {said:?}");
            for word in ["session 'default'", &path.display().to_string(), "--no-session", "--reset-session"] {
                assert!(said.err.contains(word), "{command:?}, {word}: {said:?}");
            }
        }
        assert_eq!(cluster.ok(&["get", "x", "--no-session"]), "1\n");
        assert_eq!(fs::read(&path).expect("a session"), damaged, "nothing is reset unasked");
    }
    assert_eq!(cluster.ok(&["get", "x", "--reset-session"]), "1\n");
    assert_eq!(cluster.ok(&["get", "x"]), "1\n");
    // One that holds the context alone, as they were once written.
    let text = String::from_utf8(good).expect("text");
    fs::write(&path, text.lines().next().expect("a context")).expect("written");
    assert_eq!(cluster.ok(&["get", "x"]), "1\n");
}

#[test]
fn a_write_whose_session_can_not_be_kept_is_told_to_be_done() {
    let mock = Mock::new("kept", 82);
    let folder = mock.cluster.state().join("sessions");
    let asked = Arc::new(Mutex::new(folder.clone()));
    mock.script(move |one| {
        // Between the question and the answer there is no place left to keep what is seen.
        let written = one.what.starts_with("PUT /kvs/") || one.what.starts_with("DELETE /kvs/");
        written.then(|| {
            let folder = asked.lock().expect("nobody panics").clone();
            fs::remove_dir_all(&folder).expect("removed");
            fs::write(&folder, "").expect("written");
            (200, json!({ "result": "replaced", "replicas": 2, "causal-metadata": "T" }))
        })
    });
    for (command, what) in
        [(&["put", "x", "1"][..], "the value was written"), (&["delete", "x"], "the key was deleted")]
    {
        let said: Said = mock.cluster.run(command);
        assert_eq!((said.code, said.out.as_str()), (10, ""), "{command:?}: {said:?}");
        for word in [what, "session 'default'", "sessions"] {
            assert!(said.err.contains(word), "{command:?}, {word}: {said:?}");
        }
        fs::remove_file(&folder).expect("removed");
    }
}
