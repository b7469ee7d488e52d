//! Queue table of a worker: the device queues it polls, their TX batches, and the egress entry of each port.

use super::rx_queue::{QueueState, RxQueue};
use super::subports::{SubportTable, SubportTx};
use crate::frame::{Frame, FrameRef, TxBatch};
use crate::switch::{Attachment, DropReason, ForwardingConfig, MAX_PORTS, PortConfig, PortId, Verdict};
use crate::wire::Vid;

/// Frames that took the fast path of one call.
#[derive(Debug, Default)]
pub(super) struct FastForwarded {
    /// Number of frames.
    pub(super) frames: usize,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Whether any frame was borrowed.
    pub(super) borrowed: bool,
}

/// First number of a subport's TX batch; queues are numbered below.
const SUBPORT_BASE: usize = MAX_PORTS;

/// Numbers of queues and subports.
const NUMBERS: usize = SUBPORT_BASE + MAX_PORTS;

/// Queues or subports whose pending flags are scanned at once.
pub(super) const SCAN_WIDTH: usize = 8;

/// Egress of a port: the TX batch to use.
#[derive(Debug, Clone, Copy)]
pub(super) struct EgressEntry {
    /// The port.
    port: PortId,
    /// Number of the queue or subport.
    queue: u16,
    /// Whether the queue takes virtio_net_hdr offloads.
    pub(super) offloads: bool,
    /// Whether floods use this entry: at one worker only, even if the port has queues at several.
    pub(super) floods: bool,
}

/// No egress.
const NO_EGRESS: EgressEntry = EgressEntry { port: PortId::NONE, queue: u16::MAX, offloads: false, floods: false };

/// Egress of a port on a trunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct TaggedEgress {
    /// Egress entry.
    pub(super) entry: EgressEntry,
    /// VLAN tag to insert, if any.
    pub(super) vlan: Option<Vid>,
    /// Whether to pad to the wire's minimum: an uplink whose device may lead to a wire.
    pub(super) pads: bool,
}

/// Egress entries through one queue: that of its port, or those of its trunk's ports. Excludes ports and trunks
/// that are administratively down or backup. Includes quarantined ports, for loop probes only.
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

/// Egress entry of a port through a queue that leads there.
fn egress_entry(queue: &RxQueue, number: u16, me: u16, config: &ForwardingConfig, port: &PortConfig) -> EgressEntry {
    #[allow(clippy::cast_possible_truncation)] // at most as many subports as ports
    let through = config.subport_index(port.id).map_or(number, |subport| (SUBPORT_BASE + subport) as u16);
    EgressEntry { port: port.id, queue: through, offloads: queue.offloads, floods: port.worker == Some(me) }
}

/// The queues of a worker, by a number that is stable while they are open.
#[derive(Debug)]
pub(super) struct QueueTable {
    /// Index of this worker.
    me: u16,
    slots: Vec<Option<RxQueue>>,
    /// TX batches by queue number. Kept apart from the queues for cache density.
    tx_batches: Vec<TxBatch>,
    /// Egress of ports with a device of their own, by [`PortId::index`]. `NO_EGRESS` while the port is
    /// administratively down, so that this is the only check per frame.
    egress: Box<[EgressEntry; MAX_PORTS]>,
    /// Egress of trunk ports, which have `NO_EGRESS` above, so that a frame with a plain entry needs no VLAN check.
    tagged_egress: Box<[Option<TaggedEgress>; MAX_PORTS]>,
    /// By number: 1 if the TX batch is not empty. Bytes rather than bits, because one is written per frame.
    pending: Box<[u8; NUMBERS]>,
    /// TX batches of subports, in the order of the forwarding configuration.
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

    /// Number of open queues.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// Highest queue number plus one.
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

    /// Opens a queue and returns its number. Returns the queue if the table is full.
    #[allow(clippy::result_large_err)] // returns the queue
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

    /// Closes a queue.
    pub(super) fn remove(&mut self, number: usize, config: &ForwardingConfig) -> Option<RxQueue> {
        let mut queue = self.slots.get_mut(number)?.take()?;
        queue.tx = std::mem::take(&mut self.tx_batches[number]);
        self.open -= 1;
        self.pending[number] = 0;
        self.rebuild_egress_of(queue.port, config);
        Some(queue)
    }

    /// Marks a queue whose device is gone, and removes its egress entries.
    pub(super) fn mark_gone(&mut self, number: usize, config: &ForwardingConfig) {
        if let Some(queue) = self.get_mut(number) {
            queue.state = QueueState::Gone;
            let port = queue.port;
            self.rebuild_egress_of(port, config);
        }
    }

