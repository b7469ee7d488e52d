//! Events of loops, storms and dampened stations: one per transition.

use std::net::IpAddr;

use super::monitor::{DisabledPort, StormKind, StormSource};
use super::persist::clocks;
use super::siblings::remedy;
use super::{Controller, Mitigation};
use crate::control::compile::endpoints::{ConfigRef, Labels};
use crate::control::config::{Port, StormAction, StormLimit};
use crate::control::loops::dampening::DampenedMac;
use crate::control::loops::describe::{bridging, list, measures, span, summary, view, what};
use crate::control::loops::spoof_reports::{EVERY, Report};
use crate::control::loops::status::StormStatus;
use crate::control::loops::table::{EndedLoop, Loop, LoopEvent};
use crate::control::loops::topology::Endpoint;
use crate::control::state::events::{Event, EventKind};
use crate::switch::{RefusedSender, SpoofedIp, Station, StormClass};
use crate::time::MonoTime;
use crate::wire::Prefix;

impl Controller {
    /// Emits an event of a loop.
    pub(super) fn emit_loop_event(&mut self, events: LoopEvent) {
        let topology = &self.mitigation.topology;
        let find = |key| self.mitigation.loops.find(key);
        match events {
            LoopEvent::Started(key) => {
                self.mitigation.counts.loops += 1;
                let Some(of) = self.mitigation.loops.find(&key) else { return };
                let text = summary(of, None, &self.mitigation.topology, clocks());
                self.emit_loop(EventKind::LoopStart, &of.clone(), None, text);
            }
            LoopEvent::Escalated(key, level) => {
                let Some(of) = find(&key) else { return };
                let (what, now) = (what(of, topology), measures(of, topology));
                let text = format!("{what}; the loop persists; level {}: {now}", level.number());
                self.emit_loop(EventKind::LoopLevel, &of.clone(), None, text);
            }
            LoopEvent::Extended(key, time) => {
                let Some(of) = find(&key) else { return };
                let (what, level, now) = (what(of, topology), of.escalation.level.number(), measures(of, topology));
                let text = format!("{what}; the loop persists; level {level} extended by {}: {now}", span(time));
                self.emit_loop(EventKind::LoopLevel, &of.clone(), None, text);
            }
            LoopEvent::Cleared(_) => {}
            LoopEvent::Stopped(over) => {
                let text = summary(&over.loop_state, Some(&over), topology, clocks());
                self.emit_loop(EventKind::LoopStop, &over.loop_state, Some(&over), text);
            }
            LoopEvent::NetworksBridged(pair) => {
                let (a, b) = &pair;
                let text = format!("{}; no loop unless another VM bridges them too", bridging(&pair, topology));
                let event = Event {
                    vm: a.vm.clone().or_else(|| b.vm.clone()),
                    ports: vec![a.port.clone(), b.port.clone()],
                    network: Some(a.network.clone()),
                    ..self.event(EventKind::NetworksBridged, text)
                };
                self.emit(false, event);
            }
        }
    }

    fn emit_loop(&mut self, kind: EventKind, of: &Loop, over: Option<&EndedLoop>, text: String) {
        let view = view(of, over, &self.mitigation.topology, clocks());
        let vm = Some(view.device_id).filter(|vm| !vm.is_empty());
        let event = Event { vm, network: Some(view.network_id), ports: view.ports, ..self.event(kind, text) };
        self.emit(kind != EventKind::LoopStop, event);
    }

    /// Emits the start of a storm.
    pub(super) fn emit_storm_start(&mut self, who: StormSource, class: StormKind, action: StormAction, recovery: u32) {
        let Some(index) = self.of(who) else { return };
        let (whose, ports) = self.storm_owner(who);
        let limit = self.limit(who, index, class);
        let done = match (action, recovery) {
            (StormAction::Disable, 0) => "the port is quarantined until it is released".to_owned(),
            (StormAction::Disable, seconds) => {
                format!("the port is quarantined for {}", span(std::time::Duration::from_secs(seconds.into())))
            }
            _ => "frames above it are dropped".to_owned(),
        };
        let LimitText { sent, what, release } = limit;
        let text = format!("{whose} sends more {sent} than {what}: {done}; {release}");
        self.emit_storm(EventKind::StormStart, index, ports, text);
    }

