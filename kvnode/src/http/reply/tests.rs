use std::sync::Arc;

use bytes::Bytes;
use kvnode_types::ident::{Epoch, Incarnation, NodeId, Origin, ShardId};

use super::*;

/// Status, causal metadata and `Retry-After`.
fn seen(reply: Reply) -> (u16, Option<String>, Option<String>) {
    let response = reply.into_full();
    let header = |name: &str| response.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    assert_eq!(header("content-type").as_deref(), Some("application/json"));
    (response.status().as_u16(), header("x-causal-metadata"), header("retry-after"))
}

fn check(answer: Answer<String>, status: u16, body: &str, retry: bool) {
    let reply = Reply::of(answer);
    let text = String::from_utf8(reply.body.clone()).unwrap();
    let (wanted, got): (Value, Value) = (serde_json::from_str(body).unwrap(), serde_json::from_str(&text).unwrap());
    assert_eq!(got, wanted);
    let (code, metadata, retry_after) = seen(reply);
    assert_eq!(code, status, "{text}");
    assert_eq!(metadata.as_deref(), got.get("causal-metadata").and_then(Value::as_str), "{text}");
    assert_eq!(retry_after.is_some(), retry, "{text}");
}

#[test]
fn successes() {
    let context = || "T2".to_owned();
    let found = Answer::Found { value: Bytes::from_static(b"{\"a\": 1}"), context: context() };
    check(found, 200, r#"{"result":"found","value":{"a":1},"causal-metadata":"T2"}"#, false);
    let created = Answer::Created { context: context(), replicas: 2 };
    check(created, 201, r#"{"result":"created","replicas":2,"causal-metadata":"T2"}"#, false);
    let replaced = Answer::Replaced { context: context(), replicas: 3 };
    check(replaced, 200, r#"{"result":"replaced","replicas":3,"causal-metadata":"T2"}"#, false);
    check(Answer::Count(301), 200, r#"{"shard-key-count":301}"#, false);
}

#[test]
fn deletions_have_a_name() {
    let context = || "T2".to_owned();
    let origin = Origin { node: NodeId(3), epoch: Epoch(1), incarnation: Incarnation(1_900_000_000_000) };
    let tombstone = Dot { origin, seq: 42 };
    let deleted = Answer::Deleted { context: context(), replicas: 1, tombstone };
    let body = r#"{"result":"deleted","replicas":1,"tombstone":"n3.e1.1900000000000:42","causal-metadata":"T2"}"#;
    check(deleted, 200, body, false);
    let gone = Answer::NotFound { context: context(), tombstone: Some(tombstone) };
    let body = r#"{"error":"Key does not exist","tombstone":"n3.e1.1900000000000:42","causal-metadata":"T2"}"#;
    check(gone, 404, body, false);
    let never = Answer::NotFound { context: context(), tombstone: None };
    check(never, 404, r#"{"error":"Key does not exist","causal-metadata":"T2"}"#, false);
}

#[test]
fn pages_of_keys() {
    let keys = vec![Arc::from("a"), Arc::from("é\"")];
    let page = Answer::Keys { keys, next: Some(Arc::from("é\"")), context: "T".to_owned() };
    check(page, 200, r#"{"keys":["a","é\""],"cursor":"w6ki","causal-metadata":"T"}"#, false);
    let last = Answer::Keys { keys: vec![], next: None, context: "T".to_owned() };
    check(last, 200, r#"{"keys":[],"cursor":null,"causal-metadata":"T"}"#, false);
}

#[test]
fn values_are_embedded_as_they_are() {
    let value = "[1.10, 18446744073709551616 ]";
    let reply = Reply::of(Answer::Found { value: Bytes::from(value), context: "T".to_owned() });
    assert!(String::from_utf8(reply.body).unwrap().contains(value));
}

#[test]
fn failures() {
    check(Answer::Malformed, 400, r#"{"error":"Malformed causal-metadata"}"#, false);
    check(Answer::NoSuchShard, 404, r#"{"error":"Shard ID not found"}"#, false);
    let none = Answer::NoReplica { shard: ShardId(1) };
    check(none, 503, r#"{"error":"No replica of shard s1 is reachable"}"#, true);
    check(Answer::NotReady { reason: "forming".to_owned() }, 503, r#"{"error":"forming"}"#, true);
    check(Answer::Full { reason: "disk".to_owned() }, 507, r#"{"error":"disk"}"#, false);
    check(Answer::Busy { what: "w".to_owned() }, 503, r#"{"error":"Too much waiting already: w"}"#, true);
    let missing = Missing { writer: "a:1".to_owned(), from: 2, to: 3, held_by: vec!["b:1".parse().unwrap()] };
    let body = r#"{"error":"Causal dependencies not satisfied; try again later",
        "missing":[{"writer":"a:1","from":2,"to":3,"held_by":["b:1"]}]}"#;
    check(Answer::Unsatisfied { missing: vec![missing] }, 503, body, true);

    let reply = Reply::of(Answer::OutcomeUnknown);
    let body: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!((reply.status.as_u16(), body["outcome"].as_str()), (503, Some("unknown")));
    assert!(body["error"].is_string() && seen(reply).2.is_none());
}

#[test]
fn refusals() {
    let table = [
        (Refusal::UnknownPath, 404),
        (Refusal::WrongMethod(vec![&Method::GET]), 405),
        (Refusal::BodyTooLarge { max: 9 }, 413),
        (Refusal::BodyStalled, 408),
        (Refusal::BodyBroken, 400),
        (Refusal::BadBody("x".to_owned()), 400),
        (Refusal::BadKey("x"), 400),
        (Refusal::KeyTooLong, 400),
        (Refusal::NoValue, 400),
        (Refusal::MalformedMetadata, 400),
        (Refusal::BadQuery("x"), 400),
        (Refusal::NoSuchShard, 404),
        (Refusal::Busy { what: "x".to_owned() }, 503),
        (Refusal::NotReady("x".to_owned()), 503),
        (Refusal::Stopping, 503),
        (Refusal::NoStream("x/1".to_owned()), 426),
        (Refusal::Unproven, 403),
    ];
    for (refusal, status) in table {
        let reply = refusal.clone().reply();
        let body: Value = serde_json::from_slice(&reply.body).unwrap();
        assert!(body["error"].is_string(), "{refusal:?}");
        assert_eq!(reply.status.as_u16(), status, "{refusal:?}");
    }
    let allow = Refusal::WrongMethod(vec![&Method::GET, &Method::HEAD]).reply().into_full();
    assert_eq!(allow.headers()["allow"], "GET, HEAD");
}
