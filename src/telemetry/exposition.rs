//! Prometheus metrics in the OpenMetrics text format.
//!
//! Each scrape encodes the current values; there is no persistent registry. *Receive* is from the guest to the switch,
//! *transmit* is to the guest.

mod control;
mod loops;

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use self::control::Control;
pub use self::loops::Mitigation;
use self::loops::Samples;
use crate::control::api::responses::{
    CountsView, Direction, DropView, NetworkView, PortView, Status, UplinkView, VmView, WorkerView,
};
use crate::control::health::Health;
use crate::telemetry::{LOG_LINES_LEFT_OUT, LOG_LINES_LOST};
use crate::time;

/// Value of the `Content-Type` header.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Encodes the metrics as text.
pub fn render(
    ports: Vec<PortView>,
    vms: Vec<VmView>,
    networks: Vec<NetworkView>,
    workers: Vec<WorkerView>,
    drops: Vec<DropView>,
    uplinks: Vec<UplinkView>,
    (contained, health): (Mitigation, &Health),
) -> String {
    let mut registry = Registry::with_prefix("vifswitch");
    registry.register("build", "Version of the switch", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    // Drops at uplinks are a metric of their own, with other labels.
    let (uplink_drops, drops) = drops.into_iter().partition(|drop: &DropView| drop.uplink_id.is_some());
    let uplink_drops: Vec<DropView> = uplink_drops;
    let uplink_drops = uplink_drops.into_iter().map(UplinkDrop).collect();
    let (contained, control) = (contained.samples(), Control(health.clone()));
    let views = Metrics { ports, vms, networks, workers, drops, uplinks, uplink_drops, contained, control };
    registry.register_collector(Box::new(views));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &registry);
    text
}

/// Values of one scrape.
#[derive(Debug)]
struct Metrics {
    ports: Vec<PortView>,
    vms: Vec<VmView>,
    networks: Vec<NetworkView>,
    workers: Vec<WorkerView>,
    drops: Vec<DropView>,
    uplinks: Vec<UplinkView>,
    uplink_drops: Vec<UplinkDrop>,
    contained: Samples,
    control: Control,
}

/// Drops at an uplink.
#[derive(Debug)]
struct UplinkDrop(DropView);

/// Frames to a reserved group dropped at a port or an uplink.
#[derive(Debug)]
struct Refused<'a, T> {
    at: &'a T,
    group: &'a str,
    frames: u64,
}

/// A metric: name without prefix and suffix, help, and function that reads its value.
type Metric<T, V> = (&'static str, &'static str, fn(&T) -> V);

/// Metrics of both ports and uplinks; the name gets the prefix `port_` or `uplink_`. `{from}` and `{to}` in the help
/// are replaced by [`Counted::FROM`] and [`Counted::TO`].
const COUNTERS: &[Metric<CountsView, u64>] = &[
    ("receive_frames", "Frames {from}; a GSO packet counts as its segments.", |c| c.rx_frames),
    ("receive_bytes", "Bytes {from}, without frame check sequence.", |c| c.rx_bytes),
    ("transmit_frames", "Frames {to}.", |c| c.tx_frames),
    ("transmit_bytes", "Bytes {to}, without frame check sequence.", |c| c.tx_bytes),
    ("forwarded_frames", "Frames {from} forwarded to one port.", |c| c.forwarded),
    ("flooded_frames", "Frames {from} flooded to the network.", |c| c.flooded),
    ("flood_copies", "Copies made of flooded frames {from}.", |c| c.copies),
    ("probe_frames", "Loop probes of the switch {to}.", |c| c.probes),
    ("announcement_frames", "Announcements of local stations by the switch {to}.", |c| c.announcements),
    ("transmit_lost_frames", "Frames {to} that the device accepted and then lost.", |c| c.tx_lost),
    ("receive_missed_frames", "Frames {from} lost before the switch received them.", |c| c.rx_missed),
];

