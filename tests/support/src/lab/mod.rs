//! Lab: workers stepped by hand over loopback devices, with a simulated clock. Needs no threads and nothing of the
//! host.

pub mod stream;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use vifswitch::device::Device;
use vifswitch::device::loopback::{Loopback, LoopbackCapacity, RxMemory, loopback};
use vifswitch::frame::Pool;
use vifswitch::switch::{
    Attachment, DropReason, FdbEntry, ForwardingConfig, HashKey, Limits, MacLimit, NetworkConfig, NetworkId,
    PortConfig, PortId, ReservedMask, Security, Station, TrunkConfig, VmId,
};
use vifswitch::telemetry::audit::{Audit, Snapshot};
use vifswitch::telemetry::{PortCounters, WorkerCounters};
use vifswitch::time::MonoTime;
use vifswitch::wire::{Mac, Offload, Probe, ProbeKey, Vid};
use vifswitch::worker::{
    Command, DeviceGone, EventReceiver, FdbPage, Mailbox, PortCounterTable, RxQueue, SubportTable, Worker, WorkerEvent,
    WorkerSetSettings, worker_set,
};

/// Hash key of every lab: runs are reproducible.
pub const HASH_KEY: [u8; 16] = [7; 16];

/// Key of its loop probes.
pub const PROBE_KEY: ProbeKey = ProbeKey::new([9; 16]);

/// A port of the lab: network, owner, port security, …
#[derive(Debug, Clone)]
pub struct PortSpec {
    pub network: u16,
    pub owner: u32,
    pub security: Security,
    pub admin_up: bool,
    /// Parent and VLAN id of a subport, which has no device of its own.
    pub trunk: Option<(usize, u16)>,
    pub unknown_unicast: bool,
    pub promiscuous: bool,
    pub mac_limit: Option<MacLimit>,
    pub mac_sharing: bool,
    /// Loop mitigation.
    pub quarantined: bool,
    pub split_horizon: bool,
}

impl PortSpec {
    pub fn new(network: u16, owner: u32) -> PortSpec {
        PortSpec {
            network,
            owner,
            security: Security::Off,
            admin_up: true,
            unknown_unicast: true,
            promiscuous: false,
            mac_limit: None,
            mac_sharing: false,
            quarantined: false,
            split_horizon: false,
            trunk: None,
        }
    }

    /// The same, as a subport of the port at `parent`, tagged with `vid`.
    pub fn subport_of(self, parent: usize, vid: u16) -> PortSpec {
        PortSpec { trunk: Some((parent, vid)), ..self }
    }
}

/// An uplink of the lab: VLAN id of each network on it, 0 for untagged.
#[derive(Debug, Clone)]
pub struct UplinkSpec {
    pub networks: Vec<(u16, u16)>,
    /// It is the backup of the uplink of this number, and shares its ports.
    pub backup_of: Option<usize>,
}

impl UplinkSpec {
    /// With these VLAN ids and networks.
    pub fn new(networks: &[(u16, u16)]) -> UplinkSpec {
        UplinkSpec { networks: networks.to_vec(), backup_of: None }
    }
}

/// Port id of an uplink on a network; these ports have no entry in `Lab::ports`.
pub fn uplink_port(wire: usize, network: u16) -> PortId {
    PortId::new(1000 + wire as u16 * 64 + network, 0)
}

/// Address of the port at `index`.
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
    pub capacity: LoopbackCapacity,
    pub memory: RxMemory,
    pub limits: Limits,
    pub mtu: u16,
    /// Of all networks.
    pub reserved: ReservedMask,
    /// Every chunk of the loopback devices was used once: so it has its memory.
    pub warm: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            workers: 1,
            slots: 2048,
            stations: 4096,
            // Few bursts: memory of devices is zeroed for each case of a test.
            capacity: LoopbackCapacity { blocks: 64, ..LoopbackCapacity::default() },
            memory: RxMemory::Owned,
            limits: Limits::default(),
            mtu: 1500,
            reserved: ReservedMask::VM_DEFAULT,
            warm: false,
        }
    }
}

