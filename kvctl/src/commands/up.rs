//! cluster up: makes a cluster, repairs one, or takes over what is there of one that is remembered no more.

use std::time::{Duration, Instant};

use super::cluster::check_alive;
use super::status::show_status;
use super::wait::{timed_out, waiting_text};
use super::{Context, leftover};
use crate::args::{Consent, RuntimeArg, UpArgs};
use crate::cluster::Spec;
use crate::error::{Code, Failure, Result};
use crate::goal::Goal;
use crate::interrupt::Interrupt;
use crate::observe::{Observer, Seen};
use crate::render::{Progress, say};
use crate::runtime::trace::{self, Agreed, Trace};
use crate::runtime::{self, Runtime};
use crate::state::{Record, RuntimeKind};

pub async fn run(context: &Context, args: &UpArgs, consent: Consent) -> Result<()> {
    let _lock = context.state.lock()?;
    let interrupt = Interrupt::listen()?;
    let (record, runtime) = bring_up(context, args, consent, &interrupt).await?;
    show_status(context, &record, &runtime).await
}

/// Brings up what the arguments say, or leaves nothing that it made. The caller holds the lock.
pub async fn bring_up(
    context: &Context,
    args: &UpArgs,
    consent: Consent,
    interrupt: &Interrupt,
) -> Result<(Record, Runtime)> {
    let known = context.state.load()?;
    let was_empty = !context.state.has_data();
    let made = match record_for(context, args, consent, known.as_ref()).await {
        Ok(record) => carry_out(context, args, consent, record, known.is_some(), interrupt).await,
        Err(failure) => Err(failure),
    };
    if made.is_err() && known.is_none() {
        // Data that was there before is not this command's to take away.
        if was_empty { context.state.forget(true)? } else { context.state.forget_record()? }
    }
    made
}

/// What the cluster is meant to be. Nodes that are there have the last word: where they and the arguments or the record
/// disagree, nothing is changed.
async fn record_for(context: &Context, args: &UpArgs, consent: Consent, known: Option<&Record>) -> Result<Record> {
    if known.is_some() {
        leftover::check_unneeded(context, consent)?;
    }
    let spec = Spec::resolve(&context.name, args, known.map(|record| &record.spec))?;
    let runtime = kind_for(context, args, known).await?;
    let traces = runtime::traces(runtime, &context.name, &context.state).await?;
    let agreed = trace::agree(&spec, known.map(|record| record.secret.as_str()), runtime, &traces);
    let Agreed { spec, secret, taken_over } =
        agreed.map_err(|failure| disagreement(context, known.is_some(), runtime, &traces, &failure))?;
    if known.is_none() && traces.is_empty() {
        leftover::settle(context, &spec, runtime, consent).await?;
    } else if known.is_none() && consent.wipe {
        let text = format!(
            "nodes of cluster '{}' are there: {}; --wipe is for data that nobody uses. `kvctl cluster up` takes them over, and \
             `kvctl cluster down` then deletes them",
            context.name,
            trace::shown(&traces, runtime)
        );
        return Err(Failure::new(Code::Conflict, text));
    } else if known.is_none() {
        say(&format!("taking over what is there of cluster '{}': {}", context.name, trace::shown(&traces, runtime)));
    } else if !taken_over.is_empty() {
        say(&format!("taking over what runs and was not remembered: {}", taken_over.join(", ")));
    }
    let kvnode = args.kvnode.as_deref().map(runtime::program).transpose()?;
    let kvnode = kvnode.or_else(|| known.and_then(|record| record.kvnode.clone()));
    Ok(Record { runtime, spec, secret: secret.map_or_else(new_secret, Ok)?, kvnode })
}

/// Where the cluster runs: where it was made, or where processes or data of it are.
async fn kind_for(context: &Context, args: &UpArgs, known: Option<&Record>) -> Result<RuntimeKind> {
    if let Some(record) = known {
        return runtime::choose(args.runtime, Some(record.runtime)).await;
    }
    let is_here = context.state.has_data() || !runtime::local::traces(&context.state).is_empty();
    if is_here && args.runtime == Some(RuntimeArg::Docker) {
        let text = format!(
            "processes or data of a cluster '{0}' on the other runtime are in {1}; `kvctl cluster up --runtime local` tells \
             more, or use --name",
            context.name,
            context.state.path().display()
        );
        return Err(Failure::new(Code::Conflict, text));
    }
    runtime::choose(args.runtime, is_here.then_some(RuntimeKind::Local)).await
}

/// Says what is the matter, and the ways out.
fn disagreement(context: &Context, is_known: bool, kind: RuntimeKind, traces: &[Trace], why: &Failure) -> Failure {
    let end = trace::end_them(traces, kind);
    let text = if is_known {
        let path = context.state.record_path();
        format!(
            "{why}, which is not what {0} says; nothing was changed. Move that file away (`mv {0} {0}.wrong`): then \
             `kvctl cluster up`, with the options that the cluster was made with, takes over what is there. Or end what does \
             not belong: all nodes that are there are ended by {end}",
            path.display()
        )
    } else {
        format!(
            "nodes of a cluster '{}' are there, which this kvctl does not remember: {}; but {why}, which is not what is asked \
             for; nothing was changed. `kvctl cluster up`, with the options that the cluster was made with, takes them over; \
             {end} ends them",
            context.name,
            trace::shown(traces, kind)
        )
    };
    Failure::new(why.code, text)
}

async fn carry_out(
    context: &Context,
    args: &UpArgs,
    consent: Consent,
    record: Record,
    is_known: bool,
    interrupt: &Interrupt,
) -> Result<(Record, Runtime)> {
    let runtime = Runtime::open(&record, &context.state).await?;
    super::loss::check(context, &record, &runtime, consent.accept_data_loss).await?;
    context.state.save(&record)?;
    let progress = Progress::new();
    progress.expect(record.spec.members().len());
    let done = match runtime.up(is_known, interrupt, &progress).await {
        Ok(()) => interrupt.or(wait_ready(&record, &runtime, Duration::from_secs(args.wait), &progress)).await,
        Err(failure) => Err(failure),
    };
    let seen = match done {
        Ok(seen) => seen,
        Err(failure) => {
            runtime.undo(&progress).await;
            return Err(failure);
        }
    };
    runtime.settle().await;
    super::loss::remember(context, &seen);
    Ok((record, runtime))
}

fn new_secret() -> Result<String> {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).map_err(|error| Failure::environment(error.to_string()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Waits until every node that has something to serve serves; what was seen then.
async fn wait_ready(record: &Record, runtime: &Runtime, limit: Duration, progress: &Progress) -> Result<Vec<Seen>> {
    let deadline = Instant::now() + limit;
    let mut observer = Observer::new(record, runtime);
    let mut waiting = record.spec.members().len();
    loop {
        let seen = observer.look().await;
        let still = Goal::Ready.unmet(&seen);
        progress.did(waiting.saturating_sub(still.len()));
        waiting = waiting.min(still.len());
        if still.is_empty() {
            return Ok(seen);
        }
        for node in record.spec.members().iter().filter(|node| still.iter().any(|unmet| unmet.who == node.name)) {
            check_alive(runtime, node).await?;
        }
        if Instant::now() > deadline {
            return Err(timed_out("not all nodes are ready", limit, &still));
        }
        progress.step(&waiting_text(Goal::Ready, &still));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
