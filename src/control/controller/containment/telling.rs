//! What is told of loops, storms and stations that move: one event for each transition.

use std::net::IpAddr;

use super::keeping::clocks;
use super::siblings::remedy;
use super::watching::{Class, Disabled, Who};
use super::{Containment, Controller};
use crate::control::config::{Port, StormAction, StormLimit};
use crate::control::events::{Event, EventKind};
use crate::control::loops::book::{Loop, News, Over};
use crate::control::loops::freezes::Freeze;
use crate::control::loops::layout::End;
use crate::control::loops::refusals::{Announcement, EVERY};
use crate::control::loops::told::{bridges, list, measures, sentence, span, view, what};
use crate::control::loops::view::StormView;
use crate::control::seats::{Names, Stand};
use crate::switch::{Refused, SpoofedIp, Station, StormClass};
use crate::time::Moment;
use crate::wire::Prefix;

impl Controller {
    /// Tells of a loop.
    pub(super) fn tell_news(&mut self, news: News) {
        let layout = &self.containment.layout;
        let find = |key| self.containment.book.find(key);
        match news {
            News::Started(key) => {
                self.containment.counts.loops += 1;
                let Some(of) = self.containment.book.find(&key) else { return };
                let text = sentence(of, None, &self.containment.layout, clocks());
                self.tell_loop(EventKind::LoopStart, &of.clone(), None, text);
            }
            News::Raised(key, level) => {
                let Some(of) = find(&key) else { return };
                let (what, now) = (what(of, layout), measures(of, layout));
                let text = format!("{what}, and that goes on; level {}: {now}", level.number());
                self.tell_loop(EventKind::LoopLevel, &of.clone(), None, text);
            }
            News::Prolonged(key, time) => {
                let Some(of) = find(&key) else { return };
                let (what, level, now) = (what(of, layout), of.ladder.level.number(), measures(of, layout));
                let text = format!("{what}, still; level {level} stays for {} more: {now}", span(time));
                self.tell_loop(EventKind::LoopLevel, &of.clone(), None, text);
            }
            News::Quiet(_) => {}
            News::Stopped(over) => {
                let text = sentence(&over.was, Some(&over), layout, clocks());
                self.tell_loop(EventKind::LoopStop, &over.was, Some(&over), text);
            }
            News::Bridges(pair) => {
                let (a, b) = &pair;
                let text = format!("{}: no loop, as long as nobody else does", bridges(&pair, layout));
                let event = Event {
                    vm: a.vm.clone().or_else(|| b.vm.clone()),
                    ports: vec![a.port.clone(), b.port.clone()],
                    network: Some(a.network.clone()),
                    ..self.event(EventKind::Bridges, text)
                };
                self.emit(false, event);
            }
        }
    }

    fn tell_loop(&mut self, kind: EventKind, of: &Loop, over: Option<&Over>, text: String) {
        let view = view(of, over, &self.containment.layout, clocks());
        let vm = Some(view.device_id).filter(|vm| !vm.is_empty());
        let event = Event { vm, network: Some(view.network_id), ports: view.ports, ..self.event(kind, text) };
        self.emit(kind != EventKind::LoopStop, event);
    }

    /// Tells that storm limits begin to refuse frames.
    pub(super) fn tell_storm(&mut self, who: Who, class: Class, action: StormAction, recovery: u32) {
        let Some(index) = self.of(who) else { return };
        let (whose, ports) = self.whose(who);
        let limit = self.limit(who, index, class);
        let done = match (action, recovery) {
            (StormAction::Disable, 0) => "the port is held until it is released by hand".to_owned(),
            (StormAction::Disable, seconds) => {
                format!("the port is held for {}", span(std::time::Duration::from_secs(seconds.into())))
            }
            _ => "what is beyond it is dropped".to_owned(),
        };
        let Limit { sent, what, lift } = limit;
        let text = format!("{whose} sends more {sent} than {what}: {done}; {lift}");
        self.tell_of_storm(EventKind::StormStart, index, ports, text);
    }

