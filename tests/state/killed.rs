//! Restart: whenever the switch is killed, it restarts with a state that it has confirmed. Random changes over its
//! API, killed at random moments, two hundred times. Needs root; makes its own namespaces.
//!
//! Required after a restart: the state of the last answered change, or of the change in flight; an unconfirmed change
//! is reverted. The netdevs of its ports exist, all others of the switch are removed. An edited file is merged.
//!
//! `LAW_SIX_SEED` repeats a run, as far as timing allows.

use std::path::Path;
use std::thread;

use hyper::Method;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config as Runs, RngAlgorithm, TestRng, TestRunner};
use rustix::event::Timespec;
use rustix::process::Signal;
use rustix::thread::nanosleep;
use serde_json::{Value, json};
use support::host::daemon::{Daemon, Vif, config, keeping};
use support::host::{Namespace, await_that};
use vifswitch::control::api::client::{Client, Error};
use vifswitch::control::api::responses::Status;
use vifswitch::control::config::{Config, Device, parse_json, parse_toml, raw};
use vifswitch::control::desired::change::Change;
use vifswitch::control::desired::merge::merge;

/// Number of kills per test.
const MOMENTS: usize = 100;

/// Maximum number of ports.
const PORTS: u8 = 6;

/// A random request; its effect depends on the current state.
#[derive(Debug, Clone)]
enum Step {
    /// Ports, attached or not.
    Attach(u8, Vec<u8>),
    Detach(Index),
    AdminState(Index),
    /// Sets a netdev name, which another port may have or have had.
    Name(Index, u8),
    /// Toggles a tap between single queue and multi-queue.
    Queues(Index),
    /// Applies exactly these ports, with or without confirmation.
    Apply(Vec<u8>, bool),
    Confirm,
}

fn step() -> impl Strategy<Value = Step> {
    let ports = |most| vec(0..PORTS, 0..=most);
    let vm = 0..3u8;
    prop_oneof![
        4 => (vm, ports(3)).prop_map(|(vm, ports)| Step::Attach(vm, ports)),
        3 => any::<Index>().prop_map(Step::Detach),
        1 => any::<Index>().prop_map(Step::AdminState),
        2 => (any::<Index>(), 0..PORTS).prop_map(|(port, name)| Step::Name(port, name)),
        1 => any::<Index>().prop_map(Step::Queues),
        2 => (ports(4), any::<bool>()).prop_map(|(ports, confirm)| Step::Apply(ports, confirm)),
        4 => Just(Step::Confirm),
    ]
}

/// One run of the switch.
#[derive(Debug, Clone)]
struct Life {
    /// The file is replaced by one with these ports.
    edited: Option<Vec<u8>>,
    /// Killed this many µs after start, possibly before it is ready.
    stillborn: Option<u32>,
    steps: Vec<Step>,
    /// Killed this many µs after the first request.
    kill_after: u32,
}

fn life() -> impl Strategy<Value = Life> {
    // Most errors happen within some milliseconds.
    let now = select(vec![1u32, 5, 20, 50, 100, 200]).prop_flat_map(|most| 0..most * 1000);
    let stillborn = prop_oneof![6 => Just(None), 1 => (0..80_000u32).prop_map(Some)];
    let edited = prop_oneof![8 => Just(None), 1 => vec(0..PORTS, 0..4).prop_map(Some)];
    (edited, stillborn, vec(step(), 1..24), now).prop_map(|(edited, stillborn, steps, now)| Life {
        edited,
        stillborn,
        steps,
        kill_after: now,
    })
}

/// State that a run may have left.
#[derive(Debug, Default)]
struct Counts {
    answered: usize,
    refused: usize,
    in_flight: usize,
    of_these_kept: usize,
    unconfirmed: usize,
    before_ready: usize,
}

struct Scenario {
    daemon: Daemon,
    spaces: Vec<Namespace>,
    vifs: Vec<Vif>,
    client: Client,
    runtime: tokio::runtime::Runtime,
    /// The file has been edited and possibly not read.
    unread: bool,
    /// The file's configuration when last applied.
    base: Config,
    counts: Counts,
}

impl Scenario {
    fn new() -> Option<Scenario> {
        let spaces = [Namespace::new()?, Namespace::new()?].into_iter().collect::<Vec<_>>();
        let vifs = (0..PORTS).map(|n| Vif::new("vm-0", n, &spaces[usize::from(n) % 2])).collect();
        let daemon = Daemon::new();
        let client = Client::new(daemon.socket());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Some(Scenario {
            daemon,
            spaces,
            vifs,
            client,
            runtime,
            unread: false,
            base: Config::default(),
            counts: Counts::default(),
        })
    }

