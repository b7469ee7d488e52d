//! Storing the FDB while the switch runs and restoring it at the start, both in tasks.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::warn;

use super::Controller;
use crate::control::background;
use crate::control::state::store::CHUNK;
use crate::control::workers::PAGE;
use crate::time;

/// Stations that are read and restored at a time while no port is open.
pub(super) const FIRST_CHUNK: usize = 32_768;

impl Controller {
    /// Restores stored FDB entries, `chunk` at a time, the youngest first, for at most `wait`. Returns the cursor of those that
    /// are still to be restored, if any.
    pub(super) async fn take_first_stations(&self, wait: Duration, chunk: usize) -> Option<i64> {
        let (index, more) = (self.fdb_index(), Cell::new(Some(0)));
        let read = async |from| {
            let (stored, next) = self.state.take_stations(from, chunk).await;
            (index.resolve_stored(&stored, time::now()), next)
        };
        let all = async {
            let mut page = read(0).await;
            loop {
                let (stations, next) = page;
                let restoring = async {
                    self.workers.restore(stations, chunk).await;
                    more.set(next);
                };
                let following = async {
                    match next {
                        Some(from) => Some(read(from).await),
                        None => None,
                    }
                };
                // The next ones are read and resolved while the workers add these.
                let ((), following) = tokio::join!(restoring, following);
                let Some(following) = following else { return };
                page = following;
            }
        };
        // Those of a page that is given up are restored again, which changes nothing.
        let _ = timeout(wait, all).await;
        more.get()
    }

    /// Restores the FDB entries from cursor `more` on, then verifies the state. Blocks storing the FDB until all entries
    /// are restored, because the stored set is complete.
    pub(super) fn verify_state(&mut self, mut more: Option<i64>) {
        let (store, workers, directory) = (self.state.clone(), self.workers.clone(), Arc::new(self.fdb_index()));
        let (done, learned) = oneshot::channel::<()>();
        self.saving_stations = Some(tokio::spawn(async move {
            while let Some(from) = more {
                let (stored, next) = store.take_stations(from, CHUNK).await;
                let directory = directory.clone();
                // Off the control thread, which has changes and failures to handle.
                let resolved = background::run(move || directory.resolve_stored(&stored, time::now())).await;
                workers.restore(resolved.unwrap_or_default(), PAGE).await;
                more = next;
            }
            drop(done);
        }));
        let store = self.state.clone();
        self.verification = Some(tokio::spawn(async move {
            let _ = learned.await;
            store.verify().await;
        }));
    }

    /// Starts a task that stores the FDB, unless one is running.
    pub(super) fn save_stations(&mut self) {
        let under_way = self.saving_stations.as_ref().is_some_and(|task| !task.is_finished());
        let (Some(store), false) = (self.state.store().cloned(), under_way) else { return };
        let (workers, directory) = (self.workers.clone(), self.fdb_index());
        self.saving_stations = Some(tokio::spawn(async move {
            // The save replaces the stored FDB, so it requires the entries of all workers.
            let Some(stations) = workers.stations().await else { return };
            let Ok(stored) = background::run(move || directory.to_stored(stations, time::now())).await else { return };
            if let Err(why) = store.save_stations(stored).await {
                warn!("storing the FDB failed: {why}");
            }
        }));
    }

    /// Waits for the task that stores or restores the FDB.
    pub(super) async fn finish_saving_stations(&mut self) {
        if let Some(task) = &mut self.saving_stations {
            let _ = task.await;
            self.saving_stations = None;
        }
    }
}
