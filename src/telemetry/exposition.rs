//! Prometheus metrics in the OpenMetrics text format.
//!
//! Each scrape reads the current values; there is no registry. *Receive* is from the guest into the
//! switch, *transmit* is to the guest, as for the ports of any other switch.

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

pub use self::loops::Mitigation;
use self::loops::Samples;
use crate::control::responses::{
    CountsView, Direction, DropView, NetworkView, PortView, Status, UplinkView, VmView, WorkerView,
};
use crate::telemetry::LOG_LINES_LOST;
use crate::time;

/// What the text is called in a `Content-Type` header.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics as text.
pub fn render(
    ports: Vec<PortView>,
    vms: Vec<VmView>,
    networks: Vec<NetworkView>,
    workers: Vec<WorkerView>,
    drops: Vec<DropView>,
    uplinks: Vec<UplinkView>,
    contained: Mitigation,
) -> String {
    let mut registry = Registry::with_prefix("vifswitch");
    registry.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    // An uplink is not a port of a VM, and has labels of its own.
    let (uplink_drops, drops) = drops.into_iter().partition(|drop: &DropView| drop.uplink_id.is_some());
    let uplink_drops: Vec<DropView> = uplink_drops;
    let uplink_drops = uplink_drops.into_iter().map(UplinkDrop).collect();
    let contained = contained.samples();
    let views = Metrics { ports, vms, networks, workers, drops, uplinks, uplink_drops, contained };
    registry.register_collector(Box::new(views));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &registry);
    text
}

/// What is shown at one scrape.
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
}

/// A line of the ledger that is about an uplink.
#[derive(Debug)]
struct UplinkDrop(DropView);

/// Frames to a reserved group that were refused at a port or an uplink.
#[derive(Debug)]
struct Refused<'a, T> {
    at: &'a T,
    group: &'a str,
    frames: u64,
}

/// A metric: its name without prefix and ending, its help, and how its value is read from a view.
type Metric<T, V> = (&'static str, &'static str, fn(&T) -> V);

/// What is counted of ports and of uplinks alike. The name goes behind what is counted, and the help has
/// `{from}` and `{to}` where that has a side.
const COUNTERS: &[Metric<CountsView, u64>] = &[
    ("receive_frames", "Frames {from}; a GSO packet counts as the frames that it becomes.", |c| c.rx_frames),
    ("receive_bytes", "Bytes {from}, without frame check sequence.", |c| c.rx_bytes),
    ("transmit_frames", "Frames {to}.", |c| c.tx_frames),
    ("transmit_bytes", "Bytes {to}, without frame check sequence.", |c| c.tx_bytes),
    ("forwarded_frames", "Frames {from} that were meant for one port.", |c| c.forwarded),
    ("flooded_frames", "Frames {from} that were meant for everybody on the network.", |c| c.flooded),
    ("flood_copies", "Copies made of the flooded frames {from}.", |c| c.copies),
    ("probe_frames", "Loop probes that the switch sent {to}.", |c| c.probes),
    ("announcement_frames", "Announcements of local stations that the switch sent {to}.", |c| c.announcements),
    ("transmit_lost_frames", "Frames {to} that the device took and lost before they left.", |c| c.tx_lost),
    ("receive_missed_frames", "Frames {from} that were lost before the switch could receive them.", |c| c.rx_missed),
];

const PORT_COUNTERS: &[Metric<PortView, u64>] = &[
    ("port_segmented_frames", "Super-frames to the guest that were divided for its device.", |p| p.counts.segmented),
    ("port_checksummed_frames", "Other frames to the guest whose checksum was completed.", |p| p.counts.checksummed),
    (
        "port_not_learned_frames",
        "Frames from the guest that were not learned from, at the MAC limit of the port.",
        |p| p.counts.not_learned,
    ),
    ("port_not_flooded_frames", "Frames for unknown stations that were not delivered to the guest.", |p| {
        p.counts.not_flooded
    }),
    ("port_mirror_copies", "Copies of others' frames to the guest, whose port is promiscuous.", |p| {
        p.counts.mirror_copies
    }),
];

const UPLINK_GAUGES: &[Metric<UplinkView, u64>] = &[
    ("uplink_up", "Whether frames can flow through the uplink, as soon as it carries them.", |u| {
        u64::from(u.status == Status::Active)
    }),
    ("uplink_active", "Whether the uplink carries frames, and does not stand by.", |u| u64::from(u.active)),
];

const VM_GAUGES: &[Metric<VmView, u64>] = &[
    ("vm_ports", "Ports of the VM.", |vm| vm.ports.len() as u64),
    ("vm_ports_up", "Ports of the VM that are up.", |vm| vm.active as u64),
];

/// They go back when a port of the VM is detached. To Prometheus that is a counter that has started
/// again, which `rate` allows for.
const VM_COUNTERS: &[Metric<VmView, u64>] = &[
    ("vm_receive_frames", "Frames from the VM, over its present ports.", |vm| vm.rx_frames),
    ("vm_receive_bytes", "Bytes from the VM, over its present ports.", |vm| vm.rx_bytes),
    ("vm_transmit_frames", "Frames to the VM, over its present ports.", |vm| vm.tx_frames),
    ("vm_transmit_bytes", "Bytes to the VM, over its present ports.", |vm| vm.tx_bytes),
    ("vm_drops", "Frames from and to the VM that died, over its present ports.", |vm| vm.drops),
];

