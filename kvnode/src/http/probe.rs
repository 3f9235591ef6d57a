//! For fuzzing: takes a request apart as [`handle`](super::handle) and [`admin`](super::admin) do, without a node.

use hyper::HeaderMap;
use hyper::header::HeaderValue;

use super::route::Route;
use super::{admin, fields, query};

/// `METHOD` is left out: a first line of path and query, a second of the metadata header, and the body.
pub fn take_apart(input: &[u8]) {
    let mut parts = input.splitn(3, |&byte| byte == b'\n');
    let (target, header, body) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
    let target = String::from_utf8_lossy(target.unwrap_or_default());
    let (path, asked) = target.split_once('?').unwrap_or((&target, ""));
    if let Some(route) = Route::of(path) {
        assert!(!route.methods().is_empty());
        if let Route::Key(raw) | Route::ShardMembers(raw) | Route::KeyCount(raw) | Route::AddMember(raw) = route {
            // Whatever is refused becomes an answer.
            let _ = fields::decoded(raw).map_err(super::reply::Refusal::reply);
            if let Ok(key) = fields::key(raw, 50) {
                assert!(key.chars().count() <= 50);
            }
        }
    }
    let _ = query::list(asked).map_err(super::reply::Refusal::reply);
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(header.unwrap_or_default()) {
        headers.insert(fields::METADATA_HEADER, value);
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
