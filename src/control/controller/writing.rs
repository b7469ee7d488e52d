//! What is written down, one thing after the other and aside: the store waits for the disk, and a
//! disk may hang. Meanwhile questions are answered, devices that are gone are taken back, and ports
//! that are down are tried again. Changes wait, in their order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::devices::Outcome;
use super::transition::{Reply, Transition};
use super::{Controller, DISK, MOST_EVENTS};
use crate::control::change::{Changed, Refusal};
use crate::control::config::Config;
use crate::control::difference::differences;
use crate::control::events::{Event, EventKind, shorten};
use crate::control::handle::{History, Request};
use crate::control::journal::Which;
use crate::control::keeper::Keeper;
use crate::control::leftovers::Leftovers;
use crate::control::seats;
use crate::control::store::StoreError;
use crate::time::{self, Moment};

/// After how long a state that cannot be written is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(2);

/// The state cannot be written.
#[derive(Debug)]
pub(super) struct Unwritten {
    /// When it is tried again.
    again: Moment,
}

/// The state that could not be used at the start, and can be now.
#[derive(Debug)]
pub(super) struct Recovered {
    config: Config,
    keeper: Keeper,
    /// Measures against loops and storms, and the state of pins.
    measures: Value,
}

/// What is being written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writing {
    /// What has happened. It may be read back as well.
    Events,
    /// A change, and what has happened before.
    Change,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Written {
    /// What has happened.
    Events(Result<(), StoreError>, Vec<Event>),
    /// A change.
    Change(Box<WrittenChange>),
    /// What a change would leave behind that is to be confirmed.
    Attempt(Result<(), StoreError>, Attempted),
}

/// What came of writing down a change.
#[derive(Debug)]
pub(super) struct WrittenChange {
    result: Result<(), Refusal>,
    /// What tells of it, and what had happened before and was written down with it.
    event: Event,
    before: Vec<Event>,
    then: Then,
    /// The configuration file that was applied with it, if one was.
    base: Option<Arc<Value>>,
}

/// What is done when a change has been written down.
#[derive(Debug)]
pub(super) enum Then {
    /// It is made.
    Make { config: Box<Config>, transition: Box<Transition> },
    /// It stays, and does not go back.
    Stay { changed: Changed, reply: Reply },
}

/// A change that goes back unless it is confirmed.
#[derive(Debug)]
pub(super) struct Attempted {
    /// What is wanted.
    pub config: Box<Config>,
    /// How it is gone over to.
    pub transition: Box<Transition>,
    /// The time for it to be confirmed, from when it has been made.
    pub within: Duration,
    /// What is otherwise.
    pub text: String,
}

impl Controller {
    /// Whether a change has to wait: another one is under way, something is being written down, or the state is retried.
    pub(super) fn is_busy(&self) -> bool {
        self.transition.is_some() || self.writing.is_some() || self.retries_state
    }

    /// Whether a change is being made, or written down.
    pub(super) fn has_change_in_hand(&self) -> bool {
        self.transition.is_some() || !self.pending.is_empty() || self.writing == Some(Writing::Change)
    }

    /// Begins to write down what has happened, unless something is being written down.
    pub(super) fn write_events(&mut self) {
        let is_due = self.keeper.is_due() && self.transition.is_none();
        let waits = self.unwritten.as_ref().is_some_and(|unwritten| time::now() < unwritten.again);
        if self.writing.is_some() || waits || self.keeper.check().is_err() || !(self.journal.has_unsaved() || is_due) {
            return;
        }
        let (events, keeper, done) = (self.journal.take_unsaved(), self.keeper.clone(), self.done.clone());
        self.writing = Some(Writing::Events);
        // With what the switch has begun with, if that could not be kept.
        let kept = self.unconfirmed.as_ref().map_or(&self.config, |unconfirmed| &unconfirmed.previous);
        let due = is_due.then(|| (kept.clone(), self.left(&self.config, kept)));
        tokio::spawn(async move {
            let told = events.clone();
            let result = match due {
                Some((config, left)) => keeper.commit_due(&config, &left, told).await,
                None => keeper.note(told).await,
            };
            let _ = done.send(Outcome::Written(Written::Events(result, events)));
        });
    }

    /// Begins to write down that netdevs have been removed, unless something is being written down.
    /// This is not urgent: they are looked for in vain at worst.
    pub(super) fn write_what_is_swept(&mut self) {
        if self.writing.is_some() || self.unwritten.is_some() || !std::mem::take(&mut self.swept) {
            return;
        }
        let kept = self.unconfirmed.as_ref().map_or(&self.config, |unconfirmed| &unconfirmed.previous);
        let left = self.left(&self.config, kept);
        let (events, keeper, done) = (self.journal.take_unsaved(), self.keeper.clone(), self.done.clone());
        self.writing = Some(Writing::Events);
        tokio::spawn(async move {
            let result = keeper.leave(&left, events.clone()).await;
            let _ = done.send(Outcome::Written(Written::Events(result, events)));
        });
    }

