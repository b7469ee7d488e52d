//! The gates of a worker: the device queues it polls, and what waits to leave by them.

use std::fmt;

use super::early_drop::EarlyDrop;
use super::moderation::RxModeration;
use super::outbox::place;
use super::subports::{SubportTable, SubportTx};
use crate::device::Device;
use crate::frame::{BURST, Frame, FrameRef, TxBatch};
use crate::switch::{Attachment, DropReason, ForwardingConfig, MAX_PORTS, PortConfig, PortId, Verdict};
use crate::wire::Vid;

/// Frames that wait in one lane at most: a worker sends its lanes off after a burst or two.
pub(super) const TX_BATCH: usize = 3 * BURST;

/// One queue of a port's device, and the lane of frames that leave by it.
pub struct RxQueue {
    /// The port, or the carrier.
    pub port: PortId,
    /// Which of the device's queues.
    pub queue: u16,
    /// The device. Nobody else polls it.
    pub device: Box<dyn Device>,
    /// Its lane, until it is opened and after it has been closed; meanwhile [`QueueTable`] has it.
    tx: TxBatch,
    offloads: bool,
    /// Whether its device leads to a wire.
    pub(super) needs_padding: bool,
    /// How many frames its device hands over at once, at most.
    pub(super) max_burst: usize,
    /// Whether its device is left alone for a moment.
    pub(super) moderation: RxModeration,
    /// Whether it is polled even when it is quiet.
    pub(super) never_sleeps: bool,
    /// Whether its lane has frames that have to be finished before they can leave by it.
    pub(super) needs_sw_offload: bool,
    /// Reads that found nothing, in a row.
    pub(super) idle_streak: u8,
    /// Bursts received and bursts sent since its descriptor is watched, up to where it is watched no longer.
    pub(super) busy_streak: u8,
    pub(super) state: QueueState,
    /// Full bursts in a row of which no frame lived.
    pub(super) dropped_bursts: u8,
    /// Frames to each kind of group that its device sheds.
    pub(super) early_drop: EarlyDrop,
}

/// Whether a gate is polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueState {
    /// It is.
    Polled,
    /// It has been quiet, and is left alone until its descriptor becomes readable.
    Watched,
    /// It is, but not for this many breaths: nothing lives of what it brings.
    BackedOff(u8),
    /// Its device is gone.
    Gone,
}

impl fmt::Debug for RxQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("port", &self.port).field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl RxQueue {
    /// A gate that nobody polls yet.
    pub fn new(port: PortId, queue: u16, device: Box<dyn Device>) -> RxQueue {
        RxQueue {
            port,
            queue,
            offloads: device.caps().offloads,
            needs_padding: device.needs_padding(),
            max_burst: device.max_burst(),
            moderation: RxModeration::new(device.moderation_time()),
            never_sleeps: device.is_cheap_to_poll() || device.fd().is_none(),
            device,
            tx: TxBatch::with_capacity(TX_BATCH),
            needs_sw_offload: false,
            idle_streak: 0,
            busy_streak: 0,
            state: QueueState::Polled,
            dropped_bursts: 0,
            early_drop: EarlyDrop::default(),
        }
    }
}

/// Frames that went into lanes the short way.
#[derive(Debug, Default)]
pub(super) struct FastForwarded {
    /// How many.
    pub(super) frames: usize,
    /// And their bytes.
    pub(super) bytes: u64,
    /// Whether some of them were borrowed.
    pub(super) borrowed: bool,
}

/// The numbers of branches begin here, behind those of all gates.
const SUBPORT_BASE: usize = MAX_PORTS;

/// Numbers of gates and branches.
const NUMBERS: usize = SUBPORT_BASE + MAX_PORTS;

/// Of how many gates, or branches, it is asked at once whether they have something to send.
pub(super) const SCAN_WIDTH: usize = 8;

/// How frames leave for a port.
#[derive(Debug, Clone, Copy)]
pub(super) struct EgressEntry {
    /// The port.
    port: PortId,
    /// The number of the gate, or of the branch.
    queue: u16,
    /// Whether the gate takes offload headers.
    pub(super) offloads: bool,
    /// Whether floods leave by it: at one worker only, though a port may have queues at several.
    pub(super) floods: bool,
}

/// No door.
const NO_EGRESS: EgressEntry = EgressEntry { port: PortId::NONE, queue: u16::MAX, offloads: false, floods: false };

