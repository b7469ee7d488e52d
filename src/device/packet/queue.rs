//! The open sockets of a port: one that hears, by a ring, one that is to hear in its place, and one that sends.

use std::io::{self, ErrorKind, IoSliceMut};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};

use super::{Netdev, offload, remember_halt};
use crate::device::limit::{ALWAYS_TAKEN, Limit};
use crate::device::{Abilities, Device, Egress, Observed};
use crate::frame::{BURST, Batch, Cache, Fate, HEADROOM, Lane, Progress, Sent, View, Views};
use crate::sys::bpf::IngressDrop;
use crate::sys::packet::{Arrival, Burst, EVERYTHING, HEADER, Outgoing, Received, Ring, Socket, State, Tag};
use crate::wire::{Finishing, OffloadSet, TAG_LEN};

/// Frames that are sent in one call, at most: what a lane holds.
const FRAMES: usize = 192;

/// Their pieces, at most: header and bytes of each, and the 17 slots of some super-frames.
const PIECES: usize = 2 * FRAMES + 512;

/// Where in a receive buffer a tag goes that the kernel has taken out.
const GAP: usize = HEADROOM + Tag::AT;

/// Receives in vain after which we look whether all is well, which takes two system calls. Not more than
/// a worker makes before it leaves a quiet port alone (`QUIET` of its pace).
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
/// **The ring can come to a halt.** A GSO packet of a kind that the header has no word for is dropped
/// by the kernel, and with it the slot that it was about to use: no frame comes in any more, by this
/// ring. UDP fragmentation is such a kind, which old guests ask for, and any guest can that wants to do
/// harm. (Seen with Linux 6.18. SCTP has no word either.) It is noticed by frames being lost though the ring
/// cannot have been full. The spare socket, which has been waiting without a ring, is bound in its place then: a
/// matter of microseconds, in which frames are lost. From then on each frame takes a system call.
///
/// The kernel wakes those who wait for a socket also when it loses a frame, though the socket is not readable then. So
/// the descriptors are watched edge-triggered, and looked at when they are reported and not readable.
#[derive(Debug)]
pub(super) struct Queue {
    /// Before its socket, so that it is unmapped before.
    ring: Option<Ring>,
    ear: Socket,
    /// Takes the place of `ear` when the ring has come to a halt, and is the other one then.
    spare: Option<Socket>,
    /// A ring that has come to a halt. To close it, or its socket, would take the kernel long.
    stuck: Option<Ring>,
    mouth: Socket,
    outgoing: Outgoing,
    egress: Egress,
    observed: Observed,
    offloads: bool,
    netdev: Netdev,
    /// What keeps its frames from the host's stack, if that is asked for.
    _isolation: Option<IngressDrop>,
    /// Receives that found nothing, since the last look.
    in_vain: u32,
    /// Frames read since the ring was last seen empty.
    run: usize,
    /// The most of these since the last look.
    longest_run: usize,
    /// Whether there is reason to ask what has become of the netdev.
    suspicious: bool,
    /// Whether the ring tells of losses.
    losing: bool,
    /// Whether the ring has come to a halt, and is still to be left.
    has_stopped: bool,
    /// Whether the ring has ever come to a halt.
    halted: bool,
    missed: u64,
    /// How long frames may be that are sent: those without, and those with segments.
    limit: Limit,
    gso_limit: Limit,
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
    /// `spare`: a socket that is to take the place of `ear`, should its ring come to a halt.
    pub(super) fn new(
        ring: Option<Ring>,
        (ear, spare, mouth): (Socket, Option<Socket>, Socket),
        offloads: bool,
        (egress, observed): (Egress, Observed),
        netdev: Netdev,
    ) -> Queue {
        Queue {
            ring,
            ear,
            spare,
            stuck: None,
            mouth,
            outgoing: Outgoing::new(FRAMES, PIECES),
            egress,
            observed,
            offloads,
            netdev,
            _isolation: None,
            in_vain: 0,
            run: 0,
            longest_run: 0,
            suspicious: false,
            losing: false,
            has_stopped: false,
            halted: false,
            missed: 0,
            limit: Limit::new(),
            gso_limit: Limit::new(),
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
            let Some(arrival) = ring.arrival() else {
                self.run = 0;
                break;
            };
            self.run += 1;
            self.longest_run = self.longest_run.max(self.run);
            self.losing |= arrival.tells_of_losses();
            if arrival.is_whole() {
                land(&arrival, batch);
                continue;
            }
            match land_queued(&arrival, &self.ear, &mut self.suspicious, batch) {
                Ok(()) => {}
                Err(Nothing::Quiet | Nothing::Lost) => self.missed += 1,
                Err(Nothing::Confused) => {
                    drop(arrival);
                    self.missed += 1;
                    return self.leave_ring();
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
                Ok(()) => {}
                Err(Nothing::Quiet) => break,
                Err(Nothing::Lost | Nothing::Confused) => self.missed += 1,
            }
        }
    }

    /// Counts what was lost. Whether the ring has come to a halt.
    fn count_lost(&mut self) -> io::Result<bool> {
        let statistics = self.ear.statistics()?;
        self.missed += u64::from(statistics.lost);
        let longest_run = mem::take(&mut self.longest_run).max(self.run);
        // Was the ring ever full, more frames would have been read from it in a row.
        let has_stopped = |ring: &Ring| statistics.lost > 0 && longest_run < ring.len() && !ring.has_arrival();
        Ok(self.ring.as_ref().is_some_and(has_stopped))
    }

    /// Goes on without the ring: the spare socket is bound in place of that of the ring. Nothing is closed, which would
    /// wait for all cores of the host.
    #[cold]
    fn leave_ring(&mut self) -> io::Result<()> {
        self.halted = true;
        let Some(spare) = &mut self.spare else { return Err(io::Error::other("its ring has come to a halt")) };
        spare.bind(self.netdev.index, EVERYTHING)?;
        // What was lost until now. From here on both count, and only the spare one receives.
        self.missed += u64::from(self.ear.statistics()?.lost);
        mem::swap(spare, &mut self.ear);
        self.stuck = self.ring.take();
        self.observed.note_halted_ring();
        Ok(())
    }

    /// Looks whether the netdev is still there and up, what was lost, and whether the ring still turns.
    #[cold]
    fn look(&mut self) -> io::Result<()> {
        (self.in_vain, self.losing) = (0, false);
        if self.ear.is_troubled() || mem::take(&mut self.suspicious) {
            match self.ear.state() {
                State::Up => {} // again
                State::Down => return Err(io::Error::new(ErrorKind::NetworkDown, "its netdev was set down")),
                State::Gone => return Err(io::Error::new(ErrorKind::NotFound, "its netdev is gone")),
            }
        }
        if mem::take(&mut self.has_stopped) || self.count_lost()? { self.leave_ring() } else { Ok(()) }
    }

    /// What became of the first of `views`, which the kernel did not send and `error` says why.
    #[cold]
    fn fate(&mut self, error: &io::Error, views: &Views<'_>, was_full: bool) -> Fate {
        let Some(view) = views.clone().next() else { return Fate::Full };
        let (len, offload) = (view.frame.len(), view.frame.offload());
        match error.raw_os_error() {
            // Twice in a row it is the device, and not this frame.
            Some(libc::EAGAIN) if was_full => Fate::Full,
            Some(libc::EAGAIN) => Fate::NoRoom,
            Some(libc::ENOMEM) => Fate::NoBuffer,
            Some(libc::ENOBUFS) if offload.is_gso() => {
                let is_whole = Finishing::new(view.head, view.tail(), len, offload).is_ok();
                if !is_whole || self.gso_limit.refuses(1) { Fate::Refused } else { Fate::NoRoom }
            }
            Some(libc::ENOBUFS) if len <= ALWAYS_TAKEN => {
                if was_full {
                    Fate::Full
                } else {
                    Fate::NoRoom
                }
            }
            Some(libc::ENOBUFS) => {
                if self.limit.refuses(len) {
                    Fate::Refused
                } else {
                    Fate::NoRoom
                }
            }
            Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) if self.mouth.state() != State::Up => {
                self.suspicious = true;
                Fate::LinkDown
            }
            _ => Fate::Refused,
        }
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
        if self.in_vain >= IN_VAIN || self.suspicious || self.losing || self.has_stopped { self.look() } else { Ok(()) }
    }