    /// The ports of these numbers, deduplicated, as ports of a VM.
    fn some(&self, ports: &[u8], vm: u8) -> Vec<Vif> {
        let vif = |&port: &u8| Vif { vm: format!("vm-{vm}"), ..self.vifs[usize::from(port)].clone() };
        let mut once: Vec<u8> = Vec::new();
        ports.iter().for_each(|port| {
            if !once.contains(port) {
                once.push(*port)
            }
        });
        once.iter().map(vif).collect()
    }

    fn file(&self, ports: &[u8]) -> String {
        keeping(&config(&self.daemon.socket(), "", &[("net1", 1500)], &self.some(ports, 0)), &self.daemon.state())
    }

    fn expected(&self, ports: &[u8]) -> Config {
        parse_toml(&self.file(ports), "test").unwrap()
    }

    fn running(&self) -> Config {
        let config: Value = self.daemon.get("/v1/config");
        parse_json(&config.to_string(), "answer").unwrap()
    }

    /// Which of the `promised` states is running.
    fn came_back(&self, promised: Vec<Config>) -> Config {
        let running = self.running();
        assert!(promised.contains(&running), "unexpected state: {running:#?}\nallowed: {promised:#?}");
        for port in self.daemon.ports() {
            assert!(port.status == Status::Active || !port.admin_state_up, "{port:?}");
        }
        for namespace in &self.spaces {
            let mut wanted = vec!["lo".to_owned()];
            for (_, port) in running.ports() {
                let Some(Device::Tap(tap)) = port.device() else { panic!("{port:?}") };
                if tap.netns.as_ref() != Some(&namespace.0) {
                    continue;
                }
                wanted.push(tap.name.clone());
                let link = namespace.link(&tap.name).unwrap_or_else(|| panic!("{} is not there", tap.name));
                let found = (link.alias.as_str(), link.mac, link.tap.unwrap().multi_queue);
                assert_eq!(found, (format!("vifswitch:{}", port.port_id).as_str(), port.mac, tap.queues > 1));
            }
            wanted.sort();
            // Orphaned netdevs are removed after the start.
            await_that("the expected netdevs only", || (namespace.links() == wanted).then_some(()));
        }
        running
    }

    /// Change and request of a step; nothing if there is no port for it.
    fn request(&self, step: &Step, now: &Config) -> Option<(Option<Change>, Method, String, Value)> {
        let pick = |index: &Index| {
            let ports: Vec<_> = now.ports().map(|(_, port)| port.clone()).collect();
            (!ports.is_empty()).then(|| index.get(&ports).clone())
        };
        let set = |id: &str, keys: Value| {
            let read = vifswitch::control::config::parse_port_keys_json(&keys.to_string(), "test").unwrap();
            let change = Change::Set { port: id.to_owned(), keys: read };
            Some((Some(change), Method::PATCH, format!("/v1/ports/{id}"), keys))
        };
        match step {
            Step::Attach(vm, ports) => {
                let ports = support::host::inside::ports(&self.some(ports, *vm));
                let body: Vec<raw::Port> = ports.iter().map(|port| port.to_raw()).collect();
                let change = Change::Attach { vm: format!("vm-{vm}"), ports };
                let path = format!("/v1/vms/vm-{vm}/ports");
                Some((Some(change), Method::POST, path, serde_json::to_value(body).unwrap()))
            }
            Step::Detach(index) => {
                let port = pick(index)?.port_id;
                Some((
                    Some(Change::Detach { port: port.clone() }),
                    Method::DELETE,
                    format!("/v1/ports/{port}"),
                    Value::Null,
                ))
            }
            Step::AdminState(index) => {
                let port = pick(index)?;
                set(&port.port_id, json!({ "admin_state_up": !port.admin_state_up }))
            }
            Step::Name(index, name) => {
                set(&pick(index)?.port_id, json!({ "device": { "name": format!("tap{name}") } }))
            }
            Step::Queues(index) => {
                let port = pick(index)?;
                let Some(Device::Tap(tap)) = port.device() else { panic!("{port:?}") };
                set(&port.port_id, json!({ "device": { "queues": 3 - tap.queues } }))
            }
            Step::Apply(ports, confirm) => {
                let wanted = self.expected(ports);
                let path = if *confirm { "/v1/config?confirm=3600" } else { "/v1/config" };
                let body = serde_json::to_value(&wanted).unwrap();
                Some((Some(Change::Apply(wanted)), Method::PUT, path.to_owned(), body))
            }
            Step::Confirm => Some((None, Method::POST, "/v1/confirm".to_owned(), Value::Null)),
        }
    }

