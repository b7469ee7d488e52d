//! Persists changes: stores the desired configuration, orphaned netdevs and events in the state store, as long as that
//! can be used. [`last_applied`] determines the initial configuration.
//!
//! The configuration file is stored as it is written, so that its next edit is known; the configuration is stored without
//! defaults. Keys that this version does not know are stored unchanged.

pub mod event_filter;
pub mod event_limit;
pub mod event_log;
pub mod event_page;
pub mod events;
pub mod history;
mod last_applied;
pub mod store;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;
use tracing::{error, warn};

use self::history::{Entry, History};
use self::last_applied::ReopenSettings;
pub use self::last_applied::{DISK_AT_START, Precedence, StartError, StartPreview, last_applied, preview, stored};
use crate::control::config::{Config, ConfigFile, UnknownParts};
use crate::control::desired::change::ChangeError;
use crate::control::desired::lifetimes::Lifetimes;
use crate::control::desired::merge::{Merged, merge};
use crate::control::desired::orphans::{self, Orphans};
use crate::control::state::events::Event;
use crate::control::state::store::{DesiredConfig, DesiredState, Parts, Store, StoreError, StoredStation};
use crate::sys::netns_id::LastingId;

/// The state store with the data stored beside the configuration. Clones share it.
#[derive(Debug, Clone)]
pub struct StateStore {
    backend: Backend,
    /// The configuration file as last applied: raw, without `[switch]`; null without a file.
    last_applied: Arc<Value>,
    /// Parts of the state unknown to this version.
    unknown: Arc<UnknownParts>,
    /// Stored orphans.
    orphans: Orphans,
    /// Namespaces with which ports end. Those of the configuration are stored with it.
    lifetimes: Arc<Lifetimes>,
    /// The initial configuration is not stored yet.
    is_due: bool,
    /// Events about changes of the configuration file that the start merged into the state.
    events: Vec<Event>,
    /// Number of the desired configuration.
    generation: u64,
    /// The last generations, with the one of the desired configuration.
    history: History,
}

#[derive(Debug, Clone)]
enum Backend {
    /// No state configured.
    None,
    /// The store.
    Open(Arc<Store>),
    /// The state is unusable: reason, and settings of the retry.
    Broken(String, Arc<ReopenSettings>),
}

impl StateStore {
    /// The state is still unusable, with the reason.
    pub fn still_broken(&mut self, reason: String) {
        if let Backend::Broken(why, _) = &mut self.backend {
            *why = reason;
        }
    }

    /// The desired state to store for `config`.
    fn desired_config(&self, config: &Config, orphans: &Orphans) -> DesiredConfig {
        DesiredConfig {
            last_applied: self.last_applied.clone(),
            config: config.clone(),
            unknown: self.unknown.clone(),
            orphans: orphans::to_value(orphans),
            lifetimes: self.lifetimes.of(config).to_value(),
            generation: self.generation,
        }
    }

    /// The same as it is stored.
    fn desired(&self, config: &Config, orphans: &Orphans) -> DesiredState {
        let mut stored = config.to_sparse();
        self.unknown.restore_into(&mut stored);
        DesiredState {
            last_applied: self.last_applied.as_ref().clone(),
            config: stored,
            orphans: orphans::to_value(orphans),
            lifetimes: self.lifetimes.of(config).to_value(),
            generation: self.generation,
        }
    }

    /// Stores the initial configuration, unless it is stored already.
    async fn commit_initial(&mut self, config: &Config, before: Option<DesiredState>, wait: Duration) {
        if before.is_some_and(|before| before == self.desired(config, &self.orphans)) {
            if let Some(store) = self.store().filter(|_| self.unknown.is_empty()) {
                // Without it, the first change takes longer.
                let _ = timeout(wait, store.set_config(config.clone())).await;
            }
            return;
        }
        let committed = timeout(wait, self.commit(config, &self.orphans, Vec::new())).await;
        let why = match committed {
            Ok(Ok(())) => return,
            Ok(Err(why)) => why.to_string(),
            Err(_) => format!("the disk does not answer within {} s", wait.as_secs()),
        };
        warn!("storing the configuration failed: {why}");
        self.is_due = true;
    }

    /// The last generations of the desired configuration.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Records a generation, which is stored with the next commit.
    pub fn record(&mut self, entry: Arc<Entry>) {
        self.history.record(entry);
    }

    /// Stores a configuration, its orphans and events durably.
    pub async fn commit(&self, config: &Config, orphans: &Orphans, events: Vec<Event>) -> Result<(), ChangeError> {
        match &self.backend {
            Backend::None => Ok(()),
            Backend::Open(store) => {
                let stored = store.commit_change(self.desired_config(config, orphans), self.history.rows(), events);
                stored.await.map_err(|why| ChangeError::switch("store_failed", why.to_string()))
            }
            Backend::Broken(why, _) => Err(ChangeError::switch("store_failed", why.as_str())),
        }
    }