    /// Replaces the subport table and returns the old one. Runs between two calls of `poll_once`, while no frame is
    /// pending.
    pub(super) fn replace_subports(&mut self, subports: SubportTable, config: &ForwardingConfig) -> SubportTable {
        let old = std::mem::replace(&mut self.subports, subports);
        self.rebuild_egress(config);
        old
    }

    /// Rebuilds all egress entries from the forwarding configuration.
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
                        // Pending frames stay in their subport: the configuration numbers subports.
                        let has_queue =
                            subport.is_none_or(|subport| self.subports.assign(subport, egress.port, number.into()));
                        let pads = queue.needs_padding && port.is_uplink();
                        *tagged =
                            (has_queue && !port.quarantined).then_some(TaggedEgress { entry: egress, vlan, pads });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Rebuilds the egress entry of `port`, or those of all ports if `port` is a trunk.
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

    /// Egress for loop probes of `port`, quarantined or not; else the reason to drop them.
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

    /// Egress of `port` by a device of its own. `None` if it has none here, or is administratively down or closed.
    #[inline(always)]
    pub(super) fn egress(&self, port: PortId) -> Option<EgressEntry> {
        let egress = self.egress[port.index() % MAX_PORTS];
        (egress.port == port).then_some(egress)
    }

    /// Egress of `port` on a trunk.
    #[inline]
    pub(super) fn tagged_egress(&self, port: PortId) -> Option<TaggedEgress> {
        self.tagged_egress[port.index() % MAX_PORTS].filter(|tagged| tagged.entry.port == port)
    }

    /// The TX batch of an egress entry, marked as pending.
    #[inline(always)]
    pub(super) fn tx_mut(&mut self, egress: EgressEntry) -> &mut TxBatch {
        let number = usize::from(egress.queue);
        self.pending[number % NUMBERS] = 1;
        if number < self.tx_batches.len() { &mut self.tx_batches[number] } else { self.subport_tx_mut(number) }
    }

    /// Fast path: pushes frames from index `first` on to the TX batches of their ports, up to the first frame that
    /// needs other work or whose port has no device of its own here. Moves frames that own their slot; borrows the
    /// others.
    #[inline(never)] // to limit register pressure
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
            // Written even if already set: a branch on it would be unpredictable.
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

    #[inline(never)] // cold path, in place of a panic
    fn subport_tx_mut(&mut self, number: usize) -> &mut TxBatch {
        self.subports.tx(number - SUBPORT_BASE)
    }

    /// Whether a frame with offload work can leave by `egress` unchanged.
    #[inline(never)] // rare
    pub(super) fn supports(&self, egress: EgressEntry, view: &FrameRef<'_>) -> bool {
        let number = usize::from(egress.queue);
        let number = number.checked_sub(SUBPORT_BASE).map_or(Some(number), |subport| self.subports.queue_of(subport));
        let queue = number.and_then(|number| self.slots.get(number)?.as_ref());
        queue.is_some_and(|queue| view.is_supported_by(queue.device.offload_set()))
    }

    /// Marks the TX batch of `egress` for software offload.
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

    /// First numbers of groups of [`SCAN_WIDTH`] subports; empty without trunks.
    #[inline]
    pub(super) fn subport_numbers(&self) -> impl Iterator<Item = usize> + use<> {
        (SUBPORT_BASE..SUBPORT_BASE + self.subports.len()).step_by(SCAN_WIDTH)
    }

    /// A subport by its number, with its egress queue.
    pub(super) fn subport(&mut self, number: usize) -> Option<(&mut RxQueue, &mut SubportTx)> {
        let subport = self.subports.get_mut(number.checked_sub(SUBPORT_BASE)?)?;
        Some((self.slots.get_mut(subport.queue)?.as_mut()?, subport))
    }

    /// Takes the pending flags of [`SCAN_WIDTH`] queues or subports from `first` on, one byte each, and clears
    /// them.
    #[inline]
    pub(super) fn take_pending(&mut self, first: usize) -> u64 {
        self.pending[first..].first_chunk_mut().map_or(0, |bytes| u64::from_le_bytes(std::mem::take(bytes)))
    }

    /// A queue and its TX batch.
    #[inline]
    pub(super) fn with_tx(&mut self, number: usize) -> Option<(&mut RxQueue, &mut TxBatch)> {
        Some((self.slots.get_mut(number)?.as_mut()?, self.tx_batches.get_mut(number)?))
    }
}

/// Index of a frame in its burst.
#[allow(clippy::cast_possible_truncation)] // a burst has 64 frames
pub(super) const fn place(index: usize) -> u8 {
    index as u8
}
