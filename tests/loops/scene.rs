//! Scenario of the loop tests: a guest with several interfaces on one network, which it may join by its own bridge,
//! and two bystanders.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use vifswitch::control::api::responses::UplinkView;
use vifswitch::time::{self, MonoTime};
use vifswitch::wire::Mac;

use support::host::core_waits::CoreWaits;
use support::host::daemon::{Daemon, Vif, config};
use support::host::nic::{Nic, experiment, frame};
use support::host::setup::{DeviceKind, lay};
use support::host::streams::{assert_within, veth};
use support::host::vlans::VlanInterfaces;
use support::host::{Namespace, await_that};

/// EtherType of the frames that loop: an experimental one other than that of [`experiment`].
pub const NOISE: u16 = 0x88b6;

/// The guest that loops.
pub const CULPRIT: &str = "l";

/// Configuration of the switch, its networks and VMs, beyond their ports.
#[derive(Debug, Clone, Copy, Default)]
pub struct Said {
    /// More keys of the switch, one per line.
    pub switch: &'static str,
    /// More keys of every network.
    pub network: &'static str,
    /// More keys of the VM that loops.
    pub culprit: &'static str,
}

/// Each guest with all its interfaces in one namespace.
pub struct Scenario {
    pub daemon: Daemon,
    /// In the order of the guests; the host's is last, if ports are netdevs.
    pub spaces: Vec<Namespace>,
    /// In the order of the guests.
    pub vifs: Vec<Vec<Vif>>,
    /// Of the culprit, if its interfaces are subports.
    _vlans: Option<VlanInterfaces>,
}

/// An uplink, and the external network behind it.
pub struct Uplink {
    pub wire: Namespace,
    /// Its device; the address is that of an external station.
    pub vif: Vif,
    _host: Namespace,
}

/// A guest: its name, and the network of each interface.
pub type Guest<'a> = (&'a str, &'a [&'a str]);

