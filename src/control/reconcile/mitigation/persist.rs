//! Stores and restores the state of loops and storms: on changes, and with the FDB.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::monitor::DisabledPort;
use super::{Controller, Mitigation};
use crate::control::loops::snapshot::{self, Clocks};
use crate::control::loops::topology::{Endpoint, Topology};
use crate::time::{self, Stamp};

/// Maximum quarantine for a storm with a recovery time: a day.
const MAX_QUARANTINE: Duration = Duration::from_secs(86_400);

/// State of storing and restoring.
#[derive(Debug, Default)]
pub(super) struct Persistence {
    /// Stored state, until the topology is known.
    loaded: Option<Value>,
    /// The state has changed since it was stored.
    pub(super) is_due: bool,
    write: Option<JoinHandle<()>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PersistedDisabled {
    end: Endpoint,
    class: String,
    since: i64,
    until: Option<i64>,
}

fn persist_disabled(disabled: &BTreeMap<Endpoint, DisabledPort>, clocks: Clocks) -> Vec<PersistedDisabled> {
    let stored = |(end, of): (&Endpoint, &DisabledPort)| PersistedDisabled {
        end: end.clone(),
        class: of.class.clone(),
        since: clocks.millis(of.since),
        until: of.until.map(|until| clocks.millis(until)),
    };
    disabled.iter().map(stored).collect()
}

fn restore_disabled(stored: &Value, topology: &Topology, clocks: Clocks) -> BTreeMap<Endpoint, DisabledPort> {
    let all = stored.as_array().map(Vec::as_slice).unwrap_or_default();
    let all = all.iter().filter_map(|of| PersistedDisabled::deserialize(of).ok());
    let known = all.filter(|of| topology.has(&of.end) && of.end.vm.is_some());
    let resumed = known.map(|of| {
        let until = of.until.map(|until| clocks.instant(until).min(clocks.now + MAX_QUARANTINE));
        let since = clocks.instant(of.since).min(clocks.now);
        (of.end, DisabledPort { since, until, class: of.class, episode: None })
    });
    resumed.collect()
}

impl Mitigation {
    /// Sets stored state, to be restored once the topology is known.
    pub(in crate::control::reconcile) fn load(&mut self, stored: Value) {
        self.persistence.loaded = (!stored.is_null()).then_some(stored);
    }

    /// Restores stored state, once.
    pub(super) fn restore(&mut self) {
        let Some(mut stored) = self.persistence.loaded.take() else { return };
        let clocks = match Stamp::deserialize(&stored["stamp"]) {
            Ok(stamp) => Clocks::since(&stamp, &Stamp::now(), time::now()),
            // Earlier versions stored the wall clock only.
            Err(_) => clocks(),
        };
        // State detected since the start is more recent.
        for (end, disabled) in restore_disabled(&stored["disabled"], &self.topology, clocks) {
            self.disabled.entry(end).or_insert(disabled);
        }
        self.loops.add(snapshot::restore(stored["loops"].take(), &self.topology, clocks));
        let (loops, disabled) = (self.loops.loops().count(), self.disabled.len());
        if loops + disabled > 0 {
            info!(loops, disabled, "mitigation of loops and storms of the last run is active again");
        }
    }
}

/// The current time by both clocks.
pub(super) fn clocks() -> Clocks {
    Clocks { now: time::now(), wall: time::wall() }
}

impl Controller {
    /// Requests storing, changed or not: counts of dropped frames and times of loops age.
    pub(in crate::control::reconcile) fn mark_loops_dirty(&mut self) {
        let Mitigation { loops, disabled, persistence, .. } = &mut self.mitigation;
        persistence.is_due |= loops.loops().next().is_some() || !disabled.is_empty();
    }

    /// Stores activations as soon as possible.
    pub(in crate::control::reconcile) fn persist_activations(&mut self) {
        self.mitigation.persistence.is_due = true;
        self.persist_loops();
    }

    /// Starts storing the state, if requested and not in progress.
    pub(in crate::control::reconcile) fn persist_loops(&mut self) {
        let Mitigation { loops: table, disabled, persistence, .. } = &mut self.mitigation;
        let under_way = persistence.write.as_ref().is_some_and(|write| !write.is_finished());
        if under_way || !std::mem::take(&mut persistence.is_due) {
            return;
        }
        let Some(store) = self.state.store().cloned() else { return };
        let clocks = clocks();
        let stored = json!({
            "stamp": Stamp::now(),
            "loops": snapshot::to_value(table, clocks),
            "disabled": persist_disabled(disabled, clocks),
            "activations": self.activations.to_value(),
        });
        persistence.write = Some(tokio::spawn(async move {
            if let Err(why) = store.put_loops(stored).await {
                warn!("storing the state of loop mitigation failed: {why}");
            }
        }));
    }

    /// Waits until the state is stored.
    pub(in crate::control::reconcile) async fn finish_persisting_loops(&mut self) {
        for _ in 0..2 {
            if let Some(write) = self.mitigation.persistence.write.take() {
                let _ = write.await;
            }
            self.persist_loops();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::MonoTime;
    use std::time::UNIX_EPOCH;

    #[test]
    fn disabled_ports_are_restored_and_invalid_contents_ignored() {
        let end = |port: &str| Endpoint { vm: Some("v".into()), network: "n".into(), port: port.into(), host: None };
        let clocks =
            |boot, wall| Clocks { now: MonoTime::from_secs(boot), wall: UNIX_EPOCH + Duration::from_secs(wall) };
        let quarantined = |since, until: Option<u64>| DisabledPort {
            since: MonoTime::from_secs(since),
            until: until.map(MonoTime::from_secs),
            class: "broadcast".into(),
            episode: None,
        };
        let disabled = BTreeMap::from([
            (end("a"), quarantined(900, Some(1200))),
            (end("b"), quarantined(950, None)),
            (end("gone"), quarantined(1, None)),
        ]);
        let mut stored = serde_json::to_value(persist_disabled(&disabled, clocks(1000, 5000))).unwrap();
        stored.as_array_mut().unwrap().extend([json!(7), json!({"end": null}), Value::Null]);
        let topology = Topology::new([], [(end("a"), 0), (end("b"), 1)]);
        // A hundred seconds later, on a host that was booted in between.
        let back = restore_disabled(&stored, &topology, clocks(3000, 5100));
        assert_eq!(
            back,
            BTreeMap::from([(end("a"), quarantined(2800, Some(3100))), (end("b"), quarantined(2850, None))])
        );
        assert_eq!(restore_disabled(&Value::Null, &topology, clocks(1, 1)), BTreeMap::new());
    }
}
