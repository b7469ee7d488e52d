//! The initial configuration: merges the configuration file as last applied, the file now, and the stored state.
//!
//! Operators edit the file, and the API changes the state. Both are merged ([`merge`]): edits of the file since it was
//! last applied are applied, API changes stay, and the file has precedence if both changed the same. Differences from
//! the stored state are logged and emitted as an event. `[switch]` is always the file's. A file that is to replace the
//! state is used alone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::history::{Entry, History, Source};
use super::store::HistoryRow;
use super::{Backend, StateStore};
use crate::control::background;
use crate::control::config::{self, Config, ConfigFile, StoredConfig, SwitchSettings};
use crate::control::desired::change::ChangeResult;
use crate::control::desired::diff::describe_changes;
use crate::control::desired::lifetimes::Lifetimes;
use crate::control::desired::merge::{Merged, merge};
use crate::control::desired::orphans::{self, Orphans};
use crate::control::state::events::{Event, EventKind};
use crate::control::state::store::{self, DesiredState, Store, StoreError};
use crate::time;

/// Maximum differences in the log.
const MAX_CHANGES_LOGGED: usize = 50;

/// Maximum differences in an event.
const MAX_CHANGES_IN_EVENT: usize = 20;

/// Time to wait for a state that another process has open: a stopping switch, a backup.
const BUSY: Duration = Duration::from_secs(10);

/// Interval of checks whether it is still in use.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Maximum duration of one access to the disk during the start. After that the switch starts without the state, and
/// retries it.
pub const DISK_AT_START: Duration = Duration::from_secs(10);

/// Precedence of file and state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precedence {
    /// Merge both.
    #[default]
    Merge,
    /// The file replaces the state.
    Replace,
}

/// Settings of a retry of unusable state.
#[derive(Debug)]
pub(super) struct ReopenSettings {
    file: Option<ConfigFile>,
    path: PathBuf,
    precedence: Precedence,
    /// Held by the thread that opens the store, even after the timeout: a hung disk blocks one thread only.
    opening: Arc<Mutex<()>>,
}

/// Why a switch cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Neither file nor state exists.
    #[error("{path} contains no state yet; name a configuration with --config FILE")]
    NothingStored {
        /// Path of the state.
        path: String,
    },
    /// The state is unreadable, and there is no file.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The state is no configuration known to this version.
    #[error("the state at {path} cannot be interpreted, and is not changed: {why}")]
    NotUnderstood {
        /// Path.
        path: String,
        /// Reason.
        why: String,
    },
}

/// Effects of a start with a file on a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartPreview {
    /// Differences from the stored state.
    pub changes: Vec<String>,
    /// API changes that would be dropped, with reasons.
    pub dropped: Vec<String>,
    /// Unknown parts of the state, which would be kept.
    pub unknown: Vec<String>,
}

impl StateStore {
    /// Determines the initial configuration and opens the state: with `file` if given, otherwise from the state at
    /// `path`.
    pub async fn open(
        file: Option<ConfigFile>,
        path: Option<&Path>,
        precedence: Precedence,
    ) -> Result<(Config, StateStore), StartError> {
        let (file, path) = match (file, path) {
            (Some(file), None) => return Ok(StateStore::at(Backend::None, file)),
            (file, Some(path)) => (file, path.to_owned()),
            (None, None) => (None, SwitchSettings::default().state.unwrap_or_default()),
        };
        open_over(ReopenSettings { file, path, precedence, opening: Arc::default() }.into()).await
    }

    /// Retries unusable state. Returns the same configuration, or one with what only the state has. Error: still
    /// unusable.
    pub async fn reopen(&self) -> Option<Result<(Config, StateStore), String>> {
        let Backend::Broken(_, again) = &self.backend else { return None };
        Some(match open(again, Duration::ZERO).await {
            Ok((store, desired)) => open_with_store(again, store, desired).await.map_err(|why| why.to_string()),
            Err(why) => Err(why.to_string()),
        })
    }

