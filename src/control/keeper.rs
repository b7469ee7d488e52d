//! Whether and where changes are kept, and with which configuration a switch begins.
//!
//! The rule at a start: the file is what an operator edits, and the state is what the API has made
//! of it. As long as the file says what it said when the state was derived from it, the state goes
//! on. Once the file has been edited, the file holds and the state is given up. Both ways the log
//! says in what they differ. `[switch]` is always as the file has it.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tracing::{error, info, warn};

use super::change::Refusal;
use super::config::{self, Config, SwitchSettings};
use super::difference::differences;
use super::events::Event;
use super::leftovers::{self, Leftovers};
use super::store::{Desired, KeptStation, Store, StoreError};

/// Differences told in the log, at most.
const TOLD: usize = 50;

/// Where changes are kept. Clones share it.
#[derive(Debug, Clone)]
pub enum Keeper {
    /// Nowhere: nothing is to be kept.
    Nowhere,
    /// In the store.
    Store {
        /// The store.
        store: Arc<Store>,
        /// What the configuration file meant when the state was derived from it; null without one.
        base: Arc<Value>,
        /// What was left behind before.
        left: Leftovers,
    },
    /// They should be, and cannot: why.
    Broken(String),
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
    #[error("the state that {path} keeps is not understood: {why}; name a configuration with --config FILE")]
    NotUnderstood {
        /// Where it is kept.
        path: String,
        /// Why.
        why: String,
    },
}

impl Keeper {
    /// With which configuration to begin, and where its changes are kept: over `file`, if there is
    /// one, else over what is kept at `path`.
    pub async fn begin(file: Option<Config>, path: Option<&Path>) -> Result<(Config, Keeper), NoBeginning> {
        match (file, path) {
            (Some(file), Some(path)) => Ok(over_file(file, path).await),
            (Some(file), None) => Ok((file, Keeper::Nowhere)),
            (None, path) => {
                let kept = SwitchSettings::default().state;
                resume(path.or(kept.as_deref()).unwrap_or(Path::new(""))).await
            }
        }
    }

    /// Keeps a configuration, what it leaves behind, and what happened on the way to it. When this
    /// returns it is kept.
    pub async fn commit(&self, config: &Config, left: &Leftovers, events: Vec<Event>) -> Result<(), Refusal> {
        match self {
            Keeper::Nowhere => Ok(()),
            Keeper::Store { store, base, .. } => {
                let leftovers = leftovers::written(left);
                let desired = Desired { base: base.as_ref().clone(), config: value(config), leftovers };
                store.commit(desired, events).await.map_err(|why| Refusal::switch("store_failed", why.to_string()))
            }
            Keeper::Broken(why) => Err(Refusal::switch("store_failed", why.as_str())),
        }
    }

    /// Keeps what is left behind beside the configuration that is kept, and what happened. When this
    /// returns it is kept.
    pub async fn leave(&self, left: &Leftovers, events: Vec<Event>) -> Result<(), StoreError> {
        match self.store() {
            Some(store) => store.leave(leftovers::written(left), events).await,
            None => Ok(()),
        }
    }

    /// What an earlier life has left behind.
    pub fn left(&self) -> Leftovers {
        match self {
            Keeper::Store { left, .. } => left.clone(),
            _ => Leftovers::new(),
        }
    }

    /// Whether changes can be taken at all.
    pub fn check(&self) -> Result<(), Refusal> {
        match self {
            Keeper::Broken(why) => Err(Refusal::switch("store_failed", why.as_str())),
            _ => Ok(()),
        }
    }