const PORT_COUNTERS: &[Metric<PortView, u64>] = &[
    ("port_segmented_frames", "GSO packets to the guest segmented in software.", |p| p.counts.segmented),
    ("port_checksummed_frames", "Other frames to the guest whose partial checksum was completed in software.", |p| {
        p.counts.checksummed
    }),
    (
        "port_not_learned_frames",
        "Frames from the guest whose source was not learned, because the port is at its MAC limit.",
        |p| p.counts.not_learned,
    ),
    ("port_not_flooded_frames", "Frames to unknown destinations that were not flooded to the port.", |p| {
        p.counts.not_flooded
    }),
    ("port_mirror_copies", "Copies of other ports' frames to the promiscuous port.", |p| p.counts.mirror_copies),
];

const UPLINK_GAUGES: &[Metric<UplinkView, u64>] = &[
    ("uplink_up", "Whether the uplink is operational, active or backup: 1 or 0.", |u| {
        u64::from(u.status == Status::Active)
    }),
    ("uplink_active", "Whether the uplink is active and not the backup of its group: 1 or 0.", |u| u64::from(u.active)),
];

const VM_GAUGES: &[Metric<VmView, u64>] = &[
    ("vm_ports", "Ports of the VM.", |vm| vm.ports.len() as u64),
    ("vm_ports_up", "Ports of the VM that are up.", |vm| vm.active as u64),
];

/// Counters of VMs. They decrease when a port of the VM is detached; Prometheus treats that as a counter reset.
const VM_COUNTERS: &[Metric<VmView, u64>] = &[
    ("vm_receive_frames", "Frames from the VM, summed over its present ports.", |vm| vm.rx_frames),
    ("vm_receive_bytes", "Bytes from the VM, summed over its present ports.", |vm| vm.rx_bytes),
    ("vm_transmit_frames", "Frames to the VM, summed over its present ports.", |vm| vm.tx_frames),
    ("vm_transmit_bytes", "Bytes to the VM, summed over its present ports.", |vm| vm.tx_bytes),
    ("vm_drops", "Dropped frames from and to the VM, summed over its present ports.", |vm| vm.drops),
];

const NETWORK_GAUGES: &[Metric<NetworkView, u64>] = &[
    ("network_ports", "Ports on the network.", |n| n.ports as u64),
    ("network_ports_up", "Ports on the network that are up.", |n| n.active as u64),
    ("network_stations", "Stations learned, maximum over the workers' FDBs.", |n| n.stations),
    ("network_stations_limit", "Maximum number of learned stations.", |n| u64::from(n.fdb_limit)),
];

const WORKER_GAUGES: &[Metric<WorkerView, u64>] = &[
    ("worker_queues", "Device queues that the worker polls.", |w| w.queues as u64),
    ("worker_stations", "Stations in the worker's FDB.", |w| w.stations),
    ("worker_stations_limit", "Capacity of the worker's FDB in stations.", |w| w.stations_limit),
];

