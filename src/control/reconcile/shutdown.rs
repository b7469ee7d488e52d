//! The end of the switch: stores what is to be known after a restart, stops the workers and closes all devices. No step
//! takes longer than its timeout.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::warn;

use super::Controller;
use crate::control::background;
use crate::control::handover::Handover;
use crate::sys::netns::Netns;
use crate::time;

/// Timeout of storing the state at exit.
const PERSIST_TIMEOUT: Duration = Duration::from_secs(4);

/// Timeout at exit of handing over counters, while frames wait.
const HANDING_OVER: Duration = Duration::from_millis(200);

/// Timeout at exit of each step: stopping workers, closing devices, closing the store.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

impl Controller {
    /// Stores the state and closes all devices. The kernel has removed our non-persistent netdevs on return, unless
    /// closing exceeds `CLOSE_TIMEOUT`.
    pub async fn close_all(mut self) {
        self.flush_limited_events(true);
        // The next start verifies the state again.
        if let Some(verification) = self.verification.take() {
            verification.abort();
            let _ = verification.await;
        }
        // A controller that has not started has nothing new to store.
        let store_all = async {
            // A save in progress lacks entries learned after it began.
            self.finish_saving_stations().await;
            if self.is_started {
                self.save_stations();
                self.mark_loops_dirty();
            }
            self.finish_persisting_loops().await;
            self.finish_saving_stations().await;
            self.finish_commits().await;
        };
        if timeout(PERSIST_TIMEOUT, store_all).await.is_err() {
            warn!("the state has not been stored within {} s", PERSIST_TIMEOUT.as_secs());
        }
        // Stopped workers return an incomplete FDB, which must not replace the stored one.
        if let Some(task) = self.saving_stations.take() {
            task.abort();
            // It holds the store.
            let _ = task.await;
        }
        // While frames are still forwarded: the more stations were stored, the longer this takes.
        let _ = timeout(CLOSE_TIMEOUT, self.state.close()).await;
        let queues = timeout(CLOSE_TIMEOUT, self.workers.stop()).await;
        // No frame is missing.
        if let Some(path) = self.handover_path.filter(|_| self.is_started) {
            let endpoints = self.ports.iter().map(|port| (port.endpoint.key(), &*port.counters));
            let handover = Handover::new(endpoints, self.workers.counters());
            save_handover(handover.with_policers(self.policers.deficits(time::now())), path).await;
        }
        // Closing a tap blocks until the kernel removes the netdev. A driver that blocks longer is abandoned until the
        // process exits.
        let (done, closed) = oneshot::channel();
        let opened = self.opened;
        self.jobs.run(&Netns::Host, move || {
            drop((queues, opened));
            let _ = done.send(());
        });
        if timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            warn!("devices have not been closed within {} s", CLOSE_TIMEOUT.as_secs());
        }
    }
}

/// Hands counters and the state of policers over to the next run.
async fn save_handover(handover: Handover, path: PathBuf) {
    match timeout(HANDING_OVER, background::run(move || handover.save(&path))).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(why)) | Err(why)) => warn!("counters begin at zero at the next start: {why}"),
        Err(_) => warn!("counters begin at zero at the next start: the disk does not answer"),
    }
}
