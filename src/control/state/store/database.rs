//! The open database of the store's thread.
//!
//! **The journal is a write-ahead log, with `synchronous = FULL`.** A commit appends to the log and syncs once, while a
//! rollback journal syncs three or four times; changes are answered that much earlier. A power cut loses no answered
//! commit: the log is on the disk before the answer, and so is its directory entry, because the database syncs the
//! directory when it creates the log. `NORMAL` would promise nothing.
//!
//! **The lock is the database's own**, held while the file is open (`locking_mode = EXCLUSIVE`). The kernel releases it
//! when the process ends in any way, but also when this process closes any other descriptor of the file: nothing else
//! may open it.

mod events;
mod stations;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior};
use serde_json::Value;

pub use self::events::StoredPage;
use self::events::{append, micros, prune, renew_ids};
use self::stations::StationSave;
use super::entities::{self, Form, Rows};
use super::error::StoreError;
use super::rows::{put_parts, text, version};
use super::{DesiredState, HistoryRow, Parts, StoredState, file, history, renamed, rows};
use crate::control::state::events::Event;

/// Bounds of the history; the newest events are kept.
#[derive(Debug, Clone, Copy)]
pub struct History {
    /// Maximum events.
    pub events: i64,
    /// Maximum bytes; one event is kept whatever its size.
    pub bytes: i64,
}

impl Default for History {
    fn default() -> History {
        History { events: 10_000, bytes: 32 << 20 }
    }
}

/// Size in bytes to which a longer log is truncated.
const LOG_LIMIT: i64 = 16 << 20;

/// Timeout of the lock: enough for a tool that reads, not for a running switch.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// Tables that are not checked at start.
pub const TABLES: [&str; 7] =
    ["events", "places_0", "stations_0", "station_blocks_0", "places_1", "stations_1", "station_blocks_1"];

/// The open file.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    connection: Connection,
    history: History,
    saving: Option<StationSave>,
    /// How the file has the configuration.
    form: Form,
    /// The configuration that it has; `None` if it has none.
    config: Option<Rows>,
    /// The table of entities has these rows.
    has_rows: bool,
    /// The configuration file last applied, as this has stored it.
    last_applied: Option<Arc<Value>>,
    /// The generations to store with the next commit.
    generations: Option<Vec<HistoryRow>>,
    /// Those that this has stored; `None`: none yet.
    written: Option<Vec<HistoryRow>>,
}

impl Database {
    /// Opens the file at `path`, or creates it with `first`, and reads the desired state.
    pub fn open(path: &Path, first: Option<&DesiredState>) -> Result<(Database, Option<DesiredState>), StoreError> {
        Database::open_with(path, first, History::default())
    }

    /// The same, with other bounds of the history.
    pub fn open_with(
        path: &Path,
        first: Option<&DesiredState>,
        history: History,
    ) -> Result<(Database, Option<DesiredState>), StoreError> {
        let path = file::provide(path, first)?;
        let (connection, form) = connect(&path)?;
        let mut database = Database {
            path,
            connection,
            history,
            saving: None,
            form,
            config: None,
            has_rows: false,
            last_applied: None,
            generations: None,
            written: None,
        };
        let desired = database.desired()?;
        database.config = desired.as_ref().map(|desired| Rows::of(&desired.config));
        Ok((database, desired))
    }

    fn to_store_error(&self) -> impl Fn(rusqlite::Error) -> StoreError {
        |why| StoreError::from_sqlite(&self.path, why)
    }

    /// A stored part.
    fn part(&self, part: &str) -> Result<Option<Value>, StoreError> {
        let text: Option<String> = self
            .connection
            .query_row("SELECT json FROM desired WHERE part = ?1", [part], |row| row.get(0))
            .optional()
            .map_err(self.to_store_error())?;
        let parse = |text: String| serde_json::from_str(&text).map_err(|why| self.corrupt(format!("{part}: {why}")));
        let mut value = text.map(parse).transpose()?;
        match (part, &mut value) {
            (rows::LAST_APPLIED | rows::CONFIG, Some(value)) => renamed::config(value),
            ("loops", Some(value)) => renamed::loops(value),
            _ => {}
        }
        Ok(value)
    }

    /// The configuration, in the form that it has.
    fn stored_config(&self) -> Result<Option<Value>, StoreError> {
        if self.form == Form::Whole {
            return self.part(rows::CONFIG);
        }
        let stored = entities::read(&self.connection).map_err(self.to_store_error())?;
        let mut config = stored.transpose().map_err(|why| self.corrupt(format!("entities: {why}")))?;
        config.iter_mut().for_each(renamed::config);
        Ok(config)
    }

