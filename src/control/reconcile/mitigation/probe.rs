//! Loop probes: schedule, and handling of returned ones, and of those of other hosts.
//!
//! A VM with one port can loop only together with something outside: then stations flap between the port and an uplink,
//! or another port, or the port storms. Such a *suspect* is probed as well, for a while. With a key that hosts share
//! (`probe_key`), other hosts recognise the probes. Of a probe of another host, received at a port of the same network,
//! this host derives a loop if it has an uplink on the network, and either host suspects its port. It suspects its own
//! port then, so that the other host receives probes as well.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::{Controller, Mitigation};
use crate::control::compile::endpoints::ConfigRef;
use crate::control::config::Config;
use crate::control::loops::schedule::is_due;
use crate::control::loops::topology::Endpoint;
use crate::control::reconcile::startup::ProbeIdentity;
use crate::control::reconcile::{Port, State};
use crate::switch::{FlapEvent, MAX_AGE, NetworkId, PortId, ReceivedHostProbe, ReturnedProbe, VmId};
use crate::time::{self, MonoTime};
use crate::wire::{HEADER_LEN, HostKey, HostProbe, MAX_HOST_NAME, MAX_PORT_NAME, Mac, Probe, ProbeFrame, ProbeName};

/// Time for which a port is suspect after its last flap.
const SUSPECT_TIME: Duration = Duration::from_secs(30);

/// Difference of the wall clock from the one that workers know, in milliseconds, from which they are told.
const CLOCK_STEP: u64 = 1000;

/// A port that is probed.
#[derive(Debug)]
pub(super) struct ProbedPort {
    /// Index among the controller's ports.
    index: usize,
    id: PortId,
    mac: Mac,
    owner: VmId,
    network: NetworkId,
    /// The same with its names.
    end: Arc<Endpoint>,
    /// Its VM has no other port: it is probed only while it is suspect.
    is_single: bool,
    interval: Duration,
    /// As other hosts know it; `None` if they do not recognise its probes.
    shared: Option<Box<SharedPort>>,
}

/// A port as probes name it to other hosts.
#[derive(Debug)]
struct SharedPort {
    key: HostKey,
    /// Digest of the network's id.
    network: u64,
    host: ProbeName<MAX_HOST_NAME>,
    vm: ProbeName<MAX_PORT_NAME>,
    port: ProbeName<MAX_PORT_NAME>,
}

/// All ports of VMs.
pub(super) fn probed_ports(
    config: &Config,
    ports: &[Port],
    endpoints: &HashMap<PortId, Arc<Endpoint>>,
    sent: &SentProbes,
) -> Vec<ProbedPort> {
    let mut probed = Vec::with_capacity(ports.len());
    probed.extend(ports.iter().enumerate().filter_map(|(index, port)| {
        let ConfigRef::Port { vm, position, network, network_id, owner } = port.endpoint.config_ref else {
            return None;
        };
        let (vm, network) = (config.vms.get(vm)?, config.networks.get(network)?);
        let settings = vm.ports.get(position)?;
        // A network with a tiny MTU has no room for the names.
        let fits = usize::from(network.mtu) + HEADER_LEN >= HostProbe::MAX_LEN;
        let shared = |key: HostKey| SharedPort {
            key,
            network: key.digest(&network.id),
            host: ProbeName::new(&sent.identity.host),
            vm: ProbeName::new(&vm.id),
            port: ProbeName::new(&settings.port_id),
        };
        let shared = sent.identity.keys.shared.filter(|_| fits).map(|key| shared(key).into());
        Some(ProbedPort {
            index,
            id: port.endpoint.id,
            mac: settings.mac,
            owner,
            network: network_id,
            end: endpoints.get(&port.endpoint.id)?.clone(),
            is_single: vm.ports.len() == 1,
            interval: Duration::from_secs(u64::from(network.probe_seconds)),
            shared,
        })
    }));
    probed
}

impl ProbedPort {
    /// The frame of a probe.
    fn frame(&self, probe: &Probe, sent: &SentProbes, (is_quarantined, is_suspect): (bool, bool)) -> ProbeFrame {
        let Some(shared) = &self.shared else { return probe.write(&sent.identity.keys.own).into() };
        let SharedPort { key, network, host, vm, port } = **shared;
        let wall_millis = time::unix_millis(time::wall());
        let probe =
            HostProbe { probe: *probe, start: 0, wall_millis, network, is_quarantined, is_suspect, host, vm, port };
        probe.write(&key)
    }
}