/// Two bystanders, and a guest with this many siblings.
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
    /// All ports have the device kind `on`. The culprit may send from any address. `None` if the host cannot run the
    /// test.
    pub fn new(on: DeviceKind, guests: &[Guest], said: Said) -> Option<Scenario> {
        Scenario::with(on, guests, said, |_| {})
    }

    /// Two siblings that are subports of a third interface, on another network.
    pub fn trunk(on: DeviceKind, said: Said) -> Option<Scenario> {
        let guests = [("a", &["net1"][..]), ("b", &["net1"]), (CULPRIT, &["net1", "net1", "net2"])];
        let mut scene = Scenario::with(on, &guests, said, |vifs| {
            let (subports, parent) = vifs[2].split_at_mut(2);
            for (subport, vlan) in subports.iter_mut().zip([101, 102]) {
                *subport = Vif { name: format!("v{vlan}"), ..subport.clone().subport_of(&parent[0], vlan) };
            }
        })?;
        let vlans = [0, 1].map(|number| (101 + number as u16, scene.vif(CULPRIT, number).mac));
        let (guest, base) = (scene.namespace(CULPRIT), &scene.vif(CULPRIT, 2).name);
        scene._vlans = Some(VlanInterfaces::new(guest, base, &vlans));
        Some(scene)
    }

    /// The same, with ports modified before the switch starts.
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
        change(&mut vifs);
        if on != DeviceKind::Tap {
            let host = Namespace::new()?;
            for (guest, namespace) in vifs.iter_mut().zip(&spaces) {
                for vif in guest.iter_mut().filter(|vif| vif.trunk.is_none()) {
                    (vif.kind, vif.netns) = (on.kind(), host.0.clone());
                    lay(vif, namespace, 1500);
                }
            }
            spaces.push(host);
        }
        let mut daemon = Daemon::new();
        daemon.configure(&written(&daemon, said, &vifs.concat()));
        daemon.start();
        vifs.iter().flatten().for_each(|vif| drop(daemon.await_active(vif)));
        Some(Scenario { daemon, spaces, vifs, _vlans: None })
    }

    /// Adds an uplink that carries net1, untagged. `None` if the host cannot run the test.
    pub fn uplink(&self, on: DeviceKind) -> Option<Uplink> {
        let (wire, host) = (Namespace::new()?, Namespace::new()?);
        let mut vif = Vif { name: "up0".into(), port: "up0".into(), ..Vif::new("none", 90, &wire) };
        if on != DeviceKind::Tap {
            (vif.kind, vif.netns) = (on.kind(), host.0.clone());
            lay(&vif, &wire, 1500);
        }
        let text = std::fs::read_to_string(self.daemon.file()).unwrap();
        let device = vif.base();
        self.daemon.configure(&format!(
            "{text}[[uplinks]]\nid = \"up0\"\n{device}\nnetworks = [{{ network_id = \"net1\" }}]\n"
        ));
        self.daemon.done(&["apply", self.daemon.file().to_str().unwrap()], "");
        await_that("the uplink", || {
            let uplinks: Vec<UplinkView> = self.daemon.get("/v1/uplinks");
            uplinks[0].active.then_some(())
        });
        Some(Uplink { wire, vif, _host: host })
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

    /// Interfaces of the culprit, without the netdev below subports.
    fn siblings(&self) -> impl Iterator<Item = &Vif> {
        let all = &self.vifs[self.at(CULPRIT)];
        let is_base = |vif: &Vif| all.iter().any(|of| of.trunk.as_ref().is_some_and(|(parent, _)| *parent == vif.port));
        all.iter().filter(move |vif| !is_base(vif))
    }

    /// Creates the culprit's bridge `gb` over all its interfaces, down; without STP by default.
    pub fn join(&self, more: &str) {
        let namespace = self.namespace(CULPRIT);
        namespace.ip(format!("link add gb type bridge mcast_snooping 0 {more}").trim_end());
        for vif in self.siblings() {
            namespace.ip(&format!("link set dev {} master gb", vif.name));
        }
    }

    /// Sets the culprit's bridge up, which closes the loop.
    pub fn close_loop(&self) {
        self.namespace(CULPRIT).ip("link set dev gb up");
    }

    /// Sets it down.
    pub fn open_loop(&self) {
        self.namespace(CULPRIT).ip("link set dev gb down");
    }

    /// The culprit's bridge itself sends a broadcast.
    pub fn broadcast(&self) {
        let mac = self.namespace(CULPRIT).link("gb").unwrap().mac;
        assert!(self.vifs[self.at(CULPRIT)].iter().any(|vif| vif.mac == mac), "a bridge has the address of a port");
        Nic::new(self.namespace(CULPRIT), "gb").send(&noise(mac, 0));
    }

    /// All events, from the JSON stream.
    pub fn events(&self) -> Vec<Value> {
        let read = |line: &str| serde_json::from_str(line).unwrap();
        self.daemon.page("/v1/events").lines().filter(|line| !line.is_empty()).map(read).collect()
    }

    pub fn events_of(&self, kind: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["kind"] == kind).collect()
    }

    /// Waits for the first event of a kind.
    pub fn await_event(&self, kind: &str) -> Value {
        await_that(kind, || self.events_of(kind).into_iter().next())
    }

    /// Asserts that there are only events of ports and of operators' requests.
    pub fn assert_calm(&self, what: &str) {
        let ordinary = ["port_up", "port_down", "netdev_changed", "config", "uplink", "networks_bridged"];
        let alarms: Vec<Value> =
            self.events().into_iter().filter(|event| !ordinary.contains(&event["kind"].as_str().unwrap())).collect();
        assert!(alarms.is_empty(), "{what}: {alarms:#?}");
        assert!(self.loops().iter().all(|one| one["kind"] == "notice"), "{what}: {:#?}", self.loops());
    }

    /// Current loops and notices of `show loops`.
    pub fn loops(&self) -> Vec<Value> {
        let all: Value = self.daemon.get("/v1/loops");
        all.as_array().unwrap().iter().filter(|one| one["active"] == true).cloned().collect()
    }

    /// Mitigation level of the culprit's loop; 0 for none.
    pub fn level(&self) -> u64 {
        let level = |one: &Value| (one["device_id"] == CULPRIT).then(|| one["level"].as_u64().unwrap());
        self.loops().iter().filter_map(level).max().unwrap_or_default()
    }

    /// Waits until each port of a guest has been probed this many more times.
    pub fn await_probes(&self, guest: &str, times: u64) {
        let probes = |vif: &Vif| {
            let ports: Value = self.daemon.get("/v1/ports");
            let port = ports.as_array().unwrap().iter().find(|port| port["port_id"] == vif.port).unwrap().clone();
            port["probes"].as_u64().unwrap_or_else(|| panic!("no probes are counted: {port:#}"))
        };
        let all = &self.vifs[self.at(guest)];
        // A VM's only port on a network is not probed, unless the VM is on several networks.
        let vifs: Vec<&Vif> = if guest == CULPRIT { self.siblings().collect() } else { all.iter().collect() };
        let before: Vec<u64> = vifs.iter().map(|vif| probes(vif)).collect();
        await_that("probes", || {
            vifs.iter().zip(&before).all(|(vif, before)| probes(vif) >= before + times).then_some(())
        });
    }

    /// Frames dropped for a reason, summed over all ports of a guest.
    pub fn drops(&self, guest: &str, reason: &str) -> u64 {
        self.vifs[self.at(guest)].iter().map(|vif| self.daemon.drops(vif, reason)).sum()
    }

    /// Port and kind of a station's FDB entry; `None` if unknown.
    pub fn place_of(&self, mac: Mac) -> Option<(String, String)> {
        let fdb: Value = self.daemon.get("/v1/fdb");
        let mac = mac.to_string();
        let found = fdb.as_array().unwrap().iter().find(|station| station["mac_address"] == mac.as_str())?.clone();
        let text = |key: &str| found[key].as_str().unwrap().to_owned();
        Some((text("port_id"), text("kind")))
    }

    /// Asserts that a loop event names at least two ports, all of them the culprit's.
    pub fn names_the_culprit(&self, event: &Value, network: &str) {
        assert_eq!((&event["vm"], &event["network"]), (&CULPRIT.into(), &network.into()), "{event:#}");
        let events: BTreeSet<&str> =
            event["ports"].as_array().unwrap().iter().map(|port| port.as_str().unwrap()).collect();
        let siblings: BTreeSet<&str> = self.siblings().map(|vif| vif.port.as_str()).collect();
        assert!(events.len() >= 2 && events.is_subset(&siblings), "{event:#}");
        let text = event["text"].as_str().unwrap();
        assert!(text.contains(CULPRIT) && events.iter().all(|port| text.contains(port)), "{text}");
    }
}

