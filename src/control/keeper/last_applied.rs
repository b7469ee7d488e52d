//! The configuration with which a switch begins: merges the configuration file as it was last applied, the file as it is
//! now, and the stored state.
//!
//! The rule at a start: the file is what an operator edits, and the state is what the API has made of it. Both are merged
//! ([`merge`]): what the file has changed since it was last applied is applied, what was changed by API stays, and where
//! both have changed the same the file has precedence. The log and an event say what that changes in the state.
//! `[switch]` is always as the file has it. A file that is to replace the state takes its place as it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tracing::{error, info, warn};

use super::{Keeper, Place};
use crate::control::config::{self, Config, ConfigFile, Stored, SwitchSettings};
use crate::control::difference::differences;
use crate::control::events::{Event, EventKind};
use crate::control::leftovers::{self, Leftovers};
use crate::control::merge::{Merged, merge};
use crate::control::store::{self, Desired, Store, StoreError};
use crate::time;

/// Differences told in the log, at most.
const TOLD: usize = 50;

/// Differences told in an event, at most.
const TOLD_IN_EVENT: usize = 20;

/// How long a state that another process has open is waited for: a switch that is stopping, a backup.
const BUSY: Duration = Duration::from_secs(10);

/// Between two looks whether it is still in use.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What a file is to the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precedence {
    /// Both are merged.
    #[default]
    Merge,
    /// The file replaces the state.
    Replace,
}

/// How to begin again with a state that could not be used.
#[derive(Debug)]
pub(super) struct Again {
    file: Option<ConfigFile>,
    path: PathBuf,
    precedence: Precedence,
}

/// Why a switch cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum NoBeginning {
    /// There is neither a file nor a state.
    #[error("{path} keeps no state yet, so there is nothing to resume; name a configuration with --config FILE")]
    NothingKept {
        /// Where it was looked for.
        path: String,
    },
    /// The state cannot be read, and there is no file.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The state is not a configuration that this version understands.
    #[error("the state at {path} is not understood and is left as it is: {why}")]
    NotUnderstood {
        /// Where it is kept.
        path: String,
        /// Why.
        why: String,
    },
}

/// What a start over a file would make of a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// What would be otherwise than the state has it, a sentence for each thing.
    pub changes: Vec<String>,
    /// What was changed by API and would not hold any more, and why.
    pub dropped: Vec<String>,
    /// What of the state is not understood, and would be kept as it is.
    pub unread: Vec<String>,
}

impl Keeper {
    /// With which configuration to begin, and where its changes are kept: over `file`, if there is
    /// one, else over what is kept at `path`.
    pub async fn begin(
        file: Option<ConfigFile>,
        path: Option<&Path>,
        precedence: Precedence,
    ) -> Result<(Config, Keeper), NoBeginning> {
        let (file, path) = match (file, path) {
            (Some(file), None) => return Ok(Keeper::at(Place::Nowhere, file)),
            (file, Some(path)) => (file, path.to_owned()),
            (None, None) => (None, SwitchSettings::default().state.unwrap_or_default()),
        };
        begin_over(Again { file, path, precedence }.into()).await
    }

    /// Begins again, if the state could not be used. With the same configuration, or with one that has what only the
    /// state has; an error: it still cannot.
    pub async fn begin_again(&self) -> Option<Result<(Config, Keeper), String>> {
        let Place::Broken(_, again) = &self.place else { return None };
        Some(match open(&again.path, Duration::ZERO).await {
            Ok((store, desired)) => over_store(again, store, desired).await.map_err(|why| why.to_string()),
            Err(why) => Err(why.to_string()),
        })
    }

    /// One over a file, beside which nothing is known.
    fn at(place: Place, file: ConfigFile) -> (Config, Keeper) {
        let base = base(&file).into();
        (file.config, Keeper { place, base, unread: Arc::default(), left: Leftovers::new(), is_due: false })
    }
}

/// What of a file is compared with its next edit: all but `[switch]`, which is fixed at each start.
pub fn base(file: &ConfigFile) -> Value {
    let mut raw = file.raw.clone();
    if let Some(keys) = raw.as_object_mut() {
        keys.remove("switch");
    }
    raw
}

/// What the file meant when it was last applied, as this version of the switch reads it; nothing if that is not known.
pub(super) fn applied(base: &Value) -> Config {
    config::read_stored(base).map(|stored| stored.config).unwrap_or_default()
}

