//! Events over the API: stored events, followed events, and slow subscribers. Runs the API server over a fake
//! controller; needs nothing of the host.

use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;

use serde_json::Value;
use vifswitch::control::api::client::{Client, Error};
use vifswitch::control::state::events::{Event, EventKind};

use crate::{request, talk};
use support::fake::{Fake, FakeBehaviour, Received, Views, event, runtime};

/// A client that reads line by line.
struct Reader(BufReader<UnixStream>);

impl Reader {
    /// A subscriber that has read the head of the response.
    fn following(fake: &Fake) -> Reader {
        let mut stream = UnixStream::connect(fake.socket()).unwrap();
        stream.write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nHost: vifswitch\r\n\r\n").unwrap();
        let mut reader = Reader(BufReader::new(stream));
        assert!(reader.line().unwrap().starts_with("HTTP/1.1 200"));
        while reader.line().unwrap() != "\r\n" {}
        reader
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
        ("/v1/events?since=2025-11-03T10:00:00%2B01:00", Some("2025-11-03T10:00:00+01:00")),
    ] {
        let mut reported = Vec::new();
        let client = Client::new(fake.socket());
        let lines = client.lines(path, |line| {
            reported.push(serde_json::from_slice::<Event>(line).unwrap());
            ControlFlow::Continue(())
        });
        runtime().block_on(lines).unwrap();
        assert_eq!(reported, views.events);
        assert_eq!(requests.try_recv().unwrap(), Received::Events(since.map(str::to_owned)));
    }
    let answer = request(&fake, "GET", "/v1/events");
    assert!(answer.1.contains("content-type: application/x-ndjson"), "{}", answer.1);
}

#[test]
fn a_subscriber_receives_new_events() {
    let (mind, _asked) = FakeBehaviour::willing();
    let happening = mind.happening.clone();
    let views = Views::made_up();
    let fake = Fake::with_behaviour(views.clone(), mind);
    let mut reader = Reader::following(&fake);
    for past in &views.events {
        assert_eq!(reader.event().as_ref(), Some(past));
    }
    for n in 0..100 {
        let now = event("2025-11-03T09:00:02.000Z", &n.to_string());
        happening.send(now.clone()).unwrap();
        assert_eq!(reader.event(), Some(now));
    }
}

#[test]
fn a_disconnected_subscriber_is_removed() {
    let (mind, _asked) = FakeBehaviour::willing();
    let happening = mind.happening.clone();
    let fake = Fake::with_behaviour(Views::made_up(), mind);
    let readers: Vec<_> = (0..20).map(|_| Reader::following(&fake)).collect();
    assert_eq!(happening.receiver_count(), 20);
    drop(readers);
    // No event is emitted that would show the disconnection; the switch detects it nevertheless.
    runtime().block_on(happening.closed());
    let again: Vec<_> = (0..24).map(|_| Reader::following(&fake)).collect();
    drop(again);
}

#[test]
fn a_slow_subscriber_is_told_what_it_missed() {
    let (mind, _asked) = FakeBehaviour::willing();
    let happening = mind.happening.clone();
    let fake = Fake::with_behaviour(Views { events: vec![], ..Views::made_up() }, mind);
    let mut reader = Reader::following(&fake);
    // More than pipe and channel hold, while nobody reads.
    let long = "x".repeat(64 * 1024);
    for n in 0..1000 {
        happening.send(event(&n.to_string(), &long)).unwrap();
    }
    let (mut expected, mut lagged) = (0u64, 0);
    loop {
        let event = reader.event().unwrap();
        if event.kind == EventKind::Lagged {
            let rx_missed: u64 = event.text.split_whitespace().next().unwrap().parse().unwrap();
            assert!(rx_missed > 0);
            (expected, lagged) = (expected + rx_missed, lagged + 1);
        } else {
            assert_eq!(event.time, expected.to_string(), "every missing event is reported as missed");
            expected += 1;
        }
        if expected == 1000 {
            break;
        }
    }
    assert!(lagged > 0, "the subscriber has been too slow");
    let last = event("x", "still there");
    happening.send(last.clone()).unwrap();
    assert_eq!(reader.event(), Some(last));
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
