//! Loops and storms: what workers find and count, what follows from it, and that it comes true.
//!
//! Four times a second there is a *turn*: counters are looked at, what has been heard since is judged, measures
//! and rules follow, and probes are sent. What is decided is in [`loops`](crate::control::loops), and pure; here
//! it is done. A probe that says something new is not kept waiting for the turn.
//!
//! ```text
//!   probing    what is sent, and what comes back
//!   watching   counters: storms, ports that are disabled for them, the guard
//!   telling    events
//!   keeping    over a restart
//!   showing    what is shown of all this
//!   siblings   ports that use the address of a sibling, and how to allow it
//! ```

mod keeping;
mod probing;
mod showing;
mod siblings;
mod telling;
mod watching;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use tracing::debug;

use self::keeping::Keeping;
use self::probing::{Probed, Sent};
use self::watching::{Disabled, Watch};
use super::Controller;
use crate::control::blueprint::{Measures, outsides};
use crate::control::change::{Changed, Refusal};
use crate::control::loops::book::{Book, Loop, News, Refused};
use crate::control::loops::freezes::{Freeze, Freezes};
use crate::control::loops::layout::{End, Layout};
use crate::control::loops::refusals::Refusals;
use crate::control::loops::told::what;
use crate::control::loops::view::LoopCounts;
use crate::control::seats::Stand;
use crate::switch::{Moving, PortId, Station};
use crate::time::{self, Moment};
use crate::wire::ProbeKey;
use crate::worker::{Finding, Findings, Flush};

/// Stations that move of which control has not decided yet, at most; those behind are told again by the workers.
const MOST_MOVING: usize = 4096;

/// All that is known of loops and storms, and what is done about them.
#[derive(Debug)]
pub struct Containment {
    findings: Findings,
    layout: Layout,
    /// By place in the switch: all ports, and the networks on lines to the outside.
    ends: HashMap<PortId, End>,
    ids: HashMap<End, PortId>,
    probed: Vec<Probed>,
    /// Networks with a port that may use more than its own address.
    with_pairs: HashSet<String>,
    book: Book,
    freezes: Freezes,
    moving: Vec<Moving>,
    watch: Watch,
    refusals: Refusals,
    /// The addresses of siblings that ports were refused.
    sibling_sources: Refusals,
    /// What storm limits refused at the last turn.
    refused: HashMap<End, Refused>,
    disabled: BTreeMap<End, Disabled>,
    /// What the rules in force have been made with.
    in_force: Measures,
    sent: Sent,
    turns: u64,
    keeping: Keeping,
    counts: LoopCounts,
}

impl Containment {
    /// Nothing is known yet. Probes are sent under this key, and workers tell what they find.
    pub fn new(key: ProbeKey, findings: Findings) -> Containment {
        Containment {
            findings,
            layout: Layout::default(),
            ends: HashMap::new(),
            ids: HashMap::new(),
            probed: Vec::new(),
            with_pairs: HashSet::new(),
            book: Book::default(),
            freezes: Freezes::default(),
            moving: Vec::new(),
            watch: Watch::default(),
            refusals: Refusals::default(),
            sibling_sources: Refusals::default(),
            refused: HashMap::new(),
            disabled: BTreeMap::new(),
            in_force: Measures::default(),
            sent: Sent::new(key),
            turns: 0,
            keeping: Keeping::default(),
            counts: LoopCounts::default(),
        }
    }

    /// What is done, in the terms of the switch.
    pub(super) fn measures(&self) -> &Measures {
        &self.in_force
    }

    /// What workers find next.
    pub(super) async fn next(&mut self) -> Option<Finding> {
        self.findings.recv().await
    }

    /// The loop for which a port is held, if it is for one.
    fn held_for(&self, end: &End) -> Option<&Loop> {
        self.book.loops().find(|of| of.held(&self.layout).contains(end))
    }

    /// What follows from all that is known.
    fn wanted(&self) -> Measures {
        let measures = self.book.measures(&self.layout);
        let mut held: HashSet<PortId> =
            measures.held.keys().chain(self.disabled.keys()).filter_map(|end| self.ids.get(end)).copied().collect();
        held.retain(|id| self.ends.get(id).is_some_and(|end| end.vm.is_some()));
        let splits = self.ends.iter().filter(|(_, end)| {
            let splits = |vm: &String| measures.splits.contains(&(vm.clone(), end.network.clone()));
            !measures.splits.is_empty() && end.vm.as_ref().is_some_and(splits)
        });
        let suspects = self.ends.iter().filter(|(_, end)| self.with_pairs.contains(&end.network));
        let suspects = suspects.map(|(&id, _)| id).filter(|&id| self.is_suspect(id));
        Measures {
            held,
            suspects: suspects.collect(),
            splits: splits.map(|(&id, _)| id).collect(),
            frozen: self.freezes.iter().map(|(station, freeze)| (station, freeze.at)).collect(),
        }
    }