/// How frames leave for a port by a device that carries several.
#[derive(Debug, Clone, Copy)]
pub(super) struct TaggedEgress {
    /// Through this door.
    pub(super) entry: EgressEntry,
    /// With this tag, if any.
    pub(super) vlan: Option<Vid>,
    /// Whether they have to be as long as frames on a wire: it is an uplink, and its device may lead to one.
    pub(super) pads: bool,
}

/// The doors that lead through one gate: that of its port, or those of the ports that it carries. Not
/// those of ports or carriers that are administratively down or in standby. By those of ports in quarantine
/// only loop probes may leave.
fn egress_entries<'a>(
    queue: &RxQueue,
    number: u16,
    me: u16,
    config: &'a ForwardingConfig,
) -> impl Iterator<Item = (EgressEntry, &'a PortConfig)> {
    let own = config.port(queue.port).filter(|port| port.attachment == Attachment::Own);
    let tagged = config.trunk(queue.port).into_iter().flat_map(|trunk| &trunk.ports).filter_map(|&(vlan, id)| {
        let attachment = Attachment::Tagged { trunk: queue.port, vlan };
        config.port(id).filter(|port| port.attachment == attachment)
    });
    let leads_out = |port: &&PortConfig| queue.state != QueueState::Gone && config.probe_egress(port.id).is_ok();
    own.into_iter()
        .chain(tagged)
        .filter(leads_out)
        .map(move |port| (egress_entry(queue, number, me, config, port), port))
}

/// The door of a port through a gate that leads there.
fn egress_entry(queue: &RxQueue, number: u16, me: u16, config: &ForwardingConfig, port: &PortConfig) -> EgressEntry {
    #[allow(clippy::cast_possible_truncation)] // there are at most as many branches as ports
    let through = config.subport_index(port.id).map_or(number, |subport| (SUBPORT_BASE + subport) as u16);
    EgressEntry { port: port.id, queue: through, offloads: queue.offloads, floods: port.worker == Some(me) }
}

/// The gates of a worker, by a number that stays while they are open.
#[derive(Debug)]
pub(super) struct QueueTable {
    /// Which worker's.
    me: u16,
    slots: Vec<Option<RxQueue>>,
    /// By number: what waits to leave by each gate. Apart from the gates, to stand close together.
    tx_batches: Vec<TxBatch>,
    /// By [`PortId::index`]: how frames leave for this port by a device of its own. Shut while the port is
    /// administratively down, so that asking for the door is all that a frame has to ask.
    egress: Box<[EgressEntry; MAX_PORTS]>,
    /// The same for ports that are carried. These have no door above, so that a frame that finds one
    /// there has nothing more to ask.
    tagged_egress: Box<[Option<TaggedEgress>; MAX_PORTS]>,
    /// By number: 1 for the gates and branches whose lanes are not empty. Bytes, and not bits, as one is written for
    /// each frame.
    pending: Box<[u8; NUMBERS]>,
    /// The lanes of subports, in the order of the rules.
    subports: SubportTable,
    open: usize,
}

impl QueueTable {
    pub(super) fn new(me: u16) -> QueueTable {
        QueueTable {
            me,
            slots: Vec::with_capacity(MAX_PORTS),
            tx_batches: Vec::with_capacity(MAX_PORTS),
            egress: Box::new([NO_EGRESS; MAX_PORTS]),
            tagged_egress: Box::new([None; MAX_PORTS]),
            pending: Box::new([0; NUMBERS]),
            subports: SubportTable::default(),
            open: 0,
        }
    }

    /// How many gates are open.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// One more than the highest number of a gate.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut RxQueue> {
        self.slots.get_mut(number)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &RxQueue> {
        self.slots.iter().flatten()
    }

    /// Opens a gate, and says its number. It comes back if there are too many.
    #[allow(clippy::result_large_err)] // it is the gate that comes back
    pub(super) fn insert(&mut self, mut queue: RxQueue, config: &ForwardingConfig) -> Result<usize, RxQueue> {
        let port = queue.port;
        let number = match self.slots.iter().position(Option::is_none) {
            Some(number) => number,
            None if self.slots.len() < MAX_PORTS => {
                self.slots.push(None);
                self.tx_batches.push(TxBatch::default());
                self.slots.len() - 1
            }
            None => return Err(queue),
        };
        self.tx_batches[number] = std::mem::take(&mut queue.tx);
        self.slots[number] = Some(queue);
        self.open += 1;
        self.rebuild_egress_of(port, config);
        Ok(number)
    }

    pub(super) fn number_of(&self, port: PortId, queue: u16) -> Option<usize> {
        self.slots
            .iter()
            .position(|slot| slot.as_ref().is_some_and(|rx_queue| rx_queue.port == port && rx_queue.queue == queue))
    }

