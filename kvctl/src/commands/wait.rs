//! Waits until the cluster is as it is meant to be.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::Context;
use crate::args::WaitArgs;
use crate::error::{Code, Failure, Result};
use crate::goal::{Goal, Unmet};
use crate::observe::Observer;
use crate::render::{Progress, line, printable, show};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Reached {
    #[serde(rename = "for")]
    goal: String,
    waited_ms: u64,
}

pub async fn run(context: &Context, args: &WaitArgs) -> Result<()> {
    let (record, runtime) = context.runtime().await?;
    let begun = Instant::now();
    let mut observer = Observer::new(&record, &runtime);
    let progress = Progress::waiting();
    loop {
        let seen = observer.look().await;
        let unmet = args.goal.unmet(&seen);
        if unmet.is_empty() {
            super::loss::remember(context, &seen);
            break;
        }
        if begun.elapsed() > args.timeout {
            return Err(timed_out(&format!("not {}", args.goal), args.timeout, &unmet));
        }
        progress.step(&waiting_text(args.goal, &unmet));
        tokio::time::sleep(LOOK_EVERY).await;
    }
    progress.done();
    let waited_ms = begun.elapsed().as_millis() as u64;
    let reached = Reached { goal: args.goal.to_string(), waited_ms };
    show(context.output, &reached, || line(&reached.goal));
    Ok(())
}

/// `waiting until ready: alice, bob`.
pub fn waiting_text(goal: Goal, unmet: &[Unmet]) -> String {
    let mut names: Vec<_> = unmet.iter().map(|unmet| printable(&unmet.who)).collect();
    names.dedup();
    format!("waiting until {goal}: {}", names.join(", "))
}

/// Says what was waited for in vain.
pub fn timed_out(what: &str, limit: Duration, unmet: &[Unmet]) -> Failure {
    let reasons: Vec<String> =
        unmet.iter().map(|unmet| printable(&format!("{}: {}", unmet.who, unmet.why)).into_owned()).collect();
    Failure::new(Code::TimedOut, format!("{what} after {limit:?}\n  {}", reasons.join("\n  ")))
}
