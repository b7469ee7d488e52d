//! Events over the API: past and live events, filters, event streams, and slow readers. Runs the API server over a fake
//! controller; needs nothing of the host.

use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;

use serde_json::Value;
use vifswitch::control::api::client::{Client, Error};
use vifswitch::control::state::event_filter::EventFilter;
use vifswitch::control::state::events::{Event, EventKind};

use crate::{request, talk};
use support::fake::{Fake, FakeBehaviour, Received, Views, event, numbered, runtime};
use support::host::await_that;

/// A client that reads line by line.
struct Reader(BufReader<UnixStream>);

impl Reader {
    /// A follower that has read the head of the response. It begins now.
    fn following(fake: &Fake) -> Reader {
        Reader::try_following(fake, "follow=true", "").unwrap()
    }

    /// The same with this query and these header lines; `None` if it is refused.
    fn try_following(fake: &Fake, query: &str, head: &str) -> Option<Reader> {
        let mut stream = UnixStream::connect(fake.socket()).unwrap();
        write!(stream, "GET /v1/events?{query} HTTP/1.1\r\nHost: vifswitch\r\n{head}\r\n").unwrap();
        let mut reader = Reader(BufReader::new(stream));
        if !reader.line().unwrap().starts_with("HTTP/1.1 200") {
            return None;
        }
        while reader.line().unwrap() != "\r\n" {}
        Some(reader)
    }

    /// Next line; `None` at the end.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        (self.0.read_line(&mut line).unwrap() > 0).then_some(line)
    }

    /// Next event, without the chunk sizes; `None` at the end.
    fn event(&mut self) -> Option<Event> {
        loop {
            let line = self.line()?;
            if line.starts_with('{') {
                return Some(serde_json::from_str(&line).unwrap());
            }
        }
    }

    /// Next message of an event stream: its id, and its event.
    fn message(&mut self) -> (Option<u64>, Option<Event>) {
        let (mut id, mut event) = (None, None);
        loop {
            let line = self.line().unwrap();
            if let Some(text) = line.strip_prefix("id: ") {
                id = Some(text.trim().parse().unwrap());
            } else if let Some(text) = line.strip_prefix("data: ") {
                event = Some(serde_json::from_str(text).unwrap());
            } else if line == "\n" {
                return (id, event);
            }
        }
    }
}

#[test]
fn stored_events_are_sent_line_by_line() {
    let (mind, mut requests) = FakeBehaviour::willing();
    let views = Views {
        events: (0..1000).map(|n| event("2025-11-03T09:00:00.000Z", &format!("a\n{n}"))).collect(),
        ..Views::made_up()
    };
    let fake = Fake::with_behaviour(views.clone(), mind);
    for (path, since) in [
        ("/v1/events", None),
        ("/v1/events?follow=false", None),
        ("/v1/events?since=2025-11-03T10:00:00%2B01:00", Some("2025-11-03T09:00:00.000Z")),
    ] {
        let mut reported = Vec::new();
        let client = Client::new(fake.socket());
        let lines = client.lines(path, |line| {
            reported.push(serde_json::from_slice::<Event>(line).unwrap());
            ControlFlow::Continue(())
        });
        runtime().block_on(lines).unwrap();
        assert_eq!(reported, numbered(&views.events));
        let filter = EventFilter { since: since.map(str::to_owned), ..EventFilter::default() };
        let pages: Vec<Received> = std::iter::from_fn(|| requests.try_recv().ok()).collect();
        let behind = |id| Received::Events(filter.clone(), id);
        assert_eq!(
            pages,
            [behind(None), behind(Some(0)), behind(Some(256)), behind(Some(512)), behind(Some(768))],
            "page by page"
        );
    }
    let answer = request(&fake, "GET", "/v1/events");
    assert!(answer.1.contains("content-type: application/x-ndjson"), "{}", answer.1);
}

