//! What was written, to be compared with the history and the events of the switch: each write is there once, or not at all.

use std::collections::{BTreeMap, HashMap};

use vifswitch::control::author::Author;
use vifswitch::control::desired::diff::{Difference, Entity};
use vifswitch::control::state::events::{Event, EventKind};
use vifswitch::control::state::history::{GenerationView, Source};

/// A write, with all its repetitions.
#[derive(Debug)]
pub struct Write {
    pub who: &'static str,
    pub text: String,
    /// Ids of the requests, or of the processes, as [`id`] has them.
    pub ids: Vec<String>,
    /// Generations that all of them make together; `None` for changes that are to be confirmed.
    pub expected: Option<usize>,
    /// Those that were answered with success: id, generation, and whether something has changed.
    pub answers: Vec<(String, u64, bool)>,
}

/// Writes since the last comparison.
#[derive(Debug, Default)]
pub struct Records {
    writes: Vec<Write>,
    /// All generations since then, and the last one of before.
    history: BTreeMap<u64, GenerationView>,
    /// Id of the last event that was compared.
    last_event: u64,
    /// Numbers of what was compared: generations, events about them, and gaps between events.
    pub compared: (usize, usize, usize),
}

/// Id of a process that sends a request under a generated id.
pub fn process(pid: u32) -> String {
    format!("pid-{pid}")
}

/// Id of the request of an author, or of its process.
fn id(by: &Author) -> String {
    match by.request_id.split('-').next() {
        Some("north" | "south") => by.request_id.clone(),
        _ => process(by.pid.unwrap()),
    }
}

/// Whether what a change concerns is of who made it.
fn is_of(who: &str, change: &Difference) -> bool {
    let Difference { kind, id, key, .. } = change;
    let own: &[&str] = match who {
        "person" => &["person-", "none-"],
        "file" => &["base-", "file-"],
        "north" => &["north-"],
        _ => &["south-"],
    };
    if *kind == Entity::Switch {
        return false;
    }
    // Ports of several owners are in a shared VM, whose settings are of one of them. What an owner replaces takes places in
    // lists that others use too.
    let is_order = key.as_deref() == Some("order");
    let is_shared = *kind == Entity::Vm && id.starts_with("shared-") && (key.is_none() || is_order);
    let is_setting = *kind == Entity::Vm && *id == format!("shared-{who}");
    is_shared || is_setting || (is_order && id.is_empty()) || own.iter().any(|own| id.starts_with(own))
}

impl Records {
    /// Begins with this history and this event.
    pub fn begin(&mut self, history: Vec<GenerationView>, last_event: u64) {
        self.add(history);
        self.forget();
        self.last_event = last_event;
    }

    pub fn push(&mut self, write: Write) {
        self.writes.push(write);
    }

    /// Adds the last generations, the newest first. What was read before has not changed since.
    pub fn add(&mut self, history: Vec<GenerationView>) {
        let (oldest, newest) = (history.last().unwrap().generation, self.history.keys().next_back().copied());
        assert!(newest.is_none_or(|newest| oldest <= newest + 1), "generations {newest:?} to {oldest} were not read");
        let first = self.history.keys().next().copied().unwrap_or_default();
        for view in history.into_iter().filter(|view| view.generation >= first) {
            // It changes as others are forgotten.
            let view = GenerationView { restorable: true, ..view };
            let known = self.history.entry(view.generation).or_insert_with(|| view.clone());
            assert_eq!(*known, view, "a generation has changed");
        }
    }

