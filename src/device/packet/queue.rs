//! The open sockets of a port: one that hears, by a ring, and one that sends.

use std::io::{self, ErrorKind, IoSliceMut};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};

use super::{Netdev, offload, remember_halt};
use crate::device::{Abilities, Device};
use crate::frame::{BURST, Batch, Cache, Fate, HEADROOM, Lane, Progress, Sent, View, Views};
use crate::sys::bpf::IngressDrop;
use crate::sys::packet::{Arrival, Burst, HEADER, Outgoing, Received, Ring, Socket, State, Tag};
use crate::wire::TAG_LEN;

/// Frames that are sent in one call, at most: what a lane holds.
const FRAMES: usize = 192;

/// Their pieces, at most: header and bytes of each, and the 17 slots of some super-frames.
const PIECES: usize = 2 * FRAMES + 512;

/// Where in a receive buffer a tag goes that the kernel has taken out.
const GAP: usize = HEADROOM + Tag::AT;

/// Receives in vain after which we look whether all is well, which takes two system calls. Not more than
/// a worker makes before it leaves a quiet port alone (`QUIET` of its pace); and about as many as it makes
/// each time that it wakes up for nothing, so that a port whose ring has halted is found within seconds
/// also if nothing else ever wakes its worker.
const IN_VAIN: u32 = 16;

/// A port's sockets.
///
/// Frames come in by a ring: copied once more, but without a system call, at a fiftieth of the cost.
/// Those that do not fit its slots, super-frames before all, are fetched from the socket, in their turn.
/// Frames go out by `sendmmsg`: over a veth, a transmit ring costs 3 to 7 % more (`cargo bench --bench
/// packet` measures what is here).
///
/// What is received has an offload header in front: without one, nobody could tell which frames are not
/// finished. What is sent has one if the port has offloads; without it costs 5 % less. The header has 10
/// bytes and is sent as a piece of its own, which costs the same as 12 bytes in one piece with the frame,
/// and less than 12 in a piece of their own; and a kernel that is told of 12 leaves 10 in the ring.
///
/// **The ring can come to a halt.** A super-frame of a kind that the header has no word for is dropped
/// by the kernel, and with it the slot that it was about to use: no frame comes in any more, by this
/// ring. UDP fragmentation is such a kind, which old guests ask for, and any guest can that wants to do
/// harm. (Seen with Linux 6.18. SCTP has no word either.) It is noticed by frames being lost while the
/// ring is empty. The port is given up then and opened again, from then on without a ring.
#[derive(Debug)]
pub(super) struct Queue {
    /// Before its socket, so that it is unmapped before.
    ring: Option<Ring>,
    ear: Socket,
    mouth: Socket,
    outgoing: Outgoing,
    offloads: bool,
    netdev: Netdev,
    /// What keeps its frames from the host's stack, if that is asked for.
    _isolation: Option<IngressDrop>,
    /// Receives that found nothing, since the last look.
    in_vain: u32,
    /// Whether a frame has come in since then.
    heard: bool,
    /// Whether there is reason to ask what has become of the netdev.
    suspicious: bool,
    /// Whether the ring tells of losses.
    losing: bool,
    /// Whether the ring has come to a halt.
    halted: bool,
    missed: u64,
}

/// Why no frame has landed.
enum Nothing {
    /// There is none.
    Quiet,
    /// There was one.
    Lost,
    /// There was one that is not what the ring says.
    Confused,
}

impl Queue {
    pub(super) fn new(ring: Option<Ring>, ear: Socket, mouth: Socket, offloads: bool, netdev: Netdev) -> Queue {
        Queue {
            ring,
            ear,
            mouth,
            outgoing: Outgoing::new(FRAMES, PIECES),
            offloads,
            netdev,
            _isolation: None,
            in_vain: 0,
            heard: false,
            suspicious: false,
            losing: false,
            halted: false,
            missed: 0,
        }
    }

    /// The same, which holds this as long as it is open.
    pub(super) fn isolated(mut self, isolation: Option<IngressDrop>) -> Queue {
        self._isolation = isolation;
        self
    }

