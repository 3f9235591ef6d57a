//! `/metrics`: the node's status as Prometheus text.

use std::fmt::Write;

use kvnode_core::status::{PeerStatus, Status};

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
    gauge(
        "writes",
        "Writes accepted by this node under its present name: since it started, or since the layout changed.",
        status.writes,
    );
    gauge("log_bytes", "Bytes of recent writes kept for replicas that lag.", status.log_bytes as u64);
    gauge("waiting_requests", "Requests that wait for dependencies or copies.", status.waiting as u64);
    gauge("parked_requests", "Requests that wait for dependencies.", status.parked as u64);
    gauge("forwarded_requests", "Requests that wait for other nodes.", status.forwarded as u64);
    gauge("vector_entries", "Entries of the replica's version vector.", status.vector_entries as u64);
    gauge("lost_origins", "Origins of whose last writes some are lost.", status.losses.len() as u64);
    gauge(
        "refused_log_messages",
        "Messages of the topology's log that no voter sends, refused since the start.",
        status.refused_log_messages,
    );
    let mut by_peer = |name: &str, help: &str, value: &dyn Fn(&PeerStatus) -> Option<u64>| {
        let lines = status.peers.iter().filter_map(|peer| Some((&peer.node, value(peer)?)));
        let lines: String = lines.map(|(node, value)| format!("kvnode_{name}{{peer=\"{node}\"}} {value}\n")).collect();
        if !lines.is_empty() {
            let written = write!(text, "# HELP kvnode_{name} {help}\n# TYPE kvnode_{name} gauge\n{lines}");
            written.expect("writing to a string does not fail");
        }
    };
    by_peer("peer_reachable", "1 if the peer can be reached.", &|peer| Some(u64::from(peer.reachable)));
    by_peer("replication_lag_writes", "Writes that the peer is known to lack.", &|peer| peer.lag);
    text
}