/// What a file makes of a state that it is applied to.
fn apply(file: &ConfigFile, desired: &Desired, kept: &Stored, precedence: Precedence) -> (Merged, Preview) {
    let merged = match precedence {
        Precedence::Merge => merge(&applied(&desired.base), &file.config, &kept.config),
        Precedence::Replace => Merged { config: file.config.clone(), conflicts: Vec::new() },
    };
    let was = Config { switch: file.config.switch.clone(), ..kept.config.clone() };
    let changes = differences(&was, &merged.config);
    let preview = Preview { changes, dropped: merged.conflicts.clone(), unread: kept.unread.told.clone() };
    (merged, preview)
}

/// Begins with a file, a state, or both. A state that another process has open is waited for.
async fn begin_over(again: Arc<Again>) -> Result<(Config, Keeper), NoBeginning> {
    let path = again.path.clone();
    if again.file.is_none() && !path.exists() {
        // Looking for a state does not make one.
        return Err(NoBeginning::NothingKept { path: path.display().to_string() });
    }
    let why = match open(&path, BUSY).await {
        Ok((store, desired)) => match over_store(&again, store, desired).await {
            Ok(begun) => return Ok(begun),
            Err(why) => return without_state(&again, why),
        },
        Err(why) => why,
    };
    // What cannot be written, or is in use, may still be read.
    let Ok(desired) = store::peek(&path) else { return without_state(&again, why.into()) };
    match over(&again, desired, Place::Broken(why.to_string(), again.clone())) {
        Ok(Begun { config, keeper, .. }) => {
            error!("{why}. The switch runs as the state says, and takes no changes until the state can be written");
            // Whoever has it open may want what is left over.
            Ok((config, Keeper { left: Leftovers::new(), ..keeper }))
        }
        Err(why) => without_state(&again, why),
    }
}

/// Begins with an open store.
async fn over_store(
    again: &Arc<Again>,
    store: Store,
    desired: Option<Desired>,
) -> Result<(Config, Keeper), NoBeginning> {
    let store = Arc::new(store);
    match over(again, desired, Place::Store(store.clone())) {
        Ok(Begun { config, mut keeper, before, events }) => {
            drop(store);
            keeper.keep(&config, before, events).await;
            Ok((config, keeper))
        }
        Err(why) => {
            if let Some(store) = Arc::into_inner(store) {
                store.close().await;
            }
            Err(why)
        }
    }
}

/// Begins with the file alone, as the state cannot be used.
fn without_state(again: &Arc<Again>, why: NoBeginning) -> Result<(Config, Keeper), NoBeginning> {
    let Some(file) = again.file.clone() else { return Err(why) };
    error!("{why}. The switch runs as the configuration file says, and takes no changes until the state can be used");
    Ok(Keeper::at(Place::Broken(why.to_string(), again.clone()), file))
}

/// A beginning that is still to be kept.
struct Begun {
    config: Config,
    keeper: Keeper,
    /// What is kept until then.
    before: Option<Desired>,
    events: Vec<Event>,
}

/// What becomes of a file and a state.
fn over(again: &Again, desired: Option<Desired>, place: Place) -> Result<Begun, NoBeginning> {
    let path = again.path.display().to_string();
    let kept = desired.as_ref().map(|desired| read(desired, path.clone())).transpose()?;
    let (Some(before), Some(kept)) = (desired, kept) else {
        let Some(file) = again.file.clone() else { return Err(NoBeginning::NothingKept { path }) };
        let (config, keeper) = Keeper::at(place, file);
        return Ok(Begun { config, keeper, before: None, events: Vec::new() });
    };
    let Stored { config: state, unread } = &kept;
    let (config, base, events) = match &again.file {
        Some(file) => {
            let (Merged { config, .. }, told) = apply(file, &before, &kept, again.precedence);
            let events = tell(&again.path, file, &config, &told, again.precedence);
            (config, base(file), events)
        }
        None => {
            if !unread.is_empty() {
                warn!("not understood by this version, and kept in the state as it is:{}", lines(&unread.told));
            }
            (state.clone(), before.base.clone(), Vec::new())
        }
    };
    // What only the state had is of no use any more.
    let mut left = leftovers::read(&before.leftovers);
    left.extend(leftovers::netdevs(state));
    let left = &left - &leftovers::netdevs(&config);
    let unread = match again.precedence {
        Precedence::Merge => unread.clone().into(),
        Precedence::Replace => Arc::default(),
    };
    let keeper = Keeper { place, base: base.into(), unread, left, is_due: false };
    Ok(Begun { config, keeper, before: Some(before), events })
}

