//! Receive calls that fail: a `packet` port loses at most the frame of the failed call, counts it, and delivers later
//! frames at once; a port whose calls all fail is tried once a second. Needs root; makes its own namespaces; needs strace.

use std::time::Duration;

use vifswitch::control::api::responses::UplinkView;
use vifswitch::time;
use vifswitch::wire::Mac;

use crate::bad_frames::{
    Hostile, Receiver, Trace, UNKNOWN_TO_THE_RING, await_reason, bad_frames, guest, has_strace, owned_taps, pause,
    rx_missed, settle,
};
use support::host::daemon::{Daemon, Vif, config};
use support::host::nic::Nic;
use support::host::setup::DeviceKind;
use support::host::{Namespace, await_that};

/// Single frames sent.
const SINGLES: u32 = 40;

/// A sleeping worker polls its ports once a second in any case.
const PROMPT: Duration = Duration::from_millis(300);

/// A `packet` port and a tap that receives its frames.
struct Scene {
    daemon: Daemon,
    sender: Vif,
    guest: Hostile,
    receivers: [Receiver; 1],
    /// Minimum length of frames sent.
    len: usize,
    _spaces: Vec<Namespace>,
}

impl Scene {
    /// The port has its receive ring; frames exceed its slots.
    fn long() -> Option<Scene> {
        let host = Namespace::new()?;
        let (to_space, receiver) = guest("receiver", 1, DeviceKind::Tap, &host, 3000);
        let (from_space, sender) = guest("sender", 2, DeviceKind::Packet, &host, 3000);
        host.ip(&format!("link set dev {} mtu 3000", sender.name));
        let daemon = Daemon::with("", &[("net1", 3000)], &[sender.clone(), receiver.clone()]);
        daemon.await_active(&sender);
        daemon.await_active(&receiver);
        let guest = Hostile::Socket(Nic::with_header(&from_space, &sender.name));
        let receivers = [Receiver::new(receiver.mac, Nic::new(&to_space, &receiver.name))];
        Some(Scene { daemon, sender, guest, receivers, len: 2500, _spaces: vec![host, to_space, from_space] })
    }

    /// The port's receive ring has halted.
    fn halted() -> Option<Scene> {
        let host = Namespace::new()?;
        let (namespace, receiver) = guest("receiver", 1, DeviceKind::Tap, &host, 1500);
        let guest = Hostile::File(owned_taps(&host, "tap2"));
        let sender = Vif { kind: "packet", ..Vif::new("old", 2, &host) };
        let daemon = Daemon::over(&[receiver.clone(), sender.clone()]);
        daemon.await_active(&receiver);
        daemon.await_active(&sender);
        halt_ring(&guest, receiver.mac, sender.mac);
        await_reason(&daemon, &sender, "halted the receive ring");
        let receivers = [Receiver::new(receiver.mac, Nic::new(&namespace, &receiver.name))];
        Some(Scene { daemon, sender, guest, receivers, len: 0, _spaces: vec![host, namespace] })
    }

    fn send(&mut self, frames: u32) {
        for _ in 0..frames {
            let mut frame = self.receivers[0].next(self.sender.mac);
            frame.resize(frame.len().max(self.len), 0);
            self.guest.send([0; 10], &frame);
        }
    }
}

/// Frames that exceed the slots of a ring are read from its socket. One that cannot be read stays there after its
/// slot is returned, and must not be taken for the next one.
#[test]
fn a_frame_left_in_the_socket_is_not_taken_for_the_next_one() {
    if !has_strace() {
        return;
    }
    let Some(mut setup) = Scene::long() else { return };
    for error in ["EAGAIN", "ENOBUFS", "ENOMEM", "EIO", "ENETDOWN"] {
        let before = (rx_missed(&setup.daemon, &setup.sender), setup.receivers[0].streams.remove(&setup.sender.mac));
        // Each frame is tried twice: the third and fourth are lost.
        let trace = Trace::of(&setup.daemon, &format!("inject=readv:error={error}:when=3..6"));
        for _ in 0..10 {
            setup.send(5);
            setup.receivers[0].read();
            pause(2000);
        }
        settle(&mut setup.receivers);
        drop(trace);
        let stream = &setup.receivers[0].streams[&setup.sender.mac];
        assert_eq!((stream.came, stream.count), (50, 48), "{error}: {stream:?}");
        assert_eq!(stream.wrong, [4], "{error}: in order, except for the two lost ones");
        await_that("both are counted", || (rx_missed(&setup.daemon, &setup.sender) == before.0 + 2).then_some(()));
        let mode = setup.daemon.port(&setup.sender).device.mode;
        assert_eq!(mode.as_deref(), Some("ring"), "{error}");
    }
    setup.daemon.await_idle();
}