    /// Receives from the ring.
    #[inline]
    fn receive_ring(&mut self, batch: &mut Batch) -> io::Result<()> {
        let Some(ring) = &mut self.ring else { return Ok(()) };
        // Also of what is lost, no more is seen to in one go.
        for _ in 0..BURST {
            if batch.is_full() {
                break;
            }
            let Some(arrival) = ring.arrival() else { break };
            self.heard = true;
            self.losing |= arrival.tells_of_losses();
            if arrival.is_whole() {
                land(&arrival, batch);
                continue;
            }
            match land_queued(&arrival, &self.ear, &mut self.suspicious, batch) {
                Ok(()) => {}
                Err(Nothing::Quiet | Nothing::Lost) => self.missed += 1,
                Err(Nothing::Confused) => {
                    self.halted = true;
                    return Err(io::Error::other("its ring and its queue do not agree"));
                }
            }
        }
        Ok(())
    }

    /// Receives from the socket.
    fn receive_each(&mut self, batch: &mut Batch) {
        for _ in 0..BURST {
            if batch.is_full() {
                break;
            }
            let landed = batch.land(true, |room| {
                // The header ends where the frame begins.
                let end = room.len() - TAG_LEN;
                match self.ear.receive(&mut room[HEADROOM - HEADER..end]) {
                    Ok(None) => Err(Nothing::Quiet),
                    Ok(Some(received)) if received.cut || received.len < HEADER => Err(Nothing::Lost),
                    Ok(Some(Received { len, tag, .. })) => {
                        let tag = tag.filter(|_| len >= HEADER + Tag::AT);
                        if tag.is_some() {
                            let end = HEADROOM - HEADER + len;
                            room.copy_within(GAP..end, GAP + TAG_LEN);
                        }
                        Ok(finish(room, len - HEADER, tag))
                    }
                    // A frame whose offloads have no form in the header: the kernel has dropped it.
                    Err(e) if e.kind() == ErrorKind::InvalidInput => Err(Nothing::Lost),
                    Err(_) => {
                        self.suspicious = true;
                        Err(Nothing::Quiet)
                    }
                }
            });
            match landed {
                Ok(()) => self.heard = true,
                Err(Nothing::Quiet) => break,
                Err(Nothing::Lost | Nothing::Confused) => self.missed += 1,
            }
        }
    }

    /// Looks whether the netdev is still there and up, what was lost, and whether the ring still turns.
    #[cold]
    fn look(&mut self) -> io::Result<()> {
        (self.in_vain, self.losing) = (0, false);
        let (heard, suspicious) = (mem::take(&mut self.heard), mem::take(&mut self.suspicious));
        if self.ear.is_troubled() || suspicious {
            match self.ear.state() {
                State::Up => {} // again
                State::Down => return Err(io::Error::new(ErrorKind::NetworkDown, "its netdev was set down")),
                State::Gone => return Err(io::Error::new(ErrorKind::NotFound, "its netdev is gone")),
            }
        }
        let statistics = self.ear.statistics()?;
        self.missed += u64::from(statistics.lost);
        // Nothing was in the ring, nothing came, and still something was lost.
        if self.ring.is_some() && !heard && statistics.taken == 0 && statistics.lost > 0 {
            self.halted = true;
            return Err(io::Error::other("its ring has come to a halt"));
        }
        Ok(())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.halted {
            remember_halt(&self.netdev);
        }
    }
}

impl Device for Queue {
    fn receive(&mut self, batch: &mut Batch, _: &mut Cache) -> io::Result<()> {
        let before = batch.len();
        if self.ring.is_some() {
            self.receive_ring(batch)?;
        } else {
            self.receive_each(batch);
        }
        if batch.len() == before {
            self.in_vain += 1;
        }
        if self.in_vain >= IN_VAIN || self.suspicious || self.losing { self.look() } else { Ok(()) }
    }

    fn transmit(&mut self, lane: &mut Lane, batch: &Batch, cache: &mut Cache) -> Sent {
        let Queue { outgoing, mouth, offloads, suspicious, .. } = self;
        lane.send_bursts(batch, cache, |views| {
            let mut burst = outgoing.burst();
            let refused = !fill(&mut burst, views, *offloads);
            if burst.is_empty() {
                return Progress { sent: 0, then: if refused { Fate::Refused } else { Fate::Full } };
            }
            match burst.send(mouth) {
                Ok(sent) => Progress { sent, then: Fate::Sent },
                Err(e) => {
                    let then = fate(&e);
                    *suspicious |= then == Fate::LinkDown;
                    Progress { sent: 0, then }
                }
            }
        })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ear.as_fd())
    }

    fn abilities(&self) -> Abilities {
        Abilities { offloads: self.offloads }
    }

    fn leads_to_wire(&self) -> bool {
        true
    }

    fn missed(&mut self) -> u64 {
        mem::take(&mut self.missed)
    }
}

