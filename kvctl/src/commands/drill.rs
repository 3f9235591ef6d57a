//! Loads a cluster, injects faults, heals, and judges.

use std::cell::RefCell;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::{join, join_all};
use kvnode_client::Client;

use super::Context;
use super::up::bring_up;
use crate::args::{Consent, DrillArgs, UpArgs};
use crate::cluster::{DEFAULT_NAME, NodeSpec};
use crate::drill::fault::{KINDS, Kind, Kinds};
use crate::drill::history::{End, FORMAT, Final, Head, History, Recorder};
use crate::drill::inject::{Injector, probe, shards_at};
use crate::drill::report;
use crate::drill::schedule::{self, Planned};
use crate::drill::verdict::{self, Verdict};
use crate::drill::workload::{Client1, Load, Target, think_ms_max};
use crate::error::{Code, Failure, Result};
use crate::goal::Goal;
use crate::interrupt::Interrupt;
use crate::observe::Observer;
use crate::render::{Progress, confirm, say, show};
use crate::runtime::{NodeState, Runtime};
use crate::state::{Record, StateDir};

/// The cluster that `--fresh` makes where none is named.
const FRESH_NAME: &str = "drill";
/// How long a context goes round in the quiet cluster until it is short.
const QUIET_WITHIN: Duration = Duration::from_secs(15);
/// A context that is short enough to stop looking.
const QUIET_ENOUGH: usize = 40;
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A node that takes so long to say in the end that it can't tell a key is not asked for others.
const SILENT_AFTER: Duration = Duration::from_secs(2);

pub async fn run(context: &Context, args: &DrillArgs) -> Result<()> {
    if let Some(path) = &args.judge {
        let history = History::read(path)?;
        return tell(context, &history, args.report.as_deref());
    }
    if args.fresh { fresh(context, args).await } else { drill(context, args, true).await }
}

/// A drill on a cluster that is there for nothing else.
async fn fresh(context: &Context, args: &DrillArgs) -> Result<()> {
    let name = if context.name == DEFAULT_NAME { FRESH_NAME } else { &context.name };
    let context = Context { name: name.to_owned(), output: context.output, state: StateDir::of(name)? };
    let interrupt = Interrupt::listen()?;
    let (_, runtime) = {
        let _lock = context.state.lock()?;
        if context.state.load()?.is_some() {
            let text = format!(
                "there is a cluster '{name}' already: --name makes the drill's under another name, `kvctl drill --name {name}` takes that one"
            );
            return Err(Failure::new(Code::Conflict, text));
        }
        let up = UpArgs { drill: true, ..args.up.clone() };
        bring_up(&context, &up, Consent::default(), &interrupt).await?
    };
    let done = drill(&context, args, false).await;
    // What failed may show there why, unless it is the user who broke it off or asked for what there is not.
    if done.as_ref().is_err_and(|failure| failure.code != Code::Usage) && interrupt.check().is_ok() {
        say(&format!("the cluster '{name}' is kept for a look; `kvctl cluster down --name {name}` takes it down"));
        return done;
    }
    // What the drill has shown is told already.
    let gone = async {
        let _lock = context.state.lock()?;
        runtime.down(true).await?;
        context.state.forget(true)
    };
    if let Err(failure) = gone.await {
        say(&format!(
            "the cluster '{name}' is still there: {failure}; `kvctl cluster down --name {name}` takes it down"
        ));
    }
    done
}

/// What a drill is about to do.
struct Plan {
    seed: u64,
    kinds: Vec<Kind>,
    shards: u32,
    faults: Vec<Planned>,
}

async fn drill(context: &Context, args: &DrillArgs, asks: bool) -> Result<()> {
    // Nothing else may change the cluster meanwhile.
    let _lock = context.state.lock()?;
    let (record, runtime) = context.runtime().await?;
    let nodes = record.spec.members();
    let target = |node: &NodeSpec| {
        let endpoint = runtime.endpoint(node);
        Target { name: node.name.clone(), client: Client::new(vec![endpoint.clone()]), endpoint }
    };
    let targets: Vec<Target> = nodes.iter().map(target).collect();
    for node in &nodes {
        // It would be taken for one that has ended by itself, and be started.
        if runtime.state(node).await? != NodeState::Running {
            let text = format!(
                "{} does not run, and a drill is for a cluster that is well: `kvctl cluster up` first",
                node.name
            );
            return Err(Failure::new(Code::Conflict, text));
        }
    }
    let plan = plan(args, &targets).await?;
    let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
    say(&format!("seed {}: {}", plan.seed, Kinds(plan.kinds.clone())));
    say(schedule::text(&plan.faults, &names).trim_end());
    if asks && !args.yes {
        let question = format!("Inject these faults into cluster '{}'? [y/N] ", context.name);
        confirm(&question, "this makes nodes fail on purpose; say --yes, or --fresh for a cluster of its own")?;
    }
    let fail = |path: &Path, error: std::io::Error| Failure::environment(format!("{}: {error}", path.display()));
    let (path, file) = match &args.history {
        Some(path) => (path.clone(), File::create(path).map_err(|error| fail(path, error))?),
        None => unused(&format!("drill-{}", plan.seed)).map_err(|(path, error)| fail(&path, error))?,
    };
    let page = args.report.clone().unwrap_or_else(|| path.with_extension("html"));
    let history = carry_out(args, &record, &runtime, &nodes, &targets, &plan, (file, &path)).await?;
    say(&format!("history: {}, report: {}", path.display(), page.display()));
    tell(context, &history, Some(&page))
}

