//! Nodes that are there, by what they were started with, and whether that agrees with what kvctl is to do. Pure.
//!
//! What runs is never guessed over: a node that is started with another secret than the others is cut off from them for
//! good, and takes writes alone. So either everything agrees, or nothing is touched and somebody is told.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::cluster::{NODE_PORT, NodeSpec, Spec};
use crate::error::{Code, Failure, Result};
use crate::state::RuntimeKind;

/// A node that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    pub node: String,
    /// The number of its process, or the name of its container.
    pub handle: String,
    /// The environment that it was started with.
    pub variables: BTreeMap<String, String>,
}

/// What a record must say so that it agrees with the nodes that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    pub spec: Spec,
    /// What they prove to each other; `None` if there are none.
    pub secret: Option<String>,
    /// Nodes that the spec did not have.
    pub taken_over: Vec<String>,
}

impl Trace {
    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// For people: `alice (process 12)`.
    pub fn shown(&self, kind: RuntimeKind) -> String {
        let what = match kind {
            RuntimeKind::Local => format!("process {}", self.handle),
            RuntimeKind::Docker => format!("container '{}'", self.handle),
        };
        format!("{} ({what})", self.node)
    }
}

/// For people: all of them.
pub fn shown(traces: &[Trace], kind: RuntimeKind) -> String {
    traces.iter().map(|trace| trace.shown(kind)).collect::<Vec<String>>().join(", ")
}

/// The command that ends them.
pub fn end_them(traces: &[Trace], kind: RuntimeKind) -> String {
    let command = match kind {
        RuntimeKind::Local => "kill",
        RuntimeKind::Docker => "docker rm -f",
    };
    let handles: Vec<&str> = traces.iter().map(|trace| trace.handle.as_str()).collect();
    format!("`{command} {}`", handles.join(" "))
}

/// A node's address, as the others know it.
fn address(kind: RuntimeKind, node: &NodeSpec) -> String {
    format!("{}:{NODE_PORT}", super::ip(kind, node))
}

/// The address in the cluster's network that a SOCKET_ADDRESS stands for.
fn network_ip(kind: RuntimeKind, spec: &Spec, address: &str) -> Option<Ipv4Addr> {
    let ip: Ipv4Addr = address.strip_suffix(&format!(":{NODE_PORT}"))?.parse().ok()?;
    let [a, b, c, d] = ip.octets();
    match kind {
        RuntimeKind::Docker => Some(ip),
        RuntimeKind::Local if a == 127 => Some(Ipv4Addr::new(spec.subnet.0.octets()[0], b, c, d)),
        RuntimeKind::Local => None,
    }
}