/// Ports that may be in a loop with something outside of their VM.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    ports: HashMap<PortId, Suspicion>,
}

#[derive(Debug, Clone, Copy)]
struct Suspicion {
    until: MonoTime,
    /// An uplink has a part in it: for other hosts a reason to act.
    by_uplink: bool,
}

impl Suspects {
    fn add(&mut self, port: PortId, by_uplink: bool, now: MonoTime) {
        let before = self.get(port, now).is_some_and(|before| before.by_uplink);
        self.ports.insert(port, Suspicion { until: now + SUSPECT_TIME, by_uplink: by_uplink || before });
    }

    fn get(&self, port: PortId, now: MonoTime) -> Option<Suspicion> {
        self.ports.get(&port).copied().filter(|suspicion| now < suspicion.until)
    }

    /// Removes the state of removed ports.
    pub(super) fn retain(&mut self, is_there: impl Fn(PortId) -> bool) {
        self.ports.retain(|&id, _| is_there(id));
    }
}

/// Probes sent recently; any other is not ours.
#[derive(Debug)]
pub(super) struct SentProbes {
    identity: ProbeIdentity,
    next: u64,
    /// Port and time, in order of numbers without gaps.
    recent: VecDeque<(PortId, MonoTime)>,
}

impl SentProbes {
    pub(super) fn new(identity: ProbeIdentity) -> SentProbes {
        SentProbes { identity, next: 0, recent: VecDeque::new() }
    }

    /// Name of this host.
    pub(super) fn host(&self) -> &str {
        &self.identity.host
    }

    /// When the host booted, in milliseconds since 1970: what workers know of it, unless the wall clock has been set. 0 if
    /// they need not know.
    pub(super) fn boot_millis(&self, known: u64) -> u64 {
        if self.identity.keys.shared.is_none() {
            return 0;
        }
        let boot = time::unix_millis(time::wall()).saturating_sub(time::now().nanos() / 1_000_000);
        if boot.abs_diff(known) < CLOCK_STEP { known } else { boot }
    }

    /// Records the next probe, sent by this port. Returns its number.
    fn send(&mut self, port: PortId, now: MonoTime) -> u64 {
        while self.recent.front().is_some_and(|&(_, sent)| now.since(sent) > MAX_AGE) {
            self.recent.pop_front();
        }
        self.recent.push_back((port, now));
        self.next += 1;
        self.next - 1
    }

    /// The port that sent a probe, if it did so recently.
    fn find(&self, probe: &Probe, now: MonoTime) -> Option<PortId> {
        let first = self.next - self.recent.len() as u64;
        let place = usize::try_from(probe.sequence.checked_sub(first)?).ok()?;
        let &(port, sent) = self.recent.get(place)?;
        (port.bits() == probe.port && now.since(sent) <= MAX_AGE).then_some(port)
    }
}

impl Mitigation {
    /// Records a returned probe. Returns whether it is news.
    pub(super) fn receive_probe(&mut self, returned_probe: ReturnedProbe, now: MonoTime) -> bool {
        let Some(from) = self.sent.find(&returned_probe.probe, now) else { return false };
        // A port may have been detached meanwhile.
        match (self.endpoints.get(&from), self.endpoints.get(&returned_probe.at)) {
            (Some(from), Some(at)) => self.loops.record_probe(Endpoint::clone(from), Endpoint::clone(at), now),
            _ => false,
        }
    }

    /// A station flaps between two ports: those of VMs are suspect.
    pub(super) fn suspect_ports_of(&mut self, flap: &FlapEvent, now: MonoTime) {
        let ends = [flap.from, flap.to].map(|id| (id, self.endpoints.get(&id)));
        let by_uplink = ends.iter().any(|(_, end)| end.is_some_and(|end| end.vm.is_none()));
        for (id, _) in ends.iter().filter(|(_, end)| end.is_some_and(|end| end.vm.is_some())) {
            self.suspects.add(*id, by_uplink, now);
        }
    }

    /// Handles the probes of other hosts that workers have received. Returns whether any is news.
    pub(super) fn receive_host_probes(&mut self, now: MonoTime) -> bool {
        let mut is_new = false;
        while let Some(received) = self.events.host_probe() {
            is_new |= self.receive_host_probe(&received, now);
        }
        is_new
    }

