//! A node whose handles, threads or memory are short, and strangers that want all of them.

mod http_support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use http_support::{Client, Node, request, until};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A node that may have so many file handles.
fn with_handles(count: u32, arguments: &[&str]) -> Node {
    let mut command = Command::new("sh");
    command.env_clear().args(["-c", &format!("ulimit -n {count}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_kvnode")]);
    Node::start_by(command, arguments)
}

/// This process holds more connections than it may have handles by default.
fn raise_own_handles() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("up to there it may be raised");
}

fn put(node: &Node, key: &str, bytes: usize) -> u16 {
    let body = format!(r#"{{"value":"{}"}}"#, "x".repeat(bytes));
    node.request("PUT", &format!("/kvs/{key}"), &[], &body).status
}

/// What the system says of a process, in KiB.
fn memory_kib(node: &Node, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.child.id())).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the system tells it");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Connections as fast as the node takes them: one that waits for the system's next try would give the others time to end.
fn burst(address: SocketAddr) -> Vec<TcpStream> {
    (0..1_300).filter_map(|_| TcpStream::connect_timeout(&address, Duration::from_millis(20)).ok()).collect()
}

/// The engine writes tables all the time, and had no handle for the next one.
#[test]
fn idle_connections_leave_the_engine_its_handles() {
    raise_own_handles();
    let data = tempfile::tempdir().expect("a folder");
    let mut node = with_handles(1_024, &["--data-dir", data.path().to_str().expect("text"), "--max-body", "4MiB"]);
    let mut kept = node.connect();
    for round in 0..5 {
        let idle = burst(node.address);
        for number in 0..8 {
            // On a connection that there is already: new ones are turned away now.
            let body = format!(r#"{{"value":"{}"}}"#, "x".repeat(2_000_000));
            kept.send(&request("PUT", &format!("/kvs/{round}-{number}"), &[], &body));
            let answer = kept.answer();
            assert!(answer.status == 201, "{round}-{number}: {answer:?}");
        }
        drop(idle);
    }
    assert!(node.child.try_wait().expect("it is ours").is_none(), "it goes on");
    until("there is room again", || TcpStream::connect(node.address).is_ok() && put(&node, "after", 10) == 201);
}

#[test]
fn clients_beyond_the_handles_are_told() {
    raise_own_handles();
    let node = with_handles(512, &[]);
    let idle: Vec<TcpStream> = (0..600).filter_map(|_| TcpStream::connect(node.address).ok()).collect();
    until("one more is told", || {
        let mut client = Client::connect(node.address);
        let mut said = Vec::new();
        let _ = client.0.read_to_end(&mut said);
        said.starts_with(b"HTTP/1.1 503 ")
    });
    drop(idle);
    until("there is room again", || put(&node, "after", 10) == 201);
}

#[test]
fn too_few_handles_are_refused_in_a_line() {
    let mut command = Command::new("sh");
    command.env_clear().args(["-c", "ulimit -n 64; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_kvnode")]);
    let output = command.args(["--socket-address", "127.7.0.1:8090"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("64 file handles") && said.trim_end().lines().count() == 1, "{said}");
}

/// Bodies of which the last byte does not come. (280 of 1 MiB took 556 MiB under a bound of 256: buffers that grow by themselves were
/// counted as what they held.)
#[test]
fn held_bodies_take_what_is_counted() {
    raise_own_handles();
    const HELD: usize = 280;
    const BODY: usize = 1 << 20;
    const BUDGET_MIB: u64 = 128;
    /// The buffers of 280 connections, of hyper and of this project, and what the allocator keeps.
    const OVERHEAD_MIB: u64 = 48;
    let node = Node::start(&["--max-bodies", &format!("{BUDGET_MIB}MiB"), "--body-timeout", "60s"]);
    let before = memory_kib(&node, "VmRSS");
    let head = format!("PUT /kvs/x HTTP/1.1\r\nhost: test\r\ncontent-length: {BODY}\r\n\r\n");
    let most = vec![b'x'; BODY - 1];
    let mut held: Vec<Client> = Vec::new();
    let mut refused = 0;
    for _ in 0..HELD {
        let mut client = node.connect();
        client.send(&head);
        let _ = client.0.write_all(&most);
        held.push(client);
    }
    for client in &mut held {
        client.0.set_read_timeout(Some(Duration::from_millis(20))).expect("a time-out can be set");
        refused += usize::from(client.0.read(&mut [0]).is_ok_and(|count| count > 0));
    }
    let grown_mib = (memory_kib(&node, "VmHWM") - before) >> 10;
    eprintln!("{} bodies of 1 MiB are held under a bound of {BUDGET_MIB} MiB: {grown_mib} MiB more", HELD - refused);
    assert!(refused >= HELD - BUDGET_MIB as usize, "{refused} were refused");
    assert!(refused < HELD - BUDGET_MIB as usize / 2, "{refused} were refused: each counts once");
    assert!(grown_mib <= BUDGET_MIB + OVERHEAD_MIB, "{grown_mib} MiB for {BUDGET_MIB}");
}

/// A name server that takes every question and answers none, for a node alone: its own view of `/etc/resolv.conf`.
fn with_mute_name_server(address: &SocketAddr, arguments: &[&str]) -> Option<Node> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("resolv.conf");
    std::fs::write(&file, format!("nameserver {}\n", address.ip())).expect("it can be written");
    let script = format!("mount --bind {} /etc/resolv.conf && exec \"$0\" \"$@\"", file.display());
    let can = Command::new("unshare").args(["--mount", "sh", "-c", &script, "true"]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: this user can't give a process another /etc/resolv.conf");
        return None;
    }
    let mut command = Command::new("unshare");
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.args(["--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_kvnode")]);
    Some(Node::start_by(command, arguments))
}

