//! Observations of an open device about its frames, for control to report.
//!
//! The worker that polls the device writes, rarely; control reads, once a second.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::Relaxed};

use super::{MAX_GSO_SIZE, Settings};

/// Attributes that limit the GSO packets of a sending netdev: for IPv6, for IPv4.
const GSO_LIMITS: [&str; 2] = ["gso_max_size", "gso_ipv4_max_size"];

/// Observations, shared with control.
#[derive(Debug, Clone, Default)]
pub struct Observed(Arc<Observations>);

#[derive(Debug, Default)]
struct Observations {
    /// Control requests samples of received frames.
    sample_requested: AtomicBool,
    /// Checksums of received frames are partial.
    partial: AtomicBool,
    /// The receive ring is stuck.
    ring_stuck: AtomicBool,
    /// Errno with which receives fail; 0 while they do not.
    rx_error: AtomicI32,
    /// Length of the first GSO packet that exceeded a receive buffer, for each of [`GSO_LIMITS`]; 0 for none.
    oversize: [AtomicU32; 2],
    /// An observation is new.
    changed: AtomicBool,
}

impl Observed {
    /// Requests samples of the next received frames.
    pub fn request_samples(&self) {
        self.0.sample_requested.store(true, Relaxed);
    }

    /// Whether samples are requested; resets the request.
    pub fn take_sample_request(&self) -> bool {
        self.0.sample_requested.load(Relaxed) && self.0.sample_requested.swap(false, Relaxed)
    }

    /// Reports that received frames have partial checksums.
    pub fn report_partial_checksums(&self) {
        if !self.0.partial.swap(true, Relaxed) {
            self.0.changed.store(true, Relaxed);
        }
    }

    /// Reports that the receive ring is stuck and no longer used.
    pub fn report_stuck_ring(&self) {
        if !self.0.ring_stuck.swap(true, Relaxed) {
            self.0.changed.store(true, Relaxed);
        }
    }

    /// Reports that a GSO packet of `len` bytes exceeded a receive buffer and was lost.
    pub fn report_oversize(&self, len: usize, is_ipv4: bool) {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        if self.0.oversize[usize::from(is_ipv4)].compare_exchange(0, len, Relaxed, Relaxed).is_ok() {
            self.0.changed.store(true, Relaxed);
        }
    }

    /// Reports that receives fail with an errno, or fail no longer.
    pub fn report_rx_error(&self, errno: Option<i32>) {
        let errno = errno.unwrap_or_default();
        if self.0.rx_error.swap(errno, Relaxed) != errno {
            self.0.changed.store(true, Relaxed);
        }
    }

    /// Whether an observation is new since the last call.
    pub fn take_changed(&self) -> bool {
        self.0.changed.load(Relaxed) && self.0.changed.swap(false, Relaxed)
    }

    /// Observations as text with a remedy.
    pub fn warnings(&self, settings: &Settings) -> Vec<String> {
        let ring_stuck = self.0.ring_stuck.load(Relaxed).then(|| {
            format!(
                "{}: a GSO packet of a kind that the kernel cannot deliver (UDP fragmentation, SCTP) has halted the \
                 receive ring; each frame now takes a system call, and such packets are lost; turn that offload off in the \
                 guest (in a VM's configuration ufo=off)",
                settings.at()
            )
        });
        let partial = self.0.partial.load(Relaxed).then(|| {
            format!(
                "{}: received frames have partial checksums, which AF_XDP cannot complete, so that their receivers drop them; turn \
                 checksum offload off at the peer (`ethtool -K NETDEV tx off`; in a VM's configuration csum=off), or use \
                 kind = packet",
                settings.at()
            )
        });
        let lens = self.0.oversize.iter().map(|len| len.load(Relaxed));
        let oversize = lens.zip(GSO_LIMITS).filter(|&(len, _)| len > 0).map(|(len, limit)| {
            format!(
                "{}: a GSO packet of {len} bytes was lost on receive, as are all beyond 64 KiB (BIG TCP, rx_missed); \
                 `ip link set dev NETDEV {limit} {MAX_GSO_SIZE}` for the sender's netdev, such as the other end of a veth, \
                 prevents them",
                settings.at()
            )
        });
        let rx_error = Some(self.0.rx_error.load(Relaxed)).filter(|&errno| errno != 0).map(|errno| {
            format!(
                "{}: receiving fails although frames wait: {}; it is tried once a second; if that lasts, attach the port again",
                settings.at(),
                io::Error::from_raw_os_error(errno)
            )
        });
        ring_stuck.into_iter().chain(partial).chain(oversize).chain(rx_error).collect()
    }
}

/// Samples of received frames: the number with a partial checksum.
#[derive(Debug, Default)]
pub(super) struct Samples {
    /// Frames still to sample.
    left: u8,
    taken: u8,
    partial: u8,
}

impl Samples {
    /// Frames sampled per request.
    const PER_REQUEST: u8 = 8;
    /// Minimum number of partial checksums to report: one frame in 65 536 looks like one by accident.
    const ENOUGH: u8 = 3;

    /// Starts sampling.
    pub(super) fn begin(&mut self) {
        *self = Samples { left: Samples::PER_REQUEST, taken: 0, partial: 0 };
    }

    /// Whether the next frame is to be sampled.
    #[inline(always)]
    pub(super) fn is_due(&self) -> bool {
        self.left > 0
    }

    /// Samples a frame. Whether most received frames have partial checksums.
    pub(super) fn take(&mut self, frame: &[u8]) -> bool {
        self.left = self.left.saturating_sub(1);
        if let Some(is_partial) = crate::wire::is_partial_checksum(frame) {
            self.taken += 1;
            self.partial += u8::from(is_partial);
        }
        self.partial >= Samples::ENOUGH && self.partial * 2 >= self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_is_reported_once() {
        let observed = Observed::default();
        assert!(!observed.take_changed() && !observed.take_sample_request());
        observed.request_samples();
        assert!(observed.take_sample_request() && !observed.take_sample_request());
        for _ in 0..3 {
            observed.report_partial_checksums();
        }
        assert!(observed.take_changed() && !observed.take_changed());
        for (len, is_ipv4) in [(185_000, false), (70_000, false), (90_000, true)] {
            observed.report_oversize(len, is_ipv4);
            assert_eq!(observed.take_changed(), len != 70_000, "each family once");
        }
    }

    #[test]
    fn observation_is_bounded_per_receive() {
        let mut samples = Samples::default();
        assert!(!samples.is_due());
        samples.begin();
        let taken = (0..100).take_while(|_| samples.is_due() && !samples.take(&[0; 60])).count();
        assert_eq!(taken, usize::from(Samples::PER_REQUEST));
    }
}
