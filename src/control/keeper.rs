//! Whether and where changes are kept, and with which configuration a switch begins.
//!
//! The rule at a start: the file is what an operator edits, and the state is what the API has made of it. Both are merged
//! ([`merge`]): what the file has changed since it was last applied is applied, what was changed by API stays, and where
//! both have changed the same the file has precedence. The log and an event say what that changes in the state.
//! `[switch]` is always as the file has it. A file that is to replace the state takes its place as it is.
//!
//! The file is kept as it is written, so that its next edit is known; the state is kept without defaults. What of the
//! state this version does not understand is kept as it is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tracing::{error, info, warn};

use super::change::Refusal;
use super::config::{self, Config, ConfigFile, Stored, SwitchSettings, Unread};
use super::difference::differences;
use super::events::{Event, EventKind};
use super::leftovers::{self, Leftovers};
use super::merge::{Merged, merge};
use super::store::{self, Desired, KeptStation, Store, StoreError};
use crate::time;

/// Events among which the one with the greatest number is: more than ever wait for a change to be kept.
const LAST: usize = 1000;

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

/// Where changes are kept, and beside what. Clones share it.
#[derive(Debug, Clone)]
pub struct Keeper {
    place: Place,
    /// The configuration file as it was last applied, as it is written and without `[switch]`; null without one.
    base: Arc<Value>,
    /// What of the state this version does not understand.
    unread: Arc<Unread>,
    /// What was left behind before.
    left: Leftovers,
    /// What the switch begins with could not be kept.
    is_due: bool,
}

#[derive(Debug, Clone)]
enum Place {
    /// Nowhere: nothing is to be kept.
    Nowhere,
    /// In the store.
    Store(Arc<Store>),
    /// They should be, and cannot now: why, and what to try again.
    Broken(String, Arc<Again>),
}

/// How to begin again with a state that could not be used.
#[derive(Debug)]
struct Again {
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

    /// The state still cannot be used: why.
    pub fn still_broken(&mut self, reason: String) {
        if let Place::Broken(why, _) = &mut self.place {
            *why = reason;
        }
    }

    /// One over a file, beside which nothing is known.
    fn at(place: Place, file: ConfigFile) -> (Config, Keeper) {
        let base = base(&file).into();
        (file.config, Keeper { place, base, unread: Arc::default(), left: Leftovers::new(), is_due: false })
    }

    /// What of `config` and beside it is kept.
    fn desired(&self, config: &Config, left: &Leftovers) -> Desired {
        let mut kept = config.to_sparse();
        self.unread.graft(&mut kept);
        Desired { base: self.base.as_ref().clone(), config: kept, leftovers: leftovers::written(left) }
    }

    /// Keeps a configuration, what it leaves behind, and what happened on the way to it. When this
    /// returns it is kept.
    pub async fn commit(&self, config: &Config, left: &Leftovers, events: Vec<Event>) -> Result<(), Refusal> {
        match &self.place {
            Place::Nowhere => Ok(()),
            Place::Store(store) => {
                let kept = store.commit(self.desired(config, left), events).await;
                kept.map_err(|why| Refusal::switch("store_failed", why.to_string()))
            }
            Place::Broken(why, _) => Err(Refusal::switch("store_failed", why.as_str())),
        }
    }

    /// Keeps what the switch has begun with, if that is still due, and what happened.
    pub async fn commit_due(&self, config: &Config, left: &Leftovers, events: Vec<Event>) -> Result<(), StoreError> {
        match self.store() {
            Some(store) => store.commit(self.desired(config, left), events).await,
            None => Ok(()),
        }
    }

    /// What the switch has begun with is kept.
    pub fn is_kept(&mut self) {
        self.is_due = false;
    }

    /// Keeps what is left behind beside the configuration that is kept, and what happened. When this
    /// returns it is kept.
    pub async fn leave(&self, left: &Leftovers, events: Vec<Event>) -> Result<(), StoreError> {
        match self.store() {
            Some(store) => store.leave(leftovers::written(left), events).await,
            None => Ok(()),
        }
    }

