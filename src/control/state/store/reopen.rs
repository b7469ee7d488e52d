//! The store's open file: reopened after errors, recreated when gone.
//!
//! A disk may be full, hang, or disappear and return. An error that may concern the open file therefore closes it, and
//! the next request reopens it. Someone may move the file or its directory, and writes to a file without a name are
//! lost; so each request checks that the path still leads to the open file.
//!
//! A recreated or reopened file first gets the desired state, so that the next start has all of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::database::Database;
use super::entities::Rows;
use super::{DesiredConfig, DesiredState, HistoryRow, Parts, StoreError, StoredState};
use crate::control::config::Config;
use crate::control::state::events::Event;

/// The file at a path, open if possible.
#[derive(Debug)]
pub struct StoreHandle {
    path: PathBuf,
    open: Option<Open>,
    /// The desired state last stored; none for a new file.
    desired: Option<StoredState>,
    /// The configuration of which its rows are, without unknown parts; `None` if that is not known.
    config: Option<Config>,
    /// The generations that the file is to have; `None`: those that it has.
    history: Option<Vec<HistoryRow>>,
}

#[derive(Debug)]
struct Open {
    database: Database,
    /// Device and inode.
    file: Option<(u64, u64)>,
}

impl StoreHandle {
    /// Opens the file at `path`, or creates it with `first`, and reads the desired state.
    pub fn open(
        path: PathBuf,
        first: Option<&DesiredState>,
    ) -> Result<(StoreHandle, Option<DesiredState>), StoreError> {
        let (database, desired) = Database::open(&path, first)?;
        let open = Some(Open { database, file: identity(&path) });
        let stored = desired.clone().map(StoredState::of);
        Ok((StoreHandle { path, open, desired: stored, config: None, history: None }, desired))
    }

    /// Closes the file. Versions that know no rows can read it then.
    pub fn close(self) {
        let Some(Open { mut database, .. }) = self.open else { return };
        if let Err(why) = database.store_as_whole() {
            warn!("only this version of vifswitch and later ones can read the state: {why}");
        }
    }

    /// From the next commit on, the file has these generations.
    pub fn set_history(&mut self, rows: Vec<HistoryRow>) {
        if let Some(open) = &mut self.open {
            open.database.set_history(rows.clone());
        }
        self.history = Some(rows);
    }

    /// Stores a desired state and events durably, all or nothing. `config`: the configuration in its rows, if known.
    pub fn commit(&mut self, desired: StoredState, config: Option<Config>, events: &[Event]) -> Result<(), StoreError> {
        self.work(|database| database.commit(&desired, events))?;
        (self.desired, self.config) = (Some(desired), config);
        Ok(())
    }

    /// The same, with the configuration as it is in force.
    pub fn commit_change(&mut self, desired: DesiredConfig, events: &[Event]) -> Result<(), StoreError> {
        let DesiredConfig { last_applied, config, unknown, orphans, lifetimes, generation } = desired;
        let before = self.config.as_ref().zip(self.desired.as_ref().map(|desired| &desired.rows));
        let rows = Rows::of_config(&config, &unknown, before);
        let config = unknown.is_empty().then_some(config);
        self.commit(StoredState { last_applied, rows, orphans, lifetimes, generation }, config, events)
    }

    /// Stores parts of the desired state and events durably, all or nothing.
    pub fn append_events(&mut self, parts: Parts, events: &[Event]) -> Result<(), StoreError> {
        self.work(|database| database.append_events(&parts, events))?;
        if let Some(desired) = &mut self.desired {
            let Parts { orphans, lifetimes, generation } = parts;
            desired.orphans = orphans.unwrap_or_else(|| std::mem::take(&mut desired.orphans));
            desired.lifetimes = lifetimes.unwrap_or_else(|| std::mem::take(&mut desired.lifetimes));
            desired.generation = generation.unwrap_or(desired.generation);
        }
        Ok(())
    }

    /// The stored configuration is this one.
    pub fn set_config(&mut self, config: Config) {
        self.config = Some(config);
    }

    /// Runs an operation on the open file.
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
            warn!("{:?} no longer exists; creating it again with the current state", self.path);
            // First: its old log is removed with it.
            self.open = None;
        }
        if self.open.is_none() {
            let wanted = self.desired.as_ref().map(StoredState::desired);
            let (mut database, found) = Database::open(&self.path, wanted.as_ref())?;
            if let Some(rows) = &self.history {
                database.set_history(rows.clone());
            }
            if let Some(desired) = &self.desired
                && found != wanted
            {
                database.commit(desired, &[])?;
            }
            self.open = Some(Open { database, file: identity(&self.path) });
        }
        // Open by now.
        self.open.as_mut().map(|open| &mut open.database).ok_or(StoreError::Closed)
    }
}

/// Identity of the file at a path. Does not open it: closing would release the lock.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}
