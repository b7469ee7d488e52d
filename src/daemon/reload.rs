//! Reloading the configuration file while the switch runs.

use std::path::PathBuf;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tracing::warn;

use crate::control::config::{self, ConfigFile};
use crate::control::handle::Handle;

/// How long it may take to read the file.
const READING: Duration = Duration::from_secs(10);

/// Reloads the file whenever that is asked for.
pub(super) async fn whenever_told(mut message: mpsc::Receiver<()>, path: Option<PathBuf>, handle: Handle) {
    while message.recv().await.is_some() {
        let mut notes = vec![NotifyState::Reloading];
        notes.extend(NotifyState::monotonic_usec_now().ok());
        super::notify_all(&notes);
        // Whether it was done is told by the controller, in the log and in an event.
        let _ = handle.reload(read(path.clone()).await).await;
        super::notify_all(&[NotifyState::Ready]);
    }
}

async fn read(path: Option<PathBuf>) -> Result<ConfigFile, String> {
    let Some(path) = path else {
        return Err("the switch runs without a configuration file; start it with --config FILE".into());
    };
    let shown = path.display().to_string();
    match tokio::time::timeout(READING, spawn_blocking(move || config::load_file(path))).await {
        Ok(Ok(read)) => read.map_err(|errors| errors.to_string()),
        Ok(Err(why)) => Err(why.to_string()),
        Err(_) => {
            warn!("{shown} cannot be read within {} s", READING.as_secs());
            Err(format!("{shown}: cannot be read within {} s", READING.as_secs()))
        }
    }
}