    /// Emits the end of a storm.
    pub(super) fn emit_storm_stop(&mut self, view: &StormStatus) {
        let found = self.ports.iter().position(|port| match port.endpoint.config_ref {
            ConfigRef::Port { vm, position, .. } => {
                let vm = &self.config.vms[vm];
                let port = &vm.ports[position];
                match &view.port_id {
                    Some(id) => *id == port.port_id,
                    None => vm.id == view.device_id && port.network_id == view.network_id,
                }
            }
            ConfigRef::Uplink { .. } => view.port_id.as_ref() == Some(&port.endpoint.name) && view.device_id.is_empty(),
        });
        let Some(index) = found else { return };
        let ports = match &view.port_id {
            Some(id) => vec![id.clone()],
            None => self.siblings(index),
        };
        self.emit_storm(EventKind::StormStop, index, ports, view.text.clone());
    }

    /// Emits the release of a port quarantined for a storm.
    pub(super) fn emit_released(&mut self, end: &Endpoint, disabled: &DisabledPort, why: &str) {
        let Some(index) = self.mitigation.id_of(end).and_then(|id| self.ports.iter().position(|port| port.is(id)))
        else {
            return;
        };
        let since = crate::time::rfc3339(clocks().wall(disabled.since));
        let dropped = disabled.episode.map_or(0, |episode| episode.dropped);
        let peak = disabled.episode.map_or(0, |episode| episode.peak);
        let text = format!(
            "port {} of VM {:?} on network {:?} is released, {why}: quarantined since {since} for a {} storm, of which \
             {dropped} frames were dropped, at most {peak} a second",
            self.mitigation.topology.describe(end),
            end.vm.as_deref().unwrap_or_default(),
            end.network,
            disabled.class,
        );
        self.emit_storm(EventKind::StormStop, index, vec![end.port.clone()], text);
    }

    fn emit_storm(&mut self, kind: EventKind, index: usize, ports: Vec<String>, text: String) {
        let names = self.names(index);
        let event = Event { ports, ..self.event_for(&names, kind, &text) };
        self.emit(kind == EventKind::StormStart, event);
    }

    /// Emits that a port sends from another VM's address.
    pub(super) fn emit_spoofed_mac(&mut self, index: usize, station: Option<Station>) {
        let Some(end) = self.mitigation.endpoints.get(&self.ports[index].endpoint.id).cloned() else { return };
        let of = station.and_then(|station| {
            let (_, owner) = self.forwarding.pinned().find(|(pinned, _)| *pinned == station)?;
            let owner = self.mitigation.endpoints.get(&owner)?;
            let whose = format!("port {} of VM {:?}", self.mitigation.topology.describe(owner), owner.vm.as_deref()?);
            Some(format!("{}, which belongs to {whose}", station.mac()))
        });
        let of = of.unwrap_or_else(|| "a MAC address that belongs to another VM".into());
        let text = format!(
            "port {} of VM {:?} on network {:?} sends frames from {of}: they are dropped as foreign_source; if that is legitimate, as \
             in an HSR ring, set anti_spoof = false of the network. Reported again after 30 seconds without such frames",
            self.mitigation.topology.describe(&end),
            end.vm.as_deref().unwrap_or_default(),
            end.network
        );
        let names = self.names(index);
        let mac = station.map(|station| station.mac().to_string());
        let event = Event { mac, ..self.event_for(&names, EventKind::SpoofedMac, &text) };
        self.emit(true, event);
    }

    /// Emits that an L3 sender was refused, rate-limited per port.
    pub(super) fn report_spoofed_ip(&mut self, SpoofedIp { at, sender }: SpoofedIp, now: MonoTime) {
        let Some(index) = self.ports.iter().position(|port| port.is(at)) else { return };
        let ConfigRef::Port { vm, position, .. } = self.ports[index].endpoint.config_ref else { return };
        let Some(report) = self.mitigation.spoof_reports.record(at, sender, now) else { return };
        let names = self.names(index);
        let port = &self.config.vms[vm].ports[position];
        let text = spoofed_ip(&names, port, sender, report);
        let (mac, ip) = (Some(sender.mac.to_string()), sender.ip.map(|ip| ip.to_string()));
        let event = Event { mac, ip, ..self.event_for(&names, EventKind::SpoofedIp, &text) };
        self.emit(true, event);
    }

