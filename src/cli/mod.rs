//! The command line: what the program can do, and how it ends. Exit codes are a contract:
//! 0 done, 1 the switch said no, 2 wrong usage or bad configuration, 3 no switch is listening.

#![forbid(unsafe_code)]

mod show;
mod table;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::control::client;
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
    },
    /// Say whether a configuration is right; touches nothing
    Check {
        /// The configuration file
        #[arg(value_name = "FILE")]
        config: PathBuf,
    },
    /// Show what a running switch is doing
    Show(show::Show),
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
        None => say(&Cli::command().render_help().to_string()),
        Some(Command::Run { config, state }) => daemon::run(config, state),
        Some(Command::Check { config }) => daemon::check(&config),
        Some(Command::Show(show)) => match show.run() {
            Ok(text) => say(&text),
            Err(e) => complain(&e),
        },
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

/// Prints why there is no answer, and what can be done about it.
fn complain(e: &client::Error) -> ExitCode {
    warn(e);
    if let client::Error::NoSwitch { .. } = e {
        warn("start one with `vifswitch run`, or name the socket of one that runs with `--socket PATH`");
        return ExitCode::from(3);
    }
    ExitCode::FAILURE
}

fn warn(text: impl Display) {
    // If standard error is closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "vifswitch: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
