//! The command line: what the program can do, and how it ends. Exit codes are a contract:
//! 0 done, 1 the switch said no, 2 wrong usage or bad configuration, 3 no switch is listening.

#![forbid(unsafe_code)]

mod audit;
mod change;
mod contained;
mod doctor;
mod events;
mod keys;
mod show;
mod table;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::control::client::{self, Client};
use crate::control::config::ConfigErrors;
use crate::control::state::Precedence;
use crate::daemon;

/// Where a switch listens unless it is told otherwise.
pub const SOCKET: &str = "/run/vifswitch/api.sock";

/// A poll-mode userspace Ethernet switch: joins the interfaces of VMs and containers into networks
#[derive(Debug, Parser)]
#[command(name = "vifswitch", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 the switch said no, 2 wrong usage or bad configuration, \
    3 no switch is listening.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the switch, in the foreground
    Run {
        /// The configuration file; without it, the state that is kept goes on
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Where the state is kept, instead of where the configuration says
        #[arg(long, value_name = "FILE")]
        state: Option<PathBuf>,
        /// Replace the stored state by the configuration file, instead of merging both
        #[arg(long, requires = "config")]
        replace: bool,
    },
    /// Say whether a configuration is right, whether this host would carry it, and what a start would change in the
    /// stored state; touches nothing
    Check {
        /// The configuration file
        #[arg(value_name = "FILE")]
        config: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say which kinds of port netdevs are good for, and why not better; touches nothing
    Doctor(doctor::Doctor),
    /// Say what would change with a configuration; changes nothing
    Diff(change::Diff),
    /// Change a running switch to a configuration, in one step or not at all
    Apply(change::Apply),
    /// Keep what `apply --confirm` has changed
    Confirm(change::Confirm),
    /// Attach a port to a VM, behind those that it has
    Attach(change::Attach),
    /// Detach a port; its siblings keep their order
    Detach(change::Detach),
    /// Change keys of a port
    Set(change::Set),
    /// Show what a running switch is doing
    Show(show::Show),
    /// Tell what happened, one line each
    Events(events::Events),
    /// Forget learned stations: those to which all that is given applies
    Flush(change::Flush),
    /// Lift whatever measure holds a port
    Release(change::Release),
}

/// How and where to ask a switch.
#[derive(Debug, Args)]
struct Connection {
    /// As JSON, with exact numbers
    #[arg(long)]
    json: bool,
    /// Where the switch listens
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
}

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// The switch has not done it.
    #[error(transparent)]
    Switch(#[from] client::Error),
    /// What was to be done is wrong.
    #[error(transparent)]
    Wrong(#[from] ConfigErrors),
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// What was to be said cannot be written.
    #[error("cannot write: {0}")]
    Output(io::Error),
}

/// The commands and their arguments, as the parser has them.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help that nobody reads has done no harm.
            let _ = e.print();
            return u8::try_from(e.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    match cli.command {
        None => say(&command().render_help().to_string()),
        Some(Command::Run { config, state, replace }) => {
            daemon::run(config, state, if replace { Precedence::Replace } else { Precedence::Merge })
        }
        Some(Command::Check { config, json }) => daemon::check(&config, json),
        Some(Command::Doctor(doctor)) => doctor.run(),
        Some(Command::Diff(diff)) => end(diff.run()),
        Some(Command::Apply(apply)) => end(apply.run()),
        Some(Command::Confirm(confirm)) => end(confirm.run()),
        Some(Command::Attach(attach)) => end(attach.run()),
        Some(Command::Detach(detach)) => end(detach.run()),
        Some(Command::Set(set)) => end(set.run()),
        Some(Command::Show(show)) => match show.run() {
            Ok(show::Output { text, success: false }) => {
                say(&text);
                ExitCode::FAILURE
            }
            shown => end(shown.map(|shown| shown.text)),
        },
        Some(Command::Events(events)) => end(events.run()),
        Some(Command::Flush(flush)) => end(flush.run()),
        Some(Command::Release(release)) => end(release.run()),
    }
}

/// Does `work` that asks a switch.
fn block_on<T>(client: &Client, work: impl Future<Output = Result<T, client::Error>>) -> Result<T, client::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| client.broken(e))?.block_on(work)
}

/// Says what there is to say, and how it ended.
fn end(done: Result<String, CliError>) -> ExitCode {
    match done {
        Ok(text) => say(&text),
        Err(error) => complain(&error),
    }
}

/// Prints `text`. A reader who has read enough and gone is no error.
fn say(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            warn(format_args!("cannot write: {e}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Prints why it was not done, and what can be done about it.
fn complain(error: &CliError) -> ExitCode {
    match error {
        // Each line names its file already.
        CliError::Wrong(errors) => warn_plainly(errors),
        _ => warn(error),
    }
    match error {
        CliError::Switch(client::Error::NoSwitch { .. }) => {
            warn("start one with `vifswitch run`, or name the socket of one that runs with `--socket PATH`");
            ExitCode::from(3)
        }
        CliError::Wrong(_) | CliError::Usage(_) => ExitCode::from(2),
        CliError::Switch(_) | CliError::Output(_) => ExitCode::FAILURE,
    }
}

fn warn(text: impl Display) {
    warn_plainly(format_args!("vifswitch: {text}"));
}

fn warn_plainly(text: impl Display) {
    // If standard error is closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }
}
