//! What happened, as far as it is remembered here, and whoever listens to what will.
//!
//! The history of the switch is in its store. The journal has what a switch without a store can
//! tell, and what is still to be written down.

use std::collections::BTreeMap;

use tokio::sync::broadcast;

use super::change::Refusal;
use super::config::kind;
use super::event_limit::EventLimit;
use super::events::Event;
use crate::time::{self, Moment};

/// Events remembered.
const MOST: usize = 10_000;

/// Bytes of events remembered, and of events that are still to be written down.
const BYTES: usize = 8 << 20;

/// Events that a listener may be behind before it misses some.
const BEHIND: usize = 1024;

/// What happened lately.
#[derive(Debug)]
pub struct Journal {
    /// By number. One whose number was reserved comes behind later ones.
    recent: BTreeMap<u64, Event>,
    bytes: usize,
    unsaved: Vec<Event>,
    unsaved_bytes: usize,
    live: broadcast::Sender<Event>,
    limit: EventLimit,
    /// The number of the next event.
    next: u64,
    /// Which start of the switch this is.
    start: String,
}

impl Default for Journal {
    fn default() -> Journal {
        Journal {
            recent: BTreeMap::new(),
            bytes: 0,
            unsaved: Vec::new(),
            unsaved_bytes: 0,
            live: broadcast::channel(BEHIND).0,
            limit: EventLimit::default(),
            next: 1,
            start: String::new(),
        }
    }
}

impl Journal {
    /// Begins behind the events of earlier starts, of which `last` has the greatest number.
    pub fn begin(&mut self, last: u64, start: String) {
        (self.next, self.start) = (self.next.max(last + 1), start);
    }

    /// Something has happened, and is to be written down; whether it is reported now, and not later with others of its
    /// source.
    #[must_use]
    pub fn tell(&mut self, event: Event, now: Moment) -> bool {
        let is_reported = self.limit.admit(&event, now);
        if is_reported {
            self.report(event);
        }
        is_reported
    }

    /// What is reported late, of sources that have caused too much, in its order. With `all`, what is held of any.
    pub fn tell_late(&mut self, now: Moment, all: bool) -> Vec<Event> {
        let due = self.limit.due(now, all);
        due.iter().cloned().for_each(|event| self.report(event));
        due
    }

    fn report(&mut self, event: Event) {
        let event = self.numbered(event);
        // A store that fails for ever must not cost us our memory.
        if self.unsaved.len() < MOST && self.unsaved_bytes < BYTES {
            self.unsaved_bytes += event.size();
            self.unsaved.push(event.clone());
        }
        self.tell_kept(event);
    }

    /// An event with its number, and with nothing in it that is too long.
    pub fn numbered(&mut self, event: Event) -> Event {
        let id = self.next;
        self.next += 1;
        Event { id, start: self.start.clone(), ..event.bounded() }
    }

    /// Something has happened, has its number, and is written down already.
    pub fn tell_kept(&mut self, event: Event) {
        self.bytes += event.size();
        self.recent.insert(event.id, event.clone());
        while self.recent.len() > MOST || self.bytes > BYTES {
            let Some((_, oldest)) = self.recent.pop_first() else { break };
            self.bytes -= oldest.size();
        }
        // Nobody needs to listen.
        let _ = self.live.send(event);
    }

    /// Whether something is to be written down.
    pub fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// What is to be written down, once.
    pub fn take_unsaved(&mut self) -> Vec<Event> {
        self.unsaved_bytes = 0;
        std::mem::take(&mut self.unsaved)
    }

    /// What was taken could not be written down on the way on which it was to be, and is still to be.
    pub fn put_back(&mut self, mut events: Vec<Event>) {
        events.append(&mut self.unsaved);
        events.truncate(MOST);
        self.unsaved_bytes = events.iter().map(Event::size).sum();
        self.unsaved = events;
    }

    /// What is remembered of what has happened, by number.
    pub fn remembered(&self) -> Vec<Event> {
        self.recent.values().cloned().collect()
    }

    /// What will happen from now on.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.live.subscribe()
    }
}

