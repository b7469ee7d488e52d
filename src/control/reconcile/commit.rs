//! Commits to the store, one at a time and in the background, because a disk may hang. Meanwhile requests are answered,
//! lost devices are closed and down ports retried; changes wait in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tracing::{info, warn};

use super::emit::log_event;
use super::readers::reserve_event_ids;
use super::results::{AfterCommit, Apply, ChangeCommitted, CommitDone, DeviceEvent, ProvisionalChange, Recovered};
use super::{Controller, DISK};
use crate::control::api::handle::Request;
use crate::control::compile::endpoints;
use crate::control::config::Config;
use crate::control::desired::change::ChangeError;
use crate::control::desired::diff::describe_changes;
use crate::control::desired::orphans::Orphans;
use crate::control::state::events::{Event, EventKind, shorten};
use crate::control::state::history::Entry;
use crate::control::state::store::StoreError;
use crate::time::{self, MonoTime};

/// Interval of retries while the state cannot be stored.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The state cannot be stored.
#[derive(Debug)]
pub(super) struct StoreFailure {
    /// Time of the next retry.
    retry_at: MonoTime,
}

/// Commit in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Commit {
    /// Events.
    Events,
    /// A change and earlier events.
    Change,
}

/// What is stored of changes beside the configuration.
#[derive(Debug)]
pub(super) struct Record {
    /// Events of the changes.
    pub events: Vec<Event>,
    /// Generations that they make.
    pub made: Vec<Arc<Entry>>,
    /// The configuration file that is applied with it, if any.
    pub last_applied: Option<Arc<Value>>,
}

/// Generation of the configuration that returns when a provisional change is reverted.
pub(super) fn generation_of_revert(provisional: u64) -> u64 {
    provisional + 1
}

impl Controller {
    /// Whether a change has to wait: another one or a commit is in progress, or the state is being retried.
    pub(super) fn is_busy(&self) -> bool {
        self.applying.is_some() || self.commit.is_some() || self.retries_state
    }

    /// Whether a change is being applied or committed.
    pub(super) fn has_change_in_progress(&self) -> bool {
        self.applying.is_some() || !self.pending.is_empty() || self.commit == Some(Commit::Change)
    }

    /// Starts committing events, unless a commit is in progress.
    pub(super) fn commit_events(&mut self) {
        let is_due = self.state.is_due() && self.applying.is_none();
        let has_lifetimes = self.lifetimes.are_due();
        let waits = self.store_failure.as_ref().is_some_and(|unwritten| time::now() < unwritten.retry_at);
        if self.commit.is_some()
            || waits
            || self.state.check().is_err()
            || !(self.event_log.has_uncommitted() || is_due || has_lifetimes)
        {
            return;
        }
        let (events, mut store, done) =
            (self.event_log.take_uncommitted(), self.state.clone(), self.device_event_sender.clone());
        if let Some(unconfirmed) = &self.unconfirmed {
            store.set_generation(generation_of_revert(self.state.generation()));
            store.record(unconfirmed.reverted.clone());
        }
        self.begin_commit(Commit::Events);
        // Includes the initial configuration, if it could not be stored before.
        let stored = self.unconfirmed.as_ref().map_or(&self.config, |unconfirmed| &unconfirmed.previous);
        let due = is_due.then(|| (stored.clone(), self.orphans_after(&self.config, stored)));
        tokio::spawn(async move {
            let to_store = events.clone();
            let result = match due {
                Some((config, orphans)) => store.commit_due(&config, &orphans, to_store).await,
                None if has_lifetimes => store.commit_lifetimes(to_store).await,
                None => store.append_events(to_store).await,
            };
            let _ = done.send(DeviceEvent::Committed(CommitDone::Events(result, events)));
        });
    }

