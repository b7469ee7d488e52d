//! The rings between workers: frames for ports whose devices are polled elsewhere, and sightings.
//!
//! Each pair of workers has one ring each way for either, bounded and never waited for. A frame
//! that does not fit is dropped and counted; a sighting that does not fit is lost, and is told again
//! later: it can be, for it only says what was seen.

use rtrb::{Consumer, Producer, RingBuffer};

use super::Bell;
use crate::frame::Frame;
use crate::switch::{Flood, PortId, Sighting};
use crate::wire::Priority;

/// Frames on their way from one worker to another, at most.
const PARCELS: usize = 1024;

/// Places in the ring that frames to be flooded leave free: a storm crowds out no frame for one port.
pub(super) const FOR_ONE: usize = PARCELS / 2;

/// Sightings on their way from one worker to another, at most.
const SIGHTINGS: usize = 4096;

/// Workers that a switch can have, at most.
pub const MOST_WORKERS: usize = 64;

/// A frame on its way to another worker, with what it has been judged to.
#[derive(Debug)]
pub struct Parcel {
    /// The frame, in slots of its own.
    pub frame: Frame,
    /// What to do with it.
    pub address: Address,
    /// The priority of the tag that was taken off it, for the tag that it may get there.
    pub priority: Option<Priority>,
}
// It is copied into a ring and out of it for each frame.
const _: () = assert!(size_of::<Parcel>() == 48);

/// Where a parcel is to go. It is not judged again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// Out of this port.
    To(PortId),
    /// Out of every port of this worker that this flood reaches.
    Flood(Flood),
}

/// One worker's ends of the rings to and from another one.
#[derive(Debug)]
pub struct Peer {
    pub(super) parcels_out: Producer<Parcel>,
    pub(super) parcels_in: Consumer<Parcel>,
    pub(super) sightings_out: Producer<Sighting>,
    pub(super) sightings_in: Consumer<Sighting>,
    pub(super) bell: Bell,
    /// Whether something was sent since the bell was rung.
    pub(super) fresh: bool,
}

impl Peer {
    /// Whether something has arrived from there.
    pub(super) fn has_news(&self) -> bool {
        !self.parcels_in.is_empty() || !self.sightings_in.is_empty()
    }
}

/// The rings between two workers: the ends of the one whose peer has bell `there`, and of the one
/// whose peer has bell `here`.
pub(super) fn pair(here: &Bell, there: &Bell) -> (Peer, Peer) {
    let (parcels_to_there, parcels_from_here) = RingBuffer::new(PARCELS);
    let (parcels_to_here, parcels_from_there) = RingBuffer::new(PARCELS);
    let (sightings_to_there, sightings_from_here) = RingBuffer::new(SIGHTINGS);
    let (sightings_to_here, sightings_from_there) = RingBuffer::new(SIGHTINGS);
    let end = |parcels_out, parcels_in, sightings_out, sightings_in, bell: &Bell| Peer {
        parcels_out,
        parcels_in,
        sightings_out,
        sightings_in,
        bell: bell.clone(),
        fresh: false,
    };
    (
        end(parcels_to_there, parcels_from_there, sightings_to_there, sightings_from_there, there),
        end(parcels_to_here, parcels_from_here, sightings_to_here, sightings_from_here, here),
    )
}
