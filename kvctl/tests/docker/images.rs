//! Where images come from: another's, and builds from the source tree.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Cluster, Said, kvnode};
use crate::{cluster, docker, docker_ok, engine, image, options, port};

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
    cluster.set_apart(None);
    if let Some(base) = base {
        cluster.set("RUST_IMAGE", &base.name);
    }
    assert_eq!(docker_ok(&["images", "-q", &image()]), "", "there is an image already");
    cluster
}

/// What cargo would need is there, and it is asked for what the next line of the Dockerfile takes.
const CARGO: &str = r#"
[ "$*" = "build --release --locked --bin kvnode" ] || { echo "asked to $*"; exit 1; }
for file in Cargo.toml Cargo.lock .cargo/config.toml crates/types/Cargo.toml crates/types/src/lib.rs crates/core/Cargo.toml crates/core/src/lib.rs kvnode/Cargo.toml kvnode/src/main.rs kvctl/Cargo.toml kvctl/src/main.rs
do [ -s $file ] || { echo "there is no $file"; exit 1; }; done
mkdir -p target/host/release && cp /prebuilt target/host/release/kvnode"#;

#[test]
fn the_dockerfile_builds_on_a_stand_in_for_rust() {
    let Some(_turn) = engine() else { return };
    let base = Base::new(CARGO);
    let cluster = from_source("source", Some(&base));
    let said = cluster.try_up();
    assert!(said.code == 0 && said.err.contains("`cargo build --release`"), "{said:?}");
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
    let (_, failure) = said.err.split_once("kvctl: ").expect("a failure");
    assert!(failure.contains("`cargo build --release`") && !said.err.contains("taking back"), "{said:?}");
    assert_eq!(docker_ok(&["images", "-q", &image()]), "");
    assert!(!cluster.state().exists());
}

#[test]
fn a_kvnode_that_can_not_go_into_an_image_is_refused() {
    let Some(_turn) = engine() else { return };
    let mut cluster = cluster("unfit", 8);
    cluster.set_apart(None);
    let unfit = cluster.stand_in("exit 1").display().to_string();
    let said: Said = cluster.up_command().args(["--kvnode", &unfit]).output().expect("it starts").into();
    assert!(said.code == 2 && said.err.contains(&unfit) && said.err.contains("static"), "{said:?}");
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
