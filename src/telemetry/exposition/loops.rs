//! Loops and storms as metrics.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Labelled, Metric, family};
use crate::control::loops::status::{LoopCounts, LoopKind, LoopStatus, StormStatus};

/// What is known of loops and storms.
#[derive(Debug, Default)]
pub struct Mitigation {
    /// Loops that are there and that were.
    pub loops: Vec<LoopStatus>,
    /// And storms.
    pub storms: Vec<StormStatus>,
    /// How many there were.
    pub counts: LoopCounts,
}

impl Mitigation {
    /// What there is now. What is over is for people to read.
    pub(super) fn samples(self) -> Samples {
        let mut loops: BTreeMap<(String, String), LoopSample> = BTreeMap::new();
        for of in self.loops.into_iter().filter(|of| of.active && of.kind != LoopKind::Notice) {
            // A VM may be in several loops on a network: one in itself, and others with others.
            let who = (of.device_id, of.network_id);
            let sample = loops.entry(who.clone()).or_insert(LoopSample { who, level: 0, suppressed: 0 });
            sample.level = sample.level.max(of.level.into());
            sample.suppressed += of.copies_suppressed;
        }
        let storms = self.storms.into_iter().filter(|storm| storm.active).collect();
        Samples { loops: loops.into_values().collect(), storms, counts: self.counts }
    }
}

/// What is shown of it at one scrape.
#[derive(Debug)]
pub(super) struct Samples {
    loops: Vec<LoopSample>,
    storms: Vec<StormStatus>,
    counts: LoopCounts,
}

/// All loops of a VM on a network.
#[derive(Debug)]
struct LoopSample {
    who: (String, String),
    level: u64,
    suppressed: u64,
}

const LOOP_GAUGES: &[Metric<LoopSample, u64>] = &[
    (
        "loop_level",
        "What is done about a loop: 1 floods among its ports are stopped, 2 all of them but one are held, 3 all are.",
        |of| of.level,
    ),
    ("loop_copies_suppressed", "Frames of a loop that storm limits refused, since it is there.", |of| of.suppressed),
];

const STORM_GAUGES: &[Metric<StormStatus, u64>] = &[
    ("storm_suppressed_frames", "Frames that a storm limit refused, in the storm that goes on.", |of| of.suppressed),
    ("storm_highest_rate", "The most that it refused in a second, in the storm that goes on.", |of| of.highest_rate),
];

/// Over all of the switch.
const COUNTERS: &[Metric<LoopCounts, u64>] = &[
    ("loops", "Loops that were found.", |c| c.loops),
    ("storms", "Storms that began.", |c| c.storms),
    ("dampenings", "Stations that were dampened since they moved too often.", |c| c.dampenings),
    ("probes_sent", "Loop probes sent.", |c| c.probes_sent),
    ("probes_returned", "Loop probes that came back by another port.", |c| c.probes_returned),
    ("probes_forged", "Frames to the address of loop probes that were none of this switch.", |c| c.probes_forged),
    ("probes_stale", "Loop probes that were too old, or had come back before.", |c| c.probes_stale),
];

impl Samples {
    pub(super) fn encode(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for &(name, help, value) in LOOP_GAUGES {
            family(out, name, help, None, &self.loops, |of| ConstGauge::new(value(of)))?;
        }
        for &(name, help, value) in STORM_GAUGES {
            family(out, name, help, None, &self.storms, |of| ConstGauge::new(value(of)))?;
        }
        for &(name, help, value) in COUNTERS {
            let sample = out.encode_descriptor(name, help, None, ConstCounter::<u64>::TYPE)?;
            ConstCounter::new(value(&self.counts)).encode(sample)?;
        }
        let sample =
            out.encode_descriptor("stations_dampened", "Stations that are dampened.", None, ConstGauge::<u64>::TYPE)?;
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