    /// Starts committing removed orphans, unless a commit is in progress. Not urgent: without it the next start looks
    /// for them in vain.
    pub(super) fn commit_orphans(&mut self) {
        if self.commit.is_some() || self.store_failure.is_some() || !std::mem::take(&mut self.orphans_changed) {
            return;
        }
        let stored = self.unconfirmed.as_ref().map_or(&self.config, |unconfirmed| &unconfirmed.previous);
        let orphans = self.orphans_after(&self.config, stored);
        let (events, mut store, done) =
            (self.event_log.take_uncommitted(), self.state.clone(), self.device_event_sender.clone());
        if let Some(unconfirmed) = &self.unconfirmed {
            store.record(unconfirmed.reverted.clone());
        }
        self.begin_commit(Commit::Events);
        tokio::spawn(async move {
            let result = store.commit_orphans(&orphans, None, events.clone()).await;
            let _ = done.send(DeviceEvent::Committed(CommitDone::Events(result, events)));
        });
    }

    /// Starts committing the orphans of a provisional change, which is then applied. No other commit is in progress.
    pub(super) fn commit_provisional(&mut self, orphans: Orphans, provisional: ProvisionalChange) {
        let (mut store, done) = (self.state.clone(), self.device_event_sender.clone());
        provisional.made.iter().for_each(|entry| store.record(entry.clone()));
        self.begin_commit(Commit::Change);
        // The next start finds the configuration of before, which has another number than the provisional one.
        let generation = generation_of_revert(provisional.generation);
        tokio::spawn(async move {
            let result = store.commit_orphans(&orphans, Some(generation), Vec::new()).await;
            let _ = done.send(DeviceEvent::Committed(CommitDone::Attempt(result, provisional)));
        });
    }

    /// Starts committing one or more changes, which lead to `config`, with its generation, orphans and record. No other commit
    /// is in progress.
    pub(super) fn commit_change(
        &mut self,
        config: Config,
        generation: u64,
        orphans: Orphans,
        record: Record,
        next: AfterCommit,
    ) {
        let Record { events, made, last_applied } = record;
        let before = self.event_log.take_uncommitted();
        let events = self.event_log.hold(events, time::now());
        let (mut store, done) = (self.state.clone(), self.device_event_sender.clone());
        store.set_generation(generation);
        made.iter().for_each(|entry| store.record(entry.clone()));
        if let Some(last_applied) = &last_applied {
            store.set_last_applied(last_applied.clone());
        }
        self.begin_commit(Commit::Change);
        tokio::spawn(async move {
            let all = before.iter().chain(&events).cloned().collect();
            let result = store.commit(&config, &orphans, all).await;
            let committed = ChangeCommitted { result, generation, events, before, made, next, last_applied };
            let _ = done.send(DeviceEvent::Committed(CommitDone::Change(committed.into())));
        });
    }

    /// Emits an event if the disk does not answer a commit of a change in time, so that later events do not wait for it.
    pub(super) fn report_slow_commit(&mut self) {
        for event in self.event_log.give_up_waiting(time::now(), DISK) {
            log_event(true, &event);
        }
    }

    /// Handles the result of a commit.
    pub(super) async fn handle_commit_done(&mut self, done: CommitDone) {
        self.commit = None;
        self.measure_commit(&done);
        match done {
            CommitDone::Events(result, events) => self.handle_events_committed(result, events),
            CommitDone::Change(committed) => {
                self.emit_store_state(committed.result.as_ref().err().map(|error| error.message.clone()));
                self.handle_change_committed(*committed).await;
            }
            CommitDone::Attempt(Ok(()), provisional) => {
                self.emit_store_state(None);
                self.apply_provisionally(provisional).await;
            }
            CommitDone::Attempt(Err(why), provisional) => {
                self.emit_store_state(Some(why.to_string()));
                provisional.apply.reject(&ChangeError::switch("store_failed", why.to_string()));
            }
        }
    }

    fn measure_commit(&self, done: &CommitDone) {
        let measures = self.health.measures();
        measures.commits.observe(time::now().since(self.commit_begun));
        let has_failed = match done {
            CommitDone::Events(result, _) | CommitDone::Attempt(result, _) => result.is_err(),
            CommitDone::Change(committed) => committed.result.is_err(),
        };
        if has_failed {
            measures.commit_failures.add_one();
        }
    }

    fn begin_commit(&mut self, commit: Commit) {
        self.commit = Some(commit);
        self.commit_begun = time::now();
        self.lifetimes.begin_commit();
    }