    /// Tells that a storm is over.
    pub(super) fn tell_storm_over(&mut self, view: &StormView) {
        let found = self.ports.iter().position(|port| match port.seat.stand {
            Stand::Port { vm, position, .. } => {
                let vm = &self.config.vms[vm];
                let port = &vm.ports[position];
                match &view.port_id {
                    Some(id) => *id == port.port_id,
                    None => vm.id == view.device_id && port.network_id == view.network_id,
                }
            }
            Stand::Uplink { .. } => view.port_id.as_ref() == Some(&port.seat.name) && view.device_id.is_empty(),
        });
        let Some(index) = found else { return };
        let ports = match &view.port_id {
            Some(id) => vec![id.clone()],
            None => self.siblings(index),
        };
        self.tell_of_storm(EventKind::StormStop, index, ports, view.text.clone());
    }

    /// Tells that a port is open again that was held for a storm.
    pub(super) fn tell_reopened(&mut self, end: &End, disabled: &Disabled, why: &str) {
        let Some(index) = self.containment.ids.get(end).and_then(|&id| self.ports.iter().position(|port| port.is(id)))
        else {
            return;
        };
        let since = crate::time::rfc3339(clocks().wall(disabled.since));
        let refused = disabled.spell.map_or(0, |spell| spell.suppressed);
        let most = disabled.spell.map_or(0, |spell| spell.most);
        let text = format!(
            "port {} of VM {:?} on network {:?} is open again, {why}: it was held since {since} for a {} storm, of which \
             {refused} frames were suppressed, at most {most} a second",
            self.containment.layout.told(end),
            end.vm.as_deref().unwrap_or_default(),
            end.network,
            disabled.class,
        );
        self.tell_of_storm(EventKind::StormStop, index, vec![end.port.clone()], text);
    }

    fn tell_of_storm(&mut self, kind: EventKind, index: usize, ports: Vec<String>, text: String) {
        let names = self.names(index);
        let event = Event { ports, ..self.event_of(&names, kind, &text) };
        self.emit(kind == EventKind::StormStart, event);
    }

    /// Tells that a port begins to send what belongs to others.
    pub(super) fn tell_guard(&mut self, index: usize, station: Option<Station>) {
        let Some(end) = self.containment.ends.get(&self.ports[index].seat.id).cloned() else { return };
        let of = station.and_then(|station| {
            let (_, owner) = self.rules.pinned().find(|(pinned, _)| *pinned == station)?;
            let owner = self.containment.ends.get(&owner)?;
            let whose = format!("port {} of VM {:?}", self.containment.layout.told(owner), owner.vm.as_deref()?);
            Some(format!("{}, which belongs to {whose}", station.mac()))
        });
        let of = of.unwrap_or_else(|| "an address that belongs to another VM".into());
        let text = format!(
            "port {} of VM {:?} on network {:?} sends frames as if they came from {of}: they are dropped. Where that is right, as \
             in an HSR ring, set guard = false of the network. This is told again only when there have been none for 30 seconds",
            self.containment.layout.told(&end),
            end.vm.as_deref().unwrap_or_default(),
            end.network
        );
        let names = self.names(index);
        let mac = station.map(|station| station.mac().to_string());
        let event = Event { mac, ..self.event_of(&names, EventKind::Guard, &text) };
        self.emit(true, event);
    }

    /// Announces a sender above Ethernet that a port was refused, unless that has been announced lately.
    pub(super) fn note_spoofed_ip(&mut self, SpoofedIp { at, sender }: SpoofedIp, now: Moment) {
        let Some(index) = self.ports.iter().position(|port| port.is(at)) else { return };
        let Stand::Port { vm, position, .. } = self.ports[index].seat.stand else { return };
        let Some(announcement) = self.containment.refusals.note(at, sender, now) else { return };
        let names = self.names(index);
        let port = &self.config.vms[vm].ports[position];
        let text = spoofed_ip(&names, port, sender, announcement);
        let (mac, ip) = (Some(sender.mac.to_string()), sender.ip.map(|ip| ip.to_string()));
        let event = Event { mac, ip, ..self.event_of(&names, EventKind::SpoofedIp, &text) };
        self.emit(true, event);
    }

