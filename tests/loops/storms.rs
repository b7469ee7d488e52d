//! Storm limits on real devices: accuracy of the rate, changes of a limit under traffic, and known unicast, which
//! passes. Needs root; makes its own namespaces; skipped without it.

use std::time::Duration;

use rustix::event::Timespec;
use rustix::thread::nanosleep;
use support::host::core_waits::CoreWaits;
use support::host::daemon::{Daemon, Vif, config};
use support::host::nic::{Nic, experiment, tagged};
use support::host::setup::{DeviceKind, guests, on_every_kind, two_workers};
use support::host::streams::{Stream, Streams};
use vifswitch::time;
use vifswitch::wire::Mac;

const GROUP: Mac = Mac::from_bits(0x0100_5e01_0203);
const NOBODY: Mac = Mac::from_bits(0x0a00_0000_ffff);

/// Siblings of the storming VM.
const SIBLINGS: usize = 8;

/// A limit under test: class, frames per second, and number of storming siblings.
struct Limit {
    class: &'static str,
    to: Mac,
    rate: u64,
    siblings: usize,
}

/// Each limit has its own bucket.
const LIMITS: [Limit; 4] = [
    Limit { class: "broadcast", to: Mac::BROADCAST, rate: 100, siblings: 1 },
    Limit { class: "multicast", to: GROUP, rate: 500, siblings: SIBLINGS },
    Limit { class: "unknown_unicast", to: NOBODY, rate: 10_000, siblings: 1 },
    Limit { class: "broadcast", to: Mac::BROADCAST, rate: 10_000, siblings: SIBLINGS },
];

/// A configuration with one limit: of the first port if it storms alone, otherwise of its VM.
fn limited(daemon: &Daemon, switch: &str, vifs: &[Vif], limit: &Limit) -> String {
    let Limit { class, rate, siblings, .. } = limit;
    let said = format!("storm = {{ {class} = {{ pps = {rate} }} }}\n");
    let mut vifs = vifs.to_vec();
    if *siblings == 1 {
        vifs[0].more = said.clone();
    }
    let text = config(&daemon.socket(), switch, &[("net1", 1500)], &vifs);
    let text = text.replacen("mtu = 1500\n", "mtu = 1500\nstorm = \"off\"\n", 1);
    let vm = "[[vms]]\nid = \"loud\"\n";
    assert!(text.contains(vm), "{text}");
    if *siblings == 1 { text } else { text.replacen(vm, &format!("{vm}{said}"), 1) }
}

/// Times at which the kernel accepted frames of a storm.
struct Sent {
    /// Since the first frame: until then the bucket is full and gains no tokens.
    took: Duration,
    /// Longest time without a frame. The bucket may fill up in it.
    longest_gap: Duration,
}

/// How long each storm lasts.
const LENGTH: Duration = Duration::from_millis(1400);

/// A sender of the storm: the guest's end of a device, and the VLAN id of a subport.
struct Sender {
    nic: Nic,
    mac: Mac,
    vlan: Option<u16>,
}

impl Sender {
    /// Whether the kernel took a frame of the storm.
    fn is_sent(&self, to: Mac) -> bool {
        let frame = experiment(to, self.mac, b"storm");
        self.nic.try_send(&self.vlan.map_or(frame.clone(), |vlan| tagged(&frame, vlan))).is_ok()
    }
}

/// Offers twice the rate of the limit, by all senders in turn, for a time.
fn storm(senders: &[Sender], to: Mac, rate: u64) -> Sent {
    assert!(senders[0].is_sent(to));
    let (start, mut sent) = (time::now(), 1);
    let (mut last, mut longest_gap) = (start, Duration::ZERO);
    loop {
        let spent = time::now().since(start);
        let due = spent.min(LENGTH).as_micros() as u64 * 2 * rate / 1_000_000;
        for number in sent..due {
            // The kernel refuses frames if the netdev's queue is full.
            if senders[number as usize % senders.len()].is_sent(to) {
                let now = time::now();
                longest_gap = longest_gap.max(now.since(last));
                last = now;
            }
        }
        sent = due.max(sent);
        if spent >= LENGTH {
            let now = time::now();
            return Sent { took: now.since(start), longest_gap: longest_gap.max(now.since(last)) };
        }
        let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: 200_000 });
    }
}

