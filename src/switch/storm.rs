//! Storm limits: how much a port, and a VM on a network, may send to everybody, of which class; and how many copies
//! a VM may cause.
//!
//! Settings and state are apart: [`StormLimits`] stand in the rules and are replaced with them; a [`PolicerState`] is the
//! state of the buckets, made once and handed into each new set of rules, so that a change of the rules gives nobody a
//! full bucket. A super-frame costs what it stands for.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::{DropReason, Policer, Rate};
use crate::time::MonoTime;
use crate::wire::Mac;

/// Bridge protocol data units: what spanning tree speaks. They have a bucket of their own at each port.
pub const BPDU_RATE: Rate = Rate::new(100, 100);

/// Whether frames to this address are BPDUs, of spanning tree or of PVST+.
#[inline]
pub(super) const fn is_bpdu(destination: Mac) -> bool {
    destination.bits() == Mac::BRIDGE_GROUP.bits() || destination.bits() == Mac::PVST.bits()
}

/// What may become a storm: a frame that goes to everybody. Frames for a station that is known are in no class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StormClass {
    /// To ff:ff:ff:ff:ff:ff.
    Broadcast,
    /// To any other group.
    Multicast,
    /// To a station that nobody knows.
    UnknownUnicast,
}

impl StormClass {
    /// All of them, by their place.
    pub const ALL: [StormClass; 3] = [StormClass::Broadcast, StormClass::Multicast, StormClass::UnknownUnicast];

    /// The class of a frame that goes to everybody.
    #[inline]
    pub const fn of(destination: Mac) -> StormClass {
        if !destination.is_group() {
            StormClass::UnknownUnicast
        } else if destination.bits() == Mac::BROADCAST.bits() {
            StormClass::Broadcast
        } else {
            StormClass::Multicast
        }
    }

    /// Its name in the configuration, the API and the metrics.
    pub const fn name(self) -> &'static str {
        match self {
            StormClass::Broadcast => "broadcast",
            StormClass::Multicast => "multicast",
            StormClass::UnknownUnicast => "unknown_unicast",
        }
    }

    /// Why frames of this class die at the limit of their port.
    pub const fn reason(self) -> DropReason {
        match self {
            StormClass::Broadcast => DropReason::StormBroadcast,
            StormClass::Multicast => DropReason::StormMulticast,
            StormClass::UnknownUnicast => DropReason::StormUnknownUnicast,
        }
    }
}

/// What is allowed of one class: frames, bytes (as counters have them, without frame check sequence), or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClassLimit {
    /// Frames a second.
    pub frames: Option<Rate>,
    /// Bytes a second.
    pub bytes: Option<Rate>,
}

impl ClassLimit {
    /// This many frames a second.
    pub const fn frames(rate: Rate) -> ClassLimit {
        ClassLimit { frames: Some(rate), bytes: None }
    }
}

/// What is allowed of each class, by its place; `None`: anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StormLimits(pub [Option<ClassLimit>; 3]);

impl StormLimits {
    /// No limits.
    pub const OFF: StormLimits = StormLimits([None; 3]);

    /// What ports of VMs are allowed by default, and VMs on each network.
    pub const VM_DEFAULT: StormLimits = StormLimits([
        Some(ClassLimit::frames(Rate::new(500, 500))),
        Some(ClassLimit::frames(Rate::new(10_000, 10_000))),
        Some(ClassLimit::frames(Rate::new(1000, 1000))),
    ]);

    /// The limit of one class.
    #[inline]
    pub const fn get(&self, class: StormClass) -> Option<&ClassLimit> {
        self.0[class as usize].as_ref()
    }

    /// The same, with another limit for one class.
    pub const fn with(mut self, class: StormClass, limit: Option<ClassLimit>) -> StormLimits {
        self.0[class as usize] = limit;
        self
    }

    /// Whether there are none.
    pub fn is_off(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}

/// The copies a second that a VM may cause on a network by default, by all that is flooded of it.
pub const COPIES_DEFAULT: Rate = Rate::new(100_000, 10_000);

/// The buckets of one class.
#[derive(Debug, Default)]
struct ClassPolicers {
    frames: Policer,
    bytes: Policer,
}

/// All buckets of a port, or of a VM on a network.
#[derive(Debug, Default)]
#[repr(align(128))] // two workers never write to one pair of cache lines
struct Policers {
    classes: [ClassPolicers; 3],
    copies: Policer,
    bpdus: Policer,
    /// The classes, as a set of bits, of which the common limit has refused frames since this was last asked.
    hit_classes: AtomicU8,
    /// The same of the limit on copies.
    hit_copies: AtomicU8,
}

/// The state of all limits of a port, or of a VM on a network. Clones are the same meter, and only they are equal.
#[derive(Clone, Default)]
pub struct PolicerState(Arc<Policers>);

impl PartialEq for PolicerState {
    fn eq(&self, other: &PolicerState) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for PolicerState {}

impl fmt::Debug for PolicerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meter")
    }
}

/// Notes that a limit has refused a frame of this class. Mostly that is known already, and nothing is written.
#[cold]
fn record(hit: &AtomicU8, class: StormClass) {
    let bit = 1 << class as u8;
    if hit.load(Ordering::Relaxed) & bit == 0 {
        hit.fetch_or(bit, Ordering::Relaxed);
    }
}

/// The classes of a set, which is empty afterwards.
fn classes(hit: &AtomicU8) -> Vec<StormClass> {
    let hit = hit.swap(0, Ordering::Relaxed);
    StormClass::ALL.into_iter().filter(|&class| hit & 1 << class as u8 != 0).collect()
}

/// What a frame that goes to everybody costs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) frames: u64,
    pub(super) bytes: u64,
}

