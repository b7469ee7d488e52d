//! Control of the switch as Prometheus metrics: its loop, changes, commits, generations.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Unit;

use crate::control::health::{Health, StoreHealth, SwitchStatus};
use crate::control::measures::{Durations, Measures};

/// Control of the switch, as it is when encoded.
#[derive(Debug)]
pub(super) struct Control(pub Health);

type Metric<T> = (&'static str, &'static str, fn(&T) -> u64);

type Histogram = (&'static str, &'static str, fn(&Measures) -> &Durations);

const HISTOGRAMS: &[Histogram] = &[
    ("control_latency", "How late the control loop runs its periodic check.", |m| &m.latency),
    ("change_duration", "Time from the request of a change to its answer.", |m| &m.changes),
    ("commit_duration", "Duration of commits of the state, also of those that fail.", |m| &m.commits),
];

const COUNTERS: &[Metric<Measures>] = &[
    ("commit_failures", "Commits of the state that failed.", |m| m.commit_failures.get()),
    ("open_retries", "Attempts to open a device of a port that was down with a reason.", |m| m.open_retries.get()),
];

const GAUGES: &[Metric<SwitchStatus>] = &[
    ("desired_generation", "Number of the desired configuration.", |s| s.desired_generation),
    ("applied_generation", "Number of the configuration that all workers and devices have.", |s| s.applied_generation),
    ("state_unstored", "Whether changes cannot be stored at present, and are refused: 1 or 0.", |s| {
        u64::from(s.state == StoreHealth::StoreFailed)
    }),
];

impl Control {
    pub(super) fn encode(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (status, measures) = (self.0.status(), self.0.measures());
        for &(name, help, value) in GAUGES {
            gauge(out, name, help, value(&status))?;
        }
        gauge(out, "waiting_changes", "Changes that wait for the one in progress.", measures.waiting_changes.get())?;
        for &(name, help, value) in COUNTERS {
            let sample = out.encode_descriptor(name, help, None, ConstCounter::<u64>::TYPE)?;
            ConstCounter::new(value(measures)).encode(sample)?;
        }
        for &(name, help, durations) in HISTOGRAMS {
            let (sum, buckets) = durations(measures).read();
            let count = buckets.iter().map(|bucket| bucket.1).sum();
            let mut sample = out.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
            sample.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

fn gauge(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let sample = out.encode_descriptor(name, help, None, ConstGauge::<u64>::TYPE)?;
    ConstGauge::new(value).encode(sample)
}