    /// The places of all ports of VMs that take part in a loop, on its networks.
    fn behind(&self, of: &Loop) -> Vec<PortId> {
        let ends = of.ends();
        let takes_part =
            |end: &End| end.vm.is_some() && ends.iter().any(|of| of.vm == end.vm && of.network == end.network);
        self.ends.iter().filter(|(_, end)| takes_part(end)).map(|(&id, _)| id).collect()
    }
}

impl Controller {
    /// Follows the configuration: who is there now. Rules that are made after this have the measures for them.
    pub(super) fn follow_layout(&mut self) {
        let mut ends: Vec<(PortId, End, usize)> = Vec::new();
        for port in &self.ports {
            let Stand::Port { vm, position, .. } = port.seat.stand else { continue };
            let vm = &self.config.vms[vm];
            let network = vm.ports[position].network_id.clone();
            let end = End { vm: Some(vm.id.clone()), network, port: port.seat.name.clone() };
            ends.push((port.seat.id, end, position));
        }
        for outside in outsides(&self.config, &self.places) {
            let network = self.config.networks[outside.network].id.clone();
            // Of a group the preferred one, whichever carries.
            let Some(uplink) = outside.line.members.first().and_then(|&member| self.config.uplinks.get(member)) else {
                continue;
            };
            ends.push((outside.id, End { vm: None, network, port: uplink.id.clone() }, 0));
        }
        let networks = self.config.networks.iter();
        let networks =
            networks.map(|network| (network.id.clone(), Duration::from_secs(u64::from(network.probe_seconds))));
        let containment = &mut self.containment;
        containment.layout = Layout::new(networks, ends.iter().map(|(_, end, position)| (end.clone(), *position)));
        containment.ids = ends.iter().map(|(id, end, _)| (end.clone(), *id)).collect();
        containment.ends = ends.into_iter().map(|(id, end, _)| (id, end)).collect();
        containment.probed = probing::probed(&self.config, &self.ports);
        let with_pairs = self.config.ports().filter(|(_, port)| !port.allowed_address_pairs.is_empty());
        containment.with_pairs = with_pairs.map(|(_, port)| port.network_id.clone()).collect();
        containment.disabled.retain(|end, _| containment.layout.has(end));
        let ends = &containment.ends;
        containment.watch.keep(|id| ends.contains_key(&id));
        containment.refusals.keep(|id| ends.contains_key(&id));
        containment.sibling_sources.keep(|id| ends.contains_key(&id));
        containment.freezes.look(|id| ends.contains_key(&id), time::now());
        containment.resume();
        containment.in_force = containment.wanted();
    }

    /// A turn.
    pub(super) async fn contain(&mut self) {
        let now = time::now();
        self.containment.turns += 1;
        self.watch_counters(now);
        self.let_go_disabled(now);
        let frozen = self.freeze_moving(now);
        let Containment { book, layout, refused, .. } = &mut self.containment;
        let news = book.look(layout, refused, now);
        self.enforce(news, frozen).await;
        self.send_probes(now).await;
        self.keep_loops();
    }

    /// Something that workers have found, and what else they have meanwhile.
    pub(super) async fn heed_findings(&mut self, finding: Finding) {
        let now = time::now();
        let (mut next, mut is_new) = (Some(finding), false);
        let mut pins = Vec::new();
        while let Some(finding) = next {
            match finding {
                Finding::Returned(returned) => is_new |= self.containment.hear(returned, now),
                Finding::Moving(moving) if self.containment.moving.len() < MOST_MOVING => {
                    self.containment.moving.push(moving);
                }
                Finding::Moving(_) => {}
                Finding::Foreign(foreign) => self.containment.watch.note_foreign(foreign),
                Finding::SpoofedIp(spoofed) => self.note_spoofed_ip(spoofed, now),
                Finding::Pin(report, at) => pins.push((report, at)),
                Finding::SiblingSource(source) => self.note_sibling_source(source, now),
            }
            next = self.containment.findings.try_recv().ok();
        }
        if !pins.is_empty() {
            self.apply_pin_reports(pins).await;
        }
        if is_new {
            let Containment { book, layout, refused, .. } = &mut self.containment;
            // What was refused has been counted.
            refused.values_mut().for_each(|refused| refused.more = 0);
            let news = book.look(layout, refused, now);
            self.enforce(news, Vec::new()).await;
        }
    }

    /// Dampens stations at the ports to which they are pinned. Each stands with its port and the port to which it must not
    /// move.
    pub(super) async fn dampen_at(&mut self, stations: Vec<(Station, PortId, PortId)>, now: Moment) {
        let mut frozen = Vec::new();
        for (station, at, from) in stations {
            let Some(end) = self.containment.ends.get(&at) else { continue };
            let network = self.config.networks.iter().find(|network| network.id == end.network);
            let time = Duration::from_secs(u64::from(network.map_or(60, |network| network.freeze_seconds)));
            if let Some(freeze) = self.containment.freezes.freeze(station, [at, from, at], |_| false, time, now) {
                self.containment.counts.freezes += 1;
                frozen.push((station, freeze));
            }
        }
        self.enforce(Vec::new(), frozen).await;
    }

