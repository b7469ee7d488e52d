//! The state file: desired state, events, learned stations, and the state of loop mitigation.
//!
//! An SQLite database with a thread of its own, which executes requests in order. What [`Store::commit`] has confirmed
//! survives `kill -9` and a power cut; see `database.rs`. Nothing else opens the file.
//!
//! A request is executed even if its reply is no longer awaited.

mod database;
mod entities;
mod error;
mod file;
mod history;
mod peek;
mod renamed;
mod reopen;
mod rows;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use serde_json::Value;
use tokio::sync::{Mutex, mpsc, oneshot};

use self::database::Database;
pub use self::database::StoredPage;
use self::entities::Rows;
pub use self::error::StoreError;
pub use self::history::HistoryRow;
pub use self::peek::peek;
use self::reopen::StoreHandle;
use crate::control::background;
use crate::control::config::{Config, UnknownParts};
use crate::control::state::events::Event;
use crate::time::Stamp;
use crate::wire::Mac;

/// Capacity of the request queue.
const QUEUE: usize = 64;

/// Stations per request when saving or reading them: bounds how long a commit waits behind one.
pub const CHUNK: usize = 10_000;

/// The desired state as raw configurations.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DesiredState {
    /// The configuration file last applied; null without a file.
    pub last_applied: Value,
    /// The desired configuration.
    pub config: Value,
    /// Netdevs to delete that may still exist; null without.
    pub orphans: Value,
    /// Namespaces with which ports end; null without.
    pub lifetimes: Value,
    /// Number of the configuration: each accepted change has a greater one.
    pub generation: u64,
}

/// The same with the configuration as it is in force.
#[derive(Debug, Clone)]
pub struct DesiredConfig {
    /// The configuration file last applied; null without a file.
    pub last_applied: Arc<Value>,
    /// The desired configuration.
    pub config: Config,
    /// Parts of the stored one that this version does not know.
    pub unknown: Arc<UnknownParts>,
    /// Netdevs to delete that may still exist; null without.
    pub orphans: Value,
    /// [`DesiredState::lifetimes`].
    pub lifetimes: Value,
    /// Number of the configuration.
    pub generation: u64,
}

/// The same as it is stored.
#[derive(Debug, Clone)]
struct StoredState {
    last_applied: Arc<Value>,
    rows: Rows,
    orphans: Value,
    lifetimes: Value,
    generation: u64,
}

impl StoredState {
    fn of(desired: DesiredState) -> StoredState {
        let DesiredState { last_applied, config, orphans, lifetimes, generation } = desired;
        StoredState { last_applied: last_applied.into(), rows: Rows::of(&config), orphans, lifetimes, generation }
    }

    /// The inverse.
    fn desired(&self) -> DesiredState {
        let StoredState { last_applied, rows, orphans, lifetimes, generation } = self;
        // All rows are texts of values.
        let config = rows.to_value().unwrap_or_default();
        let (last_applied, orphans, lifetimes) = (last_applied.as_ref().clone(), orphans.clone(), lifetimes.clone());
        DesiredState { last_applied, config, orphans, lifetimes, generation: *generation }
    }
}

/// Parts of a desired state that are stored without its configuration; those given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parts {
    /// [`DesiredState::orphans`].
    pub orphans: Option<Value>,
    /// [`DesiredState::lifetimes`].
    pub lifetimes: Option<Value>,
    /// [`DesiredState::generation`].
    pub generation: Option<u64>,
}

/// A port on a network, at which stations were learned.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoredPlace {
    /// The network.
    pub network_id: String,
    /// The port.
    pub port_id: String,
}

/// A learned station as stored over a restart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoredStation {
    /// Its port, which the stations of a page share.
    pub place: Arc<StoredPlace>,
    /// Its address.
    pub mac_address: Mac,
    /// Seconds since its last frame.
    pub age_seconds: u32,
}

/// An operation for the thread.
type Request = Box<dyn FnOnce(&mut StoreHandle) + Send>;

