//! Nodes as containers. Everything kvctl makes carries a label with the cluster's name; it works with ids, because Docker
//! allows two networks of one name.

use std::cell::RefCell;
use std::collections::HashMap;

use bollard::Docker;
use bollard::models::Volume;
use bollard::query_parameters::{
    KillContainerOptionsBuilder, ListContainersOptionsBuilder, ListVolumesOptionsBuilder, RemoveVolumeOptions,
    StopContainerOptionsBuilder,
};
use futures_util::future::join_all;

use super::left::Left;
use super::trace::{self, Trace};
use super::{Gone, NodeAction, NodeState, image};
use crate::cluster::{NodeSpec, Spec};
use crate::error::{Code, Failure, Result};
use crate::interrupt::Interrupt;
use crate::plan::{Act, plan};
use crate::render::Progress;
use crate::state::Record;

mod container;
mod logs;
mod network;

/// The label of what belongs to a cluster; its value is the cluster's name.
const LABEL: &str = "kvctl.cluster";
/// Seconds that Docker waits for a node to leave before it kills it; a node takes 10 at most.
const STOP_SECONDS: i32 = 12;

pub struct Cluster {
    docker: Docker,
    record: Record,
    /// What this command made, in order.
    made: RefCell<Vec<Made>>,
}

enum Made {
    Image(image::Undo),
    Network(String),
    Volume(String),
    Container(String),
}

