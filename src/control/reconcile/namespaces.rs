//! Namespaces of ports, and whether their names still lead to the same ones.
//!
//! An open device keeps its deleted namespace alive, without any event. Names are therefore identified at once when
//! inotify reports a change, and periodically. Ports of a namespace that appears are opened; devices whose namespace
//! was deleted or replaced are closed.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::debug;

use super::lifetimes::{Bound, bound};
use super::results::{DeviceEvent, NamespaceIdentity};
use super::{Controller, Port, State};
use crate::control::reason::{Reason, ReasonCode};
use crate::control::reconcile::backoff::Backoff;
use crate::device::{OpenError, Settings};
use crate::sys::netns::{Identity, Netns};
use crate::sys::netns_names::{Name, NetnsNames};
use crate::time;

/// Interval of identifying a name that inotify watches.
const REPORTED: Duration = Duration::from_secs(2);

/// Interval for other names, such as `/proc/PID/ns/net`.
const UNREPORTED: Duration = Duration::from_millis(400);

/// Known namespaces.
#[derive(Debug)]
pub(super) struct Namespaces {
    known: HashMap<Netns, NamespaceState>,
    changed: mpsc::UnboundedReceiver<Vec<Name>>,
    /// Whether inotify reports changes of names.
    is_reported: bool,
}

#[derive(Debug, Default)]
struct NamespaceState {
    /// Identity; `Some(None)` if there is no such namespace, `None` if not identified yet.
    identity: Option<Option<Identity>>,
    is_reading: bool,
    retry: Backoff,
}

impl Default for Namespaces {
    fn default() -> Namespaces {
        Namespaces { known: HashMap::new(), changed: mpsc::unbounded_channel().1, is_reported: false }
    }
}

impl Namespaces {
    /// Starts watching names, once.
    pub fn watch(&mut self) {
        if self.is_reported {
            return;
        }
        let watching = NetnsNames::watch();
        let (report, changed) = mpsc::unbounded_channel();
        match watching {
            Ok(names) => {
                (self.changed, self.is_reported) = (changed, true);
                tokio::spawn(report_changes(names, report));
            }
            // Names are identified periodically anyway.
            Err(why) => debug!("changes to names of namespaces are not reported: {why}"),
        }
    }

    /// Names that have changed; `None` if nothing is reported any more.
    pub async fn next(&mut self) -> Option<Vec<Name>> {
        if !self.is_reported {
            std::future::pending::<()>().await;
        }
        self.changed.recv().await
    }

    /// Whether a name is known to lead to no namespace.
    pub fn is_missing(&self, netns: &Netns) -> bool {
        self.known.get(netns).is_some_and(|known| known.identity == Some(None))
    }

    /// Identity of a namespace, if known. The host's own has none.
    pub fn identity(&self, netns: &Netns) -> Option<Option<Identity>> {
        match netns {
            Netns::Host => Some(None),
            _ => self.known.get(netns)?.identity.filter(Option::is_some),
        }
    }
}

/// Namespaces of devices. Neighbours mostly have the same one, which comes once then.
pub(super) fn in_use(ports: &[Port]) -> impl Iterator<Item = &Netns> {
    let mut last = None;
    let all = ports.iter().filter_map(|port| Some(port.endpoint.device()?.netns()));
    all.filter(move |&netns| last.replace(netns) != Some(netns))
}

async fn report_changes(mut names: NetnsNames, report: mpsc::UnboundedSender<Vec<Name>>) {
    let ended: io::Result<()> = async {
        loop {
            let names = names.next().await?;
            if report.send(names).is_err() {
                return Ok(());
            }
        }
    }
    .await;
    if let Err(why) = ended {
        debug!("changes to names of namespaces are no longer reported: {why}");
    }
}

