//! Recent events in memory, and their ids.
//!
//! The store has the history. The event log has what a switch without a store can show, and what is not stored yet.
//!
//! **Ids** are given in order, without gaps, and each is given once, whatever happens to the process: the store keeps an
//! upper bound of the ids in use ([`RESERVED`]), and a start after a kill continues behind it, since events may have been
//! shown that were not stored. A new state begins at the milliseconds since 1970. Where no bound is known, ids begin above
//! these and all that may be reserved: they are greater than those of earlier starts, because no switch emits 1000 events per
//! second for long.
//!
//! **Order**: readers get events by id. The event of a change gets its id when the change is being stored, and is shown when
//! that has succeeded; later events wait for it. If the disk does not answer, another event is shown under that id. Changes
//! that are stored together are shown together.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::control::state::event_filter::EventFilter;
use crate::control::state::event_limit::EventLimiter;
use crate::control::state::event_page::{Cursor, Page};
use crate::control::state::events::{Event, EventKind};
use crate::time::{self, MonoTime};

/// Ids that the store reserves at a time: as many as events can wait to be stored. Renewed with each commit of events, when
/// half of them are used.
pub const RESERVED: u64 = 10_000;

/// Maximum events in memory.
const MAX_EVENTS: usize = 10_000;

/// Maximum bytes of events in memory, and of those not stored yet.
const BYTES: usize = 8 << 20;

/// Recent events.
#[derive(Debug)]
pub struct EventLog {
    /// By id.
    recent: BTreeMap<u64, Arc<Event>>,
    bytes: usize,
    /// Greatest id that is not in `recent` any more: the last one of earlier starts, or the last evicted one.
    forgotten: u64,
    uncommitted: VecDeque<Event>,
    uncommitted_bytes: usize,
    /// The events of the changes that are being stored. Later events are not shown yet.
    held: Option<Held>,
    /// The newest event that is shown.
    newest: watch::Sender<u64>,
    limit: EventLimiter,
    /// Id of the next event.
    next: u64,
    /// Greatest id that a later start does not give again.
    reserved: u64,
    /// Greatest id of earlier starts.
    earlier: u64,
    /// Identifies this start of the switch.
    start: String,
}

/// Events that are shown when their changes are stored, ascending.
#[derive(Debug)]
struct Held {
    events: Vec<Event>,
    since: MonoTime,
}

impl Default for EventLog {
    fn default() -> EventLog {
        EventLog {
            recent: BTreeMap::new(),
            bytes: 0,
            forgotten: 0,
            uncommitted: VecDeque::new(),
            uncommitted_bytes: 0,
            held: None,
            newest: watch::Sender::new(0),
            limit: EventLimiter::default(),
            next: 1,
            reserved: u64::MAX,
            earlier: 0,
            start: String::new(),
        }
    }
}

impl EventLog {
    /// Begins ids behind `last`, the greatest id that may be in use, up to which and [`RESERVED`] more the store has reserved
    /// them. If it is unknown, ids begin by the clock.
    pub fn begin(&mut self, last: Option<u64>, since: SystemTime) {
        self.forgotten = last.unwrap_or_else(|| by_clock(since));
        self.reserved = last.map_or(u64::MAX, |last| last + RESERVED);
        (self.earlier, self.next) = (self.forgotten, self.forgotten + 1);
        self.start = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros().to_string();
        self.show();
    }

    /// Continues behind `last`, the greatest id in use, which was unknown at the start. Ids of this start that are not
    /// greater (the clock was set back) would collide: then this start's events get new ids behind `last` and a new
    /// `start`. Returns the first new id in that case.
    pub fn continue_behind(&mut self, last: u64, now: SystemTime) -> Option<u64> {
        let remembered = self.recent.first_key_value().map(|(id, _)| *id);
        let first = remembered.into_iter().chain(self.uncommitted.iter().map(|event| event.id)).min();
        let first = first.unwrap_or(self.next);
        if last < first {
            return None;
        }
        let next = self.next;
        self.begin(Some(last), now);
        let shift = self.next - first;
        self.next = next + shift;
        let start = &self.start;
        let renumbered = |event: Event| Event { id: event.id + shift, start: start.clone(), ..event };
        self.uncommitted = std::mem::take(&mut self.uncommitted).into_iter().map(renumbered).collect();
        let recent =
            std::mem::take(&mut self.recent).into_values().map(|event| renumbered(Arc::unwrap_or_clone(event)));
        self.recent = recent.map(|event| (event.id, event.into())).collect();
        self.show();
        Some(first + shift)
    }