    /// Begins to write down what a change would leave behind that may go back. It is made then.
    /// Nothing is being written down.
    pub(super) fn write_attempt(&mut self, left: Leftovers, attempted: Attempted) {
        let (keeper, done) = (self.keeper.clone(), self.done.clone());
        self.writing = Some(Writing::Change);
        tokio::spawn(async move {
            let result = keeper.leave(&left, Vec::new()).await;
            let _ = done.send(Outcome::Written(Written::Attempt(result, attempted)));
        });
    }

    /// Begins to write down a change that leads to `config` and leaves `left` behind, which `event`
    /// tells of. With it the configuration file was applied that reads like `base`, if one was. Nothing is being written
    /// down.
    pub(super) fn write_change(
        &mut self,
        config: Config,
        left: Leftovers,
        event: Event,
        then: Then,
        base: Option<Arc<Value>>,
    ) {
        let before = self.journal.take_unsaved();
        let event = self.journal.numbered(event);
        let (mut keeper, done) = (self.keeper.clone(), self.done.clone());
        if let Some(base) = &base {
            keeper.rebase(base.clone());
        }
        self.writing = Some(Writing::Change);
        tokio::spawn(async move {
            let events = before.iter().chain([&event]).cloned().collect();
            let result = keeper.commit(&config, &left, events).await;
            let written = WrittenChange { result, event, before, then, base };
            let _ = done.send(Outcome::Written(Written::Change(written.into())));
        });
    }

    /// Answers what has happened, and what will: nothing is missed in between, and nothing told twice. What is
    /// remembered is answered also while the disk hangs.
    pub(super) fn read_events(&self, which: Which, reply: oneshot::Sender<Result<History, Refusal>>) {
        let which = match which.normal() {
            Ok(which) => which,
            Err(refusal) => return drop(reply.send(Err(refusal))),
        };
        let (mut remembered, live) = (self.journal.remembered(), self.journal.listen());
        let first = remembered.first().map_or(u64::MAX, |event| event.id);
        let is_enough = which.after.is_some_and(|after| after + 1 >= first);
        let Some(store) = self.keeper.store().cloned().filter(|_| !is_enough) else {
            remembered.retain(|event| which.means(event));
            return drop(reply.send(Ok((remembered, live))));
        };
        tokio::spawn(async move {
            let mut past = match timeout(DISK, store.events(which.since.clone(), MOST_EVENTS)).await {
                Ok(Ok(past)) => past,
                Ok(Err(why)) => {
                    // Whoever asks often must not fill the log.
                    debug!("events of the past cannot be read: {why}");
                    Vec::new()
                }
                Err(_) => {
                    debug!("events of the past have not been read within {} seconds", DISK.as_secs());
                    Vec::new()
                }
            };
            // Those of earlier starts that kept no state have numbers of their own.
            past.retain(|event| event.id < first);
            past.append(&mut remembered);
            past.retain(|event| which.means(event));
            let excess = past.len().saturating_sub(MOST_EVENTS);
            past.drain(..excess);
            // Whoever asked and has gone meanwhile gets no answer.
            let _ = reply.send(Ok((past, live)));
        });
    }

    /// Does what follows from something that has been written down, or has not.
    pub(super) async fn receive_written(&mut self, written: Written) {
        self.writing = None;
        match written {
            Written::Events(result, events) => self.receive_events(result, events),
            Written::Change(written) => {
                self.tell_unwritten(written.result.as_ref().err().map(|refusal| refusal.message.clone()));
                self.receive_change(*written).await;
            }
            Written::Attempt(Ok(()), attempted) => {
                self.tell_unwritten(None);
                self.attempt(attempted).await;
            }
            Written::Attempt(Err(why), attempted) => {
                self.tell_unwritten(Some(why.to_string()));
                attempted.transition.refuse(Refusal::switch("store_failed", why.to_string()));
            }
        }
    }

    async fn receive_change(&mut self, written: WrittenChange) {
        let WrittenChange { result, event, before, then, base } = written;
        if let Err(refusal) = result {
            self.journal.put_back(before);
            // Its number is taken: what has become of it stands there.
            let mut text = format!("not kept, and not made: {refusal}: {}", event.text);
            shorten(&mut text, 1024);
            warn!("config: {text}");
            self.journal.tell_kept(Event { text, ..event });
            return match then {
                Then::Make { transition, .. } => transition.refuse(refusal),
                Then::Stay { reply, .. } => drop(reply.send(Err(refusal))),
            };
        }
        info!("config: {}", event.text);
        self.keeper.is_kept();
        if let Some(base) = base {
            self.keeper.rebase(base);
        }
        self.journal.tell_kept(event);
        match then {
            Then::Make { config, transition } => self.make(*config, *transition).await,
            Then::Stay { changed, reply } => {
                self.unconfirmed = None;
                let _ = reply.send(Ok(changed));
            }
        }
    }

