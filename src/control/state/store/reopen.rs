//! The file as the thread of the store holds it: opened again when it was given up, and made again when it is gone.
//!
//! A disk may be full, hang or be taken away and come back. So an error that may be one of the open file closes it, and
//! the next request opens it again. Somebody may move the file away, or its directory: what is written into a file that
//! has no name any more is lost. So each request looks whether the path still leads to the open file.
//!
//! A file that is made or opened again may not have what is wanted. It gets that first: otherwise the next start would
//! begin with less.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tracing::warn;

use super::database::Database;
use super::{DesiredState, StoreError};
use crate::control::state::events::Event;

/// The file at one path, open as far as it can be.
#[derive(Debug)]
pub struct StoreHandle {
    path: PathBuf,
    open: Option<Open>,
    /// What is wanted, as far as it was kept; nothing yet of a new file.
    desired: Option<DesiredState>,
}

#[derive(Debug)]
struct Open {
    database: Database,
    /// Device and inode.
    file: Option<(u64, u64)>,
}

impl StoreHandle {
    /// Opens the file at `path`, or creates it with `first`, and reads the desired state.
    pub fn open(path: PathBuf, first: Option<&DesiredState>) -> Result<StoreHandle, StoreError> {
        let (database, desired) = Database::open(&path, first)?;
        let open = Some(Open { database, file: identity(&path) });
        Ok(StoreHandle { path, open, desired })
    }

    /// What is wanted.
    pub fn desired(&self) -> Option<&DesiredState> {
        self.desired.as_ref()
    }

    /// Keeps a desired state and events: all or nothing, on the disk.
    pub fn commit(&mut self, desired: DesiredState, events: &[Event]) -> Result<(), StoreError> {
        self.work(|database| database.commit(&desired, events))?;
        self.desired = Some(desired);
        Ok(())
    }

    /// Stores orphans, if any are given, and events: all or nothing, on the disk.
    pub fn note(&mut self, orphans: Option<Value>, events: &[Event]) -> Result<(), StoreError> {
        self.work(|database| database.append_events(orphans.as_ref(), events))?;
        if let (Some(orphans), Some(desired)) = (orphans, &mut self.desired) {
            desired.orphans = orphans;
        }
        Ok(())
    }

    /// Does something with the open file.
    pub fn work<T>(&mut self, work: impl FnOnce(&mut Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let done = self.database().and_then(work);
        if done.as_ref().is_err_and(StoreError::is_of_the_open_file) {
            self.open = None;
        }
        done
    }

    fn database(&mut self) -> Result<&mut Database, StoreError> {
        if let Some(open) = &self.open
            && open.file.is_some()
            && open.file != identity(&self.path)
        {
            warn!("{} is not there any more, and is made anew", self.path.display());
            // Before: what is left of it beside it goes with it.
            self.open = None;
        }
        if self.open.is_none() {
            let (mut database, found) = Database::open(&self.path, self.desired.as_ref())?;
            if let Some(desired) = &self.desired
                && found.as_ref() != Some(desired)
            {
                database.commit(desired, &[])?;
            }
            self.open = Some(Open { database, file: identity(&self.path) });
        }
        // It has just been opened, if it was not open before.
        self.open.as_mut().map(|open| &mut open.database).ok_or(StoreError::Closed)
    }
}

/// Which file is at a path. Looking does not open it: that would give back its lock.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}
