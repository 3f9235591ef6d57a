//! Every bound and every time limit of the node, with the reason for its default.
//!
//! What a client or a peer can make grow has a bound here. At a bound the answer is a 4xx or a 503 with `Retry-After`;
//! memory never grows without end. What counts bytes is smaller by default where there is little memory: "the memory" is what the machine
//! has, or what a container leaves this process. Each setting is a flag and an environment variable of the same name in capitals.

use std::time::Duration;

use clap::Args;

use crate::config::ConfigError;
use crate::memory;
use crate::setting::{Setting, bytes, count, duration};

/// The settings as given, not yet checked. `None` and empty both mean "the default".
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Largest request body of a client; beyond it 413 [default: 1MiB]
    #[arg(long, env = "MAX_BODY", value_name = "BYTES")]
    max_body: Option<String>,
    /// Most header lines of a request; beyond it 431 [default: 100]
    #[arg(long, env = "MAX_HEADERS", value_name = "COUNT")]
    max_headers: Option<String>,
    /// Largest request line and headers together; beyond it 431 [default: 64KiB]
    #[arg(long, env = "MAX_HEADER_BYTES", value_name = "BYTES")]
    max_header_bytes: Option<String>,
    /// A request whose header is not complete this long after its first byte is cut off [default: 10s]
    #[arg(long, env = "HEADER_TIMEOUT", value_name = "TIME")]
    header_timeout: Option<String>,
    /// A body of which nothing arrives for this long gets 408 [default: 10s]
    #[arg(long, env = "BODY_TIMEOUT", value_name = "TIME")]
    body_timeout: Option<String>,
    /// A body that is not complete after this long gets 408, however steadily it drips [default: 60s]
    #[arg(long, env = "BODY_TOTAL_TIMEOUT", value_name = "TIME")]
    body_total_timeout: Option<String>,
    /// A connection without a request is closed after this long [default: 75s]
    #[arg(long, env = "IDLE_TIMEOUT", value_name = "TIME")]
    idle_timeout: Option<String>,
    /// A client that takes none of its answer for this long is cut off [default: 30s]
    #[arg(long, env = "WRITE_TIMEOUT", value_name = "TIME")]
    write_timeout: Option<String>,
    /// Connections served at once; further ones get 503 and are closed [default: 4096, fewer
    /// where memory or file handles are short]
    #[arg(long, env = "MAX_CONNECTIONS", value_name = "COUNT")]
    max_connections: Option<String>,
    /// Bytes of request and answer bodies of clients held at once, all together; beyond it 503 [default: 256MiB, at most 1/16 of the memory]
    #[arg(long, env = "MAX_BODIES", value_name = "BYTES")]
    max_bodies: Option<String>,
    /// Largest batch taken from another node; at least 2 MiB more than the largest body [default: 64MiB, at most
    /// 1/32 of the memory]
    #[arg(long, env = "MAX_PEER_BODY", value_name = "BYTES")]
    max_peer_body: Option<String>,
    /// Longest key in characters; beyond it 400 [default: 50]
    #[arg(long, env = "MAX_KEY_CHARS", value_name = "COUNT")]
    max_key_chars: Option<String>,
    /// How long a request waits for writes that it depends on [default: 1s]
    #[arg(long, env = "CAUSAL_WAIT", value_name = "TIME")]
    causal_wait: Option<String>,
    /// How long the answer to a write waits for copies at other replicas [default: 500ms]
    #[arg(long, env = "ACK_WAIT", value_name = "TIME")]
    ack_wait: Option<String>,
    /// Requests that may wait at once, for dependencies or for copies; beyond it 503 [default: 10000]
    #[arg(long, env = "MAX_PARKED", value_name = "COUNT")]
    max_parked: Option<String>,
    /// Requests that may be under way at other nodes at once; beyond it 503 [default: 10000]
    #[arg(long, env = "MAX_FORWARDS", value_name = "COUNT")]
    max_forwards: Option<String>,
    /// Bytes of messages that may wait for one peer, replication not counted [default: 32MiB, at most 1/32 of the memory]
    #[arg(long, env = "MAX_PEER_QUEUE", value_name = "BYTES")]
    max_peer_queue: Option<String>,
    /// Bytes of recent writes kept in memory for replicas that lag [default: 16MiB, at most 1/16 of the memory]
    #[arg(long, env = "LOG_BYTES", value_name = "BYTES")]
    log_bytes: Option<String>,
    /// Bytes that the stored data may take; beyond it writes get 507 [default: what the disk has; without DATA_DIR half
    /// of the memory]
    #[arg(long, env = "STORE_BYTES_MAX", value_name = "BYTES")]
    store_bytes_max: Option<String>,
}

