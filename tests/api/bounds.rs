//! Clients that hang, flood or send invalid requests affect no other client. Runs the API server over a fake
//! controller; needs nothing of the host.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use serde_json::json;
use tokio::sync::mpsc;
use vifswitch::control::api::client::Client;

use crate::{answer_on, ask_with, converse, request};
use support::fake::{Fake, FakeBehaviour, Views, runtime};
use support::host::await_that;

fn connect(fake: &Fake) -> UnixStream {
    UnixStream::connect(fake.socket()).unwrap()
}

#[test]
fn a_body_that_does_not_arrive_times_out() {
    let fake = Fake::with_views(Views::made_up());
    let mut slow: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = connect(&fake);
            let head = "PUT /v1/config HTTP/1.1\r\nHost: vifswitch\r\nContent-Type: application/json\r\n";
            write!(stream, "{head}Content-Length: 1000\r\n\r\n{{").unwrap();
            stream
        })
        .collect();
    // Other clients are served in between.
    assert_eq!(request(&fake, "GET", "/v1/ports").0, 200);
    assert_eq!(ask_with(&fake, "PUT", "/v1/config", "{}").0, 200);
    assert_eq!(request(&fake, "DELETE", "/v1/ports/p1").0, 200);
    let answer = answer_on(slow.remove(0));
    assert_eq!((answer.0, answer.kind().as_str()), (408, "slow_body"));
}

#[test]
fn a_truncated_body_changes_nothing() {
    let (mind, mut requests) = FakeBehaviour::willing();
    let fake = Fake::with_behaviour(Views::made_up(), mind);
    let mut stream = connect(&fake);
    let head = "PATCH /v1/ports/p1 HTTP/1.1\r\nHost: vifswitch\r\nContent-Type: application/json\r\n";
    write!(stream, "{head}Content-Length: 3\r\n\r\n{{}}").unwrap();
    drop(stream);
    assert_eq!(ask_with(&fake, "PATCH", "/v1/ports/p2", "{}").0, 200);
    drop(fake);
    assert!(requests.try_recv().is_ok_and(|requests| format!("{requests:?}").contains("p2")));
    assert!(requests.try_recv().is_err());
}

