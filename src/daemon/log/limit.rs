//! Limits messages per source: a place in the program, and the port, network, worker or user that the message is about.
//!
//! Beyond a burst, only the last message of a source is logged every ten seconds, with the number of those left out.

use std::hash::RandomState;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::callsite::Identifier;

use super::record::{Record, Value};
use crate::telemetry::LOG_LINES_LEFT_OUT;
use crate::telemetry::source_limiter::SourceLimiter;
use crate::time::MonoTime;

/// Messages of one source logged at once, per window.
const BURST: u32 = 100;

/// Length of the window.
const WINDOW: Duration = Duration::from_secs(10);

/// Maximum sources; further ones count as one per place in the program.
const SOURCES: usize = 1024;

/// A source: place in the program, and hash of what the message is about.
type Key = (Identifier, Option<u64>);

/// Sources with recent messages.
#[derive(Debug)]
pub struct Limiter {
    sources: SourceLimiter<Key, Record>,
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
        Limiter { sources: SourceLimiter::new(BURST, window), hasher: RandomState::new() }
    }

    /// The message, if it is logged now. If not, whether it is the first of its source that is held back.
    pub fn admit(&mut self, place: Identifier, record: Record, now: MonoTime) -> Result<Record, bool> {
        let key = self.key(place, &record, now);
        let Some(held) = self.sources.admit(key, now) else { return Ok(record) };
        let is_first = held.replace(record);
        LOG_LINES_LEFT_OUT.fetch_add(u64::from(!is_first), Ordering::Relaxed);
        Err(is_first)
    }

    /// When the first message that is held back is due.
    pub fn next_due(&self) -> Option<MonoTime> {
        self.sources.next_due()
    }

    /// Messages held back whose window has ended, in order, each with the number of those left out. `all`: of all sources.
    pub fn due(&mut self, now: MonoTime, all: bool) -> Vec<Record> {
        let with_number = |(mut record, left_out): (Record, u64)| {
            if left_out > 0 {
                record.add("left_out", Value::Number(left_out.into()));
            }
            record
        };
        let mut due: Vec<_> = self.sources.due(now, all).into_iter().map(with_number).collect();
        due.sort_by_key(|record| record.time);
        due
    }

    fn key(&mut self, place: Identifier, record: &Record, now: MonoTime) -> Key {
        let key = (place, record.source(&self.hasher));
        if self.sources.len() < SOURCES || self.sources.contains(&key) {
            return key;
        }
        self.sources.forget_silent(now);
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
