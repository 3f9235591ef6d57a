//! `/drill`: what is injected at this node, for drills. Refused by a node that was not started for them.

use hyper::{Method, StatusCode};

use super::reply::{Refusal, Reply};
use crate::drill::Injected;
use crate::node::NodeHandle;

/// GET tells what is injected, PUT says all that is to be from now on, DELETE ends it. Each answers with what then is.
pub fn handle(node: &NodeHandle, method: &Method, body: &[u8]) -> Result<Reply, Refusal> {
    if !node.drill().is_allowed() {
        let text = "This node was not started for drills (DRILL=1 or --drill)";
        return Err(Refusal::Drill(StatusCode::FORBIDDEN, text.to_owned()));
    }
    let injected = match *method {
        Method::PUT => Some(injected(body, node)?),
        Method::DELETE => Some(Injected::default()),
        _ => None,
    };
    if let Some(injected) = injected {
        let said = serde_json::to_string(&injected).unwrap_or_default();
        node.inject(injected);
        tracing::warn!("drill: {said}");
    }
    Ok(Reply::ok(&serde_json::to_value(node.drill().injected()).unwrap_or_default()))
}

fn injected(body: &[u8], node: &NodeHandle) -> Result<Injected, Refusal> {
    let injected: Injected = super::admin::object(body)?;
    injected.check(&node.peers()).map_err(Refusal::BadBody)?;
    Ok(injected)
}