#[test]
fn a_body_that_is_too_large_is_413() {
    let fake = Fake::with_views(Views::made_up());
    let mib = 1024 * 1024;
    for (method, path, limit) in [
        ("PUT", "/v1/config", 16 * mib),
        ("POST", "/v1/config/diff", 16 * mib),
        ("POST", "/v1/vms/fw-3/ports", mib),
        ("PATCH", "/v1/ports/p1", mib),
        ("POST", "/v1/fdb/flush", mib),
    ] {
        let body = format!("{{}}{}", " ".repeat(limit - 1));
        let answer = ask_with(&fake, method, path, &body);
        assert_eq!((answer.0, answer.kind().as_str()), (413, "too_large"), "{method} {path}");
        assert!(answer.2.contains(&limit.to_string()), "{answer:?}");

        // A body without a length is limited too.
        let mut stream = connect(&fake);
        let head = format!("{method} {path} HTTP/1.1\r\nHost: vifswitch\r\nContent-Type: application/json\r\n");
        write!(stream, "{head}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
        let _ = write!(stream, "{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        assert_eq!(answer_on(stream).0, 413, "{method} {path}");
    }
    let body = format!("{{}}{}", " ".repeat(16 * mib - 2));
    assert_eq!(ask_with(&fake, "PUT", "/v1/config", &body).0, 200, "the maximum length");
}

#[test]
fn a_body_of_another_content_type_is_415() {
    let fake = Fake::with_views(Views::made_up());
    for (head, status) in [
        ("", 415),
        ("Content-Type: application/x-www-form-urlencoded\r\n", 415),
        ("Content-Type: text/plain\r\n", 415),
        ("Content-Type: application/toml\r\n", 415),
        ("Content-Type: application/json\r\n", 200),
        ("Content-Type: Application/JSON; charset=utf-8\r\n", 200),
        ("Content-Type: application/merge-patch+json\r\n", 200),
    ] {
        for (method, path) in [("PATCH", "/v1/ports/p1"), ("PUT", "/v1/config"), ("POST", "/v1/fdb/flush")] {
            let answer = converse(connect(&fake), method, path, head, "{}");
            assert_eq!(answer.0, status, "{method} {path} {head}");
        }
    }
}

#[test]
fn a_flood_is_limited_and_others_are_served() {
    let fake = Fake::with_views(Views::made_up());
    // All at once, on more connections than may wait, until the burst is used up.
    let request = "GET /v1/networks HTTP/1.1\r\nHost: vifswitch\r\n\r\n".repeat(30);
    let last = "GET /v1/networks HTTP/1.1\r\nHost: vifswitch\r\nConnection: close\r\n\r\n";
    let (mut events, mut rounds) = (String::new(), 0);
    await_that("a refusal", || {
        let flood: Vec<_> = (0..40)
            .map(|_| {
                let mut stream = connect(&fake);
                stream.write_all(request.as_bytes()).unwrap();
                stream.write_all(last.as_bytes()).unwrap();
                stream
            })
            .collect();
        // The project's own client retries as told.
        runtime().block_on(Client::new(fake.socket()).get_json("/v1/ports")).unwrap();
        for mut stream in flood {
            stream.read_to_string(&mut events).unwrap();
        }
        rounds += 1;
        events.contains("HTTP/1.1 429").then_some(())
    });
    assert_eq!(events.matches("HTTP/1.1 ").count(), rounds * 40 * 31, "each request is answered");
    assert!(events.matches("HTTP/1.1 200").count() >= 1000, "the burst is served");
    assert!(events.contains("too_many_requests"));
    assert_eq!(events.matches("HTTP/1.1 429").count(), events.matches("retry-after: 1").count());
}

#[test]
fn sequential_requests_are_never_refused() {
    let fake = Fake::with_views(Views::made_up());
    let body = json!({ "admin_state_up": true }).to_string();
    // More than the burst.
    for _ in 0..1500 {
        assert_eq!(ask_with(&fake, "PATCH", "/v1/ports/p1", &body).0, 200);
    }
}

#[test]
fn waiting_changes_are_bounded() {
    let (requests, mut received) = mpsc::unbounded_channel();
    let fake = Fake::hanging(requests);
    let waiting: Vec<_> = (0..48)
        .map(|_| {
            let mut stream = connect(&fake);
            stream.write_all(b"DELETE /v1/ports/p1 HTTP/1.1\r\nHost: vifswitch\r\n\r\n").unwrap();
            received.blocking_recv().unwrap();
            stream
        })
        .collect();
    let answer = request(&fake, "DELETE", "/v1/ports/p1");
    assert_eq!((answer.0, answer.kind().as_str()), (429, "too_many_requests"));
    drop(waiting);
}

#[test]
fn invalid_requests_are_refused() {
    let fake = Fake::with_views(Views::made_up());
    for rubbish in
        [&b"\x00\xff\x16\x03\x01"[..], b"GET\r\n\r\n", b"PUT /v1/config HTTP/1.1\r\nContent-Length: -1\r\n\r\n"]
    {
        let mut stream = connect(&fake);
        stream.write_all(rubbish).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut events = Vec::new();
        stream.read_to_end(&mut events).unwrap();
        assert!(events.is_empty() || events.starts_with(b"HTTP/1.1 400"), "{events:?}");
    }
    let mut stream = connect(&fake);
    let head = "PUT /v1/config HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n";
    write!(stream, "{head}Content-Length: 4\r\n\r\n").unwrap();
    stream.write_all(b"\"\xff\xfe\"").unwrap();
    let answer = answer_on(stream);
    assert_eq!((answer.0, answer.kind().as_str()), (400, "syntax"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bodies_are_answered(body in prop_oneof![".{0,200}", "[\\[\\]{}\":,a-z0-9 ]{0,200}"], which in 0..5usize) {
        thread_local!(static FAKE: Fake = Fake::with_views(Views::made_up()));
        let (method, path) = [
            ("PUT", "/v1/config"),
            ("POST", "/v1/config/diff"),
            ("POST", "/v1/vms/fw-3/ports"),
            ("PATCH", "/v1/ports/p1"),
            ("POST", "/v1/fdb/flush"),
        ][which];
        let answer = FAKE.with(|fake| ask_with(fake, method, path, &body));
        prop_assert!(matches!(answer.0, 200 | 201 | 400), "{:?}", answer);
        if answer.0 == 400 {
            answer.kind();
        }
    }
}