    /// Stores the initial configuration, if still due, and events.
    pub async fn commit_due(&self, config: &Config, orphans: &Orphans, events: Vec<Event>) -> Result<(), StoreError> {
        match self.store() {
            Some(store) => store.commit_change(self.desired_config(config, orphans), self.history.rows(), events).await,
            None => Ok(()),
        }
    }

    /// The initial configuration is stored.
    pub fn mark_committed(&mut self) {
        self.is_due = false;
    }

    /// Stores orphans and the namespaces with which ports end beside the stored configuration, a generation if given, and
    /// events, durably.
    pub async fn commit_orphans(
        &self,
        orphans: &Orphans,
        generation: Option<u64>,
        events: Vec<Event>,
    ) -> Result<(), StoreError> {
        match self.store() {
            Some(store) => {
                store.set_history(self.history.rows()).await?;
                let (orphans, lifetimes) = (orphans::to_value(orphans), self.lifetimes.to_value());
                let parts = Parts { orphans: Some(orphans), lifetimes: Some(lifetimes), generation };
                store.commit_parts(parts, events).await
            }
            None => Ok(()),
        }
    }

    /// Stores the namespaces with which ports end, and events, durably.
    pub async fn commit_lifetimes(&self, events: Vec<Event>) -> Result<(), StoreError> {
        match self.store() {
            Some(store) => {
                store.set_history(self.history.rows()).await?;
                let lifetimes = Some(self.lifetimes.to_value());
                store.commit_parts(Parts { lifetimes, ..Parts::default() }, events).await
            }
            None => Ok(()),
        }
    }

    /// The namespaces with which ports end, as far as they are known.
    pub fn lifetimes(&self) -> &Lifetimes {
        &self.lifetimes
    }

    /// Records the namespace of a port, which is stored with the next commit. Returns whether that is new.
    pub fn record_lifetime(&mut self, port: &str, netns: &str, namespace: LastingId) -> bool {
        Arc::make_mut(&mut self.lifetimes).record(port, netns, namespace)
    }

    /// Forgets the namespaces that are of no port of these configurations.
    pub fn retain_lifetimes(&mut self, configs: &[&Config]) {
        // Most switches have none.
        if !self.lifetimes.is_empty() {
            Arc::make_mut(&mut self.lifetimes).retain(configs);
        }
    }

    /// Number of the desired configuration: each accepted change has a greater one, also over restarts.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Records the number of another configuration.
    pub fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// The configuration file as last applied, without `[switch]`.
    pub fn last_applied(&self) -> &Value {
        &self.last_applied
    }

    /// Records another applied configuration file.
    pub fn set_last_applied(&mut self, last_applied: Arc<Value>) {
        self.last_applied = last_applied;
    }

    /// Merges a file with the current configuration.
    pub fn merge(&self, file: &ConfigFile, config: &Config) -> Merged {
        merge(&last_applied::applied(&self.last_applied), &file.config, config)
    }

    /// Orphans of earlier runs.
    pub fn orphans(&self) -> Orphans {
        self.orphans.clone()
    }

    /// Whether the initial configuration is still to be stored.
    pub fn is_due(&self) -> bool {
        self.is_due
    }

    /// Whether changes can be accepted.
    pub fn check(&self) -> Result<(), ChangeError> {
        match &self.backend {
            Backend::Broken(why, _) => Err(ChangeError::switch("store_failed", why.as_str())),
            _ => Ok(()),
        }
    }

    /// The store, if any.
    pub fn store(&self) -> Option<&Arc<Store>> {
        match &self.backend {
            Backend::Open(store) => Some(store),
            _ => None,
        }
    }

    /// Stores events.
    pub async fn append_events(&self, events: Vec<Event>) -> Result<(), StoreError> {
        match self.store() {
            Some(store) if !events.is_empty() => {
                store.set_history(self.history.rows()).await?;
                store.append_events(events).await
            }
            _ => Ok(()),
        }
    }

    /// The greatest event id that may be in use, 0 if none is; the state reserves those behind it, or behind `first`. `None`
    /// without state.
    ///
    /// # Errors
    /// The state is unusable or cannot be written.
    pub async fn reserve_event_ids(&self, first: u64) -> Result<Option<u64>, ChangeError> {
        self.check()?;
        let Some(store) = self.store() else { return Ok(None) };
        let last = store.reserve_ids(first).await;
        last.map(Some).map_err(|why| ChangeError::switch("store_failed", why.to_string()))
    }

    /// No event has a greater id than this one: the next start continues there without a gap.
    pub async fn settle_event_ids(&self, last: u64) -> Result<(), StoreError> {
        match self.store() {
            Some(store) => store.settle_ids(last).await,
            None => Ok(()),
        }
    }

