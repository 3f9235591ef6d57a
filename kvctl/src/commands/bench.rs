//! Loads a cluster and tells what it did.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::LocalSet;

use super::Context;
use crate::args::{BenchArgs, Route};
use crate::bench::cpu::{self, Process};
use crate::bench::load::Load;
use crate::bench::pace::Pace;
use crate::bench::plot::{Curve, svg};
use crate::bench::report::{Measured, Report};
use crate::bench::tally::{Operation, Tally};
use crate::bench::targets::{Routing, Target};
use crate::error::{Code, Failure, Result};
use crate::interrupt::Interrupt;
use crate::render::{say, show};
use crate::runtime::{NodeState, ports};

/// CPU times at one moment.
#[derive(Clone, Debug, Default)]
struct Meter {
    servers: BTreeMap<String, Duration>,
    client: Option<Duration>,
}

/// The processes of the nodes, by name; `None` where none can be seen from here.
type Processes = BTreeMap<String, Option<Process>>;

impl Meter {
    fn read(processes: &Processes) -> Self {
        let used = |(name, process): (&String, &Option<Process>)| Some((name.clone(), cpu::used(process.as_ref()?)?));
        Self { servers: processes.iter().filter_map(used).collect(), client: cpu::own() }
    }

    /// What was used since `earlier`, by nodes that are the same processes still.
    fn since(&self, earlier: &Self) -> Self {
        let used =
            |(name, now): (&String, &Duration)| Some((name.clone(), now.checked_sub(*earlier.servers.get(name)?)?));
        let client = self.client.zip(earlier.client).map(|(now, then)| now.saturating_sub(then));
        Self { servers: self.servers.iter().filter_map(used).collect(), client }
    }
}

pub async fn run(context: &Context, args: BenchArgs) -> Result<()> {
    if args.duration.is_zero() || args.timeout.is_zero() {
        return Err(Failure::usage("--duration and --timeout are longer than nothing"));
    }
    // Before the work is done: a place that can't be written to is told at once.
    let picture_at = |path: &PathBuf| {
        let file = File::create(path);
        file.map_err(|error| Failure::environment(format!("{}: {error}", path.display())))
    };
    let picture_file = args.plot.as_ref().map(picture_at).transpose()?;
    let (targets, processes) = targets(context, &args).await?;
    let interrupt = Interrupt::listen()?;
    let routing = interrupt.or(Routing::new(&args.route, targets)).await?;
    let load = Load::new(args.clone(), routing);
    let (tally, measured) = LocalSet::new().run_until(measure(&args, &load, &processes, &interrupt)).await?;
    if tally.ended == tally.failed() {
        return Err(nothing_done(&tally));
    }
    let nodes = load.routing().targets.iter().map(|target| target.endpoint.clone()).collect();
    let report = Report::new(&args, nodes, &tally, &measured);
    let written = picture_file.map(|mut file| file.write_all(picture(&report, &tally).as_bytes()));
    show(context.output, &report, || report.show());
    if let (Some(Err(error)), Some(path)) = (written, &args.plot) {
        say(&format!("kvctl: {}: {error}", path.display()));
    }
    Ok(())
}

/// The nodes to load, and their processes as far as they run on this host.
async fn targets(context: &Context, args: &BenchArgs) -> Result<(Vec<Target>, Processes)> {
    if !args.url.is_empty() {
        let target = |url: &String| {
            let endpoint = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
            endpoint.parse::<kvnode_types::ident::Addr>().map_err(|bad| Failure::usage(format!("--url: {bad}")))?;
            Ok(Target { name: endpoint.clone(), endpoint })
        };
        let targets: Vec<Target> = args.url.iter().map(target).collect::<Result<_>>()?;
        let process = |target: &Target| {
            let address = target.endpoint.parse().ok()?;
            ports::listener(address).and_then(Process::present)
        };
        let processes = targets.iter().map(|target| (target.name.clone(), process(target))).collect();
        return Ok((targets, processes));
    }
    let (record, runtime) = context.runtime().await?;
    if let Route::One(name) = &args.route
        && !name.contains(':')
    {
        record.spec.node(name)?;
    }
    let (mut targets, mut processes) = (Vec::new(), Processes::new());
    for node in record.spec.members() {
        if runtime.state(&node).await? == NodeState::Running {
            processes.insert(node.name.clone(), runtime.process(&node).await?.map(Process::of_node));
            targets.push(Target { name: node.name.clone(), endpoint: runtime.endpoint(&node) });
        }
    }
    Ok((targets, processes))
}

async fn measure(
    args: &BenchArgs,
    load: &Rc<Load>,
    processes: &Processes,
    interrupt: &Interrupt,
) -> Result<(Tally, Measured)> {
    if args.prepare {
        say(&format!("writing {} keys", args.keys));
        interrupt.or(load.fill()).await?;
    }
    say(&format!("measuring for {:?}, after {:?} to warm up", args.duration, args.warmup));
    let start = Instant::now();
    let counted_from = start + args.warmup;
    let end = counted_from + args.duration;
    let pace = Rc::new(Pace::new(args.rate, start, end));
    let begun = Rc::new(RefCell::new(None));
    let metered = {
        let (begun, processes) = (begun.clone(), processes.clone());
        async move {
            tokio::time::sleep_until(counted_from.into()).await;
            *begun.borrow_mut() = Some(Meter::read(&processes));
        }
    };
    let metering = tokio::task::spawn_local(metered);
    let run = async {
        load.run(pace.clone(), counted_from).await;
        Ok(())
    };
    let interrupted = interrupt.or(run).await.is_err();
    metering.abort();
    let now = Instant::now();
    let Some(first) = begun.take() else {
        return Err(Failure::new(Code::Failed, "interrupted before anything was counted"));
    };
    let used = Meter::read(processes).since(&first);
    let time = now.min(end) - counted_from;
    let tally = load.close(&pace, now.min(end));
    let all_servers = !processes.is_empty() && used.servers.len() == processes.len();
    let measured = Measured { time, interrupted, servers: used.servers, all_servers, client: used.client };
    Ok((tally, measured))
}

/// Not one operation was answered as asked: that is no measurement.
fn nothing_done(tally: &Tally) -> Failure {
    let kinds: Vec<String> = tally.errors.iter().map(|(kind, count)| format!("{count} times {kind}")).collect();
    let all = |begin: &str| !kinds.is_empty() && tally.errors.keys().all(|kind| kind.starts_with(begin));
    let code = match () {
        () if all("can't connect") => Code::Unreachable,
        () if all("timed out") || kinds.is_empty() => Code::TimedOut,
        () => Code::Failed,
    };
    let why = if kinds.is_empty() { "none was begun in time".to_owned() } else { kinds.join("; ") };
    Failure::new(code, format!("no operation succeeded: {why}"))
}

fn picture(report: &Report, tally: &Tally) -> String {
    let all = tally.overall();
    let mut curves: Vec<Curve<'_>> = Operation::ALL
        .into_iter()
        .map(|operation| Curve { name: operation.name(), times: tally.latency(operation) })
        .collect();
    curves.push(Curve { name: "all", times: &all });
    if report.rate.is_some() {
        curves.push(Curve { name: "all, once sent", times: tally.service() });
    }
    svg(&report.workload(), &curves)
}
