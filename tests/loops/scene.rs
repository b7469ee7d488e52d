//! A guest with several interfaces on one network, which it may join by a bridge of its own, and two
//! bystanders.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Command;

use serde_json::Value;
use vifswitch::wire::Mac;

use support::host::daemon::{Daemon, Vif, config};
use support::host::nic::{Nic, experiment, frame};
use support::host::setup::{DeviceKind, lay};
use support::host::{Namespace, await_that};

/// What is to be multiplied: another ethertype for local experiments than that of [`experiment`].
pub const NOISE: u16 = 0x88b6;

/// The guest that loops.
pub const CULPRIT: &str = "l";

/// What is said of the switch, its networks and its VMs beside their ports.
#[derive(Debug, Clone, Copy, Default)]
pub struct Said {
    /// More keys of the switch, a line each.
    pub switch: &'static str,
    /// More keys of every network.
    pub network: &'static str,
    /// More keys of the VM that loops.
    pub culprit: &'static str,
}

/// Each guest in a namespace of its own, all its interfaces in there.
pub struct Scenario {
    pub daemon: Daemon,
    /// By the order of the guests. Behind them the host's, if there are netdevs.
    pub spaces: Vec<Namespace>,
    /// By the order of the guests.
    pub vifs: Vec<Vec<Vif>>,
}

/// A guest of a scene: its name, and the network of each of its interfaces.
pub type Guest<'a> = (&'a str, &'a [&'a str]);

/// Two bystanders, and a guest with so many siblings.
pub fn looping(siblings: usize) -> Vec<Guest<'static>> {
    const NET1: &[&str] = &["net1"; 8];
    vec![("a", &NET1[..1]), ("b", &NET1[..1]), (CULPRIT, &NET1[..siblings])]
}

impl Drop for Scenario {
    fn drop(&mut self) {
        if std::thread::panicking() && self.daemon.is_running() {
            for port in self.daemon.ports() {
                eprintln!("{}: {:?}, {} {:?}", port.port_id, port.status, port.status_reason, port.counts);
            }
            self.events().iter().for_each(|event| eprintln!("{event}"));
        }
    }
}

impl Scenario {
    /// All ports stand on `on`. The culprit may send from any address. `None` where this cannot be tested.
    pub fn new(on: DeviceKind, guests: &[Guest], said: Said) -> Option<Scenario> {
        Scenario::with(on, guests, said, |_| {})
    }

    /// The same, with ports that are changed before the switch sees them.
    pub fn with(
        on: DeviceKind,
        guests: &[Guest],
        said: Said,
        change: impl FnOnce(&mut [Vec<Vif>]),
    ) -> Option<Scenario> {
        let mut spaces = guests.iter().map(|_| Namespace::new()).collect::<Option<Vec<_>>>()?;
        let mut numbers = 1..;
        let vifs = guests.iter().zip(&spaces).map(|((vm, networks), namespace)| {
            let vif = |network: &&str| Vif::new(vm, numbers.next().unwrap(), namespace).on(network);
            networks.iter().map(vif).collect()
        });
        let mut vifs: Vec<Vec<Vif>> = vifs.collect();
        for vif in vifs.iter_mut().flatten().filter(|vif| vif.vm == CULPRIT) {
            vif.more = "port_security = \"off\"".into();
        }
        if on != DeviceKind::Tap {
            let host = Namespace::new()?;
            for (guest, namespace) in vifs.iter_mut().zip(&spaces) {
                for vif in guest {
                    (vif.kind, vif.netns) = (on.kind(), host.0.clone());
                    lay(vif, namespace, 1500);
                }
            }
            spaces.push(host);
        }
        change(&mut vifs);
        let mut daemon = Daemon::new();
        daemon.configure(&written(&daemon, said, &vifs.concat()));
        daemon.start();
        vifs.iter().flatten().for_each(|vif| drop(daemon.await_active(vif)));
        Some(Scenario { daemon, spaces, vifs })
    }

    pub fn at(&self, guest: &str) -> usize {
        self.vifs.iter().position(|vifs| vifs[0].vm == guest).unwrap()
    }

    pub fn namespace(&self, guest: &str) -> &Namespace {
        &self.spaces[self.at(guest)]
    }

    pub fn vif(&self, guest: &str, number: usize) -> &Vif {
        &self.vifs[self.at(guest)][number]
    }

    pub fn nic(&self, guest: &str, number: usize) -> Nic {
        Nic::new(self.namespace(guest), &self.vif(guest, number).name)
    }

    /// The culprit's bridge `gb` over all its interfaces, down. Without STP, unless something else is said.
    pub fn join(&self, more: &str) {
        let namespace = self.namespace(CULPRIT);
        namespace.ip(format!("link add gb type bridge mcast_snooping 0 {more}").trim_end());
        for vif in &self.vifs[self.at(CULPRIT)] {
            namespace.ip(&format!("link set dev {} master gb", vif.name));
        }
    }

