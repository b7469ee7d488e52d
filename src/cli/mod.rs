//! Command-line interface: parses arguments, runs the command, and sets the exit code. Exit codes are stable:
//! 0 done, 1 refused or failed, 2 usage or configuration error, 3 no switch listens at the socket.

#![forbid(unsafe_code)]

mod audit;
mod bugreport;
mod change;
mod cni;
mod contained;
mod doctor;
mod events;
mod generate;
mod history;
mod init;
mod keys;
mod libvirt_hook;
mod log;
mod show;
mod table;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::control::api::client::{self, Client};
use crate::control::config::ConfigErrors;
use crate::control::log_settings::LogFormat;
use crate::control::state::Precedence;
use crate::daemon;

/// Default path of the API socket.
pub const SOCKET: &str = "/run/vifswitch/api.sock";

/// A poll-mode userspace Ethernet switch: connects the interfaces of VMs and containers to networks
#[derive(Debug, Parser)]
#[command(name = "vifswitch", version, after_help = exit_codes())]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

/// Exit codes of all commands.
const EXIT_CODES: [(u8, &str); 4] = [
    (0, "done"),
    (1, "refused or failed"),
    (2, "usage or configuration error"),
    (3, "no switch listens at the socket"),
];

fn exit_codes() -> String {
    let codes = EXIT_CODES.map(|(code, meaning)| format!("{code} {meaning}"));
    format!("Exit codes: {}.", codes.join(", "))
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the switch in the foreground
    Run {
        /// Configuration file; without it, the switch resumes from the stored state
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// State file; overrides `state` in `[switch]`
        #[arg(long, value_name = "FILE")]
        state: Option<PathBuf>,
        /// Replace the stored state by the configuration file, instead of merging both
        #[arg(long, requires = "config")]
        replace: bool,
        /// Format of the log: text, logfmt or json [default: VIFSWITCH_LOG_FORMAT, or text]
        #[arg(long, value_name = "FORMAT")]
        log_format: Option<LogFormat>,
    },
    /// Check a configuration, whether this host can run it, and what a start would change in the stored state; changes
    /// nothing
    Check {
        /// Configuration file
        #[arg(value_name = "FILE")]
        config: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write a commented configuration from what this host has; never overwrites a file
    Init(init::Init),
    /// Report which device kinds netdevs support, and why no better mode; changes nothing
    Doctor(doctor::Doctor),
    /// Print the changes that a configuration would make; changes nothing
    Diff(change::Diff),
    /// Apply a configuration to a running switch, all or nothing
    Apply(change::Apply),
    /// Keep the changes made by `apply --confirm`
    Confirm(change::Confirm),
    /// List the last configurations, with authors and differences
    History(history::History),
    /// Restore an earlier configuration
    Rollback(history::Rollback),
    /// Attach a port to a VM, after its existing ports
    Attach(change::Attach),
    /// Detach a port; its siblings keep their order
    Detach(change::Detach),
    /// Change keys of a port
    Set(change::Set),
    /// Show the state of a running switch
    Show(show::Show),
    /// Print events, one per line
    Events(events::Events),
    /// Flush dynamic FDB entries that match all given filters
    Flush(change::Flush),
    /// Release a port from loop or storm quarantine, and end MAC dampening of its VM
    Release(change::Release),
    /// Show or set the level of the log
    Log(log::Log),
    /// Attach and delete the ports of a libvirt domain: libvirt calls it as a hook, or as a script of an interface
    LibvirtHook(libvirt_hook::LibvirtHook),
    /// Write an archive for a fault report: configuration without secrets, state, events and what the host has
    Bugreport(bugreport::Bugreport),
    /// Run as a CNI plugin, by which container runtimes attach containers; they execute the binary without arguments
    Cni,
    /// Print completions of commands and options for a shell
    Completions(generate::Completions),
    /// Print a man page, or write those of all commands
    Man(generate::Man),
}

/// Connection to the switch and output format.
#[derive(Debug, Args)]
struct Connection {
    /// Print JSON with exact numbers
    #[arg(long)]
    json: bool,
    /// Path of the switch's API socket
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
}

/// Error of a command.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// The switch refused the request or could not be reached.
    #[error(transparent)]
    Switch(#[from] client::Error),
    /// The given configuration is invalid.
    #[error(transparent)]
    Wrong(#[from] ConfigErrors),
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// The output cannot be written.
    #[error("cannot write: {0}")]
    Output(io::Error),
}

/// Keys of a network configuration that the CNI plugin knows, for tests of the documentation.
pub const fn cni_keys() -> &'static [&'static str] {
    cni::KEYS
}

/// Commands and arguments, for shell completion and tests of the documentation.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    if let Some(code) = libvirt_hook::called_as(&std::env::args_os().collect::<Vec<_>>()) {
        return code;
    }
    // A container runtime executes the binary without arguments.
    if std::env::var_os(cni::COMMAND).is_some() && std::env::args_os().len() <= 1 {
        return cni::run();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Exit code unaffected: help and usage may be written to a closed pipe.
            let _ = e.print();
            return u8::try_from(e.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    match cli.command {
        None => say(&command().render_help().to_string()),
        Some(Command::Run { config, state, replace, log_format }) => {
            let precedence = if replace { Precedence::Replace } else { Precedence::Merge };
            daemon::run(config, state, precedence, log_format)
        }
        Some(Command::Check { config, json }) => daemon::check(&config, json),
        Some(Command::Init(init)) => end(init.run()),
        Some(Command::Doctor(doctor)) => doctor.run(),
        Some(Command::Diff(diff)) => end(diff.run()),
        Some(Command::Apply(apply)) => end(apply.run()),
        Some(Command::Confirm(confirm)) => end(confirm.run()),
        Some(Command::History(history)) => end(history.run()),
        Some(Command::Rollback(rollback)) => end(rollback.run()),
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
        Some(Command::Log(log)) => end(log.run()),
        Some(Command::LibvirtHook(hook)) => hook.run(),
        Some(Command::Bugreport(bugreport)) => end(bugreport.run()),
        Some(Command::Cni) => cni::run(),
        Some(Command::Completions(completions)) => end(completions.run()),
        Some(Command::Man(man)) => end(man.run()),
    }
}

/// Runs a request to the switch on a single-threaded runtime.
fn block_on<T>(client: &Client, work: impl Future<Output = Result<T, client::Error>>) -> Result<T, client::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| client.broken(e))?.block_on(work)
}

/// Prints the result or the error; returns the exit code.
fn end(done: Result<String, CliError>) -> ExitCode {
    match done {
        Ok(text) => say(&text),
        Err(error) => complain(&error),
    }
}

/// Prints `text`. A closed pipe (`| head`) is not an error.
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

/// Prints an error, and its remedy if there is one; returns the exit code.
fn complain(error: &CliError) -> ExitCode {
    match error {
        // Each line already names its file.
        CliError::Wrong(errors) => warn_plainly(errors),
        _ => warn(error),
    }
    match error {
        CliError::Switch(client::Error::NoSwitch { .. }) => {
            warn("start one with `vifswitch run`, or name the socket of a running switch with `--socket PATH`");
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
    // Standard error may be closed.
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
