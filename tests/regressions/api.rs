//! API requests that disconnect, arrive in parts, or can never succeed. Needs root for the tests with netdevs or
//! strace.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use support::host::daemon::{Daemon, TIMEOUT, config, keeping};
use support::host::{Namespace, await_that};

/// Waits until the stream is readable, up to the timeout.
fn is_answered(stream: &UnixStream, timeout: Timespec) -> bool {
    poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&timeout)).unwrap() > 0
}

fn head(method: &str, path: &str, length: usize) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: vifswitch\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    )
}

/// Python's http.client sends the head first and then the body.
#[test]
fn a_client_that_sends_its_body_late_receives_the_refusal() {
    let daemon = Daemon::over(&[]);
    let long = vec![b' '; 17 * 1024 * 1024];
    for (method, path, body, status) in [
        ("POST", "/v1/nothing", &long[..4_000_000], 404),
        ("POST", "/v1/ports", &long[..4_000_000], 405),
        ("PUT", "/v1/config?confirm=never", &long[..4_000_000], 400),
        ("PUT", "/v1/config", &long[..], 413),
        ("GET", "/v1/ports", &long[..4_000_000], 200),
    ] {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(head(method, path, body.len()).as_bytes()).unwrap();
        // A switch that answers the head alone has done so by now.
        is_answered(&stream, Timespec { tv_sec: 0, tv_nsec: 100_000_000 });
        stream.write_all(body).unwrap_or_else(|e| panic!("{method} {path}: {e}"));
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {answer}");
    }
    // A client that never sends its body delays no other, and is answered.
    let mut silent = UnixStream::connect(daemon.socket()).unwrap();
    silent.set_read_timeout(Some(TIMEOUT)).unwrap();
    silent.write_all(head("POST", "/v1/nothing", 100).as_bytes()).unwrap();
    assert!(daemon.ports().is_empty());
    let mut answer = String::new();
    silent.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    // On a persistent connection the next request is answered too.
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let request = head("POST", "/v1/nothing", 3).replace("close", "keep-alive") + "abc";
    for _ in 0..2 {
        stream.write_all(request.as_bytes()).unwrap();
        let mut some = [0; 4096];
        let len = stream.read(&mut some).unwrap();
        assert!(some[..len].starts_with(b"HTTP/1.1 404 "), "{}", String::from_utf8_lossy(&some[..len]));
    }
}

#[test]
fn changes_of_disconnected_clients_are_not_made() {
    if Namespace::planned().is_none() {
        return;
    }
    if !Command::new("strace").arg("-V").output().is_ok_and(|ended| ended.status.success()) {
        return eprintln!("skipped: needs strace");
    }
    let mut daemon = Daemon::new();
    daemon.configure(&keeping(&config(&daemon.socket(), "", &[], &[]), &daemon.state()));
    daemon.start();
    // A slow disk: storing each change takes a second.
    let pid = daemon.pid().to_string();
    let delay = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync"];
    let inject = ["-e", "inject=fdatasync,fsync:delay_enter=1000000", "-p", &pid];
    let mut tracer = Command::new("strace").args(delay).args(inject).spawn().unwrap();
    await_that("strace to attach", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        (!status.contains("TracerPid:\t0")).then_some(())
    });
    for number in 0..24 {
        let body = json!({ "networks": [{ "id": format!("left-{number}") }] }).to_string();
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.write_all((head("PUT", "/v1/config", body.len()) + &body).as_bytes()).unwrap();
        // It has been read, and waits for those before.
        is_answered(&stream, Timespec { tv_sec: 0, tv_nsec: 30_000_000 });
    }
    let wanted = config(&daemon.socket(), "", &[("stays", 1500)], &[]);
    daemon.configure(&keeping(&wanted, &daemon.state()));
    let applied = daemon.try_command(&["apply", "FILE", "--socket", daemon.socket().to_str().unwrap()]);
    rustix::process::kill_process(rustix::process::Pid::from_child(&tracer), rustix::process::Signal::INT).unwrap();
    tracer.wait().unwrap();
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    let made = daemon.events().iter().filter(|event| event.text.contains("left-")).count();
    // The first one was being stored when its client left; the last one shows in the result of its replacement.
    assert!(made <= 3, "{made} of 24 were made");
}