    /// Sets the culprit's bridge up: its interfaces are one network now.
    pub fn close(&self) {
        self.namespace(CULPRIT).ip("link set dev gb up");
    }

    /// Sets it down.
    pub fn open(&self) {
        self.namespace(CULPRIT).ip("link set dev gb down");
    }

    /// The culprit's bridge itself says something to everybody.
    pub fn speak(&self) {
        let mac = self.namespace(CULPRIT).link("gb").unwrap().mac;
        assert!(self.vifs[self.at(CULPRIT)].iter().any(|vif| vif.mac == mac), "a bridge has the address of a port");
        Nic::new(self.namespace(CULPRIT), "gb").send(&noise(mac, 0));
    }

    /// Everything that has happened, as programs read it. Between the lines stand the sizes of chunks.
    pub fn events(&self) -> Vec<Value> {
        self.daemon
            .page("/v1/events")
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    pub fn events_of(&self, kind: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["kind"] == kind).collect()
    }

    /// Waits for the first event of a kind.
    pub fn await_event(&self, kind: &str) -> Value {
        await_that(kind, || self.events_of(kind).into_iter().next())
    }

    /// Nothing has happened but what ports do, and what operators ask for.
    pub fn is_calm(&self, what: &str) {
        let ordinary = ["port_up", "port_down", "netdev_changed", "config", "uplink", "networks_bridged"];
        let alarms: Vec<Value> =
            self.events().into_iter().filter(|event| !ordinary.contains(&event["kind"].as_str().unwrap())).collect();
        assert!(alarms.is_empty(), "{what}: {alarms:#?}");
        assert!(self.loops().iter().all(|one| one["kind"] == "notice"), "{what}: {:#?}", self.loops());
    }

    /// What `show loops` has of what is there now, notices as well.
    pub fn loops(&self) -> Vec<Value> {
        let all: Value = self.daemon.get("/v1/loops");
        all.as_array().unwrap().iter().filter(|one| one["active"] == true).cloned().collect()
    }

    /// What is done about the loop of the culprit: 0 for nothing.
    pub fn level(&self) -> u64 {
        let level = |one: &Value| (one["device_id"] == CULPRIT).then(|| one["level"].as_u64().unwrap());
        self.loops().iter().filter_map(level).max().unwrap_or_default()
    }

    /// Waits until each port of a guest has been probed so many times more.
    pub fn await_probes(&self, guest: &str, times: u64) {
        let probes = |vif: &Vif| {
            let ports: Value = self.daemon.get("/v1/ports");
            let port = ports.as_array().unwrap().iter().find(|port| port["port_id"] == vif.port).unwrap().clone();
            port["probes"].as_u64().unwrap_or_else(|| panic!("no probes are counted: {port:#}"))
        };
        let vifs = &self.vifs[self.at(guest)];
        let before: Vec<u64> = vifs.iter().map(probes).collect();
        await_that("probes", || {
            vifs.iter().zip(&before).all(|(vif, before)| probes(vif) >= before + times).then_some(())
        });
    }

    /// How many frames of a guest died for a reason, at all its ports.
    pub fn drops(&self, guest: &str, reason: &str) -> u64 {
        self.vifs[self.at(guest)].iter().map(|vif| self.daemon.drops(vif, reason)).sum()
    }

    /// Where a station is, and how it is known: `None` if nobody knows.
    pub fn place_of(&self, mac: Mac) -> Option<(String, String)> {
        let fdb: Value = self.daemon.get("/v1/fdb");
        let mac = mac.to_string();
        let found = fdb.as_array().unwrap().iter().find(|station| station["mac_address"] == mac.as_str())?.clone();
        let text = |key: &str| found[key].as_str().unwrap().to_owned();
        Some((text("port_id"), text("kind")))
    }

    /// The ports that a loop's event names must be interfaces of the culprit, two of them at least.
    pub fn names_the_culprit(&self, event: &Value, network: &str) {
        assert_eq!((&event["vm"], &event["network"]), (&CULPRIT.into(), &network.into()), "{event:#}");
        let events: BTreeSet<&str> =
            event["ports"].as_array().unwrap().iter().map(|port| port.as_str().unwrap()).collect();
        let siblings: BTreeSet<&str> = self.vifs[self.at(CULPRIT)].iter().map(|vif| vif.port.as_str()).collect();
        assert!(events.len() >= 2 && events.is_subset(&siblings), "{event:#}");
        let text = event["text"].as_str().unwrap();
        assert!(text.contains(CULPRIT) && events.iter().all(|port| text.contains(port)), "{text}");
    }
}

