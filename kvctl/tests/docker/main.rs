//! kvctl with real containers. Without an engine each test says that it was skipped; with KV_REQUIRE_DOCKER=1 it fails.

mod contexts;
mod images;
mod lost;
#[path = "../support/mod.rs"]
mod support;
mod under_load;

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvnode_client::Client;

use support::{Cluster, Said, chain, hear, interrupt, until};

/// One at a time: they share an engine and this machine.
static ONE: Mutex<()> = Mutex::new(());

/// A turn to use the engine. The image that the tests made goes with it; that the next makes it again takes no second.
struct Turn {
    _one: MutexGuard<'static, ()>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        docker(&["rmi", &image()]);
    }
}

/// The turn to use the engine; `None` where there is none.
fn engine() -> Option<Turn> {
    let turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let answers = Command::new("docker").arg("version").output().is_ok_and(|output| output.status.success());
    if !answers {
        let required = std::env::var("KV_REQUIRE_DOCKER").is_ok_and(|value| value == "1");
        assert!(!required, "KV_REQUIRE_DOCKER is set and no Docker engine answers");
        eprintln!("SKIPPED: no Docker engine answers");
        return None;
    }
    Some(Turn { _one: turn })
}

/// Another run of these tests may use the engine at the same time: names, networks and ports are this process's own.
fn image() -> String {
    format!("kvctl-test-{}", std::process::id())
}

/// The second number of a test's network.
fn second(block: u16) -> u16 {
    100 + (std::process::id() % 14) as u16 * 10 + block
}

fn port(offset: u16) -> u16 {
    18_000 + (std::process::id() % 28) as u16 * 500 + offset
}

fn docker(arguments: &[&str]) -> Said {
    Command::new("docker").args(arguments).output().expect("docker starts").into()
}

fn docker_ok(arguments: &[&str]) -> String {
    let said = docker(arguments);
    assert_eq!(said.code, 0, "docker {arguments:?}: {said:?}");
    said.out
}

/// The options of a cluster on a network and on ports of its own.
fn options(block: u16, ports_from: u16) -> Vec<String> {
    let (subnet, ports) = (format!("10.{}.0.0/16", second(block)), ports_from.to_string());
    ["--runtime", "docker", "--subnet", &subnet, "--ports-from", &ports, "--image", &image()].map(str::to_owned).into()
}

fn cluster(name: &str, block: u16) -> Cluster {
    Cluster::new(name, &options(block, port(20 * block)))
}

#[test]
fn a_chain_of_600_keys_then_with_a_node_killed_and_the_network_cut() {
    let Some(_turn) = engine() else { return };
    let cluster = cluster("chain", 1);
    cluster.up();
    let endpoints = cluster.endpoints();
    chain(&endpoints, || endpoints.clone());
    let before = cluster.status();
    cluster.up();
    assert_eq!(cluster.status(), before, "a second up changes nothing");

    // Cut bob off, write on, heal: it has everything again.
    let (network, bob) = (format!("kv_subnet-{}", cluster.name), format!("{}-bob", cluster.name));
    docker_ok(&["network", "disconnect", &network, &bob]);
    for number in 0..20 {
        cluster.ok(&["put", &format!("cut-{number}"), "1", "--via", "alice"]);
    }
    docker_ok(&["network", "connect", "--ip", &format!("10.{}.0.3", second(1)), &network, &bob]);
    // Docker has dropped his published port; `up` brings it back, and wakes who is paused.
    docker_ok(&["pause", &format!("{}-dave", cluster.name)]);
    cluster.up();
    assert!(cluster.all_ready(), "{}", cluster.status());
    // Cut off and not healed: a new container takes over his data.
    docker_ok(&["network", "disconnect", &network, &bob]);
    cluster.up();
    assert!(cluster.all_ready(), "{}", cluster.status());
    let counts = || -> Vec<serde_json::Value> {
        let status = cluster.status();
        (0..3).map(|node| status["nodes"][node]["keys"].clone()).collect()
    };
    until("the replicas of s1 have the same keys", || counts().windows(2).all(|pair| pair[0] == pair[1]));
    for number in 0..20 {
        assert_eq!(cluster.ok(&["get", &format!("cut-{number}"), "--via", "bob"]), "1\n");
    }
}

