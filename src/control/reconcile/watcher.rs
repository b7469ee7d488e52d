//! The netdevs of all ports and uplinks, watched: somebody else may change every one of them.
//!
//! In each namespace that has one, sockets receive what happens to netdevs
//! ([`link_events`](crate::sys::link_events), [`ethtool_events`](crate::sys::ethtool_events)). An event is a hint: then
//! the properties of the netdev are read, and what is found is acted on (`netdevs`). So nothing that is of the past is
//! taken for the present, however late it arrives. A watcher stays open as long as its namespace has ports, and is opened
//! again if it fails. Properties without events are read once a second.
//!
//! A deleted tap is not noticed here but by its worker, whose read fails (`handle_device_gone` in `devices`). For ports
//! that are down an event of their netdev brings the next attempt forward.
//!
//! All of this is done by a thread of its own, and by [`jobs`](crate::control::reconcile::jobs): the kernel answers none of these questions while
//! somebody holds its lock on netdevs, and control goes on meanwhile.

use std::collections::{HashMap, HashSet};
use std::io;
use std::thread;
use std::time::Duration;

use tokio::runtime::{self, Handle};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tracing::{debug, info, warn};

use super::results::{DeviceEvent, NetdevReadings};
use super::{Controller, Port, State};
use crate::control::compile::endpoints::{Kind, Labels};
use crate::control::compile::failover::Fitness;
use crate::control::compile::uplink_groups::{UplinkGroup, UplinkGroupName, uplink_groups};
use crate::control::reconcile::jobs::Jobs;
use crate::control::state::events::{Event, EventKind};
use crate::device::properties::{self, Wanted};
use crate::device::{Observed, Settings};
use crate::sys::ethtool_events::{EthtoolEvents, EthtoolListener};
use crate::sys::link_events::{LinkEvents, Listener};
use crate::sys::netns::{Identity, Netns, within};
use crate::time::{self, MonoTime};

/// How often properties are read for which there may be no event.
const POLL: Duration = Duration::from_secs(1);

/// The pause of a watcher after each event: netdevs that change all the time are not read more often.
const PAUSE: Duration = Duration::from_millis(20);

/// Events of the netdevs in a namespace.
#[derive(Debug)]
pub(super) struct LinkEvent {
    netns: Netns,
    /// The number of the watcher.
    watcher: u64,
    /// Names of netdevs that may have changed. `None`: the watcher has ended.
    names: Option<HashSet<String>>,
}

/// The thread on which netlink sockets are read, so that control does not wait for the kernel.
#[derive(Debug)]
struct WatchThread {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl WatchThread {
    fn start() -> io::Result<WatchThread> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new().name("netdevs".into()).spawn(move || {
            let _ = runtime.block_on(stopped);
        })?;
        Ok(WatchThread { handle, _stop: stop })
    }
}

/// The watchers, and the reads in progress.
#[derive(Debug)]
pub(super) struct NetdevWatchers {
    watchers: HashMap<Netns, WatcherThread>,
    next_watcher: u64,
    events: mpsc::UnboundedReceiver<LinkEvent>,
    event_sender: mpsc::UnboundedSender<LinkEvent>,
    /// By namespace in which a look is being taken: what to look at afterwards.
    reading: HashMap<Netns, HashSet<String>>,
    /// How many looks there have been.
    reads: u64,
    /// When all were last read that there may be no event for.
    polled: MonoTime,
    thread: Option<WatchThread>,
}

/// The netlink sockets of one namespace.
#[derive(Debug)]
struct WatcherThread {
    number: u64,
    /// The namespace that the name led to.
    identity: Option<Identity>,
    task: AbortHandle,
}

impl Drop for WatcherThread {
    fn drop(&mut self) {
        // Closes its sockets, which would keep the namespace alive.
        self.task.abort();
    }
}

impl Default for NetdevWatchers {
    fn default() -> NetdevWatchers {
        let (event_sender, events) = mpsc::unbounded_channel();
        NetdevWatchers {
            watchers: HashMap::new(),
            next_watcher: 0,
            events,
            event_sender,
            reading: HashMap::new(),
            reads: 0,
            polled: MonoTime::default(),
            thread: None,
        }
    }
}

impl NetdevWatchers {
    /// The number of the look that was begun last.
    pub fn last_read(&self) -> u64 {
        self.reads
    }

    /// Where netdevs are asked about.
    pub(super) fn watcher(&mut self) -> Handle {
        if self.thread.is_none() {
            match WatchThread::start() {
                Ok(thread) => self.thread = Some(thread),
                Err(why) => debug!("there is no thread to watch netdevs: {why}"),
            }
        }
        self.thread.as_ref().map_or_else(Handle::current, |thread| thread.handle.clone())
    }