/// Says in the log, and in events, what a file makes of a state.
fn tell(path: &Path, file: &ConfigFile, config: &Config, told: &Preview, precedence: Precedence) -> Vec<Event> {
    let Preview { changes, dropped, unread } = told;
    let path = path.display();
    if !unread.is_empty() && precedence == Precedence::Merge {
        warn!("not understood by this version, and kept in the state at {path} as it is:{}", lines(unread));
    }
    let stays = differences(&file.config, config);
    if !stays.is_empty() {
        info!("changes that were made by API go on; they differ from the configuration file:{}", lines(&stays));
    }
    let mut texts = Vec::new();
    if !changes.is_empty() {
        let what = match precedence {
            Precedence::Merge => "the configuration file has been edited; this changes in the stored state",
            Precedence::Replace => "the configuration file replaces the stored state; this changes",
        };
        warn!("{what} at {path}:{}", lines(changes));
        texts.push(format!("{what}: {}", on_one_line(changes)));
    }
    if !dropped.is_empty() {
        let what = "changed by API, and dropped because the configuration file has precedence";
        warn!("{what}:{}", lines(dropped));
        texts.push(format!("{what}: {}", on_one_line(dropped)));
    }
    let now = time::wall();
    let event = |text| Event { text, ..Event::new(EventKind::Config, now) }.bounded();
    texts.into_iter().map(event).collect()
}

/// Opens the store at `path`. While another process has it open it is waited for, some time.
async fn open(path: &Path, patience: Duration) -> Result<(Store, Option<Desired>), StoreError> {
    let (start, mut told) = (time::now(), false);
    loop {
        match Store::open(path.to_owned()).await {
            Err(why @ StoreError::InUse { .. }) if time::now().since(start) < patience => {
                if !std::mem::replace(&mut told, true) {
                    warn!("{why}; waiting for it for {} s", patience.as_secs());
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            opened => return opened,
        }
    }
}

/// The configuration that is kept at `path`, by default where a switch keeps it. It is looked at only, whoever has it
/// open.
pub fn kept(path: Option<&Path>) -> Result<Config, NoBeginning> {
    let default = SwitchSettings::default().state;
    let path = path.or(default.as_deref()).unwrap_or(Path::new(""));
    let shown = path.display().to_string();
    if !path.exists() {
        return Err(NoBeginning::NothingKept { path: shown });
    }
    let Some(desired) = store::peek(path)? else { return Err(NoBeginning::NothingKept { path: shown }) };
    Ok(read(&desired, shown)?.config)
}

/// What a start over `file` would make of the state at `path`; `None` if there is none. It is looked at only, also while
/// a switch has it open.
pub fn preview(file: &ConfigFile, path: &Path) -> Result<Option<Preview>, NoBeginning> {
    if !path.exists() {
        return Ok(None);
    }
    let Some(desired) = store::peek(path)? else { return Ok(None) };
    let kept = read(&desired, path.display().to_string())?;
    Ok(Some(apply(file, &desired, &kept, Precedence::Merge).1))
}

fn read(desired: &Desired, path: String) -> Result<Stored, NoBeginning> {
    config::read_stored(&desired.config).map_err(|why| NoBeginning::NotUnderstood { path, why: why.to_string() })
}

/// Sentences, each on a line of its own, not too many.
fn lines(differences: &[String]) -> String {
    let mut text: String = differences.iter().take(TOLD).map(|told| format!("\n  {told}")).collect();
    if differences.len() > TOLD {
        text.push_str(&format!("\n  and {} more", differences.len() - TOLD));
    }
    text
}

/// Sentences one behind the other, not too many.
fn on_one_line(differences: &[String]) -> String {
    let mut text = differences.iter().take(TOLD_IN_EVENT).map(String::as_str).collect::<Vec<_>>().join("; ");
    if differences.len() > TOLD_IN_EVENT {
        text.push_str(&format!("; and {} more", differences.len() - TOLD_IN_EVENT));
    }
    text
}
