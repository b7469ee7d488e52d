//! The last generations of the desired state: what changed when, by whom, and how to get back.
//!
//! Each generation has the steps back to the one before (`Patch`), so that recording one port of thousands stores one
//! port. A configuration is restored from the current one, step by step. A version of the program that knows no history
//! may have written the state meanwhile: then a generation without steps back marks the hole, and nothing before it can
//! be restored.

mod patch;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use self::patch::{Patch, value};
use super::store::HistoryRow;
use crate::control::author::Author;
use crate::control::config::{self, Config};
use crate::control::desired::change::{ChangeError, ChangeResult};
use crate::control::desired::diff::Difference;
use crate::control::state::events::shorten;
use crate::time;

/// Maximum generations.
pub const MAX_GENERATIONS: usize = 32;

/// Maximum bytes of all generations; the newest one is kept whatever its size.
const MAX_BYTES: usize = 16 << 20;

/// Maximum differences listed per generation.
const MAX_DIFFERENCES: usize = 100;

/// Maximum length of a sentence in bytes.
const MAX_SENTENCE: usize = 600;

/// Where a generation comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The configuration file, at the start or on SIGHUP.
    File,
    /// A request to the API.
    Api,
    /// A change that was not confirmed was taken back.
    Revert,
    /// An earlier generation was restored.
    Rollback,
    /// The network namespaces of ports with `lifetime = "netns"` have ended, and the switch has removed these ports.
    Netns,
    /// The stored state, whose origin is not recorded.
    State,
}

/// A generation of the desired state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GenerationView {
    /// Its number.
    pub generation: u64,
    /// When it was accepted.
    pub time: String,
    /// Where it comes from.
    pub source: Source,
    /// Who made it; absent if it was neither a request to the API nor the switch itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by: Option<Author>,
    /// What has changed since the one before, one sentence each.
    pub changes: Vec<String>,
    /// The same for programs.
    pub differences: Vec<Difference>,
    /// Number of changes that are not listed, because there are too many.
    #[serde(default)]
    pub omitted: usize,
    /// Whether `POST /v1/rollback` can restore it.
    #[serde(default)]
    pub restorable: bool,
}

/// A generation as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct StoredEntry {
    #[serde(flatten)]
    view: GenerationView,
    /// Version of the program that recorded it.
    version: String,
    /// The steps back to the one before; none if that is not known.
    back: Option<Patch>,
}

/// A recorded generation.
#[derive(Debug, PartialEq)]
pub struct Entry {
    view: GenerationView,
    has_steps: bool,
    /// All of it as JSON.
    text: Arc<str>,
}

/// The recorded generations, ascending. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct History {
    entries: Vec<Arc<Entry>>,
}

impl Entry {
    /// The generation that `result` leads to, from one configuration to another.
    pub fn between(old: &Config, new: &Config, result: &ChangeResult, source: Source, by: Option<Author>) -> Entry {
        let ChangeResult { changes, differences, generation, .. } = result;
        let short = |text: &String| {
            let mut text = text.clone();
            shorten(&mut text, MAX_SENTENCE);
            text
        };
        let changes: Vec<String> = changes.iter().take(MAX_DIFFERENCES).map(short).collect();
        let omitted = result.changes.len() - changes.len();
        let differences = differences.iter().take(MAX_DIFFERENCES).cloned().collect();
        let view = GenerationView { by, changes, differences, omitted, ..of(*generation, source) };
        Entry::of(view, Some(Patch::between(new, old)))
    }

    /// The first generation that is recorded, or the first behind a hole, with a sentence on that.
    pub fn first(generation: u64, source: Source, sentence: &str) -> Entry {
        Entry::of(GenerationView { changes: vec![sentence.to_owned()], ..of(generation, source) }, None)
    }

    fn of(view: GenerationView, back: Option<Patch>) -> Entry {
        let stored = StoredEntry { view, version: env!("CARGO_PKG_VERSION").to_owned(), back };
        // Serialising tables cannot fail.
        let text = serde_json::to_string(&stored).unwrap_or_default().into();
        Entry { view: stored.view, has_steps: stored.back.is_some(), text }
    }

    fn parse(row: &HistoryRow) -> Option<Entry> {
        let StoredEntry { view, back, .. } = serde_json::from_str(&row.text).ok()?;
        Some(Entry { view, has_steps: back.is_some(), text: row.text.clone() })
    }

    fn back(&self) -> Option<Patch> {
        serde_json::from_str::<StoredEntry>(&self.text).ok()?.back
    }
}