    /// The configuration file as it was last applied, without `[switch]`.
    pub fn base(&self) -> &Value {
        &self.base
    }

    /// Another configuration file has been applied.
    pub fn rebase(&mut self, base: Arc<Value>) {
        self.base = base;
    }

    /// What a file makes of the configuration in force.
    pub fn merge(&self, file: &ConfigFile, config: &Config) -> Merged {
        merge(&applied(&self.base), &file.config, config)
    }

    /// What an earlier life has left behind.
    pub fn left(&self) -> Leftovers {
        self.left.clone()
    }

    /// Whether what the switch has begun with is still to be kept.
    pub fn is_due(&self) -> bool {
        self.is_due
    }

    /// Whether changes can be taken at all.
    pub fn check(&self) -> Result<(), Refusal> {
        match &self.place {
            Place::Broken(why, _) => Err(Refusal::switch("store_failed", why.as_str())),
            _ => Ok(()),
        }
    }

    /// The store, if there is one.
    pub fn store(&self) -> Option<&Arc<Store>> {
        match &self.place {
            Place::Store(store) => Some(store),
            _ => None,
        }
    }

    /// Writes down what happened.
    pub async fn note(&self, events: Vec<Event>) -> Result<(), StoreError> {
        match self.store() {
            Some(store) if !events.is_empty() => store.note(events).await,
            _ => Ok(()),
        }
    }

    /// The greatest number of an event that is kept; 0 if none is.
    pub async fn last_event(&self) -> u64 {
        let Some(store) = self.store() else { return 0 };
        let last = store.events(None, LAST).await.unwrap_or_default();
        last.iter().map(|event| event.id).max().unwrap_or_default()
    }

    /// Closes the store, if there is one and no clone of this is left: its file is whole, and free for
    /// the next one, when this returns.
    pub async fn close(self) {
        if let Place::Store(store) = self.place
            && let Some(store) = Arc::into_inner(store)
        {
            store.close().await;
        }
    }

    /// What was known of loops before.
    pub async fn take_loops(&self) -> Value {
        let Some(store) = self.store() else { return Value::Null };
        store.loops().await.unwrap_or_else(|why| {
            warn!("what was done about loops before is not known: {why}");
            Value::Null
        })
    }

    /// Some of the stations that were learned before, from a place on (the first is 0), and the place at which it goes on,
    /// if there are more.
    pub async fn take_stations(&self, from: i64) -> (Vec<KeptStation>, Option<i64>) {
        let Some(store) = self.store() else { return (Vec::new(), None) };
        store.some_stations(from).await.unwrap_or_else(|why| {
            warn!("the stations that were learned before are not known: {why}");
            (Vec::new(), None)
        })
    }