/// Puts frames into a burst until it is full. Whether that was all, and not a frame that cannot be sent.
#[inline]
fn fill<'b>(burst: &mut Burst<'_, 'b>, views: Views<'b>, offloads: bool) -> bool {
    for view in views {
        let View { frame, head, .. } = view;
        // Without a header nobody could tell that this frame is not finished.
        if !offloads && frame.offload().is_pending() {
            return false;
        }
        let header = offloads.then(|| offload::to_packet(frame.offload()));
        let taken = if view.is_one_piece() {
            burst.push(header, std::iter::once(head))
        } else {
            burst.push(header, std::iter::once(head).chain(view.tail()))
        };
        if !taken {
            return !burst.is_empty();
        }
    }
    true
}

fn fate(e: &io::Error) -> Fate {
    match e.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::EINTR) => Fate::Full,
        Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => Fate::LinkDown,
        _ => Fate::Refused,
    }
}

/// Lets a frame of the ring land, its tag put back.
#[inline(always)]
fn land(arrival: &Arrival<'_>, batch: &mut Batch) {
    let bytes = arrival.bytes();
    let _ = batch.land::<std::convert::Infallible>(true, |room| {
        room[HEADROOM - HEADER..HEADROOM].copy_from_slice(arrival.header());
        match arrival.tag {
            None => room[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes),
            Some(_) => {
                let (addresses, rest) = bytes.split_at(Tag::AT);
                room[HEADROOM..GAP].copy_from_slice(addresses);
                room[GAP + TAG_LEN..GAP + TAG_LEN + rest.len()].copy_from_slice(rest);
            }
        }
        Ok(finish(room, bytes.len(), arrival.tag))
    });
}

/// Lets a frame land that is longer than a slot, from the queue of its socket.
#[cold]
fn land_queued(arrival: &Arrival<'_>, ear: &Socket, suspicious: &mut bool, batch: &mut Batch) -> Result<(), Nothing> {
    if !arrival.is_queued() {
        return Err(Nothing::Lost); // there was no room for it
    }
    batch.land(true, |room| {
        let fits = HEADROOM + arrival.len + TAG_LEN <= room.len();
        let gap = if arrival.tag.is_some() { TAG_LEN } else { 0 };
        let (first, rest) = room.split_at_mut(GAP);
        let mut pieces = [IoSliceMut::new(&mut first[HEADROOM - HEADER..]), IoSliceMut::new(&mut rest[gap..])];
        let read = ear.receive_pieces(&mut pieces).or_else(|_| {
            // What befalls the netdev is told once, in place of a frame.
            *suspicious = true;
            ear.receive_pieces(&mut pieces)
        });
        match read {
            Ok(read) if fits && read == HEADER + arrival.len => Ok(finish(room, arrival.len, arrival.tag)),
            Ok(_) if fits => Err(Nothing::Confused),
            _ => Err(Nothing::Lost),
        }
    })
}

/// Makes what a packet socket has written into `room` what a batch wants there. The frame is in its
/// place, `len` bytes long but for the tag that the kernel has taken out, and has a gap for that. Its
/// header stands before it. How much all that is.
#[inline(always)]
fn finish(room: &mut [u8], len: usize, tag: Option<Tag>) -> usize {
    room.copy_within(HEADROOM - HEADER..HEADROOM, 0);
    room[HEADER..HEADROOM].fill(0);
    HEADROOM + len + tag.map_or(0, |tag| put_back(room, tag))
}

/// Puts a tag into its gap, and shifts what the header says of the bytes behind it.
#[inline(never)]
fn put_back(room: &mut [u8], tag: Tag) -> usize {
    room[GAP..GAP + TAG_LEN].copy_from_slice(&tag.bytes());
    if let Some(header) = room.first_chunk_mut() {
        *header = offload::behind_a_tag(header);
    }
    TAG_LEN
}
