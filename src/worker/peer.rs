//! Rings between workers: frames for ports that another worker polls, and FDB updates.
//!
//! Each pair of workers has one bounded ring per direction and kind; no worker waits for a ring. A frame that finds
//! its ring full is dropped and counted. An FDB update that finds its ring full is lost; a later refresh repeats
//! it.

use rtrb::{Consumer, Producer, PushError, RingBuffer};

use super::Notifier;
use crate::frame::Frame;
use crate::switch::{Flood, MacUpdate, PortId};
use crate::wire::Priority;

/// Capacity of a ring of frames.
const HANDOFF_RING: usize = 1024;

/// Half of the ring is reserved for unicast: a flood storm crowds out no frame for one port.
const UNICAST_RESERVE: usize = HANDOFF_RING / 2;

/// Capacity of a ring of FDB updates.
const UPDATE_RING: usize = 4096;

/// Maximum number of workers of a switch.
pub const MAX_WORKERS: usize = 64;

/// A frame for another worker, with its decided target.
#[derive(Debug)]
pub struct HandoffFrame {
    /// The frame, in slots that it owns.
    pub frame: Frame,
    /// Egress port or flood.
    pub target: HandoffTarget,
    /// Priority of the removed VLAN tag, for the tag that egress may insert.
    pub priority: Option<Priority>,
}
// Copied into and out of a ring per frame.
const _: () = assert!(size_of::<HandoffFrame>() == 48);

/// Where the receiving worker sends a frame. The frame is not decided again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandoffTarget {
    /// Transmit by this port.
    Port(PortId),
    /// Transmit by every port of the receiving worker that this flood reaches.
    Flood(Flood),
}

/// One worker's ends of the rings to and from a peer.
#[derive(Debug)]
pub struct Peer {
    frames_out: Producer<HandoffFrame>,
    pub(super) frames_in: Consumer<HandoffFrame>,
    updates_out: Producer<MacUpdate>,
    pub(super) updates_in: Consumer<MacUpdate>,
    notifier: Notifier,
    /// Whether a ring has been written since the last notification.
    needs_notify: bool,
}

impl Peer {
    /// Whether a frame or FDB update has arrived from the peer.
    pub(super) fn has_work(&self) -> bool {
        !self.frames_in.is_empty() || !self.updates_in.is_empty()
    }

    /// Sends a frame. Returns it if the ring has no room for it.
    #[inline]
    pub(super) fn send_frame(&mut self, frame: HandoffFrame) -> Result<(), HandoffFrame> {
        if matches!(frame.target, HandoffTarget::Flood(_)) && self.frames_out.slots() <= UNICAST_RESERVE {
            return Err(frame);
        }
        self.frames_out.push(frame).map_err(|PushError::Full(frame)| frame)?;
        self.needs_notify = true;
        Ok(())
    }

    /// Sends an FDB update. `false` if the ring is full.
    #[inline]
    pub(super) fn send_update(&mut self, update: MacUpdate) -> bool {
        let sent = self.updates_out.push(update).is_ok();
        self.needs_notify |= sent;
        sent
    }

    /// Wakes the peer if anything was sent since the last call.
    #[inline]
    pub(super) fn notify(&mut self) {
        if std::mem::take(&mut self.needs_notify) {
            self.notifier.notify();
        }
    }
}

/// Creates the rings between two workers: the end that notifies `there`, and the end that notifies `here`.
pub(super) fn pair(here: &Notifier, there: &Notifier) -> (Peer, Peer) {
    let (parcels_to_there, parcels_from_here) = RingBuffer::new(HANDOFF_RING);
    let (parcels_to_here, parcels_from_there) = RingBuffer::new(HANDOFF_RING);
    let (sightings_to_there, sightings_from_here) = RingBuffer::new(UPDATE_RING);
    let (sightings_to_here, sightings_from_there) = RingBuffer::new(UPDATE_RING);
    let end = |frames_out, frames_in, updates_out, updates_in, notifier: &Notifier| Peer {
        frames_out,
        frames_in,
        updates_out,
        updates_in,
        notifier: notifier.clone(),
        needs_notify: false,
    };
    (
        end(parcels_to_there, parcels_from_there, sightings_to_there, sightings_from_there, there),
        end(parcels_to_here, parcels_from_here, sightings_to_here, sightings_from_here, here),
    )
}