    /// For a file without state.
    fn at(backend: Backend, file: ConfigFile) -> (Config, StateStore) {
        let (last_applied, unknown) = (last_applied(&file).into(), Arc::default());
        let (orphans, lifetimes, is_due, events) = (Orphans::new(), Arc::<Lifetimes>::default(), false, Vec::new());
        // Greater than those of earlier starts.
        let generation = time::wall().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
        let mut history = History::default();
        history.record(Entry::first(generation, Source::File, "the first generation that is recorded").into());
        let store =
            StateStore { backend, last_applied, unknown, orphans, lifetimes, is_due, events, generation, history };
        (file.config, store)
    }
}

/// Part of a file that is compared with its next edit: all but `[switch]`, which is fixed at each start.
pub fn last_applied(file: &ConfigFile) -> Value {
    let mut raw = file.raw.clone();
    if let Some(keys) = raw.as_object_mut() {
        keys.remove("switch");
    }
    raw
}

/// The file as last applied, as parsed by this version; none if unknown.
pub(super) fn applied(last_applied: &Value) -> Config {
    config::read_stored(last_applied).map(|stored| stored.config).unwrap_or_default()
}

/// Result of applying a file to a state.
fn apply(
    file: &ConfigFile,
    desired: &DesiredState,
    stored: &StoredConfig,
    precedence: Precedence,
) -> (Merged, StartPreview) {
    let merged = match precedence {
        Precedence::Merge => merge(&applied(&desired.last_applied), &file.config, &stored.config),
        Precedence::Replace => Merged { config: file.config.clone(), conflicts: Vec::new() },
    };
    let was = Config { switch: file.config.switch.clone(), ..stored.config.clone() };
    let changes = describe_changes(&was, &merged.config);
    let preview = StartPreview { changes, dropped: merged.conflicts.clone(), unknown: stored.unknown.messages.clone() };
    (merged, preview)
}

/// Opens the state and merges. Waits for a state that another process has open.
async fn open_over(again: Arc<ReopenSettings>) -> Result<(Config, StateStore), StartError> {
    let path = again.path.clone();
    if again.file.is_none() && !path.exists() {
        // Checking for a state does not create one.
        return Err(StartError::NothingStored { path: path.display().to_string() });
    }
    let why = match open(&again, BUSY).await {
        Ok((store, desired)) => match open_with_store(&again, store, desired).await {
            Ok(begun) => return Ok(begun),
            Err(why) => return without_state(&again, why),
        },
        Err(why) => why,
    };
    if matches!(why, StoreError::Hangs { .. }) {
        return without_state(&again, why.into());
    }
    // A state that is read-only or in use may still be readable.
    let peeked = timeout(DISK_AT_START, background::run(move || store::peek(&path))).await;
    let Ok(Ok(Ok(desired))) = peeked else { return without_state(&again, why.into()) };
    match merge_over(&again, desired, &[], Backend::Broken(why.to_string(), again.clone())) {
        Ok(OpenedState { config, store: state_store, .. }) => {
            error!("{why}. The switch runs the stored state, and refuses changes until the state can be written");
            // The process that has it open may need the orphans. A later retry merges the file again and emits the
            // events.
            Ok((config, StateStore { orphans: Orphans::new(), events: Vec::new(), ..state_store }))
        }
        Err(why) => without_state(&again, why),
    }
}

/// Merges with an open store.
async fn open_with_store(
    again: &Arc<ReopenSettings>,
    store: Store,
    desired: Option<DesiredState>,
) -> Result<(Config, StateStore), StartError> {
    let store = Arc::new(store);
    let history = timeout(DISK_AT_START, store.history()).await.unwrap_or_else(|_| {
        let (path, seconds) = (again.path.clone(), DISK_AT_START.as_secs());
        Err(StoreError::Hangs { path, seconds })
    });
    let history = history.unwrap_or_else(|why| {
        warn!("the recorded generations cannot be read: {why}");
        Vec::new()
    });
    match merge_over(again, desired, &history, Backend::Open(store.clone())) {
        Ok(OpenedState { config, store: mut state_store, before }) => {
            drop(store);
            state_store.commit_initial(&config, before, DISK_AT_START).await;
            Ok((config, state_store))
        }
        Err(why) => {
            if let Some(store) = Arc::into_inner(store) {
                store.close().await;
            }
            Err(why)
        }
    }
}