/// Which events are meant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Which {
    /// Those at this time (RFC 3339) or later.
    pub since: Option<String>,
    /// Those with a greater number.
    pub after: Option<u64>,
}

impl Which {
    /// The same, with its time in the form in which events have it.
    pub fn normal(self) -> Result<Which, Refusal> {
        let since = self.since.map(|text| {
            let parsed = time::parse_rfc3339(&text).map(time::rfc3339);
            parsed.ok_or_else(|| {
                let message = format!("{text:?} is not a time; one looks like 2026-01-31T12:00:00Z");
                Refusal::request(kind::BAD_VALUE, message)
            })
        });
        Ok(Which { since: since.transpose()?, after: self.after })
    }

    /// Whether this event is meant.
    pub fn means(&self, event: &Event) -> bool {
        self.since.as_ref().is_none_or(|since| event.time >= *since) && self.after.is_none_or(|after| event.id > after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::events::EventKind;
    use std::time::{Duration, SystemTime};

    const NOW: Moment = Moment::from_secs(1000);

    fn event(number: u64) -> Event {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(number);
        Event { id: number, text: number.to_string(), ..Event::new(EventKind::Config, time) }
    }

    #[test]
    fn it_is_told_once_kept_a_while_and_written_down_once() {
        let mut journal = Journal::default();
        assert!(journal.tell(event(1), NOW));
        let mut listener = journal.listen();
        assert!((2..10).all(|number| journal.tell(event(number), NOW)));
        // Its number is reserved, and it is told when it is kept.
        let kept = journal.numbered(event(10));
        assert!(journal.tell(event(11), NOW));
        journal.tell_kept(kept);
        let heard: Vec<u64> = std::iter::from_fn(|| listener.try_recv().ok()).map(|event| event.id).collect();
        assert_eq!(heard, [2, 3, 4, 5, 6, 7, 8, 9, 11, 10]);
        assert_eq!(journal.remembered(), (1..=11).map(event).collect::<Vec<_>>());
        let of = |since: &str, after| {
            let which = Which { since: Some(since.into()), after }.normal().unwrap();
            journal.remembered().iter().filter(|event| which.means(event)).map(|event| event.id).collect::<Vec<_>>()
        };
        assert_eq!(of("1970-01-01T01:00:08+01:00", None), [8, 9, 10, 11]);
        assert_eq!(of("1970-01-01T01:00:08+01:00", Some(9)), [10, 11]);
        assert_eq!(Which { since: Some("yesterday".into()), after: None }.normal().unwrap_err().kind, kind::BAD_VALUE);
        let ids = |events: Vec<Event>| events.iter().map(|event| event.id).collect::<Vec<_>>();
        assert_eq!(ids(journal.take_unsaved()), [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]);
        assert_eq!(journal.take_unsaved(), []);
        assert!(journal.tell(event(12), NOW));
        journal.put_back(vec![event(9), event(10)]);
        assert_eq!(ids(journal.take_unsaved()), [9, 10, 12]);
    }

    #[test]
    fn it_forgets_what_is_oldest() {
        let mut journal = Journal::default();
        assert!((0..2 * MOST as u64).all(|number| journal.tell(event(number), NOW)));
        let left = journal.remembered();
        assert_eq!((left.len(), left[0].id), (MOST, 10_001));
        assert_eq!(journal.take_unsaved().len(), MOST);
    }

    #[test]
    fn it_holds_so_many_bytes_and_no_more() {
        let mut journal = Journal::default();
        for number in 0..2 * MOST as u64 {
            let long = Event { text: "é".repeat(1 << 20), ports: vec!["p".repeat(200); 1000], ..event(number) };
            assert!(number > 3 || journal.tell(long.clone(), NOW));
            assert!(journal.tell(Event { text: "x".repeat(5000), ..event(number) }, NOW));
        }
        let size = |events: &[Event]| events.iter().map(Event::size).sum::<usize>();
        assert!(size(&journal.remembered()) <= BYTES && journal.remembered().len() > 1000);
        assert!(journal.remembered().iter().all(|event| event.text.len() < 4200 && event.ports.len() <= 64));
        assert!(size(&journal.take_unsaved()) <= BYTES + 8192);
    }
}
