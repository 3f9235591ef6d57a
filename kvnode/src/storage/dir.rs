//! Who owns a data directory: one process at a time, and one node for ever.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

use kvnode_types::ident::Addr;

use super::identity::IdentityFile;
use super::{format, whole};

/// A data directory that belongs to this process until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    /// Who has its data, as far as is known.
    pub identity: IdentityFile,
    _lock: File,
}

impl DataDir {
    /// Takes a directory for the node at `addr`; makes it if there is none.
    ///
    /// # Errors
    /// One line that says why the directory can't be used; nothing in it has been touched.
    pub fn open(path: &Path, addr: &Addr) -> Result<Self, String> {
        let bad = |why: String| format!("DATA_DIR (--data-dir) {} {why}", path.display());
        let unusable =
            |error: std::io::Error| bad(format!("can't be used: {error}; a good value is a writable directory"));
        let owner_path = path.join("node");
        match fs::read_to_string(&owner_path) {
            // A loss of power, or a full disk, when it was first started.
            Ok(owner) if owner.is_empty() => {}
            // By canonical form: an earlier release wrote the address as it was spelled.
            Ok(owner) if owner.trim().parse::<Addr>().as_ref() != Ok(addr) => {
                return Err(bad(format!(
                    "holds the data of {}, not of {addr}; a good value is this node's own directory",
                    owner.trim()
                )));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(unusable(error)),
            _ => {}
        }
        fs::create_dir_all(path).map_err(unusable)?;
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).open(path.join("lock")).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(bad("is in use by another process".into())),
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
        // Whoever has the lock may change it.
        format::check(path).map_err(bad)?;
        let identity = IdentityFile::open(path).map_err(bad)?;
        if fs::metadata(&owner_path).map_or(0, |owner| owner.len()) == 0 {
            whole::write(&owner_path, addr.as_str()).map_err(unusable)?;
        }
        Ok(Self { identity, _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_and_one_node() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let (alice, bob): (Addr, Addr) = ("10.10.0.2:8090".parse().unwrap(), "10.10.0.3:8090".parse().unwrap());
        let held = DataDir::open(&path, &alice).unwrap();
        assert!(DataDir::open(&path, &alice).unwrap_err().contains("in use"), "a second owner at the same time");
        drop(held);
        assert!(DataDir::open(&path, &bob).unwrap_err().contains("10.10.0.2:8090"), "another node's");
        DataDir::open(&path, &alice).unwrap();
        // Another spelling of the same address, as an earlier release wrote it.
        fs::write(path.join("node"), "[::FFFF:10.10.0.2]:08090").unwrap();
        DataDir::open(&path, &alice).unwrap();
        // Power or room was lost when the file was written.
        fs::write(path.join("node"), "").unwrap();
        DataDir::open(&path, &bob).unwrap();
        assert!(DataDir::open(&path, &alice).unwrap_err().contains("10.10.0.3:8090"));
        let error = DataDir::open(Path::new("/proc/nowhere"), &alice).unwrap_err();
        assert!(error.starts_with("DATA_DIR") && !error.contains('\n'), "{error}");
    }
}