/// Look-ups piled up on the threads that the disk's syncs use: 515 of them, and writes waited for seconds.
#[test]
fn a_name_server_that_never_answers_leaves_the_disk_its_threads() {
    // Where another one listens, it is not ours to be mute.
    let Ok(server) = UdpSocket::bind("127.7.255.53:53") else {
        eprintln!("SKIPPED: this user can't listen at port 53");
        return;
    };
    let names: Vec<String> = (0..30).map(|n| format!("node-{n}.example:8090")).collect();
    let names = names.join(",");
    let data = tempfile::tempdir().expect("a folder");
    let arguments = ["--view", &names, "--form-without", &names, "--fsync", "always", "--data-dir"];
    let arguments = [&arguments[..], &[data.path().to_str().expect("text")]].concat();
    let at = server.local_addr().expect("it is bound");
    let Some(node) = with_mute_name_server(&at, &arguments) else { return };
    server.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out can be set");
    server.recv_from(&mut [0; 512]).expect("names are looked up");
    let begun = std::time::Instant::now();
    let mut most = 0;
    for number in 0.. {
        let written = std::time::Instant::now();
        assert_eq!(put(&node, &format!("k{number}"), 10), 201);
        assert!(written.elapsed() < Duration::from_secs(2), "{:?} for a write", written.elapsed());
        let tasks = std::fs::read_dir(format!("/proc/{}/task", node.child.id())).expect("the process is there");
        most = tasks.count().max(most);
        if begun.elapsed() > Duration::from_secs(4) {
            break;
        }
    }
    eprintln!("{most} threads");
    assert!(most <= 20, "{most} threads");
}

/// Containers, where an engine answers: threads and memory as they are bounded in practice.
mod containers {
    use super::{Client, Command, Duration, SocketAddr, TcpStream, Write, http_support, request, until};
    use std::process::{Output, Stdio};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    static ONE: Mutex<()> = Mutex::new(());

    /// An image with nothing but `kvnode`, as long as this is held; `None` where no engine answers.
    struct Image {
        name: String,
        _one: MutexGuard<'static, ()>,
    }

    fn docker(arguments: &[&str]) -> Output {
        Command::new("docker").args(arguments).output().expect("docker starts")
    }

