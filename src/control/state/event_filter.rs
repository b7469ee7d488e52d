//! Filters of events.

use crate::control::config::kind;
use crate::control::desired::change::ChangeError;
use crate::control::state::events::{Event, EventKind};
use crate::time;

/// Filter of events: an event matches if it matches each part. A part that is empty matches all events.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventFilter {
    /// At this time (RFC 3339) or later.
    pub since: Option<String>,
    /// Of one of these kinds.
    pub kinds: Vec<EventKind>,
    /// Of one of these VMs.
    pub vms: Vec<String>,
    /// Of one of these ports or uplinks.
    pub ports: Vec<String>,
    /// Of one of these networks.
    pub networks: Vec<String>,
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
        Ok(EventFilter { since: since.transpose()?, ..self })
    }

    /// Whether this event matches.
    pub fn matches(&self, event: &Event) -> bool {
        let is_one =
            |of: Option<&String>, wanted: &[String]| wanted.is_empty() || of.is_some_and(|of| wanted.contains(of));
        self.since.as_ref().is_none_or(|since| event.time >= *since)
            && (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && is_one(event.vm.as_ref(), &self.vms)
            && is_one(event.network.as_ref(), &self.networks)
            && (self.ports.is_empty() || event.ports.iter().any(|port| self.ports.contains(port)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn an_event_matches_each_part() {
        let event = Event {
            vm: Some("v".into()),
            ports: vec!["p".into(), "q".into()],
            network: Some("n".into()),
            ..Event::new(EventKind::PortUp, SystemTime::UNIX_EPOCH + Duration::from_secs(8))
        };
        let some = |id: &str| vec!["x".to_owned(), id.to_owned()];
        let all = EventFilter {
            since: Some("1970-01-01T01:00:08+01:00".into()),
            kinds: vec![EventKind::Config, EventKind::PortUp],
            vms: some("v"),
            ports: some("q"),
            networks: some("n"),
        };
        let all = all.normalized().unwrap();
        assert!(all.matches(&event) && EventFilter::default().matches(&event));
        for other in [
            EventFilter { since: Some("1970-01-01T00:00:08.001Z".into()), ..all.clone() },
            EventFilter { kinds: vec![EventKind::PortDown], ..all.clone() },
            EventFilter { vms: some("w"), ..all.clone() },
            EventFilter { ports: some("r"), ..all.clone() },
            EventFilter { networks: some("m"), ..all.clone() },
        ] {
            assert!(!other.matches(&event), "{other:?}");
            let bare = Event::new(EventKind::Config, SystemTime::UNIX_EPOCH);
            assert!(!other.matches(&bare), "{other:?}");
        }
        let wrong = EventFilter { since: Some("yesterday".into()), ..EventFilter::default() };
        assert_eq!(wrong.normalized().unwrap_err().kind, kind::BAD_VALUE);
    }
}
