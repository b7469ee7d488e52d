//! Stage 1: parses headers into lookup keys, or decides the verdict of frames that need no lookup: invalid headers,
//! lengths and offload headers, loop probes, reserved groups, and senders in ARP, IP and neighbor discovery that port
//! security refuses. `decide.rs` lists all steps.

use super::port::Port;
use super::probe_receiver::{ProbeReceiver, contiguous};
use super::reserved::is_link_local_group;
use super::spoofing::SpoofReporter;
use super::storm::is_bpdu;
use super::{DropReason, Fdb, ForwardingConfig, Station, Verdict, Verdicts};
use crate::frame::{Batch, Frame};
use crate::time::MonoTime;
use crate::wire::{Header, Mac, Probe, SenderInfo, TAG_LEN, tags};

/// Size of tables that stay in the CPU cache; larger ones are prefetched.
const CACHED_BYTES: usize = 512 << 10;

/// Drops frames whose source is allowed but whose L3 sender is not.
#[inline(never)]
pub(super) fn drop_spoofed(
    port: &Port,
    batch: &Batch,
    now: MonoTime,
    spoofing: &mut SpoofReporter,
    verdicts: &mut Verdicts,
    keys: &mut [LookupKey],
) {
    for (((_, head), verdict), key) in batch.heads().zip(verdicts).zip(keys) {
        if !key.is_none() && is_spoofed(port, key.source.mac(), head) {
            report_spoofed(port, key.source.mac(), head, now, spoofing);
            (*verdict, *key) = (Verdict::Drop(DropReason::SpoofedIp), LookupKey::NONE);
        }
    }
}

/// Whether a frame with an allowed source names an L3 sender that is not allowed. Frames with other sources are
/// dropped for their source and not checked here.
#[inline]
pub(super) fn is_spoofed(port: &Port, source: Mac, head: &[u8]) -> bool {
    let is_allowed = || source.is_station() && port.allows(source);
    port.bindings.as_ref().is_some_and(|bindings| is_allowed() && !bindings.allow(source, &SenderInfo::read(head)))
}

/// Reports a refused L3 sender.
#[cold]
pub(super) fn report_spoofed(port: &Port, source: Mac, head: &[u8], now: MonoTime, spoofing: &mut SpoofReporter) {
    if let Some(bindings) = &port.bindings {
        spoofing.record(port.config.id, bindings.refused_sender(source, &SenderInfo::read(head)), now);
    }
}

/// Parses the headers of a burst into a lookup key per frame, or its verdict. Returns whether any frame is
/// addressed to the loop-probe group; these have the verdict [`DropReason::Probe`] for now.
#[inline(never)] // to limit register pressure
pub(super) fn parse(
    config: &ForwardingConfig,
    port: &Port,
    batch: &Batch,
    now: MonoTime,
    verdicts: &mut Verdicts,
    keys: &mut [LookupKey],
) -> bool {
    let mut probes = false;
    for (((frame, head), verdict), key) in batch.heads().zip(verdicts).zip(keys) {
        *key = match read(port, frame, head, now) {
            Ok(header) => LookupKey::new(config, port, &header),
            Err(reason) => {
                *verdict = Verdict::Drop(reason);
                probes |= reason == DropReason::Probe;
                LookupKey::NONE
            }
        };
    }
    probes
}

/// Passes frames dropped as [`DropReason::Probe`] to the probe receiver, which gives the final drop reason.
#[cold]
pub(super) fn receive_probes(
    port: &Port,
    probe_receiver: &mut ProbeReceiver,
    batch: &Batch,
    now: MonoTime,
    verdicts: &mut Verdicts,
) {
    for ((frame, head), verdict) in batch.heads().zip(verdicts) {
        if *verdict == Verdict::Drop(DropReason::Probe) {
            *verdict = Verdict::Drop(probe_receiver.receive(port.config.id, contiguous(frame, head), now));
        }
    }
}

