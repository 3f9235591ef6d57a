//! kvctl with real containers. Without an engine each test says that it was skipped; with KV_REQUIRE_DOCKER=1 it fails.

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvnode::client::{Client, Session};

use support::{Cluster, Said, chain, hear, interrupt, kvnode, until};

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

/// An image that somebody else has built is not replaced by one of the binary at hand.
#[test]
fn an_image_that_kvctl_did_not_build_is_used_as_it_is() {
    let Some(_turn) = engine() else { return };
    let theirs = Image(format!("kvctl-test-theirs-{}", std::process::id()));
    // The same, without what kvctl marks its images with.
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::copy(kvnode(), folder.path().join("kvnode")).expect("a copy");
    let text = "FROM scratch\nCOPY kvnode /kvnode\nENTRYPOINT [\"/kvnode\"]\n";
    std::fs::write(folder.path().join("Dockerfile"), text).expect("written");
    let id = || docker_ok(&["inspect", "-f", "{{.Id}}", &theirs.0]);
    docker_ok(&["build", "-q", "-t", &theirs.0, folder.path().to_str().expect("UTF-8")]);
    let before = id();
    let mut all = options(21, port(500));
    *all.last_mut().expect("the image") = theirs.0.clone();
    let cluster = Cluster::new("theirs", &all);
    let said = cluster.try_up();
    assert!(said.code == 0 && said.err.contains("did not build"), "{said:?}");
    assert_eq!(id(), before);
    cluster.ok(&["put", "x", "1"]);
}

/// An image that goes with the test, after the containers of it.
struct Image(String);

impl Drop for Image {
    fn drop(&mut self) {
        docker(&["rmi", &self.0]);
    }
}

/// An image that builds are made in, of files of this host; removed when dropped, with all that was built on it.
struct Base {
    name: String,
    label: String,
}

impl Base {
    /// With a shell, cp, mkdir, the static kvnode as `/prebuilt`, and a script of these lines for cargo.
    fn new(cargo: &str) -> Self {
        let name = format!("kvctl-test-base-{}", std::process::id());
        let base = Self { label: format!("kvctl.test={name}"), name };
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("base.tar");
        let mut archive = tar::Builder::new(File::create(&path).expect("a file"));
        // Docker does not know sparse entries.
        archive.sparse(false);
        let mut add = |from: &Path, to: &str| {
            archive.append_path_with_name(from, to.trim_start_matches('/')).expect("a file of this host");
        };
        let programs = ["sh", "cp", "mkdir"].map(found);
        for program in &programs {
            add(program, &format!("/bin/{}", program.file_name().expect("a name").display()));
        }
        for library in programs.iter().flat_map(|program| libraries(program)).collect::<BTreeSet<_>>() {
            add(Path::new(&library), &library);
        }
        add(&kvnode(), "/prebuilt");
        let mut header = tar::Header::new_gnu();
        let script = format!("#!/bin/sh\n{cargo}\n");
        header.set_size(script.len() as u64);
        header.set_mode(0o755);
        archive.append_data(&mut header, "bin/cargo", script.as_bytes()).expect("written");
        archive.finish().expect("written");
        let label = format!("LABEL {}", base.label);
        let path = path.display().to_string();
        docker_ok(&["import", "--change", "ENV PATH=/bin", "--change", &label, &path, &base.name]);
        base
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        docker(&["image", "prune", "-f", "--filter", &format!("label={}", self.label)]);
        docker(&["rmi", &self.name]);
    }
}

/// A program on the PATH.
fn found(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").expect("a PATH");
    let mut candidates = std::env::split_paths(&path).map(|folder| folder.join(program));
    candidates.find(|candidate| candidate.is_file()).unwrap_or_else(|| panic!("there is no {program}"))
}

/// The files that a program needs to run.
fn libraries(program: &Path) -> Vec<String> {
    let said: Said = Command::new("ldd").arg(program).output().expect("ldd starts").into();
    said.out.split_whitespace().filter(|word| word.starts_with('/')).map(|word| word.replace(':', "")).collect()
}

/// A cluster whose image is built from the source tree: there is nothing else to build one from.
fn from_source(name: &str, base: Option<&Base>) -> Cluster {
    let mut cluster = cluster(name, 8);
    let none = cluster.stand_in("exit 1").display().to_string();
    cluster.set("KVNODE", none);
    if let Some(base) = base {
        cluster.set("RUST_IMAGE", &base.name);
    }
    assert_eq!(docker_ok(&["images", "-q", &image()]), "", "there is an image already");
    cluster
}

