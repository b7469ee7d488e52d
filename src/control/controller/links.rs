//! The links of netdevs that are not all ours: those that others own, and the wires of uplinks.
//!
//! In each namespace that has one a socket hears what happens to netdevs
//! ([`link_events`](crate::sys::link_events)). What it hears is a hint: then the netdev is looked at,
//! and what is found is acted on. So nothing that is of the past is taken for the present, however
//! late it is heard. Ears are kept open as long as they are needed, and opened again if they fail.

use std::collections::{HashMap, HashSet};
use std::io;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_blocking};
use tracing::{debug, info, warn};

use super::devices::Outcome;
use super::{Controller, Port, State};
use crate::control::events::{Event, EventKind};
use crate::control::lines::{Line, LineName, lines};
use crate::control::seats::{Kind, Names};
use crate::device::Settings;
use crate::sys::link;
use crate::sys::link_events::{LinkEvents, LinkState, Listener};
use crate::sys::netns::{Identity, Netns, within};
use crate::time;

/// What has been heard in a namespace.
#[derive(Debug)]
pub(super) struct Heard {
    netns: Netns,
    /// By which ear.
    ear: u64,
    /// Names that may lead to something else now. `None`: nothing more can be heard.
    names: Option<HashSet<String>>,
}

/// What has been found of netdevs in a namespace, by name.
#[derive(Debug)]
pub(super) struct Looked {
    netns: Netns,
    /// Which look it was.
    number: u64,
    found: HashMap<String, io::Result<Option<LinkState>>>,
}

/// The ears, and the looks that are being taken.
#[derive(Debug)]
pub(super) struct Links {
    ears: HashMap<Netns, Ear>,
    next_ear: u64,
    hear: mpsc::UnboundedReceiver<Heard>,
    tell: mpsc::UnboundedSender<Heard>,
    /// By namespace in which a look is being taken: what to look at afterwards.
    looking: HashMap<Netns, HashSet<String>>,
    /// How many looks there have been.
    looks: u64,
}

#[derive(Debug)]
struct Ear {
    number: u64,
    /// The namespace that the name led to.
    identity: Option<Identity>,
    listening: AbortHandle,
}

impl Drop for Ear {
    fn drop(&mut self) {
        // Its socket is closed with it, and does not keep the namespace alive.
        self.listening.abort();
    }
}

impl Default for Links {
    fn default() -> Links {
        let (tell, hear) = mpsc::unbounded_channel();
        Links { ears: HashMap::new(), next_ear: 0, hear, tell, looking: HashMap::new(), looks: 0 }
    }
}

impl Links {
    /// The number of the look that was begun last.
    pub fn last_look(&self) -> u64 {
        self.looks
    }

    /// What is heard next.
    pub async fn next(&mut self) -> Option<Heard> {
        self.hear.recv().await
    }

    /// Listens in these namespaces and in no others, and anew where the name of one leads to another.
    fn listen(&mut self, wanted: HashSet<&Netns>) {
        self.ears.retain(|netns, ear| wanted.contains(netns) && netns.identity() == ear.identity);
        for netns in wanted {
            if self.ears.contains_key(netns) || netns.path().is_some_and(|path| !path.exists()) {
                continue;
            }
            self.next_ear += 1;
            let number = self.next_ear;
            // First: if it is replaced right now, that is found out the next time.
            let identity = netns.identity();
            let listening = tokio::spawn(listen(netns.clone(), number, self.tell.clone())).abort_handle();
            self.ears.insert(netns.clone(), Ear { number, identity, listening });
        }
    }
}

async fn listen(netns: Netns, ear: u64, tell: mpsc::UnboundedSender<Heard>) {
    if let Err(why) = hear(&netns, ear, &tell).await {
        // Not news for people: every netdev is looked after by its device as well, and the ear is opened again.
        debug!("links in {netns} cannot be listened to: {why}");
    }
    let _ = tell.send(Heard { netns, ear, names: None });
}

async fn hear(netns: &Netns, ear: u64, tell: &mpsc::UnboundedSender<Heard>) -> io::Result<()> {
    let inside = netns.clone();
    let opened = spawn_blocking(move || within(&inside, LinkEvents::open)).await.map_err(io::Error::other)?;
    let mut listener = Listener::new(opened??)?;
    loop {
        let names = Some(listener.next().await?);
        let _ = tell.send(Heard { netns: netns.clone(), ear, names });
    }
}

/// Whether the link of such a netdev is of interest: others may take it away or set it down, or it is
/// the wire of an uplink.
fn is_watched(port: &Port) -> bool {
    port.seat.device().is_some_and(Settings::is_of_others) || port.seat.is_uplink()
}

/// The netdev of a port, if its link is of interest.
pub(super) fn watched(port: &Port) -> Option<(Netns, String)> {
    let device = port.seat.device().filter(|_| is_watched(port))?;
    Some((device.netns().clone(), device.name().to_owned()))
}

