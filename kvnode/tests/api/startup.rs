//! What a node says to its settings.

use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::support::{Cluster, command, poll};

struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The output of a node that has to end with status 2.
#[track_caller]
fn refused(variables: &[(&str, &str)], arguments: &[&str]) -> String {
    let mut command = command();
    command.envs(variables.iter().copied()).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Reaped(command.spawn().unwrap());
    let status = poll(Duration::from_secs(5), || child.0.try_wait().unwrap());
    let status = status.unwrap_or_else(|| panic!("still runs: {variables:?} {arguments:?}"));
    let mut output = std::io::read_to_string(child.0.stderr.take().unwrap()).unwrap();
    output.push_str(&std::io::read_to_string(child.0.stdout.take().unwrap()).unwrap());
    assert_eq!(status.code(), Some(2), "{variables:?} {arguments:?}: {output}");
    output
}

#[track_caller]
fn refused_in_a_line(variables: &[(&str, &str)], says: &[&str]) {
    let output = refused(variables, &[]);
    assert_eq!(output.trim_end().lines().count(), 1, "{variables:?}: {output}");
    for part in says {
        assert!(output.contains(part), "{variables:?}: {part:?} is not in {output}");
    }
}

#[test]
fn a_missing_or_bad_socket_address_is_refused() {
    refused_in_a_line(&[], &["SOCKET_ADDRESS", ":8090"]);
    for bad in ["x", "127.0.0.1", ":8090", "host:", "host:99999", "host:-1", "host:80x", "http://h:80", "a b:8090"] {
        refused_in_a_line(&[("SOCKET_ADDRESS", bad)], &["SOCKET_ADDRESS", ":8090"]);
    }
}

#[test]
fn bad_views_and_limits_are_refused() {
    let own = ("SOCKET_ADDRESS", "127.0.0.1:8090");
    refused_in_a_line(&[own, ("VIEW", "127.0.0.1:8090,nonsense")], &["VIEW"]);
    for bad in ["0", "-1", "x", "1.5", "1180591620717411303424"] {
        refused_in_a_line(&[own, ("SHARD_COUNT", bad)], &["SHARD_COUNT"]);
    }
    refused_in_a_line(&[own, ("MAX_BODY", "lots")], &["MAX_BODY"]);
    refused_in_a_line(&[own, ("HEADER_TIMEOUT", "soon")], &["HEADER_TIMEOUT"]);
    assert!(refused(&[own], &["--no-such-flag"]).contains("--no-such-flag"));
}

#[test]
fn too_many_shards_are_refused() {
    let reason = "Not enough nodes to provide fault tolerance with requested shard count";
    let own = ("SOCKET_ADDRESS", "10.0.0.1:8090");
    refused_in_a_line(&[own, ("SHARD_COUNT", "2")], &[reason]);
    let three = ("VIEW", "10.0.0.1:8090,10.0.0.2:8090,10.0.0.3:8090");
    refused_in_a_line(&[own, three, ("SHARD_COUNT", "2")], &[reason]);
    refused_in_a_line(&[own, three, ("SHARD_COUNT", "3")], &[reason]);
}

#[test]
fn a_taken_listen_address_is_refused() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = refused(&[("SOCKET_ADDRESS", &address), ("LISTEN_ADDRESS", &address)], &[]);
    assert!(output.contains(&address), "{output}");
}

#[test]
fn a_data_directory_that_is_no_use_is_refused() {
    let own = ("SOCKET_ADDRESS", "127.0.0.1:8090");
    let listen = ("LISTEN_ADDRESS", "127.0.0.1:0");
    let output = refused(&[own, listen, ("DATA_DIR", "/dev/null/below")], &[]);
    assert!(output.contains("/dev/null/below"), "{output}");
}

#[test]
fn the_data_directory_of_another_node_is_refused_untouched() {
    let mut cluster = Cluster::planned(1, 1, &[]);
    let data = cluster.data_directory(0);
    cluster.run(0, &[("DATA_DIR", &data)]);
    cluster.wait_ready(&[0]);
    let token = cluster.put(0, "kept", "[1,2]", "").expect_result(201, "created").token();

    let other = [("SOCKET_ADDRESS", "127.0.0.1:8091"), ("LISTEN_ADDRESS", "127.0.0.1:0"), ("DATA_DIR", &*data)];
    let output = refused(&other, &[]);
    assert!(output.contains(&data), "{output}");

    cluster.signal(0, "TERM");
    assert_eq!(cluster.wait_end(0, Duration::from_secs(10)).and_then(|s| s.code()), Some(0));
    let output = refused(&other, &[]);
    assert!(output.contains(&data), "{output}");

    cluster.run(0, &[("DATA_DIR", &data)]);
    cluster.wait_ready(&[0]);
    let answer = cluster.read(0, "kept", &token).expect_result(200, "found");
    assert_eq!(answer.json()["value"], serde_json::json!([1, 2]), "{answer}");
}

#[test]
fn without_a_view_a_node_is_a_cluster_alone() {
    let mut cluster = Cluster::planned(1, 1, &[]);
    cluster.run(0, &[("VIEW", ""), ("SHARD_COUNT", "")]);
    cluster.wait_ready(&[0]);
    assert_eq!(cluster.view(0), [cluster.name(0)]);
    assert_eq!(cluster.get(0, "/shard/ids").json()["shard-ids"], serde_json::json!(["s1"]));
    let answer = cluster.put(0, "a", "1", "").expect(201);
    assert_eq!(answer.json()["replicas"], 1, "{answer}");
}

#[test]
fn a_node_adds_itself_to_its_view() {
    let mut cluster = Cluster::planned(2, 1, &[]);
    let first = cluster.name(0);
    cluster.run(0, &[]);
    cluster.run(1, &[("VIEW", &first)]);
    cluster.wait_ready(&[0, 1]);
    cluster.wait_view(&[0, 1], Duration::from_secs(3));
}

#[test]
fn a_node_waits_for_all_of_its_view() {
    let mut cluster = Cluster::planned(3, 1, &[]);
    cluster.run(0, &[]);
    cluster.run(1, &[]);
    let missing = cluster.name(2);
    let mut named = false;
    poll(Duration::from_secs(2), || {
        let answer = cluster.try_send(0, "GET", "/ready", &[], crate::http::Body::None).ok()?;
        named = answer.expect_error(503).contains(&missing);
        None::<()>
    });
    assert!(named, "/ready does not name {missing}");
    cluster.get(0, "/health").expect(200);
    cluster.get(0, "/kvs/a").expect_error(503);
    // Which shards there are it does not know yet.
    let member = format!(r#"{{"socket-address":"{missing}"}}"#);
    cluster.send(0, "PUT", "/shard/add-member/s1", &member).expect_error(503);
    cluster.run(2, &[]);
    cluster.wait_ready(&[0, 1, 2]);
    cluster.put(2, "a", "1", "").expect_result(201, "created");
}
