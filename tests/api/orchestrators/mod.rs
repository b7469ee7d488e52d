//! Two orchestrators with different owners and a person with the command line change one switch at once. Their connections are
//! cut off at random, the switch is killed, stopped and reloaded, and each repeats a write until it is answered. Needs root;
//! makes its own namespace.
//!
//! Whenever they pause, the configuration is what the three and the file want, each write is in it, in the history and in the
//! events exactly once, and nobody has changed what is of others.
//!
//! `ORCHESTRATOR_OPERATIONS` makes more writes; `ORCHESTRATOR_SEED` repeats the random decisions, as far as timing allows.

mod client;
mod edits;
mod orchestrator;
mod person;
mod records;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::host::daemon::{Daemon, config, keeping};
use support::host::{Namespace, await_that};
use vifswitch::control::api::responses::{PortView, Status};
use vifswitch::control::state::events::Event;
use vifswitch::control::state::history::GenerationView;
use vifswitch::time;

use self::client::{Answer, Client, Cut, Outcome, Request};
use self::edits::{items, part};
use self::orchestrator::Orchestrator;
use self::person::Person;
use self::records::{Records, Write};
use crate::random::{Random, pause};

/// Writes by default.
const OPERATIONS: u64 = 400;

/// Writes between two pauses: of each orchestrator, and of the person.
const ROUND: (u64, u64) = (40, 20);

/// Time for one write with its repetitions.
const PATIENCE: Duration = Duration::from_secs(60);

/// Interval at which notifications are read, as a service manager reads them.
const NOTES: Duration = Duration::from_millis(10);

/// Last requests and commands that are shown when the test fails.
const SHOWN: usize = 80;

/// What happens in a round.
#[derive(Debug)]
enum Message {
    /// A write has ended.
    WriteEnded,
    /// The process with this id was killed.
    Killed(u32),
    /// One of the three has ended.
    Ended,
}

/// What the three share.
struct World {
    socket: PathBuf,
    /// Of all devices.
    namespace: Namespace,
    seed: u64,
    daemon: Mutex<Daemon>,
    records: Mutex<Records>,
    /// The last requests and commands.
    last: Mutex<VecDeque<String>>,
    messages: Sender<Message>,
    has_failed: AtomicBool,
}

impl World {
    fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// Remembers a request or command.
    fn note(&self, text: impl FnOnce() -> String) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.push_back(text());
        if last.len() > SHOWN {
            last.pop_front();
        }
    }

    fn record(&self, write: Write) {
        self.records.lock().unwrap().push(write);
    }

    fn count(&self) {
        self.messages.send(Message::WriteEnded).unwrap();
    }

    /// Kills the switch, unless it is being started.
    fn strike(&self) {
        let Ok(mut daemon) = self.daemon.try_lock() else { return };
        if daemon.is_running() {
            daemon.signal(Signal::KILL);
            self.note(|| "killed".into());
            self.messages.send(Message::Killed(daemon.pid())).unwrap();
        }
    }

    /// Reads a page, from the next switch if there is none.
    fn read(&self, client: &mut Client, path: &str) -> Answer {
        let since = time::now();
        loop {
            if let Outcome::Answered(answer) = client.send(&Request::get(path), "read", Cut::Never, || ()) {
                if answer.status == 200 {
                    return answer;
                }
                assert!([429, 503].contains(&answer.status), "{path}: {answer:?}");
            }
            assert!(!self.has_failed() && time::now().since(since) < PATIENCE, "{path}: no answer");
            pause(5000);
        }
    }

    /// Reads the last generations, before they are forgotten.
    fn read_history(&self, client: &mut Client) {
        let history: Vec<GenerationView> = serde_json::from_value(self.read(client, "/v1/history").body).unwrap();
        self.records.lock().unwrap().add(history);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("ORCHESTRATOR_SEED={}; the last requests and commands:", self.seed);
            last.iter().for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// Reports the end of a thread, also on a panic.
struct Ended<'w>(&'w World);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        drop(Failed(self.0));
        // The receiver may have failed.
        let _ = self.0.messages.send(Message::Ended);
    }
}

/// Ends the others when this thread panics.
struct Failed<'w>(&'w World);

impl Drop for Failed<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.has_failed.store(true, Ordering::Relaxed);
        }
    }
}

/// The switch with its file and what happens to it.
struct Run<'w> {
    world: &'w World,
    messages: Receiver<Message>,
    random: Random,
    client: Client,
    /// Networks of the file: ids and MTUs.
    file: Vec<(&'static str, u16)>,
    is_edited: bool,
    /// Numbers of kills, stops, and edits of the file.
    counts: [usize; 3],
}