    /// Tells that a station stays where it is for a while.
    pub(super) fn tell_freeze(&mut self, station: Station, freeze: &Freeze) {
        let Containment { ends, layout, .. } = &self.containment;
        let (Some(at), Some(from)) = (ends.get(&freeze.at), ends.get(&freeze.from)) else { return };
        let named = |end: &End| match &end.vm {
            Some(vm) => format!("port {} of VM {vm:?}", layout.told(end)),
            None => end.to_string(),
        };
        let mac = station.mac().to_string();
        let text = format!(
            "station {mac} on network {:?} moves to and fro between {} and {}: it stays at {} for {}, and is not heard from \
             anywhere else{}",
            at.network,
            named(at),
            named(from),
            named(at),
            span(freeze.until.since(freeze.since)),
            remedy(at, from),
        );
        let event = Event {
            vm: from.vm.clone().or_else(|| at.vm.clone()),
            network: Some(at.network.clone()),
            ports: vec![at.port.clone(), from.port.clone()],
            mac: Some(mac),
            ..self.event(EventKind::MacFreeze, text)
        };
        self.emit(true, event);
    }

    /// Whose storm it is, and the ports that it is of.
    pub(super) fn whose(&self, who: Who) -> (String, Vec<String>) {
        let Some(index) = self.of(who) else { return (String::new(), Vec::new()) };
        let names = self.names(index);
        match (who, names.vm, names.network) {
            (Who::Port(id), Some(vm), Some(network)) => {
                let told = self.containment.ends.get(&id).map(|end| self.containment.layout.told(end));
                let told = told.unwrap_or_else(|| format!("{:?}", names.id));
                (format!("port {told} of VM {vm:?} on network {network:?}"), vec![names.id.to_owned()])
            }
            (Who::Vm(..), Some(vm), Some(network)) => {
                (format!("VM {vm:?} by all its ports on network {network:?}"), self.siblings(index))
            }
            _ => (format!("uplink {:?}", names.id), vec![names.id.to_owned()]),
        }
    }

    /// All ports of the VM of a port, on its network.
    fn siblings(&self, index: usize) -> Vec<String> {
        let Stand::Port { vm, network, .. } = self.ports[index].seat.stand else { return Vec::new() };
        let network = &self.config.networks[network].id;
        let ports = self.config.vms[vm].ports.iter().filter(|port| port.network_id == *network);
        ports.map(|port| port.port_id.clone()).collect()
    }

