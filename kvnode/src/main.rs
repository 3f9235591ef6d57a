//! Arguments → settings → log → [`kvnode::run::run`].

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use kvnode::config::{Args, Config};
use kvnode::run::EXIT_USAGE;

/// Requests and batches are many small pieces that live shortly: this costs half of what the C library's does.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long a thread for tasks that block may have nothing to do.
const THREADS_STAY: Duration = Duration::from_secs(365 * 24 * 3600);

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(dir) = &args.probe_store {
        return kvnode::storage::probe::run(dir);
    }
    let config = match Config::resolve(&args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    kvnode::logging::init(&config);
    // One thread: the node's loop is serial anyway, and handing requests between threads costs more than it gains.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // They stay: the system may refuse new ones later.
    builder.enable_all().max_blocking_threads(kvnode::threads::BLOCKING_MAX).thread_keep_alive(THREADS_STAY);
    let runtime = match builder.build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(kvnode::run::run(config));
    // Tasks that block (a sync) don't hold up the exit.
    runtime.shutdown_timeout(Duration::from_millis(200));
    code
}