    /// Closes a gate.
    pub(super) fn remove(&mut self, number: usize, config: &ForwardingConfig) -> Option<RxQueue> {
        let mut queue = self.slots.get_mut(number)?.take()?;
        queue.tx = std::mem::take(&mut self.tx_batches[number]);
        self.open -= 1;
        self.pending[number] = 0;
        self.rebuild_egress_of(queue.port, config);
        Some(queue)
    }

    /// Marks a gate as one whose device is gone.
    pub(super) fn mark_gone(&mut self, number: usize, config: &ForwardingConfig) {
        if let Some(queue) = self.get_mut(number) {
            queue.state = QueueState::Gone;
            let port = queue.port;
            self.rebuild_egress_of(port, config);
        }
    }

    /// Takes other room for branches. That before comes back. Between two breaths, when nothing waits.
    pub(super) fn replace_subports(&mut self, subports: SubportTable, config: &ForwardingConfig) -> SubportTable {
        let old = std::mem::replace(&mut self.subports, subports);
        self.rebuild_egress(config);
        old
    }

    /// Finds the doors again, under new rules.
    pub(super) fn rebuild_egress(&mut self, config: &ForwardingConfig) {
        self.egress.fill(NO_EGRESS);
        self.tagged_egress.fill(None);
        for (number, queue) in (0..).zip(&self.slots).filter_map(|(number, queue)| Some((number, queue.as_ref()?))) {
            for (egress, port) in egress_entries(queue, number, self.me, config) {
                let (plain, tagged) =
                    (&mut self.egress[egress.port.index()], &mut self.tagged_egress[egress.port.index()]);
                match port.attachment {
                    Attachment::Own if plain.port != egress.port && !port.quarantined => *plain = egress,
                    Attachment::Tagged { vlan, .. } if tagged.is_none() => {
                        let subport = usize::from(egress.queue).checked_sub(SUBPORT_BASE);
                        // What waits in a branch stays in it: the rules number them.
                        let has_lane =
                            subport.is_none_or(|subport| self.subports.assign(subport, egress.port, number.into()));
                        let pads = queue.needs_padding && port.is_uplink();
                        *tagged = (has_lane && !port.quarantined).then_some(TaggedEgress { entry: egress, vlan, pads });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Finds the door of `port` again, or, if it is a carrier, those of the ports it carries.
    fn rebuild_egress_of(&mut self, port: PortId, config: &ForwardingConfig) {
        if config.trunk(port).is_some() {
            return self.rebuild_egress(config);
        }
        let queues = (0..).zip(&self.slots).filter_map(|(number, queue)| Some((number, queue.as_ref()?)));
        let mut found = queues
            .filter(|(_, queue)| queue.port == port)
            .flat_map(|(number, queue)| egress_entries(queue, number, self.me, config));
        self.egress[port.index()] = found.find(|(_, port)| !port.quarantined).map_or(NO_EGRESS, |(egress, _)| egress);
    }

    /// How loop probes leave for `port`, be it in quarantine or not, or why they cannot.
    pub(super) fn probe_egress(&self, port: PortId, config: &ForwardingConfig) -> Result<TaggedEgress, DropReason> {
        let port = config.probe_egress(port)?;
        let (by, vlan) = match port.attachment {
            Attachment::Own => (port.id, None),
            Attachment::Tagged { trunk, vlan } => (trunk, vlan),
        };
        let queues = (0..).zip(&self.slots).filter_map(|(number, queue)| Some((number, queue.as_ref()?)));
        let mut fit = queues.filter(|(_, queue)| queue.port == by && queue.state != QueueState::Gone);
        let (number, queue) = fit.next().ok_or(DropReason::NoDevice)?;
        if config.subport_index(port.id).is_some_and(|subport| subport >= self.subports.len()) {
            return Err(DropReason::NoDevice);
        }
        Ok(TaggedEgress { entry: egress_entry(queue, number, self.me, config, port), vlan, pads: false })
    }

    /// How frames leave for `port` by a device of its own. `None`: it has none here, or the port is
    /// administratively down, or it is closed.
    #[inline(always)]
    pub(super) fn egress(&self, port: PortId) -> Option<EgressEntry> {
        let egress = self.egress[port.index() % MAX_PORTS];
        (egress.port == port).then_some(egress)
    }

    /// How frames leave for `port` by a device that carries several.
    #[inline]
    pub(super) fn tagged_egress(&self, port: PortId) -> Option<TaggedEgress> {
        self.tagged_egress[port.index() % MAX_PORTS].filter(|tagged| tagged.entry.port == port)
    }

    /// The lane behind a door, for a frame to be put into it.
    #[inline(always)]
    pub(super) fn tx_mut(&mut self, egress: EgressEntry) -> &mut TxBatch {
        let number = usize::from(egress.queue);
        self.pending[number % NUMBERS] = 1;
        if number < self.tx_batches.len() { &mut self.tx_batches[number] } else { self.subport_tx_mut(number) }
    }

    /// Puts frames into the lanes of the ports that they are for, from the one at `first` of their burst on: as far as
    /// nothing has to be done to them, and the port has a device of its own here. A frame that owns its slot is taken
    /// out of its place, one that is lent is borrowed.
    #[inline(never)] // with registers of its own
    pub(super) fn push_known(&mut self, frames: &mut [Frame], first: usize, verdicts: &[Verdict]) -> FastForwarded {
        let mut fast = FastForwarded::default();
        for (frame, verdict) in frames.iter_mut().zip(verdicts) {
            let Verdict::To(to) = *verdict else { break };
            let egress = self.egress[to.index() % MAX_PORTS];
            let number = usize::from(egress.queue);
            if egress.port != to {
                break;
            }
            let Some(tx) = self.tx_batches.get_mut(number) else { break };
            // Also where frames wait in it: whether they do, no processor could foresee.
            self.pending[number % NUMBERS] = 1;
            let len = u64::from(frame.len());
            if frame.is_single_slot() {
                tx.push_from(frame);
            } else if frame.is_single_borrow(egress.offloads) {
                tx.borrow(place(first + fast.frames));
                fast.borrowed = true;
            } else {
                break;
            }
            fast.bytes += len;
            fast.frames += 1;
        }
        fast
    }

    #[inline(never)] // it takes the place of what would be a panic
    fn subport_tx_mut(&mut self, number: usize) -> &mut TxBatch {
        self.subports.tx(number - SUBPORT_BASE)
    }

    /// Whether a frame with offload work can leave by a door as it is.
    #[inline(never)] // hardly any frame asks
    pub(super) fn supports(&self, egress: EgressEntry, view: &FrameRef<'_>) -> bool {
        let number = usize::from(egress.queue);
        let number = number.checked_sub(SUBPORT_BASE).map_or(Some(number), |subport| self.subports.queue_of(subport));
        let queue = number.and_then(|number| self.slots.get(number)?.as_ref());
        queue.is_some_and(|queue| view.is_supported_by(queue.device.offload_set()))
    }

    /// Notes that a frame goes into the lane behind a door that has to be finished first.
    #[inline]
    pub(super) fn mark_sw_offload(&mut self, egress: EgressEntry) {
        let number = usize::from(egress.queue);
        if let Some(queue) = self.get_mut(number) {
            queue.needs_sw_offload = true;
        } else if let Some(subport) =
            number.checked_sub(SUBPORT_BASE).and_then(|subport| self.subports.get_mut(subport))
        {
            subport.needs_sw_offload = true;
        }
    }

    /// The numbers of branches, [`SCAN_WIDTH`] at a time: none, if there is no trunk.
    #[inline]
    pub(super) fn subport_numbers(&self) -> impl Iterator<Item = usize> + use<> {
        (SUBPORT_BASE..SUBPORT_BASE + self.subports.len()).step_by(SCAN_WIDTH)
    }

    /// A branch, by its number, and the gate by which it leaves.
    pub(super) fn subport(&mut self, number: usize) -> Option<(&mut RxQueue, &mut SubportTx)> {
        let subport = self.subports.get_mut(number.checked_sub(SUBPORT_BASE)?)?;
        Some((self.slots.get_mut(subport.queue)?.as_mut()?, subport))
    }

    /// Of [`SCAN_WIDTH`] gates or branches from `first` on, those that have something to send, as a set of bits with
    /// room for eight times as many. It is not remembered any longer.
    #[inline]
    pub(super) fn take_pending(&mut self, first: usize) -> u64 {
        self.pending[first..].first_chunk_mut().map_or(0, |bytes| u64::from_le_bytes(std::mem::take(bytes)))
    }

    /// A gate and its lane.
    #[inline]
    pub(super) fn with_tx(&mut self, number: usize) -> Option<(&mut RxQueue, &mut TxBatch)> {
        Some((self.slots.get_mut(number)?.as_mut()?, self.tx_batches.get_mut(number)?))
    }
}
