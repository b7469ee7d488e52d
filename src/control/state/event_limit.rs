//! Limits events per source, so that a guest that flaps its link or storms floods neither log, history nor disk.
//!
//! Beyond a burst, only the last event of a source is reported every ten seconds, with the number of the others.

use std::time::Duration;

use crate::control::state::events::{Event, EventKind};
use crate::telemetry::source_limiter::SourceLimiter;
use crate::time::MonoTime;

/// Events of one source reported at once, per window.
const BURST: u32 = 20;

/// Length of the window.
const WINDOW: Duration = Duration::from_secs(10);

/// Key of events of which a later one supersedes an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Group {
    Link,
    Storm,
    Loop,
    Other(EventKind),
}

fn group(kind: EventKind) -> Option<Group> {
    match kind {
        // Caused by operators, who are limited elsewhere. A port ends once.
        EventKind::Config | EventKind::PortEnded | EventKind::Gap => None,
        EventKind::PortUp | EventKind::PortDown => Some(Group::Link),
        EventKind::StormStart | EventKind::StormStop => Some(Group::Storm),
        EventKind::LoopStart | EventKind::LoopLevel | EventKind::LoopStop => Some(Group::Loop),
        other => Some(Group::Other(other)),
    }
}

/// Sources with recent events. A port is a source; a whole VM is another.
#[derive(Debug)]
pub struct EventLimiter(SourceLimiter<(Group, Option<String>, Option<String>), Event>);

impl Default for EventLimiter {
    fn default() -> EventLimiter {
        EventLimiter(SourceLimiter::new(BURST, WINDOW))
    }
}

impl EventLimiter {
    /// Whether this event is reported now.
    pub fn admit(&mut self, event: &Event, now: MonoTime) -> bool {
        let Some(group) = group(event.kind) else { return true };
        let held = self.0.admit((group, event.vm.clone(), event.ports.first().cloned()), now);
        held.map(|held| held.replace(event.clone())).is_none()
    }

    /// Last events of sources whose window has ended, each with the number of others. `all`: of all sources.
    pub fn due(&mut self, now: MonoTime, all: bool) -> Vec<Event> {
        let with_others = |(mut event, others): (Event, u64)| {
            if others > 0 {
                let seconds = WINDOW.as_secs();
                event.text = format!("{}; and {others} more events of this port in {seconds} seconds", event.text);
            }
            event
        };
        let mut due: Vec<_> = self.0.due(now, all).into_iter().map(with_others).collect();
        due.sort_by(|a, b| a.time.cmp(&b.time));
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind, port: &str, text: usize) -> Event {
        Event {
            ports: vec![port.into()],
            text: text.to_string(),
            ..Event::new(kind, std::time::SystemTime::UNIX_EPOCH)
        }
    }

    fn at(millis: usize) -> MonoTime {
        MonoTime::from_secs(1000) + Duration::from_millis(millis as u64)
    }

    #[test]
    fn the_last_of_many_events_is_reported_with_their_number() {
        let mut limit = EventLimiter::default();
        let mut reported = Vec::new();
        let kinds = [EventKind::PortDown, EventKind::PortUp];
        for number in 0..3000 {
            let event = event(kinds[number % 2], "p", number);
            if limit.admit(&event, at(number * 10)) {
                reported.push(event);
            }
            reported.extend(limit.due(at(number * 10), false));
        }
        reported.extend(limit.due(at(60_000), false));
        assert_eq!(reported.len(), 20 + 3, "{reported:?}");
        assert_eq!(reported[19].text, "19");
        let last = reported.last().unwrap();
        assert!(last.text.starts_with("2999; and ") && last.kind == EventKind::PortUp, "{last:?}");
        let others = |event: &Event| event.text.split(' ').nth(2).and_then(|n| n.parse::<usize>().ok()).unwrap_or(0);
        assert_eq!(reported.iter().map(|event| 1 + others(event)).sum::<usize>(), 3000);
        // After a quiet time the limit is as at the start.
        assert!(limit.due(at(80_000), false).is_empty());
        assert!(limit.0.is_empty() && limit.admit(&event(EventKind::PortUp, "p", 0), at(80_001)));
    }

    #[test]
    fn sources_are_limited_one_by_one() {
        let mut limit = EventLimiter::default();
        let admitted = (0..100).filter(|&number| limit.admit(&event(EventKind::PortUp, "p", number), at(0)));
        assert_eq!(admitted.count(), 20);
        assert!(limit.admit(&event(EventKind::PortUp, "q", 0), at(0)));
        assert!(limit.admit(&event(EventKind::StormStart, "p", 0), at(0)));
        assert!((0..100).all(|number| limit.admit(&event(EventKind::Config, "p", number), at(0))));
        assert_eq!(limit.due(at(0), true).len(), 1);
    }
}
