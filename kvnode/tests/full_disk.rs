//! Disks that fill up under real processes: writes are refused with 507 and a reason, reads go on, nothing acknowledged is
//! lost, and once there is room everything goes on by itself.

mod http_support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use http_support::{Answer, Node, free_address, kvnode, until};

struct Cluster {
    addresses: Vec<SocketAddr>,
    folders: Vec<PathBuf>,
    nodes: Vec<Option<Node>>,
}

impl Cluster {
    fn planned(folders: Vec<PathBuf>) -> Self {
        let addresses = folders.iter().map(|_| free_address()).collect();
        Self { addresses, nodes: folders.iter().map(|_| None).collect(), folders }
    }

    fn run(&mut self, node: usize, settings: &[&str]) {
        let view: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        let text = self.addresses[node].to_string();
        let view = view.join(",");
        let fixed = ["--socket-address", &text, "--listen-address", &text, "--view", &view, "--log-level", "error"];
        let mut command = kvnode(&fixed);
        let child = command.args(settings).arg("--data-dir").arg(&self.folders[node]).stdout(Stdio::null()).spawn();
        self.nodes[node] = Some(Node { address: self.addresses[node], child: child.expect("kvnode starts") });
    }

    fn node(&self, node: usize) -> &Node {
        self.nodes[node].as_ref().expect("it runs")
    }

    fn wait_ready(&self, node: usize) {
        until("the node is ready", || {
            std::net::TcpStream::connect(self.addresses[node]).is_ok()
                && self.node(node).request("GET", "/ready", &[], "").status == 200
        });
    }

    fn put(&self, node: usize, key: &str, value: &str) -> Answer {
        self.node(node).request("PUT", &format!("/kvs/{key}"), &[], &format!(r#"{{"value":"{value}"}}"#))
    }

    fn get(&self, node: usize, key: &str) -> Answer {
        self.node(node).request("GET", &format!("/kvs/{key}"), &[], "")
    }

    fn status(&self, node: usize) -> serde_json::Value {
        self.node(node).request("GET", "/status", &[], "").json()
    }

    /// Puts new keys at a node until it refuses one; what was acknowledged goes to `written`.
    fn fill(&self, node: usize, length: usize, written: &mut BTreeMap<String, String>) -> Answer {
        for number in 0..10_000 {
            let (key, value) = (format!("n{node}-{number}"), value(number, length));
            let answer = self.put(node, &key, &value);
            if !matches!(answer.status, 200 | 201) {
                return answer;
            }
            written.insert(key, value);
        }
        panic!("the disk never fills up");
    }

    fn everything_is_at(&self, node: usize, written: &BTreeMap<String, String>) {
        for (key, value) in written {
            let answer = self.get(node, key);
            assert!(answer.status == 200 && answer.json()["value"] == **value, "{key} at {node}: {}", answer.status);
        }
    }
}

/// Text that can't be compressed: SplitMix64, six bits a character.
fn value(number: u64, length: usize) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = number;
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        char::from(DIGITS[(z >> 40) as usize % 64])
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn is_refused_for_room(answer: &Answer) {
    let error = answer.json()["error"].as_str().map(str::to_owned);
    assert!(answer.status == 507 && error.is_some_and(|error| error.contains("No room")), "{answer:?}");
}

#[test]
fn a_byte_limit_refuses_puts_and_a_higher_one_takes_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut cluster = Cluster::planned(vec![folder.path().join("data")]);
    cluster.run(0, &["--store-bytes-max", "1MiB"]);
    cluster.wait_ready(0);
    let mut written = BTreeMap::new();
    is_refused_for_room(&cluster.fill(0, 5_000, &mut written));
    assert!((100..210).contains(&written.len()), "{} values of 5,000 bytes in 1 MiB", written.len());
    cluster.everything_is_at(0, &written);
    // Replacing needs room, too; deleting makes it, and a key that is not there needs none.
    is_refused_for_room(&cluster.put(0, "n0-0", "1"));
    assert_eq!(cluster.node(0).request("DELETE", "/kvs/n0-0", &[], "").status, 200);
    assert_eq!(cluster.node(0).request("DELETE", "/kvs/never", &[], "").status, 404);
    written.remove("n0-0");
    assert_eq!(cluster.status(0)["room"], "low");
    // A restart at the limit, and one with a higher limit.
    cluster.nodes[0] = None;
    cluster.run(0, &["--store-bytes-max", "1MiB"]);
    cluster.wait_ready(0);
    // (What is left may still be enough for something small.)
    is_refused_for_room(&cluster.put(0, "more", &value(1, 100_000)));
    cluster.everything_is_at(0, &written);
    cluster.nodes[0] = None;
    cluster.run(0, &["--store-bytes-max", "4MiB"]);
    cluster.wait_ready(0);
    assert_eq!(cluster.put(0, "more", &value(1, 100_000)).status, 201);
    assert_eq!(cluster.get(0, "n0-0").status, 404, "deleted");
    cluster.everything_is_at(0, &written);
}

#[test]
fn one_full_replica_leaves_its_shard_writable_and_catches_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut cluster = Cluster::planned((0..3).map(|node| folder.path().join(node.to_string())).collect());
    cluster.run(0, &["--store-bytes-max", "1MiB"]);
    cluster.run(1, &[]);
    cluster.run(2, &[]);
    (0..3).for_each(|node| cluster.wait_ready(node));
    let mut written = BTreeMap::new();
    // Filled through another replica: far more than the small one takes.
    for number in 0..150 {
        let value = value(number, 20_000);
        let answer = cluster.put(1, &format!("key-{number}"), &value);
        assert_eq!(answer.status, 201, "{answer:?}");
        assert!(answer.json()["replicas"].as_u64() >= Some(2), "{answer:?}");
        written.insert(format!("key-{number}"), value);
    }
    until("the small one says that it takes no more", || cluster.status(0)["room"] == "none");
    is_refused_for_room(&cluster.put(0, "x", "1"));
    // What it has it reads, and what was refused nobody has.
    assert_eq!(cluster.get(0, "key-0").status, 200);
    assert!((0..3).all(|node| cluster.get(node, "x").status == 404));
    assert!(cluster.status(0)["keys"].as_u64() < Some(100), "{}", cluster.status(0));
    assert_eq!(cluster.put(2, "key-150", "1").json()["replicas"], 2, "the true number");
    written.insert("key-150".to_owned(), "1".to_owned());
    // Room is made: a restart with more of it is all that it takes.
    cluster.nodes[0] = None;
    cluster.run(0, &["--store-bytes-max", "64MiB"]);
    cluster.wait_ready(0);
    until("it catches up", || cluster.status(0)["digest"] == cluster.status(1)["digest"]);
    cluster.everything_is_at(0, &written);
    assert_eq!(cluster.put(0, "x", "1").status, 201);
}

