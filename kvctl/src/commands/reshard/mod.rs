//! reshard: the plan, the question, the watching, the receipt.

use std::time::{Duration, Instant};

use kvnode_client::Client;
use reqwest::Method;
use serde_json::{Value, json};

use super::refusal::unanswered;
use super::topology::{DECISION_TIMEOUT, change, show_result};
use super::{Context, Names, client_of, patiently, refused};
use crate::args::{Output, ReshardArgs, ReshardCommand, Via};
use crate::error::{Code, Failure, Result};
use crate::interrupt::Interrupt;
use crate::observe::Observer;
use crate::render::{bytes, confirm, line, printable, say, show, table};

mod plan;
mod receipt;
mod watch;

use plan::Planned;
use watch::Job;

/// How long a change waits until an earlier one is finished.
const FINISH_MAX: Duration = Duration::from_secs(30);
/// Between two looks at it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub async fn run(context: &Context, args: ReshardArgs) -> Result<()> {
    let via = Via { via: args.via.clone() };
    match (&args.command, args.shards) {
        (Some(_), Some(_)) => Err(Failure::usage("a number of shards, or status, or abort: choose one")),
        (Some(ReshardCommand::Status), None) => status(context, &via).await,
        (Some(ReshardCommand::Abort), None) => abort(context, &via).await,
        (None, Some(shards)) => reshard(context, shards, &args, &via).await,
        (None, None) => Err(Failure::usage("say how many shards there are to be")),
    }
}

async fn reshard(context: &Context, shards: u32, args: &ReshardArgs, via: &Via) -> Result<()> {
    if context.output == Output::Json && !args.yes && !args.dry_run {
        return Err(Failure::usage("with --output json nobody is asked: say --yes, or --dry-run"));
    }
    let (record, runtime) = context.runtime().await?;
    let client = client_of(&record, &runtime, via).await?.patient(DECISION_TIMEOUT);
    let names = Names::of(&record, &runtime);
    let planned = Planned::ask(&client, &names, shards).await?;
    if context.output == Output::Text {
        planned.print(&names);
    }
    planned.warnings.iter().for_each(|warning| say(&format!("warning: {}", printable(warning))));
    planned.check()?;
    if args.dry_run {
        show(context.output, &planned.document(), || {});
        return Ok(());
    }
    if planned.changes_nothing() {
        show(context.output, &planned.document(), || line("nothing to do"));
        return Ok(());
    }
    if !args.yes {
        let question = format!("Reshard to {shards} {}? [y/N] ", if shards == 1 { "shard" } else { "shards" });
        confirm(&question, "this moves keys between nodes; say --yes, or --dry-run to see how")?;
    }
    let interrupt = Interrupt::listen()?;
    let job = begin(&client, &names, shards, planned.epoch).await?;
    if args.no_wait {
        let document = json!({ "job": job, "plan": planned.document() });
        show(context.output, &document, || {
            line(&format!("{} begun; `kvctl reshard status` shows how far it is", watch::called(job)))
        });
        return Ok(());
    }
    let done = watch::until_done(&client, job, &names, &interrupt).await?;
    super::loss::remember_now(context, &record, &runtime).await;
    let receipt = receipt::take(&mut Observer::new(&record, &runtime), &planned, &interrupt).await;
    let document =
        json!({ "job": job, "phase": done.phase, "epoch": done.epoch, "plan": planned.document(), "receipt": receipt });
    show(context.output, &document, || receipt.print(&names));
    receipt.warn();
    Ok(())
}

/// Begins the change, once an earlier one is finished that has only to be tidied up; its number, if the node gave one.
async fn begin(client: &Client, names: &Names, shards: u32, epoch: u64) -> Result<Option<u64>> {
    let body = json!({ "shard-count": shards, "epoch": epoch });
    let (begun, mut told) = (Instant::now(), false);
    loop {
        let refusal = match change(client, names, Method::PUT, "/shard/reshard?wait=false", Some(&body)).await {
            Err(refusal) if refusal.code == Code::Conflict => refusal,
            other => return Ok(other?.json().get("job").and_then(Value::as_u64)),
        };
        let earlier = client.look("/shard/reshard").await.ok().and_then(|answer| Job::of(&answer).ok());
        let Some(earlier) = earlier.filter(Job::is_being_finished) else { return Err(refusal) };
        if begun.elapsed() > FINISH_MAX {
            return Err(refusal);
        }
        if !std::mem::replace(&mut told, true) {
            say(&format!("waiting until {} is finished", watch::called(earlier.job)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn status(context: &Context, via: &Via) -> Result<()> {
    let (record, runtime) = context.runtime().await?;
    let (client, names) = (client_of(&record, &runtime, via).await?, Names::of(&record, &runtime));
    let look = patiently(&client, &names, client.look("/shard/reshard")).await;
    let answer = look.map_err(|error| unanswered(&error, &names))?;
    if !answer.is_success() {
        return Err(refused(&answer));
    }
    let job = Job::of(&answer)?;
    show(context.output, &answer.json(), || print_job(&job, &names));
    Ok(())
}

fn print_job(job: &Job, names: &Names) {
    if job.job.is_none() {
        return line("no change has run yet");
    }
    let kind = job.kind.as_deref().unwrap_or("change");
    let epoch = job.epoch.map(|epoch| format!(", epoch {epoch}")).unwrap_or_default();
    line(&printable(&format!("{} ({kind}): {}{epoch}", watch::called(job.job), job.phase)));
    if !job.moves.is_empty() {
        let row = |one: &watch::Move| {
            let keys = [one.keys, one.keys_total].map(|count| count.to_string());
            let [keys, total] = keys;
            vec![one.from.clone(), one.to.clone(), names.name(&one.node).to_owned(), keys, total, bytes(one.bytes)]
        };
        table(&["FROM", "TO", "NODE", "KEYS", "OF", "MOVED"], job.moves.iter().map(row).collect());
    }
    job.waiting_for.iter().for_each(|what| line(&format!("waits for: {}", printable(&names.said(what)))));
}

async fn abort(context: &Context, via: &Via) -> Result<()> {
    let (record, runtime) = context.runtime().await?;
    let client = client_of(&record, &runtime, via).await?.patient(DECISION_TIMEOUT);
    let names = Names::of(&record, &runtime);
    show_result(context, &change(&client, &names, Method::DELETE, "/shard/reshard", None).await?);
    Ok(())
}
