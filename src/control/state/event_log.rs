//! Recent events in memory, and subscribers to new ones.
//!
//! The store has the history. The event log has what a switch without a store can show, and what is not stored yet.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use tokio::sync::broadcast;

use crate::control::config::kind;
use crate::control::desired::change::ChangeError;
use crate::control::state::event_limit::EventLimiter;
use crate::control::state::events::Event;
use crate::time::{self, MonoTime};

/// Maximum events in memory.
const MAX_EVENTS: usize = 10_000;

/// Maximum bytes of events in memory, and of those not stored yet.
const BYTES: usize = 8 << 20;

/// Events that a subscriber may lag behind before it misses some.
const MAX_LAG: usize = 1024;

/// Recent events.
#[derive(Debug)]
pub struct EventLog {
    /// By id. An event with a reserved id is inserted behind later ones.
    recent: BTreeMap<u64, Event>,
    bytes: usize,
    /// Greatest id that is not in `recent` any more: the last one of earlier starts, or the last evicted one.
    forgotten: u64,
    uncommitted: VecDeque<Event>,
    uncommitted_bytes: usize,
    live: broadcast::Sender<Event>,
    limit: EventLimiter,
    /// Id of the next event.
    next: u64,
    /// Identifies this start of the switch.
    start: String,
}

impl Default for EventLog {
    fn default() -> EventLog {
        EventLog {
            recent: BTreeMap::new(),
            bytes: 0,
            forgotten: 0,
            uncommitted: VecDeque::new(),
            uncommitted_bytes: 0,
            live: broadcast::channel(MAX_LAG).0,
            limit: EventLimiter::default(),
            next: 1,
            start: String::new(),
        }
    }
}

impl EventLog {
    /// Starts ids after `last`, the greatest stored id. If it is unknown, ids start at the milliseconds since 1970:
    /// stored events have smaller ids, because no switch emits 1000 events per second for long.
    pub fn begin(&mut self, last: Option<u64>, since: SystemTime) {
        let passed = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.forgotten = last.unwrap_or_else(|| u64::try_from(passed.as_millis()).unwrap_or_default());
        (self.next, self.start) = (self.forgotten + 1, passed.as_micros().to_string());
    }

    /// Continues after `last`, the greatest stored id, which was unknown at the start. Ids of this start that are not
    /// greater (the clock was set back) would collide: then this start's events get new ids after `last` and a new
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
        let recent = std::mem::take(&mut self.recent).into_values().map(renumbered);
        self.recent = recent.map(|event| (event.id, event)).collect();
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

    fn report(&mut self, event: Event) {
        let event = self.numbered(event);
        self.uncommitted_bytes += event.size();
        self.uncommitted.push_back(event.clone());
        self.bound_uncommitted();
        self.append_committed(event);
    }

    /// Bounds memory while the store fails. Evicts the oldest events first, as the store does.
    fn bound_uncommitted(&mut self) {
        while self.uncommitted.len() > MAX_EVENTS || self.uncommitted_bytes > BYTES {
            let Some(oldest) = self.uncommitted.pop_front() else { break };
            self.uncommitted_bytes -= oldest.size();
        }
    }

    /// Assigns an id and truncates long parts.
    pub fn numbered(&mut self, event: Event) -> Event {
        let id = self.next;
        self.next += 1;
        Event { id, start: self.start.clone(), ..event.bounded() }
    }

    /// Appends an event that has an id and is stored.
    pub fn append_committed(&mut self, event: Event) {
        self.bytes += event.size();
        self.recent.insert(event.id, event.clone());
        while self.recent.len() > MAX_EVENTS || self.bytes > BYTES {
            let Some((id, oldest)) = self.recent.pop_first() else { break };
            self.bytes -= oldest.size();
            self.forgotten = self.forgotten.max(id);
        }
        // There may be no subscribers.
        let _ = self.live.send(event);
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

    /// Predicate for stored events that are not in `recent`: those of other starts, and evicted ones.
    pub fn forgotten(&self) -> impl Fn(&Event) -> bool + Send + 'static {
        let (forgotten, start) = (self.forgotten, self.start.clone());
        move |event| event.start != start || event.id <= forgotten
    }

    /// Whether `recent` has all events with a greater id than `after`.
    pub fn has_all_after(&self, after: u64) -> bool {
        after >= self.forgotten
    }

    /// Recent events by id.
    pub fn recent(&self) -> Vec<Event> {
        self.recent.values().cloned().collect()
    }

    /// Identifies this start of the switch.
    pub fn start(&self) -> &str {
        &self.start
    }

    /// A receiver of later events.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.live.subscribe()
    }
}

/// Filter of events.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventFilter {
    /// At this time (RFC 3339) or later.
    pub since: Option<String>,
    /// With a greater id.
    pub after: Option<u64>,
}

impl EventFilter {
    /// Normalises the time to the form of stored events.
    pub fn normalized(self) -> Result<EventFilter, ChangeError> {
        let since = self.since.map(|text| {
            let parsed = time::parse_rfc3339(&text).map(time::rfc3339);
            parsed.ok_or_else(|| {
                let message = format!("{text:?} is not a time; one looks like 2026-01-31T12:00:00Z");
                ChangeError::request(kind::BAD_VALUE, message)
            })
        });
        Ok(EventFilter { since: since.transpose()?, after: self.after })
    }

