//! Limits messages per source: a place in the program, and the port, network, worker or user that the message is about.
//!
//! The first messages of a source are logged at once. Of further ones, only the last is logged, when ten seconds have
//! passed, with the number of those left out: so the last state is always logged.

use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::callsite::Identifier;

use super::record::{Record, Value};
use crate::telemetry::LOG_LINES_LEFT_OUT;
use crate::time::MonoTime;

/// Messages of one source logged at once, per window.
const BURST: u32 = 100;

/// Length of the window.
const WINDOW: Duration = Duration::from_secs(10);

/// Maximum sources; further ones count as one per place in the program.
const SOURCES: usize = 1024;

/// A source: place in the program, and hash of what the message is about.
type Key = (Identifier, Option<u64>);

/// Recent messages of one source.
#[derive(Debug)]
struct Source {
    /// Start of the window.
    since: MonoTime,
    logged: u32,
    /// The last message held back, and the number of those left out before it.
    held: Option<(Record, u64)>,
}

/// Sources with recent messages.
#[derive(Debug)]
pub struct Limiter {
    window: Duration,
    sources: HashMap<Key, Source>,
    hasher: RandomState,
}

impl Default for Limiter {
    fn default() -> Limiter {
        Limiter::with_window(WINDOW)
    }
}

impl Limiter {
    /// No messages. A source that has too many is logged once per window.
    pub fn with_window(window: Duration) -> Limiter {
        Limiter { window, sources: HashMap::new(), hasher: RandomState::new() }
    }

    /// The message, if it is logged now. If not, whether it is the first of its source that is held back.
    pub fn admit(&mut self, place: Identifier, record: Record, now: MonoTime) -> Result<Record, bool> {
        let key = self.key(place, &record, now);
        let source = self.sources.entry(key).or_insert(Source { since: now, logged: 0, held: None });
        if source.held.is_none() && now.since(source.since) >= self.window {
            (source.since, source.logged) = (now, 0);
        }
        if source.held.is_none() && source.logged < BURST {
            source.logged += 1;
            return Ok(record);
        }
        let is_first = source.held.is_none();
        let left_out = source.held.take().map_or(0, |(_, before)| {
            LOG_LINES_LEFT_OUT.fetch_add(1, Ordering::Relaxed);
            before + 1
        });
        source.held = Some((record, left_out));
        Err(is_first)
    }

    /// When the first message that is held back is due.
    pub fn next_due(&self) -> Option<MonoTime> {
        self.sources.values().filter(|source| source.held.is_some()).map(|source| source.since + self.window).min()
    }

    /// Messages held back whose window has ended, in order, each with the number of those left out. `all`: of all sources.
    pub fn due(&mut self, now: MonoTime, all: bool) -> Vec<Record> {
        let mut due = Vec::new();
        self.sources.retain(|_, source| {
            if !all && now.since(source.since) < self.window {
                return true;
            }
            let Some((mut record, left_out)) = source.held.take() else { return false };
            // A source that continues is logged once per window.
            (source.since, source.logged) = (now, BURST);
            if left_out > 0 {
                record.add("left_out", Value::Number(left_out.into()));
            }
            due.push(record);
            true
        });
        due.sort_by_key(|record| record.time);
        due
    }

    fn key(&mut self, place: Identifier, record: &Record, now: MonoTime) -> Key {
        let key = (place, record.source(&self.hasher));
        if self.sources.len() < SOURCES || self.sources.contains_key(&key) {
            return key;
        }
        self.sources.retain(|_, source| source.held.is_some() || now.since(source.since) < self.window);
        if self.sources.len() < SOURCES { key } else { (key.0, None) }
    }
}

#[cfg(test)]
mod tests {
    use tracing::callsite::Callsite;
    use tracing::subscriber::Interest;
    use tracing::{Level, Metadata};

    use super::*;

    /// A place in the program, told apart by its address, which no other has, as it is not of size zero.
    struct Place(#[allow(dead_code)] u8);

    impl Callsite for Place {
        fn set_interest(&self, _: Interest) {}

        fn metadata(&self) -> &Metadata<'_> {
            unreachable!("not asked for")
        }
    }

    static HERE: Place = Place(1);
    static THERE: Place = Place(2);

    fn here() -> Identifier {
        Identifier(&HERE)
    }

    fn record(port: &str, text: usize) -> Record {
        let mut record = Record::new(Level::INFO, "x", text.to_string());
        record.add("port", Value::Text(port.into()));
        record
    }

    fn at(millis: u64) -> MonoTime {
        MonoTime::from_nanos(millis * 1_000_000)
    }

    fn left_out(record: &Record) -> u64 {
        let field = record.fields.iter().find(|(name, _)| *name == "left_out");
        field.map_or(0, |(_, value)| match value {
            Value::Number(number) => number.as_u64().unwrap(),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_last_message_of_a_window_is_logged_with_the_number_of_those_left_out() {
        let mut limiter = Limiter::default();
        let burst = BURST as usize;
        let logged = |limiter: &mut Limiter, text, now| limiter.admit(here(), record("a", text), at(now));
        for text in 0..burst {
            logged(&mut limiter, text, 0).unwrap();
        }
        assert_eq!(limiter.next_due(), None);
        assert!(logged(&mut limiter, burst, 500).unwrap_err(), "the first one held back");
        for text in burst + 1..1000 {
            assert!(!logged(&mut limiter, text, 1000).unwrap_err());
        }
        assert_eq!(limiter.next_due(), Some(at(10_000)));
        assert!(limiter.due(at(9_999), false).is_empty());
        let due = limiter.due(at(10_000), false);
        let [last] = &due[..] else { panic!("{due:?}") };
        assert_eq!((last.message.as_str(), left_out(last)), ("999", 1000 - BURST as u64 - 1));
        // One that continues is logged once per window.
        logged(&mut limiter, 1000, 10_001).unwrap_err();
        let due = limiter.due(at(20_000), false);
        assert_eq!((due.len(), left_out(&due[0])), (1, 0));
        // One that has been silent is as new.
        assert!(limiter.due(at(30_000), false).is_empty());
        logged(&mut limiter, 1001, 30_001).unwrap();
    }

    #[test]
    fn sources_do_not_limit_each_other() {
        let mut limiter = Limiter::default();
        for text in 0..=BURST as usize {
            let _ = limiter.admit(here(), record("a", text), at(0));
        }
        limiter.admit(here(), record("a", 0), at(0)).unwrap_err();
        limiter.admit(here(), record("b", 0), at(0)).unwrap();
        limiter.admit(Identifier(&THERE), record("a", 0), at(0)).unwrap();
        assert_eq!(limiter.due(at(0), true).len(), 1);
    }

    #[test]
    fn the_number_of_sources_is_bounded() {
        let mut limiter = Limiter::default();
        let mut logged = 0;
        for port in 0..3 * SOURCES {
            logged += usize::from(limiter.admit(here(), record(&port.to_string(), 0), at(0)).is_ok());
        }
        assert!(limiter.sources.len() <= SOURCES + 1, "{}", limiter.sources.len());
        assert_eq!(logged, SOURCES + BURST as usize, "further ones share a source");
        // Places of silent sources are taken by others.
        limiter.admit(here(), record("new", 0), at(10_001)).unwrap();
        assert!(limiter.sources.len() <= 2, "{}", limiter.sources.len());
    }
}
