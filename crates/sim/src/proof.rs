//! That a change of the code's shape changes nothing of what it does: the [`crate::digest`] of many seeds, and of the first schedule that
//! shows each mutant, are kept in a file and compared. `KV_WRITE_DIGESTS=1` writes the file anew, where behaviour is meant to change.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;

/// What a digest is of, as the file names it: a seed, or a mutant and the first seed that shows it.
pub type Name = String;

pub struct Proof {
    kept: BTreeMap<Name, u64>,
    found: Mutex<BTreeMap<Name, u64>>,
    kind: &'static str,
}

fn path(kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("digests-{kind}.txt"))
}

impl Proof {
    /// `kind`: which of the files.
    pub fn of(kind: &'static str) -> Self {
        let text = std::fs::read_to_string(path(kind)).expect("the digests are in the tree");
        let line = |line: &str| {
            let (name, digest) = line.rsplit_once(' ').expect("a name and a digest");
            (name.to_owned(), u64::from_str_radix(digest, 16).expect("a digest"))
        };
        Self { kept: text.lines().map(line).collect(), found: Mutex::default(), kind }
    }

    pub fn found(&self, name: Name, digest: u64) {
        self.found.lock().expect("no panics here").insert(name, digest);
    }

    /// Fails if one of them differs from what is kept.
    pub fn hold(self) {
        let found = self.found.into_inner().expect("no panics here");
        if std::env::var_os("KV_WRITE_DIGESTS").is_some() {
            let mut text = String::new();
            found.iter().for_each(|(name, digest)| writeln!(text, "{name} {digest:016x}").expect("text takes it"));
            std::fs::write(path(self.kind), text).expect("the tree can be written");
            return;
        }
        // Other seeds than the first have no digest here; of those that are kept all that ran must be found.
        if std::env::var_os("KV_FIRST").is_none() && std::env::var_os("KV_MUTANT").is_none() {
            let compared = found.keys().filter(|name| self.kept.contains_key(*name)).count();
            assert_eq!(compared, found.len().min(self.kept.len()), "digests that are kept: {found:?}");
        }
        let differs = |(name, digest): &(&Name, &u64)| self.kept.get(*name).is_some_and(|kept| kept != *digest);
        let differing: Vec<&Name> = found.iter().filter(differs).map(|(name, _)| name).collect();
        let (first, count) = (differing.first(), differing.len());
        assert!(differing.is_empty(), "{count} of {} do something else than before, such as {first:?}", found.len());
    }
}
