//! The laboratory: workers stepped by hand over cables, with a made-up clock. No threads, no root.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)] // each user uses a part of it

pub mod stream;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use vifswitch::device::Device;
use vifswitch::device::memory::{Capacity, End, Memory, cable};
use vifswitch::frame::Pool;
use vifswitch::switch::{
    CarrierRules, DropReason, Learned, Limits, MacLimit, NetworkId, NetworkRules, Owner, PortId, PortRules, Reach,
    ReservedMask, Rules, Secret, Security, Station,
};
use vifswitch::telemetry::audit::{Audit, Reading};
use vifswitch::telemetry::{PortCounters, WorkerCounters};
use vifswitch::time::Moment;
use vifswitch::wire::{Mac, Offload, Probe, ProbeKey, Vid};
use vifswitch::worker::{
    Books, Command, Finding, Findings, Gate, Notice, Post, Room, StationsPage, TeamSettings, Worker, team,
};

/// The key of every laboratory: what happened once happens again.
pub const SECRET: [u8; 16] = [7; 16];

/// The key of its loop probes.
pub const PROBE_KEY: ProbeKey = ProbeKey::new([9; 16]);

/// A port of the laboratory: which network, whose, and with what security.
#[derive(Debug, Clone)]
pub struct Plug {
    pub network: u16,
    pub owner: u32,
    pub security: Security,
    pub admin_up: bool,
    /// Its parent and its VLAN id there, if it is a subport: then it has no cable of its own.
    pub trunk: Option<(usize, u16)>,
    pub unknown_unicast: bool,
    pub promiscuous: bool,
    pub mac_limit: Option<MacLimit>,
    pub shares_mac: bool,
    /// Measures against loops.
    pub held: bool,
    pub splits: bool,
}

impl Plug {
    pub fn new(network: u16, owner: u32) -> Plug {
        Plug {
            network,
            owner,
            security: Security::Off,
            admin_up: true,
            unknown_unicast: true,
            promiscuous: false,
            mac_limit: None,
            shares_mac: false,
            held: false,
            splits: false,
            trunk: None,
        }
    }

    /// The same, as a subport of the port at `parent`, tagged with `vid`.
    pub fn behind(self, parent: usize, vid: u16) -> Plug {
        Plug { trunk: Some((parent, vid)), ..self }
    }
}

/// An uplink of the laboratory: the VLAN id of each network on it, 0 for untagged.
#[derive(Debug, Clone)]
pub struct Wire {
    pub networks: Vec<(u16, u16)>,
    /// It is in standby for the uplink of this number, and shares its ports.
    pub spare_of: Option<usize>,
}

impl Wire {
    /// With these VLAN ids and networks.
    pub fn new(networks: &[(u16, u16)]) -> Wire {
        Wire { networks: networks.to_vec(), spare_of: None }
    }
}

/// Where the ports of uplinks stand: uplink `wire` has one for each network, carried by no place of its
/// own in `Lab::ports`.
pub fn uplink_port(wire: usize, network: u16) -> PortId {
    PortId::new(1000 + wire as u16 * 64 + network, 0)
}

/// The address of the port at `index`.
pub fn mac(index: usize) -> Mac {
    Mac::from_bits(0x02_00_00_00_00_00 | index as u64)
}

pub fn frame(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(14 + payload.len());
    bytes.extend(to.octets());
    bytes.extend(from.octets());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub struct Setup {
    pub workers: u16,
    pub slots: u32,
    pub stations: u32,
    pub cable: Capacity,
    pub memory: Memory,
    pub limits: Limits,
    pub mtu: u16,
    /// Of all networks.
    pub reserved: ReservedMask,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            workers: 1,
            slots: 2048,
            stations: 4096,
            cable: Capacity::default(),
            memory: Memory::Owned,
            limits: Limits::default(),
            mtu: 1500,
            reserved: ReservedMask::VM_DEFAULT,
        }
    }
}

