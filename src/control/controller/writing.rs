//! What is written down, one thing after the other and aside: the store waits for the disk, and a
//! disk may hang. Meanwhile questions are answered, devices that are gone are taken back, and ports
//! that are down are tried again. Changes wait, in their order.

use std::time::Duration;

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::devices::Outcome;
use super::transition::{Reply, Transition};
use super::{Controller, MOST_EVENTS};
use crate::control::change::{Changed, Refusal};
use crate::control::config::Config;
use crate::control::events::Event;
use crate::control::handle::History;
use crate::control::leftovers::Leftovers;
use crate::control::store::StoreError;

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
    Events(Result<(), StoreError>),
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
    /// Whether a change has to wait: another one is under way, or something is being written down.
    pub(super) fn is_busy(&self) -> bool {
        self.transition.is_some() || self.writing.is_some()
    }

    /// Begins to write down what has happened, unless something is being written down.
    pub(super) fn write_events(&mut self) {
        if self.writing.is_some() || !self.journal.has_unsaved() {
            return;
        }
        let (events, keeper, done) = (self.journal.take_unsaved(), self.keeper.clone(), self.done.clone());
        self.writing = Some(Writing::Events);
        tokio::spawn(async move {
            let _ = done.send(Outcome::Written(Written::Events(keeper.note(events).await)));
        });
    }

    /// Begins to write down that netdevs have been removed, unless something is being written down.
    /// This is not urgent: they are looked for in vain at worst.
    pub(super) fn write_what_is_swept(&mut self) {
        if self.writing.is_some() || !std::mem::take(&mut self.swept) {
            return;
        }
        let kept = self.unconfirmed.as_ref().map_or(&self.config, |unconfirmed| &unconfirmed.previous);
        let left = self.left(&self.config, kept);
        let (events, keeper, done) = (self.journal.take_unsaved(), self.keeper.clone(), self.done.clone());
        self.writing = Some(Writing::Events);
        tokio::spawn(async move {
            let _ = done.send(Outcome::Written(Written::Events(keeper.leave(&left, events).await)));
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
    /// tells of. Nothing is being written down.
    pub(super) fn write_change(&mut self, config: Config, left: Leftovers, event: Event, then: Then) {
        let before = self.journal.take_unsaved();
        let (keeper, done) = (self.keeper.clone(), self.done.clone());
        self.writing = Some(Writing::Change);
        tokio::spawn(async move {
            let events = before.iter().chain([&event]).cloned().collect();
            let result = keeper.commit(&config, &left, events).await;
            let written = WrittenChange { result, event, before, then };
            let _ = done.send(Outcome::Written(Written::Change(written.into())));
        });
    }

    /// Begins to read what has happened, and says what will: nothing is missed in between, and
    /// nothing told twice. Nothing is being written down.
    pub(super) fn read_events(&mut self, since: Option<String>, reply: oneshot::Sender<Result<History, Refusal>>) {
        let remembered = match self.journal.since(since.as_deref()) {
            Ok(remembered) => remembered,
            Err(refusal) => return drop(reply.send(Err(refusal))),
        };
        let (unsaved, live) = (self.journal.take_unsaved(), self.journal.listen());
        let Some(store) = self.keeper.store().cloned() else { return drop(reply.send(Ok((remembered, live)))) };
        let done = self.done.clone();
        self.writing = Some(Writing::Events);
        tokio::spawn(async move {
            let noted = if unsaved.is_empty() { Ok(()) } else { store.note(unsaved).await };
            let told = match store.events(since, MOST_EVENTS).await {
                Ok(past) => Ok((past, live)),
                Err(why @ StoreError::NotATime { .. }) => Err(Refusal::request("bad_value", why.to_string())),
                Err(why) => {
                    warn!("events of the past cannot be read: {why}");
                    Ok((remembered, live))
                }
            };
            // Whoever asked and has gone meanwhile gets no answer.
            let _ = reply.send(told);
            let _ = done.send(Outcome::Written(Written::Events(noted)));
        });
    }

    /// Does what follows from something that has been written down, or has not.
    pub(super) async fn receive_written(&mut self, written: Written) {
        self.writing = None;
        match written {
            Written::Events(result) => self.tell_unwritten(result.err()),
            Written::Change(written) => self.receive_change(*written).await,
            Written::Attempt(Ok(()), attempted) => self.attempt(attempted).await,
            Written::Attempt(Err(why), attempted) => {
                attempted.transition.refuse(Refusal::switch("store_failed", why.to_string()));
            }
        }
    }

    async fn receive_change(&mut self, written: WrittenChange) {
        let WrittenChange { result, event, before, then } = written;
        if let Err(refusal) = result {
            self.journal.put_back(before);
            return match then {
                Then::Make { transition, .. } => transition.refuse(refusal),
                Then::Stay { reply, .. } => drop(reply.send(Err(refusal))),
            };
        }
        info!("config: {}", event.text);
        self.journal.tell_kept(event);
        match then {
            Then::Make { config, transition } => self.make(*config, *transition).await,
            Then::Stay { changed, reply } => {
                self.unconfirmed = None;
                let _ = reply.send(Ok(changed));
            }
        }
    }

    fn tell_unwritten(&mut self, failed: Option<StoreError>) {
        if let Some(why) = failed.as_ref().filter(|_| !self.unwritten) {
            warn!("what happens is remembered only as long as the switch runs: {why}");
        } else if failed.is_none() && self.unwritten {
            info!("what happens is written down again");
        }
        self.unwritten = failed.is_some();
    }

    /// Waits until all has been written down.
    pub(super) async fn finish_writing(&mut self) {
        self.write_events();
        self.write_what_is_swept();
        while self.writing.is_some() {
            match self.outcomes.recv().await {
                Some(Outcome::Written(Written::Events(result))) => {
                    self.writing = None;
                    self.tell_unwritten(result.err());
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
