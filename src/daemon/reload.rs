//! Reloads the configuration file of a running switch on SIGHUP.

use std::path::PathBuf;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::mpsc;
use tracing::warn;

use crate::control::api::handle::Handle;
use crate::control::background;
use crate::control::config::{self, ConfigFile};

/// Maximum time to read the file.
const READING: Duration = Duration::from_secs(10);

/// Reloads the file for each message, and notifies the supervisor before and after.
pub(super) async fn whenever_told(mut message: mpsc::Receiver<()>, path: Option<PathBuf>, handle: Handle) {
    while message.recv().await.is_some() {
        let mut states = vec![NotifyState::Reloading];
        states.extend(NotifyState::monotonic_usec_now().ok());
        super::notify_all(&states);
        // The controller reports the result in the log and as an event.
        let _ = handle.reload(read(path.clone()).await).await;
        super::notify_all(&[NotifyState::Ready]);
    }
}

async fn read(path: Option<PathBuf>) -> Result<ConfigFile, String> {
    let Some(path) = path else {
        return Err("no configuration file; start the switch with --config FILE".into());
    };
    let shown = path.display().to_string();
    match tokio::time::timeout(READING, background::run(move || config::load_file(path))).await {
        Ok(Ok(read)) => read.map_err(|errors| errors.to_string()),
        Ok(Err(why)) => Err(format!("{shown}: cannot be read: {why}")),
        Err(_) => {
            warn!("cannot read {shown} within {} s", READING.as_secs());
            Err(format!("{shown}: cannot be read within {} s", READING.as_secs()))
        }
    }
}
