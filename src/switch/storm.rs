//! Storm limits: rates of flooded frames per class, for a port and for a VM on a network; and the rate of copies
//! that a VM may cause.
//!
//! Settings and state are separate: [`StormLimits`] are part of the configuration and replaced with it;
//! [`PolicerState`] is created once and passed to each new configuration, so that a change refills no bucket. A GSO
//! packet is charged as its segments.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::{DropReason, Policer, Rate};
use crate::time::MonoTime;
use crate::wire::Mac;

/// Rate of BPDUs (spanning tree) per port; they have a bucket of their own.
pub const BPDU_RATE: Rate = Rate::new(100, 100);

/// Whether frames to this address are BPDUs, of spanning tree or of PVST+.
#[inline]
pub(super) const fn is_bpdu(destination: Mac) -> bool {
    destination.bits() == Mac::BRIDGE_GROUP.bits() || destination.bits() == Mac::PVST.bits()
}

/// Class of a flooded frame. Known unicast has no class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StormClass {
    /// Destination ff:ff:ff:ff:ff:ff.
    Broadcast,
    /// Any other group.
    Multicast,
    /// Unknown destination.
    UnknownUnicast,
}

impl StormClass {
    /// All classes, by index.
    pub const ALL: [StormClass; 3] = [StormClass::Broadcast, StormClass::Multicast, StormClass::UnknownUnicast];

    /// Class of a flooded frame.
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

    /// Drop reason at the port's limit.
    pub const fn reason(self) -> DropReason {
        match self {
            StormClass::Broadcast => DropReason::StormBroadcast,
            StormClass::Multicast => DropReason::StormMulticast,
            StormClass::UnknownUnicast => DropReason::StormUnknownUnicast,
        }
    }
}

/// Limit of one class: frames, bytes (as counted, without FCS), or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClassLimit {
    /// Frames per second.
    pub frames: Option<Rate>,
    /// Bytes per second.
    pub bytes: Option<Rate>,
}

impl ClassLimit {
    /// A limit in frames per second.
    pub const fn frames(rate: Rate) -> ClassLimit {
        ClassLimit { frames: Some(rate), bytes: None }
    }
}

/// Limits by class; `None`: unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StormLimits(pub [Option<ClassLimit>; 3]);

impl StormLimits {
    /// No limits.
    pub const OFF: StormLimits = StormLimits([None; 3]);

    /// Default limits of VM ports, and of VMs per network.
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

    /// The same limits, with another one for one class.
    pub const fn with(mut self, class: StormClass, limit: Option<ClassLimit>) -> StormLimits {
        self.0[class as usize] = limit;
        self
    }

    /// Whether there are no limits.
    pub fn is_off(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}

/// Default rate of copies that floods of a VM may cause on a network, per second.
pub const COPIES_DEFAULT: Rate = Rate::new(100_000, 10_000);

/// Buckets of one class.
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
    /// Mask of the classes that the shared limit has dropped since the last query.
    hit_classes: AtomicU8,
    /// The same for the limit on copies.
    hit_copies: AtomicU8,
}

/// Policer state of a port, or of a VM on a network. Clones share the state, and only clones compare equal.
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
        f.write_str("PolicerState")
    }
}

/// Records that a limit has dropped a frame of this class. Writes only if not yet set.
#[cold]
fn record(hit: &AtomicU8, class: StormClass) {
    let bit = 1 << class as u8;
    if hit.load(Ordering::Relaxed) & bit == 0 {
        hit.fetch_or(bit, Ordering::Relaxed);
    }
}

/// Takes the classes of a mask.
fn classes(hit: &AtomicU8) -> Vec<StormClass> {
    let hit = hit.swap(0, Ordering::Relaxed);
    StormClass::ALL.into_iter().filter(|&class| hit & 1 << class as u8 != 0).collect()
}

/// Cost of a flooded frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) frames: u64,
    pub(super) bytes: u64,
}

impl PolicerState {
    /// Whether a limit admits this cost.
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

    /// All buckets, in an order that stays the same in each version.
    fn buckets(&self) -> impl Iterator<Item = &Policer> {
        let classes = self.0.classes.iter().flat_map(|class| [&class.frames, &class.bytes]);
        classes.chain([&self.0.copies, &self.0.bpdus])
    }

    /// Times until the buckets are full again; `None` if all are.
    pub fn deficits(&self, now: MonoTime) -> Option<Vec<Duration>> {
        let deficits: Vec<_> = self.buckets().map(|bucket| bucket.deficit(now)).collect();
        deficits.iter().any(|deficit| !deficit.is_zero()).then_some(deficits)
    }

    /// Sets them, as an earlier process has left them.
    pub fn set_deficits(&self, deficits: impl Iterator<Item = Duration>, now: MonoTime) {
        self.buckets().zip(deficits).for_each(|(bucket, deficit)| bucket.set_deficit(deficit, now));
    }

    /// Takes the classes that the shared limit has dropped since the last call.
    pub fn take_hit(&self) -> Vec<StormClass> {
        classes(&self.0.hit_classes)
    }

    /// Takes the classes that the limit on copies has dropped since the last call.
    pub fn take_hit_copies(&self) -> Vec<StormClass> {
        classes(&self.0.hit_copies)
    }

    /// When a limit admits a minimum-size frame: now, if it does.
    pub fn ready(&self, class: StormClass, limit: &ClassLimit, now: MonoTime) -> MonoTime {
        let buckets = &self.0.classes[class as usize];
        let frames = limit.frames.as_ref().map_or(now, |rate| buckets.frames.ready(rate, now));
        frames.max(limit.bytes.as_ref().map_or(now, |rate| buckets.bytes.ready(rate, now)))
    }
}

/// Storm limits of a port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortPolicer {
    /// Limits. Ports mostly have the same, and share them.
    pub limits: Arc<StormLimits>,
    /// Their state.
    pub state: PolicerState,
    /// Whether several workers decide frames of this port.
    pub shared: bool,
}

impl PortPolicer {
    /// When the port's limit admits a frame of this class: now, if there is none.
    pub fn ready(&self, class: StormClass, now: MonoTime) -> MonoTime {
        self.limits.get(class).map_or(now, |limit| self.state.ready(class, limit, now))
    }

    /// Whether the BPDU limit admits this many.
    #[inline]
    pub(super) fn admits_bpdus(&self, frames: u64, now: MonoTime) -> bool {
        self.state.0.bpdus.take(&BPDU_RATE, frames, now, self.shared)
    }
}

/// Storm limits of a VM on one network, shared by its ports there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VmPolicer {
    /// Limits.
    pub limits: Arc<StormLimits>,
    /// Copies per second.
    pub copies: Option<Rate>,
    /// By class: whether copies are not counted, because the port's limit is off.
    pub copies_off: [bool; 3],
    /// Their state.
    pub state: PolicerState,
    /// Whether several workers decide frames of these ports.
    pub shared: bool,
}

impl VmPolicer {
    /// When the shared limit admits a frame of this class: now, if there is none.
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

/// Checks the limits of a port and its VM for a flooded frame with `copies()` copies. Returns the drop reason of
/// the first that is exceeded. A dropped frame is not charged: all limits are checked before the first is charged.
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
    // Another worker may have charged the bucket since the check.
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
