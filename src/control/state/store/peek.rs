//! Reads a state that another process may have open, or that is read-only.
//!
//! Copies file and log, and opens the copy: nothing is locked, created or changed at the original. The log has all that
//! is not in the file yet; the database checkpoints it into the file before it restarts the log. If the log was not
//! restarted while both were copied, the copies are consistent.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::database::Database;
use super::{DesiredState, StoreError, file};

/// Bytes of a log's header, which differ after a restart.
const HEAD: usize = 32;

/// Maximum attempts at copying both consistently.
const TRIES: usize = 10;

/// The desired state in the file at `path`. Changes nothing.
pub fn peek(path: &Path) -> Result<Option<DesiredState>, StoreError> {
    let failed = |why| StoreError::File { path: path.to_owned(), why };
    // Reading a FIFO waits for a writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(StoreError::Foreign { path: path.to_owned(), what: file::NOT_A_FILE });
    }
    let directory = tempfile::tempdir().or_else(|_| tempfile::tempdir_in("/dev/shm")).map_err(failed)?;
    let copy = directory.path().join("state.db");
    copy_both(path, &copy).map_err(failed)?;
    // Errors of the copy are those of the file.
    Ok(Database::open(&copy, None).map_err(|why| why.at(path))?.1)
}

fn copy_both(path: &Path, copy: &Path) -> io::Result<()> {
    let (log, log_copy) = (file::beside(path, "-wal"), file::beside(copy, "-wal"));
    for _ in 0..TRIES {
        let before = head(&log)?;
        fs::copy(path, copy)?;
        match fs::copy(&log, &log_copy) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                // Removes that of the attempt before.
                let _ = fs::remove_file(&log_copy);
            }
            copied => drop(copied?),
        }
        if head(&log)? == before && head(&log_copy)? == before {
            return Ok(());
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process keeps restarting its log"))
}

/// Header of a log; empty without one.
fn head(log: &PathBuf) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    match File::open(log) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => {}
        file => drop(file?.take(HEAD as u64).read_to_end(&mut head)?),
    }
    Ok(head)
}
