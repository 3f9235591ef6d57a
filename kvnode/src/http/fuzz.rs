//! For fuzzing: takes a request apart as the handlers do, without a node.

use hyper::header::HeaderValue;
use hyper::{HeaderMap, Method};

use super::{admin, fields, query, route};

/// A first line of path and query, a second of the metadata header, and the body. Every method is tried.
pub fn take_apart(input: &[u8]) {
    let mut parts = input.splitn(3, |&byte| byte == b'\n');
    let (target, header, body) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
    let target = String::from_utf8_lossy(target.unwrap_or_default());
    let (path, asked) = target.split_once('?').unwrap_or((&target, ""));
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::POST] {
        match route::look_up(&method, path) {
            Ok(matched) => parameter(matched.parameter(path)),
            Err(none) => assert!(super::reply::Refusal::from(none).reply().status.is_client_error()),
        }
    }
    let _ = query::list(asked).map_err(super::reply::Refusal::reply);
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(header.unwrap_or_default()) {
        headers.insert(kvnode_types::METADATA_HEADER, value);
    }
    match fields::Fields::of(body) {
        Ok(fields) => {
            if let Ok(value) = fields.value() {
                assert!(serde_json::from_slice::<&serde_json::value::RawValue>(&value).is_ok(), "a value is JSON");
            }
            let _ = fields.tokens(&headers).map_err(super::reply::Refusal::reply);
        }
        Err(refusal) => assert!(refusal.reply().status.is_client_error()),
    }
    admin::take_apart(body);
}

/// Whatever is refused becomes an answer.
fn parameter(raw: &str) {
    let _ = fields::decoded(raw).map_err(super::reply::Refusal::reply);
    if let Ok(key) = fields::key(raw, 50) {
        assert!(key.chars().count() <= 50);
    }
}
