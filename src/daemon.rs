//! The daemon: from a configuration to a running switch.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Runs the switch until it is told to stop.
pub fn run(_config: Option<PathBuf>) -> ExitCode {
    ExitCode::FAILURE
}

/// Says whether a configuration is right.
pub fn check(_path: &Path) -> ExitCode {
    ExitCode::FAILURE
}