    fn transmit(&mut self, lane: &mut Lane, batch: &Batch, cache: &mut Cache) -> Sent {
        let takes = self.egress.get();
        let mut was_full = false;
        lane.send_bursts(batch, cache, |views| {
            let mut burst = self.outgoing.burst();
            let filled = fill(&mut burst, views.clone(), self.offloads, takes);
            let frames = burst.len();
            if frames == 0 {
                return Progress { sent: 0, then: if filled.refused { Fate::Refused } else { Fate::Full } };
            }
            match burst.send(&self.mouth) {
                Ok(sent) => {
                    was_full = false;
                    let (longest, longest_gso) =
                        if sent == frames { filled.longest } else { longest(views.take(sent)) };
                    self.limit.passed(longest);
                    self.gso_limit.passed(longest_gso);
                    Progress { sent, then: Fate::Sent }
                }
                Err(e) => {
                    let then = self.fate(&e, &views, was_full);
                    was_full = then == Fate::NoRoom;
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

    fn offload_set(&self) -> OffloadSet {
        self.egress.get()
    }

    fn second_fd(&self) -> Option<BorrowedFd<'_>> {
        self.spare.as_ref().map(Socket::as_fd)
    }

    fn needs_inspection(&self) -> bool {
        true
    }

    fn inspect(&mut self) -> bool {
        match self.count_lost() {
            Ok(has_stopped) => self.has_stopped |= has_stopped,
            // `look` finds out why.
            Err(_) => self.suspicious = true,
        }
        self.suspicious |= self.ear.is_troubled();
        self.suspicious || self.has_stopped
    }

    fn missed(&mut self) -> u64 {
        mem::take(&mut self.missed)
    }
}

/// What was put into a burst.
struct Filled {
    /// Whether it ends before a frame that cannot be sent.
    refused: bool,
    /// The longest frame of those without segments, and 1 if there is one with segments.
    longest: (u32, u32),
}

/// Puts frames into a burst until it is full, or one comes that cannot be sent.
#[inline]
fn fill<'b>(burst: &mut Burst<'_, 'b>, views: Views<'b>, has_header: bool, takes: OffloadSet) -> Filled {
    let mut filled = Filled { refused: false, longest: (0, 0) };
    for view in views {
        let View { frame, head, .. } = view;
        // Without a header nobody could tell that this frame is not finished.
        if !view.is_ready_for(takes) {
            filled.refused = true;
            break;
        }
        let header = has_header.then(|| offload::to_packet(frame.offload()));
        let taken = if view.is_one_piece() {
            burst.push(header, std::iter::once(head))
        } else {
            burst.push(header, std::iter::once(head).chain(view.tail()))
        };
        if !taken {
            filled.refused = burst.is_empty();
            break;
        }
        count_length(&view, &mut filled.longest);
    }
    filled
}

#[inline(always)]
fn count_length(view: &View<'_>, (longest, longest_gso): &mut (u32, u32)) {
    if view.frame.offload().is_gso() {
        *longest_gso = 1;
    } else {
        *longest = view.frame.len().max(*longest);
    }
}

/// The longest frame without segments, and 1 if there is one with segments.
#[cold]
fn longest<'b>(views: impl Iterator<Item = View<'b>>) -> (u32, u32) {
    let mut longest = (0, 0);
    views.for_each(|view| count_length(&view, &mut longest));
    longest
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