    fn desired(&self) -> Result<Option<DesiredState>, StoreError> {
        let read = |part| self.part(part);
        match (read(rows::LAST_APPLIED)?, self.stored_config()?) {
            (Some(last_applied), Some(config)) => {
                // Earlier versions had none.
                let orphans = read(rows::ORPHANS)?.unwrap_or_default();
                let lifetimes = read(rows::LIFETIMES)?.unwrap_or_default();
                let stored = read(rows::GENERATION)?.and_then(|number| number.as_u64()).unwrap_or_default();
                // Another version may have stored another configuration, and not its generation.
                let by = read(rows::WRITTEN_BY)?.unwrap_or_default();
                let is_ours = by == version()
                    || history::is_recorded(&self.connection, stored, &by).map_err(self.to_store_error())?;
                let generation = if is_ours { stored } else { stored.saturating_add(1) };
                Ok(Some(DesiredState { last_applied, config, orphans, lifetimes, generation }))
            }
            (None, None) => Ok(None),
            _ => Err(self.corrupt("half of the desired state is missing".into())),
        }
    }

    fn corrupt(&self, why: String) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), why }
    }

    /// Stores a desired state and events durably, all or nothing.
    pub fn commit(&mut self, desired: &StoredState, events: &[Event]) -> Result<(), StoreError> {
        let StoredState { last_applied, rows, orphans, lifetimes, generation } = desired;
        let (generation, version) = ((*generation).into(), version());
        let mut parts = vec![
            (rows::ORPHANS, orphans),
            (rows::LIFETIMES, lifetimes),
            (rows::GENERATION, &generation),
            (rows::WRITTEN_BY, &version),
        ];
        // It may be long, and rarely changes.
        if !self.last_applied.as_ref().is_some_and(|stored| Arc::ptr_eq(stored, last_applied)) {
            parts.push((rows::LAST_APPLIED, last_applied));
        }
        self.put(&parts, Some(rows), events, true)?;
        self.last_applied = Some(last_applied.clone());
        Ok(())
    }

    /// Stores the configuration as a whole, as versions read it that know no rows.
    pub fn store_as_whole(&mut self) -> Result<(), StoreError> {
        let Some(rows) = self.config.as_ref().filter(|_| self.form == Form::Rows) else { return Ok(()) };
        let config = rows.to_value().map_err(|why| self.corrupt(format!("entities: {why}")))?;
        self.transact(|transaction| {
            put_parts(transaction, &[(rows::CONFIG, &config)])?;
            entities::switch(transaction, Form::Whole)
        })?;
        self.form = Form::Whole;
        Ok(())
    }

    /// Stores parts of a desired state and events durably, all or nothing.
    pub fn append_events(&mut self, parts: &Parts, events: &[Event]) -> Result<(), StoreError> {
        let Parts { orphans, lifetimes, generation } = parts;
        let generation = generation.map(Value::from);
        let parts = [
            (rows::ORPHANS, orphans.as_ref()),
            (rows::LIFETIMES, lifetimes.as_ref()),
            (rows::GENERATION, generation.as_ref()),
        ];
        let parts: Vec<_> = parts.into_iter().filter_map(|(part, value)| Some((part, value?))).collect();
        self.put(&parts, None, events, true)
    }

    /// Stores the state of loop mitigation durably.
    pub fn put_loops(&mut self, loops: &Value) -> Result<(), StoreError> {
        self.put(&[("loops", loops)], None, &[], false)
    }

    /// The stored state of loop mitigation; null without.
    pub fn loops(&self) -> Result<Value, StoreError> {
        Ok(self.part("loops")?.unwrap_or_default())
    }

    /// The recorded generations, ascending.
    pub fn history(&self) -> Result<Vec<HistoryRow>, StoreError> {
        history::read(&self.connection).map_err(self.to_store_error())
    }

    /// From the next commit on, the file has these generations.
    pub fn set_history(&mut self, rows: Vec<HistoryRow>) {
        self.generations = Some(rows);
    }

    fn put(
        &mut self,
        parts: &[(&str, &Value)],
        config: Option<&Rows>,
        events: &[Event],
        with_history: bool,
    ) -> Result<(), StoreError> {
        let last = events.iter().map(|event| event.id).max().unwrap_or_default();
        let events =
            events.iter().map(|event| Ok((micros(&event.time)?, text(event)))).collect::<Result<Vec<_>, _>>()?;
        let bounds = self.history;
        let generations = if with_history { self.generations.take() } else { None };
        let written = self.written.take();
        // One that has not changed stays in its form.
        let config = config.filter(|rows| self.config.as_ref() != Some(rows));
        let (form, rows) = (self.form, self.config.take());
        let known = rows.as_ref().filter(|_| self.has_rows);
        let result = self.transact(|transaction| {
            put_parts(transaction, parts)?;
            if let Some(config) = config {
                entities::write(transaction, config, known)?;
                if form != Form::Rows {
                    entities::switch(transaction, Form::Rows)?;
                }
            }
            if let Some(rows) = &generations {
                history::write(transaction, rows, written.as_deref())?;
            }
            if !events.is_empty() {
                append(transaction, &events)?;
                prune(transaction, bounds)?;
                renew_ids(transaction, last)?;
            }
            Ok(())
        });
        self.written = match &result {
            Ok(()) => generations.or(written),
            Err(_) => written,
        };
        self.config = match (&result, config) {
            (Ok(()), Some(config)) => {
                (self.form, self.has_rows) = (Form::Rows, true);
                Some(config.clone())
            }
            _ => rows,
        };
        result
    }

    /// Checks a table for damage.
    pub fn verify(&self, table: &str) -> Result<(), StoreError> {
        // A file of an earlier version has no blocks.
        if !self.connection.table_exists(None, table).map_err(self.to_store_error())? {
            return Ok(());
        }
        quick_check(&self.connection, &self.path, table)
    }

    /// Number of rows written since the file was opened.
    #[cfg(test)]
    pub fn written(&self) -> u64 {
        self.connection.total_changes()
    }

    /// Fails when an event of this request is stored, until the file is opened again.
    #[cfg(test)]
    pub fn fail_once_at(&self, request_id: &str) -> Result<(), StoreError> {
        let trigger = format!(
            "CREATE TEMP TRIGGER fails BEFORE INSERT ON main.events WHEN instr(NEW.json, '\"{request_id}\"') > 0
             BEGIN SELECT RAISE(ABORT, 'as the test wants'); END"
        );
        self.connection
            .execute_batch(&format!("DROP TRIGGER IF EXISTS fails; {trigger}"))
            .map_err(self.to_store_error())
    }

    /// A setting of the database as text.
    #[cfg(test)]
    pub fn pragma(&self, name: &str) -> String {
        let read = |row: &rusqlite::Row<'_>| row.get::<_, rusqlite::types::Value>(0);
        match self.connection.pragma_query_value(None, name, read).unwrap() {
            rusqlite::types::Value::Integer(number) => number.to_string(),
            rusqlite::types::Value::Text(text) => text,
            other => format!("{other:?}"),
        }
    }

    /// Runs a transaction: all or, on an error, nothing.
    fn transact(&mut self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>) -> Result<(), StoreError> {
        let all = || {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            work(&transaction)?;
            transaction.commit()
        };
        all().map_err(|why| StoreError::from_sqlite(&self.path, why))
    }
}