    /// Makes changes until the switch is killed. Returns the states it may restart with.
    fn change_until_killed(&mut self, host: Config, steps: &[Step]) -> Vec<Config> {
        let (mut host, mut now, mut waits) = (host.clone(), host, false);
        for step in steps.iter().cycle() {
            // A request is always sent: only a missing response shows the kill.
            let nobody = (None, Method::POST, "/v1/confirm".to_owned(), Value::Null);
            let (change, method, path, body) = self.request(step, &now).unwrap_or(nobody);
            let confirm = matches!(step, Step::Apply(_, true));
            let wanted = match &change {
                // A second provisional change is refused while one waits.
                Some(_) if waits => None,
                Some(change) => change.to(&now).ok(),
                None => waits.then(|| now.clone()),
            };
            let body = (!body.is_null()).then_some(&body);
            let answer = self.runtime.block_on(self.client.request(method, &path, body));
            match (answer, wanted) {
                (Ok(_), Some(wanted)) => {
                    self.counts.answered += 1;
                    // A change without effect does not wait for confirmation.
                    waits = confirm && wanted != now;
                    now = wanted;
                    if !waits {
                        host = now.clone();
                    }
                }
                (Err(Error::Refused { .. }), None) => self.counts.refused += 1,
                (Err(Error::Broken { .. } | Error::NoSwitch { .. }), wanted) => {
                    self.counts.in_flight += usize::from(wanted.is_some());
                    self.counts.unconfirmed += usize::from(waits || confirm);
                    let in_flight = wanted.filter(|_| !confirm);
                    return [host].into_iter().chain(in_flight).collect();
                }
                (answer, wanted) => panic!("{step:?} on {now:#?}: {answer:?}, expected {wanted:#?}"),
            }
        }
        unreachable!("the steps repeat forever")
    }

    /// Runs the switch once and kills it. Returns the states it may restart with.
    fn live(&mut self, life: &Life, option: &str, path: &Path, mut promised: Vec<Config>) -> Vec<Config> {
        if let Some(ports) = life.edited.as_ref().filter(|_| option == "--config" && !self.unread) {
            let file = self.expected(ports);
            self.daemon.configure(&self.file(ports));
            self.unread = true;
            promised = promised.iter().map(|host| merge(&self.base, &file, host).config).collect();
            self.base = file;
        }
        self.daemon.spawn_over(option, path);
        if let Some(micros) = life.stillborn {
            pass(micros);
            self.daemon.stop(Signal::KILL);
            self.counts.before_ready += 1;
            return promised;
        }
        self.daemon.await_note("READY=1");
        self.unread = false;
        let host = self.came_back(promised.clone());
        self.counts.of_these_kept += usize::from(promised.len() > 1 && promised[1] == host);
        let pid = rustix::process::Pid::from_raw(self.daemon.pid().cast_signed()).unwrap();
        let now = life.kill_after;
        let promised = thread::scope(|scope| {
            scope.spawn(move || {
                pass(now);
                rustix::process::kill_process(pid, Signal::KILL).unwrap();
            });
            self.change_until_killed(host, &life.steps)
        });
        self.daemon.wait();
        promised
    }
}

/// Waits: the moment itself is random.
fn pass(micros: u32) {
    let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: i64::from(micros) * 1000 });
}

/// Seed of this run, which is printed.
fn seed() -> u64 {
    let seed = std::env::var("LAW_SIX_SEED").ok().map(|text| text.parse().expect("LAW_SIX_SEED is a number"));
    seed.unwrap_or_else(|| {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).unwrap();
        u64::from_ne_bytes(random)
    })
}

fn killed_at_random_moments(option: &str) {
    let Some(mut scene) = Scenario::new() else { return };
    let seed = seed();
    println!("LAW_SIX_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_ne_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Runs::default(), rng);

    // Initial ports.
    scene.daemon.configure(&scene.file(&[0, 1]));
    scene.daemon.start();
    scene.base = scene.expected(&[0, 1]);
    let begun = scene.came_back(vec![scene.base.clone()]);
    scene.daemon.stop(Signal::KILL);
    let path = if option == "--config" { scene.daemon.file() } else { scene.daemon.state() };
    let mut promised = vec![begun];
    for number in 0..MOMENTS {
        let life = life().new_tree(&mut runner).unwrap().current();
        let any_forwarded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            scene.live(&life, option, &path, std::mem::take(&mut promised))
        }));
        match any_forwarded {
            Ok(left) => promised = left,
            Err(why) => {
                eprintln!("moment {number} of LAW_SIX_SEED={seed}: {life:?}");
                std::panic::resume_unwind(why);
            }
        }
    }
    scene.daemon.spawn_over(option, &path);
    scene.daemon.await_note("READY=1");
    scene.came_back(promised);
    println!("{MOMENTS} moments over {option}: {:?}", scene.counts);
    assert!(scene.counts.answered > 0 && scene.counts.in_flight > 0, "{:?}", scene.counts);
}

#[test]
fn a_killed_switch_restarts_with_a_confirmed_state() {
    killed_at_random_moments("--state");
}

#[test]
fn a_killed_switch_restarts_with_a_confirmed_state_over_its_file() {
    killed_at_random_moments("--config");
}