    fn receive_host_probe(&mut self, received: &ReceivedHostProbe, now: MonoTime) -> bool {
        let ReceivedHostProbe { at, probe } = received;
        let Some(here) = self.endpoints.get(at).filter(|end| end.vm.is_some()) else { return false };
        let is_same_network =
            self.sent.identity.keys.shared.is_some_and(|key| key.digest(&here.network) == probe.network);
        // Without uplinks, a connection by VMs is the only one, and none that is to be cut.
        if !is_same_network || !self.with_uplink.contains(&here.network) {
            return false;
        }
        let is_suspect = self.suspects.get(*at, now).is_some_and(|suspicion| suspicion.by_uplink);
        if !probe.is_suspect && !is_suspect && !self.loops.is_cross_host(here) {
            return false;
        }
        let there = Endpoint {
            vm: Some(probe.vm.as_str().to_owned()),
            network: here.network.clone(),
            port: probe.port.as_str().to_owned(),
            host: Some(probe.host.as_str().to_owned()),
        };
        let here = Endpoint::clone(here);
        self.suspects.add(*at, true, now);
        self.loops.record_host_probe(there, here, probe.is_quarantined, now)
    }

    /// Whether to tell other hosts that frames seem to circulate through a port.
    fn is_suspect_to_others(&self, port: &ProbedPort, now: MonoTime) -> bool {
        let end = &*port.end;
        let storms = self.refused.contains_key(end) && self.with_uplink.contains(&end.network);
        let flaps = self.suspects.get(port.id, now).is_some_and(|suspicion| suspicion.by_uplink);
        storms || flaps || self.loops.is_cross_host(end)
    }
}

impl Controller {
    /// Sends the probes of this tick.
    pub(super) async fn send_probes(&mut self, now: MonoTime) {
        let mut probes = Vec::new();
        // Result for the last VM: ports of one VM are contiguous.
        let mut last: Option<(VmId, bool)> = None;
        let mut due = Vec::new();
        let Mitigation { probed, loops, ticks, monitor, suspects, with_uplink, .. } = &self.mitigation;
        for (place, port) in probed.iter().enumerate() {
            let vm = port.end.vm.as_deref().unwrap_or_default();
            let vm_suspected = match last {
                Some((vm, suspected)) if vm == port.owner => suspected,
                _ => loops.is_active(vm, now) || monitor.storms(port.owner),
            };
            last = Some((port.owner, vm_suspected));
            let (mut suspected, mut is_probed) = (suspects.get(port.id, now).is_some(), true);
            if port.is_single {
                let is_in_loop = loops.is_suspect(vm, &port.end.network);
                let is_outside = with_uplink.contains(&port.end.network);
                suspected |= vm_suspected && (is_in_loop || is_outside);
                is_probed = suspected || is_in_loop;
            } else {
                suspected |= vm_suspected;
            }
            if !is_probed {
                continue;
            }
            if !is_due(*ticks, place, port.interval, suspected) || !has_link(&self.ports, port.index) {
                continue;
            }
            if self.forwarding.probe_egress(port.id).is_ok() {
                due.push(place);
            }
        }
        for place in due {
            let port = &self.mitigation.probed[place];
            let flags = (self.mitigation.is_quarantined(port.id), self.mitigation.is_suspect_to_others(port, now));
            let (id, mac, owner) = (port.id, port.mac, port.owner.0);
            #[allow(clippy::cast_possible_truncation)] // there are fewer
            let network = port.network.index() as u16;
            let sequence = self.mitigation.sent.send(id, now);
            let probe = Probe { sent: now, sequence, port: id.bits(), network, vm: owner, mac };
            probes.push((id, self.mitigation.probed[place].frame(&probe, &self.mitigation.sent, flags)));
        }
        if !probes.is_empty() {
            self.workers.probe(&self.forwarding, probes.into_iter()).await;
        }
    }
}

