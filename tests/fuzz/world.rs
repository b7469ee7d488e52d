//! One world: a topology, the switch, and frames in bursts. The oracle checks each received frame.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use vifswitch::switch::DropReason;
use vifswitch::telemetry::audit::ByReason;
use vifswitch::wire::Offload;

use crate::frames::{CLASSES, FrameGenerator, SentFrame};
use crate::limits::Tables;
use crate::oracle::{OffloadFields, Seen, address, behind_tags, is_barred, is_kept_from, is_link_local_group};
use crate::parts;
use crate::rng::Rng;
use crate::topology::{Address, SecurityMode, Topology};
use support::lab::Lab;

/// Frames per world, and per epoch; policies change between epochs.
pub const FRAMES: u64 = 40_000;
const EPOCH: u64 = 2000;

/// A detected error.
#[derive(Debug)]
pub struct Failure {
    pub what: String,
    /// Index in the last burst of the frame concerned.
    pub shot: Option<usize>,
}

fn wrong<T>(what: String, shot: Option<usize>) -> Result<T, Failure> {
    Err(Failure { what, shot })
}

/// Results of a run.
#[derive(Debug, Default)]
pub struct Score {
    /// By class: frames sent, barred by policy, received somewhere, copies received.
    pub classes: [[u64; 4]; CLASSES.len()],
    pub died_in: ByReason,
    pub died_out: ByReason,
    pub kinds: HashSet<u16>,
    pub lengths: HashSet<usize>,
    pub frames: u64,
    /// Received frames that had to arrive: to pinned addresses.
    pub due: u64,
    pub segmented: u64,
    pub checksummed: u64,
    pub suppressed: u64,
    pub mirror_copies: u64,
    pub not_learned: u64,
}

/// A frame of the last burst, as it is on its network.
struct Sent {
    shot: usize,
    place: usize,
    bytes: Vec<u8>,
    leave: OffloadFields,
    barred: Option<&'static str>,
    /// Receiving ports, and number of copies.
    got: HashMap<usize, usize>,
}

pub struct World {
    pub topology: Topology,
    lab: Lab,
    /// Sources of forwarded frames, by port.
    spoken: HashSet<(usize, Address)>,
    /// FDB contents at the beginning of the epoch.
    tables: Tables,
    /// By network: port at which a source was first forwarded, and whether it was elsewhere too.
    homes: HashMap<(usize, Address), (usize, bool)>,
    /// By counting port: frames sent and received.
    offered: u64,
    arrived: Vec<u64>,
}

/// Random numbers of a part of a world.
pub fn rng(seed: u64, world: u64, part: u64) -> Rng {
    let mut rng = Rng::new(seed ^ world.wrapping_mul(0xd134_2543_de82_ef95) ^ part.wrapping_mul(0xa076_1d64_78bd_642f));
    rng.bits();
    rng
}

impl World {
    pub fn new(seed: u64, world: u64, epoch: u64) -> World {
        let mut topology = Topology::new(&mut rng(seed, world, 0), world);
        topology.randomize(&mut rng(seed, world, 1 + epoch));
        let lab = topology.build();
        let arrived = vec![0; lab.ports.len()];
        let tables = Tables::begin(&lab);
        World { topology, lab, spoken: HashSet::new(), tables, homes: HashMap::new(), offered: 0, arrived }
    }

    /// Sends `frames` frames. `note` is called with epoch and burst before each burst.
    pub fn run(
        mut self,
        (seed, world): (u64, u64),
        frames: u64,
        score: &mut Score,
        mut note: impl FnMut(u64, &[SentFrame]),
    ) -> Result<(), Failure> {
        let mut maker = FrameGenerator::new(rng(seed, world, u64::MAX), world);
        let (mut sent, mut epoch) = (0, 0);
        while sent < frames {
            if sent / EPOCH > epoch {
                epoch = sent / EPOCH;
                self.begin_epoch((seed, world), epoch)?;
            }
            let many = maker.rng.pick(&[1, 8, 48, 64]).min((frames - sent) as usize);
            let (mut shots, mut has_gso) = (Vec::new(), false);
            maker.now = self.lab.now;
            while shots.len() < many {
                let shot = maker.next(&self.topology, !has_gso);
                has_gso |= OffloadFields::read(&shot.offload).is_gso();
                shots.push(shot);
            }
            note(epoch, &shots);
            sent += shots.len() as u64;
            self.round(&shots, score)?;
            self.lab.advance(Duration::from_millis(maker.rng.below(100) as u64));
        }
        self.end(score)
    }

