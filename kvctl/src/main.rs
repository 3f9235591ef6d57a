//! kvctl: brings clusters of kvnode up and down, and reads and writes their keys.
//!
//! `args` → `commands` → `runtime` (where nodes run) and kvnode's client (what they say) → `render`.

mod args;
mod bench;
mod cluster;
mod commands;
mod drill;
mod error;
mod goal;
mod interrupt;
mod observe;
mod plan;
mod render;
mod runtime;
mod session;
mod state;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && args::wants_json(std::env::args_os()) => {
            let failure = error::Failure::usage(error.to_string().trim().to_owned());
            render::failed(args::Output::Json, &failure);
            return ExitCode::from(failure.code as u8);
        }
        Err(error) => error.exit(),
    };
    let output = cli.output;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            render::say(&format!("kvctl: {error}"));
            return ExitCode::from(error::Code::Environment as u8);
        }
    };
    let code = match runtime.block_on(commands::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            render::failed(output, &failure);
            ExitCode::from(failure.code as u8)
        }
    };
    runtime.shutdown_background();
    code
}
