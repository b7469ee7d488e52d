//! Changes that are made alone: of the configuration file, and provisional ones, which are confirmed or reverted. `group` makes
//! the others, `apply` applies what is committed.

use std::sync::Arc;
use std::time::Duration;

use tracing::info;

use super::Controller;
use super::commit::{Record, generation_of_revert};
use super::results::{AfterCommit, Apply, ProvisionalChange, Reply};
use crate::control::api::responses::UnconfirmedView;
use crate::control::author::Author;
use crate::control::config::{Config, ConfigFile};
use crate::control::desired::change::{Change, ChangeError, ChangeResult};
use crate::control::desired::diff::describe_changes;
use crate::control::desired::merge::Merged;
use crate::control::state;
use crate::control::state::events::{Event, EventKind, shorten};
use crate::control::state::history::{Entry, Source};
use crate::time::{self, MonoTime};

/// Maximum changes listed in an event.
const MAX_CHANGES_SHOWN: usize = 20;

/// Maximum length of each in bytes.
const MAX_CHANGE_LEN: usize = 600;

/// An applied change that is reverted unless confirmed.
#[derive(Debug)]
pub(super) struct UnconfirmedChange {
    pub previous: Config,
    within: Duration,
    pub deadline: MonoTime,
    /// The generation of its revert if the process ends before.
    pub(super) reverted: Arc<Entry>,
    /// The client that wants it reverted now.
    cancelled: Option<Reply>,
}

impl UnconfirmedChange {
    /// Begins the time to confirm, when the result is visible. A change that was cancelled meanwhile stays due.
    pub(super) fn restart_time(&mut self, now: MonoTime) {
        if self.cancelled.is_none() {
            self.deadline = now + self.within;
        }
    }
}

impl Controller {
    /// Applies the configuration file. Keeps API changes made since it was last applied.
    pub(super) fn reload(&mut self, file: Result<ConfigFile, String>, reply: Reply) {
        let (file, merged, result) = match self.reloaded(file) {
            Ok(reloaded) => reloaded,
            Err(error) => {
                self.emit_config(format!("reload failed; no changes: {}", error.message), None);
                return drop(reply.send(Err(error)));
            }
        };
        let last_applied = state::last_applied(&file);
        if merged.config == self.config && last_applied == *self.state.last_applied() {
            info!(event = "config", "reloaded; no changes");
            return drop(reply.send(Ok(result)));
        }
        let mut text = format!("reloaded: {}", summary(&result.changes));
        if !merged.conflicts.is_empty() {
            text.push_str("; changed by API, and dropped because the configuration file has precedence: ");
            text.push_str(&summary(&merged.conflicts));
        }
        let event = self.event(EventKind::Config, text);
        let orphans = self.orphans_after(&merged.config, &merged.config);
        let generation = result.generation;
        let mut made = Vec::new();
        if merged.config != self.config {
            made.push(Entry::between(&self.config, &merged.config, &result, Source::File, None).into());
        }
        let apply = Apply::one(result, Some(reply)).into();
        let then = AfterCommit::Apply { config: merged.config.clone().into(), apply };
        let record = Record { events: vec![event], made, last_applied: Some(last_applied.into()) };
        self.commit_change(merged.config, generation, orphans, record, then);
    }

    /// Merges the file with API changes.
    fn reloaded(&self, file: Result<ConfigFile, String>) -> Result<(ConfigFile, Merged, ChangeResult), ChangeError> {
        let file = file.map_err(|why| ChangeError::request("unreadable", why))?;
        self.check_idle()?;
        let merged = self.state.merge(&file, &self.config);
        let (config, changed) = self.outcome(&Change::Apply(merged.config))?;
        Ok((file, Merged { config, ..merged }, changed))
    }

    /// Applies a change that is reverted unless confirmed.
    pub(super) async fn apply_provisionally(&mut self, provisional: ProvisionalChange) {
        let ProvisionalChange { config, apply, generation, within, text, made: [made, reverted] } = provisional;
        let by = apply.members.iter().find_map(|member| member.reply.as_ref()?.by().cloned());
        self.emit_config(format!("to be confirmed within {}: {text}", seconds(within)), by);
        let previous = self.config.clone();
        self.set_generation(generation);
        self.state.record(made);
        self.unconfirmed =
            Some(UnconfirmedChange { previous, within, deadline: time::now() + within, reverted, cancelled: None });
        self.apply(*config, Apply { to_be_confirmed: true, ..*apply }).await;
    }

