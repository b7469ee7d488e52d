//! An address used at several ports, and the setting that allows it.

use super::Controller;
use crate::control::compile::endpoints::ConfigRef;
use crate::control::loops::topology::Endpoint;
use crate::control::state::events::{Event, EventKind};
use crate::switch::{RefusedSender, SiblingSource};
use crate::time::MonoTime;

impl Controller {
    /// Emits that a port was refused a sibling's address, rate-limited.
    pub(super) fn report_sibling_source(&mut self, SiblingSource { at, station }: SiblingSource, now: MonoTime) {
        let Some(index) = self.ports.iter().position(|port| port.is(at)) else { return };
        let ConfigRef::Port { vm, position, .. } = self.ports[index].endpoint.config_ref else { return };
        let (vm, mac) = (&self.config.vms[vm], station.mac());
        let Some(owner) = vm.ports.iter().position(|port| port.mac == mac).filter(|&owner| owner != position) else {
            return;
        };
        if self.mitigation.sibling_sources.record(at, RefusedSender { mac, ip: None }, now).is_none() {
            return;
        }
        let (port, sibling) = (&vm.ports[position], &vm.ports[owner]);
        let (id, port_id, other) = (&vm.id, &port.port_id, &sibling.port_id);
        let text = format!(
            "port {port_id:?} (#{position}) of VM {id:?} on network {:?} sends frames from {mac}, the address of its sibling \
             {other:?} (#{owner}): they are dropped as spoofed_source; if the guest bonds these ports, set share_mac = true \
             of VM {id:?}, and add {{ mac_address = \"{mac}\" }} to allowed_address_pairs of port {port_id:?}",
            port.network_id,
        );
        let ports = vec![port_id.clone(), other.clone()];
        let event = Event {
            ports,
            mac: Some(mac.to_string()),
            ..self.event_for(&self.names(index), EventKind::SiblingMac, &text)
        };
        self.emit(true, event);
    }
}

/// The setting that allows a station to move between two ports, and its use.
pub(super) fn remedy(a: &Endpoint, b: &Endpoint) -> String {
    match (&a.vm, &b.vm) {
        (Some(vm), Some(other)) if vm == other => {
            format!("; if the guest bonds these ports, set share_mac = true of VM {vm:?}")
        }
        (Some(_), Some(_)) => {
            "; if both are right, list the address in allowed_address_pairs of both ports (VRRP), or set \
                               mac_learning = false of both (HSR ring)"
                .into()
        }
        _ => String::new(),
    }
}