/// Handle of the store's thread, which has the file open. When dropped, the thread executes the remaining requests and
/// ends; [`close`](Store::close) waits for that.
#[derive(Debug)]
pub struct Store {
    requests: mpsc::Sender<Request>,
    /// Serialises saves of stations: each is several requests.
    saving: Mutex<()>,
    ended: oneshot::Receiver<()>,
}

impl Store {
    /// Opens the file at `path`, and returns its desired state; none for a new file. Creates a missing directory with
    /// mode 0750 and a missing file with 0640. Locks the file until the store is closed.
    pub async fn open(path: PathBuf) -> Result<(Store, Option<DesiredState>), StoreError> {
        Store::open_or_create(path, None, ()).await
    }

    /// Opens the file at `path`. A missing file is created with the desired state `first` before it gets its name, so
    /// that a kill leaves no file without one. `opening` is dropped once the file is open or opening has failed, even
    /// if the caller has stopped waiting.
    pub async fn open_or_create(
        path: PathBuf,
        first: Option<DesiredState>,
        opening: impl Send + 'static,
    ) -> Result<(Store, Option<DesiredState>), StoreError> {
        let (requests, mut received) = mpsc::channel::<Request>(QUEUE);
        let (opened, result) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let work = move || {
            let handle = StoreHandle::open(path, first.as_ref());
            drop(opening);
            match handle {
                Ok((mut handle, desired)) => {
                    // Without a receiver there are no requests either.
                    let _ = opened.send(Ok(desired));
                    while let Some(request) = received.blocking_recv() {
                        request(&mut handle);
                    }
                    handle.close();
                }
                Err(why) => drop(opened.send(Err(why))),
            }
            // The database is closed by now.
            drop(end);
        };
        thread::Builder::new().name("vifswitch-store".into()).spawn(work).map_err(StoreError::Thread)?;
        let desired = result.await.map_err(|_| StoreError::Closed)??;
        Ok((Store { requests, saving: Mutex::new(()), ended }, desired))
    }

    /// Executes the remaining requests and closes the file.
    pub async fn close(self) {
        drop(self.requests);
        // The thread drops its end.
        let _ = self.ended.await;
    }

    /// Stores a desired state and events durably, all or nothing.
    pub async fn commit(&self, desired: DesiredState, events: Vec<Event>) -> Result<(), StoreError> {
        self.request_handle(move |handle| handle.commit(StoredState::of(desired), None, &events)).await
    }

    /// Stores a desired state with these generations, and events, durably, all or nothing. Writes what differs from the
    /// state stored before.
    pub async fn commit_change(
        &self,
        desired: DesiredConfig,
        generations: Vec<HistoryRow>,
        events: Vec<Event>,
    ) -> Result<(), StoreError> {
        self.request_handle(move |handle| {
            handle.set_history(generations);
            handle.commit_change(desired, &events)
        })
        .await
    }

    /// Tells that the stored configuration is this one, without parts that this version does not know: the next change
    /// compares with it.
    pub async fn set_config(&self, config: Config) -> Result<(), StoreError> {
        self.request_handle(move |handle| {
            handle.set_config(config);
            Ok(())
        })
        .await
    }

    /// The recorded generations, ascending.
    pub async fn history(&self) -> Result<Vec<HistoryRow>, StoreError> {
        self.request(|database| database.history()).await
    }

    /// From the next commit on, the file has these generations.
    pub async fn set_history(&self, rows: Vec<HistoryRow>) -> Result<(), StoreError> {
        self.request_handle(move |handle| {
            handle.set_history(rows);
            Ok(())
        })
        .await
    }

    /// Stores events durably, all or nothing.
    pub async fn append_events(&self, events: Vec<Event>) -> Result<(), StoreError> {
        self.commit_parts(Parts::default(), events).await
    }

    /// Stores parts of the desired state and events durably, all or nothing.
    pub async fn commit_parts(&self, parts: Parts, events: Vec<Event>) -> Result<(), StoreError> {
        self.request_handle(move |handle| handle.append_events(parts, &events)).await
    }