    /// Whether it is time again to read what there may be no event for.
    pub(super) fn poll_is_due(&mut self, now: MonoTime) -> bool {
        let is_due = now.since(self.polled) >= POLL;
        if is_due {
            self.polled = now;
        }
        is_due
    }

    /// The next event.
    pub async fn next(&mut self) -> Option<LinkEvent> {
        self.events.recv().await
    }

    /// Opens watchers in these namespaces, replaces those of names that lead to another namespace now, and closes the rest.
    fn watch(&mut self, wanted: HashMap<&Netns, Option<Identity>>, jobs: &Jobs) {
        self.watchers.retain(|netns, watcher| wanted.get(netns) == Some(&watcher.identity));
        for (netns, identity) in wanted {
            if self.watchers.contains_key(netns) {
                continue;
            }
            self.next_watcher += 1;
            let number = self.next_watcher;
            let thread = self.watcher();
            let (netns, sender) = (netns.clone(), self.event_sender.clone());
            let task = thread.spawn(watch(netns.clone(), number, sender, jobs.clone())).abort_handle();
            self.watchers.insert(netns, WatcherThread { number, identity, task });
        }
    }
}

async fn watch(netns: Netns, watcher: u64, sender: mpsc::UnboundedSender<LinkEvent>, jobs: Jobs) {
    if let Err(why) = forward_events(&netns, watcher, &sender, &jobs).await {
        // For debugging only: each device detects errors of its netdev as well, and the watcher is opened again.
        debug!("links in {netns} cannot be listened to: {why}");
    }
    let _ = sender.send(LinkEvent { netns, watcher, names: None });
}

