//! Reloads the configuration file of a running switch and its fragments on SIGHUP, and the fragments at the start.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;

use super::fragments::{self, Fragments};
use crate::control::api::handle::{ChangeOptions, ConfigForm, Handle, ShuttingDown};
use crate::control::author::Author;
use crate::control::background;
use crate::control::config::{self, ConfigFile};

/// Maximum time to read the file.
const READING: Duration = Duration::from_secs(10);

/// Applies the fragments now. Reloads the file and the fragments for each message, and notifies the supervisor before and
/// after.
pub(super) async fn whenever_told(mut message: mpsc::Receiver<()>, path: Option<PathBuf>, handle: Handle) {
    apply_fragments(path.as_deref(), &handle).await;
    while message.recv().await.is_some() {
        let mut states = vec![NotifyState::Reloading];
        states.extend(NotifyState::monotonic_usec_now().ok());
        super::notify_all(&states);
        // The controller reports the result in the log and as an event.
        let _ = handle.reload(read(path.clone()).await).await;
        apply_fragments(path.as_deref(), &handle).await;
        super::notify_all(&[NotifyState::Ready]);
    }
}

/// Applies the fragments beside the configuration file. What goes wrong is logged; the controller reports what changes as
/// events, by `conf.d/NAME`.
async fn apply_fragments(path: Option<&Path>, handle: &Handle) {
    let Some(directory) = path.map(fragments::directory) else { return };
    let shown = directory.display().to_string();
    let fragments = match timeout(READING, background::run(move || Fragments::read(&directory))).await {
        Ok(Ok(Ok(fragments))) => fragments,
        Ok(Ok(Err(why))) => return warn!("no fragment is applied: {why}"),
        Ok(Err(why)) => return warn!("no fragment is applied: {shown} cannot be read: {why}"),
        Err(_) => return warn!("no fragment is applied: {shown} cannot be read within {} s", READING.as_secs()),
    };
    for (name, why) in fragments.unreadable() {
        warn!("{shown}/{name} is not applied, and what has its label stays: {why}");
    }
    let Ok((config, _)) = handle.config(ConfigForm::Sparse).await else { return };
    let errors = fragments::settle(fragments.pending(&config), |fragment| {
        let author =
            Author { uid: None, pid: None, request_id: format!("{}/{}", fragments::DIRECTORY, fragment.owner) };
        let (handle, change) = (handle.clone(), fragment.change.clone());
        author.scope(async move {
            match handle.change(change, ChangeOptions::default(), Box::new(())).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(error.message),
                Err(ShuttingDown) => Err("the switch is stopping".to_owned()),
            }
        })
    });
    for (name, why) in errors.await {
        warn!("{shown}/{name} is not applied, and what has its label stays: {why}");
    }
}

async fn read(path: Option<PathBuf>) -> Result<ConfigFile, String> {
    let Some(path) = path else {
        return Err("no configuration file; start the switch with --config FILE".into());
    };
    let shown = path.display().to_string();
    match timeout(READING, background::run(move || config::load_file(path))).await {
        Ok(Ok(read)) => read.map_err(|errors| errors.to_string()),
        Ok(Err(why)) => Err(format!("{shown}: cannot be read: {why}")),
        Err(_) => {
            warn!("cannot read {shown} within {} s", READING.as_secs());
            Err(format!("{shown}: cannot be read within {} s", READING.as_secs()))
        }
    }
}