/// What cargo would need is there, and it is asked for what the next line of the Dockerfile takes.
const CARGO: &str = r#"
[ "$*" = "build --release --locked --bin kvnode" ] || { echo "asked to $*"; exit 1; }
for file in Cargo.toml Cargo.lock .cargo/config.toml kvnode/Cargo.toml kvnode/src/main.rs kvctl/Cargo.toml kvctl/src/main.rs
do [ -s $file ] || { echo "there is no $file"; exit 1; }; done
mkdir -p target/host/release && cp /prebuilt target/host/release/kvnode"#;

#[test]
fn the_dockerfile_builds_on_a_stand_in_for_rust() {
    let Some(_turn) = engine() else { return };
    let base = Base::new(CARGO);
    let cluster = from_source("source", Some(&base));
    cluster.up();
    assert!(cluster.all_ready(), "{}", cluster.status());
    cluster.ok(&["put", "x", "1", "--via", "alice"]);
    assert_eq!(cluster.ok(&["get", "x", "--via", "frank"]), "1\n");
    let image = docker_ok(&["inspect", "--format", "{{.Image}}", &format!("{}-alice", cluster.name)]);
    assert_eq!(docker_ok(&["inspect", "--format", "{{.Id}}", &self::image()]), image);
}

#[test]
fn a_build_that_fails_says_why_and_leaves_nothing() {
    let Some(_turn) = engine() else { return };
    let base = Base::new("echo 'error: it does not compile'; exit 101");
    let cluster = from_source("broken", Some(&base));
    let said = cluster.try_up();
    assert!(said.code == 10 && said.err.contains("error: it does not compile"), "{said:?}");
    assert_eq!(docker_ok(&["images", "-q", &image()]), "");
    assert!(!cluster.state().exists());
}

/// The images without a name that were there before. Of those that have come since, a build stage's go when dropped.
struct Unnamed(BTreeSet<String>);

impl Unnamed {
    fn now() -> BTreeSet<String> {
        docker_ok(&["images", "-q", "--filter", "dangling=true"]).lines().map(str::to_owned).collect()
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        for image in Self::now().difference(&self.0) {
            // The folder that the Dockerfile builds in: other images may be of somebody else.
            if docker(&["inspect", "--format", "{{.Config.WorkingDir}}", image]).out == "/src\n" {
                docker(&["rmi", image]);
            }
        }
    }
}

#[test]
#[ignore = "compiles everything in release mode, in an image with Rust: minutes"]
fn the_dockerfile_builds_in_full() {
    let Some(_turn) = engine() else { return };
    let _built = Unnamed(Unnamed::now());
    let cluster = from_source("full", None);
    cluster.up();
    assert!(cluster.all_ready(), "{}", cluster.status());
    cluster.ok(&["put", "x", "1", "--via", "alice"]);
    assert_eq!(cluster.ok(&["get", "x", "--via", "frank"]), "1\n");
}