/// A change of nearly 1 MB is one event of bounded length.
#[test]
fn events_are_bounded_in_bytes() {
    let Some(namespace) = Namespace::new() else { return };
    let vif = support::host::daemon::Vif::new("vm", 1, &namespace);
    let daemon = Daemon::over(std::slice::from_ref(&vif));
    for round in 0..4u32 {
        let mut pairs = String::new();
        for number in 0..12_000u32 {
            let [_, a, b, c] = (round * 12_000 + number).to_be_bytes();
            let comma = if number == 0 { "" } else { "," };
            write!(
                pairs,
                "{comma}{{\"mac_address\":\"02:00:01:{a:02x}:{b:02x}:{c:02x}\",\"ip_address\":\"10.{a}.{b}.{c}\"}}"
            )
            .unwrap();
        }
        let body = format!("{{\"allowed_address_pairs\":[{pairs}]}}");
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all((head("PATCH", "/v1/ports/port-1", body.len()) + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 "), "{answer:.200}");
    }
    let events = daemon.page("/v1/events");
    assert!(events.lines().all(|line| line.len() < 16_384), "{} bytes", events.len());
    assert!(daemon.log().len() < 200_000, "{} bytes of log", daemon.log().len());
}

/// Events have numbers without gaps, by which clients resume whatever the clock does.
#[test]
fn events_are_resumed_by_their_number() {
    let Some(namespace) = Namespace::new() else { return };
    let vif = support::host::daemon::Vif::new("vm", 1, &namespace);
    let mut daemon = Daemon::new();
    let text = config(&daemon.socket(), "", &[("net1", 1500)], std::slice::from_ref(&vif));
    daemon.configure(&keeping(&text, &daemon.state()));
    daemon.start();
    daemon.await_active(&vif);
    let read = |daemon: &Daemon, query: &str| -> Vec<Value> {
        let page = daemon.page(&format!("/v1/events{query}"));
        // Skips the chunk sizes between the lines.
        page.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let ids = |events: &[Value]| events.iter().map(|event| event["id"].as_u64().unwrap()).collect::<Vec<_>>();
    for security in ["off", "mac", "off"] {
        daemon.done(&["set", "port-1", &format!("port_security={security}")], "");
    }
    let all = ids(&read(&daemon, ""));
    assert!(all.len() >= 4 && all.windows(2).all(|pair| pair[1] == pair[0] + 1), "{all:?}");
    let last = *all.last().unwrap();
    assert_eq!(ids(&read(&daemon, &format!("?after={}", last - 2))), [last - 1, last]);
    assert_eq!(ids(&read(&daemon, &format!("?after={last}"))), [] as [u64; 0]);
    // They continue the numbers of the start before.
    let start = read(&daemon, "")[0]["start"].clone();
    assert_eq!(daemon.stop(rustix::process::Signal::TERM).code(), Some(0));
    daemon.start();
    let next = await_that("more events", || {
        Some(read(&daemon, &format!("?after={last}"))).filter(|events| !events.is_empty())
    });
    assert!(next.iter().any(|event| event["start"] != start));
    let all = ids(&read(&daemon, ""));
    assert!(all.windows(2).all(|pair| pair[1] == pair[0] + 1), "{all:?}");
}

/// The socket of a supervisor holds few messages. One that hangs does not read them.
#[test]
fn a_supervisor_that_does_not_read_blocks_nothing() {
    let Some(namespace) = Namespace::new() else { return };
    let vif = support::host::daemon::Vif::new("vm", 1, &namespace);
    let mut daemon = Daemon::new();
    daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], std::slice::from_ref(&vif)));
    let (mut command, file) = (daemon.command(), daemon.file());
    // A notification every 20 ms. From READY on nobody reads.
    command.env("WATCHDOG_USEC", "60000");
    daemon.start_as(command, "--config", &file);
    let start = vifswitch::time::now();
    let mut changes = 0;
    while changes < 40 || vifswitch::time::now().since(start) < std::time::Duration::from_secs(3) {
        daemon.done(&["set", "port-1", ["port_security=off", "port_security=mac"][changes % 2]], "");
        changes += 1;
    }
    assert_eq!(daemon.stop(rustix::process::Signal::TERM).code(), Some(0));
}