/// The bounds in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes. A value is one JSON document that is held whole; 1 MiB holds any sensible one.
    pub max_body: usize,
    /// Header lines. hyper's own default.
    pub max_headers: usize,
    /// Bytes, at least 8 KiB. A causal context of 500 replicas fits four times.
    pub max_header_bytes: usize,
    /// From the first byte of a request to the end of its header.
    pub header_timeout: Duration,
    /// Between two pieces of a body.
    pub body_timeout: Duration,
    /// For a whole body.
    pub body_total_timeout: Duration,
    /// Between two requests. Longer than the idle time-out of common clients' pools (and of our own links), so that it
    /// is the client who closes and no request is lost to a closing connection.
    pub idle_timeout: Duration,
    /// Without any progress of an answer.
    pub write_timeout: Duration,
    /// Connections, each of which costs about 20 KiB (and up to 64 KiB while it takes a large body) and one file handle.
    pub max_connections: usize,
    /// Bytes of clients' bodies in memory, both ways: what `max_connections` × `max_body` would be is too much.
    pub max_bodies: usize,
    /// Bytes of one peer batch. Four of them may be in memory at once.
    pub max_peer_body: usize,
    pub max_key_chars: usize,
    pub causal_wait: Duration,
    pub ack_wait: Duration,
    pub max_parked: usize,
    pub max_forwards: usize,
    pub max_peer_queue: usize,
    pub log_bytes: usize,
    /// `None`: as many as the disk has, less what the engine needs to rewrite what it holds.
    pub store_bytes_max: Option<u64>,
}

impl Limits {
    /// The largest batch that nodes with the same settings send.
    pub fn least_peer_body(&self) -> usize {
        self.max_body.saturating_add(BATCH_BESIDE_VALUE)
    }
}

/// What a connection takes.
const CONNECTION_BYTES: usize = 20 << 10;
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// What a batch may hold beside one value: it is full after 1 MiB, which one message may go beyond, as full and with one value.
const BATCH_BESIDE_VALUE: usize = 2 * MIB;
/// Upper end of every size: what can't be meant.
const BYTES_MAX: usize = 1 << 40;
const COUNT_MAX: usize = 10_000_000;
const TIME_MAX: Duration = Duration::from_secs(24 * 3600);
const TIME_MIN: Duration = Duration::from_millis(1);

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body: MIB,
            max_headers: 100,
            max_header_bytes: 64 * KIB,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            body_total_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            max_connections: 4096,
            max_bodies: 256 * MIB,
            max_peer_body: 64 * MIB,
            max_key_chars: 50,
            causal_wait: Duration::from_secs(1),
            ack_wait: Duration::from_millis(500),
            max_parked: 10_000,
            max_forwards: 10_000,
            max_peer_queue: 32 * MIB,
            log_bytes: 16 * MIB,
            store_bytes_max: None,
        }
    }
}

impl LimitArgs {
    /// Checks every setting that is given and fills in the defaults, for the memory that this process may use.
    pub fn resolve(&self) -> Result<Limits, ConfigError> {
        self.resolve_for(memory::allowed())
    }