    /// The newest `max` of the events at `since` (RFC 3339, any offset) or later, the oldest first.
    pub async fn events(&self, since: Option<String>, max: usize) -> Result<Vec<Event>, StoreError> {
        self.request(move |database| database.events(since.as_deref(), max)).await
    }

    /// The next events behind a row (the first is behind 0), a bounded number; with `after` those with a greater id.
    pub async fn events_page(&self, row: i64, after: Option<u64>) -> Result<StoredPage, StoreError> {
        self.request(move |database| database.events_page(row, after)).await
    }

    /// The greatest event id that may be in use, 0 if none is; ids behind it, or behind `first`, are reserved durably.
    pub async fn reserve_ids(&self, first: u64) -> Result<u64, StoreError> {
        self.request(move |database| database.reserve_ids(first)).await
    }

    /// Releases the reserved event ids behind this one, durably.
    pub async fn settle_ids(&self, last: u64) -> Result<(), StoreError> {
        self.request(move |database| database.settle_ids(last)).await
    }

    /// Replaces the stored stations, all or nothing. Other requests are executed in between. Those seen last are read
    /// first.
    pub async fn save_stations(&self, mut stations: Vec<StoredStation>) -> Result<(), StoreError> {
        let now = Stamp::now();
        let sorted = background::run(move || {
            stations.sort_unstable_by_key(|station| Reverse(station.age_seconds));
            stations
        });
        let mut stations = sorted.await.map_err(StoreError::Thread)?;
        let _guard = self.saving.lock().await;
        self.request(|database| database.begin_stations()).await?;
        while !stations.is_empty() {
            // From the end, which moves no others. The thread drops them.
            let mut chunk = stations.split_off(stations.len().saturating_sub(CHUNK));
            chunk.reverse();
            self.request(move |database| database.add_stations(&chunk)).await?;
        }
        self.request(move |database| database.finish_stations(&now)).await
    }

    /// At most `max` of the stations saved last, from a cursor on (the first is 0), and the next cursor, if there are
    /// more. The youngest first, aged by the time since the save.
    ///
    /// Reading deletes nothing: a switch that is killed before its first save reads the same stations again. Stations
    /// must not be saved between two pages.
    pub async fn stations_page(&self, from: i64, max: usize) -> Result<(Vec<StoredStation>, Option<i64>), StoreError> {
        let now = Stamp::now();
        self.request(move |database| database.stations(&now, from, max)).await
    }

    /// Checks the tables that opening does not check. Other requests are executed in between.
    pub async fn verify(&self) -> Result<(), StoreError> {
        for table in database::TABLES {
            self.request(move |database| database.verify(table)).await?;
        }
        Ok(())
    }

    /// Stores the state of loop mitigation durably.
    pub async fn put_loops(&self, loops: Value) -> Result<(), StoreError> {
        self.request(move |database| database.put_loops(&loops)).await
    }

    /// The stored state of loop mitigation; null without.
    pub async fn loops(&self) -> Result<Value, StoreError> {
        self.request(|database| database.loops()).await
    }

    /// Blocks the thread, as a hanging disk does, until the sender is dropped.
    #[cfg(test)]
    pub async fn hang(&self, until: std::sync::mpsc::Receiver<()>) {
        let request: Request = Box::new(move |_| until.recv().unwrap_or_default());
        self.requests.send(request).await.expect("the store is open");
    }

    /// Makes the commit fail that stores an event of this request, once.
    #[cfg(test)]
    pub async fn fail_once_at(&self, request_id: String) {
        self.request(move |database| database.fail_once_at(&request_id)).await.expect("the store is open");
    }

    /// Runs an operation on the open file, and waits for its result.
    async fn request<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.request_handle(|handle| handle.work(work)).await
    }

    /// Runs an operation on the handle, which may have to reopen the file, and waits for its result.
    async fn request_handle<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut StoreHandle) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, result) = oneshot::channel();
        // Nobody receives the result of a request that was given up.
        let request = Box::new(move |handle: &mut StoreHandle| drop(reply.send(work(handle))));
        self.requests.send(request).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }
}
