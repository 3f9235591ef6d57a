//! Arguments → settings → log → [`kvnode::run::run`].

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use kvnode::config::{Args, Config};
use kvnode::run::EXIT_USAGE;

/// Requests and batches are many small pieces that live shortly: this costs half of what the C library's does.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(kvnode::run::run(config));
    // Tasks that block (a sync, a name look-up) don't hold up the exit.
    runtime.shutdown_timeout(Duration::from_millis(200));
    code
}
