//! The rings between workers: frames for ports whose devices are polled elsewhere, and sightings.
//!
//! Each pair of workers has one ring each way for either, bounded and never waited for. A frame
//! that does not fit is dropped and counted; a sighting that does not fit is lost, and is told again
//! later: it can be, for it only says what was seen.

use rtrb::{Consumer, Producer, RingBuffer};

use super::Notifier;
use crate::frame::Frame;
use crate::switch::{Flood, MacUpdate, PortId};
use crate::wire::Priority;

/// Frames on their way from one worker to another, at most.
const HANDOFF_RING: usize = 1024;

/// Places in the ring that frames to be flooded leave free: a storm crowds out no frame for one port.
pub(super) const UNICAST_RESERVE: usize = HANDOFF_RING / 2;

/// Sightings on their way from one worker to another, at most.
const UPDATE_RING: usize = 4096;

/// Workers that a switch can have, at most.
pub const MAX_WORKERS: usize = 64;

/// A frame on its way to another worker, with what it has been judged to.
#[derive(Debug)]
pub struct HandoffFrame {
    /// The frame, in slots of its own.
    pub frame: Frame,
    /// What to do with it.
    pub target: HandoffTarget,
    /// The priority of the tag that was taken off it, for the tag that it may get there.
    pub priority: Option<Priority>,
}
// It is copied into a ring and out of it for each frame.
const _: () = assert!(size_of::<HandoffFrame>() == 48);

/// Where a parcel is to go. It is not judged again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandoffTarget {
    /// Out of this port.
    Port(PortId),
    /// Out of every port of this worker that this flood reaches.
    Flood(Flood),
}

/// One worker's ends of the rings to and from another one.
#[derive(Debug)]
pub struct Peer {
    pub(super) frames_out: Producer<HandoffFrame>,
    pub(super) frames_in: Consumer<HandoffFrame>,
    pub(super) updates_out: Producer<MacUpdate>,
    pub(super) updates_in: Consumer<MacUpdate>,
    pub(super) notifier: Notifier,
    /// Whether something was sent since the bell was rung.
    pub(super) needs_notify: bool,
}

impl Peer {
    /// Whether something has arrived from there.
    pub(super) fn has_work(&self) -> bool {
        !self.frames_in.is_empty() || !self.updates_in.is_empty()
    }
}

/// The rings between two workers: the ends of the one whose peer has bell `there`, and of the one
/// whose peer has bell `here`.
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