/// Where the docker command finds the engine.
fn endpoint() -> String {
    docker_ok(&["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]).trim().to_owned()
}

/// Makes a Docker context, in a folder of its own.
fn context(folder: &Path, name: &str, host: &str) {
    let folder = folder.display().to_string();
    docker_ok(&["--config", &folder, "context", "create", name, "--docker", &format!("host={host}")]);
}

#[test]
fn a_named_docker_context_leads_to_its_engine() {
    let Some(_turn) = engine() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().display().to_string();
    // By a way of its own, so that it shows who takes it.
    let way = folder.path().join("engine.sock");
    let endpoint = endpoint();
    let socket = endpoint.strip_prefix("unix://").unwrap_or_else(|| panic!("an engine on a socket, not {endpoint}"));
    std::os::unix::fs::symlink(socket, &way).expect("a link");
    context(folder.path(), "there", &format!("unix://{}", way.display()));
    context(folder.path(), "nowhere", "tcp://127.0.0.1:1");

    // The variable wins over the configuration.
    let use_context = |name: &str| {
        let mut command = Command::new("docker");
        command.args(["--config", &config, "context", "use", name]).env_remove("DOCKER_HOST");
        let said: Said = command.output().expect("docker starts").into();
        assert_eq!(said.code, 0, "{said:?}");
    };
    use_context("nowhere");
    let mut cluster = cluster("context", 9);
    for (variable, value) in [("DOCKER_HOST", ""), ("DOCKER_CONFIG", &config), ("DOCKER_CONTEXT", "there")] {
        cluster.set(variable, value);
    }
    cluster.up();
    cluster.ok(&["put", "x", "1"]);

    use_context("there");
    cluster.set("DOCKER_CONTEXT", "");
    assert!(cluster.all_ready(), "{}", cluster.status());

    std::fs::remove_file(&way).expect("removed");
    let said = cluster.run(&["cluster", "status"]);
    assert!(said.code == 10 && said.err.contains("engine.sock"), "{said:?}");
    std::os::unix::fs::symlink(socket, &way).expect("a link");
    assert_eq!(cluster.ok(&["get", "x"]), "1\n");
}

#[test]
fn a_docker_context_that_leads_nowhere_is_named() {
    let Some(_turn) = engine() else { return };
    let mut cluster = cluster("nowhere", 9);
    // Where it is looked for unless DOCKER_CONFIG says otherwise.
    let folder = cluster.home().join(".docker");
    context(&folder, "closed", "tcp://127.0.0.1:1");
    context(&folder, "absent", "unix:///nobody/listens.sock");
    for variable in ["DOCKER_HOST", "DOCKER_CONFIG"] {
        cluster.set(variable, "");
    }
    let cases = [
        ("closed", "no Docker engine answers at tcp://127.0.0.1:1"),
        ("absent", "no Docker engine answers at unix:///nobody/listens.sock"),
        ("unheard-of", "Docker context 'unheard-of' is not in "),
    ];
    for (name, reason) in cases {
        cluster.set("DOCKER_CONTEXT", name);
        let said = cluster.try_up();
        assert!(said.code == 10 && said.err.contains(reason), "{name}: {said:?}");
        assert!(!cluster.state().exists(), "{name}");
    }
}

/// What a session wrote and was told to be written, and what went wrong.
#[derive(Default)]
struct Journal {
    acknowledged: Vec<(String, usize)>,
    offences: Vec<String>,
}

/// The node that is not asked because it is dead or about to be, and how often there was one: an operation that began before
/// it died may end when it is back.
#[derive(Clone, Default)]
struct Outage {
    node: Option<String>,
    count: usize,
}

/// Tells the sessions to end, even where the test ends in a panic and would wait for them.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One session that writes new keys through some nodes and reads them back through others, until told to stop. A write whose
/// answer is lost with the node that was asked counts for nothing; a key that was acknowledged must be found.
fn work(index: usize, endpoints: &[String], outage: &Mutex<Outage>, stop: &AtomicBool) -> Journal {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mut session, mut journal) = (Session::default(), Journal::default());
    let look = || outage.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let before = look();
        let met_one = || before.node.is_some() || look().count != before.count;
        let nodes: Vec<&String> = endpoints.iter().filter(|&node| Some(node) != before.node.as_ref()).collect();
        let client = |offset: usize| Client::new(vec![nodes[(number * 5 + offset) % nodes.len()].clone()]);
        let key = format!("load-{index}-{number}");
        let value = serde_json::value::to_raw_value(&number).expect("a number");
        match runtime.block_on(client(index).put(&key, &value, &mut session)) {
            Ok(answer) if answer.is_success() => journal.acknowledged.push((key.clone(), number)),
            // The node that was killed, or the one that passed the write on to it.
            Ok(_) if met_one() => continue,
            Ok(answer) => {
                journal.offences.push(format!("put {key}: {}", answer.error()));
                continue;
            }
            Err(_) if met_one() => continue,
            Err(error) => {
                journal.offences.push(format!("put {key}: {error}"));
                continue;
            }
        }
        match runtime.block_on(client(index + 3).get(&key, &mut session)) {
            Ok(answer) if answer.is_success() => {
                if answer.json()["value"] != number {
                    journal.offences.push(format!("get {key}: {}", answer.json()));
                }
            }
            Ok(answer) if answer.status == 503 && met_one() => {}
            Ok(answer) => journal.offences.push(format!("get {key}: {}", answer.error())),
            Err(_) if met_one() => {}
            Err(error) => journal.offences.push(format!("get {key}: {error}")),
        }
    }
    journal
}