    async fn handle_change_committed(&mut self, committed: ChangeCommitted) {
        let ChangeCommitted { result, generation, events, before, made, next, last_applied } = committed;
        self.settle_events(events, before, result.as_ref().err());
        if let Err(error) = result {
            return match next {
                AfterCommit::Apply { apply, .. } => apply.reject(&error),
                AfterCommit::Answer { reply, .. } => drop(reply.send(Err(error))),
            };
        }
        self.lifetimes.committed();
        self.state.mark_committed();
        self.set_generation(generation);
        made.into_iter().for_each(|entry| self.state.record(entry));
        if let Some(last_applied) = last_applied {
            self.state.set_last_applied(last_applied);
        }
        match next {
            AfterCommit::Apply { config, apply } => self.apply(*config, *apply).await,
            AfterCommit::Answer { changed, reply } => {
                self.unconfirmed = None;
                self.follow_lifetimes();
                let _ = reply.send(Ok(changed));
            }
        }
    }

    /// Shows the events of changes whose commit has ended, or those that report its failure.
    fn settle_events(&mut self, events: Vec<Event>, before: Vec<Event>, failure: Option<&ChangeError>) {
        let Some(error) = failure else {
            events.iter().for_each(|event| info!(event = "config", "{}", event.text));
            events.last().into_iter().for_each(|event| self.event_log.stored(event.id));
            return self.event_log.settle(events);
        };
        // The ids are used: each failed change is reported under its own.
        let failed = |event: Event| {
            let mut text = format!("not stored and not applied: {error}: {}", event.text);
            shorten(&mut text, 1024);
            warn!(event = "config", "{text}");
            Event { text, ..event }
        };
        self.event_log.fail(before, events.into_iter().map(failed).collect());
    }

    fn handle_events_committed(&mut self, result: Result<(), StoreError>, events: Vec<Event>) {
        if result.is_ok() {
            self.lifetimes.committed();
            self.state.mark_committed();
            events.last().into_iter().for_each(|last| self.event_log.stored(last.id));
        } else {
            self.event_log.put_back(events);
        }
        self.emit_store_state(result.err().map(|why| why.to_string()));
    }

    /// Emits one event when storing fails, and one when it works again.
    fn emit_store_state(&mut self, failed: Option<String>) {
        let was = self.store_failure.take();
        let retry_at = time::now() + RETRY_AFTER;
        self.publish_store(failed.clone());
        if let Some(why) = failed {
            if was.is_none() {
                self.emit_state(format!(
                    "store_failed: changes cannot be stored and are refused until they can: {why}"
                ));
            }
            self.store_failure = Some(StoreFailure { retry_at });
        } else if was.is_some() {
            self.emit_state("the state can be stored again; changes are accepted".into());
        }
    }

    fn emit_state(&mut self, text: String) {
        let event = self.event(EventKind::State, text);
        self.emit(true, event);
    }

    /// Appends events about the edited configuration file to the event log. The state has logged them already.
    pub(super) fn append_start_events(&mut self) {
        for event in self.state.take_events() {
            let _ = self.event_log.append(event, time::now());
        }
    }

    /// Emits an event if the state was unusable at the start.
    pub(super) fn emit_state_at_start(&mut self) {
        if let Err(error) = self.state.check() {
            self.emit_store_state(Some(error.message));
        }
    }

    /// Retries state that was unusable at the start, if due.
    pub(super) fn reopen_state(&mut self) {
        let is_due = self.store_failure.as_ref().is_some_and(|unwritten| time::now() >= unwritten.retry_at);
        if is_due && self.state.check().is_err() && self.recovered.is_none() && !self.retries_state {
            self.retry_state(VecDeque::new());
        }
    }