pub struct Lab {
    pub workers: Vec<Worker>,
    pub mailboxes: Vec<Mailbox>,
    /// Counters of the workers.
    pub counters: Vec<Arc<WorkerCounters>>,
    /// Device notices of the workers.
    pub notices: mpsc::Receiver<DeviceGone>,
    /// Events of the workers.
    pub events: EventReceiver,
    pub pool: &'static Pool,
    /// The guests' ends of the loopback devices, by port.
    pub ends: Vec<Loopback>,
    pub ports: Vec<PortId>,
    /// By port: parent and VLAN id of subports.
    pub trunks: Vec<Option<(usize, u16)>>,
    /// Unpolled ends of subports' loopback devices.
    unused: Vec<Loopback>,
    pub config: Arc<ForwardingConfig>,
    /// By worker and port.
    pub port_counters: Vec<Vec<Arc<PortCounters>>>,
    pub now: MonoTime,
}

impl Lab {
    pub fn new(setup: Setup, port_specs: &[PortSpec]) -> Lab {
        Lab::with_uplinks(setup, port_specs, &[])
    }

    /// Uplinks follow the other ports, in `ends` and in `port_counters`.
    pub fn with_uplinks(setup: Setup, port_specs: &[PortSpec], uplink_specs: &[UplinkSpec]) -> Lab {
        Lab::build(setup, port_specs, uplink_specs, |_, end| Box::new(end))
    }

    /// Assigns ports to workers round-robin. `wrap` may wrap each device.
    pub fn with_devices(
        setup: Setup,
        port_specs: &[PortSpec],
        wrap: impl FnMut(usize, Loopback) -> Box<dyn Device>,
    ) -> Lab {
        Lab::build(setup, port_specs, &[], wrap)
    }

    /// With all settings.
    pub fn build(
        setup: Setup,
        port_specs: &[PortSpec],
        uplink_specs: &[UplinkSpec],
        mut wrap: impl FnMut(usize, Loopback) -> Box<dyn Device>,
    ) -> Lab {
        let pool = Pool::new(setup.slots).unwrap();
        let hash_key = HashKey::new(HASH_KEY);
        let worker_set = worker_set(WorkerSetSettings {
            workers: setup.workers,
            pool,
            fdb_capacity: setup.stations,
            hash_key,
            probe_keys: PROBE_KEY.into(),
        })
        .unwrap();
        let wired = uplink_specs.iter().flat_map(|wire| &wire.networks).map(|&(_, network)| network);
        let networks = port_specs.iter().map(|spec| spec.network).chain(wired).max().map_or(0, |most| most + 1);
        let networks = (0..networks).map(|index| NetworkConfig {
            id: NetworkId::new(index),
            mtu: setup.mtu,
            ageing: 300,
            limits: setup.limits,
            anti_spoof: true,
            reserved: setup.reserved,
        });
        let ports: Vec<_> =
            (0..port_specs.len() + uplink_specs.len()).map(|index| PortId::new(index as u16, 0)).collect();
        let trunks: Vec<_> =
            port_specs.iter().map(|spec| spec.trunk).chain(uplink_specs.iter().map(|_| None)).collect();
        let subports = |parent: usize| {
            let all = trunks.iter().zip(&ports);
            all.filter_map(move |(trunk, &id)| trunk.filter(|of| of.0 == parent).map(|of| (Vid::new(of.1), id)))
        };
        let base = |id: PortId| trunks[id.index()].map_or(id, |(parent, _)| ports[parent]);
        let worker = |id: PortId| Some(base(id).index() as u16 % setup.workers);
        let attachment = |id: PortId| match trunks[id.index()] {
            Some((parent, vid)) => Attachment::Tagged { trunk: ports[parent], vlan: Vid::new(vid) },
            None if subports(id.index()).next().is_some() => Attachment::Tagged { trunk: id, vlan: None },
            None => Attachment::Own,
        };
        let vifs = port_specs.iter().zip(&ports).map(|(spec, &id)| PortConfig {
            security: spec.security.clone(),
            admin_up: spec.admin_up,
            worker: worker(id),
            attachment: attachment(id),
            unknown_unicast: spec.unknown_unicast,
            promiscuous: spec.promiscuous,
            mac_limit: spec.mac_limit,
            quarantined: spec.quarantined,
            sibling_split_horizon: spec.split_horizon,
            mac_sharing: spec.mac_sharing,
            ..PortConfig::vif(id, NetworkId::new(spec.network), VmId(spec.owner), mac(id.index()))
        });
        let (mut config, mut all_trunks) = (vifs.collect::<Vec<_>>(), Vec::new());
        for (parent, spec) in port_specs.iter().enumerate().filter(|(parent, _)| subports(*parent).next().is_some()) {
            let all = std::iter::once((None, ports[parent])).chain(subports(parent)).collect();
            let (id, admin_up) = (ports[parent], spec.admin_up);
            all_trunks.push(TrunkConfig { id, admin_up, worker: worker(id), backup: false, ports: all });
        }
        for (number, uplink) in uplink_specs.iter().enumerate() {
            let id = ports[port_specs.len() + number];
            let shared = uplink.backup_of.unwrap_or(number);
            let places = uplink.networks.iter().map(|&(vid, network)| (Vid::new(vid), uplink_port(shared, network)));
            let places: Vec<_> = places.collect();
            let uplinks = uplink.networks.iter().zip(&places).map(|(&(_, network), &(vlan, port))| PortConfig {
                worker: worker(id),
                ..PortConfig::uplink(port, NetworkId::new(network), VmId(u32::MAX), id, vlan)
            });
            if uplink.backup_of.is_none() {
                config.extend(uplinks);
            }
            let backup = uplink.backup_of.is_some();
            all_trunks.push(TrunkConfig { id, admin_up: true, worker: worker(id), backup, ports: places });
        }
        let config = Arc::new(ForwardingConfig::compile(hash_key, networks.collect(), config, all_trunks));
        let port_counters = (0..setup.workers).map(|_| ports.iter().map(|_| Arc::default()).collect()).collect();
        let mut lab = Lab {
            workers: worker_set.workers,
            mailboxes: worker_set.mailboxes,
            counters: worker_set.counters,
            notices: worker_set.notices,
            events: worker_set.events,
            pool,
            ends: Vec::new(),
            ports,
            trunks,
            unused: Vec::new(),
            config,
            port_counters,
            now: MonoTime::from_secs(1000),
        };
        lab.set_config(lab.config.clone());
        for index in 0..lab.ports.len() {
            let (mut end, mut far) = loopback(setup.capacity);
            for _ in 0..if setup.warm { setup.capacity.blocks } else { 0 } {
                assert!(end.send(&[], Offload::NONE) && far.send(&[], Offload::NONE));
                end.discard();
                far.discard();
            }
            if lab.trunks[index].is_some() {
                lab.unused.push(end);
            } else {
                let device = wrap(index, end.with_memory(setup.memory));
                lab.open(RxQueue::new(lab.ports[index], 0, device));
            }
            lab.ends.push(far);
        }
        lab
    }