/// A new file for a history: an earlier drill of the same seed keeps its own.
fn unused(name: &str) -> std::result::Result<(PathBuf, File), (PathBuf, std::io::Error)> {
    let mut path = PathBuf::from(format!("{name}.jsonl"));
    for number in 2.. {
        match File::create_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                path = PathBuf::from(format!("{name}-{number}.jsonl"));
            }
            Err(error) => return Err((path, error)),
        }
    }
    unreachable!("there are more numbers than files")
}

/// Judges, writes the page, and says what came out.
fn tell(context: &Context, history: &History, page: Option<&Path>) -> Result<()> {
    let verdict: Verdict = verdict::of(history).map_err(Failure::usage)?;
    let written = page.map_or(Ok(()), |path| {
        let text = report::page(history, &verdict);
        std::fs::write(path, text).map_err(|error| Failure::environment(format!("{}: {error}", path.display())))
    });
    // A broken promise counts for more than a page.
    if verdict.kept {
        written?;
        if !history.head.faults.is_empty() && verdict.faults == 0 {
            let why = history.faults.iter().find_map(|one| one.problem.clone());
            let why = why.map_or_else(|| "it was too short for any".to_owned(), |why| format!("the first: {why}"));
            let text = format!("no promise was broken, but none of the faults was injected: {why}");
            let mut failure = Failure::new(Code::Failed, text);
            failure.document = serde_json::to_value(&verdict).ok().map(Box::new);
            if context.output == crate::args::Output::Text {
                verdict.show();
            }
            return Err(failure);
        }
        show(context.output, &verdict, || verdict.show());
        return Ok(());
    }
    if let Err(failure) = written {
        say(&format!("kvctl: {failure}"));
    }
    let mut failure = Failure::new(Code::Broken, format!("promises were broken: {}", verdict.offences.len()));
    failure.document = serde_json::to_value(&verdict).ok().map(Box::new);
    if context.output == crate::args::Output::Text {
        verdict.show();
    }
    Err(failure)
}

async fn plan(args: &DrillArgs, targets: &[Target]) -> Result<Plan> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| Failure::environment(error.to_string()))?;
    // Short enough to be typed again.
    let seed = args.seed.unwrap_or(u64::from_le_bytes(seed) % 1_000_000);
    let asked = args.faults.as_ref().map(|kinds| kinds.0.clone()).or(args.scenario.map(|scenario| scenario.0.to_vec()));
    let shards = match shards_at(&targets[0]).await {
        Some(shards) => shards,
        None => {
            let text = format!("{} does not say how many shards there are: is the cluster up?", targets[0].name);
            return Err(Failure::new(Code::Unreachable, text));
        }
    };
    let nodes = targets.len();
    let counts: Vec<u32> = (1..=(nodes / 2).max(1) as u32).collect();
    let impossible = |kind: Kind| match kind {
        Kind::Partition | Kind::OneWay | Kind::Slow | Kind::Wipe if nodes < 2 => Some("it takes two nodes"),
        Kind::Reshard if counts.len() < 2 => Some("it takes four nodes"),
        _ => None,
    };
    let mut kinds = Vec::new();
    for kind in asked.clone().unwrap_or_else(|| KINDS.to_vec()) {
        match impossible(kind) {
            Some(why) if args.faults.is_some() => return Err(Failure::usage(format!("{kind}: {why}"))),
            Some(_) => {}
            None => kinds.push(kind),
        }
    }
    let inside = kinds.iter().any(|kind| kind.is_inside());
    if inside {
        let disk = kinds.contains(&Kind::DiskFull);
        let probed = join_all(targets.iter().map(|target| probe(target, disk))).await;
        let refusal = probed.into_iter().zip(targets).find_map(|(probed, target)| Some((probed.err()?, &target.name)));
        match refusal {
            Some((why, name)) if asked.is_some() => {
                let text = format!(
                    "{name} lets no faults be injected: {why}; `kvctl cluster up --drill` starts nodes that do, --fresh makes a cluster for this drill"
                );
                return Err(Failure::new(Code::Conflict, text));
            }
            Some((why, name)) => {
                say(&format!("without faults inside the nodes: {name}: {why}"));
                kinds.retain(|kind| !kind.is_inside());
            }
            None => {}
        }
    }
    let faults = schedule::plan(seed, &kinds, args.duration.as_millis() as u64, nodes, &counts, shards);
    Ok(Plan { seed, kinds, shards, faults })
}