/// A ring whose frame differs from the socket's is abandoned. Frames that it still holds are counted.
#[test]
fn frames_in_an_abandoned_ring_are_counted() {
    if !has_strace() {
        return;
    }
    let Some(mut setup) = Scene::long() else { return };
    // The call reads nothing and reports success, late: further frames arrive in between.
    let trace = Trace::of(&setup.daemon, "inject=readv:retval=100:delay_enter=500000:when=1");
    setup.send(200);
    settle(&mut setup.receivers);
    drop(trace);
    // From here on the port receives without the ring.
    setup.send(1);
    settle(&mut setup.receivers);
    let stream = &setup.receivers[0].streams[&setup.sender.mac];
    let lost = 201 - stream.count;
    assert!(stream.came == 201 && lost > 1, "{stream:?}");
    await_that("all are counted", || (rx_missed(&setup.daemon, &setup.sender) == lost).then_some(()));
    setup.daemon.await_idle();
}

fn halt_ring(guest: &Hostile, to: Mac, from: Mac) {
    let (_, header, fragments) =
        bad_frames(to, from).into_iter().find(|(name, ..)| *name == UNKNOWN_TO_THE_RING).unwrap();
    guest.send(header, &fragments);
}

/// A failed read leaves its frame in the socket, without a further event: the port reads again instead of waiting for
/// the next frame.
#[test]
fn a_frame_whose_read_failed_is_read_again_at_once() {
    if !has_strace() {
        return;
    }
    let Some(mut setup) = Scene::halted() else { return };
    for error in ["EAGAIN", "EINVAL", "ENOBUFS", "ENOMEM", "EIO", "ENETDOWN"] {
        setup.receivers[0].streams.clear();
        let trace = Trace::of(&setup.daemon, &format!("inject=recvmsg:error={error}:when=1+2"));
        let mut late = 0;
        for _ in 0..SINGLES {
            // The worker falls asleep.
            pause(3000);
            setup.send(1);
            let sent = time::now();
            await_that("the frame", || setup.receivers[0].read().then_some(()));
            late += u32::from(time::now().since(sent) > PROMPT);
        }
        drop(trace);
        let stream = &setup.receivers[0].streams[&setup.sender.mac];
        assert!(stream.wrong.is_empty() && stream.came == SINGLES, "{error}: {stream:?}");
        // The machine may have been busy occasionally.
        assert!(late <= SINGLES / 10, "{error}: {late} of {SINGLES} arrived late");
    }
    setup.daemon.await_idle();
}

/// While receives of a port keep failing although frames wait, with an error that is not transient, the port is tried
/// once a second and says why. It receives again by itself.
fn failing_receives_back_off(
    daemon: &Daemon,
    sender: &Vif,
    strace: &[&str],
    send: impl FnOnce(),
    mut came: impl FnMut() -> bool,
) {
    const REASON: &str = "receiving fails although frames wait: Operation not permitted";
    let trace = Trace::with(daemon, strace);
    send();
    await_reason(daemon, sender, REASON);
    let (before, began) = (trace.failed(), time::now());
    let tries = await_that("further tries", || Some(trace.failed() - before).filter(|&tries| tries > 2));
    // A try takes at most two calls.
    let seconds = time::now().since(began).as_secs() as usize;
    assert!(tries <= 2 * (seconds + 1), "{tries} in {seconds} s");
    drop(trace);
    await_that("the frame", || came().then_some(()));
    daemon.await_port("no warning", sender, |port| !port.status_reason.contains(REASON));
    daemon.await_idle();
}

