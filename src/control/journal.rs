//! What happened, as far as it is remembered here, and whoever listens to what will.
//!
//! The history of the switch is in its store. The journal has what a switch without a store can
//! tell, and what is still to be written down.

use std::collections::VecDeque;

use tokio::sync::broadcast;

use super::change::Refusal;
use super::config::kind;
use super::events::Event;
use crate::time;

/// Events remembered.
const MOST: usize = 10_000;

/// Events that a listener may be behind before it misses some.
const BEHIND: usize = 4096;

/// What happened lately.
#[derive(Debug)]
pub struct Journal {
    recent: VecDeque<Event>,
    unsaved: Vec<Event>,
    live: broadcast::Sender<Event>,
}

impl Default for Journal {
    fn default() -> Journal {
        Journal { recent: VecDeque::new(), unsaved: Vec::new(), live: broadcast::channel(BEHIND).0 }
    }
}

impl Journal {
    /// Something has happened, and is to be written down.
    pub fn tell(&mut self, event: Event) {
        // A store that fails for ever must not cost us our memory.
        if self.unsaved.len() < MOST {
            self.unsaved.push(event.clone());
        }
        self.tell_kept(event);
    }

    /// Something has happened, and is written down already.
    pub fn tell_kept(&mut self, event: Event) {
        if self.recent.len() == MOST {
            self.recent.pop_front();
        }
        self.recent.push_back(event.clone());
        // Nobody needs to listen.
        let _ = self.live.send(event);
    }

    /// Whether something is to be written down.
    pub fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// What is to be written down, once.
    pub fn take_unsaved(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.unsaved)
    }

    /// What was taken could not be written down on the way on which it was to be, and is still to be.
    pub fn put_back(&mut self, mut events: Vec<Event>) {
        events.append(&mut self.unsaved);
        events.truncate(MOST);
        self.unsaved = events;
    }

    /// What has happened since a time that is RFC 3339, or all that is remembered.
    pub fn since(&self, since: Option<&str>) -> Result<Vec<Event>, Refusal> {
        let since = since.map(normal).transpose()?.unwrap_or_default();
        Ok(self.recent.iter().filter(|event| event.time >= since).cloned().collect())
    }

    /// What will happen from now on.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.live.subscribe()
    }
}

/// A time in the form in which events have it.
fn normal(text: &str) -> Result<String, Refusal> {
    let parsed = time::parse_rfc3339(text).map(time::rfc3339);
    parsed.ok_or_else(|| {
        let message = format!("{text:?} is not a time; one looks like 2026-01-31T12:00:00Z");
        Refusal::request(kind::BAD_VALUE, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::events::EventKind;
    use std::time::{Duration, SystemTime};

    fn event(number: u64) -> Event {
        Event {
            time: time::rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(number)),
            kind: EventKind::Config,
            vm: None,
            ports: Vec::new(),
            network: None,
            mac: None,
            ip: None,
            text: number.to_string(),
        }
    }

    #[test]
    fn it_is_told_once_kept_a_while_and_written_down_once() {
        let mut journal = Journal::default();
        journal.tell(event(0));
        let mut listener = journal.listen();
        (1..10).for_each(|number| journal.tell(event(number)));
        journal.tell_kept(event(10));
        let heard: Vec<Event> = std::iter::from_fn(|| listener.try_recv().ok()).collect();
        assert_eq!(heard, (1..=10).map(event).collect::<Vec<_>>());
        assert_eq!(journal.since(None).unwrap(), (0..=10).map(event).collect::<Vec<_>>());
        assert_eq!(journal.since(Some("1970-01-01T01:00:08+01:00")).unwrap(), [event(8), event(9), event(10)]);
        assert_eq!(journal.since(Some("yesterday")).unwrap_err().kind, kind::BAD_VALUE);
        assert_eq!(journal.take_unsaved(), (0..10).map(event).collect::<Vec<_>>());
        assert_eq!(journal.take_unsaved(), []);
        journal.tell(event(11));
        journal.put_back(vec![event(9), event(10)]);
        assert_eq!(journal.take_unsaved(), [event(9), event(10), event(11)]);
    }

    #[test]
    fn it_forgets_what_is_oldest() {
        let mut journal = Journal::default();
        (0..2 * MOST as u64).for_each(|number| journal.tell(event(number)));
        let left = journal.since(None).unwrap();
        assert_eq!((left.len(), left[0].text.as_str()), (MOST, "10000"));
        assert_eq!(journal.take_unsaved().len(), MOST);
    }
}