    /// Appends an event, to be stored. Returns whether it is reported now, and not later with others of its source.
    #[must_use]
    pub fn append(&mut self, event: Event, now: MonoTime) -> bool {
        let is_reported = self.limit.admit(&event, now);
        if is_reported {
            self.report(event);
        }
        is_reported
    }

    /// Events of rate-limited sources that are due, in order. `all`: of all sources.
    pub fn flush_limited(&mut self, now: MonoTime, all: bool) -> Vec<Event> {
        let due = self.limit.due(now, all);
        due.iter().cloned().for_each(|event| self.report(event));
        due
    }

    /// Appends an event of any rate, to be stored.
    pub fn report(&mut self, event: Event) {
        let event = self.numbered(event);
        self.uncommitted_bytes += event.size();
        self.uncommitted.push_back(event.clone());
        self.bound_uncommitted();
        self.insert(event);
    }

    /// Bounds memory while the store fails. Evicts the oldest events first, as the store does.
    fn bound_uncommitted(&mut self) {
        while self.uncommitted.len() > MAX_EVENTS || self.uncommitted_bytes > BYTES {
            let Some(oldest) = self.uncommitted.pop_front() else { break };
            self.uncommitted_bytes -= oldest.size();
        }
    }

    /// Assigns an id and truncates long parts.
    fn numbered(&mut self, event: Event) -> Event {
        if self.next > self.reserved {
            // The store has failed for long. A start after a kill gives lower ids, which readers of these are told.
            self.next = self.next.max(by_clock(time::wall()));
            self.reserved = u64::MAX;
        }
        let id = self.next;
        self.next += 1;
        Event { id, start: self.start.clone(), ..event.bounded() }
    }

    fn insert(&mut self, event: Event) {
        self.bytes += event.size();
        self.recent.insert(event.id, event.into());
        while self.recent.len() > MAX_EVENTS || self.bytes > BYTES {
            let Some((id, oldest)) = self.recent.pop_first() else { break };
            self.bytes -= oldest.size();
            self.forgotten = self.forgotten.max(id);
        }
        self.show();
    }

    /// Shows the events that are complete.
    fn show(&mut self) {
        let held = self.held.as_ref().and_then(|held| held.events.first());
        let newest = held.map_or(self.next, |event| event.id) - 1;
        self.newest.send_if_modified(|shown| std::mem::replace(shown, newest) != newest);
    }

    /// Gives the events of changes that are being stored their ids. They are shown when that has ended.
    pub fn hold(&mut self, events: Vec<Event>, now: MonoTime) -> Vec<Event> {
        let events: Vec<Event> = events.into_iter().map(|event| self.numbered(event)).collect();
        self.held = Some(Held { events: events.clone(), since: now });
        events
    }

    /// If storing changes has taken `most`: shows events that say so under their ids, and the later ones. Returns them.
    pub fn give_up_waiting(&mut self, now: MonoTime, most: Duration) -> Vec<Event> {
        let held = self.held.take_if(|held| now.since(held.since) >= most);
        let seconds = most.as_secs();
        let late = |event: Event| {
            let text = format!("the disk has not answered for {seconds} s; this change waits for it: {}", event.text);
            Event { kind: EventKind::State, text, ..event }.bounded()
        };
        let late: Vec<Event> = held.into_iter().flat_map(|held| held.events).map(late).collect();
        late.iter().cloned().for_each(|event| self.insert(event));
        late
    }

    /// The changes of these events are stored, and the events with them.
    pub fn settle(&mut self, events: Vec<Event>) {
        let is_held = self.held.take().is_some();
        for event in events {
            if is_held {
                self.insert(event);
            } else {
                // Another one was shown under its id.
                self.report(Event { text: format!("stored now: {}", event.text), ..event });
            }
        }
    }

    /// The changes of these events could not be stored, nor the events `before` them: `failed` report that, under their ids if
    /// nothing else was shown under them.
    pub fn fail(&mut self, mut before: Vec<Event>, failed: Vec<Event>) {
        let is_held = self.held.take().is_some();
        for failed in &failed {
            let shown = if is_held { Some(failed) } else { self.recent.get(&failed.id).map(|shown| &**shown) };
            before.extend(shown.cloned());
        }
        self.put_back(before);
        for failed in failed {
            if is_held {
                self.insert(failed);
            } else {
                self.report(failed);
            }
        }
    }