    /// Whether a change may start.
    pub(super) fn check_idle(&self) -> Result<(), ChangeError> {
        self.state.check()?;
        if self.unconfirmed.is_some() {
            let message = "the last change is not confirmed; confirm it, or wait until it is reverted";
            return Err(ChangeError::conflict("unconfirmed", message));
        }
        Ok(())
    }

    /// The configuration and result of a change.
    pub(super) fn outcome(&self, change: &Change) -> Result<(Config, ChangeResult), ChangeError> {
        change.outcome(&self.config, self.state.generation())
    }

    /// Makes the unconfirmed change permanent.
    pub(super) fn confirm(&mut self, reply: Reply) {
        let Some(unconfirmed) = &self.unconfirmed else {
            let error = ChangeError::conflict("nothing_to_confirm", "no unconfirmed change");
            return drop(reply.send(Err(error)));
        };
        let generation = self.state.generation();
        let changed = ChangeResult::between(&unconfirmed.previous, &self.config, generation);
        let text = format!("confirmed: {}", summary(&changed.changes));
        let event = Event { by: reply.by().cloned(), ..self.event(EventKind::Config, text) };
        let orphans = self.orphans_after(&self.config, &self.config);
        let next = AfterCommit::Answer { changed, reply };
        let record = Record { events: vec![event], made: Vec::new(), last_applied: None };
        self.commit_change(self.config.clone(), generation, orphans, record, next);
    }

    /// Reverts the unconfirmed change as soon as it is applied, and answers then.
    pub(super) fn cancel(&mut self, reply: Reply) {
        match &mut self.unconfirmed {
            Some(unconfirmed) if unconfirmed.cancelled.is_none() => {
                unconfirmed.deadline = time::now();
                unconfirmed.cancelled = Some(reply);
            }
            _ => {
                let error = ChangeError::conflict("nothing_to_confirm", "no unconfirmed change");
                let _ = reply.send(Err(error));
            }
        }
    }

    /// The unconfirmed change, for status.
    pub(super) fn unconfirmed_view(&self) -> Option<UnconfirmedView> {
        let unconfirmed = self.unconfirmed.as_ref()?;
        Some(UnconfirmedView {
            seconds_left: unconfirmed.deadline.since(time::now()).as_secs(),
            changes: describe_changes(&unconfirmed.previous, &self.config),
            generation: self.state.generation(),
        })
    }

    /// Reverts the unconfirmed change.
    pub(super) async fn revert(&mut self) {
        let Some(UnconfirmedChange { previous, within, cancelled, .. }) = self.unconfirmed.take() else { return };
        self.set_generation(generation_of_revert(self.state.generation()));
        let result = ChangeResult::between(&self.config, &previous, self.state.generation());
        let text = summary(&result.changes);
        let why = match cancelled {
            Some(_) => "cancelled".to_owned(),
            None => format!("not confirmed within {}", seconds(within)),
        };
        let by = cancelled.as_ref().and_then(|reply| reply.by().cloned());
        self.state.record(Entry::between(&self.config, &previous, &result, Source::Revert, by.clone()).into());
        self.emit_config(format!("{why}; reverted: {text}"), by);
        self.apply(previous, Apply::one(result, cancelled)).await;
    }

    fn emit_config(&mut self, text: String, by: Option<Author>) {
        let event = Event { by, ..self.event(EventKind::Config, text) };
        self.emit(true, event);
    }
}

/// Changes as one text of limited length.
pub(super) fn summary(changes: &[String]) -> String {
    let short = |difference: &String| {
        let mut text = difference.clone();
        shorten(&mut text, MAX_CHANGE_LEN);
        text
    };
    let mut text = changes.iter().take(MAX_CHANGES_SHOWN).map(short).collect::<Vec<_>>().join("; ");
    if changes.len() > MAX_CHANGES_SHOWN {
        text.push_str(&format!("; and {} more", changes.len() - MAX_CHANGES_SHOWN));
    }
    text
}

fn seconds(duration: Duration) -> String {
    format!("{} seconds", duration.as_secs_f64())
}
