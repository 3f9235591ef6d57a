//! What bad input gets: a reason, and nothing changed.

use crate::http::{Body, READ_TIMEOUT, exchange, request};
use crate::support::Cluster;

/// The store is as it was and the nodes serve.
#[track_caller]
fn unharmed(c: &Cluster, token: &str) {
    for node in c.all() {
        c.get(node, "/ready").expect(200);
        let answer = c.read(node, "kept", token).expect_result(200, "found");
        assert_eq!(answer.json()["value"], 1, "{answer}");
        let listed = c.get(node, "/kvs").expect(200);
        assert_eq!(listed.json()["keys"], serde_json::json!(["kept"]), "{listed}");
    }
}

fn with_a_key() -> (Cluster, String) {
    let c = Cluster::start(2, 1, &[("MAX_BODY", "64KiB")]);
    let token = c.put(0, "kept", "1", "").expect(201).token();
    (c, token)
}

#[test]
fn unknown_paths_are_not_found() {
    let (c, token) = with_a_key();
    let paths = [
        "/",
        "/x",
        "/kvsx",
        "/kvs2/a",
        "/KVS/a",
        "/view/x",
        "/view/",
        "/shard",
        "/shard/",
        "/shard/x",
        "/shard/members",
        "/shard/key-count",
        "/shard/ids/x",
        "/health/x",
        "/metrics/",
        "/%6bvsx",
        "//kvs/a",
        "/index.html",
    ];
    for path in paths {
        for (method, body) in [("GET", ""), ("PUT", r#"{"value":2}"#), ("DELETE", ""), ("POST", "{")] {
            c.send(0, method, path, body).expect_error(404);
        }
    }
    unharmed(&c, &token);
}

#[test]
fn methods_that_a_path_does_not_have_are_told_which_it_has() {
    let (c, token) = with_a_key();
    let rows = [
        ("/kvs/kept", "GET,PUT,DELETE", "POST,PATCH,OPTIONS,BREW"),
        ("/kvs", "GET", "PUT,POST,DELETE"),
        ("/shard/ids", "GET", "PUT,POST,DELETE"),
        ("/shard/node-shard-id", "GET", "PUT,POST,DELETE"),
        ("/shard/members/s1", "GET", "PUT,POST,DELETE"),
        ("/shard/key-count/s1", "GET", "PUT,POST,DELETE"),
        ("/health", "GET", "PUT,POST,DELETE"),
        ("/ready", "GET", "PUT,POST,DELETE"),
        ("/status", "GET", "PUT,POST,DELETE"),
        ("/metrics", "GET", "PUT,POST,DELETE"),
    ];
    for (path, has, lacks) in rows {
        for method in lacks.split(',') {
            let answer = c.send(1, method, path, "");
            assert_eq!(answer.status, 405, "{method} {path}: {answer}");
            let allowed = answer.header("allow").unwrap_or_else(|| panic!("no Allow: {method} {path}: {answer}"));
            let allowed: Vec<&str> = allowed.split(',').map(str::trim).collect();
            for method in has.split(',') {
                assert!(allowed.contains(&method), "{method} {path}: {allowed:?}");
            }
            assert!(!allowed.contains(&method), "{method} {path}: {allowed:?}");
            answer.expect_error(405);
        }
    }
    unharmed(&c, &token);
}

#[test]
fn bodies_that_are_no_request_are_refused() {
    let (c, token) = with_a_key();
    let deep = format!("{{\"value\":{}", "[".repeat(30_000));
    let bodies: [&[u8]; 20] = [
        b"{",
        b"}",
        b"{\"value\":}",
        b"{\"value\":1",
        b"{\"value\":1}x",
        b"{'value':1}",
        b"{value:1}",
        b"{\"value\":01}",
        b"{\"value\":NaN}",
        b"{\"value\":1,}",
        b"[]",
        b"[1]",
        b"\"value\"",
        b"1",
        b"null",
        b"true",
        b"value=1",
        b"{\"value\":\"\xff\xfe\"}",
        b"\xc3\x28",
        deep.as_bytes(),
    ];
    for body in bodies {
        for node in c.all() {
            let answer = c.try_send(node, "PUT", "/kvs/new", &[], Body::Plain(body)).unwrap();
            assert_eq!(answer.status, 400, "{:?}: {answer}", String::from_utf8_lossy(&body[..body.len().min(60)]));
            answer.expect_error(400);
            let answer = c.try_send(node, "PUT", "/kvs/new", &[], Body::Chunked(body, 3)).unwrap();
            answer.expect_error(400);
        }
    }
    for body in ["{", "[]", "\"x\"", "1", "{\"causal-metadata\":}"] {
        c.send(0, "DELETE", "/kvs/kept", body).expect_error(400);
        c.send(0, "GET", "/kvs/kept", body).expect_error(400);
    }
    c.send(0, "PUT", "/kvs/kept", "").expect_error(400);
    unharmed(&c, &token);
}

#[test]
fn deep_nesting_breaks_nothing() {
    let (c, token) = with_a_key();
    for depth in [1_000, 30_000] {
        let body = format!("{{\"value\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        let answer = c.send(0, "PUT", "/kvs/deep", &body);
        assert!(answer.status < 500, "{answer}");
        if answer.status < 300 {
            let answer = c.read(1, "deep", &answer.token()).expect(200);
            assert!(answer.body.windows(depth).any(|w| w.iter().all(|b| *b == b'[')), "another value at depth {depth}");
            c.send(0, "DELETE", "/kvs/deep", "").expect(200);
        } else {
            answer.expect_error(400);
        }
    }
    unharmed(&c, &token);
}

#[test]
fn keys_that_are_not_utf8_are_refused() {
    let (c, token) = with_a_key();
    for key in ["%FF", "%C3%28", "a%80", "%ED%A0%80"] {
        for (method, body) in [("PUT", r#"{"value":2}"#), ("GET", ""), ("DELETE", "")] {
            c.send(0, method, &format!("/kvs/{key}"), body).expect_error(400);
        }
    }
    for key in [&b"/kvs/\xff"[..], b"/kvs/\xc3\x28"] {
        let body = Body::Plain(br#"{"value":2}"#);
        let answer = exchange(c.address(0), &request("PUT", key, &[], body), READ_TIMEOUT).unwrap();
        answer.expect_error(400);
    }
    unharmed(&c, &token);
}

#[test]
fn large_bodies_are_refused() {
    let (c, token) = with_a_key();
    let fits = format!("{{\"value\":\"{}\"}}", "x".repeat(65_536 - 12));
    assert_eq!(fits.len(), 65_536);
    c.send(0, "PUT", "/kvs/fits", &fits).expect(201);
    c.send(0, "DELETE", "/kvs/fits", "").expect(200);
    let large = format!("{{\"value\":\"{}\"}}", "x".repeat(65_536 - 11));
    let huge = format!("{{\"value\":\"{}\"}}", "x".repeat(1_000_000));
    for body in [&large, &huge] {
        for node in c.all() {
            c.try_send(node, "PUT", "/kvs/new", &[], Body::Plain(body.as_bytes())).unwrap().expect_error(413);
            c.try_send(node, "PUT", "/kvs/new", &[], Body::Chunked(body.as_bytes(), 1000)).unwrap().expect_error(413);
        }
    }
    unharmed(&c, &token);
}

#[test]
fn large_headers_are_refused() {
    let (c, token) = with_a_key();
    let long = "x".repeat(70_000);
    let answer = c.try_send(0, "GET", "/kvs/kept", &[("X-Long", &long)], Body::None).unwrap();
    assert_eq!(answer.status, 431, "{answer}");
    let many: Vec<String> = (0..300).map(|i| format!("X-{i}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|n| (n.as_str(), "1")).collect();
    let answer = c.try_send(0, "GET", "/kvs/kept", &many, Body::None).unwrap();
    assert_eq!(answer.status, 431, "{answer}");
    unharmed(&c, &token);
}

#[test]
fn bytes_that_are_no_http_are_refused() {
    let (c, token) = with_a_key();
    let requests: [&[u8]; 6] = [
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /kvs/a HTTP/9.9\r\n\r\n",
        b"GET /kvs/a HTTP/1.1\r\nno colon\r\n\r\n",
        b"PUT /kvs/a HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n{}",
    ];
    for bytes in requests {
        // Closing without an answer is a refusal too.
        if let Ok(answer) = exchange(c.address(0), bytes, READ_TIMEOUT) {
            assert!((400..500).contains(&answer.status) || answer.status == 505, "{answer}");
        }
    }
    unharmed(&c, &token);
}
