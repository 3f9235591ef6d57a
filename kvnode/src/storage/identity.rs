//! Who a data directory belongs to: the file `identity` beside the engine's files.
//!
//! It outlives them: where it is there and they are gone, or damaged, it tells a node that has lost its data from one that starts for the
//! first time. (A directory that is wholly empty looks like a first start.)

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kvnode_core::loss::Identity;
use kvnode_core::topology::ClusterId;
use kvnode_types::ident::{Incarnation, NodeId};
use serde::{Deserialize, Serialize};

use super::whole;

const NAME: &str = "identity";

/// The file, and what is in it.
#[derive(Debug)]
pub struct IdentityFile {
    path: PathBuf,
    noted: Mutex<Option<Identity>>,
}

/// As it is written. Later releases may add fields.
#[derive(Serialize, Deserialize)]
struct Line {
    /// 32 hexadecimal digits.
    cluster: String,
    node: u32,
    incarnation: u64,
}

impl IdentityFile {
    /// # Errors
    /// Why it can't be read, to follow the directory's name.
    pub fn open(dir: &Path) -> Result<Self, String> {
        let path = dir.join(NAME);
        let noted = match fs::read(&path) {
            Ok(text) => Some(parse(&text).ok_or_else(|| {
                format!("has a file {NAME} that can't be read; a good one is '{{\"cluster\":\"(32 digits)\",\"node\":1,\"incarnation\":1}}'")
            })?),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(format!("can't be used: {NAME}: {error}")),
        };
        Ok(Self { path, noted: Mutex::new(noted) })
    }

    pub fn noted(&self) -> Option<Identity> {
        *self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes it down, if it has changed. May block.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn note(&self, identity: Identity) -> std::io::Result<()> {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if *noted == Some(identity) {
            return Ok(());
        }
        let Identity { cluster, node, life } = identity;
        let line = Line { cluster: format!("{:032x}", cluster.0), node: node.0, incarnation: life.0 };
        whole::write(&self.path, &(serde_json::to_string(&line)? + "\n"))?;
        *noted = Some(identity);
        Ok(())
    }
}

fn parse(text: &[u8]) -> Option<Identity> {
    let Line { cluster, node, incarnation } = serde_json::from_slice(text).ok()?;
    let cluster = ClusterId(u128::from_str_radix(&cluster, 16).ok()?);
    Some(Identity { cluster, node: NodeId(node), life: Incarnation(incarnation) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = IdentityFile::open(folder.path()).unwrap();
        assert_eq!(file.noted(), None);
        let mut identity = Identity { cluster: ClusterId(77), node: NodeId(3), life: Incarnation(1_900_000_000_000) };
        for _ in 0..3 {
            file.note(identity).unwrap();
            assert_eq!(IdentityFile::open(folder.path()).unwrap().noted(), Some(identity));
            identity.life.0 += 1;
        }
        fs::write(folder.path().join(NAME), "{}").unwrap();
        assert!(IdentityFile::open(folder.path()).unwrap_err().contains(NAME));
    }
}