/// Opens the file exclusively, and checks it. Returns the form of the configuration too.
fn connect(path: &Path) -> Result<(Connection, Form), StoreError> {
    let error = |why| StoreError::from_sqlite(path, why);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags).map_err(error)?;
    if database.is_readonly("main").map_err(error)? {
        return Err(StoreError::ReadOnly { path: path.to_owned() });
    }
    database.busy_timeout(LOCK_TIMEOUT).map_err(error)?;
    // Before any read: then the log's index is in our memory, not in a third file.
    database.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(error)?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true).map_err(error)?;
    database.pragma_update(None, "cell_size_check", true).map_err(error)?;
    database.pragma_update(None, "synchronous", "FULL").map_err(error)?;
    let form = file::recognise(&database, path)?;
    let journal_mode: String =
        database.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)).map_err(error)?;
    if journal_mode != "wal" {
        return Err(StoreError::Corrupt {
            path: path.to_owned(),
            why: format!("its journal mode is {journal_mode}, not wal"),
        });
    }
    database.pragma_update_and_check(None, "journal_size_limit", LOG_LIMIT, |_| Ok(())).map_err(error)?;
    // Damage of the desired state must show now, not after the first change. The other tables may be large.
    quick_check(&database, path, "desired")?;
    if form == Form::Rows {
        quick_check(&database, path, "entities")?;
    }
    Ok((database, form))
}

/// Checks a table for damage.
fn quick_check(database: &Connection, path: &Path, table: &str) -> Result<(), StoreError> {
    let found: rusqlite::Result<String> =
        database.query_row(&format!("PRAGMA quick_check('{table}')"), [], |row| row.get(0));
    match found.map_err(|why| StoreError::from_sqlite(path, why))? {
        ok if ok == "ok" => Ok(()),
        why => Err(StoreError::Corrupt { path: path.to_owned(), why }),
    }
}