pub struct Lab {
    pub workers: Vec<Worker>,
    pub posts: Vec<Post>,
    /// What the workers count of themselves.
    pub counters: Vec<Arc<WorkerCounters>>,
    /// What the workers tell control unasked.
    pub notices: mpsc::Receiver<Notice>,
    /// What they have found out about guests.
    pub findings: Findings,
    pub pool: &'static Pool,
    /// The guests' ends of the cables, by port.
    pub ends: Vec<End>,
    pub ports: Vec<PortId>,
    /// By port: the parent and the VLAN id, of subports.
    pub trunks: Vec<Option<(usize, u16)>>,
    /// The ends at which nobody polls the cables of subports.
    unused: Vec<End>,
    pub rules: Arc<Rules>,
    /// By worker and port.
    pub books: Vec<Vec<Arc<PortCounters>>>,
    pub now: Moment,
}

impl Lab {
    pub fn new(setup: Setup, plugs: &[Plug]) -> Lab {
        Lab::with_uplinks(setup, plugs, &[])
    }

    /// Uplinks stand behind the other ports, in `ends` as well as in `books`.
    pub fn with_uplinks(setup: Setup, plugs: &[Plug], wires: &[Wire]) -> Lab {
        Lab::build(setup, plugs, wires, |_, end| Box::new(end))
    }

    /// Ports are dealt out to the workers in turn. `wrap` may put a device around each end.
    pub fn with_devices(setup: Setup, plugs: &[Plug], wrap: impl FnMut(usize, End) -> Box<dyn Device>) -> Lab {
        Lab::build(setup, plugs, &[], wrap)
    }

    /// All of this.
    pub fn build(
        setup: Setup,
        plugs: &[Plug],
        wires: &[Wire],
        mut wrap: impl FnMut(usize, End) -> Box<dyn Device>,
    ) -> Lab {
        let pool = Pool::new(setup.slots).unwrap();
        let secret = Secret::new(SECRET);
        let team =
            team(TeamSettings { workers: setup.workers, pool, stations: setup.stations, secret, probe_key: PROBE_KEY })
                .unwrap();
        let wired = wires.iter().flat_map(|wire| &wire.networks).map(|&(_, network)| network);
        let networks = plugs.iter().map(|plug| plug.network).chain(wired).max().map_or(0, |most| most + 1);
        let networks = (0..networks).map(|index| NetworkRules {
            id: NetworkId::new(index),
            mtu: setup.mtu,
            ageing: 300,
            limits: setup.limits,
            guard: true,
            reserved: setup.reserved,
        });
        let ports: Vec<_> = (0..plugs.len() + wires.len()).map(|index| PortId::new(index as u16, 0)).collect();
        let trunks: Vec<_> = plugs.iter().map(|plug| plug.trunk).chain(wires.iter().map(|_| None)).collect();
        let subports = |parent: usize| {
            let all = trunks.iter().zip(&ports);
            all.filter_map(move |(trunk, &id)| trunk.filter(|of| of.0 == parent).map(|of| (Vid::new(of.1), id)))
        };
        let base = |id: PortId| trunks[id.index()].map_or(id, |(parent, _)| ports[parent]);
        let worker = |id: PortId| Some(base(id).index() as u16 % setup.workers);
        let reach = |id: PortId| match trunks[id.index()] {
            Some((parent, vid)) => Reach::Carried { carrier: ports[parent], vlan: Vid::new(vid) },
            None if subports(id.index()).next().is_some() => Reach::Carried { carrier: id, vlan: None },
            None => Reach::Own,
        };
        let vifs = plugs.iter().zip(&ports).map(|(plug, &id)| PortRules {
            security: plug.security.clone(),
            admin_up: plug.admin_up,
            worker: worker(id),
            reach: reach(id),
            unknown_unicast: plug.unknown_unicast,
            promiscuous: plug.promiscuous,
            mac_limit: plug.mac_limit,
            held: plug.held,
            splits: plug.splits,
            shares_mac: plug.shares_mac,
            ..PortRules::vif(id, NetworkId::new(plug.network), Owner(plug.owner), mac(id.index()))
        });
        let (mut rules, mut carriers) = (vifs.collect::<Vec<_>>(), Vec::new());
        for (parent, plug) in plugs.iter().enumerate().filter(|(parent, _)| subports(*parent).next().is_some()) {
            let all = std::iter::once((None, ports[parent])).chain(subports(parent)).collect();
            let (id, admin_up) = (ports[parent], plug.admin_up);
            carriers.push(CarrierRules { id, admin_up, worker: worker(id), standby: false, ports: all });
        }
        for (number, wire) in wires.iter().enumerate() {
            let id = ports[plugs.len() + number];
            let shared = wire.spare_of.unwrap_or(number);
            let places = wire.networks.iter().map(|&(vid, network)| (Vid::new(vid), uplink_port(shared, network)));
            let places: Vec<_> = places.collect();
            let uplinks = wire.networks.iter().zip(&places).map(|(&(_, network), &(vlan, port))| PortRules {
                worker: worker(id),
                ..PortRules::uplink(port, NetworkId::new(network), Owner(u32::MAX), id, vlan)
            });
            if wire.spare_of.is_none() {
                rules.extend(uplinks);
            }
            let standby = wire.spare_of.is_some();
            carriers.push(CarrierRules { id, admin_up: true, worker: worker(id), standby, ports: places });
        }
        let rules = Arc::new(Rules::compile(secret, networks.collect(), rules, carriers));
        let books = (0..setup.workers).map(|_| ports.iter().map(|_| Arc::default()).collect()).collect();
        let mut lab = Lab {
            workers: team.workers,
            posts: team.posts,
            counters: team.counters,
            notices: team.notices,
            findings: team.findings,
            pool,
            ends: Vec::new(),
            ports,
            trunks,
            unused: Vec::new(),
            rules,
            books,
            now: Moment::from_secs(1000),
        };
        lab.set_rules(lab.rules.clone());
        for index in 0..lab.ports.len() {
            let (end, far) = cable(setup.cable);
            if lab.trunks[index].is_some() {
                lab.unused.push(end);
            } else {
                let device = wrap(index, end.with_memory(setup.memory));
                lab.open(Gate::new(lab.ports[index], 0, device));
            }
            lab.ends.push(far);
        }
        lab
    }