    /// Decides on the stations that moved too often.
    fn freeze_moving(&mut self, now: Moment) -> Vec<(Station, Freeze)> {
        let containment = &mut self.containment;
        let ends = &containment.ends;
        containment.freezes.look(|id| ends.contains_key(&id), now);
        let mut frozen = Vec::new();
        for Moving { station, from, to, home } in std::mem::take(&mut containment.moving) {
            let (Some(was), Some(_)) = (containment.ends.get(&from), containment.ends.get(&to)) else { continue };
            let network = self.config.networks.iter().find(|network| network.id == was.network);
            let seconds = network.map_or(60, |network| network.freeze_seconds);
            // one that has gone since is no home
            let home = if containment.ends.contains_key(&home) { home } else { from };
            let ports = [from, to, home];
            let suspects = ports.map(|id| containment.is_suspect(id));
            let suspected = |id| ports.iter().zip(suspects).any(|(&port, is_suspect)| port == id && is_suspect);
            let time = Duration::from_secs(u64::from(seconds));
            if let Some(freeze) = containment.freezes.freeze(station, ports, suspected, time, now) {
                containment.counts.freezes += 1;
                frozen.push((station, freeze));
            }
        }
        frozen
    }

    /// Puts in force what follows from all that is known, then tells what has happened, and lets be forgotten what
    /// was learned by it.
    async fn enforce(&mut self, news: Vec<News>, frozen: Vec<(Station, Freeze)>) {
        let wanted = self.containment.wanted();
        let mut behind: HashSet<PortId> = wanted.held.difference(&self.containment.in_force.held).copied().collect();
        if wanted != self.containment.in_force {
            self.containment.in_force = wanted;
            self.set_rules().await;
        }
        for news in &news {
            let of = match news {
                News::Started(key) | News::Raised(key, _) | News::Quiet(key) => self.containment.book.find(key),
                News::Stopped(over) => Some(&over.was),
                News::Prolonged(..) | News::Bridges(_) => None,
            };
            behind.extend(of.into_iter().flat_map(|of| self.containment.behind(of)));
        }
        for news in news {
            self.containment.keeping.is_due |= !matches!(news, News::Bridges(_) | News::Quiet(_));
            self.tell_news(news);
        }
        for (station, freeze) in frozen {
            self.tell_freeze(station, &freeze);
        }
        self.forget_aside(behind);
    }

    /// Lets be forgotten what was learned behind these ports. That takes its time where very much is.
    fn forget_aside(&self, ports: HashSet<PortId>) {
        if ports.is_empty() {
            return;
        }
        let staff = self.staff.clone();
        tokio::spawn(async move {
            let mut forgotten = 0;
            for port in ports {
                forgotten += staff.flush(Flush { place: Some(port.index()), ..Flush::default() }).await;
            }
            debug!(forgotten, "what was learned by a loop or a storm has been forgotten");
        });
    }

    /// Lifts what holds a port: measures against loops that it is in, its quarantine for a storm, and the freezes of
    /// stations at it and from it.
    pub(super) async fn release(&mut self, port: &str) -> Result<Changed, Refusal> {
        let Some(id) = self.places.port(port) else {
            if self.places.carrier(port).is_none() {
                return Err(Refusal::unknown_port(&self.config, port));
            }
            return Ok(self.release_at(port, |_| false).await);
        };
        // A freeze is of the VM: it has moved among its ports as well.
        let vm = self.containment.ends.get(&id).and_then(|end| end.vm.clone());
        let of_vm = self.containment.ends.iter().filter(|(_, end)| end.vm == vm).map(|(&id, _)| id);
        let of_vm: HashSet<PortId> = of_vm.collect();
        Ok(self.release_at(port, |id| of_vm.contains(&id)).await)
    }

    async fn release_at(&mut self, port: &str, is_meant: impl Fn(PortId) -> bool) -> Changed {
        let now = time::now();
        let mut differences = Vec::new();
        let opened = self.containment.take_disabled(|end, _| end.port == port && end.vm.is_some());
        for (end, disabled) in opened {
            differences.push(format!("port {port:?} is no longer held for a {} storm", disabled.class));
            self.tell_reopened(&end, &disabled, "released by hand");
        }
        let news = self.containment.book.release(port, now);
        for news in &news {
            if let News::Stopped(over) = news {
                let what = what(&over.was, &self.containment.layout);
                differences.push(format!("nothing is done any more about this: {what}"));
            }
        }
        let let_go = self.containment.freezes.release(is_meant);
        if let_go > 0 {
            differences.push(format!("{let_go} stations are no longer frozen"));
        }
        let remarks = match differences.is_empty() {
            true => vec![format!("nothing holds port {port:?}; there was nothing to lift")],
            false => Vec::new(),
        };
        self.containment.keeping.is_due |= !differences.is_empty();
        self.enforce(news, Vec::new()).await;
        self.keep_loops();
        Changed { differences, remarks }
    }
}