/// Uses the file alone, because the state is unusable.
fn without_state(again: &Arc<ReopenSettings>, why: StartError) -> Result<(Config, StateStore), StartError> {
    let Some(file) = again.file.clone() else { return Err(why) };
    error!("{why}. The switch runs the configuration file, and refuses changes until the state can be used");
    Ok(StateStore::at(Backend::Broken(why.to_string(), again.clone()), file))
}

/// An initial configuration that is not stored yet.
struct OpenedState {
    config: Config,
    store: StateStore,
    /// Data kept until then.
    before: Option<DesiredState>,
}

/// Merges a file with a state.
fn merge_over(
    again: &ReopenSettings,
    desired: Option<DesiredState>,
    history: &[HistoryRow],
    backend: Backend,
) -> Result<OpenedState, StartError> {
    let path = again.path.display().to_string();
    let stored = desired.as_ref().map(|desired| parse_stored(desired, path.clone())).transpose()?;
    let (Some(before), Some(stored)) = (desired, stored) else {
        let Some(file) = again.file.clone() else { return Err(StartError::NothingStored { path }) };
        let (config, store) = StateStore::at(backend, file);
        return Ok(OpenedState { config, store, before: None });
    };
    let StoredConfig { config: state, unknown } = &stored;
    let (config, last_applied, events) = match &again.file {
        Some(file) => {
            let (Merged { config, .. }, preview) = apply(file, &before, &stored, again.precedence);
            let events = log_start(&again.path, file, &config, &preview, again.precedence);
            (config, last_applied(file), events)
        }
        None => {
            if !unknown.is_empty() {
                warn!("unknown to this version, kept unmodified in the state:{}", one_per_line(&unknown.messages));
            }
            (state.clone(), before.last_applied.clone(), Vec::new())
        }
    };
    // Unknown parts of the state are dropped.
    let mut orphans = orphans::from_value(&before.orphans);
    orphans.extend(orphans::netdevs(state));
    let orphans = &orphans - &orphans::netdevs(&config);
    let unknown = match again.precedence {
        Precedence::Merge => unknown.clone().into(),
        Precedence::Replace => Arc::default(),
    };
    let generation = before.generation
        + u64::from(config.networks != state.networks || config.vms != state.vms || config.uplinks != state.uplinks);
    let is_of_file = |file: &ConfigFile| {
        let Config { networks, vms, uplinks, .. } = &file.config;
        (networks, vms, uplinks) == (&state.networks, &state.vms, &state.uplinks)
    };
    let first = if again.file.as_ref().is_some_and(is_of_file) { Source::File } else { Source::State };
    let mut history = History::load(history, before.generation, first);
    if generation > before.generation {
        let result =
            ChangeResult::between(&Config { switch: config.switch.clone(), ..state.clone() }, &config, generation);
        history.record(Entry::between(state, &config, &result, Source::File, None).into());
    }
    let last_applied = last_applied.into();
    let lifetimes = Arc::new(Lifetimes::from_value(&before.lifetimes).of(&config));
    let store =
        StateStore { backend, last_applied, unknown, orphans, lifetimes, is_due: false, events, generation, history };
    Ok(OpenedState { config, store, before: Some(before) })
}

