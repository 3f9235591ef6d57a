//! The rows of the HTTP contract and what bad input gets, asked of a real node over a socket.

mod http_support;

use http_support::{Answer, Node, request};
use serde_json::{Value, json};

fn put(node: &Node, path: &str, body: &str) -> Answer {
    node.request("PUT", path, &[], body)
}

fn get(node: &Node, path: &str) -> Answer {
    node.request("GET", path, &[], "")
}

/// The token of an answer, which must be in its body and its header alike.
fn token(answer: &Answer) -> String {
    let of_body = answer.json()["causal-metadata"].as_str().expect("a string").to_owned();
    assert_eq!(answer.header("x-causal-metadata"), Some(of_body.as_str()));
    of_body
}

#[test]
fn a_key_is_created_replaced_found_and_deleted() {
    let node = Node::start(&[]);
    let created = put(&node, "/kvs/x", r#"{"value":"one","causal-metadata":null}"#);
    assert_eq!((created.status, &created.json()["result"]), (201, &json!("created")));
    assert!(created.json()["replicas"].is_u64());

    let body = json!({ "value": 2, "causal-metadata": token(&created) }).to_string();
    let replaced = put(&node, "/kvs/x", &body);
    assert_eq!((replaced.status, &replaced.json()["result"]), (200, &json!("replaced")));

    let seen = token(&replaced);
    let in_body = node.request("GET", "/kvs/x", &[], &json!({ "causal-metadata": &seen }).to_string());
    let in_header = node.request("GET", "/kvs/x", &[("X-Causal-Metadata", &seen)], "");
    for found in [in_body, in_header] {
        assert_eq!(found.status, 200, "{found:?}");
        assert_eq!((&found.json()["result"], &found.json()["value"]), (&json!("found"), &json!(2)));
        token(&found);
    }

    let deleted = node.request("DELETE", "/kvs/x", &[("x-causal-metadata", &seen)], "");
    assert_eq!((deleted.status, &deleted.json()["result"]), (200, &json!("deleted")));
    for method in ["GET", "DELETE"] {
        let gone = node.request(method, "/kvs/x", &[("x-causal-metadata", &token(&deleted))], "");
        assert_eq!((gone.status, &gone.json()["error"]), (404, &json!("Key does not exist")), "{method}");
        token(&gone);
    }
}

#[test]
fn values_come_back_to_the_last_digit() {
    let node = Node::start(&[]);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let values = [
        "null",
        "false",
        "9007199254740993",
        "1e999",
        "0.1000",
        r#""é\u0000\ud83d\ude00""#,
        r#"{"b":[],"a":{}}"#,
        &deep,
    ];
    for value in values {
        let answer = put(&node, "/kvs/v", &format!(r#"{{"value":{value}}}"#));
        assert!(answer.status < 300, "{answer:?}");
        let found = get(&node, "/kvs/v");
        assert!(found.status == 200 && found.body.contains(value), "{found:?}");
    }
}

#[test]
fn keys_may_be_anything_but_too_long() {
    let node = Node::start(&[]);
    for (raw, same) in [("a/b", "a%2Fb"), ("%C3%A9", "%c3%a9"), ("a%20b?x=y", "a%20b"), ("%25", "%25"), ("+", "%2B")] {
        assert!(put(&node, &format!("/kvs/{raw}"), r#"{"value":1}"#).status < 300, "{raw}");
        assert_eq!(get(&node, &format!("/kvs/{same}")).status, 200, "{same}");
    }
    assert!(put(&node, &format!("/kvs/{}", "%C3%A9".repeat(50)), r#"{"value":1}"#).status < 300);
    for method in ["PUT", "GET", "DELETE"] {
        let body = if method == "PUT" { r#"{"value":1}"# } else { "" };
        let long = node.request(method, &format!("/kvs/{}", "x".repeat(51)), &[], body);
        assert_eq!((long.status, &long.json()["error"]), (400, &json!("Key is too long")));
        node.request(method, "/kvs/", &[], body).is_error(404);
        for bad in ["%FF", "%zz", "%"] {
            node.request(method, &format!("/kvs/{bad}"), &[], body).is_error(400);
        }
    }
}

#[test]
fn bad_bodies_change_nothing() {
    let node = Node::start(&[]);
    for body in
        ["{", "[]", "null", "7", r#""value""#, r#"{"value":}"#, r#"{"value":1}}"#, r#"{"value":1,"value":2}"#, " "]
    {
        put(&node, "/kvs/x", body).is_error(400);
    }
    for body in ["", "{}", r#"{"causal-metadata":""}"#] {
        let answer = put(&node, "/kvs/x", body);
        assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("PUT request does not specify a value")));
    }
    for text in ["1", "true", "[]", "{}", r#""made up""#, r#""\ud800""#] {
        let body = format!(r#"{{"value":1,"causal-metadata":{text}}}"#);
        for method in ["PUT", "GET", "DELETE"] {
            let answer = node.request(method, "/kvs/x", &[], &body);
            assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("Malformed causal-metadata")), "{text}");
        }
    }
    node.request("GET", "/kvs/x", &[("x-causal-metadata", "made up")], "").is_error(400);
    assert_eq!(get(&node, "/kvs/x").status, 404);
}

#[test]
fn checks_come_in_the_order_of_the_contract() {
    let node = Node::start(&[]);
    let long = format!("/kvs/{}", "x".repeat(51));
    let error = |path: &str, body: &str| put(&node, path, body).json()["error"].as_str().unwrap().to_owned();
    assert!(error(&long, "{").starts_with("Malformed body"));
    assert_eq!(error(&long, r#"{"causal-metadata":1}"#), "Key is too long");
    assert_eq!(error("/kvs/x", r#"{"causal-metadata":1}"#), "PUT request does not specify a value");
    put(&node, "/nowhere", "{").is_error(404);
    node.request("POST", &long, &[], "{").is_error(405);
}

#[test]
fn metadata_that_says_nothing_is_accepted() {
    let node = Node::start(&[]);
    for text in ["null", "0", r#""""#, r#""0""#] {
        assert!(put(&node, "/kvs/x", &format!(r#"{{"value":1,"causal-metadata":{text}}}"#)).status < 300, "{text}");
    }
    assert_eq!(node.request("GET", "/kvs/x", &[("x-causal-metadata", "")], "").status, 200);
}

#[test]
fn keys_are_listed_a_page_at_a_time() {
    let node = Node::start(&[]);
    for key in ["b", "a%2F1", "a%2F2", "a%2F3", "c"] {
        assert_eq!(put(&node, &format!("/kvs/{key}"), r#"{"value":1}"#).status, 201);
    }
    let all = get(&node, "/kvs");
    assert_eq!((all.status, &all.json()["keys"]), (200, &json!(["a/1", "a/2", "a/3", "b", "c"])));
    assert_eq!(all.json()["cursor"], Value::Null);
    token(&all);
    let first = get(&node, "/kvs?prefix=a%2F&limit=2");
    assert_eq!(first.json()["keys"], json!(["a/1", "a/2"]));
    let cursor = first.json()["cursor"].as_str().expect("there is more").to_owned();
    let second = get(&node, &format!("/kvs?prefix=a%2F&limit=2&cursor={cursor}"));
    assert_eq!(second.json()["keys"], json!(["a/3"]));
    let asks_for_more = get(&node, "/kvs?limit=1001").json()["keys"].as_array().map(Vec::len);
    assert_eq!(asks_for_more, Some(5));
    for bad in ["limit=0", "limit=x", "limit=-1", "cursor=null", "prefix=%FF"] {
        get(&node, &format!("/kvs?{bad}")).is_error(400);
    }
}

#[test]
fn views_shards_and_operations() {
    let node = Node::start(&[]);
    let me = node.address.to_string();
    assert_eq!(get(&node, "/view").json(), json!({ "view": [me] }));
    assert_eq!(get(&node, "/shard/ids").json(), json!({ "shard-ids": ["s1"] }));
    assert_eq!(get(&node, "/shard/node-shard-id").json(), json!({ "node-shard-id": "s1" }));
    assert_eq!(get(&node, "/shard/members/s1").json(), json!({ "shard-members": [me] }));
    assert_eq!(put(&node, "/kvs/x", r#"{"value":1}"#).status, 201);
    assert_eq!(get(&node, "/shard/key-count/s1").json(), json!({ "shard-key-count": 1 }));
    for path in ["/shard/members/s2", "/shard/members/s01", "/shard/key-count/x", "/shard/key-count/s9"] {
        let answer = get(&node, path);
        assert_eq!((answer.status, &answer.json()["error"]), (404, &json!("Shard ID not found")), "{path}");
    }
    for path in ["/health", "/ready", "/status"] {
        let answer = get(&node, path);
        assert!(answer.status == 200 && answer.json().is_object(), "{path}: {answer:?}");
    }
    let metrics = get(&node, "/metrics");
    assert!(metrics.status == 200 && metrics.header("content-type").is_some_and(|t| t.starts_with("text/plain")));
}

#[test]
fn unknown_paths_and_methods() {
    let node = Node::start(&[]);
    for path in ["/", "/kv", "/view/", "/shard/members", "/peer/v1", "/index.html", "/%6bvs/x"] {
        get(&node, path).is_error(404);
    }
    for (method, path, allow) in [
        ("POST", "/kvs/x", "GET, HEAD, PUT, DELETE"),
        ("PATCH", "/kvs/x", "GET, HEAD, PUT, DELETE"),
        ("OPTIONS", "/kvs/x", "GET, HEAD, PUT, DELETE"),
        ("MADEUP", "/kvs/x", "GET, HEAD, PUT, DELETE"),
        ("PUT", "/kvs", "GET, HEAD"),
        ("POST", "/view", "GET, HEAD, PUT, DELETE"),
        ("GET", "/shard/add-member/s1", "PUT"),
        ("DELETE", "/shard/ids", "GET, HEAD"),
        ("POST", "/peer", "GET"),
    ] {
        let answer = node.request(method, path, &[], "{}");
        answer.is_error(405);
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
    }
    // HEAD is GET without the body: what follows on the connection is the next answer.
    let mut client = node.connect();
    client.send(&(request("HEAD", "/health", &[], "").replace("\r\n\r\n", "\r\nx: y\r\n\r\n")));
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        std::io::Read::read_exact(&mut client.0, &mut byte).unwrap();
        seen.push(byte[0]);
    }
    client.send(&request("GET", "/health", &[], ""));
    assert_eq!(client.answer().status, 200);
}