    /// Sets the policies of an epoch.
    pub fn begin_epoch(&mut self, (seed, world): (u64, u64), epoch: u64) -> Result<(), Failure> {
        self.balance()?;
        self.topology.randomize(&mut rng(seed, world, 1 + epoch));
        self.topology.apply(&mut self.lab);
        self.tables = Tables::begin(&self.lab);
        Ok(())
    }

    /// Sets storm limits, until the next epoch.
    pub fn limit_storms(&mut self, number: u64) {
        self.topology.randomize_storms(&mut Rng::new(number));
        self.topology.apply(&mut self.lab);
    }

    pub fn advance(&mut self, time: Duration) {
        self.lab.advance(time);
    }

    /// Sends a burst and checks what is received.
    pub fn round(&mut self, shots: &[SentFrame], score: &mut Score) -> Result<(), Failure> {
        let mut sent: Vec<Sent> = Vec::new();
        let mut by_bytes: HashMap<Vec<u8>, usize> = HashMap::new();
        for (number, shot) in shots.iter().enumerate() {
            let offload = Offload::read(&shot.offload);
            let seen = arrive(&self.topology, shot);
            if let Some((_, bytes, _)) = &seen
                && by_bytes.contains_key(bytes)
            {
                // Identical frames cannot be told apart.
                continue;
            }
            score.frames += 1;
            score.classes[shot.class][0] += 1;
            score.lengths.insert(shot.bytes.len());
            self.offered += counts(&self.topology, shot);
            let Some((place, bytes, leave)) = seen else {
                score.classes[shot.class][1] += 1;
                self.stage(shot, offload);
                continue;
            };
            let barred = is_barred(&self.topology, &Seen { place, bytes: &bytes, leave });
            score.classes[shot.class][1] += u64::from(barred.is_some());
            if let Some(source) = address(&bytes, 6)
                && barred.is_none()
            {
                self.spoken.insert((place, source));
                let home = self.homes.entry((self.topology.places[place].network, source)).or_insert((place, false));
                home.1 |= home.0 != place;
            }
            if bytes.len() >= 14 {
                score.kinds.insert(u16::from_be_bytes([bytes[12], bytes[13]]));
            }
            by_bytes.insert(bytes.clone(), sent.len());
            sent.push(Sent { shot: number, place, bytes, leave, barred, got: HashMap::new() });
            self.stage(shot, offload);
        }
        let dropped: Vec<u64> = self.died_out();
        (0..self.topology.bases.len()).for_each(|base| self.lab.ends[base].publish());
        self.lab.settle();
        let received = self.lab.total(|c| c.rx_frames.get());
        if received != self.offered {
            return wrong(format!("{} frames sent, {received} counted", self.offered), None);
        }
        let mut chunks: HashMap<usize, Vec<Vec<u8>>> = HashMap::new();
        for base in 0..self.topology.bases.len() {
            while let Some((bytes, offload)) = self.lab.ends[base].take() {
                let leave = OffloadFields::read(&offload.write());
                self.arrival(base, bytes, leave, &by_bytes, &mut sent, &mut chunks)?;
            }
        }
        self.join(shots, &mut sent, chunks, &dropped)?;
        self.check(shots, &sent, &dropped, score)?;
        self.check_storms(&sent)?;
        self.tables.check(&self.topology, &self.lab).or_else(|what| wrong(what, None))
    }

