//! Watches the netdevs of all ports and uplinks, which others may change at any time.
//!
//! In each namespace with a port, sockets receive events of netdevs ([`link_events`](crate::sys::link_events),
//! [`ethtool_events`](crate::sys::ethtool_events)). An event only triggers a reading of the netdev's properties, on
//! which `netdevs` acts, so that a late event does no harm. A watcher is open as long as its namespace has ports, and
//! reopened if it fails. Properties without events are read once a second.
//!
//! A deleted tap is detected by its worker, whose read fails (`handle_device_gone` in `devices`). An event of the
//! netdev of a port that is down triggers the next attempt.
//!
//! A thread of its own and [`jobs`](crate::control::reconcile::jobs) do this: the kernel blocks these calls while
//! another process holds its lock on netdevs.

use std::collections::{HashMap, HashSet};
use std::io;
use std::thread;
use std::time::Duration;

use tokio::runtime::{self, Handle};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tracing::debug;

use super::namespaces::in_use;
use super::results::{DeviceEvent, NetdevReadings};
use super::{Controller, Port, State};
use crate::control::reason::Reason;
use crate::control::reconcile::jobs::Jobs;
use crate::device::properties::{self, Wanted};
use crate::device::{Observed, Settings};
use crate::sys::ethtool_events::{EthtoolEvents, EthtoolListener};
use crate::sys::link_events::{LinkEvents, Listener};
use crate::sys::netns::{Identity, Netns, within};
use crate::time::{self, MonoTime};

/// Interval of reading properties that may have no event.
const POLL: Duration = Duration::from_secs(1);

/// Pause of a watcher after each event: bounds the readings of netdevs that change all the time.
const PAUSE: Duration = Duration::from_millis(20);

/// Event of a watcher.
#[derive(Debug)]
pub(super) struct LinkEvent {
    netns: Netns,
    /// Number of the watcher.
    watcher: u64,
    /// Names of netdevs that may have changed. `None`: the watcher has ended.
    names: Option<HashSet<String>>,
}

/// Thread that reads netlink sockets, so that control does not block in the kernel.
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

/// Watchers, and readings in progress.
#[derive(Debug)]
pub(super) struct NetdevWatchers {
    watchers: HashMap<Netns, WatcherThread>,
    next_watcher: u64,
    events: mpsc::UnboundedReceiver<LinkEvent>,
    event_sender: mpsc::UnboundedSender<LinkEvent>,
    /// By namespace with a reading in progress: netdevs to read afterwards.
    reading: HashMap<Netns, HashSet<String>>,
    /// Number of readings so far.
    reads: u64,
    /// Time of the last reading of properties without events.
    polled: MonoTime,
    thread: Option<WatchThread>,
}

/// Netlink sockets of one namespace.
#[derive(Debug)]
struct WatcherThread {
    number: u64,
    /// Namespace to which the name led.
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
    /// Number of the last reading started.
    pub fn last_read(&self) -> u64 {
        self.reads
    }

    /// Runtime of the watcher thread.
    pub(super) fn watcher(&mut self) -> Handle {
        if self.thread.is_none() {
            match WatchThread::start() {
                Ok(thread) => self.thread = Some(thread),
                Err(why) => debug!("creating the thread that watches netdevs failed: {why}"),
            }
        }
        self.thread.as_ref().map_or_else(Handle::current, |thread| thread.handle.clone())
    }

    /// Whether reading properties without events is due.
    pub(super) fn poll_is_due(&mut self, now: MonoTime) -> bool {
        let is_due = now.since(self.polled) >= POLL;
        if is_due {
            self.polled = now;
        }
        is_due
    }

    /// Next event.
    pub async fn next(&mut self) -> Option<LinkEvent> {
        self.events.recv().await
    }

