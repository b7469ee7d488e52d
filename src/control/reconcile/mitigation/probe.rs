//! Loop probes: schedule, and handling of returned ones.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Controller, Mitigation};
use crate::control::compile::endpoints::ConfigRef;
use crate::control::config::Config;
use crate::control::loops::schedule::is_due;
use crate::control::reconcile::{Port, State};
use crate::switch::{MAX_AGE, NetworkId, PortId, ReturnedProbe, VmId};
use crate::time::MonoTime;
use crate::wire::{Mac, Probe, ProbeKey};

/// A port that is probed.
#[derive(Debug)]
pub(super) struct ProbedPort {
    /// Index among the controller's ports.
    index: usize,
    id: PortId,
    mac: Mac,
    owner: VmId,
    network: NetworkId,
    vm: String,
    interval: Duration,
}

/// All probed ports: those of VMs with at least two ports, on any networks. A VM with one port can neither loop nor
/// bridge.
pub(super) fn probed_ports(config: &Config, ports: &[Port]) -> Vec<ProbedPort> {
    let probed = ports.iter().enumerate().filter_map(|(index, port)| {
        let ConfigRef::Port { vm, position, network, network_id, owner } = port.endpoint.config_ref else {
            return None;
        };
        let vm = config.vms.get(vm).filter(|vm| vm.ports.len() > 1)?;
        Some(ProbedPort {
            index,
            id: port.endpoint.id,
            mac: vm.ports.get(position)?.mac,
            owner,
            network: network_id,
            vm: vm.id.clone(),
            interval: Duration::from_secs(u64::from(config.networks.get(network)?.probe_seconds)),
        })
    });
    probed.collect()
}

/// Probes sent recently; any other is not ours.
#[derive(Debug)]
pub(super) struct SentProbes {
    key: ProbeKey,
    next: u64,
    /// Port and time, in order of numbers without gaps.
    recent: VecDeque<(PortId, MonoTime)>,
}

impl SentProbes {
    pub(super) fn new(key: ProbeKey) -> SentProbes {
        SentProbes { key, next: 0, recent: VecDeque::new() }
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
            (Some(from), Some(at)) => self.loops.record_probe(from.clone(), at.clone(), now),
            _ => false,
        }
    }
}

impl Controller {
    /// Sends the probes of this tick.
    pub(super) async fn send_probes(&mut self, now: MonoTime) {
        let Mitigation { probed, loops, sent, ticks, monitor, .. } = &mut self.mitigation;
        let mut probes = Vec::new();
        // Result for the last VM: ports of one VM are contiguous.
        let mut last: Option<(&str, bool)> = None;
        for (place, port) in probed.iter().enumerate() {
            let suspected = match last {
                Some((vm, suspected)) if vm == port.vm => suspected,
                _ => loops.is_active(&port.vm, now) || monitor.storms(port.owner),
            };
            last = Some((&port.vm, suspected));
            if !is_due(*ticks, place, port.interval, suspected) || !has_link(&self.ports, port.index) {
                continue;
            }
            if self.forwarding.probe_egress(port.id).is_err() {
                continue;
            }
            let (mac, owner) = (port.mac, port.owner.0);
            #[allow(clippy::cast_possible_truncation)] // there are fewer
            let network = port.network.index() as u16;
            let sequence = sent.send(port.id, now);
            let probe = Probe { sent: now, sequence, port: port.id.bits(), network, vm: owner, mac };
            probes.push((port.id, probe.write(&sent.key)));
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
    use super::*;

    #[test]
    fn only_recently_sent_probes_are_accepted() {
        let at = |millis| MonoTime::from_secs(100) + Duration::from_millis(millis);
        let mut sent = SentProbes::new(ProbeKey::new([1; 16]));
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