async fn carry_out(
    args: &DrillArgs,
    record: &Record,
    runtime: &Runtime,
    nodes: &[NodeSpec],
    targets: &[Target],
    plan: &Plan,
    (file, path): (File, &Path),
) -> Result<History> {
    let interrupt = Interrupt::listen()?;
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // An earlier drill of the same seed may have left its own keys.
    let begun = since_1970.as_millis();
    let keys: Vec<String> = (0..args.keys).map(|number| format!("drill-{}-{begun:x}-{number}", plan.seed)).collect();
    let head = Head {
        format: FORMAT,
        cluster: record.spec.name.clone(),
        seed: plan.seed,
        begun_unix_ms: since_1970.as_millis() as u64,
        nodes: nodes.iter().map(|node| node.name.clone()).collect(),
        keys: keys.clone(),
        sessions: usize::from(args.sessions),
        faults: plan.kinds.clone(),
    };
    let recorder = RefCell::new(Recorder::new(file, head));
    let now_ms = || recorder.borrow().now_ms();
    let progress = Progress::waiting();
    let think = think_ms_max(u64::from(args.sessions), args.duration);
    let load = Load::new(targets, &keys, &recorder, think);
    let mut injector =
        Injector::new(record, runtime, nodes, targets, &recorder, &interrupt, &progress, plan.seed, plan.shards);
    let clients = join_all(
        (1..=u64::from(args.sessions)).map(|client| load.client(plan.seed.wrapping_mul(1_000).wrapping_add(client))),
    );
    let faults = async {
        let done = injector.run(&plan.faults, args.duration.as_millis() as u64).await;
        load.stop();
        done
    };
    let (contexts, done) = join(clients, faults).await;
    let stopped_ms = now_ms();
    // Whatever happened: nothing stays broken.
    let healed = injector.heal(args.timeout).await;
    let mut troubles = injector.troubles();
    troubles.extend(healed.err().map(|failure| failure.message));
    if let Err(failure) = done {
        let all = [vec![failure.message], troubles].concat();
        return Err(Failure::new(failure.code, all.join("; ")));
    }
    let healed_ms = now_ms();
    let (equal_ms, unmet) = converged(record, runtime, args.timeout, &interrupt, &now_ms).await?;
    for (node, target) in targets.iter().enumerate() {
        // One that does not answer is not asked for every key.
        let mut silent = None;
        for key in &keys {
            interrupt.check()?;
            if let Some(error) = &silent {
                let (node, key, error) = (target.name.clone(), key.clone(), Some(String::clone(error)));
                recorder.borrow_mut().last(Final { node, key, value: None, tombstone: None, error });
                continue;
            }
            let begun = Instant::now();
            let seen = load.look(node, key).await;
            let found = seen.result == crate::drill::history::Fate::Ok;
            let error = (!found).then(|| seen.error.clone().unwrap_or_else(|| "no answer".into()));
            if begun.elapsed() > SILENT_AFTER {
                silent.clone_from(&error);
            }
            let (value, tombstone) = (seen.value.filter(|_| found), seen.tombstone);
            let (node, key) = (target.name.clone(), key.clone());
            recorder.borrow_mut().last(Final { node, key, value, tombstone, error });
        }
    }
    let longest = contexts.into_iter().flatten().max_by_key(|(_, context)| context.len());
    let quiet_context = match longest {
        Some((session, context)) => Some(quiet(&load, load.take_over(session, context), targets.len(), &keys).await),
        None => None,
    };
    recorder.borrow_mut().end(End { stopped_ms, healed_ms, equal_ms, unmet, troubles, quiet_context });
    progress.done();
    drop((load, injector));
    recorder.into_inner().finish(path)
}

/// When all replicas were equal; if they are not in time, what was missing.
async fn converged(
    record: &Record,
    runtime: &Runtime,
    limit: Duration,
    interrupt: &Interrupt,
    now_ms: &impl Fn() -> f64,
) -> Result<(Option<f64>, Vec<String>)> {
    let mut observer = Observer::new(record, runtime);
    let begun = Instant::now();
    loop {
        interrupt.check()?;
        let seen = observer.look().await;
        let unmet = [Goal::Ready.unmet(&seen), Goal::Converged.unmet(&seen)].concat();
        if unmet.is_empty() {
            return Ok((Some(now_ms()), Vec::new()));
        }
        if begun.elapsed() > limit {
            return Ok((None, unmet.into_iter().map(|unmet| format!("{}: {}", unmet.who, unmet.why)).collect()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A session's context goes round until it is as short as contexts are at rest.
async fn quiet(load: &Load<'_>, mut client: Client1, nodes: usize, keys: &[String]) -> String {
    let begun = Instant::now();
    let mut context = String::new();
    for step in 0.. {
        load.go_round(&mut client, step % nodes, &keys[step % keys.len()]).await.clone_into(&mut context);
        if context.len() <= QUIET_ENOUGH || begun.elapsed() > QUIET_WITHIN {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    context
}
