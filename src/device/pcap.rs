//! A device that writes down what passes another one, both ways, as pcapng.
//!
//! The polling thread copies each frame into a ring of bytes, and a thread of the capture's own
//! writes it out. When the ring is full the frame passes unrecorded, and is counted: a slow disk
//! costs frames of the capture, never of the port. What is to be sent is recorded whether or not
//! the device then takes it.
//!
//! The form is that of draft-ietf-opsawg-pcapng: a section header, one interface, and an enhanced
//! packet block for each frame, with its direction and its time in nanoseconds. A super-frame is
//! one packet, as it passed.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rtrb::{Consumer, Producer, RingBuffer};

use super::{Abilities, Device, Group, Shed};
use crate::frame::{Batch, Cache, Lane, Sent, View};
use crate::time::Moment;
use crate::wire::OffloadSet;

/// Bytes that can wait to be written.
const RING: usize = 4 << 20;

/// In the ring, in front of each frame: its time, its length, its direction.
const RECORD: usize = 16;

/// Directions as `epb_flags` has them.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// A device whose frames are written down.
pub struct Pcap<D> {
    device: D,
    tape: Tape,
}

/// The polling thread's end of the capture.
struct Tape {
    /// `None` once the capture ends.
    ring: Option<Producer<u8>>,
    clock: Box<dyn FnMut() -> SystemTime + Send>,
    lost: Arc<AtomicU64>,
    writer: Option<JoinHandle<()>>,
}

impl<D: Device> Pcap<D> {
    /// `device`, written down to `out` by a thread that ends with the capture. `clock` says what
    /// time it is, once per burst; [`wall`](crate::time::wall) is one.
    pub fn new(
        device: D,
        mut out: impl Write + Send + 'static,
        clock: impl FnMut() -> SystemTime + Send + 'static,
    ) -> io::Result<Pcap<D>> {
        out.write_all(&preamble())?;
        let (ring, records) = RingBuffer::new(RING);
        let lost = Arc::new(AtomicU64::new(0));
        let unwritten = Arc::clone(&lost);
        let writer = thread::Builder::new().name("pcap".into()).spawn(move || write_out(records, out, &unwritten))?;
        Ok(Pcap { device, tape: Tape { ring: Some(ring), clock: Box::new(clock), lost, writer: Some(writer) } })
    }

    /// How many frames passed unrecorded so far. The counter stays readable wherever the device
    /// goes, and counts also what could not be written.
    pub fn lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.tape.lost)
    }
}

impl<D: std::fmt::Debug> std::fmt::Debug for Pcap<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pcap").field("device", &self.device).field("lost", &self.tape.lost).finish_non_exhaustive()
    }
}

impl Tape {
    /// Records these frames and wakes the writer, if there are any.
    fn record<'a>(&mut self, direction: u32, mut views: impl Iterator<Item = View<'a>>) {
        let Some(first) = views.next() else { return };
        let time = nanos((self.clock)());
        for view in std::iter::once(first).chain(views) {
            if !self.put(time, direction, &view) {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let Some(writer) = &self.writer {
            writer.thread().unpark();
        }
    }

    fn put(&mut self, time: u64, direction: u32, view: &View<'_>) -> bool {
        let Some(ring) = &mut self.ring else { return false };
        if ring.slots() < RECORD + view.frame.len() as usize {
            return false;
        }
        let mut record = [0; RECORD];
        record[..8].copy_from_slice(&time.to_ne_bytes());
        record[8..12].copy_from_slice(&view.frame.len().to_ne_bytes());
        record[12..].copy_from_slice(&direction.to_ne_bytes());
        // There is room for all of it, so none of these fails; the writer waits for the whole.
        let mut done = ring.push_entire_slice(&record).is_ok();
        for part in std::iter::once(view.head).chain(view.tail()) {
            done &= ring.push_entire_slice(part).is_ok();
        }
        done
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        self.ring = None; // the writer sees that, and ends
        if let Some(writer) = self.writer.take() {
            writer.thread().unpark();
            let _ = writer.join(); // it has nothing to say that the counter does not
        }
    }
}

impl<D: Device> Device for Pcap<D> {
    fn receive(&mut self, batch: &mut Batch, cache: &mut Cache) -> io::Result<()> {
        let before = batch.len();
        let received = self.device.receive(batch, cache);
        self.tape.record(INBOUND, (before..batch.len()).map(|index| batch.view(index)));
        received
    }

    fn transmit(&mut self, lane: &mut Lane, batch: &Batch, cache: &mut Cache) -> Sent {
        self.tape.record(OUTBOUND, lane.views(batch));
        self.device.transmit(lane, batch, cache)
    }

    fn release(&mut self) {
        self.device.release();
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.fd()
    }

    fn is_cheap_to_ask(&self) -> bool {
        self.device.is_cheap_to_ask()
    }

    fn most_at_once(&self) -> usize {
        self.device.most_at_once()
    }

    fn gathering_time(&self) -> Duration {
        self.device.gathering_time()
    }

    fn abilities(&self) -> Abilities {
        self.device.abilities()
    }

    fn leads_to_wire(&self) -> bool {
        self.device.leads_to_wire()
    }

    fn offload_set(&self) -> OffloadSet {
        self.device.offload_set()
    }

    fn second_fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.second_fd()
    }

    fn needs_inspection(&self) -> bool {
        self.device.needs_inspection()
    }

    fn inspect(&mut self) -> bool {
        self.device.inspect()
    }

    fn missed(&mut self) -> u64 {
        self.device.missed()
    }

    fn tx_lost(&mut self) -> u64 {
        self.device.tx_lost()
    }

    fn prepare_sleep(&mut self, cache: &mut Cache) -> bool {
        self.device.prepare_sleep(cache)
    }

    fn prepare_close(&mut self, cache: &mut Cache) {
        self.device.prepare_close(cache);
    }

    fn shed(&mut self, group: Group, until: Moment) {
        self.device.shed(group, until);
    }

    fn was_shed(&mut self) -> Shed {
        self.device.was_shed()
    }
}