    /// Opens watchers in these namespaces, replaces those whose name leads to another namespace now, and closes the
    /// rest.
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
        // Debug level: each device detects errors of its netdev as well, and the watcher is reopened.
        debug!("watching links in {netns} failed: {why}");
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

/// Whether a port is down: an event of its netdev may allow opening.
fn is_waiting(port: &Port) -> bool {
    matches!(port.state, State::Down { .. } | State::Opening { .. })
}

/// Netdev of a port with a device of its own.
pub(super) fn watched(port: &Port) -> Option<(Netns, String)> {
    let device = port.endpoint.device()?;
    Some((device.netns().clone(), device.name().to_owned()))
}

impl Controller {
    /// Opens and closes watchers to match the ports.
    pub(super) fn watch_netdevs_in_use(&mut self) {
        let known = in_use(&self.ports).filter_map(|netns| Some((netns, self.namespaces.identity(netns)?)));
        self.watchers.watch(known.collect(), &self.jobs);
    }

    /// Handles an event and those queued behind it: reads the netdevs named.
    pub(super) fn handle_link_event(&mut self, event: LinkEvent) {
        let mut by_netns: HashMap<Netns, HashSet<String>> = HashMap::new();
        // All together: many links may go down at once.
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
        // An attempt may also succeed now if the netdev was in use or down.
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

    /// Reads these netdevs in the background.
    pub(super) fn read_netdevs_of(&mut self, netdevs: Vec<(Netns, String)>) {
        let mut by_netns: HashMap<Netns, HashSet<String>> = HashMap::new();
        for (netns, name) in netdevs {
            by_netns.entry(netns).or_default().insert(name);
        }
        for (netns, names) in by_netns {
            self.read_netdevs(netns, names);
        }
    }

    /// Reads netdevs in the background, one reading at a time per namespace.
    fn read_netdevs(&mut self, netns: Netns, names: HashSet<String>) {
        if let Some(afterwards) = self.watchers.reading.get_mut(&netns) {
            afterwards.extend(names);
            return;
        }
        let wanted = |port: &Port| {
            let settings =
                port.endpoint.device().filter(|device| *device.netns() == netns && names.contains(device.name()))?;
            // The netdev of an open device is found by index, any other by name.
            let open =
                port.netdev.as_ref().filter(|_| !settings.is_foreign() && matches!(port.state, State::Up { .. }));
            Some(Wanted { settings: settings.clone(), index: open.map(|netdev| netdev.link.index) })
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
            // Identification detects a deleted namespace.
            let found = within(&netns, look).unwrap_or_default();
            let _ = done.send(DeviceEvent::NetdevsRead(NetdevReadings { netns, read_id, found }));
        });
    }

    /// Reads the netdev of a port in the background.
    pub(super) fn read_netdev_of(&mut self, key: u64) {
        let port = self.port_index.get(&key).and_then(|&index| self.ports.get(index));
        self.read_netdevs_of(port.and_then(watched).into_iter().collect());
    }

    /// Reads properties without events, if due.
    pub(super) fn poll_netdevs(&mut self) {
        if !self.watchers.poll_is_due(time::now()) {
            return;
        }
        self.ports.iter().filter_map(|port| port.observed.as_ref()).for_each(Observed::request_samples);
        let is_polled = |port: &&Port| {
            let is_of_others = port.endpoint.device().is_some_and(Settings::is_foreign);
            // A bridge may lead to a VXLAN netdev, whose underlay is elsewhere.
            let is_on_bridge = port.netdev.as_ref().is_some_and(|netdev| netdev.master.is_some());
            matches!(port.state, State::Up { .. }) && (is_of_others || is_on_bridge || port.drift.is_missed())
        };
        let netdevs = self.ports.iter().filter(is_polled).filter_map(watched).collect();
        self.read_netdevs_of(netdevs);
    }

    /// Handles a reading.
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
                // It is being changed, and read afterwards.
                State::Up { .. } if self.is_awaited(port.key) => {}
                State::Up { .. } => match properties::outdated(device, port.netdev.as_ref(), now.as_ref()) {
                    Some(why) => gone.push((index, Reason::from(why))),
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
}