    /// The limit that is hit, as people read it.
    pub(super) fn limit(&self, who: Who, index: usize, class: Class) -> Limit {
        let names = self.names(index);
        let set = |keys: &[String]| {
            format!("if that is legitimate, `vifswitch set {} {}` lifts it", shell(names.id), keys.join(" "))
        };
        let (vm, storm) = match self.ports[index].seat.stand {
            Stand::Port { vm, position, network, .. } => {
                let vm = &self.config.vms[vm];
                let of_port = self.config.storm_of_port(&vm.ports[position]);
                (Some(self.config.storm_of_vm(vm, &self.config.networks[network])), of_port)
            }
            Stand::Uplink { index } => (None, self.config.storm_of_uplink(&self.config.uplinks[index])),
        };
        let hits = self.containment.watch.hits(who, class);
        let sent = list(&hits.iter().map(|&class| sent(class).to_owned()).collect::<Vec<_>>());
        let of_port = |storm_class: StormClass| {
            let key = format!("storm.{}", storm_class.name());
            let figure = storm.limit(storm_class).map_or_else(|| "another limit".into(), told_limit);
            let lift = match &vm {
                Some(_) => set(&[format!("{key}=off")]),
                None => format!(
                    "if that is legitimate, set {key} = \"off\" of the uplink in the configuration and apply it"
                ),
            };
            Limit { sent: self::sent(storm_class).to_owned(), what: format!("its limit {key} of {figure}"), lift }
        };
        match class {
            Class::Broadcast => of_port(StormClass::Broadcast),
            Class::Multicast => of_port(StormClass::Multicast),
            Class::UnknownUnicast => of_port(StormClass::UnknownUnicast),
            Class::Bpdu => Limit {
                sent: "spanning tree".into(),
                what: "the limit of 100 frames a second (burst 100)".into(),
                lift: "this limit is fixed, and no key lifts it".into(),
            },
            Class::Vm => {
                let keys: Vec<String> = hits.iter().map(|class| format!("vm.storm.{}", class.name())).collect();
                let figure = |(key, &class): (&String, &StormClass)| {
                    let limit = vm.as_ref().and_then(|storm| storm.limit(class));
                    format!("{key} of {}", limit.map_or_else(|| "another limit".into(), told_limit))
                };
                let what = list(&keys.iter().zip(hits).map(figure).collect::<Vec<_>>());
                let lift: Vec<String> = keys.iter().map(|key| format!("{key}=off")).collect();
                match keys.is_empty() {
                    true => Limit {
                        sent: "to everybody".into(),
                        what: "its limit vm.storm".into(),
                        lift: set(&["vm.storm=off".into()]),
                    },
                    false => Limit { sent, what: format!("its limit {what}"), lift: set(&lift) },
                }
            }
            Class::Copies => {
                let figure = vm.and_then(|storm| storm.copies());
                let figure = figure.map_or_else(
                    || "another limit".into(),
                    |rate| format!("{} copies a second (burst {})", rate.per_second(), rate.burst()),
                );
                let sent = if sent.is_empty() { "to everybody".into() } else { sent };
                Limit {
                    sent: format!("{sent} to so many ports"),
                    what: format!("its limit vm.storm.copies of {figure}"),
                    lift: set(&["vm.storm.copies=off".into()]),
                }
            }
        }
    }
}

/// A limit that is hit, as people read it.
pub(super) struct Limit {
    /// What is sent.
    sent: String,
    /// The key and its value.
    what: String,
    /// How it is lifted.
    pub(super) lift: String,
}

/// A word as a shell takes it.
fn shell(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@%+,".contains(&byte);
    match !word.is_empty() && word.bytes().all(is_plain) && !word.starts_with('-') {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// The sentence about a sender that was refused, with the key that allows it.
fn spoofed_ip(names: &Names<'_>, port: &Port, sender: Refused, announcement: Announcement) -> String {
    let whose = format!(
        "port {:?} of VM {:?} on network {:?}",
        names.id,
        names.vm.unwrap_or_default(),
        names.network.unwrap_or_default()
    );
    let Refused { mac, ip } = sender;
    let own = mac == port.mac;
    let what = match ip {
        Some(ip) => format!("names the IP address {ip} with the MAC address {mac}"),
        None => format!("sends frames of {mac} in which no IP address can be read, as they are malformed or cut off"),
    };
    let remedy = match ip {
        _ if port.fixed_ips.is_empty() && port.allowed_address_pairs.is_empty() => {
            "the port has no IP address; list its addresses in fixed_ips, or set port_security = \"mac\"".to_owned()
        }
        None => "set port_security = \"mac\" if they are right".to_owned(),
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
    let bound = match announcement.is_last {
        true => format!(". Others of this port are announced once in {} from now on", span(EVERY)),
        false => String::new(),
    };
    format!("{whose} {what}, which is not allowed: dropped as spoofed_ip; {remedy}{bound}")
}

/// What a storm is made of.
fn sent(class: StormClass) -> &'static str {
    match class {
        StormClass::Broadcast => "broadcast",
        StormClass::Multicast => "multicast",
        StormClass::UnknownUnicast => "unknown unicast",
    }
}

fn told_limit(limit: &StormLimit) -> String {
    let frames = limit.frames.map(|rate| format!("{} frames a second (burst {})", rate.per_second(), rate.burst()));
    let bits = limit.bits.map(|rate| format!("{} bits a second (burst {} bytes)", rate.per_second, rate.burst_bytes));
    [frames, bits].into_iter().flatten().collect::<Vec<_>>().join(" or ")
}