    /// Sends a command to a worker and polls it until it replies.
    pub fn command<T>(&mut self, worker: usize, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, mut answer) = oneshot::channel();
        assert!(self.mailboxes[worker].send(command(reply)));
        loop {
            self.workers[worker].poll_once(self.now);
            if let Ok(answer) = answer.try_recv() {
                return answer;
            }
        }
    }

    /// Applies a forwarding configuration at all workers.
    pub fn set_config(&mut self, config: Arc<ForwardingConfig>) {
        for worker in 0..self.workers.len() {
            if config.subports() > 0 {
                self.command(worker, |reply| Command::Subports(SubportTable::with_capacity(config.subports()), reply));
            }
            let port_counters: PortCounterTable = self.port_counters[worker].iter().cloned().map(Some).collect();
            self.command(worker, |reply| Command::Config(config.clone(), port_counters, reply));
        }
        self.config = config;
    }

    /// Applies changed ports at all workers.
    pub fn change_ports(&mut self, change: impl FnOnce(&mut Vec<PortConfig>)) {
        self.change_config(|ports, _| change(ports));
    }

    /// Applies changed ports and trunks at all workers.
    pub fn change_config(&mut self, change: impl FnOnce(&mut Vec<PortConfig>, &mut Vec<TrunkConfig>)) {
        self.change_all(|_, ports, trunks| change(ports, trunks));
    }

    /// Applies changed networks, ports and trunks at all workers.
    pub fn change_all(
        &mut self,
        change: impl FnOnce(&mut Vec<NetworkConfig>, &mut Vec<PortConfig>, &mut Vec<TrunkConfig>),
    ) {
        let config = self.changed(change);
        self.set_config(Arc::new(config));
    }

    fn changed(
        &self,
        change: impl FnOnce(&mut Vec<NetworkConfig>, &mut Vec<PortConfig>, &mut Vec<TrunkConfig>),
    ) -> ForwardingConfig {
        let mut ports: Vec<_> = self.config.ports().cloned().collect();
        let mut trunks: Vec<_> = self.config.trunks().cloned().collect();
        let networks = (0..u16::MAX).map_while(|index| self.config.network(NetworkId::new(index)).cloned());
        let mut networks = networks.collect();
        change(&mut networks, &mut ports, &mut trunks);
        ForwardingConfig::compile(HashKey::new(HASH_KEY), networks, ports, trunks)
    }

    /// Dampens stations at ports, until the next change of the configuration.
    pub fn dampen(&mut self, stations: &[(Station, PortId)]) {
        let mut config = self.changed(|_, _, _| {});
        config.dampen(stations.iter().copied());
        self.set_config(Arc::new(config));
    }

    /// A loop probe of this port, sent now.
    pub fn probe(&self, port: PortId, sequence: u64) -> Probe {
        let config = self.config.port(port).unwrap();
        let (network, VmId(vm)) = (config.network.index() as u16, config.vm);
        Probe { sent: self.now, sequence, port: port.bits(), network, vm, mac: config.mac }
    }

    /// Sends a loop probe out of a port. Returns its bytes without tags.
    pub fn send_probe(&mut self, port: PortId, sequence: u64) -> [u8; Probe::LEN] {
        let bytes = self.probe(port, sequence).write(&PROBE_KEY);
        let worker = self.config.port(port).unwrap().worker.unwrap();
        let sent = self.command(usize::from(worker), |reply| Command::Probes(vec![(port, bytes.into())], reply));
        assert_eq!(sent, [(port, bytes.into())]);
        bytes
    }

    /// Events of the workers since the last call.
    pub fn events(&mut self) -> Vec<WorkerEvent> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    /// Makes uplink `active` the active one and `spare` its backup; both are in `Lab::ports`.
    pub fn fail_over(&mut self, active: usize, spare: usize) {
        let (active, spare) = (self.ports[active], self.ports[spare]);
        self.change_config(|ports, trunks| {
            let worker = trunks.iter().find(|trunk| trunk.id == active).unwrap().worker;
            for trunk in trunks.iter_mut().filter(|trunk| trunk.id == active || trunk.id == spare) {
                trunk.backup = trunk.id == spare;
            }
            for port in ports {
                if let Attachment::Tagged { trunk, .. } = &mut port.attachment
                    && (*trunk == spare || *trunk == active)
                {
                    *trunk = active;
                    port.worker = worker;
                }
            }
        });
    }

    /// Stations known to a worker, read page by page.
    pub fn stations(&mut self, worker: usize) -> Vec<FdbEntry> {
        let (mut all, mut cursor) = (Vec::new(), Some(0));
        while cursor.is_some() {
            let page = FdbPage { entries: Vec::with_capacity(100), cursor };
            let page = self.command(worker, |reply| Command::Stations(page, reply));
            all.extend(page.entries);
            cursor = page.cursor;
        }
        all
    }

    pub fn open(&mut self, queue: RxQueue) {
        let own = self.config.port(queue.port).map(|port| port.worker);
        let worker = own.or_else(|| self.config.trunk(queue.port).map(|trunk| trunk.worker));
        self.open_at(usize::from(worker.unwrap().unwrap()), queue);
    }

    /// Opens a queue at a worker that need not be the port's egress worker.
    pub fn open_at(&mut self, worker: usize, queue: RxQueue) {
        self.command(worker, |reply| Command::Open(queue, reply)).unwrap();
    }

    pub fn close(&mut self, port: PortId, worker: usize) -> Option<RxQueue> {
        self.command(worker, |reply| Command::Close(port, 0, reply))
    }

    /// One `poll_once` of every worker. Returns the amount of work.
    pub fn step(&mut self) -> usize {
        self.workers.iter_mut().map(|worker| worker.poll_once(self.now).done).sum()
    }

    /// Polls until there is nothing to do.
    pub fn settle(&mut self) {
        while self.step() > 0 {}
    }

    pub fn advance(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Sends a frame from the guest of `port`. Whether its device had room.
    pub fn send(&mut self, port: usize, frame: &[u8]) -> bool {
        self.ends[port].send(frame, Offload::NONE)
    }

    /// The port whose device `port` uses: itself or its parent.
    pub fn base(&self, port: usize) -> usize {
        self.trunks[port].map_or(port, |(parent, _)| parent)
    }

    /// The port for which a frame arrived at the device of `base`: the subport of its tag, which is removed, or
    /// `base` itself.
    pub fn sort_out(&self, base: usize, bytes: &mut Vec<u8>, offload: &mut Offload) -> usize {
        if bytes.get(12..14) != Some(&[0x81, 0x00]) {
            return base;
        }
        let vid = bytes.get(14..16).map(|id| u16::from_be_bytes([id[0] & 0x0f, id[1]]));
        let subport = self.trunks.iter().position(|trunk| trunk.is_some_and(|(of, id)| of == base && vid == Some(id)));
        let Some(subport) = subport else { return base };
        bytes.drain(12..16);
        *offload = offload.without_tag().expect("the device had room");
        subport
    }

    /// Frames that guests have received, by port; those of a trunk separated and untagged.
    pub fn sorted(&mut self) -> Vec<Vec<(Vec<u8>, Offload)>> {
        let mut all = vec![Vec::new(); self.ports.len()];
        for base in 0..self.ends.len() {
            while let Some((mut bytes, mut offload)) = self.ends[base].take() {
                all[self.sort_out(base, &mut bytes, &mut offload)].push((bytes, offload));
            }
        }
        all
    }

    /// Adds the subport's tag to a frame of `port`.
    pub fn tagged(&self, port: usize, bytes: &[u8], offload: Offload) -> Option<(Vec<u8>, Offload)> {
        let Some((_, vid)) = self.trunks[port] else { return Some((bytes.to_vec(), offload)) };
        let mut bytes = bytes.to_vec();
        let at = bytes.len().min(12);
        bytes.splice(at..at, [0x81, 0x00, (vid >> 8) as u8, vid as u8]);
        Some((bytes, offload.with_tag()?))
    }

    /// Frames that the guest of `port` has received.
    pub fn received(&mut self, port: usize) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.ends[port].take()).map(|(frame, _)| frame).collect()
    }

    /// Frames that all guests have received, by port.
    pub fn all_received(&mut self) -> Vec<Vec<Vec<u8>>> {
        (0..self.ends.len()).map(|port| self.received(port)).collect()
    }

    /// Ingress drops of a port for this reason.
    pub fn drops_in(&self, port: usize, reason: DropReason) -> u64 {
        self.sum(port, |c| c.drops_in.get(reason))
    }

    /// Egress drops of a port for this reason.
    pub fn drops_out(&self, port: usize, reason: DropReason) -> u64 {
        self.sum(port, |c| c.drops_out.get(reason))
    }

    /// Sum over workers of a port's counter.
    pub fn sum(&self, port: usize, counter: impl Fn(&PortCounters) -> u64) -> u64 {
        self.port_counters.iter().map(|port_counters| counter(&port_counters[port])).sum()
    }

    /// Sum over workers and ports of a counter.
    pub fn total(&self, counter: impl Fn(&PortCounters) -> u64) -> u64 {
        (0..self.ports.len()).map(|port| self.sum(port, &counter)).sum()
    }

    /// Checks that the counters balance. Holds only with no frame in flight between workers.
    pub fn check_counters(&self) {
        for port in 0..self.ports.len() {
            let rx = self.sum(port, |c| c.rx_frames.get());
            let went = self.sum(port, |c| c.forwarded.get() + c.flooded.get() + c.drops_in.total());
            assert_eq!(rx, went, "frames from port {port}");
        }
        let expected = self.total(|c| c.forwarded.get() + c.copies.get() + c.probes.get() + c.announcements.get());
        let went = self.total(|c| c.tx_frames.get() + c.drops_out.total());
        assert_eq!(expected, went, "frames to all ports");
    }

    /// An audit: two readings of all workers, each at its own time.
    pub fn audit(&mut self) -> Audit {
        Audit { first: self.snapshots(), second: self.snapshots() }
    }

    fn snapshots(&mut self) -> Vec<Snapshot> {
        let mut readings = Vec::new();
        for worker in 0..self.workers.len() {
            let reading = Box::new(Snapshot::with_capacity(self.ports.len()));
            readings.push(*self.command(worker, |reply| Command::Audit(reading, reply)));
        }
        readings
    }

    /// Ends the lab and checks that every slot is free.
    pub fn end(self) {
        let pool = self.pool;
        drop(self);
        assert_eq!(pool.free(), pool.slots(), "every slot is freed");
    }
}
