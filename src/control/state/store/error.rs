//! Why the store could not do what it was asked to, and what would help.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// Why the store could not do what it was asked to. Nothing of the request has been kept then.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its directory cannot be made or used.
    #[error("{}: cannot make or use this directory: {why}; the state needs one that the switch may write to", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        why: io::Error,
    },
    /// The file cannot be made, or looked at.
    #[error("{}: cannot make or look at this file: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: io::Error,
    },
    /// Its disk does not answer.
    #[error("{}: the disk does not answer within {seconds} s; check the file system that it is on", path.display())]
    Hangs {
        /// The file.
        path: PathBuf,
        /// Duration of the wait.
        seconds: u64,
    },
    /// Somebody else has it open.
    #[error("{}: in use by another process: a second switch, or a tool that has it open; each switch needs a state file of its own", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It may be read, not written, or neither.
    #[error("{}: cannot be opened or written to; the file, its directory and their file system must let the switch write", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// There is no room left for it.
    #[error("{}: no space left on its file system; nothing has been kept, make room and try again", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// What room is left is for the desired state.
    #[error("{}: less than {} MiB left on its file system, which are for changes; stations are saved when there is more", path.display(), reserve >> 20)]
    Scarce {
        /// The file.
        path: PathBuf,
        /// How many bytes there should be at least.
        reserve: u64,
    },
    /// What is in it is not what has been written.
    #[error("{}: damaged: {why}; move it away together with {}-wal, if that is there, and the switch begins anew", path.display(), path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// In which way.
        why: String,
    },
    /// It is somebody else's.
    #[error("{}: not a state file of vifswitch but {what}; move it away, or keep the state elsewhere", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The file was moved away, and its journal stayed. It would be taken for that of a new file.
    #[error("{}: left behind by a state file that is not there any more; put {} back or move this away too", journal.display(), path.display())]
    LeftBehind {
        /// The file.
        path: PathBuf,
        /// What is left of it.
        journal: PathBuf,
    },
    /// A later version of the switch has made it.
    #[error("{}: of a later version of vifswitch (its format is {found}, the latest known here is {known}); run that version, or move the file away", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The latest that we know.
        known: i64,
    },
    /// A text is not a point in time.
    #[error("{text:?} is not a time; one looks like 2026-01-31T12:00:00.000Z or 2026-01-31T14:00:00+02:00")]
    NotATime {
        /// The text.
        text: String,
    },
    /// Anything else.
    #[error("{}: {why}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What the database says.
        why: rusqlite::Error,
    },
    /// There can be no thread for it.
    #[error("the store cannot have a thread: {0}")]
    Thread(io::Error),
    /// The thread of the store is gone.
    #[error("the store has been closed")]
    Closed,
}

impl StoreError {
    /// The same, said of a file of which another one is a copy.
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

    /// Whether another request would end the same as long as the file stays open: it has to be opened again.
    pub(super) fn is_of_the_open_file(&self) -> bool {
        matches!(self, StoreError::ReadOnly { .. } | StoreError::Failed { .. } | StoreError::Corrupt { .. })
    }

    /// From what the database says about the file at `path`.
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
