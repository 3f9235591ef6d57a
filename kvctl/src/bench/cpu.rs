//! CPU time of processes of this host, from /proc.

use std::fs;
use std::time::Duration;

/// A process of a server: its number, as long as it is that process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pid: u32,
    name: String,
}

impl Process {
    /// A node's process. (An engine in a virtual machine has other numbers: then this is none, or another program's.)
    pub fn of_node(pid: u32) -> Self {
        Self { pid, name: "kvnode".into() }
    }

    /// Whatever process of this host has that number now.
    pub fn present(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, name: name_of(&stat)?.into() })
    }
}

/// The user and system time that a process has had; `None` if it is not there.
pub fn used(process: &Process) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).ok()?;
    time_of(&stat, &process.name)
}

/// What this program has had.
pub fn own() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    time_of(&stat, name_of(&stat)?)
}

/// The name in parentheses may hold anything; the fields after it don't.
fn name_of(stat: &str) -> Option<&str> {
    Some(stat.split_once('(')?.1.rsplit_once(") ")?.0)
}

fn time_of(stat: &str, name: &str) -> Option<Duration> {
    if name_of(stat)? != name {
        return None;
    }
    let fields = stat.rsplit_once(") ")?.1;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_any_name() {
        let stat = "7 (kvnode) S 1 7 7 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 1 0 99 0 0";
        let tick = 1.0 / rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(time_of(stat, "kvnode"), Some(Duration::from_secs_f64(400.0 * tick)));
        assert_eq!(time_of(&stat.replace("kvnode", "a) (b"), "a) (b"), time_of(stat, "kvnode"));
        assert_eq!(time_of(stat, "kvctl"), None, "the number is another program's");
        assert_eq!(time_of("7 (kvnode) S 1", "kvnode"), None);
        assert_eq!(used(&Process::of_node(u32::MAX)), None);
        assert!(own().is_some());
    }
}
