//! A look at a state that another process may have open, or that may not be written to.
//!
//! The file and its log are copied, and the copy is opened. So nothing is locked, made or changed where they are. The log
//! has all that is not in the file yet, and the database empties it into the file before it begins it anew: as long as
//! it has not begun anew while both were copied, the copies belong together.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::database::Database;
use super::{DesiredState, StoreError, file};

/// Bytes of a log's head, which are others when it begins anew.
const HEAD: usize = 32;

/// How often it is tried to copy both while the log does not begin anew.
const TRIES: usize = 10;

/// What the file at `path` says is wanted. Nothing is changed where it is.
pub fn peek(path: &Path) -> Result<Option<DesiredState>, StoreError> {
    let failed = |why| StoreError::File { path: path.to_owned(), why };
    // Reading a FIFO waits for a writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(StoreError::Foreign { path: path.to_owned(), what: file::NO_FILE });
    }
    let directory = tempfile::tempdir().or_else(|_| tempfile::tempdir_in("/dev/shm")).map_err(failed)?;
    let copy = directory.path().join("state.db");
    copy_both(path, &copy).map_err(failed)?;
    // What is wrong with the copy is wrong with the file.
    Ok(Database::open(&copy, None).map_err(|why| why.at(path))?.1)
}

fn copy_both(path: &Path, copy: &Path) -> io::Result<()> {
    let (log, log_copy) = (file::beside(path, "-wal"), file::beside(copy, "-wal"));
    for _ in 0..TRIES {
        let before = head(&log)?;
        fs::copy(path, copy)?;
        match fs::copy(&log, &log_copy) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                // None from the try before.
                let _ = fs::remove_file(&log_copy);
            }
            copied => drop(copied?),
        }
        if head(&log)? == before && head(&log_copy)? == before {
            return Ok(());
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "it is being written to all the time"))
}

/// The head of a log; empty without one.
fn head(log: &PathBuf) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    match File::open(log) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => {}
        file => drop(file?.take(HEAD as u64).read_to_end(&mut head)?),
    }
    Ok(head)
}