    /// Emits that a station is dampened.
    pub(super) fn emit_dampened(&mut self, station: Station, dampened: &DampenedMac) {
        let Mitigation { endpoints, topology, .. } = &self.mitigation;
        let (Some(at), Some(from)) = (endpoints.get(&dampened.at), endpoints.get(&dampened.from)) else { return };
        let named = |end: &Endpoint| match &end.vm {
            Some(vm) => format!("port {} of VM {vm:?}", topology.describe(end)),
            None => end.to_string(),
        };
        let mac = station.mac().to_string();
        let text = format!(
            "station {mac} on network {:?} flaps between {} and {}: pinned to {} for {}, dropped elsewhere{}",
            at.network,
            named(at),
            named(from),
            named(at),
            span(dampened.until.since(dampened.since)),
            remedy(at, from),
        );
        let event = Event {
            vm: from.vm.clone().or_else(|| at.vm.clone()),
            network: Some(at.network.clone()),
            ports: vec![at.port.clone(), from.port.clone()],
            mac: Some(mac),
            ..self.event(EventKind::MacDampened, text)
        };
        self.emit(true, event);
    }

    /// Description of a storm's source, and its ports.
    pub(super) fn storm_owner(&self, who: StormSource) -> (String, Vec<String>) {
        let Some(index) = self.of(who) else { return (String::new(), Vec::new()) };
        let names = self.names(index);
        match (who, names.vm, names.network) {
            (StormSource::Port(id), Some(vm), Some(network)) => {
                let text = self.mitigation.endpoints.get(&id).map(|end| self.mitigation.topology.describe(end));
                let text = text.unwrap_or_else(|| format!("{:?}", names.id));
                (format!("port {text} of VM {vm:?} on network {network:?}"), vec![names.id.to_owned()])
            }
            (StormSource::Vm(..), Some(vm), Some(network)) => {
                (format!("VM {vm:?} by all its ports on network {network:?}"), self.siblings(index))
            }
            _ => (format!("uplink {:?}", names.id), vec![names.id.to_owned()]),
        }
    }

    /// Ports of the same VM on the same network.
    fn siblings(&self, index: usize) -> Vec<String> {
        let ConfigRef::Port { vm, network, .. } = self.ports[index].endpoint.config_ref else { return Vec::new() };
        let network = &self.config.networks[network].id;
        let ports = self.config.vms[vm].ports.iter().filter(|port| port.network_id == *network);
        ports.map(|port| port.port_id.clone()).collect()
    }

    /// Description of an exceeded limit.
    pub(super) fn limit(&self, who: StormSource, index: usize, class: StormKind) -> LimitText {
        let names = self.names(index);
        let set = |keys: &[String]| {
            format!("if that is legitimate, `vifswitch set {} {}` removes the limit", shell(names.id), keys.join(" "))
        };
        let (vm, storm) = match self.ports[index].endpoint.config_ref {
            ConfigRef::Port { vm, position, network, .. } => {
                let vm = &self.config.vms[vm];
                let of_port = self.config.storm_of_port(&vm.ports[position]);
                (Some(self.config.storm_of_vm(vm, &self.config.networks[network])), of_port)
            }
            ConfigRef::Uplink { index } => (None, self.config.storm_of_uplink(&self.config.uplinks[index])),
        };
        let hits = self.mitigation.monitor.hits(who, class);
        let sent = list(&hits.iter().map(|&class| sent(class).to_owned()).collect::<Vec<_>>());
        let of_port = |storm_class: StormClass| {
            let key = format!("storm.{}", storm_class.name());
            let figure = storm.limit(storm_class).map_or_else(|| "another limit".into(), limit_text);
            let release = match &vm {
                Some(_) => set(&[format!("{key}=off")]),
                None => format!(
                    "if that is legitimate, set {key} = \"off\" of the uplink in the configuration and apply it"
                ),
            };
            LimitText {
                sent: self::sent(storm_class).to_owned(),
                what: format!("its limit {key} of {figure}"),
                release,
            }
        };
        match class {
            StormKind::Broadcast => of_port(StormClass::Broadcast),
            StormKind::Multicast => of_port(StormClass::Multicast),
            StormKind::UnknownUnicast => of_port(StormClass::UnknownUnicast),
            StormKind::Bpdu => LimitText {
                sent: "spanning tree frames".into(),
                what: "the limit of 100 frames a second (burst 100)".into(),
                release: "this limit is fixed".into(),
            },
            StormKind::Vm => {
                let keys: Vec<String> = hits.iter().map(|class| format!("vm.storm.{}", class.name())).collect();
                let figure = |(key, &class): (&String, &StormClass)| {
                    let limit = vm.as_ref().and_then(|storm| storm.limit(class));
                    format!("{key} of {}", limit.map_or_else(|| "another limit".into(), limit_text))
                };
                let what = list(&keys.iter().zip(hits).map(figure).collect::<Vec<_>>());
                let release: Vec<String> = keys.iter().map(|key| format!("{key}=off")).collect();
                match keys.is_empty() {
                    true => LimitText {
                        sent: "flooded frames".into(),
                        what: "its limit vm.storm".into(),
                        release: set(&["vm.storm=off".into()]),
                    },
                    false => LimitText { sent, what: format!("its limit {what}"), release: set(&release) },
                }
            }
            StormKind::Copies => {
                let figure = vm.and_then(|storm| storm.copies());
                let figure = figure.map_or_else(
                    || "another limit".into(),
                    |rate| format!("{} copies a second (burst {})", rate.per_second(), rate.burst()),
                );
                let sent = if sent.is_empty() { "flooded frames".into() } else { sent };
                LimitText {
                    sent: format!("copies of {sent}"),
                    what: format!("its limit vm.storm.copies of {figure}"),
                    release: set(&["vm.storm.copies=off".into()]),
                }
            }
        }
    }
}