#[test]
fn a_chain_with_a_node_killed_half_way_and_repair() {
    let Some(_turn) = engine() else { return };
    let cluster = cluster("kill", 2);
    cluster.up();
    let endpoints = cluster.endpoints();
    chain(&endpoints, || {
        docker_ok(&["kill", &format!("{}-erin", cluster.name)]);
        let left = |node: &&String| **node != endpoints[4];
        endpoints.iter().filter(left).cloned().collect()
    });
    docker_ok(&["rm", "-f", &format!("{}-carol", cluster.name)]);
    cluster.up();
    assert!(cluster.all_ready(), "{}", cluster.status());
    assert_eq!(cluster.ok(&["get", "chain-599", "--via", "erin"]), "599\n");
    assert_eq!(cluster.ok(&["get", "chain-0", "--via", "carol"]), "0\n");
    for (verb, state) in [("pause", "paused"), ("unpause", "running"), ("stop", "stopped"), ("start", "running")] {
        assert_eq!(cluster.ok(&["node", verb, "dave"]), format!("dave {state}\n"));
    }
    assert!(cluster.ok(&["cluster", "logs", "alice"]).contains("serving shard s1"));
}

#[test]
fn what_is_in_the_way_is_named_and_nothing_is_left() {
    let Some(_turn) = engine() else { return };
    let cluster = cluster("way", 3);
    let taken = port(62);
    let holder = TcpListener::bind(("127.0.0.1", taken)).expect("a free port");
    let said = cluster.try_up();
    let me = format!("process {}", std::process::id());
    assert!(said.code == 10 && said.err.contains(&taken.to_string()) && said.err.contains(&me), "{said:?}");
    drop(holder);

    let other = format!("other{}", std::process::id());
    docker_ok(&["network", "create", "--subnet", &format!("10.{}.7.0/24", second(3)), &other]);
    let said = cluster.try_up();
    docker_ok(&["network", "rm", &other]);
    assert!(said.code == 10 && said.err.contains(&other), "{said:?}");
    assert_eq!(docker_ok(&["ps", "-aq", "--filter", &format!("label=kvctl.cluster={}", cluster.name)]), "");

    cluster.up();

    // Another cluster beside the first, first on its ports, then on others.
    let clash = Cluster::new("clash", &options(6, port(65)));
    let said = clash.try_up();
    assert!(said.code == 10 && said.err.contains(&format!("container '{}-", cluster.name)), "{said:?}");
    let beside = Cluster::new("beside", &options(6, port(300)));
    beside.up();
    beside.ok(&["put", "x", "2"]);
    cluster.ok(&["put", "x", "1"]);
    assert_eq!((beside.ok(&["get", "x"]), cluster.ok(&["get", "x"])), ("2\n".into(), "1\n".into()));
}

#[test]
fn what_an_up_made_that_fails_or_is_interrupted_is_taken_back_the_image_included() {
    let Some(_turn) = engine() else { return };
    let image = format!("{}-late", image());
    let mut up = options(5, port(80));
    up.truncate(up.len() - 1);
    up.push(image.clone());
    let cluster = Cluster::new("late", &up);
    let nothing_is_left = || {
        let label = format!("label=kvctl.cluster={}", cluster.name);
        assert_eq!(docker_ok(&["images", "-q", &image]), "");
        assert_eq!(docker_ok(&["ps", "-aq", "--filter", &label]), "");
        assert_eq!(docker_ok(&["network", "ls", "-q", "--filter", &label]), "");
        assert_eq!(docker_ok(&["volume", "ls", "-q", "--filter", &label]), "");
        assert!(!cluster.state().exists());
    };
    let said: Said = cluster.up_command().args(["--wait", "0"]).output().expect("it starts").into();
    assert!(said.code == 6 && said.err.contains("alice: "), "{said:?}");
    nothing_is_left();

    let mut child = cluster.up_command().stderr(Stdio::piped()).spawn().expect("it starts");
    hear(&mut child, &format!("starting {}-carol", cluster.name));
    interrupt(&child);
    hear(&mut child, "interrupted");
    assert_eq!(child.wait().expect("it ends").code(), Some(1));
    nothing_is_left();
}