/// How it is with the netdev of a device now. In its namespace, and may wait.
pub(super) fn look(device: &Settings) -> io::Result<Option<LinkState>> {
    within(device.netns(), || find(device.name()))?
}

fn find(name: &str) -> io::Result<Option<LinkState>> {
    Ok(link::find(name)?.as_ref().map(LinkState::from))
}

/// Why a device that others own has to be given up, if it has: it was opened when its link `was` so,
/// and it is so `now`.
fn lost(name: &str, was: Option<LinkState>, now: Option<LinkState>) -> Option<String> {
    let Some(now) = now else { return Some("its netdev is gone; it is opened again as soon as it is back".into()) };
    match was {
        _ if !now.up => {
            Some(format!("its link is down; `ip link set dev {name} up` sets it up, and it is opened again then"))
        }
        Some(was) if was.index != now.index => {
            Some("its netdev has been replaced by another one of the same name; it is opened again".into())
        }
        Some(was) if was.mtu != now.mtu => {
            Some(format!("the MTU of its netdev was {} and is {}; it is opened again", was.mtu, now.mtu))
        }
        _ => None,
    }
}

impl Controller {
    /// Listens where there is something of interest.
    pub(super) fn listen_to_links(&mut self) {
        let watched = self.ports.iter().filter(|port| is_watched(port));
        self.links.listen(watched.filter_map(|port| Some(port.seat.device()?.netns())).collect());
    }

    /// Looks at the netdevs of which something has been heard.
    pub(super) fn heed(&mut self, heard: Heard) {
        let mut by_netns: HashMap<Netns, HashSet<String>> = HashMap::new();
        // One after the other: whole racks of links go at once.
        let mut next = Some(heard);
        while let Some(Heard { netns, ear, names }) = next {
            let is_open = self.links.ears.get(&netns).is_some_and(|open| open.number == ear);
            match names {
                None if is_open => drop(self.links.ears.remove(&netns)),
                Some(names) if is_open => by_netns.entry(netns).or_default().extend(names),
                _ => {}
            }
            next = self.links.hear.try_recv().ok();
        }
        let is_heard = |(netns, name): &(Netns, String)| by_netns.get(netns).is_some_and(|names| names.contains(name));
        let netdevs = self.ports.iter().filter_map(watched).filter(is_heard).collect();
        self.look_at_all(netdevs);
    }

    /// Looks at these netdevs, elsewhere.
    pub(super) fn look_at_all(&mut self, netdevs: Vec<(Netns, String)>) {
        let mut by_netns: HashMap<Netns, HashSet<String>> = HashMap::new();
        for (netns, name) in netdevs {
            by_netns.entry(netns).or_default().insert(name);
        }
        for (netns, names) in by_netns {
            self.look_at(netns, names);
        }
    }

    /// Looks at netdevs, elsewhere; one look at a time in each namespace.
    fn look_at(&mut self, netns: Netns, names: HashSet<String>) {
        if names.is_empty() {
            return;
        }
        if let Some(afterwards) = self.links.looking.get_mut(&netns) {
            afterwards.extend(names);
            return;
        }
        self.links.looking.insert(netns.clone(), HashSet::new());
        self.links.looks += 1;
        let (number, done) = (self.links.looks, self.done.clone());
        spawn_blocking(move || {
            let look = || names.iter().map(|name| (name.clone(), find(name))).collect();
            // A namespace that is gone is noticed by its identity.
            let found = within(&netns, look).unwrap_or_default();
            let _ = done.send(Outcome::Looked(Looked { netns, number, found }));
        });
    }

    /// Acts on what has been found.
    pub(super) async fn receive_look(&mut self, looked: Looked) {
        let Looked { netns, number, found } = looked;
        let mut again = self.links.looking.remove(&netns).unwrap_or_default();
        let (mut gone, mut changed, mut is_hope) = (Vec::new(), Vec::new(), false);
        for (index, port) in self.ports.iter_mut().enumerate() {
            let Some(device) = port.seat.device().filter(|device| *device.netns() == netns) else { continue };
            if !is_watched(port) {
                continue;
            }
            let name = device.name();
            let Some(Ok(now)) = found.get(name) else { continue };
            match port.state {
                State::Up { .. } if port.looked >= number => drop(again.insert(name.to_owned())),
                State::Up { .. } => {
                    let was = port.link;
                    let why = lost(name, was, *now).filter(|_| device.is_of_others());
                    if let Some(why) = why {
                        is_hope |= now.is_some_and(|now| now.up);
                        gone.push((index, why));
                    } else if now.is_some() && was != *now {
                        let before = port.dead_link();
                        port.link = *now;
                        changed.extend((before != port.dead_link()).then_some(index));
                    }
                }
                State::Down { .. } => is_hope |= now.is_some_and(|now| now.up),
                State::Opening { .. } | State::Carried { .. } => {}
            }
        }
        self.take_back(gone).await;
        for index in changed {
            self.tell_up(index);
        }
        self.turn_over().await;
        if is_hope {
            self.try_down_ports();
        }
        self.look_at(netns, again);
    }

