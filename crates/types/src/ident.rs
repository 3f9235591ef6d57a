//! Names of things: addresses, nodes, shards, slots, keys, origins and dots.
//!
//! All of them are newtypes, so that a slot can't be passed where a shard is meant. They are `Ord` because the core
//! keeps its state in ordered maps: the same events always produce the same effects.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Slots the key space is cut into. A slot is the unit that moves between shards.
pub const SLOT_COUNT: u16 = 16_384;

/// Where a node is reached: `HOST:PORT`, the host an IPv4 address, a bracketed IPv6 address or a DNS name. It is in its canonical form, so
/// that two of them are equal if they are spellings of one address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(Arc<str>);

/// The text was no `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadAddr(pub String);

impl fmt::Display for BadAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is no HOST:PORT such as 10.10.0.2:8090, kv-1.example:8090 or [::1]:8090", self.0)
    }
}

impl std::error::Error for BadAddr {}

impl Addr {
    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host, if it is written as a number and not as a name.
    pub fn ip(&self) -> Option<std::net::IpAddr> {
        let (host, _) = self.0.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        host.parse::<std::net::IpAddr>().ok().map(|ip| ip.to_canonical())
    }

    /// The part after the last colon.
    pub fn port(&self) -> u16 {
        let (_, port) = self.0.rsplit_once(':').expect("checked when the address was made");
        port.parse().expect("checked when the address was made")
    }
}

/// A host's one spelling; `None` if it is none. An IPv4 address in IPv6's clothes is the IPv4 address.
fn canonical_host(host: &str) -> Option<Cow<'_, str>> {
    if let Some(inner) = host.strip_prefix('[') {
        let ip: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some(ip.to_ipv4_mapped().map_or_else(|| format!("[{ip}]"), |ip| ip.to_string()).into());
    }
    if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        // Its parser takes one spelling only.
        return host.parse::<Ipv4Addr>().is_ok().then_some(host.into());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let label_is_valid = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.len() > 253 || !name.split('.').all(label_is_valid) {
        return None;
    }
    let has_upper = name.bytes().any(|byte| byte.is_ascii_uppercase());
    Some(if has_upper { name.to_ascii_lowercase().into() } else { name.into() })
}

impl FromStr for Addr {
    type Err = BadAddr;

    /// Makes the canonical form: two spellings of one address are one node.
    fn from_str(text: &str) -> Result<Self, BadAddr> {
        let bad = || BadAddr(text.chars().take(100).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let number = port.parse::<u16>().ok().filter(|&number| digits && number > 0).ok_or_else(bad)?;
        let canonical = canonical_host(host).ok_or_else(bad)?;
        // Every batch names its sender, nearly always in this form.
        let is_canonical = canonical == host && !port.starts_with('0');
        Ok(Self(if is_canonical { text.into() } else { format!("{canonical}:{number}").into() }))
    }
}

impl Serialize for Addr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Addr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(AddrVisitor)
    }
}

/// Every batch names its sender: the text is looked at where it is.
struct AddrVisitor;

impl Visitor<'_> for AddrVisitor {
    type Value = Addr;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HOST:PORT")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Addr, E> {
        text.parse().map_err(E::custom)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key of the store: UTF-8, 1 to `--max-key-chars` characters (checked at the door).
pub type Key = Arc<str>;

/// A node, numbered once by the topology and never again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u32);

/// A shard; written `s1`, `s2`, … to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(pub u32);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

impl FromStr for ShardId {
    type Err = ();

    /// Accepts exactly what `Display` writes: no leading zero, no sign.
    fn from_str(text: &str) -> Result<Self, ()> {
        let id = text.strip_prefix('s').and_then(|n| n.parse().ok()).map(Self).ok_or(())?;
        if id.to_string() == text { Ok(id) } else { Err(()) }
    }
}

/// One of [`SLOT_COUNT`] parts of the key space. What comes from outside is one, or is refused: tables are indexed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16")]
pub struct Slot(pub u16);

impl TryFrom<u16> for Slot {
    type Error = &'static str;

    fn try_from(number: u16) -> Result<Self, Self::Error> {
        if number < SLOT_COUNT { Ok(Self(number)) } else { Err("a slot beyond the last") }
    }
}

impl Slot {
    /// The slot of a key: xxh3 (64 bits) of its UTF-8 bytes modulo [`SLOT_COUNT`].
    pub fn of(key: &str) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_64(key.as_bytes());
        Self((hash % u64::from(SLOT_COUNT)) as u16)
    }
}

/// Number of a layout; rises only when a slot or a member changes place. The first layout is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u32);