    /// Whether there are events to store.
    pub fn has_uncommitted(&self) -> bool {
        !self.uncommitted.is_empty()
    }

    /// Takes the events to store.
    pub fn take_uncommitted(&mut self) -> Vec<Event> {
        self.uncommitted_bytes = 0;
        std::mem::take(&mut self.uncommitted).into()
    }

    /// Returns events that could not be stored.
    pub fn put_back(&mut self, events: Vec<Event>) {
        self.uncommitted_bytes += events.iter().map(Event::size).sum::<usize>();
        events.into_iter().rev().for_each(|event| self.uncommitted.push_front(event));
        self.bound_uncommitted();
    }

    /// The events up to this id are stored, and with them an upper bound.
    pub fn stored(&mut self, last: u64) {
        let renewed = last + RESERVED / 2;
        self.reserved = if self.reserved == u64::MAX { renewed } else { self.reserved.max(renewed) };
    }

    /// The greatest id given, if ids have begun and all events are stored.
    pub fn settled(&self) -> Option<u64> {
        let is_settled = !self.start.is_empty() && self.uncommitted.is_empty() && self.held.is_none();
        is_settled.then(|| self.next - 1)
    }

    /// The next events of a reader. `None`: the store has them.
    pub fn page(&self, filter: &EventFilter, from: Cursor) -> Option<Page> {
        let id = from.id.filter(|id| *id >= self.forgotten)?;
        let mut page = Page::at(from);
        if id >= self.next {
            page.rewind(id, *self.newest.borrow(), self.earlier);
            return Some(page);
        }
        let newest = *self.newest.borrow();
        if newest > id {
            for event in self.recent.range(id + 1..=newest).map(|(_, event)| event) {
                if page.is_full() {
                    return Some(page);
                }
                page.push(event, filter);
            }
        }
        page.is_last = true;
        Some(page)
    }

    /// Greatest id that is not in memory: the store has the events up to it.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Identifies this start of the switch.
    pub fn start(&self) -> &str {
        &self.start
    }

    /// Number of readers that wait for events.
    pub fn readers(&self) -> usize {
        self.newest.receiver_count()
    }

    /// The newest event that is shown; changes with each.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

/// An id above all that earlier starts have used or reserved.
fn by_clock(now: SystemTime) -> u64 {
    time::unix_millis(now) + 2 * RESERVED
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::state::events::Gap;

    const NOW: MonoTime = MonoTime::from_secs(1000);

    fn event(number: u64) -> Event {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(number);
        Event { id: number, text: number.to_string(), ..Event::new(EventKind::Config, time) }
    }

    /// All events in memory and messages about missing ones behind an id.
    fn entries(event_log: &EventLog, after: u64) -> Vec<Arc<Event>> {
        let (mut cursor, mut all) = (Cursor::after(after), Vec::new());
        loop {
            let page = event_log.page(&EventFilter::default(), cursor).unwrap();
            all.extend(page.events);
            if page.is_last {
                return all;
            }
            cursor = page.next;
        }
    }

    fn shown(event_log: &EventLog, after: u64) -> Vec<(u64, String)> {
        entries(event_log, after).iter().map(|event| (event.id, event.text.clone())).collect()
    }

    fn texts(texts: &[(u64, &str)]) -> Vec<(u64, String)> {
        texts.iter().map(|(id, text)| (*id, (*text).to_owned())).collect()
    }

    fn ids(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.id).collect()
    }

    #[test]
    fn later_events_are_shown_behind_the_event_of_a_change_that_is_being_stored() {
        let mut event_log = EventLog::default();
        let mut newest = event_log.newest();
        assert!((1..3).all(|number| event_log.append(event(number), NOW)));
        assert_eq!(*newest.borrow_and_update(), 2);
        assert_eq!(ids(&event_log.take_uncommitted()), [1, 2]);
        let held = event_log.hold(vec![event(3)], NOW);
        assert!(event_log.append(event(4), NOW));
        assert_eq!(shown(&event_log, 0), texts(&[(1, "1"), (2, "2")]));
        assert!(!newest.has_changed().unwrap());
        event_log.settle(held);
        assert_eq!(*newest.borrow_and_update(), 4);
        assert_eq!(shown(&event_log, 1), texts(&[(2, "2"), (3, "3"), (4, "4")]));
        assert_eq!(ids(&event_log.take_uncommitted()), [4], "that of the change is stored with it");
        assert_eq!(event_log.take_uncommitted(), []);
        // One that fails is shown and stored with another text.
        let held = event_log.hold(vec![event(5)], NOW);
        assert!(event_log.append(event(6), NOW));
        event_log.fail(vec![event(4)], failed(held));
        assert_eq!(shown(&event_log, 3), texts(&[(4, "4"), (5, "failed"), (6, "6")]));
        assert_eq!(ids(&event_log.take_uncommitted()), [4, 5, 6]);
    }

