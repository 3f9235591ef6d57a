//! Data that is left of a cluster which this kvctl does not remember: named, and used or deleted only if somebody says so.

use std::collections::BTreeMap;

use super::Context;
use crate::args::Consent;
use crate::cluster::Spec;
use crate::error::{Code, Failure, Result};
use crate::render::say;
use crate::runtime::left::{self, Left};
use crate::state::RuntimeKind;

/// Before a cluster is made: what is left there of an earlier one is used, deleted, or in the way.
pub async fn settle(context: &Context, spec: &Spec, kind: RuntimeKind, consent: Consent) -> Result<()> {
    let left = left::of(kind, spec, &context.state).await?;
    if left.is_empty() {
        return context.state.forget_seen();
    }
    let (own, others): (Vec<Left>, Vec<Left>) = left.iter().cloned().partition(|one| one.is_of(&spec.name));
    if let Some(failure) = not_ours(&others, consent) {
        return Err(failure);
    }
    if consent.adopt {
        say(&format!("using what is left: {}", left::shown(&left)));
        return Ok(());
    }
    if consent.wipe {
        say(&format!("deleting what is left: {}", left::shown(&own)));
        left::delete(&own).await?;
        return context.state.forget_seen();
    }
    let text = format!(
        "data of a cluster '{}' is left, which this kvctl does not remember: {}; nothing was changed. `kvctl cluster up \
         --adopt`, with the options that the cluster was made with, goes on with it; --wipe deletes it",
        spec.name,
        left::shown(&left)
    );
    Err(Failure::new(Code::Conflict, text))
}

/// Volumes that have the right names and are not marked as this cluster's: another's are never touched, and those that nobody
/// marked may be a copy that somebody has brought back, but are not for kvctl to delete.
fn not_ours(others: &[Left], consent: Consent) -> Option<Failure> {
    let of_another = |one: &Left| matches!(one, Left::Volume { cluster: Some(_), .. });
    let in_the_way: Vec<&Left> = others.iter().filter(|one| of_another(one) || !consent.adopt).collect();
    let first = in_the_way.first()?;
    let whose = match first {
        Left::Volume { cluster: Some(cluster), .. } => format!("belongs to cluster '{cluster}'"),
        Left::Volume { .. } | Left::Folder { .. } => "was not made by kvctl; --adopt uses it".to_owned(),
    };
    let names: Vec<&str> = in_the_way
        .iter()
        .filter_map(|one| match one {
            Left::Volume { name, .. } => Some(name.as_str()),
            Left::Folder { .. } => None,
        })
        .collect();
    let text = format!(
        "{} is in the way: it {whose}; remove it (`docker volume rm {}`), or use --name",
        first.shown(),
        names.join(" ")
    );
    Some(Failure::new(Code::Conflict, text))
}

/// `--adopt` and `--wipe` are for what is not known.
///
/// # Errors
/// Conflict, if one is given.
pub fn check_unneeded(context: &Context, consent: Consent) -> Result<()> {
    if !consent.adopt && !consent.wipe {
        return Ok(());
    }
    let text = format!(
        "this kvctl knows cluster '{}': --adopt and --wipe are for what is left of one that it does not know; `kvctl cluster \
         down` deletes this one and its data",
        context.name
    );
    Err(Failure::new(Code::Conflict, text))
}

/// The error that there is no such cluster, with what is left of any that are not remembered.
pub async fn named(context: &Context, failure: Failure) -> Failure {
    let left = left::forgotten(&context.state).await;
    if left.is_empty() {
        return failure;
    }
    let message = format!(
        "{failure}. Data of clusters that this kvctl does not remember is left: {}. `kvctl cluster up --name NAME --adopt` goes \
         on with it, --wipe in its place deletes it",
        by_cluster(&context.name, &left)
    );
    Failure::new(failure.code, message)
}

/// What is left of each cluster: all of the one that is asked for, the first of others.
fn by_cluster(asked: &str, left: &[Left]) -> String {
    let mut clusters: BTreeMap<&str, Vec<Left>> = BTreeMap::new();
    for one in left {
        let cluster = match one {
            Left::Volume { cluster: Some(cluster), .. } => cluster,
            Left::Volume { cluster: None, .. } | Left::Folder { .. } => asked,
        };
        clusters.entry(cluster).or_default().push(one.clone());
    }
    let text = |(cluster, all): (&str, Vec<Left>)| match all.as_slice() {
        [first, .., _] if cluster != asked => {
            format!("of cluster '{cluster}' {} and {} more", first.shown(), all.len() - 1)
        }
        all => format!("of cluster '{cluster}' {}", left::shown(all)),
    };
    clusters.into_iter().map(text).collect::<Vec<String>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_by_cluster() {
        let volume = |name: &str, cluster: &str| Left::Volume {
            name: name.into(),
            cluster: Some(cluster.into()),
            made: "then".into(),
        };
        let left = [volume("a1", "a"), volume("a2", "a"), volume("b1", "b"), volume("b2", "b"), volume("c1", "c")];
        let text = "of cluster 'a' volume 'a1' (made then), volume 'a2' (made then); of cluster 'b' volume 'b1' (made then) \
                    and 1 more; of cluster 'c' volume 'c1' (made then)";
        assert_eq!(by_cluster("a", &left), text);
    }
}
