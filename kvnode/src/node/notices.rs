//! Notices of the core as lines of the log.

use tracing::{info, warn};

use kvnode_core::Notice;
use kvnode_core::topology::Ended;
use kvnode_types::ident::Addr;

pub fn log(notice: &Notice) {
    match notice {
        Notice::Answered { asked, answer } => info!(asked, answer, "a request for a change was answered"),
        Notice::Begun { job, change, asked_at: Some(at) } => info!(job, change, asked_at = %at, "a change has begun"),
        Notice::Begun { job, change, asked_at: None } => info!(job, change, "a change has begun"),
        Notice::InForce { job, change, epoch } => info!(job, change, epoch, "the layout of a change is in force"),
        Notice::Ended { job, change, how: Ended::Done } => info!(job, change, "a change is done"),
        Notice::Ended { job, change, how: Ended::Aborted } => warn!(job, change, "a change was aborted"),
        Notice::Listed(node) => info!(%node, "a node is in the view"),
        Notice::Unlisted(node) => info!(%node, "a node is not in the view any more"),
        Notice::AnotherSecret(node) => {
            warn!(%node, "a node refuses this one: their CLUSTER_SECRETs differ, or only one has any");
        }
        Notice::MajorityLost { of, reached, members, away } => {
            let away = away.iter().map(Addr::as_str).collect::<Vec<&str>>().join(", ");
            warn!(%of, reached, members, away, "no majority can be reached");
        }
        Notice::MajorityBack { of, reached, members } => {
            info!(%of, reached, members, "a majority can be reached again")
        }
    }
}