#[test]
fn resharding_under_load_with_a_node_killed_on_the_way() {
    let Some(_turn) = engine() else { return };
    let cluster = cluster("grow", 6);
    cluster.up();
    for number in 0..300 {
        cluster.ok(&["put", &format!("key-{number}"), &number.to_string()]);
    }
    cluster.ok(&["node", "add", "grace"]);
    let endpoints = cluster.endpoints();
    assert_eq!(endpoints.len(), 7);
    let (outage, stop) = (Mutex::new(Outage::default()), AtomicBool::new(false));
    let journals: Vec<Journal> = std::thread::scope(|scope| {
        let ends = Stop(&stop);
        let loads: Vec<_> = (0..4)
            .map(|index| {
                scope.spawn({
                    let (endpoints, outage, stop) = (&endpoints, &outage, &stop);
                    move || work(index, endpoints, outage, stop)
                })
            })
            .collect();
        cluster.ok(&["reshard", "3", "--yes"]);
        assert_eq!(cluster.ok(&["shard", "ids"]).lines().count(), 3);
        // The way back, with a node that dies as soon as it has begun. Before that, it may be the one that is asked to begin.
        let change = || -> serde_json::Value {
            serde_json::from_str(&cluster.ok(&["reshard", "status", "-o", "json"])).expect("one document")
        };
        let there = change();
        let errors = cluster.home().join("back");
        let mut back = cluster.command(&["reshard", "2", "--yes"]);
        let mut back =
            back.stdout(Stdio::null()).stderr(File::create(&errors).expect("a file")).spawn().expect("kvctl starts");
        until("the way back has begun", || {
            change()["job"] != there["job"] || back.try_wait().expect("a state").is_some()
        });
        *outage.lock().unwrap_or_else(PoisonError::into_inner) = Outage { node: Some(endpoints[1].clone()), count: 1 };
        cluster.ok(&["node", "kill", "bob"]);
        cluster.up();
        outage.lock().unwrap_or_else(PoisonError::into_inner).node = None;
        let ended = back.wait().expect("kvctl ends");
        assert!(ended.success(), "{ended}: {}", std::fs::read_to_string(&errors).expect("UTF-8"));
        assert_eq!(change()["phase"], "done");
        drop(ends);
        loads.into_iter().map(|load| load.join().expect("a session ends")).collect()
    });
    let offences: Vec<&String> = journals.iter().flat_map(|journal| &journal.offences).collect();
    assert!(offences.is_empty(), "{offences:?}");
    let acknowledged: Vec<_> = journals.iter().flat_map(|journal| &journal.acknowledged).collect();
    assert!(acknowledged.len() > 50, "only {} writes", acknowledged.len());
    cluster.ok(&["wait", "--for", "converged"]);
    assert_eq!(cluster.ok(&["shard", "ids"]).lines().count(), 2);
    let keys: BTreeSet<String> = cluster.ok(&["keys"]).lines().map(str::to_owned).collect();
    let lost: Vec<_> = acknowledged.iter().filter(|(key, _)| !keys.contains(key)).collect();
    assert!(lost.is_empty(), "acknowledged and gone: {lost:?}");
    assert!((0..300).all(|number| keys.contains(&format!("key-{number}"))), "keys of before are gone");
}

/// All faults that containers allow, for a minute.
#[test]
fn a_drill_breaks_no_promise() {
    let Some(_turn) = engine() else { return };
    let cluster = Cluster::new("drill", &[options(9, port(180)), vec!["--drill".into()]].concat());
    cluster.up();
    let kept = |name: &str| cluster.home().join(name).to_str().expect("UTF-8").to_owned();
    let (history, page) = (kept("history"), kept("page"));
    let said = cluster.run(&["drill", "--yes", "--duration", "60s", "--history", &history, "--report", &page]);
    println!("{}{}", said.err, said.out);
    assert_eq!(said.code, 0, "{said:?}");
    for kind in ["kill", "pause", "partition", "one-way", "slow", "clock", "reshard", "wipe", "disk-full"] {
        assert!(said.err.lines().next().is_some_and(|line| line.contains(kind)), "{kind}: {said:?}");
    }
}