    /// Compares all writes with the generations and the events since the last time.
    pub fn compare(&mut self, events: &[Event]) {
        let writes = std::mem::take(&mut self.writes);
        let by_id: HashMap<&str, usize> = writes
            .iter()
            .enumerate()
            .flat_map(|(at, write)| write.ids.iter().map(move |id| (id.as_str(), at)))
            .collect();
        let mut made: Vec<Vec<u64>> = vec![Vec::new(); writes.len()];
        let mut before: Option<(u64, Option<usize>)> = None;
        for (&generation, view) in &self.history {
            let Some((last, write)) = before else {
                before = Some((generation, None));
                continue;
            };
            assert_eq!(generation, last + 1, "generations follow each other: {view:?}");
            let (who, write) = match (view.source, &view.by) {
                (Source::Api, Some(by)) => {
                    let write = *by_id.get(id(by).as_str()).unwrap_or_else(|| panic!("of nobody: {view:?}"));
                    made[write].push(generation);
                    (writes[write].who, Some(write))
                }
                (Source::File, None) => ("file", None),
                // Of the change before, which was not confirmed, or cancelled by another command.
                (Source::Revert, _) => {
                    let of = &writes[write.unwrap_or_else(|| panic!("nothing to take back: {view:?}"))];
                    assert_eq!(of.expected, None, "was not to be confirmed: {of:?}");
                    (of.who, None)
                }
                _ => panic!("without author: {view:?}"),
            };
            let foreign: Vec<_> = view.differences.iter().filter(|change| !is_of(who, change)).collect();
            assert!(foreign.is_empty() && view.omitted == 0, "{who} has changed what is of others: {view:?}");
            before = Some((generation, write));
        }
        self.compared.0 += self.history.len() - 1;
        let mut last: HashMap<&str, u64> = HashMap::new();
        for (write, made) in writes.iter().zip(&made) {
            let times = made.len();
            assert!(
                write.expected.is_none_or(|expected| times == expected),
                "{} was made {times} times, as {made:?}: {write:?}",
                write.text
            );
            for (id, generation, has_changed) in &write.answers {
                let by = self.history.get(generation).and_then(|view| view.by.as_ref()).map(self::id);
                let is_there = by.as_ref() == Some(id);
                assert_eq!(is_there, *has_changed, "answered {id}, generation {generation}: {write:?}");
            }
            for &generation in made {
                let before = last.insert(write.who, generation);
                assert!(before < Some(generation), "made after {before:?}, that of a later write: {write:?}");
            }
        }
        self.compare_events(events, &writes, &by_id);
        self.forget();
    }

    /// Each generation of a request has one event.
    fn compare_events(&mut self, events: &[Event], writes: &[Write], by_id: &HashMap<&str, usize>) {
        let mut times: HashMap<&str, usize> = HashMap::new();
        if self.last_event == 0 {
            // Ids begin by the clock.
            self.last_event = events.first().map_or(0, |event| event.id.saturating_sub(1));
        }
        for event in events {
            if let Some(gap) = event.gap {
                assert_eq!(gap.first_missing, self.last_event + 1, "{event:?}");
                assert!(gap.next_id > gap.first_missing, "{event:?}");
                self.last_event = gap.next_id - 1;
                self.compared.2 += usize::from(gap.first_missing > 1);
                continue;
            }
            assert_eq!(event.id, self.last_event + 1, "events follow each other: {event:?}");
            self.last_event = event.id;
            let has_failed = event.kind == EventKind::State && event.text.starts_with("store_failed");
            assert!(!has_failed, "the disk is well: {event:?}");
            if let (EventKind::Config, Some(by)) = (event.kind, &event.by) {
                let write = *by_id.get(id(by).as_str()).unwrap_or_else(|| panic!("of nobody: {event:?}"));
                // The events of one that is to be confirmed are about its parts.
                if writes[write].expected.is_some() {
                    *times.entry(by.request_id.as_str()).or_default() += 1;
                }
            }
        }
        for view in self.history.values().skip(1).filter(|view| view.source == Source::Api) {
            let by = view.by.as_ref().unwrap();
            if writes[by_id[id(by).as_str()]].expected.is_some() {
                assert_eq!(times.remove(by.request_id.as_str()), Some(1), "one event: {view:?}");
                self.compared.1 += 1;
            }
        }
        assert!(times.is_empty(), "events without a generation: {times:?}");
    }

    /// Keeps the newest generation only.
    fn forget(&mut self) {
        let newest = *self.history.keys().next_back().unwrap();
        self.history.retain(|&generation, _| generation == newest);
    }

    /// Id of the last event that was compared.
    pub fn last_event(&self) -> u64 {
        self.last_event
    }
}
