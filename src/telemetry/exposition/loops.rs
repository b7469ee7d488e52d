//! Loops and storms as Prometheus metrics.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Labelled, Metric, gauges};
use crate::control::loops::status::{LoopCounts, LoopKind, LoopStatus, StormStatus};

/// Loops, storms and their totals, as control reports them.
#[derive(Debug, Default)]
pub struct Mitigation {
    /// Active and recent loops.
    pub loops: Vec<LoopStatus>,
    /// Active and recent storms.
    pub storms: Vec<StormStatus>,
    /// Totals since the start of the switch.
    pub counts: LoopCounts,
}

impl Mitigation {
    /// Samples of active loops and storms.
    pub(super) fn samples(self) -> Samples {
        let mut loops: BTreeMap<(String, String), LoopSample> = BTreeMap::new();
        for of in self.loops.into_iter().filter(|of| of.active && of.kind != LoopKind::Notice) {
            // A VM may be in several loops on a network: one between its own ports, and others with other VMs.
            let who = (of.device_id, of.network_id);
            let sample = loops.entry(who.clone()).or_insert(LoopSample { who, level: 0, dropped: 0 });
            sample.level = sample.level.max(of.level.into());
            sample.dropped += of.dropped_frames;
        }
        let storms = self.storms.into_iter().filter(|storm| storm.active).collect();
        Samples { loops: loops.into_values().collect(), storms, counts: self.counts }
    }
}

/// Samples of one scrape.
#[derive(Debug)]
pub(super) struct Samples {
    loops: Vec<LoopSample>,
    storms: Vec<StormStatus>,
    counts: LoopCounts,
}

/// All active loops of a VM on a network.
#[derive(Debug)]
struct LoopSample {
    who: (String, String),
    level: u64,
    dropped: u64,
}

const LOOP_GAUGES: &[Metric<LoopSample, u64>] = &[
    (
        "loop_level",
        "Mitigation level of a loop: 1 its ports are isolated from each other, 2 all but one are blocked, 3 all are blocked.",
        |of| of.level,
    ),
    ("loop_dropped_frames", "Frames of an active loop dropped by storm limits, since the loop began.", |of| of.dropped),
];

const STORM_GAUGES: &[Metric<StormStatus, u64>] = &[
    ("storm_dropped_frames", "Frames of an active storm dropped by its limit.", |of| of.dropped_frames),
    ("storm_highest_rate", "Maximum frames per second of an active storm dropped by its limit.", |of| of.highest_rate),
];

/// Totals of the switch.
const COUNTERS: &[Metric<LoopCounts, u64>] = &[
    ("loops", "Loops detected.", |c| c.loops),
    ("storms", "Storms detected.", |c| c.storms),
    ("dampenings", "Stations dampened for moving too often.", |c| c.dampenings),
    ("probes_sent", "Loop probes sent.", |c| c.probes_sent),
    ("probes_returned", "Loop probes returned at another port.", |c| c.probes_returned),
    ("probes_forged", "Frames to the loop-probe address that are not probes of this switch.", |c| c.probes_forged),
    ("probes_stale", "Returned loop probes that were too old or duplicates.", |c| c.probes_stale),
];

impl Samples {
    pub(super) fn encode(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        gauges(out, LOOP_GAUGES, &self.loops)?;
        gauges(out, STORM_GAUGES, &self.storms)?;
        for &(name, help, value) in COUNTERS {
            let sample = out.encode_descriptor(name, help, None, ConstCounter::<u64>::TYPE)?;
            ConstCounter::new(value(&self.counts)).encode(sample)?;
        }
        let sample =
            out.encode_descriptor("stations_dampened", "Stations dampened at present.", None, ConstGauge::<u64>::TYPE)?;
        ConstGauge::new(self.counts.dampened).encode(sample)
    }
}

impl Labelled for LoopSample {
    fn labels(&self) -> impl EncodeLabelSet {
        let (vm, network) = &self.who;
        [("vm", vm.as_str()), ("network", network)]
    }
}

impl Labelled for StormStatus {
    fn labels(&self) -> impl EncodeLabelSet {
        [
            ("vm", self.device_id.as_str()),
            ("network", &self.network_id),
            ("port", self.port_id.as_deref().unwrap_or_default()),
            ("class", &self.class),
        ]
    }
}