    /// Takes the events about changes of the configuration file that the start merged into the state.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Closes the store, if any and this is the last clone. The file is complete and unlocked when this returns.
    pub async fn close(self) {
        if let Backend::Open(store) = self.backend
            && let Some(store) = Arc::into_inner(store)
        {
            store.close().await;
        }
    }

    /// Takes the stored state of loops.
    pub async fn take_loops(&self) -> Value {
        let Some(store) = self.store() else { return Value::Null };
        store.loops().await.unwrap_or_else(|why| {
            warn!("the stored state of loop mitigation cannot be read: {why}");
            Value::Null
        })
    }

    /// At most `most` stored stations from a cursor on (the first is 0), and the next cursor, if there are more.
    pub async fn take_stations(&self, from: i64, most: usize) -> (Vec<StoredStation>, Option<i64>) {
        let Some(store) = self.store() else { return (Vec::new(), None) };
        store.stations_page(from, most).await.unwrap_or_else(|why| {
            warn!("the stored stations cannot be read: {why}");
            (Vec::new(), None)
        })
    }

    /// Checks the parts of the state that a start does not check.
    pub async fn verify(&self) {
        if let Some(store) = self.store()
            && let Err(why) = store.verify().await
        {
            error!("{why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::control::config::{self, Network};
    use crate::control::state::events::EventKind;

    fn config(networks: &[&str]) -> Config {
        Config { networks: networks.iter().map(|&id| Network::new(id)).collect(), ..Config::default() }
    }

    async fn begin(file: Option<Config>, path: &Path) -> (Config, StateStore) {
        StateStore::open(file.map(Into::into), Some(path), Precedence::Merge).await.unwrap()
    }

    /// Closes the file for the next store.
    async fn end(state_store: StateStore) {
        let Backend::Open(store) = state_store.backend else { panic!("{state_store:?}") };
        Arc::into_inner(store).unwrap().close().await;
    }

    #[tokio::test]
    async fn changes_are_kept_and_edits_of_the_file_applied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let (file, changed) = (config(&["a"]), config(&["a", "b"]));

        let (begun, store) = begin(Some(file.clone()), &path).await;
        assert_eq!(begun, file);
        store.commit(&changed, &Orphans::new(), Vec::new()).await.unwrap();
        end(store).await;

        // [switch] is as in the file, and edits of it do not count as edits of the rest.
        let mut other_switch = file.clone();
        other_switch.switch.frames = 1024;
        let (begun, store) = begin(Some(other_switch.clone()), &path).await;
        assert_eq!(begun, Config { switch: other_switch.switch, ..changed.clone() });
        end(store).await;

        let (begun, store) = begin(None, &path).await;
        assert_eq!((begun.networks, begun.switch.frames), (changed.networks.clone(), 1024));
        end(store).await;
        assert_eq!(stored(Some(&path)).unwrap().networks, changed.networks);

        let (edited, both) = (config(&["c"]), config(&["b", "c"]));
        let preview = preview(&edited.clone().into(), &path).unwrap().unwrap();
        assert_eq!(preview.changes.len(), 2, "a goes, and c comes: {preview:?}");
        let mut reported = 0;
        for _ in 0..2 {
            let (begun, mut store) = begin(Some(edited.clone()), &path).await;
            assert_eq!(begun, both);
            reported += store.take_events().len();
            end(store).await;
        }
        assert_eq!(reported, 1, "reported once");
        let replace = StateStore::open(Some(edited.clone().into()), Some(&path), Precedence::Replace);
        let (begun, store) = replace.await.unwrap();
        assert_eq!(begun, edited);
        end(store).await;
        let (begun, store) = begin(Some(edited.clone()), &path).await;
        assert_eq!(begun, edited, "a replaced configuration does not return");
        end(store).await;
    }

    /// The file is stored as written, without defaults.
    #[tokio::test]
    async fn a_default_is_no_edit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let (file, changed) = (config(&["a"]), config(&["a", "b"]));
        // As if `mtu` had been 1400 by default when this was stored.
        let (store, _) = Store::open(path.clone()).await.unwrap();
        let last_applied = json!({"networks": [{"id": "a"}]});
        let config = changed.to_sparse();
        let desired = DesiredState { last_applied, config, generation: 1, ..DesiredState::default() };
        store.commit(desired, Vec::new()).await.unwrap();
        store.close().await;
        let (begun, state_store) = begin(Some(file), &path).await;
        assert_eq!(begun.networks, changed.networks);
        end(state_store).await;
    }

    #[tokio::test]
    async fn unknown_parts_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let later = json!({"planets": 8, "networks": [{"id": "a", "colour": "blue"}, {"id": "b"}]});
        let (store, _) = Store::open(path.clone()).await.unwrap();
        let desired = DesiredState { config: later, generation: 1, ..DesiredState::default() };
        store.commit(desired, Vec::new()).await.unwrap();
        store.close().await;
        let (begun, state_store) = begin(Some(config(&["a"])), &path).await;
        assert_eq!(begun, config(&["a", "b"]));
        state_store.commit(&config(&["a"]), &Orphans::new(), Vec::new()).await.unwrap();
        end(state_store).await;
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

    /// Orphans are reported at each start until they are removed.
    #[tokio::test]
    async fn orphans_are_reported_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let ids = |store: &StateStore| store.orphans().into_iter().map(|orphans| orphans.port_id).collect::<Vec<_>>();
        let (_, store) = begin(Some(with_port("a")), &path).await;
        assert_eq!(ids(&store), [""; 0]);
        store.commit(&with_port("b"), &orphans::netdevs(&with_port("a")), Vec::new()).await.unwrap();
        end(store).await;
        let (_, store) = begin(None, &path).await;
        assert_eq!(ids(&store), ["a"]);
        store.commit_orphans(&orphans::netdevs(&with_port("c")), None, Vec::new()).await.unwrap();
        end(store).await;
        // The file's port has the address of the attached one, which is dropped with its netdev.
        let (begun, store) = begin(Some(with_port("d")), &path).await;
        assert_eq!((begun, ids(&store)), (with_port("d"), vec!["b".to_owned(), "c".to_owned()]));
        end(store).await;
        // Reported again if the switch was killed before removing them, except for netdevs in use again.
        let (_, store) = begin(Some(with_port("b")), &path).await;
        assert_eq!(ids(&store), ["c", "d"]);
        end(store).await;
        let (_, store) = begin(None, &path).await;
        store.commit_orphans(&Orphans::new(), None, Vec::new()).await.unwrap();
        end(store).await;
        assert_eq!(ids(&begin(None, &path).await.1), [""; 0]);
    }

