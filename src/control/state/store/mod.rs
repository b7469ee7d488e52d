//! The state file: desired state, events, learned stations, measures against loops.
//!
//! An SQLite database with a thread of its own, which executes requests in order. What [`Store::commit`] has confirmed
//! survives `kill -9` and a power cut; see `database.rs`.
//!
//! A request is executed even if its reply is no longer awaited.

mod database;
mod error;
mod file;
mod peek;
mod renamed;
mod reopen;
mod rows;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::thread;

use serde_json::Value;
use tokio::sync::{Mutex, mpsc, oneshot};

use self::database::Database;
pub use self::error::StoreError;
pub use self::peek::peek;
use self::reopen::StoreHandle;
use crate::control::state::events::Event;
use crate::time::Stamp;
use crate::wire::Mac;

/// Requests that may wait for the thread.
const QUEUE: usize = 64;

/// Stations that are saved or read at a time: how long a commit waits at most for them.
pub const CHUNK: usize = 10_000;

/// The desired state, in the shape in which a configuration is written.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredState {
    /// The configuration file as it was when it was last applied; null without a file.
    pub last_applied: Value,
    /// What is wanted.
    pub config: Value,
    /// Netdevs that may be there and are not wanted any more; null if there are none.
    pub orphans: Value,
}

/// A station that is kept over a restart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoredStation {
    /// The network it is on.
    pub network_id: String,
    /// Its address.
    pub mac_address: Mac,
    /// The port it is behind.
    pub port_id: String,
    /// For how long it has not been heard of, in seconds.
    pub age_seconds: u32,
}

/// What the thread is asked to do.
type Request = Box<dyn FnOnce(&mut StoreHandle) + Send>;

/// The way to the thread that has the file open. When this is dropped the thread does what it was
/// asked before and ends; [`close`](Store::close) waits for that.
#[derive(Debug)]
pub struct Store {
    requests: mpsc::Sender<Request>,
    /// Held by whoever saves stations: a save is several requests.
    saving: Mutex<()>,
    ended: oneshot::Receiver<()>,
}

impl Store {
    /// Opens the file at `path`, and says what it says is wanted: nothing yet if it is new. The
    /// directory is made with mode 0750 and the file with 0640 if they are not there. The file is
    /// ours alone until the store is closed.
    pub async fn open(path: PathBuf) -> Result<(Store, Option<DesiredState>), StoreError> {
        Store::open_or_make(path, None, ()).await
    }

    /// Opens the file at `path`. Creates a missing file that contains `first` before it gets its name, so that a kill
    /// leaves no state without a configuration. `opening` is dropped when the file is open or cannot be opened, also if
    /// the caller does not wait for that.
    pub async fn open_or_make(
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
                Ok(mut handle) => {
                    // Nobody waits for it: then nobody asks either.
                    let _ = opened.send(Ok(handle.desired().cloned()));
                    while let Some(request) = received.blocking_recv() {
                        request(&mut handle);
                    }
                }
                Err(why) => drop(opened.send(Err(why))),
            }
            // Behind the database, which is closed by now.
            drop(end);
        };
        thread::Builder::new().name("vifswitch-store".into()).spawn(work).map_err(StoreError::Thread)?;
        let desired = result.await.map_err(|_| StoreError::Closed)??;
        Ok((Store { requests, saving: Mutex::new(()), ended }, desired))
    }

    /// Ends the store. When this returns the file is closed and may be opened again.
    pub async fn close(self) {
        drop(self.requests);
        // It tells by being dropped.
        let _ = self.ended.await;
    }

    /// Keeps a new desired state and what has happened on the way to it: both or, on an error,
    /// neither. When this returns they are on the disk.
    pub async fn commit(&self, desired: DesiredState, events: Vec<Event>) -> Result<(), StoreError> {
        self.ask_handle(move |handle| handle.commit(desired, &events)).await
    }

    /// Keeps what has happened: all or, on an error, none.
    pub async fn append_events(&self, events: Vec<Event>) -> Result<(), StoreError> {
        self.ask_handle(move |handle| handle.note(None, &events)).await
    }

    /// Stores other orphans beside the desired state, and what has happened: both or, on an error,
    /// neither.
    pub async fn commit_orphans(&self, orphans: Value, events: Vec<Event>) -> Result<(), StoreError> {
        self.ask_handle(move |handle| handle.note(Some(orphans), &events)).await
    }

    /// What has happened at `since` (RFC 3339, any offset) or later, of that the newest `most`, in the
    /// order in which it was told.
    pub async fn events(&self, since: Option<String>, most: usize) -> Result<Vec<Event>, StoreError> {
        self.request(move |database| database.events(since.as_deref(), most)).await
    }

    /// The greatest id of a stored event, 0 without one.
    pub async fn last_event(&self) -> Result<u64, StoreError> {
        self.request(|database| database.last_event()).await
    }

    /// Keeps these stations in place of those that were kept before: all or, on an error, none.
    /// Commits are not held up: they come in between.
    pub async fn save_stations(&self, mut stations: Vec<StoredStation>) -> Result<(), StoreError> {
        let now = Stamp::now();
        let _alone = self.saving.lock().await;
        self.request(|database| database.begin_stations()).await?;
        while !stations.is_empty() {
            // From the end, which costs nothing, and dropped by the thread of the store.
            let chunk = stations.split_off(stations.len().saturating_sub(CHUNK));
            self.request(move |database| database.add_stations(&chunk)).await?;
        }
        self.request(move |database| database.finish_stations(&now)).await
    }

    /// The stations that were saved last, older by the time that has passed since, in no order. They stay in the file
    /// until others are saved: a switch that is killed before it has saved its own has them again.
    ///
    /// At most `most` of them, from a place on (the first is 0), and the place at which it goes on, if there are more.
    /// Others come in between, which must not save stations.
    pub async fn stations_page(&self, from: i64, most: usize) -> Result<(Vec<StoredStation>, Option<i64>), StoreError> {
        let now = Stamp::now();
        self.request(move |database| database.stations(&now, from, most)).await
    }

    /// Looks for damage that does not show when the file is opened. Others come in between.
    pub async fn verify(&self) -> Result<(), StoreError> {
        for table in database::TABLES {
            self.request(move |database| database.verify(table)).await?;
        }
        Ok(())
    }

    /// Keeps what is known of loops, and what is done about them, in place of what was kept before.
    pub async fn put_loops(&self, loops: Value) -> Result<(), StoreError> {
        self.request(move |database| database.put_loops(&loops)).await
    }

    /// What was known of loops when it was last kept; null if that was nothing.
    pub async fn loops(&self) -> Result<Value, StoreError> {
        self.request(|database| database.loops()).await
    }

    /// Lets the thread hang, as a disk may, until the other end is dropped.
    #[cfg(test)]
    pub async fn hang(&self, until: std::sync::mpsc::Receiver<()>) {
        let request: Request = Box::new(move |_| until.recv().unwrap_or_default());
        self.requests.send(request).await.expect("the store is open");
    }

    /// Lets the thread do something with the open file, and waits for what comes of it.
    async fn request<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.ask_handle(|handle| handle.work(work)).await
    }

    /// Lets the thread do something, and waits for what comes of it.
    async fn ask_handle<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut StoreHandle) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        // Whoever asked and has gone meanwhile gets no answer.
        let request = Box::new(move |handle: &mut StoreHandle| drop(reply.send(work(handle))));
        self.requests.send(request).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}
