//! Data of nodes that nobody remembers: volumes, or folders of local processes.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::{docker, engine};
use crate::cluster::Spec;
use crate::error::{Failure, Result};
use crate::state::{RuntimeKind, StateDir};

/// Where data is, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// A volume; `cluster`: what its label says, if it has one.
    Volume { name: String, cluster: Option<String>, made: String },
    /// A node's folder.
    Folder { path: PathBuf, changed: Option<SystemTime> },
}

impl Left {
    /// For people: what it is, and how old.
    pub fn shown(&self) -> String {
        match self {
            Self::Volume { name, made, .. } => format!("volume '{name}' (made {made})"),
            Self::Folder { path, changed } => {
                let age = changed.and_then(|changed| changed.elapsed().ok());
                let age = age.map_or_else(|| "of unknown age".to_owned(), |age| format!("last changed {}", ago(age)));
                format!("{} ({age})", path.display())
            }
        }
    }

    /// Whether it is for kvctl to delete, as data of this cluster.
    pub fn is_of(&self, cluster: &str) -> bool {
        match self {
            Self::Volume { cluster: label, .. } => label.as_deref() == Some(cluster),
            Self::Folder { .. } => true,
        }
    }
}

/// For people: all of them.
pub fn shown(left: &[Left]) -> String {
    left.iter().map(Left::shown).collect::<Vec<String>>().join(", ")
}

/// `3 h ago`.
fn ago(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds} s ago"),
        seconds @ 120..7_200 => format!("{} min ago", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h ago", seconds / 3_600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

/// The data that nodes of this spec would find: their volumes and all that carry the cluster's label, or the folders here.
pub async fn of(kind: RuntimeKind, spec: &Spec, state: &StateDir) -> Result<Vec<Left>> {
    match kind {
        RuntimeKind::Local => Ok(folders(state)),
        RuntimeKind::Docker => {
            let names: Vec<String> = spec.node_specs().iter().map(|node| spec.volume(node)).collect();
            let is_used = |one: &Left| match one {
                Left::Volume { name, .. } => names.contains(name) || one.is_of(&spec.name),
                Left::Folder { .. } => false,
            };
            let all = docker::all_volumes(&engine::connect().await?).await?;
            Ok(all.into_iter().filter(is_used).collect())
        }
    }
}

/// The data of all clusters that are not remembered, as far as it can be seen from here: of this one in folders, of any in
/// volumes that kvctl has made.
pub async fn forgotten(state: &StateDir) -> Vec<Left> {
    let mut all = folders(state);
    // Without an engine there are no volumes to see.
    if let Ok(docker) = engine::connect().await {
        let volumes = docker::all_volumes(&docker).await.unwrap_or_default();
        let is_forgotten = |one: &Left| match one {
            Left::Volume { cluster: Some(cluster), .. } => !StateDir::of(cluster).is_ok_and(|state| state.has_record()),
            Left::Volume { cluster: None, .. } | Left::Folder { .. } => false,
        };
        all.extend(volumes.into_iter().filter(is_forgotten));
    }
    all
}

/// The folders of nodes' data in a cluster's folder.
fn folders(state: &StateDir) -> Vec<Left> {
    let entries = fs::read_dir(state.path().join("data")).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let changed = |path: &PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    paths.into_iter().map(|path| Left::Folder { changed: changed(&path), path }).collect()
}

/// Deletes it.
pub async fn delete(left: &[Left]) -> Result<()> {
    for one in left {
        match one {
            Left::Folder { path, .. } => fs::remove_dir_all(path)
                .map_err(|error| Failure::environment(format!("{}: {error}", path.display())))?,
            Left::Volume { name, .. } => docker::delete_volume(&engine::connect().await?, name).await?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_tells_its_age_and_whose_it_is() {
        let seconds = [0, 119, 120, 7_199, 7_200, 172_800];
        let texts = ["0 s ago", "119 s ago", "2 min ago", "119 min ago", "2 h ago", "2 days ago"];
        assert_eq!(seconds.map(|seconds| ago(Duration::from_secs(seconds))), texts);
        let volume = |cluster: Option<&str>| Left::Volume {
            name: "v".into(),
            cluster: cluster.map(str::to_owned),
            made: "2026-01-02".into(),
        };
        assert_eq!(volume(None).shown(), "volume 'v' (made 2026-01-02)");
        assert!(volume(Some("a")).is_of("a") && !volume(Some("b")).is_of("a") && !volume(None).is_of("a"));
        let folder = Left::Folder { path: "/d".into(), changed: None };
        assert_eq!(shown(&[folder, volume(None)]), "/d (of unknown age), volume 'v' (made 2026-01-02)");
    }
}