#[test]
fn a_follower_begins_now_unless_it_says_where() {
    let (mind, _asked) = FakeBehaviour::willing();
    let happening = mind.happening.clone();
    let views = Views::made_up();
    let fake = Fake::with_behaviour(views.clone(), mind);
    let mut now = Reader::following(&fake);
    let mut behind = Reader::try_following(&fake, "follow=true&after=1", "").unwrap();
    let mut since = Reader::try_following(&fake, "follow=true&since=2025-11-03T09:00:00Z", "").unwrap();
    let past = numbered(&views.events);
    assert_eq!(behind.event().as_ref(), Some(&past[1]));
    past.iter().for_each(|event| assert_eq!(since.event().as_ref(), Some(event)));
    for n in 0..100 {
        let sent = event("2025-11-03T09:00:02.000Z", &n.to_string());
        happening.emit(sent.clone());
        let sent = Event { id: 3 + n, ..sent };
        for reader in [&mut now, &mut behind, &mut since] {
            assert_eq!(reader.event().as_ref(), Some(&sent));
        }
    }
}

#[test]
fn events_are_filtered() {
    let (mind, _asked) = FakeBehaviour::willing();
    let happening = mind.happening.clone();
    let fake = Fake::with_behaviour(Views { events: vec![], ..Views::made_up() }, mind);
    let kinds = [EventKind::PortUp, EventKind::PortDown, EventKind::Config];
    for id in 1..=12 {
        let of = |number: usize| format!("x{}", number % 2);
        happening.emit(Event {
            kind: kinds[id % 3],
            vm: Some(of(id / 3)),
            ports: vec![format!("p,{id}")],
            network: Some(of(id / 6)),
            ..event("2025-11-03T09:00:00.000Z", "")
        });
    }
    let ids = |query: &str| {
        let answer = request(&fake, "GET", &format!("/v1/events?{query}"));
        let events = answer.2.lines().filter(|line| line.starts_with('{')).map(|line| line.parse::<Value>().unwrap());
        events.map(|event| event["id"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ids("kind=port_down"), [1, 4, 7, 10]);
    assert_eq!(ids("kind=port_down,config&after=4"), [5, 7, 8, 10, 11]);
    assert_eq!(ids("kind=port_down&kind=config&vm=x1&network=x0"), [4, 5]);
    assert_eq!(ids("port=p,7&port=p%2C9&port=none"), [7, 9], "an id may contain a comma");
    let answer = request(&fake, "GET", "/v1/events?kind=port_up,storm");
    assert_eq!((answer.0, answer.kind().as_str()), (400, "bad_query"));
    assert!(answer.2.contains("storm_start") && answer.2.contains("port_up"), "it names the kinds: {}", answer.2);
}

#[test]
fn an_event_stream_is_continued_behind_its_last_event() {
    let (mind, _asked) = FakeBehaviour::willing();
    let happening = mind.happening.clone();
    let fake = Fake::with_behaviour(Views { events: vec![], ..Views::made_up() }, mind);
    (1..=3).for_each(|n: u64| happening.emit(event("2025-11-03T09:00:00.000Z", &n.to_string())));
    let accept = "Accept: text/event-stream\r\n";
    let sent = |id: u64| (Some(id), Some(Event { id, ..event("2025-11-03T09:00:00.000Z", &id.to_string()) }));
    let mut stream = Reader::try_following(&fake, "", accept).unwrap();
    assert_eq!(stream.message(), (Some(3), None), "the position that it begins at");
    happening.emit(event("2025-11-03T09:00:00.000Z", "4"));
    assert_eq!(stream.message(), sent(4));
    let mut again = Reader::try_following(&fake, "after=1", &format!("{accept}Last-Event-ID: 2\r\n")).unwrap();
    assert_eq!((again.message(), again.message(), again.message()), ((Some(2), None), sent(3), sent(4)));
    // A message about missing events has the id behind which it continues.
    let mut other = Reader::try_following(&fake, "after=7", accept).unwrap();
    assert_eq!(other.message(), (Some(7), None));
    let (id, reported) = other.message();
    assert_eq!((id, reported.unwrap().kind), (Some(0), EventKind::Gap));
    assert_eq!(other.message(), sent(1));
    let answer =
        crate::converse(UnixStream::connect(fake.socket()).unwrap(), "GET", "/v1/events?follow=false", accept, "");
    assert!(answer.1.contains("content-type: text/event-stream"), "{}", answer.1);
}

#[test]
fn a_disconnected_subscriber_is_removed() {
    let (mind, _asked) = FakeBehaviour::willing();
    let happening = mind.happening.clone();
    let fake = Fake::with_behaviour(Views::made_up(), mind);
    let readers: Vec<_> = (0..20).map(|_| Reader::following(&fake)).collect();
    assert_eq!(happening.followers(), 20);
    drop(readers);
    // No event is emitted that would show the disconnection; the switch detects it nevertheless.
    await_that("all are removed", || (happening.followers() == 0).then_some(()));
    let again: Vec<_> = (0..24).map(|_| Reader::following(&fake)).collect();
    drop(again);
}

#[test]
fn a_slow_subscriber_is_told_what_it_missed() {
    const EVENTS: u64 = 12_000;
    let (mind, _asked) = FakeBehaviour::willing();
    let happening = mind.happening.clone();
    let fake = Fake::with_behaviour(Views { events: vec![], ..Views::made_up() }, mind);
    let mut reader = Reader::following(&fake);
    // More than the socket and the history hold, while nobody reads.
    let long = "x".repeat(4000);
    (0..EVENTS).for_each(|n| happening.emit(event(&n.to_string(), &long)));
    let (mut last, mut gaps) = (0, 0);
    while last < EVENTS {
        let event = reader.event().unwrap();
        if let Some(gap) = event.gap {
            assert_eq!((event.kind, gap.first_missing), (EventKind::Gap, last + 1));
            (last, gaps) = (gap.next_id - 1, gaps + 1);
        } else {
            assert_eq!(event.id, last + 1, "every missing event is reported as missing");
            last = event.id;
        }
    }
    assert!(gaps > 0, "the subscriber has been too slow");
    happening.emit(event("x", "still there"));
    assert_eq!(reader.event().map(|event| (event.id, event.text)), Some((EVENTS + 1, "still there".into())));
}

#[test]
fn subscribers_are_bounded() {
    let fake = Fake::with_views(Views::made_up());
    let readers: Vec<_> = (0..24).map(|_| Reader::following(&fake)).collect();
    let answer = request(&fake, "GET", "/v1/events?follow=true");
    assert_eq!((answer.0, answer.kind().as_str()), (429, "too_many_requests"));
    assert!(answer.1.contains("retry-after: 1"), "{}", answer.1);
    assert_eq!(request(&fake, "GET", "/v1/events").0, 200);
    assert_eq!(request(&fake, "GET", "/v1/ports").0, 200);
    drop(readers);
}

#[test]
fn subscribers_do_not_delay_a_stop() {
    let (mind, _asked) = FakeBehaviour::willing();
    // While this is held, events continue: the server ends the response.
    let happening = mind.happening.clone();
    let mut fake = Fake::with_behaviour(Views::made_up(), mind);
    let mut reader = Reader::following(&fake);
    fake.stop();
    let mut rest = String::new();
    reader.0.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("0\r\n\r\n"), "the answer is complete: {rest:?}");
    drop(happening);
}

#[test]
fn the_client_reports_why_there_are_no_events() {
    let fake = Fake::closing();
    let lines = async |fake: &Fake| Client::new(fake.socket()).lines("/v1/events", |_| ControlFlow::Continue(())).await;
    match runtime().block_on(lines(&fake)) {
        Err(Error::Refused { status: 503, kind, .. }) => assert_eq!(kind, "shutting_down"),
        other => panic!("{other:?}"),
    }
    let answer = talk(UnixStream::connect(fake.socket()).unwrap(), "HEAD", "/v1/events");
    assert_eq!((answer.0, answer.2.as_str()), (503, ""));
    let _: Value = request(&fake, "GET", "/v1/events").json();
}