    fn stage(&mut self, shot: &SentFrame, offload: Offload) {
        assert!(self.lab.ends[shot.base].stage(&shot.bytes, offload), "the device holds a burst");
    }

    /// Identifies a frame received at a device.
    fn arrival(
        &mut self,
        base: usize,
        mut bytes: Vec<u8>,
        mut leave: OffloadFields,
        by_bytes: &HashMap<Vec<u8>, usize>,
        sent: &mut [Sent],
        chunks: &mut HashMap<usize, Vec<Vec<u8>>>,
    ) -> Result<(), Failure> {
        let mut vid = 0;
        let mut replaced = None;
        if self.topology.bases[base].trunk && bytes.get(12..14) == Some(&[0x81, 0x00]) && bytes.len() >= 18 {
            vid = u16::from_be_bytes([bytes[14], bytes[15]]) & 0xfff;
            if vid != 0 {
                // The tag may have replaced a priority tag.
                let mut before = bytes.clone();
                (before[14], before[15]) = (before[14] & 0xf0, 0);
                replaced = Some((before.clone(), leave));
                match leave.pulled(4) {
                    Some(pulled) => {
                        bytes.drain(12..16);
                        leave = pulled;
                    }
                    // Its checksum begins in the tag, which has replaced another one.
                    None => bytes = before,
                }
            }
        }
        let Some(place) = self.topology.port_at(base, vid) else {
            return wrong(format!("device {base}: frame of unknown VLAN {vid}: {}", hex(&bytes)), None);
        };
        let counted = if self.topology.places[place].uplink { base } else { place };
        if !leave.is_nothing() && !self.topology.bases[base].offloads {
            return wrong(format!("port {place}: offload header at a port without offloads: {}", hex(&bytes)), None);
        }
        let same_as = |bytes: &Vec<u8>, leave: OffloadFields| {
            by_bytes.get(bytes).copied().filter(|&index| sent[index].leave == leave)
        };
        let whole = sent.iter().find(|one| one.leave.is_gso()).map(|one| one.bytes.as_slice());
        // Up to the EtherType behind its tags.
        let begins_as_whole = |bytes: &[u8]| {
            let head = whole.and_then(|whole| whole.get(..behind_tags(whole)? + 2));
            head.is_some_and(|head| bytes.starts_with(head))
        };
        let is_known = |bytes: &Vec<u8>, leave: OffloadFields| {
            same_as(bytes, leave).is_some()
                || sent.iter().any(|one| {
                    one.leave.csum && !one.leave.is_gso() && parts::is_completed(&one.bytes, &one.leave, bytes)
                })
        };
        if let Some((before, leave_before)) = replaced
            && !is_known(&bytes, leave)
            && (is_known(&before, leave_before) || begins_as_whole(&before))
        {
            (bytes, leave) = (before, leave_before);
        }
        let same = same_as(&bytes, leave);
        // A completed checksum changes two bytes.
        let completed = || {
            sent.iter().position(|one| {
                one.leave.csum
                    && !one.leave.is_gso()
                    && leave.is_nothing()
                    && parts::is_completed(&one.bytes, &one.leave, &bytes)
            })
        };
        match same.or_else(completed) {
            Some(index) => {
                *sent[index].got.entry(place).or_default() += 1;
                self.arrived[counted] += leave.parts(&bytes).map_or(1, |(_, parts)| parts as u64);
            }
            None if leave.is_nothing() => {
                self.arrived[counted] += 1;
                chunks.entry(place).or_default().push(bytes);
            }
            None => return wrong(format!("port {place}: frame was not sent: {} {leave:?}", hex(&bytes)), None),
        }
        Ok(())
    }

