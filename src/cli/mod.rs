//! The command line: text goes to standard output, everything else to standard error. Exit codes: 0, 1 (failed),
//! 2 (wrong usage), 130 (interrupted).

mod args;
mod chat;
#[doc(hidden)]
pub mod disk2gpu;
mod eval;
mod families;
mod generate;
mod hub;
mod inspect;
mod interrupt;
mod logits;
mod output;
mod pack;
mod plan;
mod profile;
mod progress;
mod prompts;
mod report;
mod synth;
mod table;
mod text;
mod values;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::error::{Error, Result};
use args::{Cli, Command};

/// Runs the command that the arguments of this process ask for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging(Targets::new().with_default(LevelFilter::WARN));
    finish("layerstream", interrupt::install().and_then(|()| run(cli.command)))
}

/// Tells how a program has ended.
fn finish(program: &str, result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(error) if output::is_closed(&error) => ExitCode::SUCCESS,
        Err(Error::Interrupted) => ExitCode::from(interrupt::EXIT_CODE),
        Err(error) => {
            let line = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            output::tell(format!("{program}: error: {line}\n"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Generate(args) => generate::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Families(args) => families::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Tokenize(args) => text::tokenize(&args),
        Command::Detokenize(args) => text::detokenize(&args),
        Command::RenderChat(args) => text::render_chat(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Verify(args) => pack::check(&args),
        Command::Pull(args) => hub::pull(&args),
        Command::List(args) => hub::list(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "layerstream", &mut script);
            output::bytes(&script)
        }
    }
}

/// Warnings, or else what `filter` lets through, go to standard error; `RUST_LOG` (`debug`, `layerstream::disk=trace`, …)
/// asks for more or less.
fn start_logging(filter: Targets) {
    let asked = std::env::var("RUST_LOG").ok().and_then(|filter| filter.parse::<Targets>().ok());
    let filter = asked.unwrap_or(filter);
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .without_time();
    tracing_subscriber::registry().with(filter).with(layer).init();
}
