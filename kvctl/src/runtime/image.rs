//! The image: in seconds from a static kvnode binary, or the Dockerfile's full build.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use bollard::Docker;
use bollard::query_parameters::{BuildImageOptionsBuilder, RemoveImageOptions, TagImageOptionsBuilder};
use futures_util::StreamExt;

use super::BUILD_IT;
use crate::error::{Failure, Result};
use crate::render::say;

/// Marks what kvctl made, and of which binary an image was built.
pub const LABEL_BINARY: &str = "kvctl.binary";
/// In its place where an image was built of the source tree.
const FROM_SOURCE: &str = "source";

const SCRATCH: &str = "FROM scratch\nCOPY kvnode /kvnode\nENV DATA_DIR=/data\nVOLUME /data\nEXPOSE 8090\nSTOPSIGNAL SIGTERM\nENTRYPOINT [\"/kvnode\"]\n";

/// A build that is needed.
pub enum Build {
    /// Of a static binary, marked with its fingerprint.
    Binary { path: PathBuf, bytes: Vec<u8>, mark: String },
    /// Of the source tree here, by its Dockerfile.
    Source(PathBuf),
}

/// What must be built so that the image holds the binary at hand; `None` if it does. `is_named`: somebody has chosen it, so
/// nothing else takes its place.
pub async fn needed(docker: &Docker, image: &str, kvnode: Option<&Path>, is_named: bool) -> Result<Option<Build>> {
    let present = docker.inspect_image(image).await.ok();
    if let Some(unfit) = kvnode.filter(|path| is_named && !is_static_linux(path)) {
        let text = format!("--kvnode {}: that is no static Linux program, which an image needs", unfit.display());
        return Err(Failure::usage(text));
    }
    let Some(kvnode) = kvnode.filter(|path| is_static_linux(path)) else {
        if present.is_some() {
            return Ok(None);
        }
        let source = source_tree().ok_or_else(|| {
            Failure::environment(format!(
                "there is no image '{image}', no static Linux kvnode beside kvctl, and no source tree here to build one from; \
                 {BUILD_IT}"
            ))
        })?;
        say(&format!(
            "there is no static Linux kvnode beside kvctl: one is built inside Docker, which takes minutes; {BUILD_IT}, too, \
             and is quicker the next time"
        ));
        return Ok(Some(Build::Source(source)));
    };
    let bytes =
        std::fs::read(kvnode).map_err(|error| Failure::environment(format!("{}: {error}", kvnode.display())))?;
    let mark = fingerprint(&bytes);
    if let Some(image_found) = present {
        let labels = image_found.config.and_then(|config| config.labels).unwrap_or_default();
        match labels.get(LABEL_BINARY) {
            Some(built) if *built == mark => return Ok(None),
            Some(_) => {}
            // Somebody else's: its name is not given to another.
            None => {
                say(&format!("using image '{image}', which kvctl did not build; --image names another"));
                return Ok(None);
            }
        }
    }
    Ok(Some(Build::Binary { path: kvnode.to_path_buf(), bytes, mark }))
}

impl Build {
    pub fn from(&self) -> std::path::Display<'_> {
        match self {
            Self::Binary { path, .. } | Self::Source(path) => path.display(),
        }
    }

    pub async fn run(self, docker: &Docker, image: &str) -> Result<()> {
        match self {
            Self::Binary { bytes, mark, .. } => build(docker, image, scratch_archive(&bytes)?, mark).await,
            Self::Source(source) => {
                let built = build(docker, image, source_archive(&source)?, FROM_SOURCE.to_owned()).await;
                built.map_err(|failure| {
                    let text = format!("{failure}\nWithout that build: {BUILD_IT}; then give the command again");
                    Failure::new(failure.code, text)
                })
            }
        }
    }
}

/// What a name stood for before a build gave it to another image.
pub struct Undo {
    image: String,
    before: Option<String>,
}

impl Undo {
    pub async fn before(docker: &Docker, image: &str) -> Self {
        Self { image: image.to_owned(), before: id(docker, image).await }
    }

    /// Whether the name stands for another image than before.
    pub async fn is_needed(&self, docker: &Docker) -> bool {
        let now = id(docker, &self.image).await;
        now.is_some() && now != self.before
    }

    /// The name stands again for what it stood for, and what was built is gone.
    pub async fn run(self, docker: &Docker) -> Result<()> {
        let Some(now) = id(docker, &self.image).await.filter(|now| self.before.as_ref() != Some(now)) else {
            return Ok(());
        };
        if let Some(before) = &self.before {
            let (repo, tag) = split_tag(&self.image);
            let options = TagImageOptionsBuilder::default().repo(repo).tag(tag).build();
            docker.tag_image(before, Some(options)).await?;
            return remove(docker, &now).await;
        }
        remove(docker, &self.image).await
    }

    /// The image that lost its name is of no use any more, unless it has another or is not ours.
    pub async fn settle(self, docker: &Docker) {
        let Some(before) = self.before else { return };
        let Ok(image) = docker.inspect_image(&before).await else { return };
        let labels = image.config.and_then(|config| config.labels).unwrap_or_default();
        if labels.contains_key(LABEL_BINARY) && image.repo_tags.unwrap_or_default().is_empty() {
            // A container may still be of it; then it stays.
            let _ = remove(docker, &before).await;
        }
    }
}