/// The writer: sleeps until it is woken, and ends when the capture has ended and all is written.
fn write_out(mut records: Consumer<u8>, mut out: impl Write, lost: &AtomicU64) {
    let mut broken = false;
    let mut block = Vec::new();
    let mut head = None;
    loop {
        let last = records.is_abandoned(); // asked before the ring is emptied, not after
        while let Some((time, len, direction)) = head.take().or_else(|| next_head(&mut records)) {
            if records.slots() < len {
                head = Some((time, len, direction)); // the polling thread is still at it
                break;
            }
            packet(&mut block, time, direction, len, |bytes| {
                records.pop_entire_slice(bytes).expect("so many bytes are there");
            });
            broken = broken || out.write_all(&block).is_err();
            if broken {
                lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        let _ = out.flush();
        if last {
            return;
        }
        // `out` may have slept as well, and been woken in our stead: look again before sleeping.
        let needed = head.map_or(RECORD, |(_, len, _)| len);
        if records.slots() < needed && !records.is_abandoned() {
            thread::park();
        }
    }
}

fn next_head(records: &mut Consumer<u8>) -> Option<(u64, usize, u32)> {
    let mut record = [0; RECORD];
    records.pop_entire_slice(&mut record).ok()?;
    let [time, rest] = [0, 8].map(|at| u64::from_ne_bytes(*record[at..].first_chunk().expect("a record is 16 bytes")));
    let [a, b, c, d, e, f, g, h] = rest.to_ne_bytes();
    Some((time, u32::from_ne_bytes([a, b, c, d]) as usize, u32::from_ne_bytes([e, f, g, h])))
}

/// Nanoseconds since 1970. Good until 2554.
#[allow(clippy::cast_possible_truncation)]
fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// The section header and the one interface: Ethernet, frames of any length, time in nanoseconds.
fn preamble() -> Vec<u8> {
    let mut out = Vec::new();
    block(&mut out, 0x0a0d_0d0a, |out| {
        words(out, &[0x1a2b_3c4d, 1, u32::MAX, u32::MAX]); // byte order, version 1.0, length not told
    });
    block(&mut out, 1, |out| {
        words(out, &[1, 0]); // LINKTYPE_ETHERNET, no snap length
        words(out, &[option(9, 1), u32::from_ne_bytes([9, 0, 0, 0]), 0]); // if_tsresol: 10^-9
    });
    out
}

/// An enhanced packet block with `len` bytes, which `fill` writes.
#[allow(clippy::cast_possible_truncation)] // halves of the time; no frame has 4 GiB
fn packet(out: &mut Vec<u8>, time: u64, direction: u32, len: usize, fill: impl FnOnce(&mut [u8])) {
    out.clear();
    block(out, 6, |out| {
        words(out, &[0, (time >> 32) as u32, time as u32, len as u32, len as u32]);
        let start = out.len();
        out.resize(start + len.next_multiple_of(4), 0);
        fill(&mut out[start..start + len]);
        words(out, &[option(2, 4), direction, 0]); // epb_flags, end of options
    });
}

/// A block: type, length, body, and the length once more.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    words(out, &[kind, 0]);
    body(out);
    let len = u32::try_from(out.len() - start + 4).expect("no block has 4 GiB");
    words(out, &[len]);
    out[start + 4..start + 8].copy_from_slice(&len.to_ne_bytes());
}

/// An option's code and length, as one word of the host's order.
fn option(code: u16, len: u16) -> u32 {
    let ([a, b], [c, d]) = (code.to_ne_bytes(), len.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// Words in the host's order, which the section header tells.
fn words(out: &mut Vec<u8>, words: &[u32]) {
    words.iter().for_each(|word| out.extend_from_slice(&word.to_ne_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::{Capacity, cable};
    use crate::frame::Pool;
    use crate::wire::Offload;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    /// What is written arrives at the other end of a channel.
    struct Out(Sender<Vec<u8>>);

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(*bytes[at..].first_chunk().unwrap())
    }

    /// The blocks of a capture: type and body.
    fn blocks(mut bytes: &[u8]) -> Vec<(u32, &[u8])> {
        let mut blocks = Vec::new();
        while !bytes.is_empty() {
            let len = word(bytes, 4) as usize;
            assert!(len.is_multiple_of(4) && word(bytes, len - 4) as usize == len, "both lengths agree");
            blocks.push((word(bytes, 0), &bytes[8..len - 4]));
            bytes = &bytes[len..];
        }
        blocks
    }

    /// The packets of a capture: time, direction and bytes.
    fn packets(bytes: &[u8]) -> Vec<(u64, u32, Vec<u8>)> {
        let blocks = blocks(bytes);
        assert_eq!((blocks[0].0, word(blocks[0].1, 0)), (0x0a0d_0d0a, 0x1a2b_3c4d));
        assert_eq!((blocks[1].0, word(blocks[1].1, 0), blocks[1].1[12]), (1, 1, 9));
        let packet = |&(kind, body): &(u32, &[u8])| {
            assert_eq!((kind, word(body, 0)), (6, 0));
            let len = word(body, 12) as usize;
            assert_eq!(len, word(body, 16) as usize);
            let options = &body[20 + len.next_multiple_of(4)..];
            assert_eq!((&options[..4], &options[8..]), (&[2, 0, 4, 0][..], &[0; 4][..]));
            let time = u64::from(word(body, 4)) << 32 | u64::from(word(body, 8));
            (time, word(options, 4), body[20..20 + len].to_vec())
        };
        blocks[2..].iter().map(packet).collect()
    }

    fn all(out: &Receiver<Vec<u8>>) -> Vec<u8> {
        out.iter().flatten().collect()
    }

    #[test]
    fn both_ways_are_written_down_whole() {
        let (send, out) = channel();
        let (end, mut far) = cable(Capacity::default());
        let mut time = UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        let clock = move || {
            time += Duration::from_nanos(1);
            time
        };
        let mut device = Pcap::new(end, Out(send), clock).unwrap();
        let pool = Pool::new(64).unwrap();
        let (mut cache, mut batch, mut lane) = (Cache::new(pool), Batch::new(), Lane::with_capacity(8));
        let long: Vec<u8> = (0..60_001u32).map(|i| i.to_le_bytes()[0]).collect();
        assert!(far.send(&[1; 61], Offload::NONE) && far.send(&long, Offload::NONE));
        device.receive(&mut batch, &mut cache).unwrap();
        lane.borrow(1);
        lane.push(cache.frame(&[2; 64], Offload::NONE).unwrap());
        assert_eq!(device.transmit(&mut lane, &batch, &mut cache).frames, 2);
        let lost = device.lost();
        drop(device);
        let start = 1_700_000_000_123_456_789;
        let expected = [
            (start + 1, INBOUND, vec![1; 61]),
            (start + 1, INBOUND, long.clone()),
            (start + 2, OUTBOUND, long),
            (start + 2, OUTBOUND, vec![2; 64]),
        ];
        assert!(packets(&all(&out)) == expected);
        assert_eq!(lost.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_stuck_writer_costs_records_and_no_frames() {
        /// Takes the preamble, and then waits for leave to go on.
        struct Stuck(Out, Receiver<()>, bool);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if std::mem::replace(&mut self.2, true) {
                    let _ = self.1.recv(); // an end of the other side is leave as well
                }
                self.0.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (send, out) = channel();
        let (leave, wait) = channel();
        let (end, mut far) = cable(Capacity::default());
        let mut device = Pcap::new(end, Stuck(Out(send), wait, false), || UNIX_EPOCH).unwrap();
        let mut cache = Cache::new(Pool::new(4096).unwrap());
        let mut batch = Batch::new();
        for _ in 0..1000 {
            assert!(far.send(&[3; 9000], Offload::NONE));
            device.receive(&mut batch, &mut cache).unwrap();
            assert_eq!(batch.len(), 1);
            batch.clear(&mut cache);
        }
        let lost = device.lost();
        assert!(lost.load(Ordering::Relaxed) > 0, "9 MB do not fit the ring");
        drop(leave);
        drop(device);
        assert_eq!(packets(&all(&out)).len() as u64 + lost.load(Ordering::Relaxed), 1000);
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let (send, out) = channel();
        let (end, mut far) = cable(Capacity::default());
        let mut device = Pcap::new(end, Out(send), || UNIX_EPOCH).unwrap();
        drop(out);
        let mut cache = Cache::new(Pool::new(64).unwrap());
        let mut batch = Batch::new();
        assert!(far.send(&[3; 90], Offload::NONE) && far.send(&[3; 90], Offload::NONE));
        device.receive(&mut batch, &mut cache).unwrap();
        let lost = device.lost();
        drop(device);
        assert_eq!(lost.load(Ordering::Relaxed), 2);
    }
}