impl Run<'_> {
    /// The three write at once. The switch is disturbed at most twice: at an answer, and after so many writes.
    fn round(&mut self, north: &mut Orchestrator<'_>, south: &mut Orchestrator<'_>, person: &mut Person<'_>) {
        let (writes, commands) = ROUND;
        let strike = self.random.once_in(2).then(|| self.random.below(writes));
        let (north_strikes, disturbed) = (self.random.once_in(2), self.random.below(2 * writes + commands));
        let is_disturbed = self.random.once_in(2);
        let world = self.world;
        thread::scope(|scope| {
            scope.spawn(|| {
                let _ended = Ended(world);
                north.run(writes, strike.filter(|_| north_strikes));
            });
            scope.spawn(|| {
                let _ended = Ended(world);
                south.run(writes, strike.filter(|_| !north_strikes));
            });
            scope.spawn(|| {
                let _ended = Ended(world);
                person.run(commands);
            });
            let _failed = Failed(world);
            let (mut ended, mut written) = (0, 0);
            while ended < 3 {
                match self.next_message() {
                    Message::Ended => ended += 1,
                    Message::Killed(pid) => self.restart(pid),
                    Message::WriteEnded => {
                        written += 1;
                        if is_disturbed && written == disturbed {
                            self.disturb();
                        }
                    }
                }
            }
        });
    }

    /// Waits for what happens next. Reads notifications meanwhile: a tap whose descriptor is still kept is in use, and a write
    /// may wait for its port.
    fn next_message(&self) -> Message {
        let since = time::now();
        loop {
            self.world.daemon.lock().unwrap().read_notes();
            match self.messages.recv_timeout(NOTES) {
                Ok(message) => return message,
                Err(why) => assert!(time::now().since(since) < 2 * PATIENCE, "none of the three ends: {why}"),
            }
        }
    }

    /// Starts the switch if the process with this id was killed.
    fn restart(&mut self, pid: u32) {
        let mut daemon = self.world.daemon.lock().unwrap();
        if daemon.pid() == pid {
            daemon.wait();
            daemon.start();
            self.counts[0] += 1;
        }
    }

    /// Kills or stops the switch, or lets it read another file.
    fn disturb(&mut self) {
        pause(self.random.below(10_000));
        let mut daemon = self.world.daemon.lock().unwrap();
        let kind = self.random.below(5);
        self.world.note(|| {
            ["killed", "killed", "stopped", "reloaded", "killed with another file"][usize::try_from(kind).unwrap()]
                .into()
        });
        if kind >= 3 {
            let mtus = [1400, 1500, 1450];
            self.file.retain(|(id, _)| *id != "file-0");
            self.file[1].1 = self.random.of(&mtus);
            if self.random.once_in(2) {
                self.file.push(("file-0", self.random.of(&mtus)));
            }
            daemon.configure(&file(&daemon, &self.file));
            self.is_edited = true;
            self.counts[2] += 1;
        }
        match kind {
            3 => daemon.signal(Signal::HUP),
            _ => {
                daemon.stop(if kind == 2 { Signal::TERM } else { Signal::KILL });
                daemon.start();
                self.counts[usize::from(kind == 2)] += 1;
            }
        }
    }

    /// Nobody writes: compares everything.
    fn compare(&mut self, north: &Orchestrator<'_>, south: &Orchestrator<'_>, person: &Person<'_>) {
        let daemon = self.world.daemon.lock().unwrap();
        let mut networks: Vec<Value> = Vec::new();
        for &(id, mtu) in &self.file {
            networks.push(if mtu == 1500 { json!({ "id": id }) } else { json!({ "id": id, "mtu": mtu }) });
        }
        if std::mem::take(&mut self.is_edited) {
            // It refuses to read the file while a change is to be confirmed.
            daemon.signal(Signal::HUP);
            await_that("the networks of the file", || {
                let config: Value = daemon.get("/v1/config");
                (part(&config, None)["networks"] == Value::from(networks.clone())).then_some(())
            });
        }
        self.world.read_history(&mut self.client);
        let config = self.world.read(&mut self.client, "/v1/config");
        let (owned, mut attached) = person.wanted();
        attached["networks"] = networks.into();
        for (owner, wanted) in [
            (Some("north"), north.wanted()),
            (Some("south"), south.wanted()),
            (Some("person"), owned),
            (None, attached),
        ] {
            assert_eq!(part(&config.body, owner), wanted, "the part of {owner:?}");
        }
        let parts = [Some("north"), Some("south"), Some("person"), None].map(|owner| part(&config.body, owner));
        for list in ["networks", "uplinks"] {
            let count: usize = parts.iter().map(|part| items(part, list).len()).sum();
            assert_eq!(count, items(&config.body, list).len(), "{list} of nobody: {:#}", config.body);
        }
        let status: Value = daemon.get("/v1/status");
        let generation = Value::from(config.generation.unwrap());
        assert_eq!(
            (&status["desired_generation"], &status["applied_generation"]),
            (&generation, &generation),
            "{status}"
        );
        assert_eq!(self.world.read(&mut self.client, "/v1/confirm").body["pending"], false);
        self.compare_taps(&daemon, &config.body);
        let mut records = self.world.records.lock().unwrap();
        let events = daemon.page(&format!("/v1/events?after={}", records.last_event()));
        let events: Vec<Event> =
            events.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect();
        records.compare(&events);
    }

    /// Each tap of the configuration is there, and no other; its port is ACTIVE unless it is set down.
    fn compare_taps(&self, daemon: &Daemon, config: &Value) {
        let ports = items(config, "vms").iter().flat_map(|vm| items(vm, "ports"));
        let taps = ports.filter(|port| port["device"]["kind"] == "tap");
        let mut names: Vec<String> =
            taps.clone().map(|port| port["device"]["name"].as_str().unwrap().to_owned()).collect();
        names.push("lo".into());
        names.sort();
        await_that("the taps of the configuration", || (self.world.namespace.links() == names).then_some(()));
        let expected = |port: &Value| (port["port_id"].as_str().unwrap().to_owned(), port["admin_state_up"].is_null());
        let mut expected: Vec<(String, bool)> = taps.map(expected).collect();
        expected.sort();
        await_that("ports with taps ACTIVE", || {
            let ports: Vec<PortView> = daemon.ports();
            let taps = ports.into_iter().filter(|port| port.device.kind == "tap");
            let mut found: Vec<(String, bool)> =
                taps.map(|port| (port.port_id, port.status == Status::Active)).collect();
            found.sort();
            (found == expected).then_some(())
        });
    }
}

