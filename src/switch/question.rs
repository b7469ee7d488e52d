//! What frames say of themselves: the first round of judging. Each frame that is sane becomes a question to
//! the tables; every other one has its verdict.

use super::probes::{Ears, whole};
use super::reserved::is_of_the_wire;
use super::rules::Port;
use super::spoofing::Spoofing;
use super::storm::is_bpdu;
use super::{DropReason, Fdb, Rules, Station, Verdict, Verdicts};
use crate::frame::{Batch, Frame};
use crate::time::Moment;
use crate::wire::{Claim, Header, Mac, Probe, TAG_LEN, tags};

/// Bytes of tables that are surely in the processor's cache; larger ones are fetched ahead.
const WARM: usize = 512 << 10;

/// Refuses the frames whose source is allowed, and which name senders above Ethernet that are not.
#[inline(never)]
pub(super) fn refuse_spoofed(
    port: &Port,
    batch: &Batch,
    now: Moment,
    spoofing: &mut Spoofing,
    verdicts: &mut Verdicts,
    questions: &mut [Question],
) {
    for (((_, head), verdict), question) in batch.heads().zip(verdicts).zip(questions) {
        if !question.is_none() && is_spoofed(port, question.source.mac(), head) {
            note_spoofed(port, question.source.mac(), head, now, spoofing);
            (*verdict, *question) = (Verdict::Drop(DropReason::SpoofedIp), Question::NONE);
        }
    }
}

/// Whether a frame with an allowed source names a sender above Ethernet that is not. Of others this is not
/// asked: they die for their source.
#[inline]
pub(super) fn is_spoofed(port: &Port, source: Mac, head: &[u8]) -> bool {
    let is_allowed = || source.is_station() && port.allows(source);
    port.bindings.as_ref().is_some_and(|bindings| is_allowed() && !bindings.allow(source, &Claim::read(head)))
}

/// Notes which sender was refused.
#[cold]
pub(super) fn note_spoofed(port: &Port, source: Mac, head: &[u8], now: Moment, spoofing: &mut Spoofing) {
    if let Some(bindings) = &port.bindings {
        spoofing.note(port.rules.id, bindings.refused(source, &Claim::read(head)), now);
    }
}

/// Reads the headers of a burst: a question for each frame, or its verdict. Whether there are frames to the address of
/// loop probes, which die as [`DropReason::Probe`] so far.
#[inline(never)] // with registers of its own
pub(super) fn ask(
    rules: &Rules,
    port: &Port,
    batch: &Batch,
    now: Moment,
    verdicts: &mut Verdicts,
    questions: &mut [Question],
) -> bool {
    let mut probes = false;
    for (((frame, head), verdict), question) in batch.heads().zip(verdicts).zip(questions) {
        *question = match read(port, frame, head, now) {
            Ok(header) => Question::new(rules, port, &header),
            Err(reason) => {
                *verdict = Verdict::Drop(reason);
                probes |= reason == DropReason::Probe;
                Question::NONE
            }
        };
    }
    probes
}

/// Listens to the frames of a burst that die as [`DropReason::Probe`]: what they really die as.
#[cold]
pub(super) fn listen(port: &Port, ears: &mut Ears, batch: &Batch, now: Moment, verdicts: &mut Verdicts) {
    for ((frame, head), verdict) in batch.heads().zip(verdicts) {
        if *verdict == Verdict::Drop(DropReason::Probe) {
            *verdict = Verdict::Drop(ears.hear(port.rules.id, whole(frame, head), now));
        }
    }
}

/// Judges a burst from a port in quarantine: loop probes are heard, and nothing else.
#[cold]
pub(super) fn refuse_held(port: &Port, ears: &mut Ears, batch: &Batch, now: Moment, verdicts: &mut Verdicts) {
    for ((frame, head), verdict) in batch.heads().zip(&mut *verdicts) {
        *verdict = Verdict::Drop(match read(port, frame, head, now) {
            Err(DropReason::Probe) => DropReason::Probe,
            _ => DropReason::Quarantined,
        });
    }
    listen(port, ears, batch, now, verdicts);
}

/// What a frame says of itself. Whether its source can be one is only asked of frames to groups: the tables know no
/// other sources, and who is not known to them is asked by [`Judge::answer`](super::judge::Judge::answer).
#[inline(always)]
pub(super) fn read(port: &Port, frame: &Frame, head: &[u8], now: Moment) -> Result<Header, DropReason> {
    use DropReason::{BadSource, Runt};
    // 2. header sane
    let Some(header) = Header::read(head) else { return Err(Runt) };
    if !(frame.is_plain() && frame.len() <= port.longest) {
        fits(port, frame, head)?;
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
        if is_of_the_wire(header.destination) {
            keep_reserved(port, frame, header.destination, now)?;
        }
    }
    Ok(header)
}

/// Whether a frame to a reserved group may pass.
#[inline(never)]
fn keep_reserved(port: &Port, frame: &Frame, destination: Mac, now: Moment) -> Result<(), DropReason> {
    if port.reserved.refuses(destination) {
        return Err(DropReason::ReservedGroup);
    }
    if is_bpdu(destination) && !port.rules.storm.admits_bpdus(frame.count(), now) {
        return Err(DropReason::StormBpdu);
    }
    Ok(())
}

/// Whether a frame that stands for several, or seems too long, is as it should be.
#[inline(never)]
#[allow(clippy::cast_possible_truncation)] // 8 at most
fn fits(port: &Port, frame: &Frame, head: &[u8]) -> Result<(), DropReason> {
    if !frame.is_sound() {
        return Err(DropReason::BadOffload);
    }
    // Its tags are forgiven, two at most.
    if frame.longest() > port.longest && frame.longest() > port.longest + (tags(head) * TAG_LEN) as u32 {
        return Err(DropReason::TooLong);
    }
    Ok(())
}

/// What a sane frame asks the tables: may this source be here, and where is this destination?
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    pub(super) source: Station,
    pub(super) destination: Station,
    pub(super) source_hash: u64,
    pub(super) destination_hash: u64,
}

impl Question {
    /// None to be asked: the frame has its verdict.
    pub(super) const NONE: Question =
        Question { source: Station::NONE, destination: Station::NONE, source_hash: 0, destination_hash: 0 };

    #[inline(always)]
    pub(super) fn is_none(&self) -> bool {
        self.source == Station::NONE
    }

    #[inline(always)]
    pub(super) fn new(rules: &Rules, port: &Port, header: &Header) -> Question {
        let source = Station::new(port.rules.network, header.source);
        let destination = Station::new(port.rules.network, header.destination);
        let (source_hash, destination_hash) = (rules.hash(source), rules.hash(destination));
        Question { source, destination, source_hash, destination_hash }
    }
}

/// Fetches what the questions of a burst will look up, where that is too much to be at hand.
#[inline]
pub(super) fn fetch_ahead(fdb: &Fdb, questions: &[Question]) {
    if fdb.bytes_in_use() <= WARM {
        return;
    }
    for question in questions {
        fdb.prefetch(question.source_hash);
        fdb.prefetch(question.destination_hash);
    }
}
