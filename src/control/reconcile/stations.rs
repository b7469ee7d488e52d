//! Storing the FDB while the switch runs and restoring it at the start, both in tasks.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::warn;

use super::{Controller, DISK};
use crate::control::background;
use crate::control::state::store::CHUNK;
use crate::time;

/// FDB entries restored before the first port opens, those seen last, which takes a few ms: a start does not take longer
/// with a larger FDB.
const FIRST_STATIONS: usize = 1000;

impl Controller {
    /// Restores the first `FIRST_STATIONS` stored FDB entries, unless the disk hangs. Returns the cursor of the next page,
    /// if any.
    pub(super) async fn take_first_stations(&self) -> Option<i64> {
        let Ok((stored, more)) = timeout(DISK, self.state.take_stations(0, FIRST_STATIONS)).await else {
            return Some(0);
        };
        self.workers.learn(&self.fdb_index().resolve_stored(stored, time::now())).await;
        more
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
                let resolved = background::run(move || directory.resolve_stored(stored, time::now())).await;
                workers.learn(&resolved.unwrap_or_default()).await;
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