impl Controller {
    /// Starts identifying the names that are due.
    pub(super) fn poll_namespaces(&mut self) {
        self.namespaces.watch();
        let now = time::now();
        let wanted: HashSet<&Netns> = in_use(&self.ports).filter(|&netns| *netns != Netns::Host).collect();
        let mut lifetimes = self.lifetime_jobs();
        self.namespaces.known.retain(|netns, _| wanted.contains(netns));
        for netns in wanted {
            let lifetimes = lifetimes.remove(netns).unwrap_or_default();
            let cap = match netns {
                // The end of a namespace is not reported.
                Netns::Named(_) if self.namespaces.is_reported && lifetimes.is_empty() => REPORTED,
                _ => UNREPORTED,
            };
            let known = self.namespaces.known.entry(netns.clone()).or_default();
            if known.is_reading || !known.retry.is_due(now) {
                continue;
            }
            known.is_reading = true;
            known.retry.tried(now, cap, now.nanos());
            let (netns, done) = (netns.clone(), self.device_event_sender.clone());
            self.jobs.run(&netns.clone(), move || {
                let began = time::now();
                let identity = netns.identity();
                let is_unbound = matches!(identity, Ok(None)) && netns.is_unbound();
                let lifetimes = lifetimes.run(&netns, &identity);
                let _ = done.send(DeviceEvent::NamespaceIdentified(NamespaceIdentity {
                    netns,
                    identity,
                    is_unbound,
                    lifetimes,
                    began,
                }));
            });
        }
    }

    /// Identifies changed names.
    pub(super) fn handle_name_changes(&mut self, names: Option<Vec<Name>>) {
        let Some(names) = names else {
            self.namespaces.is_reported = false;
            return;
        };
        let now = time::now();
        let all = names.contains(&None);
        for (netns, known) in &mut self.namespaces.known {
            if all || matches!(netns, Netns::Named(name) if names.contains(&Some(name.clone()))) {
                known.retry = Backoff::default();
                known.retry.kick(now);
            }
        }
        self.poll_namespaces();
    }

    /// Identifies the namespace of a port soon, whose device has been closed or which ends with it now.
    pub(super) fn identify_soon(&mut self, index: usize) {
        let netns = self.ports[index].endpoint.device().map(Settings::netns);
        if let Some(known) = netns.and_then(|netns| self.namespaces.known.get_mut(netns)) {
            known.retry.kick(time::now());
        }
    }

    /// Reports at ports that wait for a namespace that its file exists but is not bound to one.
    fn report_unbound(&mut self, netns: &Netns) {
        for index in 0..self.ports.len() {
            let port = &self.ports[index];
            let Some(device) = port.endpoint.device().filter(|device| device.netns() == netns) else { continue };
            // Of its own namespace more is known.
            if matches!(bound(&self.config, self.state.lifetimes(), &port.endpoint), Bound::To(_)) {
                continue;
            }
            let why = Reason::from(&OpenError::Unbound { at: device.at() });
            if matches!(&port.state, State::Down { reason } if *reason != why && !reason.is_empty()) {
                self.mark_down(index, why);
            }
        }
    }

    /// Opens ports of a namespace that appeared; closes devices in another one than the name leads to.
    pub(super) async fn receive_identity(&mut self, identified: NamespaceIdentity) {
        let NamespaceIdentity { netns, identity, is_unbound, lifetimes, began } = identified;
        if is_unbound {
            self.report_unbound(&netns);
        }
        let now = time::now();
        let Some(known) = self.namespaces.known.get_mut(&netns) else { return };
        known.is_reading = false;
        let identity = match identity {
            Ok(identity) => identity,
            // It is looked at again; until then it counts as what it was.
            Err(why) => {
                self.receive_lifetimes(&netns, None, lifetimes);
                return debug!("{netns}: {why}");
            }
        };
        let before = known.identity.replace(identity);
        let (mut lost, mut has_come) = (Vec::new(), false);
        for (index, port) in self.ports.iter_mut().enumerate() {
            if port.endpoint.device().is_none_or(|device| *device.netns() != netns) {
                continue;
            }
            match port.state {
                // An identification that began before the device was opened may be outdated.
                State::Up { .. } if port.namespace != identity && began > port.opened => {
                    let then = match bound(&self.config, self.state.lifetimes(), &port.endpoint) {
                        // Without a record nothing tells this namespace from the next one of its name.
                        Bound::No | Bound::ToAny => "the device is reopened when it is back",
                        Bound::To(_) => "the port ends with the namespace",
                    };
                    let why = format!("{netns} has been deleted; {then}");
                    lost.push((index, Reason::new(ReasonCode::NoNamespace, why)));
                }
                State::Down { .. } | State::Opening { .. } if identity.is_some() && before != Some(identity) => {
                    port.retry.kick(now);
                    has_come = true;
                }
                _ => {}
            }
        }
        self.close_devices(lost).await;
        self.receive_lifetimes(&netns, identity, lifetimes);
        if before != Some(identity) {
            self.watch_netdevs_in_use();
        }
        if has_come {
            self.try_down_ports();
        }
    }
}
