//! The command line: one module a verb, each with its arguments (`Args`) and a `run`.
//!
//! A verb prints what it found through [`Out`] (tables for people, JSON for machines) and returns a
//! [`Failure`] that says what was asked, what happened and what to do. The exit code is 0, 1
//! (failed) or 2 (usage).

mod attach;
mod backtest;
mod calendar;
mod client;
mod controller;
mod cutover;
mod demo;
mod events;
mod failover;
mod failure;
mod forecast;
mod foretold;
mod node;
mod nodes;
mod operation;
pub(crate) mod out;
mod plan;
mod planned;
mod progress;
mod provision;
mod replica;
mod samples;
mod serve;
mod simulate;
mod simulate_cycle;
mod simulate_fleet;
mod simulate_forecasts;
mod simulate_history;
mod size;
mod volume;

pub(crate) use client::connect;
pub use failure::Failure;
pub(crate) use operation::{Sending, carry_out};
pub use out::{Out, Output};
pub(crate) use progress::Progress;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Where a controller listens unless told otherwise.
pub const CONTROLLER_DEFAULT: &str = "127.0.0.1:7400";

/// Serve, track, replicate and move the disks of running VMs.
#[derive(Parser, Debug)]
#[command(
    name = "forerun",
    version,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// What every verb understands.
#[derive(clap::Args, Debug)]
pub struct Global {
    /// The controller to ask
    #[arg(long, global = true, value_name = "ADDR:PORT", env = "FORERUN_CONTROLLER",
          default_value = CONTROLLER_DEFAULT, help_heading = "Global options")]
    controller: String,
    /// How to print: table, for people, or json, for machines
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "table",
        hide_possible_values = true,
        help_heading = "Global options"
    )]
    output: Output,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Serve one image over NBD: no configuration, no controller, no root
    Serve(serve::Args),
    /// Run the data plane of this host
    Node(node::Args),
    /// Run the controller, which decides and never touches a block
    Controller(controller::Args),
    /// Make, adopt, list, grow and delete volumes
    #[command(subcommand)]
    Volume(volume::Verb),
    /// Print where a volume is served, and the lines for QEMU and libvirt
    Attach {
        /// Which volume
        volume: String,
    },
    /// Keep copies of a volume on other nodes
    #[command(subcommand)]
    Replica(replica::Verb),
    /// Move a volume to another node while its guest runs
    Cutover(cutover::Args),
    /// Have a replica take the place of an owner that is gone for good
    Failover(failover::Args),
    /// List the nodes that registered, and what they hold
    NodeList,
    /// Make nodes at a site, destroy and replace them
    #[command(subcommand)]
    Provision(provision::Verb),
    /// Say where copies should be, what that costs, and why
    Plan(plan::Args),
    /// Tell the planner of events ahead: maintenance and traffic spikes
    #[command(subcommand)]
    Calendar(calendar::Verb),
    /// Forecast a volume, a VM, a node or a file, or score forecasts of its past
    Forecast(forecast::Args),
    /// Replay decisions over recorded load
    Simulate(simulate::Args),
    /// Show what happened in the fleet
    Events(events::Args),
    /// Play it all on this machine: seed, replicate, cut over under load, check every byte
    Demo(demo::Args),
    /// List and follow commands on their way
    #[command(subcommand)]
    Operation(operation::Verb),
}

/// Run the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // clap prints help and version to stdout with code 0, usage errors to stderr with code 2
        Err(e) => e.exit(),
    };
    let out = Out::new(cli.global.output);
    match run(cli, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            out.failure(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(cli: Cli, out: &Out) -> Result<(), Failure> {
    let Cli { global, verb } = cli;
    let controller = global.controller.as_str();
    match verb {
        Verb::Serve(args) => {
            log_to_stderr();
            serve::run(args, out)
        }
        Verb::Node(args) => {
            log_to_stderr();
            block_on(node::run(args, out))
        }
        Verb::Controller(args) => {
            log_to_stderr();
            block_on(controller::run(args, out))
        }
        Verb::Volume(verb) => block_on(volume::run(verb, controller, out)),
        Verb::Attach { volume } => block_on(attach::run(volume, controller, out)),
        Verb::Replica(verb) => block_on(replica::run(verb, controller, out)),
        Verb::Cutover(args) => block_on(cutover::run(args, controller, out)),
        Verb::Failover(args) => block_on(failover::run(args, controller, out)),
        Verb::NodeList => block_on(nodes::list(controller, out)),
        Verb::Provision(verb) => block_on(provision::run(verb, controller, out)),
        Verb::Plan(args) => plan::run(&args, controller, out),
        Verb::Calendar(verb) => block_on(calendar::run(verb, controller, out)),
        Verb::Forecast(args) => forecast::run(&args, controller, out),
        Verb::Simulate(args) => simulate::run(&args, out),
        Verb::Events(args) => block_on(events::run(args, controller, out)),
        Verb::Demo(args) => block_on(demo::run(args, out)),
        Verb::Operation(verb) => block_on(operation::run(verb, controller, out)),
    }
}

/// Daemons log to standard error, as much as `RUST_LOG` asks for.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

/// Run a verb that talks to the controller.
fn block_on<F: Future<Output = Result<(), Failure>>>(verb: F) -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("start the async runtime: {e}")))?
        .block_on(verb)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }
}