/// Counters of the storming ports.
#[derive(Default)]
struct Counts {
    arrived: u64,
    passed: u64,
    refused: u64,
}

/// Of the storm's *received* frames, those within rate × time + burst pass, and all others are counted as dropped. A
/// sibling that sends known unicast loses no frame. How many frames are received depends on kernel and machine: a
/// sender may be refused or stalled.
///
/// `limits` are those under test. With `trunk` the storming siblings are subports of one device.
fn admitted_frames_meet_the_rate(on: DeviceKind, switch: &str, trunk: bool, limits: &[Limit]) {
    let vms: Vec<&str> = [["loud"; SIBLINGS + 1].as_slice(), &["peer", "loud"][..1 + usize::from(trunk)]].concat();
    let Some((spaces, mut vifs)) = guests(&vms, &[on], 1500) else { return };
    let vlan = |at: usize| 101 + at as u16;
    if trunk {
        let (siblings, others) = vifs.split_at_mut(SIBLINGS);
        for (at, vif) in siblings.iter_mut().enumerate() {
            *vif = vif.clone().subport_of(&others[2], vlan(at));
        }
    }
    let mut daemon = Daemon::new();
    daemon.configure(&limited(&daemon, switch, &vifs, &limits[0]));
    daemon.start();
    vifs.iter().for_each(|vif| _ = daemon.await_active(vif));
    let nic = |at: usize| Nic::new(&spaces[at], &vifs[at].name);
    let sender = |at: usize| {
        let (nic, vlan) = if trunk { (nic(SIBLINGS + 2), Some(vlan(at))) } else { (nic(at), None) };
        Sender { nic, mac: vifs[at].mac, vlan }
    };
    let senders: Vec<Sender> = (0..SIBLINGS).map(sender).collect();
    let known = Stream::between((&spaces[SIBLINGS], &vifs[SIBLINGS]), (&spaces[SIBLINGS + 1], &vifs[SIBLINGS + 1]));
    let Some(mut streams) = Streams::through(&daemon, 500, vec![known]) else { return };
    let count = |daemon: &Daemon| {
        let mut counts = Counts::default();
        let ports = daemon.await_idle();
        for port in ports.iter().filter(|port| vifs[..SIBLINGS].iter().any(|vif| vif.port == port.port_id)) {
            let refused = port.counts.drops.iter().filter(|(reason, _)| reason.starts_with("storm_"));
            counts.arrived += port.counts.rx_frames;
            counts.passed += port.counts.flooded;
            counts.refused += refused.map(|(_, frames)| frames).sum::<u64>();
        }
        counts
    };
    for limit in limits {
        daemon.configure(&limited(&daemon, switch, &vifs, limit));
        let file = daemon.file();
        daemon.done(&["apply", file.to_str().unwrap()], "");
        let before = count(&daemon);
        let waits = CoreWaits::of(daemon.pid());
        let begun = time::now();
        let Limit { class, rate, siblings, .. } = limit;
        let name = format!("{on:?} {switch} {class} {rate} frames/s, {siblings} siblings, trunk {trunk}");
        let mut sent = None;
        let gaps = streams.gaps_during(|| sent = Some(storm(&senders[..limit.siblings], limit.to, limit.rate)));
        gaps.assert_smooth(&format!("{name}: known unicast"));
        let Sent { took, longest_gap } = sent.unwrap();
        let waited = waits.waited(begun);
        let counts = count(&daemon);
        // Frames wait in the rings of a worker that is not scheduled, and are received after the storm.
        let until_idle = time::now().since(begun);
        let (arrived, passed, refused) =
            (counts.arrived - before.arrived, counts.passed - before.passed, counts.refused - before.refused);
        eprintln!(
            "{name}: in {took:?} {arrived} received, {passed} admitted, {refused} dropped; gap {longest_gap:?}, waited {waited:?}"
        );
        assert_eq!(arrived, passed + refused, "{name}");
        // The bucket holds one second of the rate.
        let bucket = |time: Duration| limit.rate as f64 * (1.0 + time.as_secs_f64());
        let most = bucket(until_idle);
        assert!(passed as f64 <= most * 1.02 + 1.0, "{name}: {passed} of at most {most}");
        // A worker without a core receives nothing, and the sender is refused again and again.
        let least = bucket(took.saturating_sub(longest_gap.max(waited))).min(arrived as f64);
        assert!(passed as f64 >= least * 0.95 - 1.0, "{name}: {passed} of at least {least}");
    }
}