    /// Retries state that was unusable at the start. `changes` wait for the result and are refused if it still is. No
    /// other retry is in progress.
    pub(super) fn retry_state(&mut self, changes: VecDeque<Request>) {
        self.retries_state = true;
        let (store, done) = (self.state.clone(), self.device_event_sender.clone());
        // A new state has no ids in use: those of this start continue.
        let first = *self.event_log.newest().borrow();
        tokio::spawn(async move {
            let begun = match store.reopen().await {
                Some(Ok((config, store))) => {
                    let (measures, last_event) = (store.take_loops().await, reserve_event_ids(&store, first).await);
                    Ok(Recovered { config, store, measures, last_event })
                }
                Some(Err(why)) => Err(why),
                None => return,
            };
            let _ = done.send(DeviceEvent::StateReopened(begun.into(), changes));
        });
    }

    /// Handles the result of a retry.
    pub(super) fn receive_retry(&mut self, begun: Result<Recovered, String>, mut changes: VecDeque<Request>) {
        self.retries_state = false;
        match begun {
            Ok(begun) => {
                self.recovered = Some(begun);
                changes.append(&mut self.waiting);
                self.waiting = changes;
            }
            Err(why) => {
                self.state.still_broken(why);
                self.store_failure = Some(StoreFailure { retry_at: time::now() + RETRY_AFTER });
                // Refuses each with the current reason.
                for change in changes {
                    self.apply_change(change);
                }
            }
        }
    }

    /// Applies recovered state, and stores changes from then on.
    pub(super) async fn recover(&mut self) {
        if self.is_busy() {
            return;
        }
        let Some(Recovered { config, store, measures: mitigation, last_event }) = self.recovered.take() else { return };
        self.orphans = store.orphans();
        self.state = store;
        self.publish_state();
        let renumbered = last_event.and_then(|last| self.event_log.continue_behind(last, time::wall()));
        self.emit_store_state(None);
        if let Some(first) = renumbered {
            self.emit_state(format!(
                "the events since the start have new ids, from {first} on, and a new `start`, because the state has \
                 events with greater ids; followers may receive them twice"
            ));
        }
        self.append_start_events();
        let config = match endpoints::check_capacity(&config) {
            Ok(()) => config,
            Err(why) => {
                warn!("the API's changes in the stored state are ignored: {why}");
                self.config.clone()
            }
        };
        if config != self.config {
            let changes = describe_changes(&self.config, &config);
            let event = self.event(EventKind::Config, format!("from the stored state: {}", changes.join("; ")));
            self.emit(false, event);
        }
        let orphans = self.remove_conflicting_orphans(&config).await;
        self.resume_activations(&mitigation["activations"]);
        self.mitigation.load(mitigation);
        self.apply(config, Apply::default()).await;
        orphans.into_iter().for_each(|orphan| self.remove_orphan(orphan));
        self.persist_activations();
        self.verify_state(Some(0));
    }

    /// Waits until everything is stored.
    pub(super) async fn finish_commits(&mut self) {
        if let Some(unwritten) = &mut self.store_failure {
            unwritten.retry_at = MonoTime::default();
        }
        self.commit_events();
        self.commit_orphans();
        while self.commit.is_some() {
            match self.device_events.recv().await {
                Some(DeviceEvent::Committed(CommitDone::Events(result, events))) => {
                    self.commit = None;
                    self.handle_events_committed(result, events);
                }
                // The change is stored and takes effect at the next start; the client is told that the switch stops.
                Some(DeviceEvent::Committed(CommitDone::Change(committed))) => {
                    self.commit = None;
                    let ChangeCommitted { result, events, before, made, .. } = *committed;
                    self.settle_events(events, before, result.as_ref().err());
                    if result.is_ok() {
                        made.into_iter().for_each(|entry| self.state.record(entry));
                    }
                }
                // The client is told that the switch stops.
                Some(DeviceEvent::Committed(CommitDone::Attempt(result, provisional))) => {
                    self.commit = None;
                    if result.is_ok() {
                        provisional.made.into_iter().for_each(|entry| self.state.record(entry));
                    }
                }
                // Dropping it closes a device opened meanwhile.
                Some(_) => {}
                None => return,
            }
            self.commit_events();
            self.commit_orphans();
        }
        // The next start continues the ids without a gap.
        if self.store_failure.is_none()
            && let Some(last) = self.event_log.settled()
            && let Err(why) = self.state.settle_event_ids(last).await
        {
            warn!("the next start skips ids of events: {why}");
        }
    }
}
