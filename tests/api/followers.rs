//! Followers of events that are cut off at random and resume see each id once, over restarts and kills of the switch. Needs
//! root; makes its own namespace.
//!
//! `FOLLOWER_ROUNDS` restarts it more often; `FOLLOWER_SEED` repeats the random decisions, as far as timing allows.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hyper::Method;
use rustix::process::Signal;
use serde_json::json;
use support::fake::runtime;
use support::host::Namespace;
use support::host::daemon::{Daemon, Vif, config, keeping};
use vifswitch::control::api::client::Client;
use vifswitch::control::state::events::{Event, EventKind};

use crate::random::{Random, pause};

/// Restarts of the switch; every second one after a kill.
const ROUNDS: u64 = 6;

/// A follower, by JSON lines or by an event stream.
struct Follower {
    socket: PathBuf,
    is_stream: bool,
    random: Random,
    position: u64,
    /// What it has received, in order.
    events: Vec<Event>,
    connections: u64,
}

impl Follower {
    /// Follows until it has the event `last`, which is not known at first.
    fn run(&mut self, last: &AtomicU64) {
        while self.position < last.load(Ordering::Relaxed) {
            if UnixStream::connect(&self.socket).is_ok_and(|stream| self.read(stream, last).is_some()) {
                self.connections += 1;
            } else {
                pause(5000);
            }
        }
    }

    /// Reads from one connection until it ends, or for a random time. `None` if there was no answer.
    fn read(&mut self, mut stream: UnixStream, last: &AtomicU64) -> Option<()> {
        let (accept, after) = match self.is_stream {
            true => ("text/event-stream", format!("Last-Event-ID: {}\r\n", self.position)),
            false => ("*/*", String::new()),
        };
        let query = format!("follow=true&after={}", if self.is_stream { 0 } else { self.position });
        write!(stream, "GET /v1/events?{query} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n{after}\r\n").ok()?;
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        // It is cut off after so many bytes, or pauses.
        let (mut bytes, mut pauses) = (self.random.below(20_000), self.random.below(20));
        let (mut received, mut data, mut has_come) = (Vec::new(), None, None);
        while self.position < last.load(Ordering::Relaxed) {
            let mut buffer = [0; 512];
            match stream.read(&mut buffer) {
                Ok(0) => return has_come,
                Ok(length) => {
                    has_come = Some(());
                    let length = length.min(usize::try_from(bytes).unwrap());
                    bytes -= length as u64;
                    received.extend_from_slice(&buffer[..length]);
                    while let Some(end) = received.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> = received.drain(..=end).collect();
                        self.take(&line[..end], &mut data);
                    }
                    if bytes == 0 {
                        return has_come;
                    }
                }
                Err(_) if pauses > 0 => pauses -= 1,
                Err(_) => return has_come,
            }
        }
        has_come
    }

    /// Takes a line; the sizes of chunks between are none of events.
    fn take(&mut self, line: &[u8], data: &mut Option<Event>) {
        let complete = if !self.is_stream {
            line.starts_with(b"{").then(|| serde_json::from_slice(line).unwrap())
        } else if let Some(text) = line.strip_prefix(b"data: ") {
            *data = Some(serde_json::from_slice(text).unwrap());
            None
        } else {
            // An empty line ends a message; that of a chunk ends with a carriage return.
            if line.is_empty() { data.take() } else { None }
        };
        let Some(event) = complete else { return };
        self.position = event.gap.map_or(event.id, |gap| gap.next_id - 1);
        self.events.push(event);
    }

    /// Checks that each id was received once, in order, or reported as missing. Returns the number of such reports.
    fn check(&self, began: u64) -> usize {
        let (mut position, mut gaps) = (began, 0);
        for event in &self.events {
            if let Some(gap) = event.gap {
                assert_eq!((event.kind, gap.first_missing), (EventKind::Gap, position + 1), "{event:?}");
                assert!(gap.next_id > gap.first_missing, "{event:?}");
                (position, gaps) = (gap.next_id - 1, gaps + 1);
            } else {
                assert_eq!(event.id, position + 1, "{event:?} does not follow");
                position = event.id;
            }
        }
        gaps
    }
}

/// Makes changes as fast as it can, until told to stop; no matter whether the switch is there.
fn change(socket: &Path, stop: &AtomicBool) {
    let (client, runtime) = (Client::new(socket), runtime());
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let (path, body) = match number % 3 {
            0 => ("/v1/ports/port-1", json!({ "admin_state_up": number % 2 == 0 })),
            _ => ("/v1/networks/other", json!({ "mtu": 1400 + number % 100 })),
        };
        let method = if path.starts_with("/v1/ports") { Method::PATCH } else { Method::PUT };
        if runtime.block_on(client.request(method, path, Some(&body))).is_err() {
            pause(2000);
        }
    }
}

#[test]
fn each_event_is_received_once_over_restarts_and_kills() {
    let Some(namespace) = Namespace::new() else { return };
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let rounds = number("FOLLOWER_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("FOLLOWER_SEED").unwrap_or_else(|| vifswitch::time::now().nanos() | 1);
    println!("seed {seed}");
    let mut random = Random(seed);
    let vif = Vif::new("vm", 1, &namespace);
    let mut daemon = Daemon::new();
    let text = config(&daemon.socket(), "", &[("net1", 1500), ("other", 1500)], std::slice::from_ref(&vif));
    daemon.configure(&keeping(&text, &daemon.state()));
    daemon.start();
    let began = daemon.events().iter().map(|event| event.id).max().unwrap_or_default();
    assert!(began > 0, "the port is up");
    let (last, stop, socket) = (AtomicU64::new(u64::MAX), AtomicBool::new(false), daemon.socket());
    let mut followers: Vec<Follower> = (0..4)
        .map(|index| Follower {
            socket: socket.clone(),
            is_stream: index % 2 == 0,
            random: Random(seed.wrapping_mul(index + 3) | 1),
            position: began,
            events: Vec::new(),
            connections: 0,
        })
        .collect();
    let kills = rounds / 2;
    thread::scope(|scope| {
        followers.iter_mut().for_each(|follower| drop(scope.spawn(|| follower.run(&last))));
        scope.spawn(|| change(&socket, &stop));
        for round in 0..rounds {
            pause(random.below(200_000));
            daemon.stop(if round % 2 == 0 { Signal::KILL } else { Signal::TERM });
            daemon.start();
        }
        pause(random.below(200_000));
        stop.store(true, Ordering::Relaxed);
        // One change behind all others.
        daemon.done(&["set", "port-1", "promiscuous=false"], "");
        last.store(daemon.events().iter().map(|event| event.id).max().unwrap(), Ordering::Relaxed);
    });
    let last = last.load(Ordering::Relaxed);
    let stored: Vec<Event> = daemon.events().into_iter().filter(|event| event.id > began && event.id <= last).collect();
    let mut connections = 0;
    for follower in &followers {
        let gaps = follower.check(began);
        assert!(gaps as u64 <= kills, "{gaps} gaps, only a kill loses ids");
        let received: HashSet<(u64, &str)> = follower.events.iter().map(|of| (of.id, of.start.as_str())).collect();
        let lost: Vec<_> = stored.iter().filter(|of| !received.contains(&(of.id, of.start.as_str()))).collect();
        assert!(lost.is_empty(), "stored, and not received: {lost:?}");
        connections += follower.connections;
    }
    let events = followers[0].events.len();
    println!(
        "{rounds} restarts, {kills} of them after a kill; {} events stored, {events} received; {connections} connections",
        stored.len()
    );
}