/// Compares the nodes that are there with what is wanted. Nodes that were added to the cluster and are not in the spec are
/// taken over; what else differs is refused.
///
/// # Errors
/// Conflict: what differs.
pub fn agree(spec: &Spec, secret: Option<&str>, kind: RuntimeKind, traces: &[Trace]) -> Result<Agreed> {
    let mut agreed = Agreed { spec: spec.clone(), secret: secret.map(str::to_owned), taken_over: Vec::new() };
    for trace in traces {
        let differs = |what: String| {
            let text = format!("{} was started with {what}", trace.shown(kind));
            Err(Failure::new(Code::Conflict, text))
        };
        let own = trace.variable("SOCKET_ADDRESS").unwrap_or_default();
        let node = match agreed.spec.node(&trace.node).ok() {
            Some(node) if address(kind, &node) != own => return differs(format!("the address {own}")),
            Some(node) => node,
            None => {
                let ip = network_ip(kind, spec, own);
                let Some(node) = ip.and_then(|ip| agreed.spec.node_of(&trace.node, ip)) else {
                    return differs(format!("the address {own}"));
                };
                agreed.spec.added.push(node.clone());
                agreed.taken_over.push(trace.node.clone());
                node
            }
        };
        let view = trace.variable("VIEW").unwrap_or_default();
        if !spec.is_own_view(view, |node| super::ip(kind, node)) {
            return differs(format!("VIEW={view}"));
        }
        // Only nodes that formed the cluster have one: who formed it and who came later is not confused either.
        let shards = trace.variable("SHARD_COUNT");
        if shards.map(str::to_owned) != agreed.spec.shard_count(&node).map(|count| count.to_string()) {
            return differs(shards.map_or_else(|| "no SHARD_COUNT".into(), |count| format!("SHARD_COUNT={count}")));
        }
        let drill = trace.variable("DRILL").is_some();
        if drill != spec.drill {
            return differs((if drill { "--drill" } else { "no --drill" }).to_owned());
        }
        match (&agreed.secret, trace.variable("CLUSTER_SECRET")) {
            (_, None) => return differs("no secret".into()),
            (None, Some(secret)) => agreed.secret = Some(secret.to_owned()),
            (Some(agreed), Some(secret)) if agreed != secret => return differs("another secret".into()),
            (Some(_), Some(_)) => {}
        }
    }
    Ok(agreed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        let args = crate::args::UpArgs { nodes: Some(4), ..Default::default() };
        Spec::resolve("default", &args, None).unwrap()
    }

    fn trace(node: &str, ip: &str, more: &[(&str, &str)]) -> Trace {
        let view = "127.10.0.2:8090,127.10.0.3:8090,127.10.0.4:8090,127.10.0.5:8090";
        let address = format!("{ip}:8090");
        let usual = [("SOCKET_ADDRESS", address.as_str()), ("VIEW", view), ("CLUSTER_SECRET", "s")];
        let founds = node != "zoe";
        let usual: Vec<(&str, &str)> = usual.into_iter().chain(founds.then_some(("SHARD_COUNT", "2"))).collect();
        let variables = usual.iter().chain(more).map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Trace { node: node.into(), handle: "7".into(), variables }
    }

    fn agreed(secret: Option<&str>, traces: &[Trace]) -> Result<Agreed> {
        agree(&spec(), secret, RuntimeKind::Local, traces)
    }

    #[test]
    fn where_all_agree_their_secret_and_their_nodes_are_taken_over() {
        let nothing = Agreed { spec: spec(), secret: None, taken_over: Vec::new() };
        assert_eq!(agreed(None, &[]).unwrap(), nothing);
        let traces = [trace("bob", "127.10.0.3", &[]), trace("zoe", "127.10.0.9", &[])];
        let Agreed { spec: found, secret, taken_over } = agreed(None, &traces).unwrap();
        assert_eq!((secret.as_deref(), taken_over), (Some("s"), vec!["zoe".to_owned()]));
        let zoe = found.node("zoe").unwrap();
        assert_eq!((zoe.ip.to_string().as_str(), zoe.port, found.added.len()), ("10.10.0.9", 8089, 1));
        assert!(agreed(Some("s"), &traces).is_ok());
    }

    #[test]
    fn what_differs_is_refused_and_named() {
        for (trace, what) in [
            (trace("bob", "127.10.0.4", &[]), "the address 127.10.0.4:8090"),
            (trace("zoe", "127.10.0.3", &[]), "the address 127.10.0.3:8090"),
            (trace("zoe", "127.11.0.3", &[]), "the address 127.11.0.3:8090"),
            (trace("zoe", "x", &[]), "the address x:8090"),
            (trace("bob", "127.10.0.3", &[("VIEW", "127.10.0.2:8090")]), "VIEW=127.10.0.2:8090"),
            (trace("bob", "127.10.0.3", &[("SHARD_COUNT", "3")]), "SHARD_COUNT=3"),
            (trace("zoe", "127.10.0.9", &[("SHARD_COUNT", "2")]), "SHARD_COUNT=2"),
            (trace("bob", "127.10.0.3", &[("DRILL", "1")]), "--drill"),
            (trace("bob", "127.10.0.3", &[("CLUSTER_SECRET", "t")]), "another secret"),
        ] {
            let failure = agreed(Some("s"), std::slice::from_ref(&trace)).unwrap_err();
            assert_eq!(failure.code, Code::Conflict);
            assert_eq!(failure.message, format!("{} (process 7) was started with {what}", trace.node));
        }
        let two = [trace("alice", "127.10.0.2", &[]), trace("bob", "127.10.0.3", &[("CLUSTER_SECRET", "t")])];
        assert!(agreed(None, &two).unwrap_err().message.starts_with("bob"));
        assert_eq!(end_them(&two, RuntimeKind::Local), "`kill 7 7`");
    }
}