const WORKER_COUNTERS: &[Metric<WorkerView, u64>] = &[
    ("worker_polls", "Iterations of the worker's loop.", |w| w.polls),
    ("worker_busy_polls", "Iterations of the worker's loop with work.", |w| w.busy_polls),
    ("worker_sleeps", "Times the worker went to sleep.", |w| w.sleeps),
    (
        "worker_polls_skipped",
        "Polls of a queue skipped by drop back-off: its last bursts were dropped entirely.",
        |w| w.polls_skipped,
    ),
    ("worker_stations_refused", "Stations not learned because the FDB had no free entry.", |w| w.stations_refused),
    ("worker_updates_lost", "MAC updates lost because the ring to a peer was full; they are sent again.", |w| {
        w.updates_lost
    }),
    ("worker_peer_tx_frames", "Frames for one port handed off to other workers.", |w| w.peer_tx_frames),
    ("worker_peer_rx_frames", "Frames for one port taken over from other workers.", |w| w.peer_rx_frames),
    ("worker_peer_tx_floods", "Frames for flooding handed off to other workers.", |w| w.peer_tx_floods),
    ("worker_peer_rx_floods", "Frames for flooding taken over from other workers.", |w| w.peer_rx_floods),
    (
        "worker_closed_port_drops",
        "Frames dropped because their port was closed while they were in flight between workers.",
        |w| w.closed_port_drops,
    ),
];

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let out = &mut encoder;
        counted(out, &self.ports)?;
        counters(out, PORT_COUNTERS, &self.ports)?;
        let help = "Whether the port is operational: 1 or 0.";
        family(out, "port_up", help, None, &self.ports, |p| ConstGauge::new(u32::from(p.status == Status::Active)))?;
        let help = "Dropped frames by reason; direction in: from the guest, out: to the guest.";
        family(out, "port_drops", help, None, &self.drops, |d| ConstCounter::new(d.frames))?;

        counted(out, &self.uplinks)?;
        gauges(out, UPLINK_GAUGES, &self.uplinks)?;
        let help = "Dropped frames by reason; direction in: from outside, out: to the outside.";
        family(out, "uplink_drops", help, None, &self.uplink_drops, |d| ConstCounter::new(d.0.frames))?;

        gauges(out, VM_GAUGES, &self.vms)?;
        counters(out, VM_COUNTERS, &self.vms)?;

        gauges(out, NETWORK_GAUGES, &self.networks)?;

        self.contained.encode(out)?;
        self.control.encode(out)?;

        gauges(out, WORKER_GAUGES, &self.workers)?;
        counters(out, WORKER_COUNTERS, &self.workers)?;
        // A value of the process: all workers start together and their counters with them.
        if let Some(seconds) = self.workers.first().and_then(|worker| start_time(&worker.since)) {
            let help = "Start time of the switch and its counters, since 1970.";
            let sample = out.encode_descriptor("start_time", help, Some(&Unit::Seconds), ConstGauge::<f64>::TYPE)?;
            ConstGauge::new(seconds).encode(sample)?;
        }
        let lost = "Log lines lost because standard error was not read in time or failed.";
        let left_out = "Log lines left out because their source had more than its limit.";
        for (name, help, lines) in
            [("log_lines_lost", lost, &LOG_LINES_LOST), ("log_lines_left_out", left_out, &LOG_LINES_LEFT_OUT)]
        {
            let sample = out.encode_descriptor(name, help, None, ConstCounter::<u64>::TYPE)?;
            ConstCounter::new(lines.load(Ordering::Relaxed)).encode(sample)?;
        }
        let help = "Time spent in loop iterations with work.";
        let unit = Some(&Unit::Seconds);
        family(out, "worker_busy", help, unit, &self.workers, |w| ConstCounter::new(w.busy_seconds))
    }
}

/// Parses RFC 3339 to seconds since 1970.
fn start_time(text: &str) -> Option<f64> {
    let since = time::parse_rfc3339(text)?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(since.as_secs_f64())
}

/// Encodes gauges with a sample per item.
fn gauges<T: Labelled>(out: &mut DescriptorEncoder, metrics: &[Metric<T, u64>], items: &[T]) -> fmt::Result {
    metrics
        .iter()
        .try_for_each(|(name, help, value)| family(out, name, help, None, items, |it| ConstGauge::new(value(it))))
}

/// Encodes counters with a sample per item.
fn counters<T: Labelled>(out: &mut DescriptorEncoder, metrics: &[Metric<T, u64>], items: &[T]) -> fmt::Result {
    metrics
        .iter()
        .try_for_each(|(name, help, value)| family(out, name, help, None, items, |it| ConstCounter::new(value(it))))
}

/// Encodes one metric with a sample per item.
fn family<T: Labelled, M: EncodeMetric + TypedMetric>(
    out: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    items: &[T],
    value: impl Fn(&T) -> M,
) -> fmt::Result {
    let mut samples = out.encode_descriptor(name, help, unit, M::TYPE)?;
    for item in items {
        value(item).encode(samples.encode_family(&item.labels())?)?;
    }
    Ok(())
}