#[test]
fn failing_receives_of_a_tap_back_off() {
    if !has_strace() {
        return;
    }
    let Some(host) = Namespace::new() else { return };
    let (to_space, receiver) = guest("receiver", 1, DeviceKind::Packet, &host, 1500);
    let (from_space, sender) = guest("sender", 2, DeviceKind::Tap, &host, 1500);
    let daemon = Daemon::over(&[receiver.clone(), sender.clone()]);
    daemon.await_active(&receiver);
    daemon.await_active(&sender);
    let mut arrivals = Receiver::new(receiver.mac, Nic::new(&to_space, &receiver.name));
    let frame = arrivals.next(sender.mac);
    let nic = Nic::new(&from_space, &sender.name);
    // Other reads of the worker succeed.
    let strace = ["-e", "inject=read:error=EPERM", "-P", "/dev/net/tun"];
    failing_receives_back_off(&daemon, &sender, &strace, || drop(nic.try_send(&frame)), || arrivals.read());
}

#[test]
fn failing_receives_of_a_packet_socket_back_off() {
    if !has_strace() {
        return;
    }
    let Some(Scene { daemon, sender, guest, receivers: [mut receiver], len: _, _spaces }) = Scene::halted() else {
        return;
    };
    let frame = receiver.next(sender.mac);
    let strace = ["-e", "inject=recvmsg:error=EPERM"];
    failing_receives_back_off(&daemon, &sender, &strace, || guest.send([0; 10], &frame), || receiver.read());
}

/// Status of an uplink.
fn uplink(daemon: &Daemon) -> UplinkView {
    daemon.get::<Vec<UplinkView>>("/v1/uplinks").remove(0)
}

/// An uplink with two networks. Its receive ring halts among their frames: each lost frame is counted at the uplink.
#[test]
fn frames_lost_by_a_halted_ring_of_an_uplink_are_counted() {
    let Some(host) = Namespace::new() else { return };
    let (mut spaces, mut vifs) = (Vec::new(), Vec::new());
    for (number, network) in [(1, "net1"), (2, "net2")] {
        let (namespace, vif) = guest(&format!("receiver-{number}"), number, DeviceKind::Tap, &host, 1500);
        spaces.push(namespace);
        vifs.push(vif.on(network));
    }
    let wire = Hostile::File(owned_taps(&host, "wire"));
    let mut daemon = Daemon::new();
    let text = config(&daemon.socket(), "", &[("net1", 1500), ("net2", 1500)], &vifs);
    let device = format!("{{ kind = \"packet\", name = \"wire\", netns = \"{}\" }}", host.0);
    let networks = "[{ network_id = \"net1\" }, { network_id = \"net2\", vlan = 7 }]";
    daemon.configure(&format!("{text}\n[[uplinks]]\nid = \"up\"\ndevice = {device}\nnetworks = {networks}\n"));
    daemon.start();
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    let from = Mac::from_bits(0x0200_0000_0f01);
    let mut receivers: Vec<Receiver> = vifs
        .iter()
        .zip(&spaces)
        .map(|(vif, namespace)| Receiver::new(vif.mac, Nic::new(namespace, &vif.name)))
        .collect();
    for round in 0..400 {
        for (receiver, tag) in receivers.iter_mut().zip([&[][..], &[0x81, 0, 0, 7]]) {
            let mut frame = receiver.next(from);
            frame.splice(12..12, tag.iter().copied());
            wire.send([0; 10], &frame);
        }
        if round == 100 {
            halt_ring(&wire, vifs[0].mac, from);
        }
        for receiver in &mut receivers {
            receiver.read();
        }
        if round % 20 == 0 {
            pause(1000);
        }
    }
    settle(&mut receivers);
    let lost: u64 = receivers.iter().map(|receiver| 400 - receiver.streams[&from].count).sum();
    // Including the frame that halted it. Both rings may have received some during the switch-over.
    await_that("all lost frames to be counted", || (uplink(&daemon).counts.rx_missed > lost).then_some(()));
}
