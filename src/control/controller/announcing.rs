//! Announcements on their way: what is deliverable where, the stations that uplinks announce when they take over, and
//! sending.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc;
use tracing::info;

use super::{Controller, State};
use crate::control::announcements::{Announcer, Layout, Takeover, Way};
use crate::control::blueprint::outsides;
use crate::control::seats::Stand;
use crate::switch::{Learned, PortId, Station};
use crate::time::{self, Moment};
use crate::wire::Announcement;

/// Learned stations that are announced when an uplink takes over, at most: those that were heard last.
const LEARNED: usize = 4096;

/// Stations that have been learned when uplinks took over.
#[derive(Debug)]
pub(super) struct Found {
    takeovers: Vec<Takeover>,
    stations: Vec<Learned>,
}

/// What is announced, and the stations that are being looked for.
#[derive(Debug)]
pub(super) struct Announcing {
    announcer: Announcer,
    found: mpsc::UnboundedReceiver<Found>,
    look: mpsc::UnboundedSender<Found>,
}

impl Default for Announcing {
    fn default() -> Announcing {
        let (look, found) = mpsc::unbounded_channel();
        Announcing { announcer: Announcer::default(), found, look }
    }
}

impl Announcing {
    /// When announcements are to be sent next.
    pub(super) fn due(&self) -> Option<Moment> {
        self.announcer.due()
    }

    /// The stations that have been found next.
    pub(super) async fn next(&mut self) -> Option<Found> {
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
        let (staff, look) = (self.staff.clone(), self.announcing.look.clone());
        tokio::spawn(async move {
            let stations = staff.stations().await;
            // Nobody listens any more when the switch is being closed.
            let _ = look.send(Found { takeovers, stations });
        });
    }

    fn announced_layout(&self) -> Layout {
        let ways = outsides(&self.config, &self.places).into_iter().filter_map(|outside| {
            let active = outside.line.active(&self.groups);
            let carrier = self.places.carrier(&self.config.uplinks[active].id)?;
            let way = Way { network: outside.network_id, carrier };
            self.why_unfit(active).is_none().then_some((outside.id, way))
        });
        let ways: BTreeMap<PortId, Way> = ways.collect();
        if ways.is_empty() {
            return Layout::default();
        }
        let mut layout = Layout { ways, ..Layout::default() };
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

    /// Announces the stations that were learned behind local ports when uplinks took over.
    pub(super) fn announce_learned(&mut self, found: Found) {
        let Found { takeovers, stations } = found;
        let now = time::now();
        let is_local = |learned: &Learned| {
            let port = self.rules.port(learned.port).filter(|port| !port.is_uplink());
            port.and_then(|port| self.rules.network(port.network))
                .is_some_and(|network| now.secs().saturating_sub(learned.seen) < network.ageing)
        };
        for takeover in takeovers {
            let network = takeover.way.network;
            let mut here: Vec<&Learned> =
                stations.iter().filter(|learned| learned.station.network() == network && is_local(learned)).collect();
            here.sort_by_key(|learned| std::cmp::Reverse(learned.seen));
            if here.len() > LEARNED {
                let (all, uplink) = (here.len(), self.named_uplink(takeover.outside));
                info!(
                    "{uplink} takes over: of {all} learned stations those {LEARNED} that were heard last are announced"
                );
            }
            for learned in here.into_iter().take(LEARNED) {
                self.announcing.announcer.add_learned(takeover, learned.port, learned.station, now);
            }
        }
    }

    /// Sends the announcements that are due.
    pub(super) async fn send_announcements(&mut self) {
        let due = self.announcing.announcer.take(time::now());
        let key = self.secret.announcements();
        let frames = due.into_iter().map(|(outside, mac)| (outside, Announcement::write(mac, key)));
        self.staff.announce(&self.rules, frames).await;
    }
}