/// The configuration file.
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
    // AF_XDP rings keep frames permanently
    let frames = if vifs.iter().any(|vif| vif.kind == "xdp") { 4096 * (vifs.len() + 2) } else { 4096 };
    let (before, after) = text.split_once("frames = ").unwrap();
    let after = after.split_once('\n').unwrap().1;
    format!("{before}frames = {frames}\n{after}").replace(&vm, &with)
}

/// A broadcast from an address.
pub fn noise(from: Mac, number: u32) -> Vec<u8> {
    frame(Mac::BROADCAST, from, NOISE, &[&number.to_be_bytes()[..], &[0; 42]].concat())
}

/// Two bystanders that exchange requests and replies, and occasionally broadcast. A veth carries the same requests.
pub struct Talk<'a> {
    pub scene: &'a Scenario,
    nics: [Nic; 2],
    control: [Nic; 2],
    _veth: Namespace,
    waits: CoreWaits,
    /// Longest time from a request to its reply, through the switch, without the time for which workers waited for a
    /// core, and over the veth.
    longest: [Duration; 2],
    macs: [Mac; 2],
    requests: u32,
    /// Broadcasts sent by each.
    pub seeds: u32,
    /// Broadcasts that the second one has received.
    pub copies: u64,
}

impl<'a> Talk<'a> {
    /// They send from these addresses.
    pub fn new(scene: &'a Scenario, macs: [Mac; 2]) -> Talk<'a> {
        let (_veth, control) = veth().expect("the scene has namespaces");
        let nics = [scene.nic("a", 0), scene.nic("b", 0)];
        let (waits, longest) = (CoreWaits::of(scene.daemon.pid()), [Duration::ZERO; 2]);
        Talk { scene, nics, control, _veth, waits, longest, macs, requests: 0, seeds: 0, copies: 0 }
    }

    /// They send from their own addresses.
    pub fn of(scene: &'a Scenario) -> Talk<'a> {
        Talk::new(scene, ["a", "b"].map(|guest| scene.vif(guest, 0).mac))
    }

    /// Both broadcast; then one sends a request and waits for the reply.
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

    /// One sends a request and waits for the reply, which fails if a frame is lost.
    pub fn request(&mut self) {
        let [here, there] = self.macs;
        let frames = [request(there, here, self.requests), request(here, there, self.requests)];
        self.waits.sample();
        let start = time::now();
        (0..2).for_each(|from| self.transfer(from, &frames[from]));
        let took = self.waits.without(start);
        let start = time::now();
        for (from, frame) in frames.iter().enumerate() {
            self.control[from].send(frame);
            while self.control[1 - from].take() != *frame {}
        }
        let control = time::now().since(start);
        self.longest = [self.longest[0].max(took), self.longest[1].max(control)];
        self.requests += 1;
    }

    /// Time since `begin`, less that for which workers waited for a core in the last two seconds.
    pub fn took(&self, begin: MonoTime) -> Duration {
        self.waits.without(begin)
    }

    /// Asserts that no request waited for its reply longer than a loaded machine explains.
    pub fn assert_prompt(&self, what: &str) {
        self.assert_within(what, Duration::ZERO, self.longest[0]);
    }

    /// Asserts a promised time, beside the longest time of the veth.
    pub fn assert_within(&self, what: &str, promised: Duration, took: Duration) {
        assert_within(what, promised, took, self.longest[1]);
    }

    /// Sends a request that may be lost, without waiting. Returns its number.
    pub fn ask_once(&mut self) -> u32 {
        let [here, there] = self.macs;
        let number = self.requests;
        self.requests += 1;
        self.nics[0].send(&request(there, here, number));
        number
    }

    /// Whether a request numbered `first` or higher has arrived.
    pub fn is_heard(&mut self, first: u32) -> bool {
        let [here, there] = self.macs;
        let came = self.nics[1].rest();
        self.copies += came.iter().filter(|frame| is_noise(frame)).count() as u64;
        (first..self.requests).any(|number| came.contains(&request(there, here, number)))
    }

    /// Sends requests until one arrives.
    pub fn await_heard(&mut self) {
        let first = self.ask_once();
        await_that("a request that arrives", || {
            self.ask_once();
            self.is_heard(first).then_some(())
        });
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

    /// Receives all pending frames.
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

/// State of a port of the culprit's bridge.
pub fn state_of(namespace: &Namespace, name: &str) -> String {
    let shown =
        Command::new("ip").args(["-n", &namespace.0, "-d", "-j", "link", "show", "dev", name]).output().unwrap();
    let links: Value = serde_json::from_slice(&shown.stdout).unwrap();
    links[0]["linkinfo"]["info_slave_data"]["state"].as_str().unwrap_or_default().to_owned()
}