    /// Whether this event matches.
    pub fn matches(&self, event: &Event) -> bool {
        self.since.as_ref().is_none_or(|since| event.time >= *since) && self.after.is_none_or(|after| event.id > after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::state::events::EventKind;
    use std::time::{Duration, SystemTime};

    const NOW: MonoTime = MonoTime::from_secs(1000);

    fn event(number: u64) -> Event {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(number);
        Event { id: number, text: number.to_string(), ..Event::new(EventKind::Config, time) }
    }

    #[test]
    fn an_event_is_emitted_and_stored_once() {
        let mut event_log = EventLog::default();
        assert!(event_log.append(event(1), NOW));
        let mut listener = event_log.subscribe();
        assert!((2..10).all(|number| event_log.append(event(number), NOW)));
        // Its number is reserved, and it is emitted once stored.
        let stored = event_log.numbered(event(10));
        assert!(event_log.append(event(11), NOW));
        event_log.append_committed(stored);
        let received: Vec<u64> = std::iter::from_fn(|| listener.try_recv().ok()).map(|event| event.id).collect();
        assert_eq!(received, [2, 3, 4, 5, 6, 7, 8, 9, 11, 10]);
        assert_eq!(event_log.recent(), (1..=11).map(event).collect::<Vec<_>>());
        let of = |since: &str, after| {
            let which = EventFilter { since: Some(since.into()), after }.normalized().unwrap();
            event_log.recent().iter().filter(|event| which.matches(event)).map(|event| event.id).collect::<Vec<_>>()
        };
        assert_eq!(of("1970-01-01T01:00:08+01:00", None), [8, 9, 10, 11]);
        assert_eq!(of("1970-01-01T01:00:08+01:00", Some(9)), [10, 11]);
        assert_eq!(
            EventFilter { since: Some("yesterday".into()), after: None }.normalized().unwrap_err().kind,
            kind::BAD_VALUE
        );
        let ids = |events: Vec<Event>| events.iter().map(|event| event.id).collect::<Vec<_>>();
        assert_eq!(ids(event_log.take_uncommitted()), [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]);
        assert_eq!(event_log.take_uncommitted(), []);
        assert!(event_log.append(event(12), NOW));
        event_log.put_back(vec![event(9), event(10)]);
        assert_eq!(ids(event_log.take_uncommitted()), [9, 10, 12]);
    }

    #[test]
    fn ids_continue_after_those_of_earlier_starts_also_if_these_are_known_late() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let names = |events: &[Event]| events.iter().map(|of| (of.id, of.start.clone())).collect::<Vec<_>>();
        let (early, late) = ("5000000".to_owned(), "6000000".to_owned());
        // The last stored id is known at the start.
        let mut event_log = EventLog::default();
        event_log.begin(Some(20), at(5));
        assert!(event_log.append(event(1), NOW));
        assert_eq!(names(&event_log.recent()), [(21, early.clone())]);
        assert!(event_log.has_all_after(20) && !event_log.has_all_after(19));
        // It is known later: emitted events keep their ids.
        let mut event_log = EventLog::default();
        event_log.begin(None, at(5));
        assert!((0..2).all(|_| event_log.append(event(1), NOW)));
        assert_eq!(event_log.continue_behind(20, at(6)), None);
        assert!(event_log.append(event(1), NOW));
        let expected = [(5001, early.clone()), (5002, early.clone()), (5003, early.clone())];
        assert_eq!(names(&event_log.recent()), expected);
        // It is known later, and the clock was set back.
        for (last, numbers) in [(5001, [5002, 5003, 5004, 5005]), (9000, [9001, 9002, 9003, 9004])] {
            let mut event_log = EventLog::default();
            event_log.begin(None, at(5));
            assert!((0..3).all(|_| event_log.append(event(1), NOW)));
            assert_eq!(event_log.continue_behind(last, at(6)), Some(last + 1));
            assert!(event_log.append(event(1), NOW));
            let expected = numbers.map(|id| (id, late.clone()));
            assert_eq!(names(&event_log.recent()), expected);
            assert_eq!(names(&event_log.take_uncommitted()), expected);
            assert!(event_log.has_all_after(last) && !event_log.has_all_after(last - 1));
            let is_forgotten = event_log.forgotten();
            assert!(expected.iter().all(|(id, start)| !is_forgotten(&Event {
                id: *id,
                start: start.clone(),
                ..event(1)
            })));
            assert!(is_forgotten(&Event { id: numbers[0], start: early.clone(), ..event(1) }));
        }
    }

    #[test]
    fn the_oldest_events_are_removed() {
        let mut event_log = EventLog::default();
        assert!((0..2 * MAX_EVENTS as u64).all(|number| event_log.append(event(number), NOW)));
        let recent = event_log.recent();
        assert_eq!((recent.len(), recent[0].id), (MAX_EVENTS, 10_001));
        let is_forgotten = event_log.forgotten();
        assert!(is_forgotten(&event(10_000)) && !is_forgotten(&event(10_001)));
        assert!(event_log.has_all_after(10_000) && !event_log.has_all_after(9_999));
        assert_eq!(event_log.take_uncommitted(), recent, "the oldest events are evicted");
    }

    #[test]
    fn the_size_in_bytes_is_bounded() {
        let mut event_log = EventLog::default();
        for number in 0..2 * MAX_EVENTS as u64 {
            let long = Event { text: "é".repeat(1 << 20), ports: vec!["p".repeat(200); 1000], ..event(number) };
            assert!(number > 3 || event_log.append(long.clone(), NOW));
            assert!(event_log.append(Event { text: "x".repeat(5000), ..event(number) }, NOW));
        }
        let size = |events: &[Event]| events.iter().map(Event::size).sum::<usize>();
        assert!(size(&event_log.recent()) <= BYTES && event_log.recent().len() > 1000);
        assert!(event_log.recent().iter().all(|event| event.text.len() < 4200 && event.ports.len() <= 64));
        assert!(size(&event_log.take_uncommitted()) <= BYTES + 8192);
    }
}
