//! The image: in seconds from a static kvnode binary, or the Dockerfile's full build.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use bollard::Docker;
use bollard::query_parameters::BuildImageOptionsBuilder;
use futures_util::StreamExt;

use crate::error::{Failure, Result};
use crate::render::Progress;

/// Marks what kvctl made, and of which binary an image was built.
pub const LABEL_BINARY: &str = "kvctl.binary";

const SCRATCH: &str = "FROM scratch\nCOPY kvnode /kvnode\nENV DATA_DIR=/data\nVOLUME /data\nEXPOSE 8090\nSTOPSIGNAL SIGTERM\nENTRYPOINT [\"/kvnode\"]\n";

/// Makes sure that the image exists and holds the binary at hand.
pub async fn ensure(docker: &Docker, image: &str, kvnode: Option<&Path>, progress: &Progress) -> Result<()> {
    let present = docker.inspect_image(image).await.ok();
    let Some(kvnode) = kvnode.filter(|path| is_static_linux(path)) else {
        if present.is_some() {
            return Ok(());
        }
        let source = source_tree().ok_or_else(|| {
            Failure::environment(format!(
                "there is no image '{image}', no static Linux kvnode beside kvctl, and no source tree here to build one from; \
                 run `cargo build --release` and try again"
            ))
        })?;
        progress.step(&format!("building image {image} from {}", source.display()));
        return build(docker, image, source_archive(&source)?, None).await;
    };
    let bytes =
        std::fs::read(kvnode).map_err(|error| Failure::environment(format!("{}: {error}", kvnode.display())))?;
    let mark = fingerprint(&bytes);
    let labels = present.and_then(|image| image.config).and_then(|config| config.labels);
    if labels.is_some_and(|labels| labels.get(LABEL_BINARY) == Some(&mark)) {
        return Ok(());
    }
    progress.step(&format!("building image {image} from {}", kvnode.display()));
    build(docker, image, scratch_archive(&bytes)?, Some(mark)).await
}

fn fingerprint(bytes: &[u8]) -> String {
    format!("{:016x}-{}", kvnode::wire::fingerprint(bytes), bytes.len())
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
    for name in ["Dockerfile", "Cargo.toml", "Cargo.lock"] {
        archive.append_path_with_name(root.join(name), name).map_err(archive_error)?;
    }
    for name in [".cargo", "kvnode", "kvctl"] {
        archive.append_dir_all(name, root.join(name)).map_err(archive_error)?;
    }
    archive.into_inner().map_err(archive_error)
}

async fn build(docker: &Docker, image: &str, archive: Vec<u8>, mark: Option<String>) -> Result<()> {
    let labels = mark.map(|mark| [(LABEL_BINARY.to_owned(), mark)].into()).unwrap_or_default();
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