/// Decides a burst from a quarantined port: accepts loop probes only.
#[cold]
pub(super) fn drop_quarantined(
    port: &Port,
    probe_receiver: &mut ProbeReceiver,
    batch: &Batch,
    now: MonoTime,
    verdicts: &mut Verdicts,
) {
    for ((frame, head), verdict) in batch.heads().zip(&mut *verdicts) {
        *verdict = Verdict::Drop(match read(port, frame, head, now) {
            Err(DropReason::Probe) => DropReason::Probe,
            _ => DropReason::Quarantined,
        });
    }
    receive_probes(port, probe_receiver, batch, now, verdicts);
}

/// Stage 1 for one frame. Checks for a valid source only in frames to groups: the FDB has no invalid sources, and
/// [`Decider::decide`](super::decide::Decider::decide) checks sources that are not in it.
#[inline(always)]
pub(super) fn read(port: &Port, frame: &Frame, head: &[u8], now: MonoTime) -> Result<Header, DropReason> {
    use DropReason::{BadSource, Runt};
    // 2. header sane
    let Some(header) = Header::read(head) else { return Err(Runt) };
    if !(frame.is_single() && frame.len() <= port.max_len) {
        check_length(port, frame, head)?;
    }
    if header.destination.is_group() {
        if !header.source.is_station() {
            return Err(BadSource);
        }
        // 4. loop probe
        if header.destination == Probe::DESTINATION {
            return Err(DropReason::Probe);
        }
        // 5. reserved groups
        if is_link_local_group(header.destination) {
            check_reserved(port, frame, header.destination, now)?;
        }
    }
    Ok(header)
}

/// Whether the network passes a frame to a reserved group.
#[inline(never)]
fn check_reserved(port: &Port, frame: &Frame, destination: Mac, now: MonoTime) -> Result<(), DropReason> {
    if port.reserved.refuses(destination) {
        return Err(DropReason::ReservedGroup);
    }
    if is_bpdu(destination) && !port.config.storm.admits_bpdus(frame.count(), now) {
        return Err(DropReason::StormBpdu);
    }
    Ok(())
}

/// Checks the offload header and maximum length of a GSO packet or long frame.
#[inline(never)]
#[allow(clippy::cast_possible_truncation)] // 8 at most
fn check_length(port: &Port, frame: &Frame, head: &[u8]) -> Result<(), DropReason> {
    if !frame.is_valid() {
        return Err(DropReason::BadOffload);
    }
    // Up to two VLAN tags do not count towards the length.
    if frame.max_segment_len() > port.max_len && frame.max_segment_len() > port.max_len + (tags(head) * TAG_LEN) as u32
    {
        return Err(DropReason::TooLong);
    }
    Ok(())
}

/// Lookup key of a valid frame: source and destination stations.
#[derive(Debug, Clone, Copy)]
pub(super) struct LookupKey {
    pub(super) source: Station,
    pub(super) destination: Station,
    pub(super) source_hash: u64,
    pub(super) destination_hash: u64,
}

impl LookupKey {
    /// No lookup: the frame has its verdict.
    pub(super) const NONE: LookupKey =
        LookupKey { source: Station::NONE, destination: Station::NONE, source_hash: 0, destination_hash: 0 };

    #[inline(always)]
    pub(super) fn is_none(&self) -> bool {
        self.source == Station::NONE
    }

    #[inline(always)]
    pub(super) fn new(config: &ForwardingConfig, port: &Port, header: &Header) -> LookupKey {
        let source = Station::new(port.config.network, header.source);
        let destination = Station::new(port.config.network, header.destination);
        let (source_hash, destination_hash) = (config.hash(source), config.hash(destination));
        LookupKey { source, destination, source_hash, destination_hash }
    }
}

/// Prefetches the FDB buckets of a burst's keys, if the tables exceed the cache.
#[inline]
pub(super) fn prefetch(fdb: &Fdb, keys: &[LookupKey]) {
    if fdb.bytes_in_use() <= CACHED_BYTES {
        return;
    }
    for key in keys {
        fdb.prefetch(key.source_hash);
        fdb.prefetch(key.destination_hash);
    }
}