async fn id(docker: &Docker, image: &str) -> Option<String> {
    docker.inspect_image(image).await.ok()?.id
}

async fn remove(docker: &Docker, image: &str) -> Result<()> {
    docker.remove_image(image, None::<RemoveImageOptions>, None).await?;
    Ok(())
}

/// `registry:5000/name:tag` → name and tag.
fn split_tag(image: &str) -> (&str, &str) {
    match image.rsplit_once(':') {
        Some((repo, tag)) if !tag.contains('/') => (repo, tag),
        _ => (image, "latest"),
    }
}

fn fingerprint(bytes: &[u8]) -> String {
    format!("{:016x}-{}", kvnode_types::fingerprint(bytes), bytes.len())
}

/// A Linux binary without an interpreter: it runs in an empty image.
fn is_static_linux(path: &Path) -> bool {
    const PT_INTERP: u32 = 3;
    let Ok(bytes) = std::fs::read(path) else { return false };
    let number = |at: usize, len: usize| -> Option<u64> {
        Some(bytes.get(at..at + len)?.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    // 64-bit little-endian ELF: header offset at 32, entry size at 54, count at 56.
    let little_elf64 = bytes.get(..6) == Some(&[0x7f, b'E', b'L', b'F', 2, 1]);
    let headers = || Some((number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize));
    little_elf64
        && headers().is_some_and(|(start, size, count)| {
            (0..count).all(|index| number(start + index * size, 4) != Some(u64::from(PT_INTERP)))
        })
}

/// The source tree that kvctl stands in, if it does.
fn source_tree() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    here.ancestors()
        .find(|folder| folder.join("Dockerfile").is_file() && folder.join("kvnode").is_dir())
        .map(Path::to_path_buf)
}

fn archive_error(error: std::io::Error) -> Failure {
    Failure::environment(format!("packing the build context: {error}"))
}

fn scratch_archive(kvnode: &[u8]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, mode: u32, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        archive.append_data(&mut header, name, Cursor::new(bytes))
    };
    add("Dockerfile", 0o644, SCRATCH.as_bytes()).and_then(|()| add("kvnode", 0o755, kvnode)).map_err(archive_error)?;
    archive.into_inner().map_err(archive_error)
}

/// The files that the Dockerfile needs.
fn source_archive(root: &Path) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    // Docker does not know the entries in which files with holes are packed.
    archive.sparse(false);
    for name in ["Dockerfile", "Cargo.toml", "Cargo.lock"] {
        archive.append_path_with_name(root.join(name), name).map_err(archive_error)?;
    }
    for name in [".cargo", "crates", "kvnode", "kvctl"] {
        archive.append_dir_all(name, root.join(name)).map_err(archive_error)?;
    }
    archive.into_inner().map_err(archive_error)
}

async fn build(docker: &Docker, image: &str, archive: Vec<u8>, mark: String) -> Result<()> {
    let labels = [(LABEL_BINARY.to_owned(), mark)].into();
    let args =
        std::env::var("RUST_IMAGE").ok().map(|base| [("RUST_IMAGE".to_owned(), base)].into()).unwrap_or_default();
    let options = BuildImageOptionsBuilder::default()
        .dockerfile("Dockerfile")
        .t(image)
        .rm(true)
        .forcerm(true)
        .labels(&labels)
        .buildargs(&args)
        .build();
    let mut steps = docker.build_image(options, None, Some(bollard::body_full(archive.into())));
    let mut said = String::new();
    while let Some(step) = steps.next().await {
        let fail = |why: &str| Failure::environment(format!("building image '{image}' failed: {why}\n{said}"));
        let step = step.map_err(|error| fail(&error.to_string()))?;
        if let Some(error) = step.error_detail.and_then(|detail| detail.message) {
            return Err(fail(&error));
        }
        said.push_str(step.stream.as_deref().unwrap_or_default());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_holes_are_packed_whole() {
        let tree = tempfile::tempdir().unwrap();
        for name in ["Dockerfile", "Cargo.toml", "Cargo.lock"] {
            std::fs::File::create(tree.path().join(name)).unwrap().set_len(1 << 20).unwrap();
        }
        for name in [".cargo", "crates", "kvnode", "kvctl"] {
            std::fs::create_dir(tree.path().join(name)).unwrap();
        }
        let bytes = source_archive(tree.path()).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let kinds: Vec<_> = archive.entries().unwrap().map(|entry| entry.unwrap().header().entry_type()).collect();
        assert!(kinds.len() >= 7 && kinds.iter().all(|kind| kind.is_file() || kind.is_dir()), "{kinds:?}");
    }

    #[test]
    fn a_tag_comes_after_the_last_folder() {
        assert_eq!(split_tag("asg4img"), ("asg4img", "latest"));
        assert_eq!(split_tag("a.example:5000/kv"), ("a.example:5000/kv", "latest"));
        assert_eq!(split_tag("a.example:5000/kv:2"), ("a.example:5000/kv", "2"));
    }
}