    /// Looks for damage in the state that does not show at a start.
    pub async fn verify(&self) {
        if let Some(store) = self.store()
            && let Err(why) = store.verify().await
        {
            error!("{why}");
        }
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
fn applied(base: &Value) -> Config {
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

impl Keeper {
    /// Keeps what a switch begins with, unless that is what is kept already.
    async fn keep(&mut self, config: &Config, before: Option<Desired>, events: Vec<Event>) {
        if before.is_some_and(|before| before == self.desired(config, &self.left)) {
            return;
        }
        if let Err(why) = self.commit(config, &self.left, events).await {
            warn!("the configuration has not been kept: {why}");
            self.is_due = true;
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::Network;
    use serde_json::json;

    fn config(networks: &[&str]) -> Config {
        Config { networks: networks.iter().map(|&id| Network::new(id)).collect(), ..Config::default() }
    }

    async fn begin(file: Option<Config>, path: &Path) -> (Config, Keeper) {
        Keeper::begin(file.map(Into::into), Some(path), Precedence::Merge).await.unwrap()
    }

    /// So that the file is free for the next one.
    async fn end(keeper: Keeper) {
        let Place::Store(store) = keeper.place else { panic!("{keeper:?}") };
        Arc::into_inner(store).unwrap().close().await;
    }

    #[tokio::test]
    async fn what_was_changed_goes_on_and_an_edit_of_the_file_is_applied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let (file, changed) = (config(&["a"]), config(&["a", "b"]));

        let (begun, keeper) = begin(Some(file.clone()), &path).await;
        assert_eq!(begun, file);
        keeper.commit(&changed, &Leftovers::new(), Vec::new()).await.unwrap();
        end(keeper).await;

        // [switch] is as the file has it, and no edit of the rest.
        let mut other_switch = file.clone();
        other_switch.switch.frames = 1024;
        let (begun, keeper) = begin(Some(other_switch.clone()), &path).await;
        assert_eq!(begun, Config { switch: other_switch.switch, ..changed.clone() });
        end(keeper).await;

        let (begun, keeper) = begin(None, &path).await;
        assert_eq!((begun.networks, begun.switch.frames), (changed.networks.clone(), 1024));
        end(keeper).await;
        assert_eq!(kept(Some(&path)).unwrap().networks, changed.networks);

        let (edited, both) = (config(&["c"]), config(&["b", "c"]));
        let preview = preview(&edited.clone().into(), &path).unwrap().unwrap();
        assert_eq!(preview.changes.len(), 2, "a goes, and c comes: {preview:?}");
        for _ in 0..2 {
            let (begun, keeper) = begin(Some(edited.clone()), &path).await;
            assert_eq!(begun, both);
            assert_eq!(keeper.store().unwrap().events(None, 9).await.unwrap().len(), 1, "told once");
            end(keeper).await;
        }
        let replace = Keeper::begin(Some(edited.clone().into()), Some(&path), Precedence::Replace);
        let (begun, keeper) = replace.await.unwrap();
        assert_eq!(begun, edited);
        end(keeper).await;
        let (begun, keeper) = begin(Some(edited.clone()), &path).await;
        assert_eq!(begun, edited, "what was replaced does not come back");
        end(keeper).await;
    }

    /// What is kept of the file is what is written in it.
    #[tokio::test]
    async fn a_default_is_no_edit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let (file, changed) = (config(&["a"]), config(&["a", "b"]));
        // As if `mtu` had been 1400 by default when this was kept.
        let (store, _) = Store::open(path.clone()).await.unwrap();
        let base = json!({"networks": [{"id": "a"}]});
        let desired = Desired { base, config: changed.to_sparse(), leftovers: Value::Null };
        store.commit(desired, Vec::new()).await.unwrap();
        store.close().await;
        let (begun, keeper) = begin(Some(file), &path).await;
        assert_eq!(begun.networks, changed.networks);
        end(keeper).await;
    }

    #[tokio::test]
    async fn what_is_not_understood_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let later = json!({"planets": 8, "networks": [{"id": "a", "colour": "blue"}, {"id": "b"}]});
        let (store, _) = Store::open(path.clone()).await.unwrap();
        let desired = Desired { base: Value::Null, config: later, leftovers: Value::Null };
        store.commit(desired, Vec::new()).await.unwrap();
        store.close().await;
        let (begun, keeper) = begin(Some(config(&["a"])), &path).await;
        assert_eq!(begun, config(&["a", "b"]));
        keeper.commit(&config(&["a"]), &Leftovers::new(), Vec::new()).await.unwrap();
        end(keeper).await;
        let (store, desired) = Store::open(path).await.unwrap();
        let desired = desired.unwrap();
        assert_eq!((&desired.config["planets"], &desired.config["networks"][0]["colour"]), (&json!(8), &json!("blue")));
        store.close().await;
    }

    fn with_port(id: &str) -> Config {
        let text = json!({"networks": [{"id": "n"}], "vms": [{"id": "v", "ports": [{"port_id": id,
            "network_id": "n", "mac_address": "02:00:00:00:00:01", "device": {"kind": "tap", "name": id}}]}]});
        config::parse_json(&text.to_string(), "x").unwrap()
    }

    /// Whatever there may be and nobody wants any more is told at the next start, until it is gone.
    #[tokio::test]
    async fn what_is_left_behind_is_told_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let ids = |keeper: &Keeper| keeper.left().into_iter().map(|left| left.port_id).collect::<Vec<_>>();
        let (_, keeper) = begin(Some(with_port("a")), &path).await;
        assert_eq!(ids(&keeper), [""; 0]);
        keeper.commit(&with_port("b"), &leftovers::netdevs(&with_port("a")), Vec::new()).await.unwrap();
        end(keeper).await;
        let (_, keeper) = begin(None, &path).await;
        assert_eq!(ids(&keeper), ["a"]);
        keeper.leave(&leftovers::netdevs(&with_port("c")), Vec::new()).await.unwrap();
        end(keeper).await;
        // The port of the file has the address of the one that was attached, which is dropped with what it had.
        let (begun, keeper) = begin(Some(with_port("d")), &path).await;
        assert_eq!((begun, ids(&keeper)), (with_port("d"), vec!["b".to_owned(), "c".to_owned()]));
        end(keeper).await;
        // It is told again if the switch was killed before it was done, but not what is wanted again.
        let (_, keeper) = begin(Some(with_port("b")), &path).await;
        assert_eq!(ids(&keeper), ["c", "d"]);
        end(keeper).await;
        let (_, keeper) = begin(None, &path).await;
        keeper.leave(&Leftovers::new(), Vec::new()).await.unwrap();
        end(keeper).await;
        assert_eq!(ids(&begin(None, &path).await.1), [""; 0]);
    }

    #[tokio::test]
    async fn without_a_file_and_a_state_there_is_nothing_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let told = kept(Some(&path)).unwrap_err().to_string();
        assert!(told.contains("--config FILE") && told.contains("state.db"), "{told}");
        assert_eq!(preview(&config(&["a"]).into(), &path).unwrap(), None);
        assert!(!path.exists(), "looking makes nothing");
        let (store, _) = Store::open(path.clone()).await.unwrap();
        store.close().await;
        let begun = Keeper::begin(None, Some(&path), Precedence::Merge).await;
        assert!(matches!(begun, Err(NoBeginning::NothingKept { .. })));
    }