    /// Frames that match none sent must be segments of the burst's GSO packet.
    fn join(
        &mut self,
        shots: &[SentFrame],
        sent: &mut [Sent],
        chunks: HashMap<usize, Vec<Vec<u8>>>,
        dropped: &[u64],
    ) -> Result<(), Failure> {
        for (place, chunks) in chunks {
            let Some(whole) = sent.iter_mut().find(|one| one.leave.is_gso()) else {
                return wrong(format!("port {place}: frame was not sent: {}", hex(&chunks[0])), None);
            };
            let lost = self.died_out()[self.counted(place)] > dropped[self.counted(place)];
            let honest = shots[whole.shot].honest;
            if let Err(why) = parts::are_of(&chunks, &whole.bytes, &whole.leave, honest, lost) {
                let what = format!("port {place}: wrong segments of a GSO packet, or none: {why}");
                return wrong(what, Some(whole.shot));
            }
            *whole.got.entry(place).or_default() += 1;
        }
        Ok(())
    }

    /// Checks that no more frames to groups were flooded at once than the storm limits allow.
    fn check_storms(&self, sent: &[Sent]) -> Result<(), Failure> {
        // By port, or by VM and network; and by class.
        let mut flooded: HashMap<(bool, usize, usize), u64> = HashMap::new();
        for one in sent {
            let Some(to) = address(&one.bytes, 0).filter(|to| to[0] & 1 == 1 && !is_link_local_group(&one.bytes))
            else {
                continue;
            };
            if one.got.is_empty() {
                continue;
            }
            let place = &self.topology.places[one.place];
            let class = usize::from(to != [0xff; 6]);
            let frames = one.leave.parts(&one.bytes).map_or(1, |(_, parts)| parts as u64);
            let of_vm = self.topology.vm(place).and_then(|(storm, _)| *storm);
            let vm = place.owner.wrapping_mul(self.topology.nets.len()).wrapping_add(place.network);
            for (limits, key) in [(place.storm, (false, one.place, class)), (of_vm, (true, vm, class))] {
                let Some(limit) = limits.map(|limits| limits[class]) else { continue };
                let sum = flooded.entry(key).or_default();
                // More than a burst costs a burst.
                *sum += frames.min(limit);
                if *sum > limit {
                    return wrong(format!("{sum} frames flooded at once, the limit is {limit}"), Some(one.shot));
                }
            }
        }
        Ok(())
    }

    /// Checks that each frame has reached only allowed ports, and all required ones.
    fn check(&mut self, shots: &[SentFrame], sent: &[Sent], dropped: &[u64], score: &mut Score) -> Result<(), Failure> {
        let died_now = self.died_out();
        for one in sent {
            let seen = Seen { place: one.place, bytes: &one.bytes, leave: one.leave };
            let from = &self.topology.places[one.place];
            let class = &mut score.classes[shots[one.shot].class];
            class[2] += u64::from(!one.got.is_empty());
            class[3] += one.got.len() as u64;
            let host =
                |to: usize| is_kept_from(&self.topology, &seen, to, |address| self.spoken.contains(&(to, address)));
            for (&to, &times) in &one.got {
                if let Some(why) = one.barred.or_else(|| host(to)) {
                    return wrong(format!("from port {} to port {to}, though {why}", one.place), Some(one.shot));
                }
                if times > 1 {
                    return wrong(format!("from port {} to port {to} {times} times", one.place), Some(one.shot));
                }
            }
            if one.barred.is_some() {
                continue;
            }
            let idle_port = |to: usize| died_now[self.counted(to)] == dropped[self.counted(to)];
            let (to, source) = (address(&one.bytes, 0).unwrap_or_default(), address(&one.bytes, 6).unwrap_or_default());
            // A promiscuous port receives a copy of every forwarded frame.
            for watcher in (0..self.topology.places.len()).filter(|&at| self.topology.places[at].promiscuous) {
                if !one.got.is_empty()
                    && host(watcher).is_none()
                    && !one.got.contains_key(&watcher)
                    && idle_port(watcher)
                {
                    return wrong(format!("promiscuous port {watcher} did not receive it"), Some(one.shot));
                }
            }
            let pinned = self.topology.pinned(from.network, source).is_some();
            // The switch may refuse corrupted frames for more reasons than the oracle knows.
            let is_readable = shots[one.shot].honest || !matches!(from.guarding, SecurityMode::MacIp(_));
            // A source seen elsewhere may be over the flap limit.
            let has_moved = self.homes.get(&(from.network, source)).is_none_or(|&(_, elsewhere)| elsewhere);
            let is_free = is_readable && (pinned || from.limit.is_none() && !has_moved);
            if let Some(to) =
                self.topology.pinned(from.network, to).filter(|&to| host(to).is_none() && is_free && idle_port(to))
            {
                if !one.got.contains_key(&to) {
                    return wrong(format!("port {to} did not receive unicast from {}", one.place), Some(one.shot));
                }
                score.due += 1;
            }
        }
        Ok(())
    }

