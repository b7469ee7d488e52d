//! Sends announcements: derives which stations are at which uplinks, looks up learned stations after a takeover, and has
//! workers send what is due.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc;
use tracing::info;

use super::{Controller, State};
use crate::control::announcements::{ActiveUplink, Announcer, Layout, Takeover};
use crate::control::blueprint::outsides;
use crate::control::seats::Stand;
use crate::switch::{Learned, PortId, Station};
use crate::time::{self, Moment};
use crate::wire::Announcement;

/// Learned stations that are announced after a takeover, at most: those that were seen last.
const MAX_LEARNED: usize = 4096;

/// The stations that were learned when uplinks took over.
#[derive(Debug)]
pub(super) struct LearnedStations {
    takeovers: Vec<Takeover>,
    stations: Vec<Learned>,
}

/// The announcer, and lookups of learned stations.
#[derive(Debug)]
pub(super) struct Announcing {
    announcer: Announcer,
    found: mpsc::UnboundedReceiver<LearnedStations>,
    sender: mpsc::UnboundedSender<LearnedStations>,
}

impl Default for Announcing {
    fn default() -> Announcing {
        let (sender, found) = mpsc::unbounded_channel();
        Announcing { announcer: Announcer::default(), found, sender }
    }
}

impl Announcing {
    /// When the next announcements are due.
    pub(super) fn due(&self) -> Option<Moment> {
        self.announcer.due()
    }

    /// The result of the next lookup.
    pub(super) async fn next(&mut self) -> Option<LearnedStations> {
        self.found.recv().await
    }
}

impl Controller {
    /// Follows what is there now: announces what is new, and lets what is gone be.
    pub(super) fn follow_announcements(&mut self) {
        let layout = self.announced_layout();
        let takeovers = self.announcing.announcer.follow(layout, time::now());
        if takeovers.is_empty() {
            return;
        }
        let (staff, sender) = (self.staff.clone(), self.announcing.sender.clone());
        tokio::spawn(async move {
            let Some(stations) = staff.stations().await else { return };
            // The receiver is dropped when the switch is closed.
            let _ = sender.send(LearnedStations { takeovers, stations });
        });
    }

    fn announced_layout(&self) -> Layout {
        let uplinks = outsides(&self.config, &self.places).into_iter().filter_map(|outside| {
            let active = outside.line.active(&self.groups);
            let uplink = self.places.carrier(&self.config.uplinks[active].id)?;
            let is_up = self.why_unfit(active).is_none();
            is_up.then_some((outside.id, ActiveUplink { network: outside.network_id, uplink }))
        });
        let uplinks: BTreeMap<PortId, ActiveUplink> = uplinks.collect();
        if uplinks.is_empty() {
            return Layout::default();
        }
        let mut layout = Layout { uplinks, ..Layout::default() };
        for port in &self.ports {
            let Stand::Port { vm, position, network_id, .. } = port.seat.stand else { continue };
            let wanted = &self.config.vms[vm].ports[position];
            let base = port.seat.parent().and_then(|parent| self.ports.get(parent)).unwrap_or(port);
            let is_up = matches!(base.state, State::Up { .. }) && base.dead_link().is_none();
            if is_up
                && port.seat.names(&self.config).admin_up
                && !self.containment.holds(port.seat.id)
                && self.activations.pins(wanted)
            {
                layout.ports.insert(port.seat.id);
                layout.stations.insert((port.seat.id, Station::new(network_id, wanted.mac)));
            }
        }
        let pinned = self.rules.pinned().map(|(station, port)| (port, station));
        let pinned: BTreeSet<_> = pinned.filter(|(port, _)| layout.ports.contains(port)).collect();
        layout.stations.extend(pinned);
        layout
    }

    /// Schedules announcements of the stations that were learned behind local ports when uplinks took over.
    pub(super) fn announce_learned(&mut self, learned: LearnedStations) {
        let LearnedStations { takeovers, stations } = learned;
        let now = time::now();
        let is_local = |learned: &Learned| {
            let port = self.rules.port(learned.port).filter(|port| !port.is_uplink());
            port.and_then(|port| self.rules.network(port.network))
                .is_some_and(|network| now.secs().saturating_sub(learned.seen) < network.ageing)
        };
        for takeover in takeovers {
            let network = takeover.active.network;
            let mut here: Vec<&Learned> =
                stations.iter().filter(|learned| learned.station.network() == network && is_local(learned)).collect();
            here.sort_by_key(|learned| std::cmp::Reverse(learned.seen));
            if here.len() > MAX_LEARNED {
                let (all, uplink) = (here.len(), self.named_uplink(takeover.vlan));
                info!(
                    "{uplink} takes over: of {all} learned stations, the {MAX_LEARNED} that were seen last are announced"
                );
            }
            for learned in here.into_iter().take(MAX_LEARNED) {
                self.announcing.announcer.add_learned(takeover, learned.port, learned.station, now);
            }
        }
    }

    /// Has workers send the announcements that are due.
    pub(super) async fn send_announcements(&mut self) {
        let due = self.announcing.announcer.take(time::now());
        let key = self.secret.announcements();
        let frames = due.into_iter().map(|(vlan, mac)| (vlan, Announcement::write(mac, key)));
        self.staff.announce(&self.rules, frames).await;
    }
}
