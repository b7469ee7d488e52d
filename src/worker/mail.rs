//! What control may ask of a worker. One mailbox per worker, read in order, one command per breath,
//! each handled in bounded time. What control gave, control gets back: old rules and closed devices
//! return in the reply and are dropped there.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};
use tokio::sync::oneshot;

use super::{Bell, Gate, Room};
use crate::switch::{Learned, NetworkId, PortId, Rules};
use crate::telemetry::PortCounters;
use crate::telemetry::audit::Reading;
use crate::wire::{Announcement, Mac, Probe};

/// Commands that a mailbox holds. Control waits for each answer, so it never fills.
const MAILBOX: usize = 64;

/// The counters of one worker, by [`PortId::index`]: of uplinks as carriers, and of ports of VMs, subports
/// included.
pub type Books = Vec<Option<Arc<PortCounters>>>;

/// A page of a worker's stations, on the way there and back.
#[derive(Debug)]
pub struct StationsPage {
    /// Its capacity says how many stations may be put into it.
    pub stations: Vec<Learned>,
    /// Where to begin; in the answer, where to go on, `None` at the end.
    pub cursor: Option<usize>,
}

/// Which stations to forget: those to which all that is given applies. A part of the table at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flush {
    /// Those of this network.
    pub network: Option<NetworkId>,
    /// Those that were learned behind the port at this place ([`PortId::index`]), or behind one that
    /// stood there before.
    pub place: Option<usize>,
    /// Those with this address.
    pub mac: Option<Mac>,
    /// Where to begin: 0, then what the answer says.
    pub cursor: usize,
}

impl Flush {
    /// Whether this station is one of them.
    pub fn means(&self, learned: &Learned) -> bool {
        self.network.is_none_or(|network| learned.station.network() == network)
            && self.place.is_none_or(|place| learned.port.index() == place)
            && self.mac.is_none_or(|mac| learned.station.mac() == mac)
    }
}

/// What came of forgetting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flushed {
    /// How many stations were forgotten, of those whose port is there.
    pub stations: u32,
    /// Where to go on; `None` at the end.
    pub cursor: Option<usize>,
}

/// Loop probes, and the ports out of which they are to go.
pub type Probes = Vec<(PortId, [u8; Probe::LEN])>;

/// Announcements of local stations, and the uplinks by which they are to go, each as its port on one network.
pub type Announcements = Vec<(PortId, [u8; Announcement::LEN])>;

/// A command, and where its answer goes.
#[derive(Debug)]
pub enum Command {
    /// Put these rules in force, and count in these books. The old ones come back.
    Rules(Arc<Rules>, Books, oneshot::Sender<(Arc<Rules>, Books)>),
    /// Have this room for branches, in place of that before, which comes back. Rules with more subports than there
    /// is room for come after room for them.
    Room(Room, oneshot::Sender<Room>),
    /// Poll this gate from now on. It comes back if it cannot be.
    Open(Gate, oneshot::Sender<Result<(), Gate>>),
    /// Stop polling this queue of this port. The gate comes back if there was one.
    Close(PortId, u16, oneshot::Sender<Option<Gate>>),
    /// Fill a page with stations.
    Stations(StationsPage, oneshot::Sender<StationsPage>),
    /// Fill in how many stations are learned on each network, by [`NetworkId::index`](crate::switch::NetworkId::index).
    Census(Vec<u32>, oneshot::Sender<Vec<u32>>),
    /// Read all counters at this moment, at which they balance. The reading has room for
    /// [`MOST_PORTS`](crate::switch::MOST_PORTS).
    Audit(Box<Reading>, oneshot::Sender<Box<Reading>>),
    /// Answer: a worker that breathes does.
    Ping(oneshot::Sender<()>),
    /// Forget some stations.
    Flush(Flush, oneshot::Sender<Flushed>),
    /// Learn these stations, where nothing is known of them yet. They come back.
    Learn(Vec<Learned>, oneshot::Sender<Vec<Learned>>),
    /// Send these loop probes, in this order. They come back, and each has been counted as one of the `probes` of its
    /// port, whatever became of it; those for a port that is closed are not.
    Probes(Probes, oneshot::Sender<Probes>),
    /// Send these announcements, in this order. They come back, and each has been counted as one of the `announcements`
    /// of its uplink, whatever became of it; those for a port that is closed, or is none of an uplink, are not.
    Announce(Announcements, oneshot::Sender<Announcements>),
    /// Stop. All gates come back.
    Stop(oneshot::Sender<Vec<Gate>>),
}

/// What a worker tells control unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A device is gone; its gate is not polled any more, and waits to be closed.
    DeviceGone {
        /// The port it belongs to.
        port: PortId,
        /// Which of its queues.
        queue: u16,
    },
}

/// Control's end of a worker's mailbox.
#[derive(Debug, Clone)]
pub struct Post {
    mailbox: Sender<Command>,
    bell: Bell,
}

impl Post {
    /// A mailbox: the end that sends and the end that reads.
    pub fn new(bell: Bell) -> (Post, Receiver<Command>) {
        let (mailbox, read) = bounded(MAILBOX);
        (Post { mailbox, bell }, read)
    }

    /// Sends a command. `false` if the worker is gone.
    pub fn send(&self, command: Command) -> bool {
        let sent = self.mailbox.send(command).is_ok();
        self.bell.ring();
        sent
    }
}