/// Peak resident set size of a process, in bytes.
fn peak(daemon: &Daemon) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

/// Clients that send much, slowly, or do not read use bounded memory, and a flood is told to retry.
#[test]
fn hostile_clients_are_refused_and_memory_is_bounded() {
    const MIB: usize = 1 << 20;
    // Bodies, and the buffers of all connections of a listener.
    const BOUND: usize = 64 * MIB + 64 * MIB / 2 + 16 * MIB;
    let daemon = Daemon::over(&[]);
    assert!(daemon.ports().is_empty());
    let before = peak(&daemon);
    let connect = || {
        let stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        stream
    };

    // More requests at once than may wait, until the burst is used up.
    const ROUND: usize = 40 * 31;
    let request = "GET /v1/networks HTTP/1.1\r\nhost: vifswitch\r\n\r\n".repeat(30);
    let last = request[..request.len() / 30 - 2].to_owned() + "connection: close\r\n\r\n";
    let (mut reported, mut rounds) = (String::new(), 0);
    let answers = |reported: &str, status: u16| reported.matches(&format!("HTTP/1.1 {status} ")).count();
    await_that("a refusal", || {
        let flood: Vec<_> = (0..40)
            .map(|_| {
                let mut stream = connect();
                stream.write_all((request.clone() + &last).as_bytes()).unwrap();
                stream
            })
            .collect();
        for mut stream in flood {
            stream.read_to_string(&mut reported).unwrap();
        }
        rounds += 1;
        (answers(&reported, 429) > 0).then_some(())
    });
    let [served, refused] = [200, 429].map(|status| answers(&reported, status));
    assert_eq!(served + refused, rounds * ROUND);
    assert!(served >= 1000, "the burst is served: {served} and {refused}");
    assert_eq!(reported.matches("retry-after: 1").count(), refused);

    for _ in 0..2 {
        // Bodies without their last byte, heads without an end, and responses that are not read.
        let long = vec![b' '; 15 * MIB];
        let slow: Vec<_> = (0..12)
            .map(|_| {
                let mut stream = connect();
                // A refused connection may be closed.
                let _ = stream.write_all(head("PUT", "/v1/config", 16 * MIB).as_bytes());
                let _ = stream.write_all(&long);
                stream
            })
            .collect();
        let heads: Vec<_> = (0..30)
            .map(|_| {
                let mut stream = connect();
                let _ = write!(stream, "GET /v1/ports HTTP/1.1\r\nx: {}", "x".repeat(60_000));
                stream
            })
            .collect();
        let unread: Vec<_> = (0..10)
            .map(|_| {
                let mut stream = connect();
                let _ = stream.write_all(b"GET /v1/events?follow=true HTTP/1.1\r\nhost: vifswitch\r\n\r\n");
                stream
            })
            .collect();
        assert!(daemon.ports().is_empty(), "others are answered");
        let status = |mut stream: UnixStream| {
            let mut start = [0; 12];
            stream
                .read_exact(&mut start)
                .map_or_else(|_| String::new(), |()| String::from_utf8_lossy(&start[9..]).into())
        };
        let answers: Vec<String> = slow.into_iter().map(status).collect();
        let refused = answers.iter().filter(|status| *status == "429").count();
        assert!(refused >= 7, "all but four long bodies are refused: {answers:?}");
        drop((heads, unread));
    }
    let grown = peak(&daemon) - before;
    assert!(grown < BOUND, "{} MiB", grown / MIB);
}
