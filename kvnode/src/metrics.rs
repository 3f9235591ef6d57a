//! `/metrics`: the node's status as Prometheus text.

use std::fmt::Write;

use crate::core::status::Status;

/// One gauge per figure, each with its help line.
pub fn render(status: &Status) -> String {
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, value: u64| {
        let written = writeln!(text, "# HELP kvnode_{name} {help}\n# TYPE kvnode_{name} gauge\nkvnode_{name} {value}");
        written.expect("writing to a string does not fail");
    };
    gauge("serving", "1 if the node serves its shard.", u64::from(status.stage == "serving"));
    gauge(
        "no_room",
        "1 if puts are refused for want of room, 2 if no writes are taken.",
        match status.room {
            "enough" => 0,
            "low" => 1,
            _ => 2,
        },
    );
    gauge("keys", "Keys with a value at this replica.", status.keys);
    gauge("writes", "Writes accepted by this node since it started.", status.writes);
    gauge("log_bytes", "Bytes of recent writes kept for replicas that lag.", status.log_bytes as u64);
    gauge("waiting_requests", "Requests that wait for dependencies or copies.", status.waiting as u64);
    gauge("parked_requests", "Requests that wait for dependencies.", status.parked as u64);
    gauge("forwarded_requests", "Requests that wait for other nodes.", status.forwarded as u64);
    gauge("vector_entries", "Entries of the replica's version vector.", status.vector_entries as u64);
    gauge("lost_origins", "Origins of whose last writes some are lost.", status.losses.len() as u64);
    for peer in &status.peers {
        let node = &peer.node;
        let written = writeln!(text, "kvnode_peer_reachable{{peer=\"{node}\"}} {}", u64::from(peer.reachable));
        written.expect("writing to a string does not fail");
        if let Some(lag) = peer.lag {
            writeln!(text, "kvnode_replication_lag_writes{{peer=\"{node}\"}} {lag}").expect("as above");
        }
    }
    text
}
