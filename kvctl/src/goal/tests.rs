use super::*;
use crate::observe::{PeerStatus, ShardStatus, Status};

/// Two shards of two: a and b, c and d; everything as it should be.
fn healthy() -> Vec<Seen> {
    let shard =
        |id: &str, members: [&str; 2]| ShardStatus { id: id.into(), members: members.map(str::to_owned).into() };
    let node = |name: &str, id: &str, peer: &str| Seen {
        name: name.to_uppercase(),
        address: name.into(),
        ready: Ok(()),
        status: Ok(Status {
            epoch: Some(2),
            shard: Some(id.into()),
            keys: Some(5),
            digest: Some(format!("digest of {id}")),
            shards: vec![shard("s1", ["a", "b"]), shard("s2", ["c", "d"])],
            peers: vec![PeerStatus { node: peer.into(), lag: Some(0), ..PeerStatus::default() }],
            ..Status::default()
        }),
    };
    vec![node("a", "s1", "b"), node("b", "s1", "a"), node("c", "s2", "d"), node("d", "s2", "c")]
}

fn status(seen: &mut Seen) -> &mut Status {
    seen.status.as_mut().expect("it has one")
}

/// Who is said to be missing, and why.
fn said(goal: Goal, seen: &[Seen]) -> Vec<String> {
    goal.unmet(seen).into_iter().map(|unmet| format!("{}: {}", unmet.who, unmet.why)).collect()
}

fn silent(node: &mut Seen) {
    node.ready = Err("no answer".into());
    node.status = Err("no answer".into());
}

#[test]
fn a_healthy_cluster_has_reached_everything() {
    for goal in [Goal::Ready, Goal::Converged, Goal::Epoch(2), Goal::Epoch(1)] {
        assert_eq!(said(goal, &healthy()), Vec::<String>::new(), "{goal}");
    }
    let late = ["A", "B", "C", "D"].map(|name| format!("{name}: it is at epoch 2"));
    assert_eq!(said(Goal::Epoch(3), &healthy()), late);
}

#[test]
fn a_silent_replica_is_missed_by_every_goal() {
    let mut seen = healthy();
    silent(&mut seen[1]);
    for goal in [Goal::Ready, Goal::Converged, Goal::Epoch(2)] {
        assert_eq!(said(goal, &seen), ["B: no answer"], "{goal}");
    }
}

#[test]
fn what_keeps_replicas_apart_is_named() {
    let mut seen = healthy();
    status(&mut seen[3]).digest = Some("another".into());
    status(&mut seen[0]).peers[0].lag = Some(7);
    status(&mut seen[1]).epoch = Some(1);
    let reasons = ["B: it is at epoch 1", "A: b lacks 7 of its writes", "s2: D, C differ"];
    assert_eq!(said(Goal::Converged, &seen), reasons);
    assert_eq!(said(Goal::Ready, &seen), Vec::<String>::new());
    let mut seen = healthy();
    status(&mut seen[2]).shard = Some("s9".into());
    assert_eq!(said(Goal::Converged, &seen), ["C: it is still in s9"]);
    status(&mut seen[2]).shard = Some("s2".into());
    status(&mut seen[2]).peers[0] = PeerStatus { node: "gone".into(), lag: Some(3), ..PeerStatus::default() };
    assert_eq!(said(Goal::Converged, &seen), Vec::<String>::new(), "one that left the shard needs no writes");
}

#[test]
fn a_node_in_no_shard_is_not_waited_for() {
    let mut seen = healthy();
    let mut spare = Seen { name: "E".into(), address: "e".into(), ..seen[0].clone() };
    silent(&mut spare);
    seen.push(spare);
    for goal in [Goal::Ready, Goal::Converged, Goal::Epoch(2)] {
        assert_eq!(said(goal, &seen), Vec::<String>::new(), "{goal}");
    }
}

#[test]
fn while_nobody_knows_a_shard_all_are_waited_for() {
    let mut seen = healthy();
    for node in &mut seen {
        node.ready = Err("forming".into());
        node.status = Ok(Status::default());
    }
    assert_eq!(said(Goal::Ready, &seen).len(), 4);
    assert_eq!(said(Goal::Epoch(1), &seen)[0], "A: it is in no cluster yet");
    assert_eq!(said(Goal::Converged, &seen)[3], "D: it is in no cluster yet");
}

#[test]
fn goals_are_written_as_they_are_read() {
    for text in ["ready", "converged", "epoch=17"] {
        assert_eq!(text.parse::<Goal>().expect("a goal").to_string(), text);
    }
    for text in ["", "Ready", "epoch", "epoch=", "epoch=-1", "epoch=x"] {
        assert!(text.parse::<Goal>().is_err(), "{text}");
    }
}
