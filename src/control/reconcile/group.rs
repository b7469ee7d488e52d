//! Groups of changes. Changes that wait are computed one after the other, stored by one commit, which syncs the disk once,
//! applied together, and answered then. Each has a generation, an event with its author, an entry in the history and an
//! answer of its own, as if it had been made alone. One that is refused harms no other.
//!
//! A change joins a group if no earlier member concerns the same port, VM or network: each is then in the state before the
//! group or in the one after its only change, as it would be if the changes were made alone. Changes of uplinks and of settings
//! of networks concern many ports, and are made alone.
//!
//! A request that changes nothing, or is refused, may be so because of members that are not stored yet. It is answered with
//! them; if they cannot be stored, it is refused as they are.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::Controller;
use super::changes::summary;
use super::commit::{Record, generation_of_revert};
use super::results::{AfterCommit, Apply, Member, ProvisionalChange, Reply};
use crate::control::api::handle::{ChangeOptions, Request};
use crate::control::compile::plan::{Step, plan};
use crate::control::config::Config;
use crate::control::desired::change::{Change, ChangeError, ChangeResult};
use crate::control::desired::diff::Entity;
use crate::control::state::events::{Event, EventKind};
use crate::control::state::history::{Entry, Source};
use crate::time;

/// Maximum changes of a group.
const MAX_MEMBERS: usize = 64;

/// Maximum time of computing a group, in which nothing else is done. Its first change may take longer.
pub(super) const MAX_GROUP_TIME: Duration = Duration::from_millis(20);

/// A change that waits.
struct Waiting {
    change: Change,
    options: ChangeOptions,
    reply: Reply,
}

/// Changes that are stored and applied together.
struct Group {
    /// The configuration with all of them, and its generation.
    config: Config,
    generation: u64,
    members: Vec<Member>,
    events: Vec<Event>,
    made: Vec<Arc<Entry>>,
    answers: Vec<(Reply, Result<ChangeResult, ChangeError>)>,
    /// What the members concern; `None`: no other change may join.
    concerned: Option<HashSet<(Entity, String)>>,
}

/// What a change concerns.
struct Scope {
    /// Names of ports, with those that follow from others.
    ports: HashSet<String>,
    entities: HashSet<(Entity, String)>,
}

impl Scope {
    /// `None` if it cannot be made together with others.
    fn of(before: &Config, after: &Config, result: &ChangeResult) -> Option<Scope> {
        let mut entities = HashSet::new();
        for difference in &result.differences {
            match difference.kind {
                Entity::Switch | Entity::Uplink => return None,
                Entity::Network if difference.key.is_some() => return None,
                kind => drop(entities.insert((kind, difference.id.clone()))),
            }
        }
        // A change of a port may concern its subports.
        let ports: HashSet<String> = plan(before, after)
            .into_iter()
            .filter_map(|step| match step {
                Step::Close(port) => Some(port),
                Step::Open(port) | Step::Change { port, .. } => Some(port.port_id),
                _ => None,
            })
            .collect();
        entities.extend(ports.iter().map(|port| (Entity::Port, port.clone())));
        Some(Scope { ports, entities })
    }
}

impl Group {
    /// A group without changes.
    fn new(config: Config, generation: u64) -> Group {
        let (members, events, made, answers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Group { config, generation, members, events, made, answers, concerned: Some(HashSet::new()) }
    }

    /// Answers a request that changes nothing, with what it may depend on.
    fn answer(&mut self, reply: Reply, answer: Result<ChangeResult, ChangeError>) {
        if self.members.is_empty() {
            // The client may have disconnected.
            let _ = reply.send(answer);
        } else {
            self.answers.push((reply, answer));
        }
    }

    /// Whether a change of this scope may join.
    fn admits(&self, scope: Option<&Scope>) -> bool {
        match (&self.concerned, scope) {
            _ if self.members.is_empty() => true,
            (Some(concerned), Some(scope)) => concerned.is_disjoint(&scope.entities),
            _ => false,
        }
    }
}

impl Controller {
    /// Makes a change, with those that wait behind it and can be made together with it. No other change is in progress.
    pub(super) fn change(&mut self, change: Change, options: ChangeOptions, reply: Reply) {
        let begun = time::now();
        let mut group = Group::new(self.config.clone(), self.state.generation());
        let mut next = Some(Waiting { change, options, reply });
        while let Some(waiting) = next.take() {
            if let Some(waiting) = self.join(&mut group, waiting) {
                let Waiting { change, options, reply } = waiting;
                self.waiting.push_front(Request::Change(change, options, reply));
                break;
            }
            if self.commit.is_some() {
                // It is provisional, and alone.
                return;
            }
            let may_grow = group.concerned.is_some() && group.members.len() + group.answers.len() < MAX_MEMBERS;
            if may_grow && time::now().since(begun) < self.max_group_time {
                next = self.next_change();
            }
        }
        self.commit_group(group);
    }