impl PolicerState {
    /// Whether a limit leaves room for this.
    #[inline]
    fn has(&self, class: StormClass, limit: &ClassLimit, cost: Cost, now: MonoTime) -> bool {
        let buckets = &self.0.classes[class as usize];
        limit.frames.as_ref().is_none_or(|rate| buckets.frames.has(rate, cost.frames, now))
            && limit.bytes.as_ref().is_none_or(|rate| buckets.bytes.has(rate, cost.bytes, now))
    }

    #[inline]
    fn take(&self, class: StormClass, limit: &ClassLimit, cost: Cost, now: MonoTime, shared: bool) -> bool {
        let buckets = &self.0.classes[class as usize];
        limit.frames.as_ref().is_none_or(|rate| buckets.frames.take(rate, cost.frames, now, shared))
            && limit.bytes.as_ref().is_none_or(|rate| buckets.bytes.take(rate, cost.bytes, now, shared))
    }

    /// The classes of which the common limit has refused frames since this was last asked.
    pub fn take_hit(&self) -> Vec<StormClass> {
        classes(&self.0.hit_classes)
    }

    /// The classes of which the limit on copies has refused frames since this was last asked.
    pub fn take_hit_copies(&self) -> Vec<StormClass> {
        classes(&self.0.hit_copies)
    }

    /// When a limit will let a frame pass again that is of the least size: now, if it does.
    pub fn ready(&self, class: StormClass, limit: &ClassLimit, now: MonoTime) -> MonoTime {
        let buckets = &self.0.classes[class as usize];
        let frames = limit.frames.as_ref().map_or(now, |rate| buckets.frames.ready(rate, now));
        frames.max(limit.bytes.as_ref().map_or(now, |rate| buckets.bytes.ready(rate, now)))
    }
}

/// The limits of a port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortPolicer {
    /// What it may send to everybody.
    pub limits: StormLimits,
    /// How much of that it has used.
    pub state: PolicerState,
    /// Whether several workers can judge frames of this port.
    pub shared: bool,
}

impl PortPolicer {
    /// When a frame of this class would pass at the port's own limit: now, if there is none.
    pub fn ready(&self, class: StormClass, now: MonoTime) -> MonoTime {
        self.limits.get(class).map_or(now, |limit| self.state.ready(class, limit, now))
    }

    /// Whether this many BPDUs may pass.
    #[inline]
    pub(super) fn admits_bpdus(&self, frames: u64, now: MonoTime) -> bool {
        self.state.0.bpdus.take(&BPDU_RATE, frames, now, self.shared)
    }
}

/// The limits of a VM on one network, which its ports there have in common.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VmPolicer {
    /// What they may send to everybody, together.
    pub limits: StormLimits,
    /// How many copies a second may be made of that.
    pub copies: Option<Rate>,
    /// Whether copies of each class are counted at all, by its place: not of one that the port itself has off.
    pub copies_off: [bool; 3],
    /// How much of all that they have used.
    pub state: PolicerState,
    /// Whether several workers can judge frames of these ports.
    pub shared: bool,
}

impl VmPolicer {
    /// When a frame of this class would pass at the common limit: now, if there is none.
    pub fn ready(&self, class: StormClass, now: MonoTime) -> MonoTime {
        self.limits.get(class).map_or(now, |limit| self.state.ready(class, limit, now))
    }

    /// Whether there are no limits.
    pub fn is_off(&self) -> bool {
        self.limits.is_off() && self.copies.is_none()
    }

    fn has_copies(&self, copies: u64, now: MonoTime) -> bool {
        copies == 0 || self.copies.as_ref().is_none_or(|rate| self.state.0.copies.has(rate, copies, now))
    }

    fn take_copies(&self, copies: u64, now: MonoTime) -> bool {
        copies == 0 || self.copies.as_ref().is_none_or(|rate| self.state.0.copies.take(rate, copies, now, self.shared))
    }
}

/// Whether the limits of a port and its VM let a frame pass that goes to everybody, as `copies()` copies, or which of
/// them does not. What is refused costs nothing: all limits are asked before the first one is charged.
pub(super) fn admit(
    storm: &PortPolicer,
    vm_policer: Option<&VmPolicer>,
    class: StormClass,
    cost: Cost,
    copies: impl FnOnce() -> u64,
    now: MonoTime,
) -> Result<(), DropReason> {
    let own = storm.limits.get(class);
    if own.is_some_and(|limit| !storm.state.has(class, limit, cost, now)) {
        return Err(class.reason());
    }
    let Some(vm_policer) = vm_policer else {
        let passes = own.is_none_or(|limit| storm.state.take(class, limit, cost, now, storm.shared));
        return if passes { Ok(()) } else { Err(class.reason()) };
    };
    let common = vm_policer.limits.get(class);
    if common.is_some_and(|limit| !vm_policer.state.has(class, limit, cost, now)) {
        record(&vm_policer.state.0.hit_classes, class);
        return Err(DropReason::StormVm);
    }
    let copies = if vm_policer.copies_off[class as usize] { 0 } else { cost.frames * copies() };
    if !vm_policer.has_copies(copies, now) {
        record(&vm_policer.state.0.hit_copies, class);
        return Err(DropReason::StormCopies);
    }
    // Where several workers take, one may be too late for what it has seen.
    if own.is_some_and(|limit| !storm.state.take(class, limit, cost, now, storm.shared)) {
        return Err(class.reason());
    }
    if common.is_some_and(|limit| !vm_policer.state.take(class, limit, cost, now, vm_policer.shared)) {
        record(&vm_policer.state.0.hit_classes, class);
        return Err(DropReason::StormVm);
    }
    if vm_policer.take_copies(copies, now) {
        return Ok(());
    }
    record(&vm_policer.state.0.hit_copies, class);
    Err(DropReason::StormCopies)
}