/// Description of an exceeded limit.
pub(super) struct LimitText {
    /// Kind of traffic.
    sent: String,
    /// Key and value.
    what: String,
    /// How to lift the limit.
    pub(super) release: String,
}

/// A word quoted for a shell.
fn shell(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@%+,".contains(&byte);
    match !word.is_empty() && word.bytes().all(is_plain) && !word.starts_with('-') {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// Text about a refused sender, with the key that allows it.
fn spoofed_ip(names: &Labels<'_>, port: &Port, sender: RefusedSender, report: Report) -> String {
    let whose = format!(
        "port {:?} of VM {:?} on network {:?}",
        names.id,
        names.vm.unwrap_or_default(),
        names.network.unwrap_or_default()
    );
    let RefusedSender { mac, ip } = sender;
    let own = mac == port.mac;
    let what = match ip {
        Some(ip) => format!("sends from the IP address {ip} with the MAC address {mac}"),
        None => format!("sends malformed or truncated frames from {mac}, whose IP address cannot be parsed"),
    };
    let remedy = match ip {
        _ if port.fixed_ips.is_empty() && port.allowed_address_pairs.is_empty() => {
            "the port has no IP address; list its addresses in fixed_ips, or set port_security = \"mac\"".to_owned()
        }
        None => "if they are legitimate, set port_security = \"mac\"".to_owned(),
        Some(ip) => {
            let of = if own { String::new() } else { format!("mac_address = \"{mac}\", ") };
            let prefix = match ip {
                IpAddr::V6(address) if own => {
                    let prefix = Prefix::new(IpAddr::V6(address), 64);
                    prefix.map(|prefix| format!(", or its prefix {prefix} where the guest changes its addresses"))
                }
                _ => None,
            };
            let prefix = prefix.unwrap_or_default();
            format!("to allow it, add {{ {of}ip_address = \"{ip}\" }} to allowed_address_pairs{prefix}")
        }
    };
    let bound = match report.is_last {
        true => format!(". Further senders of this port are reported once in {}", span(EVERY)),
        false => String::new(),
    };
    format!("{whose} {what}, which is not allowed: dropped as spoofed_ip; {remedy}{bound}")
}

/// Kind of traffic of a storm class.
fn sent(class: StormClass) -> &'static str {
    match class {
        StormClass::Broadcast => "broadcast",
        StormClass::Multicast => "multicast",
        StormClass::UnknownUnicast => "unknown unicast",
    }
}

fn limit_text(limit: &StormLimit) -> String {
    let frames = limit.frames.map(|rate| format!("{} frames a second (burst {})", rate.per_second(), rate.burst()));
    let bits = limit.bits.map(|rate| format!("{} bits a second (burst {} bytes)", rate.per_second, rate.burst_bytes));
    [frames, bits].into_iter().flatten().collect::<Vec<_>>().join(" or ")
}