/// The text of the configuration file.
fn file(daemon: &Daemon, networks: &[(&str, u16)]) -> String {
    keeping(&config(&daemon.socket(), "", networks, &[]), &daemon.state())
}

#[test]
fn orchestrators_with_different_owners_and_a_person_always_converge() {
    let Some(namespace) = Namespace::new() else { return };
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let operations = number("ORCHESTRATOR_OPERATIONS").unwrap_or(OPERATIONS);
    let seed = number("ORCHESTRATOR_SEED").unwrap_or_else(|| time::now().nanos() | 1);
    let networks = vec![("base-0", 1500), ("base-1", 1500)];
    let mut daemon = Daemon::new();
    daemon.configure(&file(&daemon, &networks));
    // Half of the runs as under systemd: connections wait while no switch runs.
    let is_kept = seed.count_ones() % 2 == 0;
    if is_kept {
        daemon.keep_descriptors();
    }
    println!("seed {seed}, with a socket that {}", if is_kept { "is kept" } else { "ends with the switch" });
    daemon.start();
    let mut records = Records::default();
    let last_event = daemon.events().iter().map(|event| event.id).max();
    // Ids of a new state begin by the clock.
    let last_event = last_event.unwrap_or_default();
    records.begin(daemon.get("/v1/history"), last_event);
    let (sender, messages) = channel();
    let world = World {
        socket: daemon.socket(),
        namespace,
        seed,
        daemon: daemon.into(),
        records: records.into(),
        last: Mutex::default(),
        messages: sender,
        has_failed: AtomicBool::new(false),
    };
    let client = Client::new(world.socket.clone());
    let random = Random(seed.wrapping_mul(7) | 1);
    let mut run = Run { world: &world, messages, random, client, file: networks, is_edited: false, counts: [0; 3] };
    let mut north = Orchestrator::new(&world, "north", "south", seed.wrapping_mul(11));
    let mut south = Orchestrator::new(&world, "south", "north", seed.wrapping_mul(13));
    let mut person = Person::new(&world, seed.wrapping_mul(17));
    let begun = time::now();
    let rounds = operations.div_ceil(2 * ROUND.0 + ROUND.1);
    for _ in 0..rounds {
        run.round(&mut north, &mut south, &mut person);
        run.compare(&north, &south, &person);
    }
    let [kills, stops, edits] = run.counts;
    let (generations, events, gaps) = world.records.lock().unwrap().compared;
    println!(
        "{} writes, {generations} generations, {events} events about them; {kills} kills with {gaps} gaps, {stops} stops, \
         {edits} edits of the file; {:.1} s",
        rounds * (2 * ROUND.0 + ROUND.1),
        time::now().since(begun).as_secs_f64()
    );
    assert!(generations > 0 && events > 0);
}