    /// Sends a command to a worker, which breathes until it has answered.
    pub fn command<T>(&mut self, worker: usize, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, mut answer) = oneshot::channel();
        assert!(self.posts[worker].send(command(reply)));
        loop {
            self.workers[worker].breathe(self.now);
            if let Ok(answer) = answer.try_recv() {
                return answer;
            }
        }
    }

    /// Puts rules in force at all workers.
    pub fn set_rules(&mut self, rules: Arc<Rules>) {
        for worker in 0..self.workers.len() {
            if rules.branches() > 0 {
                self.command(worker, |reply| Command::Room(Room::for_branches(rules.branches()), reply));
            }
            let books: Books = self.books[worker].iter().cloned().map(Some).collect();
            self.command(worker, |reply| Command::Rules(rules.clone(), books, reply));
        }
        self.rules = rules;
    }

    /// Puts changed rules in force at all workers.
    pub fn change_ports(&mut self, change: impl FnOnce(&mut Vec<PortRules>)) {
        self.change_rules(|ports, _| change(ports));
    }

    /// Puts changed rules in force at all workers.
    pub fn change_rules(&mut self, change: impl FnOnce(&mut Vec<PortRules>, &mut Vec<CarrierRules>)) {
        self.change_all(|_, ports, carriers| change(ports, carriers));
    }

    /// Puts changed rules in force at all workers, networks and all.
    pub fn change_all(
        &mut self,
        change: impl FnOnce(&mut Vec<NetworkRules>, &mut Vec<PortRules>, &mut Vec<CarrierRules>),
    ) {
        let rules = self.changed(change);
        self.set_rules(Arc::new(rules));
    }

    fn changed(
        &self,
        change: impl FnOnce(&mut Vec<NetworkRules>, &mut Vec<PortRules>, &mut Vec<CarrierRules>),
    ) -> Rules {
        let mut ports: Vec<_> = self.rules.ports().cloned().collect();
        let mut carriers: Vec<_> = self.rules.carriers().cloned().collect();
        let networks = (0..u16::MAX).map_while(|index| self.rules.network(NetworkId::new(index)).cloned());
        let mut networks = networks.collect();
        change(&mut networks, &mut ports, &mut carriers);
        Rules::compile(Secret::new(SECRET), networks, ports, carriers)
    }

    /// Freezes stations at ports, until the rules are changed for something else.
    pub fn freeze(&mut self, stations: &[(Station, PortId)]) {
        let mut rules = self.changed(|_, _, _| {});
        rules.freeze(stations.iter().copied());
        self.set_rules(Arc::new(rules));
    }

    /// What a loop probe from this port says that is sent now.
    pub fn probe(&self, port: PortId, sequence: u64) -> Probe {
        let rules = self.rules.port(port).unwrap();
        let (network, Owner(owner)) = (rules.network.index() as u16, rules.owner);
        Probe { sent: self.now, sequence, port: port.bits(), network, owner, mac: rules.mac }
    }

    /// Has a loop probe sent out of a port, and says what it looks like without tags.
    pub fn send_probe(&mut self, port: PortId, sequence: u64) -> [u8; Probe::LEN] {
        let bytes = self.probe(port, sequence).write(&PROBE_KEY);
        let worker = self.rules.port(port).unwrap().worker.unwrap();
        let sent = self.command(usize::from(worker), |reply| Command::Probes(vec![(port, bytes)], reply));
        assert_eq!(sent, [(port, bytes)]);
        bytes
    }

    /// What the workers have found out since this was last asked.
    pub fn found(&mut self) -> Vec<Finding> {
        std::iter::from_fn(|| self.findings.try_recv().ok()).collect()
    }

    /// Uplink `active` carries the frames from now on, and `spare` is in standby; both stand in
    /// `Lab::ports`.
    pub fn fail_over(&mut self, active: usize, spare: usize) {
        let (active, spare) = (self.ports[active], self.ports[spare]);
        self.change_rules(|ports, carriers| {
            let worker = carriers.iter().find(|carrier| carrier.id == active).unwrap().worker;
            for carrier in carriers.iter_mut().filter(|carrier| carrier.id == active || carrier.id == spare) {
                carrier.standby = carrier.id == spare;
            }
            for port in ports {
                if let Reach::Carried { carrier, .. } = &mut port.reach
                    && (*carrier == spare || *carrier == active)
                {
                    *carrier = active;
                    port.worker = worker;
                }
            }
        });
    }

    /// The stations that a worker has learned, asked for by mail, a few at a time.
    pub fn stations(&mut self, worker: usize) -> Vec<Learned> {
        let (mut all, mut cursor) = (Vec::new(), Some(0));
        while cursor.is_some() {
            let page = StationsPage { stations: Vec::with_capacity(100), cursor };
            let page = self.command(worker, |reply| Command::Stations(page, reply));
            all.extend(page.stations);
            cursor = page.cursor;
        }
        all
    }

    pub fn open(&mut self, gate: Gate) {
        let own = self.rules.port(gate.port).map(|port| port.worker);
        let worker = own.or_else(|| self.rules.carrier(gate.port).map(|carrier| carrier.worker));
        self.open_at(usize::from(worker.unwrap().unwrap()), gate);
    }

    /// Opens a gate at a worker that need not be the one through which its port is reached.
    pub fn open_at(&mut self, worker: usize, gate: Gate) {
        self.command(worker, |reply| Command::Open(gate, reply)).unwrap();
    }

    pub fn close(&mut self, port: PortId, worker: usize) -> Option<Gate> {
        self.command(worker, |reply| Command::Close(port, 0, reply))
    }

    /// Every worker breathes once. How much they had to do.
    pub fn step(&mut self) -> usize {
        self.workers.iter_mut().map(|worker| worker.breathe(self.now).done).sum()
    }

    /// Breathes until there is nothing to do.
    pub fn settle(&mut self) {
        while self.step() > 0 {}
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Sends a frame from the guest behind `port`. Whether its cable had room.
    pub fn send(&mut self, port: usize, frame: &[u8]) -> bool {
        self.ends[port].send(frame, Offload::NONE)
    }

    /// The port by whose cable the frames of `port` come and go: it or its parent.
    pub fn base(&self, port: usize) -> usize {
        self.trunks[port].map_or(port, |(parent, _)| parent)
    }

    /// The port for which a frame came to the end of `base`: the subport whose tag it has, which is taken off,
    /// or itself.
    pub fn sort_out(&self, base: usize, bytes: &mut Vec<u8>, offload: &mut Offload) -> usize {
        if bytes.get(12..14) != Some(&[0x81, 0x00]) {
            return base;
        }
        let vid = bytes.get(14..16).map(|id| u16::from_be_bytes([id[0] & 0x0f, id[1]]));
        let subport = self.trunks.iter().position(|trunk| trunk.is_some_and(|(of, id)| of == base && vid == Some(id)));
        let Some(subport) = subport else { return base };
        bytes.drain(12..16);
        *offload = offload.without_tag().expect("there was room for it");
        subport
    }

    /// What guests have received, by port: of a trunk, told apart and without tags.
    pub fn sorted(&mut self) -> Vec<Vec<(Vec<u8>, Offload)>> {
        let mut all = vec![Vec::new(); self.ports.len()];
        for base in 0..self.ends.len() {
            while let Some((mut bytes, mut offload)) = self.ends[base].take() {
                all[self.sort_out(base, &mut bytes, &mut offload)].push((bytes, offload));
            }
        }
        all
    }

    /// What the guest behind `port` has to send so that a frame is one of that port: with its tag, if it is a
    /// subport.
    pub fn tagged(&self, port: usize, bytes: &[u8], offload: Offload) -> Option<(Vec<u8>, Offload)> {
        let Some((_, vid)) = self.trunks[port] else { return Some((bytes.to_vec(), offload)) };
        let mut bytes = bytes.to_vec();
        let at = bytes.len().min(12);
        bytes.splice(at..at, [0x81, 0x00, (vid >> 8) as u8, vid as u8]);
        Some((bytes, offload.with_tag()?))
    }

    /// What the guest behind `port` has received.
    pub fn received(&mut self, port: usize) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.ends[port].take()).map(|(frame, _)| frame).collect()
    }

    /// What all guests have received, by port.
    pub fn all_received(&mut self) -> Vec<Vec<Vec<u8>>> {
        (0..self.ends.len()).map(|port| self.received(port)).collect()
    }

    /// How many frames from a port died for this reason.
    pub fn drops_in(&self, port: usize, reason: DropReason) -> u64 {
        self.sum(port, |c| c.drops_in.get(reason))
    }

    /// How many frames for a port died for this reason.
    pub fn drops_out(&self, port: usize, reason: DropReason) -> u64 {
        self.sum(port, |c| c.drops_out.get(reason))
    }

    /// The sum over workers of a counter of a port.
    pub fn sum(&self, port: usize, counter: impl Fn(&PortCounters) -> u64) -> u64 {
        self.books.iter().map(|books| counter(&books[port])).sum()
    }

    /// The sum over workers and ports of a counter.
    pub fn total(&self, counter: impl Fn(&PortCounters) -> u64) -> u64 {
        (0..self.ports.len()).map(|port| self.sum(port, &counter)).sum()
    }

    /// Checks that the ledger balances. Only true when nothing is on its way between workers.
    pub fn check_ledger(&self) {
        for port in 0..self.ports.len() {
            let rx = self.sum(port, |c| c.rx_frames.get());
            let went = self.sum(port, |c| c.forwarded.get() + c.flooded.get() + c.drops_in.total());
            assert_eq!(rx, went, "frames from port {port}");
        }
        let meant = self.total(|c| c.forwarded.get() + c.copies.get() + c.probes.get() + c.announcements.get());
        let went = self.total(|c| c.tx_frames.get() + c.drops_out.total());
        assert_eq!(meant, went, "frames to all ports");
    }

    /// Two readings of all workers, each by itself.
    pub fn audit(&mut self) -> Audit {
        Audit { first: self.readings(), second: self.readings() }
    }

    fn readings(&mut self) -> Vec<Reading> {
        let mut readings = Vec::new();
        for worker in 0..self.workers.len() {
            let reading = Box::new(Reading::with_capacity(self.ports.len()));
            readings.push(*self.command(worker, |reply| Command::Audit(reading, reply)));
        }
        readings
    }

    /// Ends the laboratory and checks that every slot is home.
    pub fn end(self) {
        let pool = self.pool;
        drop(self);
        assert_eq!(pool.free(), pool.slots(), "every slot comes home");
    }
}
