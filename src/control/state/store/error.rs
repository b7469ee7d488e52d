//! Errors of the store, with remedies.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// An error of the store. The request changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be created or used.
    #[error("{}: cannot create or use this directory: {why}; the state file needs a directory that the switch may write to", path.display())]
    Directory {
        /// Its path.
        path: PathBuf,
        /// Error of the system.
        why: io::Error,
    },
    /// The file cannot be created or examined.
    #[error("{}: cannot create or examine this file: {why}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Error of the system.
        why: io::Error,
    },
    /// The disk does not answer.
    #[error("{}: the disk does not answer within {seconds} s; check its file system", path.display())]
    Hangs {
        /// Its path.
        path: PathBuf,
        /// Duration of the wait.
        seconds: u64,
    },
    /// Another process has the file open.
    #[error("{}: in use by another process: a second switch, or a tool that has it open; give each switch its own state file", path.display())]
    InUse {
        /// Its path.
        path: PathBuf,
    },
    /// Missing permission to read or write.
    #[error("{}: cannot be opened or written; make the file, its directory and their file system writable for the switch", path.display())]
    ReadOnly {
        /// Its path.
        path: PathBuf,
    },
    /// The disk is full.
    #[error("{}: no space left on its file system; nothing was stored, free some space and retry", path.display())]
    Full {
        /// Its path.
        path: PathBuf,
    },
    /// The remaining space is reserved for the desired state.
    #[error("{}: less than {} MiB left on its file system, which are reserved for changes; free some space to have stations saved", path.display(), reserve >> 20)]
    Scarce {
        /// Its path.
        path: PathBuf,
        /// Minimum free bytes.
        reserve: u64,
    },
    /// The file is corrupt.
    #[error("{}: corrupt: {why}; to start without it, move it away, together with {}-wal if that exists", path.display(), path.display())]
    Corrupt {
        /// Its path.
        path: PathBuf,
        /// Kind of damage.
        why: String,
    },
    /// The file belongs to another program.
    #[error("{}: not a state file of vifswitch but {what}; move it away, or use another state file", path.display())]
    Foreign {
        /// Its path.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// The file was moved away without its journal, which would be applied to a new file.
    #[error("{}: journal of a state file that no longer exists; put {} back, or move the journal away too", journal.display(), path.display())]
    LeftBehind {
        /// Its path.
        path: PathBuf,
        /// The remaining file.
        journal: PathBuf,
    },
    /// The file has a later format.
    #[error("{}: written by a later version of vifswitch (format {found}; this version reads up to {known}); run that version, or move the file away", path.display())]
    Newer {
        /// Its path.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// Latest supported format.
        known: i64,
    },
    /// Invalid time.
    #[error("{text:?} is not a time; write it like 2026-01-31T12:00:00.000Z or 2026-01-31T14:00:00+02:00")]
    NotATime {
        /// The text.
        text: String,
    },
    /// Other database error.
    #[error("{}: {why}", path.display())]
    Failed {
        /// Its path.
        path: PathBuf,
        /// Error of the database.
        why: rusqlite::Error,
    },
    /// Creating the thread failed.
    #[error("cannot start the thread of the state store: {0}")]
    Thread(io::Error),
    /// The thread has ended.
    #[error("the state store is closed")]
    Closed,
}

impl StoreError {
    /// The same for the original of a copied file.
    pub(super) fn at(self, original: &Path) -> StoreError {
        let path = original.to_owned();
        match self {
            StoreError::Corrupt { why, .. } => StoreError::Corrupt { path, why },
            StoreError::Foreign { what, .. } => StoreError::Foreign { path, what },
            StoreError::Newer { found, known, .. } => StoreError::Newer { path, found, known },
            StoreError::Failed { why, .. } => StoreError::Failed { path, why },
            other => other,
        }
    }

    /// Whether the file must be reopened: further requests would fail as well.
    pub(super) fn is_of_the_open_file(&self) -> bool {
        matches!(self, StoreError::ReadOnly { .. } | StoreError::Failed { .. } | StoreError::Corrupt { .. })
    }

    /// From a database error for the file at `path`.
    pub(super) fn from_sqlite(path: &Path, why: rusqlite::Error) -> StoreError {
        let path = path.to_owned();
        match why.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::InUse { path },
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
                StoreError::ReadOnly { path }
            }
            Some(ErrorCode::DiskFull) => StoreError::Full { path },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                StoreError::Corrupt { path, why: why.to_string() }
            }
            _ => StoreError::Failed { path, why },
        }
    }
}
