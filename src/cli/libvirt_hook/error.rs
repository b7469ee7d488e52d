//! Errors of the hook: sentences for `virsh`, which prints them to whoever starts the domain.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::control::api::client;

/// Why the hook could not do what libvirt wants.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The domain's XML, its metadata or its interfaces do not say what to attach.
    #[error("{0}")]
    Domain(String),
    /// The switch does not listen.
    #[error("{0}; start it with `systemctl start vifswitch`")]
    NoSwitch(client::Error),
    /// The switch refused, or its answer makes no sense.
    #[error("{0}")]
    Switch(client::Error),
    /// Something did not answer in time.
    #[error("no end after {seconds} seconds; the switch at {} or the file system does not answer", socket.display())]
    Late {
        /// Socket of the switch.
        socket: PathBuf,
        /// The deadline.
        seconds: u64,
    },
    /// A file cannot be read or written.
    #[error("cannot {doing} {}: {cause}", path.display())]
    File {
        /// What was done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Error of the operating system.
        cause: io::Error,
    },
}

impl HookError {
    /// An error of a file.
    pub fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HookError {
        move |cause| HookError::File { doing, path: path.to_owned(), cause }
    }

    /// The exit code for libvirt, to which any but 0 is a failure.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(if matches!(self, HookError::NoSwitch(_)) { 3 } else { 1 })
    }
}

impl From<client::Error> for HookError {
    fn from(error: client::Error) -> HookError {
        match error {
            client::Error::NoSwitch { .. } => HookError::NoSwitch(error),
            _ => HookError::Switch(error),
        }
    }
}