    #[tokio::test]
    async fn a_state_that_is_no_use_stops_changes_and_not_the_switch() {
        let dir = tempfile::tempdir().unwrap();
        let file = config(&["a"]);
        let refused = |keeper: &Keeper| {
            let refusal = keeper.check().unwrap_err();
            assert_eq!(refusal.kind, "store_failed");
            refusal.message
        };
        // Not a database; and one whose state is from another world.
        let rubbish = dir.path().join("rubbish.db");
        std::fs::write(&rubbish, [7; 5000]).unwrap();
        let strange = dir.path().join("strange.db");
        let (store, _) = Store::open(strange.clone()).await.unwrap();
        let desired = Desired { base: Value::Null, config: json!({"networks": 8}), leftovers: Value::Null };
        store.commit(desired, Vec::new()).await.unwrap();
        store.close().await;
        for path in [&rubbish, &strange] {
            let before = std::fs::read(path).unwrap();
            let (begun, keeper) = begin(Some(file.clone()), path).await;
            assert_eq!(begun, file);
            assert!(refused(&keeper).contains(&path.display().to_string()));
            assert_eq!(keeper.commit(&file, &Leftovers::new(), Vec::new()).await.unwrap_err().kind, "store_failed");
            assert!(Keeper::begin(None, Some(path), Precedence::Merge).await.is_err());
            assert_eq!(std::fs::read(path).unwrap(), before, "it is left as it is");
        }
    }

    #[tokio::test]
    async fn nothing_is_kept_where_nothing_is_to_be() {
        let (begun, keeper) = Keeper::begin(Some(config(&["a"]).into()), None, Precedence::Merge).await.unwrap();
        assert_eq!(begun, config(&["a"]));
        keeper.check().unwrap();
        keeper.commit(&begun, &Leftovers::new(), Vec::new()).await.unwrap();
        let time = crate::time::rfc3339(std::time::SystemTime::UNIX_EPOCH);
        let kind = EventKind::Config;
        let text = String::new();
        let event = Event { time, text, ..Event::new(kind, std::time::SystemTime::UNIX_EPOCH) };
        keeper.note(vec![event]).await.unwrap();
        assert_eq!(keeper.take_stations(0).await, (vec![], None));
    }
}