    fn receive_events(&mut self, result: Result<(), StoreError>, events: Vec<Event>) {
        if result.is_ok() {
            self.keeper.is_kept();
        } else {
            self.journal.put_back(events);
        }
        self.tell_unwritten(result.err().map(|why| why.to_string()));
    }

    /// Says that the state cannot be written, and that it can be again: once each.
    fn tell_unwritten(&mut self, failed: Option<String>) {
        let was = self.unwritten.take();
        let again = time::now() + TRY_AGAIN;
        if let Some(why) = failed {
            if was.is_none() {
                self.tell_state(format!(
                    "store_failed: changes cannot be kept, and none are taken until they can be: {why}"
                ));
            }
            self.unwritten = Some(Unwritten { again });
        } else if was.is_some() {
            self.tell_state("the state is written again, and changes are taken".into());
        }
    }

    fn tell_state(&mut self, text: String) {
        let event = self.event(EventKind::State, text);
        self.emit(true, event);
    }

    /// Says that the state could not be used at the start, if that is so.
    pub(super) fn tell_state_at_start(&mut self) {
        if let Err(refusal) = self.keeper.check() {
            self.tell_unwritten(Some(refusal.message));
        }
    }

    /// Retries the state that could not be used at the start, if a retry is due.
    pub(super) fn try_state_again(&mut self) {
        let is_due = self.unwritten.as_ref().is_some_and(|unwritten| time::now() >= unwritten.again);
        if is_due && self.keeper.check().is_err() && self.recovered.is_none() && !self.retries_state {
            self.retry_state(VecDeque::new());
        }
    }

    /// Retries the state that could not be used at the start. `changes` wait for the result, and are refused if the state
    /// still cannot be used. No other retry is in progress.
    pub(super) fn retry_state(&mut self, changes: VecDeque<Request>) {
        self.retries_state = true;
        let (keeper, done) = (self.keeper.clone(), self.done.clone());
        tokio::spawn(async move {
            let begun = match keeper.begin_again().await {
                Some(Ok((config, keeper))) => {
                    let measures = keeper.take_loops().await;
                    Ok(Recovered { config, keeper, measures })
                }
                Some(Err(why)) => Err(why),
                None => return,
            };
            let _ = done.send(Outcome::Again(begun.into(), changes));
        });
    }

    /// Handles the result of a retry.
    pub(super) async fn receive_retry(&mut self, begun: Result<Recovered, String>, mut changes: VecDeque<Request>) {
        self.retries_state = false;
        match begun {
            Ok(begun) => {
                self.recovered = Some(begun);
                changes.append(&mut self.waiting);
                self.waiting = changes;
            }
            Err(why) => {
                self.keeper.still_broken(why);
                self.unwritten = Some(Unwritten { again: time::now() + TRY_AGAIN });
                // Each is refused with the present reason.
                for change in changes {
                    self.apply_change(change).await;
                }
            }
        }
    }

    /// Goes over to what the state has, which can be used again, and keeps changes from now on.
    pub(super) async fn recover(&mut self) {
        if self.is_busy() {
            return;
        }
        let Some(Recovered { config, keeper, measures }) = self.recovered.take() else { return };
        self.left = keeper.left();
        self.keeper = keeper;
        self.tell_unwritten(None);
        let config = match seats::fits(&config) {
            Ok(()) => config,
            Err(why) => {
                warn!("what the state has beside the configuration file is not taken: {why}");
                self.config.clone()
            }
        };
        if config != self.config {
            let differences = differences(&self.config, &config);
            let event = self.event(EventKind::Config, format!("from the stored state: {}", differences.join("; ")));
            self.emit(false, event);
        }
        let left = self.clear_the_way(&config).await;
        self.resume_activations(&measures["activations"]);
        self.containment.resume_later(measures);
        self.make(config, Transition::default()).await;
        left.into_iter().for_each(|left| self.sweep(left));
        self.keep_activations();
        self.look_through_state(Some(0));
    }

    /// Waits until all has been written down.
    pub(super) async fn finish_writing(&mut self) {
        if let Some(unwritten) = &mut self.unwritten {
            unwritten.again = Moment::default();
        }
        self.write_events();
        self.write_what_is_swept();
        while self.writing.is_some() {
            match self.outcomes.recv().await {
                Some(Outcome::Written(Written::Events(result, events))) => {
                    self.writing = None;
                    self.receive_events(result, events);
                }
                // It is kept, and made at the next start: whoever asked hears that the switch leaves.
                Some(Outcome::Written(Written::Change(written))) => {
                    self.writing = None;
                    match written.result {
                        Ok(()) => info!("config: {}", written.event.text),
                        Err(_) => self.journal.put_back(written.before),
                    }
                }
                // Whoever asked for it hears that the switch leaves.
                Some(Outcome::Written(Written::Attempt(..))) => self.writing = None,
                // What was opened meanwhile is closed by being dropped.
                Some(_) => {}
                None => return,
            }
            self.write_events();
            self.write_what_is_swept();
        }
    }
}
