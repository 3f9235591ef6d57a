//! `/kvs/<key>`: values, keys and the order of the checks, each request through another node.

use serde_json::{Value, json, value::RawValue};

use crate::http::Answer;
use crate::support::Cluster;

fn two_shards() -> Cluster {
    Cluster::start(4, 2, &[])
}

#[derive(serde::Deserialize)]
struct Found<'a> {
    #[serde(borrow)]
    value: &'a RawValue,
}

#[test]
fn a_key_lives_and_dies() {
    let c = two_shards();
    for key in ["one", "two", "three", "four"] {
        let path = format!("/kvs/{key}");
        let missing = c.read(0, key, "");
        assert_eq!(missing.token(), missing.clone().expect(404).token());
        assert_eq!(missing.expect_error(404), "Key does not exist");
        let missing = c.send(1, "DELETE", &path, "").expect(404);
        let mut token = missing.token();
        assert_eq!(missing.expect_error(404), "Key does not exist");

        let steps = [("PUT", 201, "created"), ("PUT", 200, "replaced"), ("DELETE", 200, "deleted")];
        for round in 0..2 {
            for (i, (method, status, result)) in steps.into_iter().enumerate() {
                let mut body = json!({ "causal-metadata": token });
                if method == "PUT" {
                    body["value"] = json!([round, i]);
                }
                let answer = c.send((i + round) % 4, method, &path, &body.to_string()).expect_result(status, result);
                assert!(answer.json()["replicas"].as_u64().is_some_and(|n| n >= 1), "{answer}");
                token = answer.token();
                let answer = c.read((i + 2) % 4, key, &token);
                if method == "PUT" {
                    let answer = answer.expect_result(200, "found");
                    assert_eq!(answer.json()["value"], body["value"]);
                    token = answer.token();
                } else {
                    token = answer.token();
                    assert_eq!(answer.expect_error(404), "Key does not exist");
                }
            }
            let body = json!({ "causal-metadata": token }).to_string();
            token = c.send(3, "DELETE", &path, &body).expect(404).token();
        }
    }
}

#[test]
fn an_absence_names_its_deletion() {
    let mut c = Cluster::six();
    // A tombstone is kept while a replica of its shard is away.
    c.kill(&[2, 5]);
    let nodes = [0, 1, 3, 4];
    for key in ["one", "two", "three", "four"] {
        let path = format!("/kvs/{key}");
        let named =
            |answer: &Answer| answer.json().get("tombstone").map(|name| name.as_str().expect("text").to_owned());
        for (method, node) in [("GET", 0), ("DELETE", 1)] {
            assert_eq!(named(&c.send(node, method, &path, "").expect(404)), None, "{key} never was");
        }
        let mut token = String::new();
        let mut names = Vec::new();
        for round in 0..2 {
            let put = c.put(round, key, "1", &token).expect(201);
            assert_eq!(named(&put), None, "{put}");
            let body = json!({ "causal-metadata": put.token() }).to_string();
            let deleted = c.send(nodes[round + 1], "DELETE", &path, &body).expect_result(200, "deleted");
            token = deleted.token();
            let name = named(&deleted).unwrap_or_else(|| panic!("no tombstone: {deleted}"));
            let body = json!({ "causal-metadata": token }).to_string();
            for node in nodes {
                for method in ["GET", "DELETE"] {
                    let gone = c.send(node, method, &path, &body).expect(404);
                    assert_eq!(named(&gone).as_ref(), Some(&name), "{method} {key} at node {node}: {gone}");
                }
            }
            names.push(name);
        }
        assert_ne!(names[0], names[1], "two deletions of {key}");
    }
}

#[test]
fn null_is_a_value() {
    let c = two_shards();
    let token = c.put(0, "nothing", "null", "").expect_result(201, "created").token();
    for node in c.all() {
        let answer = c.read(node, "nothing", &token).expect_result(200, "found");
        assert_eq!(answer.json().as_object().unwrap().get("value"), Some(&Value::Null), "{answer}");
    }
    c.put(3, "nothing", "null", &token).expect_result(200, "replaced");
}