impl Epoch {
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// One life of a node's process. Of two lives of one node the later has the larger number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// Bits that a life takes. As milliseconds since 1970 that is enough until the year 2527.
    pub const BITS: u32 = 44;

    /// Whether a node can have come to it: what others say of lives is not believed beyond that.
    pub fn is_possible(self) -> bool {
        self.0 >> Self::BITS == 0
    }

    /// Whether a node may go on from it on the word of others. Half of all that there are are left to it, so that whoever lies
    /// can't take away the next one.
    pub fn may_be_followed(self) -> bool {
        self.0 >> (Self::BITS - 1) == 0
    }

    /// The life after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The life before this one; the first is its own.
    #[must_use]
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// One writer: a node, in one layout epoch, in one life. Its writes are numbered 1, 2, 3, …
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Origin {
    pub node: NodeId,
    pub epoch: Epoch,
    pub incarnation: Incarnation,
}

/// Names one write, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dot {
    pub origin: Origin,
    pub seq: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}.e{}.{}", self.node.0, self.epoch.0, self.incarnation.0)
    }
}

/// Clients get this form as the name of a deletion.
impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.origin, self.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_some() {
        for good in ["10.10.0.2:8090", "[::1]:8090", "kv-1.example.org:1", "localhost:65535", "a_b:80"] {
            assert_eq!(good.parse::<Addr>().unwrap().as_str(), good);
        }
        assert_eq!("[::1]:8090".parse::<Addr>().unwrap().port(), 8090);
    }

    #[test]
    fn spellings_of_one_address_are_one() {
        for (spelled, canonical) in [
            ("Alice:8090", "alice:8090"),
            ("alice.example.:8090", "alice.example:8090"),
            ("10.10.0.2:08090", "10.10.0.2:8090"),
            ("[0:0:0:0:0:0:0:1]:8090", "[::1]:8090"),
            ("[FE80::0001]:8090", "[fe80::1]:8090"),
            ("[::ffff:127.0.0.1]:8090", "127.0.0.1:8090"),
            ("[::ffff:7f00:1]:8090", "127.0.0.1:8090"),
        ] {
            let addr: Addr = spelled.parse().unwrap();
            assert_eq!(addr.as_str(), canonical);
            // What comes from a peer, or was stored by an earlier release, as well.
            let told = postcard::to_stdvec(spelled).unwrap();
            assert_eq!(postcard::from_bytes::<Addr>(&told), Ok(addr), "{spelled}");
        }
    }

    #[test]
    fn addresses_that_are_none() {
        let bad = ["", ":", "10.10.0.2", "10.10.0.2:", "10.10.0.2:0", "10.10.0.2:65536", "10.10.0.2:+80", "10.10.0:80"];
        let worse = [
            "10.10.0.300:80",
            "010.10.0.2:80",
            ".:80",
            "a..:80",
            "::1:80",
            "[::1:80",
            "[zz]:80",
            "a b:80",
            "-a:80",
            "a..b:80",
            "é:80",
            "http://a:80",
        ];
        for text in bad.iter().chain(&worse) {
            assert!(text.parse::<Addr>().is_err(), "{text}");
        }
    }

    #[test]
    fn slots_of_others_are_slots() {
        let read = |number: u16| postcard::from_bytes::<Slot>(&postcard::to_stdvec(&number).unwrap());
        assert_eq!(read(SLOT_COUNT - 1), Ok(Slot(SLOT_COUNT - 1)));
        for number in [SLOT_COUNT, 20_000, u16::MAX] {
            assert!(read(number).is_err(), "{number}");
        }
    }

    #[test]
    fn dots_differ_in_every_part() {
        let dot = |node, epoch, incarnation, seq| {
            let origin = Origin { node: NodeId(node), epoch: Epoch(epoch), incarnation: Incarnation(incarnation) };
            Dot { origin, seq }.to_string()
        };
        assert_eq!(dot(3, 1, 1_900_000_000_000, 42), "n3.e1.1900000000000:42");
        let all = [dot(1, 1, 1, 1), dot(11, 1, 1, 1), dot(1, 11, 1, 1), dot(1, 1, 11, 1), dot(1, 1, 1, 11)];
        assert_eq!(std::collections::BTreeSet::from(all).len(), 5);
    }

    #[test]
    fn shard_ids_have_one_spelling() {
        assert_eq!("s12".parse(), Ok(ShardId(12)));
        for bad in ["12", "s", "s+1", "s01", "S1", "s99999999999"] {
            assert_eq!(bad.parse::<ShardId>(), Err(()), "{bad}");
        }
    }
}