/// Logs and records events about what a file changes in a state.
fn log_start(
    path: &Path,
    file: &ConfigFile,
    config: &Config,
    preview: &StartPreview,
    precedence: Precedence,
) -> Vec<Event> {
    let StartPreview { changes, dropped, unknown } = preview;
    let path = path.display();
    if !unknown.is_empty() && precedence == Precedence::Merge {
        warn!("unknown to this version, kept unmodified in the state at {path}:{}", one_per_line(unknown));
    }
    let stays = describe_changes(&file.config, config);
    if !stays.is_empty() {
        info!("changes by API stay in effect; they differ from the configuration file:{}", one_per_line(&stays));
    }
    let mut texts = Vec::new();
    if !changes.is_empty() {
        let what = match precedence {
            Precedence::Merge => "the configuration file has been edited; this changes in the stored state",
            Precedence::Replace => "the configuration file replaces the stored state; this changes",
        };
        warn!("{what} at {path}:{}", one_per_line(changes));
        texts.push(format!("{what}: {}", on_one_line(changes)));
    }
    if !dropped.is_empty() {
        let what = "changed by API, and dropped because the configuration file has precedence";
        warn!("{what}:{}", one_per_line(dropped));
        texts.push(format!("{what}: {}", on_one_line(dropped)));
    }
    let now = time::wall();
    let event = |text| Event { text, ..Event::new(EventKind::Config, now) }.bounded();
    texts.into_iter().map(event).collect()
}

/// Opens the store, or creates it with the configuration of the file. Waits up to `busy` while another process has it
/// open, and up to [`DISK_AT_START`] for the disk.
async fn open(again: &ReopenSettings, busy: Duration) -> Result<(Store, Option<DesiredState>), StoreError> {
    let first = again.file.clone().map(|file| {
        let (config, begun) = StateStore::at(Backend::None, file);
        begun.desired(&config, &begun.orphans)
    });
    let hangs = || StoreError::Hangs { path: again.path.clone(), seconds: DISK_AT_START.as_secs() };
    let (start, mut is_reported) = (time::now(), false);
    loop {
        let Ok(opening) = again.opening.clone().try_lock_owned() else {
            return Err(hangs());
        };
        let opened = Store::open_or_create(again.path.clone(), first.clone(), opening);
        match timeout(DISK_AT_START, opened).await.unwrap_or_else(|_| Err(hangs())) {
            Err(why @ StoreError::InUse { .. }) if time::now().since(start) < busy => {
                if !std::mem::replace(&mut is_reported, true) {
                    warn!("{why}; waiting for it for {} s", busy.as_secs());
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            opened => return opened,
        }
    }
}

/// The configuration stored at `path`, by default at the default path. Reads only, even if another process has it open.
pub fn stored(path: Option<&Path>) -> Result<Config, StartError> {
    let default = SwitchSettings::default().state;
    let path = path.or(default.as_deref()).unwrap_or(Path::new(""));
    let shown = path.display().to_string();
    if !path.exists() {
        return Err(StartError::NothingStored { path: shown });
    }
    let Some(desired) = store::peek(path)? else { return Err(StartError::NothingStored { path: shown }) };
    Ok(parse_stored(&desired, shown)?.config)
}

/// Effects of a start with `file` on the state at `path`; `None` if there is none. Reads only, even if a switch has it
/// open.
pub fn preview(file: &ConfigFile, path: &Path) -> Result<Option<StartPreview>, StartError> {
    if !path.exists() {
        return Ok(None);
    }
    let Some(desired) = store::peek(path)? else { return Ok(None) };
    let stored = parse_stored(&desired, path.display().to_string())?;
    Ok(Some(apply(file, &desired, &stored, Precedence::Merge).1))
}

fn parse_stored(desired: &DesiredState, path: String) -> Result<StoredConfig, StartError> {
    config::read_stored(&desired.config).map_err(|why| StartError::NotUnderstood { path, why: why.to_string() })
}

/// Texts, one per line, limited in number.
fn one_per_line(changes: &[String]) -> String {
    let mut text: String = changes.iter().take(MAX_CHANGES_LOGGED).map(|change| format!("\n  {change}")).collect();
    if changes.len() > MAX_CHANGES_LOGGED {
        text.push_str(&format!("\n  and {} more", changes.len() - MAX_CHANGES_LOGGED));
    }
    text
}

/// Texts joined, limited in number.
fn on_one_line(changes: &[String]) -> String {
    let mut text = changes.iter().take(MAX_CHANGES_IN_EVENT).map(String::as_str).collect::<Vec<_>>().join("; ");
    if changes.len() > MAX_CHANGES_IN_EVENT {
        text.push_str(&format!("; and {} more", changes.len() - MAX_CHANGES_IN_EVENT));
    }
    text
}