/// A small disk of its own; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, and says so, where mounting is not allowed.
    fn mount(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a folder");
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "kvnode-test"]).arg(at).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(at.to_owned()));
        }
        assert!(std::env::var_os("KV_REQUIRE_MOUNT").is_none(), "a small disk can't be mounted here");
        eprintln!("SKIPPED: a small disk can't be mounted here (set KV_REQUIRE_MOUNT to make this a failure)");
        None
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().expect("mount").success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_fills_up_refuses_writes_until_it_grows() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(disk) = SmallDisk::mount(&folder.path().join("0"), "16m") else { return };
    let mut cluster = Cluster::planned((0..3).map(|node| folder.path().join(node.to_string())).collect());
    (0..3).for_each(|node| cluster.run(node, &[]));
    (0..3).for_each(|node| cluster.wait_ready(node));
    let mut written = BTreeMap::new();
    is_refused_for_room(&cluster.fill(0, 100_000, &mut written));
    assert!(written.len() > 20, "{} values of 100 kB on a disk of 16 MiB", written.len());
    // The others have room, and take more than the small disk has; it takes what it can.
    for number in 0..150 {
        let (key, value) = (format!("more-{number}"), value(1_000 + number, 100_000));
        assert_eq!(cluster.put(1 + number as usize % 2, &key, &value).status, 201);
        written.insert(key, value);
    }
    until("it takes no more", || cluster.status(0)["room"] == "none");
    // Somebody else takes all that is left on the disk.
    let rest = folder.path().join("0/somebody-elses");
    let mut file = std::fs::File::create(&rest).expect("a file");
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    drop(file);
    until("what was kept for small facts is given up", || !folder.path().join("0/ballast").exists());
    is_refused_for_room(&cluster.put(0, "x", "1"));
    let first = written.keys().next().expect("some").clone();
    assert_eq!(cluster.get(0, &first).status, 200, "reads go on");
    // Facts go on as well: peers that restart, and its own restart.
    for node in [1, 2, 0, 0] {
        cluster.nodes[node] = None;
        cluster.run(node, &[]);
        cluster.wait_ready(node);
    }
    is_refused_for_room(&cluster.put(0, "x", "1"));
    assert_eq!(cluster.get(0, &first).status, 200);
    cluster.everything_is_at(1, &written);
    let process = cluster.node(0).child.id();
    disk.resize("256m");
    until("it catches up by itself", || cluster.status(0)["digest"] == cluster.status(1)["digest"]);
    assert_eq!(cluster.put(0, "x", "1").status, 201);
    cluster.everything_is_at(0, &written);
    assert!(folder.path().join("0/ballast").exists(), "kept again");
    assert_eq!(cluster.node(0).child.id(), process, "the same process");
}