fn of(generation: u64, source: Source) -> GenerationView {
    let time = time::rfc3339(time::wall());
    let (changes, differences) = (Vec::new(), Vec::new());
    GenerationView { generation, time, source, by: None, changes, differences, omitted: 0, restorable: false }
}

impl History {
    /// Those stored with a configuration of this number, which comes from `first` if there are none. What is missing
    /// between both is marked.
    pub fn load(rows: &[HistoryRow], generation: u64, first: Source) -> History {
        // A greater one belongs to a change that was not stored.
        let mut entries: Vec<Arc<Entry>> = Vec::new();
        for row in rows.iter().filter(|row| row.generation <= generation) {
            // Nothing before one that this version cannot read can be restored.
            let unreadable = || Entry::first(row.generation, Source::State, "recorded by another version of vifswitch");
            entries.push(Entry::parse(row).unwrap_or_else(unreadable).into());
        }
        let mut history = History { entries };
        match history.entries.last() {
            None => history.record(Entry::first(generation, first, "the first generation that is recorded").into()),
            Some(last) if last.view.generation == generation => {}
            Some(_) => {
                let sentence = "another version of vifswitch has changed the configuration; it has not recorded what";
                history.record(Entry::first(generation, Source::State, sentence).into());
            }
        }
        history
    }

    /// Adds a generation, in place of those with greater numbers, and forgets the oldest ones.
    pub fn record(&mut self, entry: Arc<Entry>) {
        self.entries.retain(|known| known.view.generation < entry.view.generation);
        self.entries.push(entry);
        let mut bytes = 0;
        let fit = self.entries.iter().rev().take(MAX_GENERATIONS).take_while(|entry| {
            bytes += entry.text.len();
            bytes <= MAX_BYTES
        });
        let fit = fit.count().max(1);
        self.entries.drain(..self.entries.len() - fit);
    }

    /// All of them as rows of the store.
    pub fn rows(&self) -> Vec<HistoryRow> {
        let row = |entry: &Arc<Entry>| HistoryRow { generation: entry.view.generation, text: entry.text.clone() };
        self.entries.iter().map(row).collect()
    }

    /// All of them, the newest first.
    pub fn views(&self) -> Vec<GenerationView> {
        let oldest = self.oldest_restorable();
        let view =
            |(index, entry): (usize, &Arc<Entry>)| GenerationView { restorable: index >= oldest, ..entry.view.clone() };
        self.entries.iter().enumerate().rev().map(view).collect()
    }

    /// Index of the oldest one that can be restored.
    fn oldest_restorable(&self) -> usize {
        self.entries.iter().rposition(|entry| !entry.has_steps).unwrap_or_default()
    }

    /// The number of the newest one, and of the one before.
    pub fn newest(&self) -> (Option<u64>, Option<u64>) {
        let mut numbers = self.entries.iter().rev().map(|entry| entry.view.generation);
        (numbers.next(), numbers.next())
    }

    /// The configuration of a generation, from the newest one, which is `current`.
    ///
    /// # Errors
    /// It is not recorded, or lies before a hole.
    pub fn restore(&self, current: &Config, generation: u64) -> Result<Config, ChangeError> {
        let Some(index) = self.entries.iter().position(|entry| entry.view.generation == generation) else {
            let known = |entry: Option<&Arc<Entry>>| entry.map(|entry| entry.view.generation).unwrap_or_default();
            let (first, last) = (known(self.entries.first()), known(self.entries.last()));
            let message = format!(
                "generation {generation} is not recorded; `GET /v1/history` lists those that are, from {first} to {last}"
            );
            return Err(ChangeError::unknown("unknown_generation", message));
        };
        let hole = |why: String| {
            let message = format!("generation {generation} cannot be restored: {why}; choose one that is `restorable`");
            ChangeError::conflict("not_restorable", message)
        };
        let mut restored = value(&current.to_raw());
        for entry in self.entries[index + 1..].iter().rev() {
            let number = entry.view.generation;
            let back = entry.back().ok_or_else(|| hole(format!("what led to generation {number} is not recorded")))?;
            back.apply(&mut restored).map_err(|why| hole(format!("the steps back from generation {number}: {why}")))?;
        }
        config::parse_json(&restored.to_string(), "the recorded configuration").map_err(|why| hole(why.to_string()))
    }
}

/// A restored configuration in the form of the file, without `[switch]`.
pub fn shown(config: &Config) -> Value {
    let mut sparse = config.to_sparse();
    if let Some(keys) = sparse.as_object_mut() {
        keys.remove("switch");
    }
    sparse
}

#[cfg(test)]
mod tests;