/// Whether a port has a device whose link is not known to be dead: on a dead link a probe would only be dropped.
fn has_link(ports: &[Port], index: usize) -> bool {
    let Some(port) = ports.get(index) else { return false };
    let device_port = port.endpoint.parent().and_then(|parent| ports.get(parent)).unwrap_or(port);
    matches!(device_port.state, State::Up { .. }) && device_port.dead_link().is_none()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::frame::Pool;
    use crate::switch::{HashKey, Station};
    use crate::wire::{ProbeKey, ProbeKeys};
    use crate::worker::{WorkerSetSettings, worker_set};

    const KEY: HostKey = HostKey::new([9; 16], 1);

    /// A port of a VM on network "n", and an uplink.
    const PORT: PortId = PortId::new(0, 1);
    const UPLINK: PortId = PortId::new(1, 1);

    /// The state of a host with both, and with the key of other hosts.
    fn mitigation() -> Mitigation {
        let keys = ProbeKeys { own: ProbeKey::new([1; 16]), shared: Some(KEY) };
        let pool = Pool::new(64).unwrap();
        let hash_key = HashKey::new([7; 16]);
        let settings = WorkerSetSettings { workers: 1, pool, fdb_capacity: 64, hash_key, probe_keys: keys };
        let identity = ProbeIdentity { keys, host: "h0".into() };
        let mut mitigation = Mitigation::new(identity, worker_set(settings).unwrap().events);
        for (id, vm, port) in [(PORT, Some("v"), "p"), (UPLINK, None, "up")] {
            let end = Endpoint { vm: vm.map(str::to_owned), network: "n".into(), port: port.into(), host: None };
            mitigation.endpoints.insert(id, Arc::new(end));
        }
        mitigation.with_uplink.insert("n".into());
        mitigation
    }

    fn flap(from: PortId, to: PortId) -> FlapEvent {
        FlapEvent { station: Station::new(NetworkId::new(0), Mac::ZERO), from, to, origin: from }
    }

    fn probe_of_host(network: &str, is_suspect: bool) -> HostProbe {
        let probe = Probe { sent: MonoTime::from_secs(1), sequence: 0, port: 5, network: 0, vm: 0, mac: Mac::ZERO };
        let (host, vm, port) = (ProbeName::new("h1"), ProbeName::new("v"), ProbeName::new("p-1"));
        let network = KEY.digest(network);
        HostProbe { probe, start: 2, wall_millis: 0, network, is_quarantined: false, is_suspect, host, vm, port }
    }

    /// A probe of another host shows a loop only where the network is the same and has an uplink, and one of the hosts suspects
    /// its port: frames circulate, and an uplink has a part in it.
    #[test]
    fn a_probe_of_another_host_is_a_loop_if_frames_circulate_over_uplinks() {
        let now = MonoTime::from_secs(100);
        for (network, has_uplink, says_so, flapped, is_loop) in [
            ("n", true, true, None, true),
            ("n", true, false, Some(UPLINK), true),
            ("n", true, false, None, false),
            // Between ports of this host: the other one has no part in it.
            ("n", true, false, Some(PORT), false),
            ("m", true, true, Some(UPLINK), false),
            ("n", false, true, Some(UPLINK), false),
        ] {
            let mut mitigation = mitigation();
            if !has_uplink {
                mitigation.with_uplink.clear();
            }
            if let Some(other) = flapped {
                mitigation.suspect_ports_of(&flap(PORT, other), now);
            }
            let received = ReceivedHostProbe { at: PORT, probe: probe_of_host(network, says_so) };
            let case = format!("{network} {has_uplink} {says_so} {flapped:?}");
            assert_eq!(mitigation.receive_host_probe(&received, now), is_loop, "{case}");
            let by_uplink =
                |mitigation: &Mitigation, now| mitigation.suspects.get(PORT, now).is_some_and(|of| of.by_uplink);
            // Its own port is probed then, so that the other host learns of it, too.
            assert!(!is_loop || by_uplink(&mitigation, now), "{case}");
            assert!(!by_uplink(&mitigation, now + SUSPECT_TIME), "{case}: for a while");
            assert!(mitigation.suspects.get(UPLINK, now).is_none(), "{case}: an uplink is not probed");
        }
    }

    #[test]
    fn only_recently_sent_probes_are_accepted() {
        let at = |millis| MonoTime::from_secs(100) + Duration::from_millis(millis);
        let mut sent = SentProbes::new(ProbeKey::new([1; 16]).into());
        let port = |index| PortId::new(index, 3);
        let probe = |sequence, port: PortId| Probe {
            sent: at(0),
            sequence,
            port: port.bits(),
            network: 0,
            vm: 0,
            mac: Mac::ZERO,
        };
        assert_eq!(sent.find(&probe(0, port(1)), at(0)), None, "no probe was sent");
        for number in 0..100u16 {
            assert_eq!(sent.send(port(number), at(u64::from(number) * 100)), u64::from(number));
        }
        let now = at(9900);
        for number in 0..100u16 {
            let found = sent.find(&probe(u64::from(number), port(number)), now);
            assert_eq!(found, (number >= 69).then_some(port(number)), "{number}");
        }
        assert_eq!(sent.find(&probe(99, port(98)), now), None, "out of another port");
        assert_eq!(sent.find(&probe(100, port(100)), now), None);
        assert_eq!(sent.find(&probe(u64::MAX, port(1)), now), None);
        assert!(sent.recent.len() <= 32);
    }
}