/// `None` for "there is no such thing".
fn present<T>(answer: std::result::Result<T, bollard::errors::Error>) -> Result<Option<T>> {
    match answer {
        Ok(thing) => Ok(Some(thing)),
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// All containers of a cluster, by label.
async fn labelled(docker: &Docker, cluster: &str) -> Result<Vec<String>> {
    let ours = HashMap::from([("label".to_owned(), vec![format!("{LABEL}={cluster}")])]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&ours).build();
    Ok(docker.list_containers(Some(options)).await?.into_iter().filter_map(|container| container.id).collect())
}

/// The containers of a cluster, whoever made them.
pub async fn traces(docker: &Docker, cluster: &str) -> Result<Vec<Trace>> {
    let mut traces = Vec::new();
    for id in labelled(docker, cluster).await? {
        // One may go while this looks.
        if let Some(container) = present(docker.inspect_container(&id, None).await)? {
            traces.push(container::trace(container));
        }
    }
    traces.sort_by(|a, b| a.node.cmp(&b.node));
    Ok(traces)
}

/// All volumes of the engine, and whose they are by their labels.
pub async fn all_volumes(docker: &Docker) -> Result<Vec<Left>> {
    let found = docker.list_volumes(Some(ListVolumesOptionsBuilder::default().build())).await?;
    let mut all: Vec<Left> = found.volumes.unwrap_or_default().into_iter().map(left).collect();
    all.sort_by_key(Left::shown);
    Ok(all)
}

fn left(volume: Volume) -> Left {
    let (name, mut labels) = (volume.name, volume.labels);
    Left::Volume { name, cluster: labels.remove(LABEL), made: volume.created_at.unwrap_or_else(|| "once".into()) }
}

pub async fn delete_volume(docker: &Docker, name: &str) -> Result<()> {
    present(docker.remove_volume(name, None::<RemoveVolumeOptions>).await).map(|_| ())
}

impl Cluster {
    pub fn new(docker: Docker, record: Record) -> Self {
        Self { docker, record, made: RefCell::new(Vec::new()) }
    }

    fn spec(&self) -> &Spec {
        &self.record.spec
    }

    fn labels(&self) -> HashMap<String, String> {
        [(LABEL.to_owned(), self.spec().name.clone())].into()
    }

    /// What the record says, and the containers that are there.
    pub async fn traces(&self) -> Result<(&Record, Vec<Trace>)> {
        Ok((&self.record, traces(&self.docker, &self.spec().name).await?))
    }

    fn is_own(&self, labels: Option<&HashMap<String, String>>) -> bool {
        labels.and_then(|labels| labels.get(LABEL)) == Some(&self.spec().name)
    }

    /// Makes what is missing and mends what is not as it should be. Looks for what is in the way before it makes anything.
    pub async fn up(&self, interrupt: &Interrupt, progress: &Progress) -> Result<()> {
        let network = self.own_network().await?;
        let (mut found, mut image) = (Vec::new(), None);
        for node in self.spec().members() {
            let (state, of) = self.found(&node, network.as_deref()).await?;
            found.push((node, state));
            image = image.or(of);
        }
        let steps = plan(found);
        if steps.is_empty() {
            return Ok(());
        }
        progress.expect(steps.len());
        for (node, act) in &steps {
            if matches!(act, Act::Make | Act::Start) {
                self.check_port(node).await?;
            }
        }
        if network.is_none() {
            self.check_subnet().await?;
        }
        // A node that joins others is of their image, whatever was built since: a repair is no upgrade.
        let image = match image {
            Some(image) => image,
            None => interrupt.or(self.ensure_image(progress)).await?,
        };
        let network = match network {
            Some(network) => network,
            None => {
                progress.step(&format!("making network {}", self.spec().network()));
                self.make_network().await?
            }
        };
        for (node, act) in &steps {
            interrupt.check()?;
            progress.step(&format!("{} {}", act.doing(), self.spec().container(node)));
            self.mend(node, *act, &network, &image).await?;
            progress.did(1);
        }
        Ok(())
    }

    /// Makes a new node beside the others, of their image.
    pub async fn add(&self, node: &NodeSpec, interrupt: &Interrupt, progress: &Progress) -> Result<()> {
        let gone = || {
            Failure::environment("the cluster's network or all its containers are gone; `kvctl cluster up` repairs it")
        };
        let network = self.own_network().await?.ok_or_else(gone)?;
        let mut image = None;
        for other in self.spec().node_specs() {
            image = image.or(self.found(&other, Some(&network)).await?.1);
        }
        let image = image.ok_or_else(gone)?;
        self.check_port(node).await?;
        interrupt.check()?;
        progress.step(&format!("starting {}", self.spec().container(node)));
        self.make_node(node, &network, &image).await
    }

    async fn ensure_image(&self, progress: &Progress) -> Result<String> {
        let name = &self.spec().image;
        let named = self.record.kvnode.as_deref();
        let kvnode = super::find_kvnode(named)?;
        if let Some(build) = image::needed(&self.docker, name, kvnode.as_deref(), named.is_some()).await? {
            let undo = image::Undo::before(&self.docker, name).await;
            self.made.borrow_mut().push(Made::Image(undo));
            progress.step(&format!("building image {name} from {}", build.from()));
            build.run(&self.docker, name).await?;
        }
        Ok(name.clone())
    }

    async fn mend(&self, node: &NodeSpec, act: Act, network: &str, image: &str) -> Result<()> {
        let name = self.spec().container(node);
        match act {
            Act::Make => self.make_node(node, network, image).await,
            Act::Replace => {
                self.remove(&name).await?;
                self.check_port(node).await?;
                self.make_node(node, network, image).await
            }
            Act::Start => Ok(self.docker.start_container(&name, None).await?),
            Act::Restart => Ok(self.docker.restart_container(&name, None).await?),
            Act::Unpause => Ok(self.docker.unpause_container(&name).await?),
        }
    }

    /// What this command made stays.
    pub async fn settle(&self) {
        let made: Vec<Made> = self.made.borrow_mut().drain(..).collect();
        for thing in made {
            if let Made::Image(undo) = thing {
                undo.settle(&self.docker).await;
            }
        }
    }

    pub async fn undo(&self, progress: &Progress) {
        let all: Vec<Made> = self.made.borrow_mut().drain(..).collect();
        let mut made = Vec::new();
        for thing in all.into_iter().rev() {
            // A build that failed made nothing.
            let is_made = if let Made::Image(undo) = &thing { undo.is_needed(&self.docker).await } else { true };
            made.extend(is_made.then_some(thing));
        }
        if !made.is_empty() {
            progress.step(super::TAKING_BACK);
        }
        for thing in made {
            // Whatever can't be removed is gone already, or the engine is.
            let _ = match thing {
                Made::Container(id) => self.remove(&id).await,
                Made::Network(id) => self.docker.remove_network(&id).await.map_err(Failure::from),
                Made::Volume(name) => delete_volume(&self.docker, &name).await,
                Made::Image(undo) => undo.run(&self.docker).await,
            };
        }
    }

    /// Removes the cluster. Nodes whose data stays are asked to leave first, so that nothing is in one copy only.
    pub async fn down(&self, data: bool) -> Result<()> {
        self.check_own(&self.traces().await?.1)?;
        let containers = labelled(&self.docker, &self.spec().name).await?;
        if !data {
            let stop = StopContainerOptionsBuilder::default().t(STOP_SECONDS).build();
            // One that is paused or stopped can't be stopped; it is removed all the same.
            join_all(containers.iter().map(|id| self.docker.stop_container(id, Some(stop.clone())))).await;
        }
        for container in containers {
            self.remove(&container).await?;
        }
        for network in self.networks().await?.iter().filter(|network| self.is_own(network.labels.as_ref())) {
            present(self.docker.remove_network(network.id.as_deref().unwrap_or_default()).await)?;
        }
        if data {
            for volume in self.volumes().await? {
                delete_volume(&self.docker, &volume).await?;
            }
        }
        Ok(())
    }

    pub async fn gone(&self) -> Result<Vec<Gone>> {
        let mut gone = Vec::new();
        for node in self.spec().members() {
            let volume = self.spec().volume(&node);
            let runs = matches!(self.state(&node).await?, NodeState::Running | NodeState::Paused);
            if !runs && present(self.docker.inspect_volume(&volume).await)?.is_none() {
                gone.push(Gone { place: format!("volume '{volume}'"), node });
            }
        }
        Ok(gone)
    }

    /// Another's cluster of this name is not taken down: all that its containers share with ours is the label.
    fn check_own(&self, traces: &[Trace]) -> Result<()> {
        let is_other = |one: &&Trace| one.variables.get("CLUSTER_SECRET") != Some(&self.record.secret);
        let others: Vec<Trace> = traces.iter().filter(is_other).cloned().collect();
        if others.is_empty() {
            return Ok(());
        }
        let kind = self.record.runtime;
        let text = format!(
            "nothing was changed: {} carry this cluster's name, but were not started by this kvctl; if nobody needs \
             them, {} removes them",
            trace::shown(&others, kind),
            trace::end_them(&others, kind)
        );
        Err(Failure::new(Code::Conflict, text))
    }

    /// The cluster's volumes, also of nodes that this kvctl does not remember.
    async fn volumes(&self) -> Result<Vec<String>> {
        let ours = HashMap::from([("label".to_owned(), vec![format!("{LABEL}={}", self.spec().name)])]);
        let options = ListVolumesOptionsBuilder::default().filters(&ours).build();
        let found = self.docker.list_volumes(Some(options)).await?.volumes.unwrap_or_default();
        Ok(found.into_iter().map(|volume| volume.name).collect())
    }

    /// Removes a node, with its data; the others don't notice.
    pub async fn delete(&self, node: &NodeSpec) -> Result<()> {
        if let Some(container) = self.own_container(node).await? {
            self.remove(container.id.as_deref().unwrap_or_default()).await?;
        }
        let name = self.spec().volume(node);
        let volume = present(self.docker.inspect_volume(&name).await)?;
        if volume.is_some_and(|volume| self.is_own(Some(&volume.labels))) {
            present(self.docker.remove_volume(&name, None::<RemoveVolumeOptions>).await)?;
        }
        Ok(())
    }

    pub async fn state(&self, node: &NodeSpec) -> Result<NodeState> {
        let container = present(self.docker.inspect_container(&self.spec().container(node), None).await)?;
        Ok(container.map_or(NodeState::Missing, |container| container::state_of(container.state.as_ref())))
    }

    pub async fn process(&self, node: &NodeSpec) -> Result<Option<u32>> {
        let container = present(self.docker.inspect_container(&self.spec().container(node), None).await)?;
        let pid = container.and_then(|container| container.state?.pid);
        // The engine says 0 of one that does not run.
        Ok(pid.and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid > 0))
    }

    fn missing(&self, node: &NodeSpec) -> Failure {
        let text = format!("container '{}' is missing; `kvctl cluster up` makes it again", self.spec().container(node));
        Failure::new(Code::NotFound, text)
    }

    pub async fn act(&self, node: &NodeSpec, action: NodeAction) -> Result<()> {
        let name = self.spec().container(node);
        if self.own_container(node).await?.is_none() {
            return Err(self.missing(node));
        }
        let running = self.state(node).await?;
        let stop = StopContainerOptionsBuilder::default().t(STOP_SECONDS).build();
        let kill = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
        match (action, running) {
            (NodeAction::Start, NodeState::Stopped) => self.docker.start_container(&name, None).await?,
            (NodeAction::Start, _) => {}
            (NodeAction::Stop, NodeState::Stopped) => {}
            (_, NodeState::Stopped) => return Err(Failure::new(Code::Conflict, format!("{name} does not run"))),
            (NodeAction::Stop, NodeState::Paused) => {
                self.docker.unpause_container(&name).await?;
                self.docker.stop_container(&name, Some(stop)).await?;
            }
            (NodeAction::Stop, _) => self.docker.stop_container(&name, Some(stop)).await?,
            (NodeAction::Kill, _) => self.docker.kill_container(&name, Some(kill)).await?,
            (NodeAction::Pause, NodeState::Paused) => {}
            (NodeAction::Pause, _) => self.docker.pause_container(&name).await?,
            (NodeAction::Unpause, NodeState::Paused) => self.docker.unpause_container(&name).await?,
            (NodeAction::Unpause, _) => {}
        }
        Ok(())
    }

    /// Kills a node, and takes its data away: in its place there is a new container, with a new volume, that does not run.
    pub async fn wipe(&self, node: &NodeSpec) -> Result<()> {
        let network = self.own_network().await?.ok_or_else(|| self.missing(node))?;
        let image = self.own_container(node).await?.and_then(|container| container.image);
        let image = image.ok_or_else(|| self.missing(node))?;
        self.remove(&self.spec().container(node)).await?;
        let volume = self.spec().volume(node);
        delete_volume(&self.docker, &volume).await?;
        self.create_node(node, &network, &image).await.map(|_| ())
    }
}
