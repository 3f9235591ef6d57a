//! Nodes whose secrets differ: both say so, and of whom.

use std::time::Duration;

use crate::http::Body;
use crate::support::{Cluster, within};

const SOON: Duration = Duration::from_secs(10);

fn warnings(cluster: &Cluster, node: usize) -> Vec<String> {
    let log = cluster.log(node);
    let about = |line: &&str| line.contains("WARN") && line.contains("CLUSTER_SECRET");
    log.lines().filter(about).filter(|line| line.contains("refuse")).map(str::to_owned).collect()
}

#[test]
fn a_node_with_another_secret_is_named_by_all_and_what_it_waits_for_is_said() {
    for other in [&[("CLUSTER_SECRET", "another")][..], &[]] {
        let mut cluster = Cluster::planned(3, 1, &[]);
        cluster.run(0, &[("CLUSTER_SECRET", "ours")]);
        cluster.run(1, &[("CLUSTER_SECRET", "ours")]);
        cluster.run(2, other);
        for (node, peer) in [(0, 2), (1, 2), (2, 0), (2, 1)] {
            let says = format!("{}, which has another CLUSTER_SECRET", cluster.name(peer));
            within(SOON, "its status and /ready tell it", || {
                let ready = cluster.try_send(node, "GET", "/ready", &[], Body::None);
                let told = ready.is_ok_and(|answer| answer.status == 503 && answer.to_string().contains(&says));
                told && refused_at(&cluster, node, peer)
            });
            within(SOON, "its log names it", || {
                warnings(&cluster, node).iter().any(|line| line.contains(&format!("node={}", cluster.name(peer))))
            });
            within(SOON, "its log tells that it refused one", || {
                warnings(&cluster, node).iter().any(|line| line.contains("a node was refused"))
            });
        }
        assert!(!refused_at(&cluster, 0, 1));
        let said = [0, 1, 2].map(|node| warnings(&cluster, node).len());
        assert!(said.iter().all(|&count| count <= 4), "once a minute: {said:?}");

        cluster.kill(&[2]);
        cluster.run(2, &[("CLUSTER_SECRET", "ours")]);
        cluster.wait_ready(&[0, 1, 2]);
        let status = cluster.get(0, "/status").json();
        assert!(status["peers"].as_array().expect("peers").iter().all(|peer| peer["refused"].is_null()), "{status}");
        // In a cluster that runs.
        cluster.kill(&[2]);
        cluster.run(2, other);
        within(SOON, "the cluster that runs tells it, too", || refused_at(&cluster, 0, 2));
        cluster.put(0, "x", "1", "");
    }
}

/// Whether a node's status says that a peer refuses it.
fn refused_at(cluster: &Cluster, node: usize, peer: usize) -> bool {
    let status = cluster.get(node, "/status").json();
    let peers = status["peers"].as_array().expect("peers").clone();
    peers.iter().any(|one| one["node"] == cluster.name(peer) && one["refused"] == "another-secret")
}
