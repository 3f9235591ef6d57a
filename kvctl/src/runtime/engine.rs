//! Finds the Docker engine: DOCKER_HOST, else the current Docker context, else the default socket.

use std::path::PathBuf;
use std::time::Duration;

use bollard::Docker;
use serde_json::Value;

use crate::error::{Failure, Result};

/// An engine that does not answer within this is not there.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to an engine that has answered.
pub async fn connect() -> Result<Docker> {
    let host = std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    let host = host.map_or_else(context_host, |host| Ok(Some(host)))?;
    let name = host.clone().unwrap_or_else(|| "the default socket".into());
    let fail = |why: String| Failure::environment(format!("no Docker engine answers at {name} ({why})"));
    let docker = match &host {
        Some(host) => Docker::connect_with_host(host),
        None => Docker::connect_with_local_defaults(),
    };
    let docker = docker.map_err(|error| fail(error.to_string()))?;
    match tokio::time::timeout(PING_TIMEOUT, docker.ping()).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(fail(error.to_string())),
        Err(_) => return Err(fail(format!("nothing within {PING_TIMEOUT:?}"))),
    }
    docker.negotiate_version().await.map_err(|error| fail(error.to_string()))
}

fn docker_folder() -> Option<PathBuf> {
    let named = std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")))
}

/// The endpoint of the context that the docker command would use; `None` for the default one.
fn context_host() -> Result<Option<String>> {
    let Some(folder) = docker_folder() else { return Ok(None) };
    let read = |path: PathBuf| -> Option<Value> { serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok() };
    let from_variable = std::env::var("DOCKER_CONTEXT").ok().filter(|name| !name.is_empty());
    let current = from_variable
        .or_else(|| read(folder.join("config.json"))?.get("currentContext")?.as_str().map(str::to_owned))
        .filter(|name| name != "default");
    let Some(current) = current else { return Ok(None) };
    // Docker names each context's folder by a hash; the name is inside.
    let contexts = std::fs::read_dir(folder.join("contexts/meta")).into_iter().flatten();
    let mut metas = contexts.filter_map(|entry| read(entry.ok()?.path().join("meta.json")));
    let meta = metas.find(|meta| meta.get("Name").and_then(Value::as_str) == Some(current.as_str()));
    let host = meta.as_ref().and_then(|meta| meta.pointer("/Endpoints/docker/Host")?.as_str());
    // Another engine in its place would be a surprise.
    let missing = || Failure::environment(format!("Docker context '{current}' is not in {}", folder.display()));
    host.map(|host| Some(host.to_owned())).ok_or_else(missing)
}