    /// The same events with another text.
    fn failed(events: Vec<Event>) -> Vec<Event> {
        events.into_iter().map(|event| Event { text: "failed".into(), ..event }).collect()
    }

    #[test]
    fn events_of_changes_that_are_stored_together_are_shown_together() {
        let mut event_log = EventLog::default();
        let newest = event_log.newest();
        let held = event_log.hold(vec![event(1), event(2)], NOW);
        assert!(event_log.append(event(3), NOW));
        assert_eq!((ids(&held), *newest.borrow()), (vec![1, 2], 0));
        event_log.settle(held);
        assert_eq!(shown(&event_log, 0), texts(&[(1, "1"), (2, "2"), (3, "3")]));
        let before = event_log.take_uncommitted();
        let held = event_log.hold(vec![event(4), event(5)], NOW);
        event_log.fail(before, failed(held));
        assert_eq!(shown(&event_log, 3), texts(&[(4, "failed"), (5, "failed")]));
        assert_eq!(ids(&event_log.take_uncommitted()), [3, 4, 5]);
        // Late, and then not stored.
        let held = event_log.hold(vec![event(6), event(7)], NOW);
        assert_eq!(ids(&event_log.give_up_waiting(NOW + Duration::from_secs(1), Duration::from_secs(1))), [6, 7]);
        event_log.fail(Vec::new(), failed(held));
        assert_eq!(shown(&event_log, 7), texts(&[(8, "failed"), (9, "failed")]));
        assert_eq!(ids(&event_log.take_uncommitted()), [6, 7, 8, 9]);
    }

    #[test]
    fn events_do_not_wait_for_a_disk_that_hangs() {
        const MOST: Duration = Duration::from_secs(1);
        for is_stored in [true, false] {
            let mut event_log = EventLog::default();
            let held = event_log.hold(vec![event(1)], NOW);
            assert!(event_log.append(event(2), NOW));
            assert_eq!(event_log.give_up_waiting(NOW, MOST), []);
            let reported = event_log.give_up_waiting(NOW + MOST, MOST);
            assert_eq!((reported.len(), reported[0].id, reported[0].kind), (1, 1, EventKind::State));
            assert_eq!(event_log.give_up_waiting(NOW + MOST, MOST), [], "reported once");
            let waits = "the disk has not answered for 1 s; this change waits for it: 1";
            assert_eq!(shown(&event_log, 0), texts(&[(1, waits), (2, "2")]));
            let outcome = if is_stored { "stored now: 1" } else { "failed" };
            if is_stored {
                event_log.settle(held);
            } else {
                event_log.fail(Vec::new(), failed(held));
            }
            assert_eq!(shown(&event_log, 0), texts(&[(1, waits), (2, "2"), (3, outcome)]));
            assert_eq!(ids(&event_log.take_uncommitted()), if is_stored { vec![2, 3] } else { vec![1, 2, 3] });
        }
    }