#[test]
fn values_come_back_to_the_last_digit() {
    let c = two_shards();
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    let long = format!("\"{}\"", "x".repeat(200_000));
    let values = [
        "0",
        "-1",
        "9223372036854775807",
        "-9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "123456789012345678901234567890.123456789012345678901234567890",
        "3.141592653589793238462643383279",
        "0.1",
        "1e400",
        "-2.5e-400",
        "true",
        "false",
        "\"\"",
        "[]",
        "{}",
        "[null,1,\"a\",{\"b\":[]}]",
        r#"{"a":{"b":{"c":[1,2.50,{"d":null}]}},"":0}"#,
        "\"žluťoučký 🐎 日本語\"",
        &deep,
        &long,
    ];
    let mut token = String::new();
    for (i, value) in values.iter().enumerate() {
        token = c.put(i % 4, &format!("v{i}"), value, &token).expect(201).token();
        let answer = c.read((i + 1) % 4, &format!("v{i}"), &token).expect(200);
        let text = answer.text();
        let found: Found<'_> = serde_json::from_str(&text).unwrap();
        assert_eq!(found.value.get(), *value, "{answer}");
    }
    let escaped = r#""tab\t \"quote\" \\ \u0000 \ud83d\ude00 \u00e9""#;
    token = c.put(0, "escaped", escaped, &token).expect(201).token();
    let answer = c.read(2, "escaped", &token).expect(200);
    assert_eq!(answer.json()["value"], serde_json::from_str::<Value>(escaped).unwrap());
}

#[test]
fn a_key_is_everything_after_the_prefix_decoded() {
    let c = two_shards();
    let keys = [
        ("a/b", "a%2Fb"),
        ("a//b", "a%2f%2Fb"),
        ("a/", "a%2F"),
        ("x+y", "x%2By"),
        ("x%20y", "x%20y"),
        ("%C5%BE", "%c5%be"),
        ("q%3Fx=1", "q%3Fx%3D1"),
        ("h%23", "%68%23"),
        ("100%25", "1%300%25"),
        ("%00", "%00"),
        ("%0A", "%0a"),
        ("%22%5C", "%22%5c"),
        ("..", "%2E%2E"),
        (".", "%2e"),
        ("a/../b", "a%2F..%2Fb"),
        ("%F0%9F%90%8E", "%f0%9f%90%8e"),
    ];
    let mut token = String::new();
    for (i, (plain, _)) in keys.iter().enumerate() {
        token = c.put(i % 4, plain, &i.to_string(), &token).expect_result(201, "created").token();
    }
    for (i, (plain, encoded)) in keys.iter().enumerate() {
        for key in [plain, encoded] {
            let answer = c.read((i + 1) % 4, key, &token).expect_result(200, "found");
            assert_eq!(answer.json()["value"], i, "{key}: {answer}");
        }
    }
    // The query is no part of the key.
    c.get(0, "/kvs/a/b?x=1").expect_result(200, "found");
}

#[test]
fn a_key_has_at_most_fifty_characters() {
    let c = two_shards();
    for one in ["k", "%C5%BE", "%F0%9F%90%8E", "%2F"] {
        let fits = one.repeat(50);
        let token = c.put(1, &fits, "1", "").expect_result(201, "created").token();
        c.read(2, &fits, &token).expect_result(200, "found");
        let path = format!("/kvs/{}", one.repeat(51));
        for (method, body) in [("PUT", r#"{"value":1}"#), ("GET", ""), ("DELETE", "")] {
            for node in [0, 3] {
                assert_eq!(c.send(node, method, &path, body).expect_error(400), "Key is too long", "{method}");
            }
        }
    }
    let c = Cluster::start(1, 1, &[("MAX_KEY_CHARS", "5")]);
    c.put(0, "12345", "1", "").expect(201);
    assert_eq!(c.put(0, "123456", "1", "").expect_error(400), "Key is too long");
}

#[test]
fn an_empty_key_is_not_found() {
    let c = two_shards();
    for (method, body) in [("PUT", r#"{"value":1}"#), ("GET", ""), ("DELETE", "")] {
        c.send(0, method, "/kvs/", body).expect_error(404);
    }
}

#[test]
fn checks_come_in_order_and_a_refused_request_writes_nothing() {
    let c = two_shards();
    let long = format!("/kvs/{}", "k".repeat(51));
    c.send(0, "PUT", "/nowhere", "{").expect_error(404);
    assert_ne!(c.send(0, "PUT", &long, "{").expect_error(400), "Key is too long");
    assert_eq!(c.send(0, "PUT", &long, "{}").expect_error(400), "Key is too long");
    let no_value = "PUT request does not specify a value";
    assert_eq!(c.send(1, "PUT", "/kvs/a", "{}").expect_error(400), no_value);
    assert_eq!(c.send(1, "PUT", "/kvs/a", r#"{"causal-metadata":"bad"}"#).expect_error(400), no_value);
    assert_eq!(c.put(2, "a", "1", "bad").expect_error(400), "Malformed causal-metadata");
    assert_eq!(c.read(2, &"k".repeat(51), "bad").expect_error(400), "Key is too long");

    c.get(3, "/kvs/a").expect(404);
    c.send(3, "DELETE", "/kvs/a", "").expect(404);
    assert_eq!(c.get(0, "/kvs").expect(200).json()["keys"], json!([]));
    assert_eq!(c.key_count(0, "s1") + c.key_count(0, "s2"), 0);
}