/// Encodes the metrics of ports or uplinks.
fn counted<'a, T: Counted>(out: &mut DescriptorEncoder, items: &'a [T]) -> fmt::Result
where
    Refused<'a, T>: Labelled,
{
    for &(name, help, value) in COUNTERS {
        let (name, help) = (format!("{}_{name}", T::WHAT), help.replace("{from}", T::FROM).replace("{to}", T::TO));
        family(out, &name, &help, None, items, |item| ConstCounter::new(value(item.counts())))?;
    }
    let refused = items.iter().flat_map(|at| {
        at.counts().reserved_groups.iter().map(move |(group, &frames)| Refused { at, group: group.as_str(), frames })
    });
    let refused: Vec<Refused<'_, T>> = refused.collect();
    let help = format!("Frames {} to reserved group addresses that were dropped, by the group's name.", T::FROM);
    let name = format!("{}_reserved_group_frames", T::WHAT);
    family(out, &name, &help, None, &refused, |refused| ConstCounter::new(refused.frames))
}

/// An item with frame counters, and the words for its help texts.
trait Counted: Labelled {
    const WHAT: &str;
    const FROM: &str;
    const TO: &str;

    fn counts(&self) -> &CountsView;
}

impl Counted for PortView {
    const WHAT: &str = "port";
    const FROM: &str = "from the guest";
    const TO: &str = "to the guest";

    fn counts(&self) -> &CountsView {
        &self.counts
    }
}

impl Counted for UplinkView {
    const WHAT: &str = "uplink";
    const FROM: &str = "from outside";
    const TO: &str = "to the outside";

    fn counts(&self) -> &CountsView {
        &self.counts
    }
}

/// Labels of a sample.
trait Labelled {
    fn labels(&self) -> impl EncodeLabelSet;
}

impl Labelled for PortView {
    fn labels(&self) -> impl EncodeLabelSet {
        [("port", self.port_id.as_str()), ("vm", &self.device_id), ("network", &self.network_id)]
    }
}

impl Labelled for Refused<'_, PortView> {
    fn labels(&self) -> impl EncodeLabelSet {
        let PortView { port_id, device_id, network_id, .. } = self.at;
        [("port", port_id.as_str()), ("vm", device_id), ("network", network_id), ("group", self.group)]
    }
}

impl Labelled for Refused<'_, UplinkView> {
    fn labels(&self) -> impl EncodeLabelSet {
        [("uplink", self.at.uplink_id.as_str()), ("group", self.group)]
    }
}

impl Labelled for UplinkView {
    fn labels(&self) -> impl EncodeLabelSet {
        [("uplink", self.uplink_id.as_str())]
    }
}

impl Labelled for UplinkDrop {
    fn labels(&self) -> impl EncodeLabelSet {
        let UplinkDrop(drop) = self;
        [("uplink", drop.port_id.as_str()), ("direction", direction(drop)), ("reason", &drop.reason)]
    }
}

fn direction(drop: &DropView) -> &'static str {
    match drop.direction {
        Direction::In => "in",
        Direction::Out => "out",
    }
}

impl Labelled for DropView {
    fn labels(&self) -> impl EncodeLabelSet {
        [
            ("port", self.port_id.as_str()),
            ("vm", &self.device_id),
            ("network", &self.network_id),
            ("direction", direction(self)),
            ("reason", &self.reason),
        ]
    }
}

impl Labelled for VmView {
    fn labels(&self) -> impl EncodeLabelSet {
        [("vm", self.device_id.as_str())]
    }
}

impl Labelled for NetworkView {
    fn labels(&self) -> impl EncodeLabelSet {
        [("network", self.network_id.as_str())]
    }
}

impl Labelled for WorkerView {
    fn labels(&self) -> impl EncodeLabelSet {
        [("worker", usize::from(self.worker)), ("core", self.core)]
    }
}