    /// The store, if there is one.
    pub fn store(&self) -> Option<&Arc<Store>> {
        match self {
            Keeper::Store { store, .. } => Some(store),
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

    /// Closes the store, if there is one and no clone of this is left: its file is whole, and free for
    /// the next one, when this returns.
    pub async fn close(self) {
        if let Keeper::Store { store, .. } = self
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

    /// The stations that were learned before.
    pub async fn take_stations(&self) -> Vec<KeptStation> {
        let Some(store) = self.store() else { return Vec::new() };
        store.take_stations().await.unwrap_or_else(|why| {
            warn!("the stations that were learned before are not known: {why}");
            Vec::new()
        })
    }
}

fn value(config: &Config) -> Value {
    // Its types have no map with other keys than texts, which is all that could fail.
    serde_json::to_value(config).unwrap_or_default()
}

/// What of a file is the beginning of a state: all but `[switch]`, which is fixed at each start.
fn base(file: &Config) -> Value {
    value(&Config { switch: SwitchSettings::default(), ..file.clone() })
}

/// Whether a state was derived from what `file` says. It may have been kept by another version, which
/// had other keys: what they mean is compared.
fn is_base(kept: &Value, file: &Config) -> bool {
    let kept = config::parse_json(&kept.to_string(), "the state");
    kept.is_ok_and(|kept| kept == Config { switch: SwitchSettings::default(), ..file.clone() })
}

fn read(desired: &Desired) -> Result<Config, String> {
    config::parse_json(&desired.config.to_string(), "the state").map_err(|errors| errors.to_string())
}

async fn over_file(file: Config, path: &Path) -> (Config, Keeper) {
    let (store, desired) = match Store::open(path.to_owned()).await {
        Ok(opened) => opened,
        Err(why) => {
            error!("{why}. The switch runs as the configuration file says, and takes no changes");
            return (file, Keeper::Broken(why.to_string()));
        }
    };
    let base = base(&file);
    let mut left = desired.as_ref().map(|desired| leftovers::read(&desired.leftovers)).unwrap_or_default();
    let config = match desired.as_ref().map(|desired| (is_base(&desired.base, &file), read(desired))) {
        None => file,
        Some((same, Ok(kept))) => {
            let kept = Config { switch: file.switch.clone(), ..kept };
            // Whichever of the two holds: what only the state had is of no use any more.
            left.extend(leftovers::netdevs(&kept));
            let differ = differences(&file, &kept);
            if differ.is_empty() {
                file
            } else if same {
                info!("changes that were made over the configuration file go on:{}", lines(&differ));
                kept
            } else {
                warn!(
                    "the configuration file has been edited and holds. Of the state at {} this is given up:{}",
                    path.display(),
                    lines(&differences(&file, &kept))
                );
                file
            }
        }
        Some((_, Err(why))) => {
            let path = path.display();
            error!(
                "the state at {path} is not understood and is left as it is: {why}. The switch runs as the configuration file says, and takes no changes"
            );
            return (file, Keeper::Broken(format!("the state at {path} is not understood: {why}")));
        }
    };
    let left = &left - &leftovers::netdevs(&config);
    let keeper = Keeper::Store { store: Arc::new(store), base: Arc::new(base), left: left.clone() };
    if desired.is_none_or(|desired| desired.config != value(&config) || Some(&desired.base) != keeper.base())
        && let Err(why) = keeper.commit(&config, &left, Vec::new()).await
    {
        warn!("the configuration has not been kept: {why}");
    }
    (config, keeper)
}

/// The configuration that is kept at `path`, by default where a switch keeps it. Looked at only.
pub async fn kept(path: Option<&Path>) -> Result<Config, NoBeginning> {
    let default = SwitchSettings::default().state;
    let path = path.or(default.as_deref()).unwrap_or(Path::new(""));
    if !path.exists() {
        // Looking for a state does not make one.
        return Err(NoBeginning::NothingKept { path: path.display().to_string() });
    }
    let (store, desired) = Store::open(path.to_owned()).await?;
    store.close().await;
    let path = path.display().to_string();
    let Some(desired) = desired else { return Err(NoBeginning::NothingKept { path }) };
    read(&desired).map_err(|why| NoBeginning::NotUnderstood { path, why })
}

async fn resume(path: &Path) -> Result<(Config, Keeper), NoBeginning> {
    let (store, desired) = Store::open(path.to_owned()).await?;
    let path = path.display().to_string();
    let Some(desired) = desired else { return Err(NoBeginning::NothingKept { path }) };
    let config = read(&desired).map_err(|why| NoBeginning::NotUnderstood { path, why })?;
    let left = &leftovers::read(&desired.leftovers) - &leftovers::netdevs(&config);
    Ok((config, Keeper::Store { store: Arc::new(store), base: Arc::new(desired.base), left }))
}

impl Keeper {
    fn base(&self) -> Option<&Value> {
        match self {
            Keeper::Store { base, .. } => Some(base),
            _ => None,
        }
    }
}

/// Sentences, each on a line of its own, not too many.
fn lines(differences: &[String]) -> String {
    let mut text: String = differences.iter().take(TOLD).map(|told| format!("\n  {told}")).collect();
    if differences.len() > TOLD {
        text.push_str(&format!("\n  and {} more", differences.len() - TOLD));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::Network;
    use crate::control::events::EventKind;

    fn config(networks: &[&str]) -> Config {
        Config { networks: networks.iter().map(|&id| Network::new(id)).collect(), ..Config::default() }
    }

    async fn begin(file: Option<Config>, path: &Path) -> (Config, Keeper) {
        Keeper::begin(file, Some(path)).await.unwrap()
    }

    /// So that the file is free for the next one.
    async fn end(keeper: Keeper) {
        let Keeper::Store { store, .. } = keeper else { panic!("{keeper:?}") };
        Arc::into_inner(store).unwrap().close().await;
    }

    #[tokio::test]
    async fn the_state_goes_on_until_the_file_is_edited() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let (file, changed, edited) = (config(&["a"]), config(&["a", "b"]), config(&["c"]));

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
        assert_eq!(kept(Some(&path)).await.unwrap().networks, changed.networks);

        let (begun, keeper) = begin(Some(edited.clone()), &path).await;
        assert_eq!(begun, edited);
        end(keeper).await;
        let (begun, keeper) = begin(None, &path).await;
        assert_eq!(begun, edited, "what was given up does not come back");
        end(keeper).await;
        let (begun, keeper) = begin(Some(file.clone()), &path).await;
        assert_eq!(begun, file, "also not with the file that was there before");
        end(keeper).await;
    }

    /// An earlier version kept no key that it did not have, and meant what such a file means now.
    #[tokio::test]
    async fn the_state_of_an_earlier_version_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let (file, changed) = (config(&["a"]), config(&["a", "b"]));
        let (store, _) = Store::open(path.clone()).await.unwrap();
        let earlier = |config: &Config| {
            let mut kept = value(config);
            kept.as_object_mut().unwrap().remove("uplinks").expect("it is written");
            kept
        };
        let desired = Desired { base: earlier(&file), config: earlier(&changed), leftovers: Value::Null };
        store.commit(desired, Vec::new()).await.unwrap();
        store.close().await;
        let (begun, keeper) = begin(Some(file.clone()), &path).await;
        assert_eq!(begun.networks, changed.networks);
        end(keeper).await;
    }

    fn with_port(id: &str) -> Config {
        let text = serde_json::json!({"networks": [{"id": "n"}], "vms": [{"id": "v", "ports": [{"port_id": id,
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
        // An edited file gives up the state, and what the state had.
        let (_, keeper) = begin(Some(with_port("d")), &path).await;
        assert_eq!(ids(&keeper), ["b", "c"]);
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
        let told = kept(Some(&path)).await.unwrap_err().to_string();
        assert!(told.contains("--config FILE") && told.contains("state.db"), "{told}");
        assert!(!path.exists(), "looking makes nothing");
        let (store, _) = Store::open(path.clone()).await.unwrap();
        store.close().await;
        assert!(matches!(Keeper::begin(None, Some(&path)).await, Err(NoBeginning::NothingKept { .. })));
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
        let desired = Desired { base: Value::Null, config: serde_json::json!({"planets": 8}), leftovers: Value::Null };
        store.commit(desired, Vec::new()).await.unwrap();
        store.close().await;
        for path in [&rubbish, &strange] {
            let before = std::fs::read(path).unwrap();
            let (begun, keeper) = begin(Some(file.clone()), path).await;
            assert_eq!(begun, file);
            assert!(refused(&keeper).contains(&path.display().to_string()));
            assert_eq!(keeper.commit(&file, &Leftovers::new(), Vec::new()).await.unwrap_err().kind, "store_failed");
            assert!(Keeper::begin(None, Some(path)).await.is_err());
            assert_eq!(std::fs::read(path).unwrap(), before, "it is left as it is");
        }
    }

    #[tokio::test]
    async fn nothing_is_kept_where_nothing_is_to_be() {
        let (begun, keeper) = Keeper::begin(Some(config(&["a"])), None).await.unwrap();
        assert_eq!(begun, config(&["a"]));
        keeper.check().unwrap();
        keeper.commit(&begun, &Leftovers::new(), Vec::new()).await.unwrap();
        let time = crate::time::rfc3339(std::time::SystemTime::UNIX_EPOCH);
        let kind = EventKind::Config;
        let text = String::new();
        let event = Event { time, kind, vm: None, ports: Vec::new(), network: None, mac: None, text };
        keeper.note(vec![event]).await.unwrap();
        assert_eq!(keeper.take_stations().await, []);
    }
}
