//! What a drill can make go wrong.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A node's process ends at once, and starts again with its data.
    Kill,
    /// A node freezes, and goes on later.
    Pause,
    /// Two groups of nodes don't hear each other.
    Partition,
    /// Some links lose what goes one way.
    OneWay,
    /// Some links take longer.
    Slow,
    /// A node's wall clock is wrong.
    Clock,
    /// The number of shards changes.
    Reshard,
    /// A node ends at once and loses all its data.
    Wipe,
    /// A node can't store anything more.
    DiskFull,
}

pub const KINDS: [Kind; 9] = [
    Kind::Kill,
    Kind::Pause,
    Kind::Partition,
    Kind::OneWay,
    Kind::Slow,
    Kind::Clock,
    Kind::Reshard,
    Kind::Wipe,
    Kind::DiskFull,
];

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Partition => "partition",
            Self::OneWay => "one-way",
            Self::Slow => "slow",
            Self::Clock => "clock",
            Self::Reshard => "reshard",
            Self::Wipe => "wipe",
            Self::DiskFull => "disk-full",
        }
    }

    /// Whether the node itself must make it, and so must have been started for drills.
    pub fn is_inside(self) -> bool {
        matches!(self, Self::Partition | Self::OneWay | Self::Slow | Self::Clock | Self::DiskFull)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Kinds without repetition, in the order of [`KINDS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kinds(pub Vec<Kind>);

impl FromStr for Kinds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || KINDS.map(Kind::name).join(", ");
        let kind = |name: &str| {
            let found = KINDS.into_iter().find(|kind| kind.name() == name.trim());
            found.ok_or_else(|| format!("'{name}' is no fault; there are {}", names()))
        };
        let mut kinds = text.split(',').map(kind).collect::<Result<Vec<Kind>, String>>()?;
        kinds.sort_unstable();
        kinds.dedup();
        Ok(Self(kinds))
    }
}

impl fmt::Display for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|kind| kind.name()).collect();
        if names.is_empty() { f.write_str("no faults") } else { f.write_str(&names.join(", ")) }
    }
}

/// A named set of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario(pub &'static [Kind]);

const SCENARIOS: [(&str, &[Kind]); 7] = [
    ("crashes", &[Kind::Kill]),
    ("network", &[Kind::Partition, Kind::OneWay, Kind::Slow]),
    ("freezes", &[Kind::Pause, Kind::Clock]),
    ("lost-disks", &[Kind::Kill, Kind::Wipe]),
    ("moving", &[Kind::Kill, Kind::Pause, Kind::Slow, Kind::Reshard]),
    ("calm", &[]),
    ("all", &KINDS),
];

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = SCENARIOS.iter().find(|(name, _)| *name == text);
        let names = || SCENARIOS.map(|(name, _)| name).join(", ");
        found.map(|(_, kinds)| Self(kinds)).ok_or_else(|| format!("'{text}' is no scenario; there are {}", names()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_faults() {
        let parse = |text: &str| text.parse::<Kinds>();
        assert_eq!(parse("wipe,kill,kill, one-way"), Ok(Kinds(vec![Kind::Kill, Kind::OneWay, Kind::Wipe])));
        assert_eq!(parse("slow").map(|kinds| kinds.to_string()), Ok("slow".into()));
        for bad in ["", "kill,", "fire", "Kill"] {
            assert!(parse(bad).is_err_and(|why| why.contains("disk-full")), "{bad}");
        }
        for kind in KINDS {
            assert_eq!(parse(kind.name()), Ok(Kinds(vec![kind])));
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        }
    }

    #[test]
    fn scenarios() {
        assert_eq!("crashes".parse::<Scenario>().map(|scenario| scenario.0), Ok([Kind::Kill].as_slice()));
        assert!("doom".parse::<Scenario>().is_err_and(|why| why.contains("lost-disks")));
    }
}