    /// Tells that no frames flow through a port or an uplink that has its device. It is told once.
    pub(super) fn tell_dead(&mut self, index: usize, why: &str) {
        if !std::mem::replace(&mut self.ports[index].told_down, true) {
            self.tell(EventKind::PortDown, index, why);
            let Names { vm, network, .. } = self.names(index);
            let (port, uplink) = self.label(index);
            warn!(vm, network, port, uplink, "port_down: {why}");
        }
        self.tell_subports(index);
    }

    /// Lets another uplink of a group carry its frames, where that is called for.
    pub(super) async fn turn_over(&mut self) {
        if self.choose_uplinks() {
            self.set_rules().await;
        }
    }

    /// Which uplink of each group carries its frames from now on. Whether it is another one, of any.
    pub(super) fn choose_uplinks(&mut self) -> bool {
        let mut is_otherwise = false;
        for line in lines(&self.config) {
            let LineName::Group(group) = &line.name else { continue };
            let before = line.active(&self.groups);
            let fit: Vec<bool> = line.members.iter().map(|&member| self.why_unfit(member).is_none()).collect();
            if self.groups.look(group, &fit, time::now()) {
                self.tell_turn(group, &line, before);
                is_otherwise = true;
            }
        }
        is_otherwise
    }

    /// Follows groups from one configuration, in which these carried, to the next: who carries goes on.
    pub(super) fn follow_groups(&mut self, before: &[(Line, String)]) {
        let now = lines(&self.config);
        for line in &now {
            let LineName::Group(group) = &line.name else { continue };
            let Some((_, carrying)) = before.iter().find(|(was, _)| was.name == line.name) else { continue };
            let place = line.members.iter().position(|&member| self.config.uplinks[member].id == *carrying);
            if place != Some(self.groups.active(group)) {
                self.groups.rearrange(group, place);
            }
        }
        self.groups.keep(|group| now.iter().any(|line| line.name == LineName::Group(group.to_owned())));
    }

    /// The lines of the present configuration, each with the id of the uplink that carries.
    pub(super) fn carrying(&self) -> Vec<(Line, String)> {
        let carrying = |line: Line| {
            let id = self.config.uplinks[line.active(&self.groups)].id.clone();
            (line, id)
        };
        lines(&self.config).into_iter().map(carrying).collect()
    }

    /// Why an uplink cannot carry frames, if it cannot.
    fn why_unfit(&self, uplink: usize) -> Option<String> {
        let config = &self.config.uplinks[uplink];
        let Some(port) = self.ports.iter().find(|port| port.seat.key() == (Kind::Uplink, &config.id)) else {
            return Some("it is not there".into());
        };
        match &port.state {
            _ if !config.admin_state_up => Some("administratively down".into()),
            State::Carried { .. } => None,
            State::Up { .. } => port.dead_link(),
            State::Opening { reason } | State::Down { reason } if reason.is_empty() => {
                Some("it is being opened".into())
            }
            State::Opening { reason } | State::Down { reason } => Some(reason.clone()),
        }
    }

    fn tell_turn(&mut self, group: &str, line: &Line, before: usize) {
        let (now, before) = (line.active(&self.groups), before);
        let id = |uplink: usize| self.config.uplinks[uplink].id.as_str();
        let why = match self.why_unfit(before) {
            Some(why) => format!("uplink {:?} is down: {why}", id(before)),
            None => "it is the preferred one and its link has held".into(),
        };
        let text = format!("uplink {:?} carries the frames of group {group:?}: {why}", id(now));
        info!(uplink = id(now), "uplink: {text}");
        let event = Event { ports: vec![id(now).to_owned()], ..self.event(EventKind::Uplink, text) };
        self.journal.tell(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_given_up_only_for_a_reason() {
        let up = LinkState { index: 7, up: true, carrier: true, mtu: 1500 };
        let lost = |now| lost("eth1", Some(up), now);
        assert_eq!(lost(Some(up)), None);
        assert_eq!(lost(Some(LinkState { carrier: false, ..up })), None, "it may come back any time");
        assert!(lost(None).unwrap().contains("gone"));
        assert!(lost(Some(LinkState { up: false, ..up })).unwrap().contains("`ip link set dev eth1 up`"));
        assert!(lost(Some(LinkState { index: 8, ..up })).unwrap().contains("replaced"));
        assert!(lost(Some(LinkState { mtu: 9000, ..up })).unwrap().contains("was 1500 and is 9000"));
        assert_eq!(super::lost("eth1", None, Some(up)), None, "nothing is known of before");
    }
}