const NETWORK_GAUGES: &[Metric<NetworkView, u64>] = &[
    ("network_ports", "Ports on the network.", |n| n.ports as u64),
    ("network_ports_up", "Ports on the network that are up.", |n| n.active as u64),
    ("network_stations", "Stations learned, as the fullest worker's table has it.", |n| n.stations),
    ("network_stations_limit", "Stations that may be learned.", |n| u64::from(n.fdb_limit)),
];

const WORKER_GAUGES: &[Metric<WorkerView, u64>] = &[
    ("worker_queues", "Device queues that the worker polls.", |w| w.queues as u64),
    ("worker_stations", "Stations in the worker's table.", |w| w.stations),
    ("worker_stations_limit", "Stations that the worker's table can hold.", |w| w.stations_limit),
];

const WORKER_COUNTERS: &[Metric<WorkerView, u64>] = &[
    ("worker_polls", "Iterations of the worker's loop.", |w| w.polls),
    ("worker_busy_polls", "Iterations of the worker's loop in which there was something to do.", |w| w.busy_polls),
    ("worker_sleeps", "Times the worker went to sleep.", |w| w.sleeps),
    ("worker_polls_skipped", "Times a port was not read, because all its frames have died lately.", |w| {
        w.polls_skipped
    }),
    ("worker_stations_refused", "Times a station went unlearned for lack of room.", |w| w.stations_refused),
    ("worker_updates_lost", "MAC updates that did not fit the ring to a peer; they are sent again.", |w| {
        w.updates_lost
    }),
    ("worker_peer_tx_frames", "Frames for one port handed to other workers.", |w| w.peer_tx_frames),
    ("worker_peer_rx_frames", "Frames for one port taken over from other workers.", |w| w.peer_rx_frames),
    ("worker_peer_tx_floods", "Frames to be flooded handed to other workers.", |w| w.peer_tx_floods),
    ("worker_peer_rx_floods", "Frames to be flooded taken over from other workers.", |w| w.peer_rx_floods),
    ("worker_closed_port_drops", "Frames that died because their port was closed while they were on their way.", |w| {
        w.closed_port_drops
    }),
];

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let out = &mut encoder;
        counted(out, &self.ports)?;
        for &(name, help, value) in PORT_COUNTERS {
            family(out, name, help, None, &self.ports, |p| ConstCounter::new(value(p)))?;
        }
        let help = "Whether frames can flow through the port, both ways.";
        family(out, "port_up", help, None, &self.ports, |p| ConstGauge::new(u32::from(p.status == Status::Active)))?;
        let help = "Frames that died, by reason; direction in: from the guest, out: to the guest.";
        family(out, "port_drops", help, None, &self.drops, |d| ConstCounter::new(d.frames))?;

        counted(out, &self.uplinks)?;
        for &(name, help, value) in UPLINK_GAUGES {
            family(out, name, help, None, &self.uplinks, |u| ConstGauge::new(value(u)))?;
        }
        let help = "Frames that died, by reason; direction in: from outside, out: to the outside.";
        family(out, "uplink_drops", help, None, &self.uplink_drops, |d| ConstCounter::new(d.0.frames))?;

        for &(name, help, value) in VM_GAUGES {
            family(out, name, help, None, &self.vms, |vm| ConstGauge::new(value(vm)))?;
        }
        for &(name, help, value) in VM_COUNTERS {
            family(out, name, help, None, &self.vms, |vm| ConstCounter::new(value(vm)))?;
        }

        for &(name, help, value) in NETWORK_GAUGES {
            family(out, name, help, None, &self.networks, |n| ConstGauge::new(value(n)))?;
        }

        self.contained.encode(out)?;

        for &(name, help, value) in WORKER_GAUGES {
            family(out, name, help, None, &self.workers, |w| ConstGauge::new(value(w)))?;
        }
        for &(name, help, value) in WORKER_COUNTERS {
            family(out, name, help, None, &self.workers, |w| ConstCounter::new(value(w)))?;
        }
        // Of the process: the workers began together, and all counters with them.
        if let Some(seconds) = self.workers.first().and_then(|worker| start_time(&worker.since)) {
            let help = "When the switch was started and began to count, since 1970.";
            let sample = out.encode_descriptor("start_time", help, Some(&Unit::Seconds), ConstGauge::<f64>::TYPE)?;
            ConstGauge::new(seconds).encode(sample)?;
        }
        let help = "Log lines that were lost, because standard error was not read in time or refused them.";
        let sample = out.encode_descriptor("log_lines_lost", help, None, ConstCounter::<u64>::TYPE)?;
        ConstCounter::new(LOG_LINES_LOST.load(Ordering::Relaxed)).encode(sample)?;
        let help = "Time spent in turns in which there was something to do.";
        let unit = Some(&Unit::Seconds);
        family(out, "worker_busy", help, unit, &self.workers, |w| ConstCounter::new(w.busy_seconds))
    }
}

/// Seconds since 1970.
fn start_time(text: &str) -> Option<f64> {
    let since = time::parse_rfc3339(text)?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(since.as_secs_f64())
}

/// Writes one metric with a sample for each of `items`.
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

/// Writes what is counted of ports and of uplinks alike.
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
    let help = format!("Frames {} to reserved group addresses that were refused, by the group's name.", T::FROM);
    let name = format!("{}_reserved_group_frames", T::WHAT);
    family(out, &name, &help, None, &refused, |refused| ConstCounter::new(refused.frames))
}

/// What has counters of frames, and how its help calls the other side.
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

/// What tells one sample of a metric from another.
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