async fn forward_events(
    netns: &Netns,
    watcher: u64,
    sender: &mpsc::UnboundedSender<LinkEvent>,
    jobs: &Jobs,
) -> io::Result<()> {
    let (inside, (opened, opening)) = (netns.clone(), oneshot::channel());
    let open = || Ok::<_, io::Error>((LinkEvents::open()?, EthtoolEvents::open().ok().flatten()));
    jobs.run(netns, move || drop(opened.send(within(&inside, open))));
    let (links, ethtool) = opening.await.map_err(io::Error::other)???;
    let mut links = Listener::new(links)?;
    let mut ethtool = ethtool.map(EthtoolListener::new).transpose()?;
    loop {
        let of_ethtool = async {
            match &mut ethtool {
                Some(ethtool) => ethtool.next().await,
                None => std::future::pending().await,
            }
        };
        let names = tokio::select! {
            names = links.next() => names?,
            names = of_ethtool => names?,
        };
        let _ = sender.send(LinkEvent { netns: netns.clone(), watcher, names: Some(names) });
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether a port waits for its device: something that happens to its netdev may let it be opened.
fn is_waiting(port: &Port) -> bool {
    matches!(port.state, State::Down { .. } | State::Opening { .. })
}

/// The netdev of a port that has a device of its own.
pub(super) fn watched(port: &Port) -> Option<(Netns, String)> {
    let device = port.endpoint.device()?;
    Some((device.netns().clone(), device.name().to_owned()))
}

impl Controller {
    /// Listens where there is something of interest.
    pub(super) fn watch_netdevs_in_use(&mut self) {
        let known = self.ports.iter().filter_map(|port| self.netns_of(port)).collect();
        self.watchers.watch(known, &self.jobs);
    }

    /// The namespace of a port, if its name leads to one.
    fn netns_of<'a>(&self, port: &'a Port) -> Option<(&'a Netns, Option<Identity>)> {
        let netns = port.endpoint.device()?.netns();
        Some((netns, self.namespaces.identity(netns)?))
    }

    /// Handles an event and those that are queued behind it: reads the netdevs that they name.
    pub(super) fn handle_link_event(&mut self, event: LinkEvent) {
        let mut by_netns: HashMap<Netns, HashSet<String>> = HashMap::new();
        // One after the other: whole racks of links go at once.
        let mut next = Some(event);
        while let Some(LinkEvent { netns, watcher, names }) = next {
            let is_open = self.watchers.watchers.get(&netns).is_some_and(|open| open.number == watcher);
            match names {
                None if is_open => drop(self.watchers.watchers.remove(&netns)),
                Some(names) if is_open => by_netns.entry(netns).or_default().extend(names),
                _ => {}
            }
            next = self.watchers.events.try_recv().ok();
        }
        // Also where a netdev is held by others, and where it is down, another attempt may succeed now.
        let (now, mut is_hope) = (time::now(), false);
        for port in self.ports.iter_mut().filter(|port| is_waiting(port)) {
            let device = port.endpoint.device();
            if device.is_some_and(|of| by_netns.get(of.netns()).is_some_and(|names| names.contains(of.name()))) {
                port.retry.kick(now);
                is_hope = true;
            }
        }
        if is_hope {
            self.try_down_ports();
        }
        let is_concerned = |port: &Port| {
            let names = by_netns.get(port.endpoint.device()?.netns())?;
            let is_named = port.netdev.as_ref().is_some_and(|netdev| names.contains(&netdev.name));
            watched(port).filter(|(_, name)| is_named || names.contains(name))
        };
        let netdevs = self.ports.iter().filter_map(is_concerned).collect();
        self.read_netdevs_of(netdevs);
    }

    /// Looks at these netdevs, elsewhere.
    pub(super) fn read_netdevs_of(&mut self, netdevs: Vec<(Netns, String)>) {
        let mut by_netns: HashMap<Netns, HashSet<String>> = HashMap::new();
        for (netns, name) in netdevs {
            by_netns.entry(netns).or_default().insert(name);
        }
        for (netns, names) in by_netns {
            self.read_netdevs(netns, names);
        }
    }

    /// Looks at netdevs, elsewhere; one look at a time in each namespace.
    fn read_netdevs(&mut self, netns: Netns, names: HashSet<String>) {
        if let Some(afterwards) = self.watchers.reading.get_mut(&netns) {
            afterwards.extend(names);
            return;
        }
        let wanted = |port: &Port| {
            let settings =
                port.endpoint.device().filter(|device| *device.netns() == netns && names.contains(device.name()))?;
            // One that we hold is known by its index; one of others by its name.
            let held =
                port.netdev.as_ref().filter(|_| !settings.is_foreign() && matches!(port.state, State::Up { .. }));
            Some(Wanted { settings: settings.clone(), index: held.map(|netdev| netdev.link.index) })
        };
        let wanted: Vec<Wanted> = self.ports.iter().filter_map(wanted).collect();
        if wanted.is_empty() {
            return;
        }
        self.watchers.reading.insert(netns.clone(), HashSet::new());
        self.watchers.reads += 1;
        let (read_id, done) = (self.watchers.reads, self.device_event_sender.clone());
        self.jobs.run(&netns.clone(), move || {
            let look = || {
                let names = wanted.iter().map(|wanted| wanted.settings.name().to_owned());
                names.zip(properties::read_each(&wanted)).collect()
            };
            // A namespace that is gone is noticed by its identity.
            let found = within(&netns, look).unwrap_or_default();
            let _ = done.send(DeviceEvent::NetdevsRead(NetdevReadings { netns, read_id, found }));
        });
    }

    /// Looks at the netdev of the port with this key, elsewhere.
    pub(super) fn read_netdev_of(&mut self, key: u64) {
        let port = self.port_index.get(&key).and_then(|&index| self.ports.get(index));
        self.read_netdevs_of(port.and_then(watched).into_iter().collect());
    }

    /// Reads what there may be no event for, if it is time.
    pub(super) fn poll_netdevs(&mut self) {
        if !self.watchers.poll_is_due(time::now()) {
            return;
        }
        self.ports.iter().filter_map(|port| port.observed.as_ref()).for_each(Observed::request_samples);
        let is_polled = |port: &&Port| {
            let is_of_others = port.endpoint.device().is_some_and(Settings::is_foreign);
            matches!(port.state, State::Up { .. }) && (is_of_others || port.drift.is_missed())
        };
        let netdevs = self.ports.iter().filter(is_polled).filter_map(watched).collect();
        self.read_netdevs_of(netdevs);
    }

    /// Acts on what has been found.
    pub(super) async fn handle_readings(&mut self, readings: NetdevReadings) {
        let NetdevReadings { netns, read_id, mut found } = readings;
        let mut again = self.watchers.reading.remove(&netns).unwrap_or_default();
        let (mut gone, mut changed) = (Vec::new(), Vec::new());
        for (index, port) in self.ports.iter().enumerate() {
            let Some(device) = port.endpoint.device().filter(|device| *device.netns() == netns) else { continue };
            let name = device.name();
            let Some(Ok(now)) = found.remove(name) else { continue };
            match port.state {
                State::Up { .. } if port.min_read >= read_id => drop(again.insert(name.to_owned())),
                // It is being changed: what comes of that is looked at afterwards.
                State::Up { .. } if self.is_awaited(port.key) => {}
                State::Up { .. } => match properties::outdated(device, port.netdev.as_ref(), now.as_ref()) {
                    Some(why) => gone.push((index, why)),
                    None => changed.push((index, now)),
                },
                State::Down { .. } | State::Opening { .. } | State::Tagged { .. } => {}
            }
        }
        self.close_devices(gone).await;
        for (index, now) in changed {
            self.follow_netdev(index, now);
        }
        self.fail_over().await;
        self.update_announcements();
        self.read_netdevs(netns, again);
    }

    /// Tells that no frames flow through a port or an uplink that has its device. It is told once.
    pub(super) fn emit_no_link(&mut self, index: usize, why: &str) {
        if !std::mem::replace(&mut self.ports[index].reported_down, true)
            && self.emit_for(EventKind::PortDown, index, why)
        {
            let Labels { vm, network, .. } = self.names(index);
            let (port, uplink) = self.log_label(index);
            warn!(vm, network, port, uplink, "port_down: {why}");
        }
        self.emit_subports(index);
    }

    /// Lets another uplink of a group carry its frames, where that is called for.
    pub(super) async fn fail_over(&mut self) {
        if self.choose_uplinks() {
            self.push_config().await;
        }
    }

    /// Which uplink of each group carries its frames from now on. Whether it is another one, of any.
    pub(super) fn choose_uplinks(&mut self) -> bool {
        let mut is_otherwise = false;
        for uplink_group in uplink_groups(&self.config) {
            let UplinkGroupName::Group(group) = &uplink_group.name else { continue };
            let before = uplink_group.active(&self.groups);
            let fitness: Vec<Fitness> = uplink_group.members.iter().map(|&member| self.fitness(member)).collect();
            if self.groups.update(group, &fitness, time::now()) {
                self.emit_failover(group, &uplink_group, before);
                is_otherwise = true;
            }
        }
        is_otherwise
    }

    /// Follows groups from one configuration, in which these carried, to the next: who carries goes on.
    pub(super) fn follow_groups(&mut self, before: &[(UplinkGroup, String)]) {
        let now = uplink_groups(&self.config);
        for uplink_group in &now {
            let UplinkGroupName::Group(group) = &uplink_group.name else { continue };
            let Some((_, carrying)) = before.iter().find(|(was, _)| was.name == uplink_group.name) else { continue };
            let place = uplink_group.members.iter().position(|&member| self.config.uplinks[member].id == *carrying);
            if place != Some(self.groups.active(group)) {
                self.groups.rearrange(group, place);
            }
        }
        self.groups.retain(|group| {
            now.iter().any(|uplink_group| uplink_group.name == UplinkGroupName::Group(group.to_owned()))
        });
    }

    /// The lines of the present configuration, each with the id of the uplink that carries.
    pub(super) fn active_uplinks(&self) -> Vec<(UplinkGroup, String)> {
        let carrying = |group: UplinkGroup| {
            let id = self.config.uplinks[group.active(&self.groups)].id.clone();
            (group, id)
        };
        uplink_groups(&self.config).into_iter().map(carrying).collect()
    }

    /// Whether an uplink can carry frames.
    fn fitness(&self, uplink: usize) -> Fitness {
        let config = &self.config.uplinks[uplink];
        let port = self.ports.iter().find(|port| port.endpoint.key() == (Kind::Uplink, &config.id));
        match (self.why_unfit(uplink), port.map(|port| &port.state)) {
            (None, _) => Fitness::Fit,
            (Some(_), Some(State::Opening { reason } | State::Down { reason }))
                if config.admin_state_up && reason.is_empty() =>
            {
                Fitness::Pending
            }
            (Some(_), _) => Fitness::Unfit,
        }
    }

    /// Why an uplink cannot carry frames, if it cannot.
    pub(super) fn why_unfit(&self, uplink: usize) -> Option<String> {
        let config = &self.config.uplinks[uplink];
        let Some(port) = self.ports.iter().find(|port| port.endpoint.key() == (Kind::Uplink, &config.id)) else {
            return Some("it is not there".into());
        };
        match &port.state {
            _ if !config.admin_state_up => Some("administratively down".into()),
            State::Tagged { .. } => None,
            State::Up { .. } => port.dead_link(),
            State::Opening { reason } | State::Down { reason } if reason.is_empty() => {
                Some("it is being opened".into())
            }
            State::Opening { reason } | State::Down { reason } => Some(reason.clone()),
        }
    }

    fn emit_failover(&mut self, group: &str, uplink_group: &UplinkGroup, before: usize) {
        let (now, before) = (uplink_group.active(&self.groups), before);
        let id = |uplink: usize| self.config.uplinks[uplink].id.as_str();
        let why = match self.why_unfit(before) {
            Some(why) => format!("uplink {:?} is down: {why}", id(before)),
            None => "it is the preferred one and its link has held".into(),
        };
        let text = format!("uplink {:?} carries the frames of group {group:?}: {why}", id(now));
        let id = id(now).to_owned();
        let event = Event { ports: vec![id.clone()], ..self.event(EventKind::Uplink, text.clone()) };
        if self.event_log.append(event, time::now()) {
            info!(uplink = id, "uplink: {text}");
        }
    }
}