/// Shows: REQ-30, REQ-34, AT-18
#[test]
fn admitted_frames_meet_the_rate_on_taps() {
    admitted_frames_meet_the_rate(DeviceKind::Tap, "", false, &LIMITS);
}

/// Shows: REQ-34, AT-18
#[test]
fn admitted_frames_meet_the_rate_on_taps_and_two_workers() {
    if let Some(switch) = two_workers() {
        admitted_frames_meet_the_rate(DeviceKind::Tap, switch, false, &LIMITS);
    }
}

/// Shows: REQ-34, AT-18
#[test]
fn admitted_frames_meet_the_rate_on_xdp() {
    admitted_frames_meet_the_rate(DeviceKind::Xdp, "", false, &LIMITS);
}

#[test]
fn admitted_frames_meet_the_rate_on_xdp_and_two_workers() {
    if let Some(switch) = two_workers() {
        admitted_frames_meet_the_rate(DeviceKind::Xdp, switch, false, &LIMITS);
    }
}

/// Shows: REQ-34, AT-18
#[test]
fn admitted_frames_meet_the_rate_on_packet_sockets() {
    admitted_frames_meet_the_rate(DeviceKind::Packet, "", false, &LIMITS);
}

/// Shows: REQ-34, AT-18
#[test]
fn admitted_frames_meet_the_rate_on_packet_sockets_and_two_workers() {
    if let Some(switch) = two_workers() {
        admitted_frames_meet_the_rate(DeviceKind::Packet, switch, false, &LIMITS);
    }
}

/// Shows: REQ-33, REQ-34, AT-18
#[test]
fn admitted_frames_meet_the_rate_on_subports() {
    on_every_kind(|on| admitted_frames_meet_the_rate(on, "", true, &LIMITS[..2]));
}

/// `set` changes a limit under traffic; it applies from the next frame on.
#[test]
fn a_limit_is_changed_under_traffic() {
    on_every_kind(a_limit_is_changed);
}

fn a_limit_is_changed(on: DeviceKind) {
    let Some((spaces, vifs)) = guests(&["a", "b"], &[on], 1500) else { return };
    let daemon = Daemon::over(&vifs);
    vifs.iter().for_each(|vif| _ = daemon.await_active(vif));
    let nic = Nic::new(&spaces[0], &vifs[0].name);
    let send = |frames: u64| {
        let before = daemon.port(&vifs[0]).counts.rx_frames;
        for sent in 1..=frames {
            nic.send(&experiment(Mac::BROADCAST, vifs[0].mac, b"x"));
            // No more than a tap holds.
            if sent % 100 == 0 || sent == frames {
                daemon.await_port("the frames have arrived", &vifs[0], |port| port.counts.rx_frames >= before + sent);
            }
        }
    };
    let set = |keys: &[&str]| daemon.done(&[&["set", &vifs[0].port], keys].concat(), "");
    // The bucket hardly refills during the test.
    set(&["storm.broadcast={ pps = 1, burst = 1 }"]);
    let before = daemon.drops(&vifs[0], "storm_broadcast");
    let start = time::now();
    send(200);
    let came = time::now().since(start).as_secs() + 2;
    let refused = daemon.drops(&vifs[0], "storm_broadcast") - before;
    assert!(refused <= 200 && refused + came >= 200, "{refused} of 200 dropped in {came} seconds");
    set(&["storm.broadcast=off"]);
    let before = daemon.drops(&vifs[0], "storm_broadcast");
    send(200);
    assert_eq!(daemon.drops(&vifs[0], "storm_broadcast"), before);
    // The limit is in the configuration, and removed when it is reset.
    let said = |text: &str| daemon.page("/v1/config").contains(text);
    assert!(said(r#""broadcast":"off""#));
    set(&["storm="]);
    assert!(!said(r#""broadcast":"off""#));
    let events = daemon.run_command(&["set", &vifs[0].port, "storm.broadcast.pps=0"], "");
    let why = String::from_utf8(events.stderr).unwrap();
    assert!(
        events.status.code() == Some(1) && why.contains("storm.broadcast.pps = 0") && why.contains("\"off\""),
        "{why}"
    );
}
