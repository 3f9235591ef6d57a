//! The engine that the docker command uses is the one that kvctl uses.

use std::path::Path;
use std::process::Command;

use crate::support::Said;
use crate::{cluster, docker_ok, engine};

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