    /// Port that counts a port's transmitted frames.
    fn counted(&self, place: usize) -> usize {
        let Topology { places, .. } = &self.topology;
        if places[place].uplink { places[place].base } else { place }
    }

    fn died_out(&self) -> Vec<u64> {
        (0..self.lab.ports.len()).map(|port| self.lab.sum(port, |c| c.drops_out.total())).collect()
    }

    /// Conservation, and counters against sent and received frames.
    fn balance(&mut self) -> Result<(), Failure> {
        self.lab.check_counters();
        if !self.lab.audit().is_balanced() {
            return wrong("the audit does not add up".into(), None);
        }
        for (port, &arrived) in self.arrived.iter().enumerate() {
            let events = self.lab.sum(port, |c| c.tx_frames.get());
            if events != arrived {
                return wrong(format!("port {port}: {arrived} frames received, {events} counted"), None);
            }
        }
        Ok(())
    }

    pub fn end(mut self, score: &mut Score) -> Result<(), Failure> {
        self.balance()?;
        for reason in DropReason::ALL {
            score.died_in[reason] += self.lab.total(|c| c.drops_in.get(reason));
            score.died_out[reason] += self.lab.total(|c| c.drops_out.get(reason));
        }
        score.segmented += self.lab.total(|c| c.segmented.get());
        score.checksummed += self.lab.total(|c| c.checksummed.get());
        score.suppressed += self.lab.total(|c| c.not_flooded.get());
        score.mirror_copies += self.lab.total(|c| c.mirror_copies.get());
        score.not_learned += self.lab.total(|c| c.not_learned.get());
        self.lab.end();
        Ok(())
    }
}

/// A frame as it is on its network: port, and bytes without the outer tag. `None` if it is on none.
fn arrive(topology: &Topology, shot: &SentFrame) -> Option<(usize, Vec<u8>, OffloadFields)> {
    let (mut bytes, leave) = (shot.bytes.clone(), OffloadFields::read(&shot.offload));
    if !topology.bases[shot.base].trunk || bytes.get(12..14) != Some(&[0x81, 0x00]) {
        return Some((topology.port_at(shot.base, 0)?, bytes, leave));
    }
    if bytes.len() < 18 {
        return None;
    }
    let vid = u16::from_be_bytes([bytes[14], bytes[15]]) & 0xfff;
    bytes.drain(12..16);
    Some((topology.port_at(shot.base, vid)?, bytes, leave.pulled(4)?))
}

/// Number of frames that it counts as on receive: segments by its offload header if that fits; one if it no longer
/// fits after untagging.
fn counts(topology: &Topology, shot: &SentFrame) -> u64 {
    let (leave, bytes) = (OffloadFields::read(&shot.offload), &shot.bytes);
    if topology.bases[shot.base].trunk
        && bytes.len() >= 18
        && bytes[12..14] == [0x81, 0x00]
        && leave.pulled(4).is_none()
    {
        let vid = u16::from_be_bytes([bytes[14], bytes[15]]) & 0xfff;
        // A quarantine drops frames after untagging.
        let place = topology.port_at(shot.base, vid).filter(|&place| topology.is_enabled(place));
        if place.is_some_and(|place| !(topology.places[place].uplink && is_link_local_group(bytes))) {
            return 1;
        }
    }
    leave.parts(bytes).map_or(1, |(_, parts)| parts as u64)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