    /// The next request that waits, if it is a change.
    fn next_change(&mut self) -> Option<Waiting> {
        while self.waiting.front().is_some_and(Request::is_abandoned) {
            self.waiting.pop_front();
        }
        match self.waiting.pop_front()? {
            Request::Change(change, options, reply) => Some(Waiting { change, options, reply }),
            other => {
                self.waiting.push_front(other);
                None
            }
        }
    }

    /// Adds a change to a group, or answers it. Returns one that cannot be made together with the others.
    fn join(&mut self, group: &mut Group, waiting: Waiting) -> Option<Waiting> {
        let Waiting { change, options, reply } = waiting;
        let checked = self.check_idle().and_then(|()| options.check(group.generation));
        let (config, result) = match checked.and_then(|()| change.outcome(&group.config, group.generation)) {
            Ok(outcome) => outcome,
            Err(error) => {
                group.answer(reply, Err(error));
                return None;
            }
        };
        if result.generation == group.generation {
            group.answer(reply, Ok(ChangeResult { generation: group.generation, ..ChangeResult::default() }));
            return None;
        }
        let scope = Scope::of(&group.config, &config, &result).filter(|_| options.confirm.is_none());
        if !group.admits(scope.as_ref()) {
            return Some(Waiting { change, options, reply });
        }
        let (mut text, by) = (summary(&result.changes), reply.by().cloned());
        let source = match change {
            Change::Rollback { generation, .. } => {
                text.insert_str(0, &format!("rolled back to generation {generation}: "));
                Source::Rollback
            }
            _ => Source::Api,
        };
        let made = Arc::new(Entry::between(&group.config, &config, &result, source, by.clone()));
        if let Some(within) = options.confirm {
            self.change_provisionally(config, Apply::one(result, Some(reply)), within, text, made);
            return None;
        }
        group.events.push(Event { by, ..self.event(EventKind::Config, text) });
        group.made.push(made);
        (group.config, group.generation) = (config, result.generation);
        let (ports, entities) = scope.map(|scope| (scope.ports, scope.entities)).unzip();
        group.members.push(Member { result, reply: Some(reply), ports });
        group.concerned = group.concerned.take().zip(entities).map(|(mut concerned, entities)| {
            concerned.extend(entities);
            concerned
        });
        None
    }

    /// Starts committing a group.
    fn commit_group(&mut self, group: Group) {
        let Group { config, generation, mut members, events, made, answers, .. } = group;
        if members.is_empty() {
            return;
        }
        if let [alone] = members.as_mut_slice() {
            alone.ports = None;
        }
        let orphans = self.orphans_after(&config, &config);
        let apply = Apply { members, answers, ..Apply::default() }.into();
        let then = AfterCommit::Apply { config: config.clone().into(), apply };
        self.commit_change(config, generation, orphans, Record { events, made, last_applied: None }, then);
    }

    /// Starts committing a change that is reverted unless confirmed.
    fn change_provisionally(&mut self, config: Config, apply: Apply, within: Duration, text: String, made: Arc<Entry>) {
        // The process may end before the change is reverted: the netdevs it would leave are stored as orphans.
        let orphans = self.orphans_after(&config, &self.config);
        let generation = self.state.generation() + 1;
        let back = ChangeResult::between(&config, &self.config, generation_of_revert(generation));
        let reverted = Entry::between(&config, &self.config, &back, Source::Revert, None).into();
        let (config, apply, made) = (config.into(), apply.into(), [made, reverted]);
        self.commit_provisional(orphans, ProvisionalChange { config, apply, generation, within, text, made });
    }
}
