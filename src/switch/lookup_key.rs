//! What frames say of themselves: the first round of judging. Each frame that is sane becomes a question to
//! the tables; every other one has its verdict.

use super::forwarding::Port;
use super::probe_receiver::{ProbeReceiver, contiguous};
use super::reserved::is_link_local_group;
use super::spoofing::SpoofReporter;
use super::storm::is_bpdu;
use super::{DropReason, Fdb, ForwardingConfig, Station, Verdict, Verdicts};
use crate::frame::{Batch, Frame};
use crate::time::MonoTime;
use crate::wire::{Header, Mac, Probe, SenderInfo, TAG_LEN, tags};

/// Bytes of tables that are surely in the processor's cache; larger ones are fetched ahead.
const CACHED_BYTES: usize = 512 << 10;

/// Refuses the frames whose source is allowed, and which name senders above Ethernet that are not.
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

/// Whether a frame with an allowed source names a sender above Ethernet that is not. Of others this is not
/// asked: they die for their source.
#[inline]
pub(super) fn is_spoofed(port: &Port, source: Mac, head: &[u8]) -> bool {
    let is_allowed = || source.is_station() && port.allows(source);
    port.bindings.as_ref().is_some_and(|bindings| is_allowed() && !bindings.allow(source, &SenderInfo::read(head)))
}

/// Notes which sender was refused.
#[cold]
pub(super) fn report_spoofed(port: &Port, source: Mac, head: &[u8], now: MonoTime, spoofing: &mut SpoofReporter) {
    if let Some(bindings) = &port.bindings {
        spoofing.record(port.config.id, bindings.refused_sender(source, &SenderInfo::read(head)), now);
    }
}

/// Reads the headers of a burst: a question for each frame, or its verdict. Whether there are frames to the address of
/// loop probes, which die as [`DropReason::Probe`] so far.
#[inline(never)] // with registers of its own
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

/// Listens to the frames of a burst that die as [`DropReason::Probe`]: what they really die as.
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

/// Judges a burst from a port in quarantine: loop probes are heard, and nothing else.
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

/// What a frame says of itself. Whether its source can be one is only asked of frames to groups: the tables know no
/// other sources, and who is not known to them is asked by [`Decider::decide`](super::judge::Decider::decide).
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

/// Whether a frame to a reserved group may pass.
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

/// Whether a frame that stands for several, or seems too long, is as it should be.
#[inline(never)]
#[allow(clippy::cast_possible_truncation)] // 8 at most
fn check_length(port: &Port, frame: &Frame, head: &[u8]) -> Result<(), DropReason> {
    if !frame.is_valid() {
        return Err(DropReason::BadOffload);
    }
    // Its tags are forgiven, two at most.
    if frame.max_segment_len() > port.max_len && frame.max_segment_len() > port.max_len + (tags(head) * TAG_LEN) as u32
    {
        return Err(DropReason::TooLong);
    }
    Ok(())
}

/// What a sane frame asks the tables: may this source be here, and where is this destination?
#[derive(Debug, Clone, Copy)]
pub(super) struct LookupKey {
    pub(super) source: Station,
    pub(super) destination: Station,
    pub(super) source_hash: u64,
    pub(super) destination_hash: u64,
}

impl LookupKey {
    /// None to be asked: the frame has its verdict.
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

/// Fetches what the questions of a burst will look up, where that is too much to be at hand.
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