    fn resolve_for(&self, memory: Option<usize>) -> Result<Limits, ConfigError> {
        let d = Limits::default();
        let share = |most, parts| memory::share_of(memory, most, parts);
        let time = |name, given: &Option<String>, default| {
            Setting::new(name, given, "500ms or 2s").parse_or(default, |t| duration(t, TIME_MIN, TIME_MAX))
        };
        let wait = |name, given: &Option<String>, default| {
            Setting::new(name, given, "500ms or 2s").parse_or(default, |t| duration(t, Duration::ZERO, TIME_MAX))
        };
        let size = |name, given: &Option<String>, min: usize, default| {
            Setting::new(name, given, "65536, 64KiB or 1MiB").parse_or(default, |t| bytes(t, min, BYTES_MAX))
        };
        let number = |name, given: &Option<String>, max: usize, default| {
            Setting::new(name, given, "100 (at least 1)").parse_or(default, |t| count(t, 1, max))
        };
        let max_body = size("MAX_BODY", &self.max_body, 1, d.max_body)?;
        let least = max_body.saturating_add(BATCH_BESIDE_VALUE);
        // Four of them may be held at once.
        let peer_default = share(d.max_peer_body, 32).max(least);
        let max_peer_body = size("MAX_PEER_BODY", &self.max_peer_body, MIB, peer_default)?;
        if max_peer_body < least {
            // It would be refused by the other nodes again and again, and all later writes wait behind it.
            let why = format!("is too small for MAX_BODY: a batch with the largest value takes up to {least} bytes");
            return Err(Setting::new("MAX_PEER_BODY", &self.max_peer_body, "64MiB").error(&why));
        }
        Ok(Limits {
            max_body,
            max_headers: number("MAX_HEADERS", &self.max_headers, 10_000, d.max_headers)?,
            max_header_bytes: size("MAX_HEADER_BYTES", &self.max_header_bytes, 8 * KIB, d.max_header_bytes)?,
            header_timeout: time("HEADER_TIMEOUT", &self.header_timeout, d.header_timeout)?,
            body_timeout: time("BODY_TIMEOUT", &self.body_timeout, d.body_timeout)?,
            body_total_timeout: time("BODY_TOTAL_TIMEOUT", &self.body_total_timeout, d.body_total_timeout)?,
            idle_timeout: time("IDLE_TIMEOUT", &self.idle_timeout, d.idle_timeout)?,
            write_timeout: time("WRITE_TIMEOUT", &self.write_timeout, d.write_timeout)?,
            max_connections: number(
                "MAX_CONNECTIONS",
                &self.max_connections,
                1_000_000,
                share(d.max_connections * CONNECTION_BYTES, 16) / CONNECTION_BYTES,
            )?,
            // One body must be possible.
            max_bodies: size("MAX_BODIES", &self.max_bodies, 1, share(d.max_bodies, 16).max(2 * max_body))?,
            max_peer_body,
            max_key_chars: number("MAX_KEY_CHARS", &self.max_key_chars, 8192, d.max_key_chars)?,
            causal_wait: wait("CAUSAL_WAIT", &self.causal_wait, d.causal_wait)?,
            ack_wait: wait("ACK_WAIT", &self.ack_wait, d.ack_wait)?,
            max_parked: number("MAX_PARKED", &self.max_parked, COUNT_MAX, d.max_parked)?,
            max_forwards: number("MAX_FORWARDS", &self.max_forwards, COUNT_MAX, d.max_forwards)?,
            max_peer_queue: size("MAX_PEER_QUEUE", &self.max_peer_queue, MIB, share(d.max_peer_queue, 32).max(MIB))?,
            log_bytes: size("LOG_BYTES", &self.log_bytes, 64 * KIB, share(d.log_bytes, 16))?,
            store_bytes_max: Setting::new("STORE_BYTES_MAX", &self.store_bytes_max, "512MiB or 20GiB")
                .parse(|text| bytes(text, MIB, usize::MAX >> 8).map(|bytes| bytes as u64))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_given_means_the_defaults() {
        assert_eq!(LimitArgs::default().resolve_for(None), Ok(Limits::default()));
        let empty = LimitArgs { max_body: Some(String::new()), ..LimitArgs::default() };
        assert_eq!(empty.resolve_for(Some(64 << 30)), Ok(Limits::default()));
    }

    #[test]
    fn budgets_fit_into_the_memory() {
        for memory in [64 * MIB, 128 * MIB, 512 * MIB, 4096 * MIB] {
            let limits = LimitArgs::default().resolve_for(Some(memory)).unwrap();
            let bodies = limits.max_bodies + 4 * limits.max_peer_body + limits.least_peer_body();
            let all = bodies + limits.log_bytes + limits.max_connections * CONNECTION_BYTES + limits.max_peer_queue;
            assert!(all <= memory / 16 * 9, "{memory}: {limits:?}");
            assert!(limits.max_bodies >= 2 * limits.max_body);
        }
        let given = LimitArgs { max_bodies: Some("300MiB".into()), ..LimitArgs::default() };
        assert_eq!(given.resolve_for(Some(64 * MIB)).unwrap().max_bodies, 300 * MIB, "who says so is believed");
    }

    #[test]
    fn given_settings_are_taken_or_named() {
        let args = LimitArgs { max_body: Some("2MiB".into()), causal_wait: Some("0s".into()), ..LimitArgs::default() };
        let limits = args.resolve().unwrap();
        assert_eq!((limits.max_body, limits.causal_wait), (2 * MIB, Duration::ZERO));

        let large = LimitArgs { max_body: Some("100MiB".into()), ..LimitArgs::default() };
        assert_eq!(large.resolve().unwrap().max_peer_body, 102 * MIB);
        let small = LimitArgs { max_peer_body: Some("2MiB".into()), ..LimitArgs::default() };
        let line = small.resolve().unwrap_err().to_string();
        assert!(line.contains("MAX_PEER_BODY") && line.contains("3145728"), "{line}");

        let bad = LimitArgs { header_timeout: Some("soon".into()), ..LimitArgs::default() };
        let line = bad.resolve().unwrap_err().to_string();
        assert!(line.contains("HEADER_TIMEOUT") && line.contains("--header-timeout") && line.contains("2s"), "{line}");
    }
}