    #[test]
    fn ids_continue_after_those_of_earlier_starts_also_if_these_are_known_late() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let names = |event_log: &EventLog, after| {
            entries(event_log, after).iter().map(|of| (of.id, of.start.clone())).collect::<Vec<_>>()
        };
        let (early, late) = ("5000000".to_owned(), "6000000".to_owned());
        // The last id is known at the start.
        let mut event_log = EventLog::default();
        assert_eq!(event_log.settled(), None);
        event_log.begin(Some(20), at(5));
        assert_eq!(event_log.settled(), Some(20));
        assert!(event_log.append(event(1), NOW));
        assert_eq!((names(&event_log, 20), event_log.settled()), (vec![(21, early.clone())], None));
        assert_eq!(event_log.page(&EventFilter::default(), Cursor::after(19)), None, "the store has it");
        assert_eq!(event_log.page(&EventFilter::default(), Cursor::default()), None);
        // It is known later: emitted events keep their ids.
        let mut event_log = EventLog::default();
        event_log.begin(None, at(5));
        assert!((0..2).all(|_| event_log.append(event(1), NOW)));
        assert_eq!(event_log.continue_behind(20, at(6)), None);
        assert!(event_log.append(event(1), NOW));
        let expected = [(25_001, early.clone()), (25_002, early.clone()), (25_003, early.clone())];
        assert_eq!(names(&event_log, 25_000), expected);
        // It is known later, and the clock was set back.
        for (last, numbers) in [(25_001, [25_002, 25_003, 25_004, 25_005]), (29_000, [29_001, 29_002, 29_003, 29_004])]
        {
            let mut event_log = EventLog::default();
            event_log.begin(None, at(5));
            assert!((0..3).all(|_| event_log.append(event(1), NOW)));
            assert_eq!(event_log.continue_behind(last, at(6)), Some(last + 1));
            assert!(event_log.append(event(1), NOW));
            let expected = numbers.map(|id| (id, late.clone()));
            assert_eq!(names(&event_log, last), expected);
            let stored: Vec<_> = event_log.take_uncommitted().into_iter().map(|of| (of.id, of.start)).collect();
            assert_eq!(stored, expected);
            assert_eq!(event_log.page(&EventFilter::default(), Cursor::after(last - 1)), None);
        }
    }

    #[test]
    fn a_reader_of_ids_that_are_not_used_yet_is_told() {
        let mut event_log = EventLog::default();
        event_log.begin(Some(20), SystemTime::UNIX_EPOCH);
        assert!(event_log.append(event(1), NOW));
        let gap = Some(Gap { first_missing: 23, next_id: 21 });
        let reported: Vec<_> = entries(&event_log, 22).iter().map(|event| (event.id, event.gap)).collect();
        assert_eq!(reported, [(0, gap), (21, None)]);
        assert_eq!(shown(&event_log, 21), [], "the newest one");
    }

    /// A start after a kill gives none of these ids again, or a reader is told.
    #[test]
    fn ids_that_the_store_has_not_reserved_are_far_from_those_that_it_has() {
        let mut event_log = EventLog::default();
        event_log.begin(Some(20), SystemTime::UNIX_EPOCH);
        let last_reserved = 20 + RESERVED;
        (0..RESERVED).for_each(|number| event_log.report(event(number)));
        assert_eq!(*event_log.newest().borrow(), last_reserved);
        event_log.report(event(0));
        let far = *event_log.newest().borrow();
        assert!(far >= 1 << 40, "{far}");
        event_log.report(event(1));
        let gap = Some(Gap { first_missing: last_reserved + 1, next_id: far });
        let reported: Vec<_> = entries(&event_log, last_reserved).iter().map(|event| (event.id, event.gap)).collect();
        assert_eq!(reported, [(0, gap), (far, None), (far + 1, None)]);
        // The store works again, and reserves more.
        event_log.stored(far + 1);
        (0..RESERVED / 2).for_each(|number| event_log.report(event(number)));
        assert_eq!(*event_log.newest().borrow(), far + 1 + RESERVED / 2);
    }

    #[test]
    fn the_oldest_events_are_removed() {
        let mut event_log = EventLog::default();
        let last = 2 * MAX_EVENTS as u64;
        assert!((0..last).all(|number| event_log.append(event(number), NOW)));
        assert_eq!(event_log.forgotten(), 10_000);
        let recent = entries(&event_log, 10_000);
        assert_eq!((recent.len(), recent[0].id), (MAX_EVENTS, 10_001));
        assert_eq!(event_log.page(&EventFilter::default(), Cursor::after(9_999)), None);
        let uncommitted: Vec<Arc<Event>> = event_log.take_uncommitted().into_iter().map(Arc::new).collect();
        assert_eq!(uncommitted, recent, "the oldest events are evicted");
    }

    #[test]
    fn the_size_in_bytes_is_bounded() {
        let mut event_log = EventLog::default();
        for number in 0..2 * MAX_EVENTS as u64 {
            let long = Event { text: "é".repeat(1 << 20), ports: vec!["p".repeat(200); 1000], ..event(number) };
            assert!(number > 3 || event_log.append(long.clone(), NOW));
            assert!(event_log.append(Event { text: "x".repeat(5000), ..event(number) }, NOW));
        }
        let recent = entries(&event_log, event_log.forgotten());
        assert!(recent.iter().map(|event| event.size()).sum::<usize>() <= BYTES && recent.len() > 1000);
        assert!(recent.iter().all(|event| event.text.len() < 4200 && event.ports.len() <= 64));
        assert!(event_log.take_uncommitted().iter().map(Event::size).sum::<usize>() <= BYTES + 8192);
    }
}