/// Containers and a network made by hand; removed when dropped.
struct ByHand(String);

impl Drop for ByHand {
    fn drop(&mut self) {
        for node in 2..8 {
            docker(&["rm", "-fv", &format!("{}-{node}", self.0)]);
        }
        docker(&["network", "rm", &self.0]);
    }
}

#[test]
fn six_plain_docker_runs_make_the_same_cluster() {
    let Some(_turn) = engine() else { return };
    // Makes the image.
    drop({
        let cluster = cluster("image", 4);
        cluster.up();
        cluster
    });
    let net = second(7);
    let made = ByHand(format!("plain{}", std::process::id()));
    docker_ok(&["network", "create", "--subnet", &format!("10.{net}.0.0/16"), &made.0]);
    let view: Vec<String> = (2..8).map(|node| format!("10.{net}.0.{node}:8090")).collect();
    for node in 2..8 {
        let (name, ip) = (format!("{}-{node}", made.0), format!("10.{net}.0.{node}"));
        let (port, address) = (format!("127.0.0.1:{}:8090", port(400) + node), format!("SOCKET_ADDRESS={ip}:8090"));
        let view = format!("VIEW={}", view.join(","));
        let run = ["run", "-d", "--name", &name, "--net", &made.0, "--ip", &ip, "-p", &port, "-e", &address];
        docker_ok(&[&run[..], &["-e", &view, "-e", "SHARD_COUNT=2", &image()]].concat());
    }
    let endpoints: Vec<String> = (2..8).map(|node| format!("127.0.0.1:{}", port(400) + node)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    until("all are ready", || {
        endpoints.iter().all(|endpoint| {
            let look = Client::new(vec![endpoint.clone()]);
            runtime.block_on(look.look("/ready")).is_ok_and(|answer| answer.is_success())
        })
    });
    chain(&endpoints, || endpoints.clone());
}

#[test]
fn a_log_is_followed_through_restarts_and_a_deleted_node_leaves_nothing() {
    let Some(_turn) = engine() else { return };
    let cluster = cluster("follow", 8);
    cluster.up();
    let mut follow = cluster.command(&["cluster", "logs", "bob", "-f"]);
    let mut child = follow.stdout(Stdio::piped()).spawn().expect("it starts");
    support::read_until(child.stdout.as_mut().expect("piped"), "serving shard s1");
    let bob = format!("{}-bob", cluster.name);
    docker_ok(&["restart", &bob]);
    support::read_until(child.stdout.as_mut().expect("piped"), "starting address=");
    // A new container in its place.
    docker_ok(&["rm", "-f", &bob]);
    cluster.up();
    support::read_until(child.stdout.as_mut().expect("piped"), "starting address=");

    cluster.ok(&["view", "remove", "frank"]);
    cluster.ok(&["node", "remove", "frank", "--yes"]);
    let frank = format!("name={}-frank", cluster.name);
    assert_eq!(docker_ok(&["ps", "-aq", "--filter", &frank]), "");
    assert_eq!(docker_ok(&["volume", "ls", "-q", "--filter", &format!("name=kvnode-{}-frank", cluster.name)]), "");
    cluster.ok(&["cluster", "down", "--yes"]);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}