/// The text of a configuration with all of that in it.
fn written(daemon: &Daemon, said: Said, vifs: &[Vif]) -> String {
    let mut networks: Vec<(&str, u16)> = Vec::new();
    for vif in vifs {
        if !networks.iter().any(|(id, _)| *id == vif.network) {
            networks.push((&vif.network, 1500));
        }
    }
    let text = config(&daemon.socket(), said.switch, &networks, vifs);
    let text = text.replace("mtu = 1500\n", &format!("mtu = 1500\n{}\n", said.network));
    let vm = format!("[[vms]]\nid = \"{CULPRIT}\"\n");
    let mut with = vm.clone();
    writeln!(with, "{}", said.culprit).unwrap();
    // rings of AF_XDP keep frames for good
    let frames = if vifs.iter().any(|vif| vif.kind == "xdp") { 4096 * (vifs.len() + 2) } else { 4096 };
    let (before, after) = text.split_once("frames = ").unwrap();
    let after = after.split_once('\n').unwrap().1;
    format!("{before}frames = {frames}\n{after}").replace(&vm, &with)
}

/// A broadcast from an address.
pub fn noise(from: Mac, number: u32) -> Vec<u8> {
    frame(Mac::BROADCAST, from, NOISE, &[&number.to_be_bytes()[..], &[0; 42]].concat())
}

/// Two bystanders that ask and answer, and say something to everybody now and then.
pub struct Talk<'a> {
    pub scene: &'a Scenario,
    nics: [Nic; 2],
    macs: [Mac; 2],
    requests: u32,
    /// Broadcasts of each of them.
    pub seeds: u32,
    /// Broadcasts that the second one has heard.
    pub copies: u64,
}

impl<'a> Talk<'a> {
    /// They send from these addresses.
    pub fn new(scene: &'a Scenario, macs: [Mac; 2]) -> Talk<'a> {
        Talk { scene, nics: [scene.nic("a", 0), scene.nic("b", 0)], macs, requests: 0, seeds: 0, copies: 0 }
    }

    /// They send from their own addresses.
    pub fn of(scene: &'a Scenario) -> Talk<'a> {
        Talk::new(scene, ["a", "b"].map(|guest| scene.vif(guest, 0).mac))
    }

    /// One asks, and gets an answer; both broadcast something before.
    pub fn round(&mut self) {
        self.seed();
        self.request();
    }

    pub fn seed(&mut self) {
        for (nic, mac) in self.nics.iter().zip(self.macs) {
            nic.send(&noise(mac, self.seeds));
        }
        self.seeds += 1;
    }

    /// One asks, and gets an answer. A frame that is lost is waited for in vain.
    pub fn request(&mut self) {
        let [here, there] = self.macs;
        self.transfer(0, &request(there, here, self.requests));
        self.transfer(1, &request(here, there, self.requests));
        self.requests += 1;
    }

    /// One asks, and waits for nothing: the question may be lost. Its number.
    pub fn ask_once(&mut self) -> u32 {
        let [here, there] = self.macs;
        let number = self.requests;
        self.requests += 1;
        self.nics[0].send(&request(there, here, number));
        number
    }

    /// Whether a question from number `first` on is among what has come by now.
    pub fn is_heard(&mut self, first: u32) -> bool {
        let [here, there] = self.macs;
        let came = self.nics[1].rest();
        self.copies += came.iter().filter(|frame| is_noise(frame)).count() as u64;
        (first..self.requests).any(|number| came.contains(&request(there, here, number)))
    }

    fn transfer(&mut self, from: usize, frame: &[u8]) {
        self.nics[from].send(frame);
        loop {
            let came = self.nics[1 - from].take();
            if came == frame {
                return;
            }
            self.copies += u64::from(from == 0 && is_noise(&came));
        }
    }

    /// Takes what has come meanwhile.
    pub fn rest(&mut self) {
        drop(self.nics[0].rest());
        self.copies += self.nics[1].rest().iter().filter(|frame| is_noise(frame)).count() as u64;
    }
}

fn request(to: Mac, from: Mac, number: u32) -> Vec<u8> {
    experiment(to, from, &[&number.to_be_bytes()[..], &[0; 42]].concat())
}

pub fn is_noise(frame: &[u8]) -> bool {
    frame[12..14] == NOISE.to_be_bytes()
}

/// In what state a port of the culprit's bridge is.
pub fn state_of(namespace: &Namespace, name: &str) -> String {
    let shown =
        Command::new("ip").args(["-n", &namespace.0, "-d", "-j", "link", "show", "dev", name]).output().unwrap();
    let links: Value = serde_json::from_slice(&shown.stdout).unwrap();
    links[0]["linkinfo"]["info_slave_data"]["state"].as_str().unwrap_or_default().to_owned()
}