    fn image() -> Option<Image> {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        if !Command::new("docker").arg("version").output().is_ok_and(|output| output.status.success()) {
            let required = std::env::var("KV_REQUIRE_DOCKER").is_ok_and(|value| value == "1");
            assert!(!required, "KV_REQUIRE_DOCKER is set and no Docker engine answers");
            eprintln!("SKIPPED: no Docker engine answers");
            return None;
        }
        let name = format!("kvnode-siege-{}", std::process::id());
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_kvnode"));
        let folder = program.parent().expect("a folder").to_str().expect("text");
        let mut tar =
            Command::new("tar").args(["-C", folder, "-c", "kvnode"]).stdout(Stdio::piped()).spawn().expect("tar");
        let packed = tar.stdout.take().expect("it is piped");
        let import = Command::new("docker")
            .args(["import", "--change", "ENTRYPOINT [\"/kvnode\"]", "-", &name])
            .stdin(packed)
            .output()
            .expect("docker starts");
        assert!(import.status.success() && tar.wait().expect("it ends").success(), "{import:?}");
        Some(Image { name, _one: one })
    }

    impl Drop for Image {
        fn drop(&mut self) {
            docker(&["rmi", &self.name]);
        }
    }

    /// A container on the host's network; removed when dropped.
    struct Container {
        name: String,
        address: SocketAddr,
    }

    impl Container {
        fn start(image: &Image, options: &[&str], arguments: &[&str]) -> Self {
            let address = http_support::free_address();
            let (name, text) = (format!("{}-{}", image.name, address.ip()), address.to_string());
            let run = ["run", "-d", "--network", "host", "--name", &name];
            let own = [&image.name[..], "--socket-address", &text, "--listen-address", &text];
            let run = docker(&[&run[..], options, &own, arguments].concat());
            assert!(run.status.success(), "{run:?}");
            Self { name, address }
        }

        fn state(&self, field: &str) -> String {
            let said = docker(&["inspect", "--format", &format!("{{{{.State.{field}}}}}"), &self.name]).stdout;
            String::from_utf8_lossy(&said).trim().to_owned()
        }

        fn said(&self) -> String {
            let output = docker(&["logs", &self.name]);
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
        }

        fn ask(&self, text: &str) -> Option<u16> {
            let mut client = Client(TcpStream::connect(self.address).ok()?);
            client.0.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
            client.0.write_all(text.as_bytes()).ok()?;
            Some(client.answer().status)
        }
    }

    impl Drop for Container {
        fn drop(&mut self) {
            docker(&["rm", "-f", "-v", &self.name]);
        }
    }

    #[test]
    fn what_is_short_is_said_in_a_line() {
        let Some(image) = image() else { return };
        for (options, says) in [(["--pids-limit", "3"], "pids-limit"), (["--memory", "32m"], "at least 64 MiB")] {
            let container = Container::start(&image, &options, &["--data-dir", "/data"]);
            until("it has ended", || container.state("Status") == "exited");
            let said = container.said();
            assert_eq!(container.state("ExitCode"), "2", "{options:?}: {said}");
            assert!(said.contains(says) && said.trim_end().lines().count() == 1, "{options:?}: {said}");
        }
    }

    /// Twenty-four clients that write values of a megabyte. (The container was killed for its memory.)
    #[test]
    fn a_container_of_128_mib_is_not_killed() {
        let Some(image) = image() else { return };
        for arguments in [&["--data-dir", "/data"][..], &[]] {
            let container = Container::start(&image, &["--memory", "128m", "--memory-swap", "128m"], arguments);
            let ready = request("GET", "/ready", &[], "");
            until("it is ready", || container.ask(&ready) == Some(200));
            let body = format!(r#"{{"value":"{}"}}"#, "x".repeat(1_000_000));
            let written = std::thread::scope(|scope| {
                let client = |number: usize| {
                    let (container, body) = (&container, &body);
                    scope.spawn(move || {
                        let put = |n: usize| container.ask(&request("PUT", &format!("/kvs/{number}-{n}"), &[], body));
                        (0..20).filter(|&n| put(n) == Some(201)).count()
                    })
                };
                let all: Vec<_> = (0..24).map(client).collect();
                all.into_iter().map(|client| client.join().expect("a client ends")).sum::<usize>()
            });
            eprintln!("{written} of 480 values were taken with {arguments:?}");
            assert_eq!(container.state("OOMKilled"), "false");
            assert_eq!(container.state("Status"), "running", "{}", container.said());
            assert!(written >= 20, "{written} values were taken");
        }
    }
}
