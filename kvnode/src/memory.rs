//! How much memory this process may use: what the machine has, or what a container leaves it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Below this a node does not start: it would be killed under the first load.
pub const LEAST: usize = 64 << 20;

/// Bytes that this process may use; `None` where the system does not say.
pub fn allowed() -> Option<usize> {
    static ALLOWED: OnceLock<Option<usize>> = OnceLock::new();
    *ALLOWED.get_or_init(|| allowed_under(Path::new("/")))
}

/// At most `most` bytes, and at most one part in `parts` of what this process may use.
pub fn share(most: usize, parts: usize) -> usize {
    share_of(allowed(), most, parts)
}

pub fn share_of(allowed: Option<usize>, most: usize, parts: usize) -> usize {
    allowed.map_or(most, |allowed| most.min(allowed / parts))
}

/// # Errors
/// One line, if it is too little.
pub fn check() -> Result<(), String> {
    match allowed() {
        Some(allowed) if allowed < LEAST => Err(format!(
            "this process may use {} MiB of memory and needs at least {} MiB: raise the limit (docker --memory, MemoryMax of systemd)",
            allowed >> 20,
            LEAST >> 20
        )),
        _ => Ok(()),
    }
}

fn allowed_under(root: &Path) -> Option<usize> {
    let limits = limits_of_groups(root);
    limits.into_iter().chain(physical(root)).min()
}

fn physical(root: &Path) -> Option<usize> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1 << 10)
}

/// The limits of this process's group and of all groups that it is in, of both versions of cgroups. Where a container sees only a part
/// of the tree, the names in `/proc/self/cgroup` lead nowhere, and its own group is the root.
fn limits_of_groups(root: &Path) -> Vec<usize> {
    let Ok(text) = fs::read_to_string(root.join("proc/self/cgroup")) else { return Vec::new() };
    let mut limits = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (base, file) = match controllers {
            "" => (root.join("sys/fs/cgroup"), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("sys/fs/cgroup/memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = group.trim_start_matches('/');
        let is_plain = !group.split('/').any(|part| part == "..");
        let own: PathBuf = if is_plain { base.join(group) } else { base.clone() };
        let all = own.ancestors().take_while(|dir| dir.starts_with(&base));
        // A limit that is none is the word "max", or a number beyond any memory.
        limits.extend(all.filter_map(|dir| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<usize>().ok()));
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> Option<usize> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        allowed_under(root.path())
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemFree: 1 kB\nMemTotal:       2048 kB\n");

    #[test]
    fn the_lowest_limit_counts() {
        assert_eq!(system(&[]), None);
        assert_eq!(system(&[MEMINFO]), Some(2 << 20));
        let own = ("proc/self/cgroup", "0::/a/b\n");
        for (limits, allowed) in [
            (vec![("sys/fs/cgroup/a/b/memory.max", "max\n")], 2 << 20),
            (vec![("sys/fs/cgroup/a/b/memory.max", "1000\n")], 1_000),
            // A group that this one is in, and one that it isn't.
            (vec![("sys/fs/cgroup/a/memory.max", "900\n"), ("sys/fs/cgroup/c/memory.max", "8\n")], 900),
            // Inside of a container the names lead nowhere.
            (vec![("sys/fs/cgroup/memory.max", "800\n")], 800),
        ] {
            assert_eq!(system(&[&[MEMINFO, own][..], &limits].concat()), Some(allowed), "{limits:?}");
        }
        let first = ("proc/self/cgroup", "8:pids:/x\n4:cpu,memory:/docker/1\n0::/\n");
        let none = ("sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(system(&[MEMINFO, first, none]), Some(2 << 20));
        let inside = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "700\n");
        assert_eq!(system(&[MEMINFO, first, inside]), Some(700));
        let outside = ("proc/self/cgroup", "0::/../..\n");
        assert_eq!(system(&[MEMINFO, outside, ("sys/fs/cgroup/memory.max", "600\n")]), Some(600));
    }

    #[test]
    fn shares_are_bounded() {
        assert_eq!(share_of(Some(80), 100, 8), 10);
        assert_eq!(share_of(Some(8_000), 100, 8), 100);
        assert_eq!(share_of(None, 100, 8), 100);
    }
}
