//! Query of events: where a reader begins, what it reads, and in which form.

use axum::http::{HeaderMap, header};

use super::error::ApiError;
use crate::control::state::event_filter::EventFilter;
use crate::control::state::events::EventKind;

/// Maximum values of all filters of a request; each event is compared with them.
const MAX_VALUES: usize = 64;

/// Header of a client that continues a stream.
const LAST_EVENT_ID: &str = "last-event-id";

/// A request for events.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EventQuery {
    /// Which events.
    pub filter: EventFilter,
    /// Only those behind this id.
    pub after: Option<u64>,
    /// Whether the answer continues with live events.
    pub follow: bool,
    /// Whether it is an event stream instead of JSON lines.
    pub is_stream: bool,
}

impl EventQuery {
    /// Reads a query, as pairs of keys and values, and headers.
    ///
    /// # Errors
    /// A key, a value or a header is invalid.
    pub fn parse(pairs: Vec<(String, String)>, headers: &HeaderMap) -> Result<EventQuery, ApiError> {
        let is_stream = wants_stream(headers);
        let mut query = EventQuery { follow: is_stream, is_stream, ..EventQuery::default() };
        for (key, value) in pairs {
            query.set(&key, value)?;
        }
        // A client that reconnects asks with the query that it began with.
        if let Some(id) = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()) {
            let text = String::from_utf8_lossy(id.as_bytes());
            query.after = Some(id_of("Last-Event-ID", &text, "bad_header")?);
        }
        let EventFilter { kinds, vms, ports, networks, .. } = &query.filter;
        if kinds.len() + vms.len() + ports.len() + networks.len() > MAX_VALUES {
            return Err(wrong(format!("more than {MAX_VALUES} values of kind, vm, port and network")));
        }
        Ok(EventQuery { filter: query.filter.normalized()?, ..query })
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), ApiError> {
        match key {
            "since" => self.filter.since = Some(value),
            "after" => self.after = Some(id_of(key, &value, "bad_query")?),
            "follow" => {
                self.follow =
                    value.parse().map_err(|_| wrong(format!("follow = {value:?}: expected \"true\" or \"false\"")))?;
            }
            "kind" => {
                for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                    let kind = EventKind::parse(name).map_err(|why| wrong(format!("kind = {name:?}: {why}")))?;
                    self.filter.kinds.push(kind);
                }
            }
            "vm" => add(&mut self.filter.vms, value),
            "port" => add(&mut self.filter.ports, value),
            "network" => add(&mut self.filter.networks, value),
            _ => {
                let keys = "since, after, follow, kind, vm, port, network";
                return Err(wrong(format!("unknown key {key:?}; expected one of {keys}")));
            }
        }
        Ok(())
    }
}

/// Adds a list of ids. Ids may contain commas, so the text as a whole is one of them.
fn add(ids: &mut Vec<String>, text: String) {
    if text.contains(',') {
        ids.extend(text.split(',').map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned));
    }
    ids.push(text);
}

fn id_of(key: &str, text: &str, kind: &'static str) -> Result<u64, ApiError> {
    text.trim().parse().map_err(|_| ApiError::wrong(kind, format!("{key} = {text:?}: expected the id of an event")))
}

fn wrong(message: String) -> ApiError {
    ApiError::wrong("bad_query", message)
}

/// Whether the client accepts an event stream. Clients that accept JSON lines do not name this type.
fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut types = accepted.flat_map(|value| value.split(',')).filter_map(|part| part.split(';').next());
    types.any(|of| of.trim().eq_ignore_ascii_case("text/event-stream"))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn parse(pairs: &[(&str, &str)], headers: &[(&'static str, &'static str)]) -> Result<EventQuery, ApiError> {
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        EventQuery::parse(pairs, &headers.collect())
    }

    fn texts(of: &[&str]) -> Vec<String> {
        of.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn filters_are_repeated_or_lists() {
        let query = parse(
            &[
                ("kind", "port_up,port_down"),
                ("kind", "config"),
                ("port", "a, b"),
                ("port", "c"),
                ("vm", "v"),
                ("network", "n"),
                ("after", "7"),
                ("follow", "true"),
                ("since", "1970-01-01T01:00:08+01:00"),
            ],
            &[],
        );
        let filter = EventFilter {
            since: Some("1970-01-01T00:00:08.000Z".into()),
            kinds: vec![EventKind::PortUp, EventKind::PortDown, EventKind::Config],
            vms: texts(&["v"]),
            ports: texts(&["a", "b", "a, b", "c"]),
            networks: texts(&["n"]),
        };
        assert_eq!(query.unwrap(), EventQuery { filter, after: Some(7), follow: true, is_stream: false });
    }

    #[test]
    fn a_stream_follows_and_continues_behind_its_last_event() {
        let stream = ("accept", "application/json;q=0.5, Text/Event-Stream;q=1");
        let query = |pairs: &[_], headers: &[_]| {
            let EventQuery { after, follow, is_stream, .. } = parse(pairs, headers).unwrap();
            (after, follow, is_stream)
        };
        assert_eq!(query(&[], &[]), (None, false, false));
        assert_eq!(query(&[], &[("accept", "*/*")]), (None, false, false));
        assert_eq!(query(&[], &[stream]), (None, true, true));
        assert_eq!(query(&[("follow", "false")], &[stream]), (None, false, true));
        assert_eq!(query(&[("after", "7")], &[stream, ("last-event-id", "9")]), (Some(9), true, true));
        assert_eq!(query(&[("after", "7")], &[stream, ("last-event-id", "")]), (Some(7), true, true));
    }

    #[test]
    fn errors_name_what_would_be_right() {
        let refused = |pairs: &[_], headers: &[_]| {
            let error = parse(pairs, headers).unwrap_err();
            (error.kind, error.message)
        };
        for (pair, part) in [
            (("kind", "storm"), "storm_start"),
            (("after", "x"), "the id of an event"),
            (("after", "-1"), "the id of an event"),
            (("follow", "perhaps"), "\"true\" or \"false\""),
            (("from", "x"), "since, after"),
        ] {
            let (kind, message) = refused(&[pair], &[]);
            assert!(kind == "bad_query" && message.contains(part) && message.contains(pair.0), "{message}");
        }
        assert_eq!(refused(&[("since", "yesterday")], &[]).0, "bad_value");
        assert_eq!(refused(&[], &[("last-event-id", "x")]).0, "bad_header");
        let many = ["v"; 65].map(|id| ("vm", id));
        assert!(refused(&many, &[]).1.contains("64 values"));
    }
}
