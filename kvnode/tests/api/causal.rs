//! The forms of causal metadata.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::http::{Answer, Body};
use crate::support::{Cluster, put_body};

const MALFORMED: &str = "Malformed causal-metadata";

/// A refusal has to come at once: nothing is waited for.
#[track_caller]
fn refused_at_once(what: &str, ask: impl FnOnce() -> Answer) {
    let start = Instant::now();
    let answer = ask();
    let time = start.elapsed();
    assert_eq!(answer.status, 400, "{what}: {answer}");
    assert_eq!(answer.expect_error(400), MALFORMED, "{what}");
    assert!(time < Duration::from_millis(700), "{what}: took {time:?}");
}

#[test]
fn a_client_may_have_seen_nothing() {
    let c = Cluster::start(2, 1, &[]);
    for (i, nothing) in ["", r#","causal-metadata":null"#, r#","causal-metadata":0"#, r#","causal-metadata":"""#]
        .into_iter()
        .enumerate()
    {
        let path = format!("/kvs/k{i}");
        let body = format!(r#"{{"unused":1{nothing}}}"#);
        c.send(0, "GET", &path, &body).expect(404).token();
        c.send(0, "PUT", &path, &format!(r#"{{"value":1{nothing}}}"#)).expect_result(201, "created").token();
        c.send(0, "GET", &path, &body).expect_result(200, "found").token();
        c.send(0, "GET", "/kvs", &body).expect(200).token();
        c.send(0, "DELETE", &path, &body).expect_result(200, "deleted").token();
    }
    for value in ["", "0"] {
        c.try_send(0, "GET", "/kvs/a", &[("X-Causal-Metadata", value)], Body::None).unwrap().expect(404).token();
    }
    c.send(0, "GET", "/kvs/a", "{}").expect(404).token();
}

#[test]
fn it_travels_in_the_body_or_the_header() {
    let c = Cluster::start(4, 2, &[]);
    let mut tokens = Vec::new();
    for i in 0..8 {
        tokens.push(c.put(i % 4, &format!("k{i}"), "1", "").expect(201).token());
    }
    for (i, token) in tokens.iter().enumerate() {
        let other = &tokens[(i + 3) % 8];
        let header = [("X-Causal-Metadata", other.as_str())];
        let body = json!({ "causal-metadata": token }).to_string();
        for (method, path) in [("GET", format!("/kvs/k{i}")), ("GET", "/kvs".to_owned()), ("DELETE", "/kvs/x".into())] {
            let status = if method == "GET" { 200 } else { 404 };
            let node = (i + 1) % 4;
            c.try_send(node, method, &path, &header, Body::None).unwrap().expect(status).token();
            c.try_send(node, method, &path, &header, Body::Plain(body.as_bytes())).unwrap().expect(status).token();
        }
        let body = put_body("2", token);
        let answer = c.try_send(i % 4, "PUT", &format!("/kvs/k{i}"), &header, Body::Plain(body.as_bytes())).unwrap();
        answer.expect_result(200, "replaced").token();
        // One of the two is bad: so is the request.
        let bad = json!({ "causal-metadata": "bad" }).to_string();
        let answer = c.try_send(0, "GET", "/kvs/k0", &header, Body::Plain(bad.as_bytes())).unwrap();
        assert_eq!(answer.expect_error(400), MALFORMED);
        let bad = [("X-Causal-Metadata", "bad")];
        let body = json!({ "causal-metadata": token }).to_string();
        let answer = c.try_send(0, "GET", "/kvs/k0", &bad, Body::Plain(body.as_bytes())).unwrap();
        assert_eq!(answer.expect_error(400), MALFORMED);
    }
}

#[test]
fn anything_else_is_malformed() {
    let c = Cluster::start(4, 2, &[]);
    let token = c.put(0, "a", "1", "").expect(201).token();
    let long = format!("\"{}\"", "A".repeat(50_000));
    let bad = [
        "1",
        "-1",
        "0.5",
        "1e99",
        "true",
        "false",
        "[]",
        "{}",
        "[\"\"]",
        "{\"a\":1}",
        "\"x\"",
        "\" \"",
        "\"AAAA\"",
        "\"0\\u0000\"",
        "\"null\"",
        "\"ž🐎\"",
        "\"====\"",
        "\"AQEAdXTu1M66IpY\"",
        &long,
    ];
    for bad in bad {
        let what: String = bad.chars().take(40).collect();
        for node in [0, 2] {
            let body = format!(r#"{{"causal-metadata":{bad}}}"#);
            refused_at_once(&what, || c.send(node, "GET", "/kvs/a", &body));
            refused_at_once(&what, || c.send(node, "DELETE", "/kvs/a", &body));
            refused_at_once(&what, || c.send(node, "GET", "/kvs", &body));
            let body = format!(r#"{{"value":2,"causal-metadata":{bad}}}"#);
            refused_at_once(&what, || c.send(node, "PUT", "/kvs/a", &body));
        }
    }
    for bad in ["x", "AAAA", "{}", "null,0"] {
        let header = [("X-Causal-Metadata", bad)];
        refused_at_once(bad, || c.try_send(1, "GET", "/kvs/a", &header, Body::None).unwrap());
        refused_at_once(bad, || c.try_send(1, "GET", "/kvs", &header, Body::None).unwrap());
    }
    assert_eq!(c.read(3, "a", &token).expect(200).json()["value"], 1);
}

#[test]
fn an_altered_token_is_malformed() {
    let c = Cluster::start(4, 2, &[]);
    let token = c.put(0, "a", "1", "").expect(201).token();
    for i in 0..token.len() {
        for new in ['A', 'B', '_', '*'] {
            let mut altered: Vec<char> = token.chars().collect();
            if altered[i] != new {
                altered[i] = new;
                let altered: String = altered.into_iter().collect();
                refused_at_once(&altered, || c.read(i % 4, "a", &altered));
            }
        }
        if i > 0 {
            refused_at_once(&token[..i], || c.read(i % 4, "a", &token[..i]));
        }
    }
    for altered in [format!("{token}A"), format!("{token}="), format!(" {token}"), format!("{token}{token}")] {
        refused_at_once(&altered, || c.put(1, "a", "2", &altered));
    }
    c.read(1, "a", &token).expect(200);
}

#[test]
fn a_token_of_another_cluster_is_malformed() {
    let one = Cluster::start(2, 1, &[]);
    let two = Cluster::start(2, 1, &[]);
    let empty = one.get(0, "/kvs/a").expect(404).token();
    let token = one.put(0, "a", "1", "").expect(201).token();
    for token in [&token, &empty] {
        refused_at_once("foreign", || two.read(1, "a", token));
        refused_at_once("foreign", || two.put(0, "a", "1", token));
    }
    two.get(0, "/kvs/a").expect(404);
}

#[test]
fn it_stays_small_whatever_a_client_does() {
    let c = Cluster::start(4, 2, &[]);
    let mut token = String::new();
    for i in 0..200 {
        token = c.put(i % 4, &format!("k{i}"), "1", &token).expect(201).token();
        assert!(token.len() < 400, "{} bytes after {i} writes", token.len());
    }
}