    #[tokio::test]
    async fn without_file_and_state_the_start_fails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let messages = stored(Some(&path)).unwrap_err().to_string();
        assert!(messages.contains("--config FILE") && messages.contains("state.db"), "{messages}");
        assert_eq!(preview(&config(&["a"]).into(), &path).unwrap(), None);
        assert!(!path.exists(), "a preview creates nothing");
        let (store, _) = Store::open(path.clone()).await.unwrap();
        store.close().await;
        let begun = StateStore::open(None, Some(&path), Precedence::Merge).await;
        assert!(matches!(begun, Err(StartError::NothingStored { .. })));
    }

    #[tokio::test]
    async fn an_unusable_state_stops_changes_and_not_the_switch() {
        let dir = tempfile::tempdir().unwrap();
        let file = config(&["a"]);
        let refused = |state_store: &StateStore| {
            let error = state_store.check().unwrap_err();
            assert_eq!(error.kind, "store_failed");
            error.message
        };
        // Not a database; and a database with another schema.
        let rubbish = dir.path().join("rubbish.db");
        std::fs::write(&rubbish, [7; 5000]).unwrap();
        let strange = dir.path().join("strange.db");
        let (store, _) = Store::open(strange.clone()).await.unwrap();
        let desired = DesiredState { config: json!({"networks": 8}), generation: 1, ..DesiredState::default() };
        store.commit(desired, Vec::new()).await.unwrap();
        store.close().await;
        for path in [&rubbish, &strange] {
            let before = std::fs::read(path).unwrap();
            let (begun, state_store) = begin(Some(file.clone()), path).await;
            assert_eq!(begun, file);
            assert!(refused(&state_store).contains(&path.display().to_string()));
            assert_eq!(state_store.commit(&file, &Orphans::new(), Vec::new()).await.unwrap_err().kind, "store_failed");
            assert!(StateStore::open(None, Some(path), Precedence::Merge).await.is_err());
            assert_eq!(std::fs::read(path).unwrap(), before, "the file is unchanged");
        }
    }

    #[tokio::test]
    async fn without_a_state_path_nothing_is_stored() {
        let (begun, store) = StateStore::open(Some(config(&["a"]).into()), None, Precedence::Merge).await.unwrap();
        assert_eq!(begun, config(&["a"]));
        store.check().unwrap();
        store.commit(&begun, &Orphans::new(), Vec::new()).await.unwrap();
        let time = crate::time::rfc3339(std::time::SystemTime::UNIX_EPOCH);
        let kind = EventKind::Config;
        let text = String::new();
        let event = Event { time, text, ..Event::new(kind, std::time::SystemTime::UNIX_EPOCH) };
        store.append_events(vec![event]).await.unwrap();
        assert_eq!(store.take_stations(0, 1).await, (vec![], None));
    }
}
