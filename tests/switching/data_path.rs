//! The running switch over real taps: which port receives which frame, and what happens when devices disappear. Needs
//! root; makes its own namespaces.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use support::host::daemon::{Daemon, Vif, config};
use support::host::nic::{Nic, experiment, frame};
use support::host::setup::{DeviceKind, PLAIN, Setup, SetupOptions, ping, tcp_both_ways, two_workers};
use support::host::{Namespace, await_that};
use vifswitch::control::api::responses::{CountsView, Status};
use vifswitch::wire::{Mac, Probe};

/// Frames sent to a guest by others, without loop probes of the switch.
fn sent(counts: &CountsView) -> u64 {
    counts.tx_frames - counts.probes
}

/// Shows: REQ-01, AT-01
#[test]
fn a_vm_may_have_a_network_more_than_once() {
    let Some(spaces) = (0..3).map(|_| Namespace::new()).collect::<Option<Vec<_>>>() else { return };
    let networks = ["net1", "net2", "net1"];
    let vifs =
        (1..).zip(&spaces).zip(networks).map(|((n, namespace), network)| Vif::new("fw", n, namespace).on(network));
    let vifs: Vec<Vif> = vifs.collect();
    let daemon = Daemon::with("", &[("net1", 1500), ("net2", 9000)], &vifs);
    let ports = daemon.ports();
    assert_eq!(ports.iter().map(|port| port.network_id.as_str()).collect::<Vec<_>>(), networks);
    assert_eq!(ports.iter().map(|port| port.mac_address.as_str()).collect::<HashSet<_>>().len(), 3);
    for (position, ((port, vif), namespace)) in ports.iter().zip(&vifs).zip(&spaces).enumerate() {
        assert_eq!((&port.port_id, port.status, port.position), (&vif.port, Status::Active, position), "{port:?}");
        let link = namespace.link(&vif.name).unwrap();
        let mtu = if vif.network == "net2" { 9000 } else { 1500 };
        assert_eq!((link.mac, link.mtu, link.up), (vif.mac, mtu, true));
        assert_eq!(namespace.links(), ["lo", &vif.name]);
    }
}

/// Shows: REQ-01
#[test]
fn eight_siblings_share_a_network() {
    let Some(namespace) = Namespace::new() else { return };
    let vifs: Vec<Vif> = (1..=8).map(|number| Vif::new("fw", number, &namespace)).collect();
    let daemon = Daemon::over(&vifs);
    let ports = daemon.ports();
    assert_eq!(ports.len(), 8);
    for (port, vif) in ports.iter().zip(&vifs) {
        assert_eq!((&port.port_id, port.status), (&vif.port, Status::Active), "{port:?}");
        assert_eq!(namespace.link(&vif.name).unwrap().mac, vif.mac);
    }
    // A broadcast reaches each other port once.
    let nics: Vec<Nic> = vifs.iter().map(|vif| Nic::new(&namespace, &vif.name)).collect();
    let to_all = experiment(Mac::BROADCAST, vifs[0].mac, b"all");
    nics[0].send(&to_all);
    assert!(nics[1..].iter().all(|nic| nic.take() == to_all));
    let ports = daemon.await_idle();
    assert_eq!((ports[0].counts.flooded, ports[0].counts.copies), (1, 7));
    assert!(nics.iter().all(|nic| nic.rest().is_empty()));
}

/// Shows: REQ-02
#[test]
fn a_port_is_attached_once_or_not_at_all() {
    let Some(namespace) = Namespace::new() else { return };
    let first = Vif::new("fw", 1, &namespace);
    let again = Vif { mac: Mac::from_bits(0x0200_0000_0999), name: "tap2".into(), ..first.clone() };
    let daemon = Daemon::new();
    daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], &[first, again]));
    let refused = daemon.try_command(&["run", "--config", "FILE"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("vms[0].ports[1].port_id") && said.contains("port-1"), "{said}");
    assert_eq!(namespace.links(), ["lo"]);
    assert!(!daemon.socket().exists());
}

/// Shows: REQ-03
#[test]
fn ports_stay_in_the_order_of_the_file() {
    let Some(namespace) = Namespace::new() else { return };
    let order = [4, 1, 5, 3, 2];
    let vifs = order.map(|number| Vif::new("fw", number, &namespace));
    let mut daemon = Daemon::over(&vifs);
    let listed = |daemon: &Daemon| daemon.ports().into_iter().map(|port| port.port_id).collect::<Vec<_>>();
    let wanted = order.map(|number| format!("port-{number}"));
    assert_eq!(listed(&daemon), wanted);
    assert!(daemon.stop(rustix::process::Signal::TERM).success());
    daemon.start();
    assert_eq!(listed(&daemon), wanted);
    assert!(daemon.ports().iter().all(|port| port.status == Status::Active));
}

/// Two interfaces of one VM, in namespaces of their own: raw frames, ping, TCP.
fn siblings_talk(kind: SetupOptions) {
    let Some(setup) = Setup::new(kind, &["fw", "fw"]) else { return };
    let nics = [setup.nic(0), setup.nic(1)];
    for (from, to) in [(0, 1), (1, 0)] {
        let payload = [&[from as u8], &b"to a sibling, and flooded"[..]].concat();
        let unicast = experiment(setup.vifs[to].mac, setup.vifs[from].mac, &payload);
        let broadcast = experiment(Mac::BROADCAST, setup.vifs[from].mac, &payload);
        for frame in [&unicast, &broadcast] {
            nics[from].send(frame);
            assert_eq!(nics[to].take(), *frame);
        }
    }
    let idle_port = setup.daemon.await_idle();
    for port in idle_port.iter().map(|port| &port.counts) {
        assert_eq!((port.rx_frames, sent(port)), (2, 2), "one copy each: {port:?}");
        assert_eq!((port.forwarded, port.flooded, port.copies), (1, 1, 1));
    }
    assert!(nics.iter().all(|nic| nic.rest().is_empty()), "no frame returns to its sender, none is duplicated");

    let addresses = [setup.address(0), setup.address(1)];
    ping(&setup.spaces[0], addresses[1], 5);
    for (port, before) in setup.daemon.await_idle().iter().zip(&idle_port) {
        let (port, before) = (&port.counts, &before.counts);
        let seen = (port.rx_frames - before.rx_frames, sent(port) - sent(before));
        assert_eq!(seen, (6, 6), "one ARP and five ICMP frames: {port:?}");
    }
    tcp_both_ways(&setup.spaces[0], &setup.spaces[1], addresses[1], 10_000_000);
    let ports = setup.daemon.await_idle();
    assert!(ports.iter().all(|port| port.counts.rx_bytes > 10_000_000 && port.counts.tx_bytes > 10_000_000));
}

/// Shows: REQ-23, AT-03
#[test]
fn siblings_reach_each_other() {
    siblings_talk(PLAIN);
}

#[test]
fn siblings_reach_each_other_without_offloads() {
    siblings_talk(SetupOptions { device: ", offloads = false", ..PLAIN });
}

#[test]
fn siblings_reach_each_other_over_several_queues() {
    siblings_talk(SetupOptions { device: ", queues = 2", ..PLAIN });
}

#[test]
fn siblings_reach_each_other_over_two_workers() {
    let Some(switch) = two_workers() else { return };
    siblings_talk(SetupOptions { switch, ..PLAIN });
}

#[test]
fn siblings_reach_each_other_over_two_workers_and_several_queues() {
    let Some(switch) = two_workers() else { return };
    siblings_talk(SetupOptions { switch, device: ", queues = 2", ..PLAIN });
}

/// Shows: REQ-23, AT-03
#[test]
fn siblings_reach_each_other_on_every_device_kind() {
    for on in [
        &[DeviceKind::Tap, DeviceKind::Xdp][..],
        &[DeviceKind::Tap, DeviceKind::Packet],
        &[DeviceKind::Xdp, DeviceKind::Xdp],
        &[DeviceKind::Xdp, DeviceKind::Packet],
        &[DeviceKind::Packet, DeviceKind::Packet],
    ] {
        siblings_talk(SetupOptions { on, ..PLAIN });
    }
}

#[test]
fn siblings_reach_each_other_over_two_workers_on_every_device_kind() {
    let Some(switch) = two_workers() else { return };
    for on in [
        &[DeviceKind::Tap, DeviceKind::Xdp][..],
        &[DeviceKind::Xdp, DeviceKind::Packet],
        &[DeviceKind::Packet, DeviceKind::Tap],
    ] {
        siblings_talk(SetupOptions { switch, on, ..PLAIN });
    }
}

/// A third VM streams to two siblings at once.
fn an_outsider_streams(kind: SetupOptions) {
    const FRAMES: u32 = 2000;
    const WINDOW: u32 = 50;
    let Some(setup) = Setup::new(kind, &["fw", "fw", "web"]) else { return };
    let listeners = [setup.nic(0), setup.nic(1)];
    let outsider = setup.nic(2);
    thread::scope(|scope| {
        for (sibling, listener) in listeners.iter().enumerate() {
            let (setup, outsider) = (&setup, &outsider);
            scope.spawn(move || {
                let numbered = |n: u32| {
                    let payload = [&n.to_be_bytes()[..], &[sibling as u8; 100]].concat();
                    experiment(setup.vifs[sibling].mac, setup.vifs[2].mac, &payload)
                };
                for first in (0..FRAMES).step_by(WINDOW as usize) {
                    (first..first + WINDOW).for_each(|n| outsider.send(&numbered(n)));
                    (first..first + WINDOW).for_each(|n| assert_eq!(listener.take(), numbered(n), "frame {n}"));
                }
            });
        }
    });
    let (frames, bytes) = (u64::from(FRAMES), u64::from(FRAMES) * 118);
    let ports = setup.daemon.await_idle();
    for port in ports[..2].iter().map(|port| &port.counts) {
        let probes = port.probes * Probe::LEN as u64;
        assert_eq!((sent(port), port.tx_bytes - probes, port.rx_frames), (frames, bytes, 0), "{port:?}");
    }
    let outside = &ports[2].counts;
    assert_eq!((outside.rx_frames, outside.forwarded, outside.flooded), (2 * frames, 2 * frames, 0));
    assert!(ports.iter().all(|port| port.counts.drops.is_empty()), "{ports:?}");
    assert!(listeners.iter().chain([&outsider]).all(|nic| nic.rest().is_empty()), "no other frame was received");
}

/// Shows: REQ-24, AT-04
#[test]
fn an_outsider_reaches_each_sibling_separately() {
    an_outsider_streams(PLAIN);
}

#[test]
fn an_outsider_reaches_each_sibling_on_another_worker() {
    let Some(switch) = two_workers() else { return };
    an_outsider_streams(SetupOptions { switch, ..PLAIN });
}

#[test]
fn an_outsider_reaches_each_sibling_on_every_device_kind() {
    for on in [
        &[DeviceKind::Xdp, DeviceKind::Packet, DeviceKind::Tap][..],
        &[DeviceKind::Packet, DeviceKind::Tap, DeviceKind::Xdp],
        &[DeviceKind::Tap, DeviceKind::Xdp, DeviceKind::Packet],
    ] {
        an_outsider_streams(SetupOptions { on, ..PLAIN });
    }
    an_outsider_streams(SetupOptions { on: &[DeviceKind::Xdp], ..PLAIN });
    an_outsider_streams(SetupOptions { on: &[DeviceKind::Packet], ..PLAIN });
}

/// `virtio_net_hdr` as a guest writes it, little endian.
fn header(flags: u8, kind: u8, len: u16, size: u16, start: u16, offset: u16) -> Vec<u8> {
    let words = [len, size, start, offset].map(u16::to_le_bytes);
    [&[flags, kind], words.as_flattened()].concat()
}

#[test]
fn broken_offload_headers_do_no_harm() {
    let Some(setup) = Setup::new(PLAIN, &["evil", "good", "good"]) else { return };
    let (evil, nics) = (Nic::with_header(&setup.spaces[0], "tap1"), [setup.nic(1), setup.nic(2)]);
    let to = |length: usize, protocol: u8| {
        let [l0, l1] = (length as u16 - 14).to_be_bytes();
        let ip = [0x45, 0, l0, l1, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 5, 0, 1, 10, 5, 0, 2];
        let tcp = [0, 9, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0, 9, 0, 0, 0, 0];
        let mut packet = frame(setup.vifs[1].mac, setup.vifs[0].mac, 0x0800, &[ip, tcp].concat());
        packet.resize(length, 0x55);
        packet
    };
    let mut taken = 0;
    for kind in [0, 1, 3, 4, 5, 0x81, 0x85, 0x7f] {
        for flags in [0, 1, 2, 3, 0xff] {
            for (len, size) in [(54, 1448), (54, 1), (0, 0), (54, 0xffff), (0xffff, 100), (14, 7)] {
                for (start, offset) in [(34, 16), (34, 6), (0, 0), (0xfff0, 0xfff0), (53, 0), (13, 1)] {
                    for (length, protocol) in [(60_000, 6), (1514, 6), (60, 17), (54, 6)] {
                        let header = header(flags, kind, len, size, start, offset);
                        taken += u32::from(evil.try_send(&[header, to(length, protocol)].concat()).is_ok());
                    }
                }
            }
        }
    }
    assert!(taken > 0, "the kernel accepted no frame");
    setup.daemon.await_idle();
    // The frame may be dropped. The other ports still exchange frames.
    nics.iter().for_each(|nic| drop(nic.rest()));
    for round in 0..100 {
        setup.send_and_await((1, &nics[0]), (2, &nics[1]), &format!("there {round}"));
        setup.send_and_await((2, &nics[1]), (1, &nics[0]), &format!("back {round}"));
    }
    let ports = setup.daemon.await_idle();
    assert!(ports.iter().all(|port| port.status == Status::Active));
    assert_eq!(sent(&ports[2].counts), 100, "the bystander receives none of the invalid frames");
}

/// Two ports exchange frames, one at a time, during an operation on a third. None is lost.
fn while_others_talk(setup: &Setup, happens: impl FnOnce()) {
    let done = AtomicBool::new(false);
    let nics = [setup.nic(0), setup.nic(1)];
    let before = setup.daemon.await_idle();
    let rounds = thread::scope(|scope| {
        let talk = scope.spawn(|| {
            let mut rounds = 0u64;
            while !done.load(Ordering::Relaxed) {
                setup.send_and_await((0, &nics[0]), (1, &nics[1]), &format!("there {rounds}"));
                setup.send_and_await((1, &nics[1]), (0, &nics[0]), &format!("back {rounds}"));
                rounds += 1;
            }
            rounds
        });
        // Ends the exchange even if the operation fails.
        let happened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(happens));
        done.store(true, Ordering::Relaxed);
        let rounds = talk.join().unwrap();
        happened.map(|()| rounds).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert!(rounds > 0);
    // A worker counts a frame after sending it: the guest may receive it before it is counted.
    for (port, before) in setup.daemon.await_idle().iter().zip(&before).take(2) {
        let (port, before) = (&port.counts, &before.counts);
        let seen = (port.rx_frames - before.rx_frames, sent(port) - sent(before));
        assert_eq!(seen, (rounds, rounds), "{port:?}");
        assert_eq!(port.drops, before.drops);
    }
}

/// Shows: REQ-08
#[test]
fn a_deleted_tap_of_the_switch_is_created_again() {
    ours_is_deleted(PLAIN);
    ours_is_deleted(SetupOptions { device: ", persist = false", ..PLAIN });
}

#[test]
fn a_deleted_tap_with_queues_on_two_workers_is_created_again() {
    let Some(switch) = two_workers() else { return };
    ours_is_deleted(SetupOptions { switch, device: ", queues = 4", ..PLAIN });
}

fn ours_is_deleted(kind: SetupOptions) {
    let Some(setup) = Setup::new(kind, &["a", "b", "c"]) else { return };
    while_others_talk(&setup, || {
        for time in 1..=3 {
            let before = setup.spaces[2].link("tap3").unwrap();
            setup.spaces[2].ip("link del tap3");
            // The port is down only for a moment; the log shows it.
            let gone = || setup.daemon.log().matches("its netdev is gone").count() == time;
            await_that("port_down", || gone().then_some(()));
            setup.daemon.await_active(&setup.vifs[2]);
            let link = setup.spaces[2].link("tap3").unwrap();
            assert_ne!(link.index, before.index);
            assert_eq!((link.mac, link.mtu, link.up, link.alias), (before.mac, before.mtu, true, before.alias));
        }
    });
    let nics = [setup.nic(0), setup.nic(2)];
    setup.send_and_await((0, &nics[0]), (2, &nics[1]), "welcome back");
    setup.send_and_await((2, &nics[1]), (0, &nics[0]), "thanks");
}

#[test]
fn a_recreated_namespace_has_its_taps_again() {
    let Some(setup) = Setup::new(PLAIN, &["a", "b", "c"]) else { return };
    while_others_talk(&setup, || {
        setup.spaces[2].delete();
        let down = setup.daemon.await_down(&setup.vifs[2]);
        assert!(!down.status_reason.is_empty());
        let names_it = |reason: &str| reason.contains(&setup.spaces[2].0);
        setup
            .daemon
            .await_port("the reason that names its namespace", &setup.vifs[2], |port| names_it(&port.status_reason));
        setup.spaces[2].make();
        setup.daemon.await_active(&setup.vifs[2]);
    });
    assert_eq!(setup.spaces[2].links(), ["lo", "tap3"]);
    let nics = [setup.nic(0), setup.nic(2)];
    setup.send_and_await((0, &nics[0]), (2, &nics[1]), "welcome back");
    setup.send_and_await((2, &nics[1]), (0, &nics[0]), "thanks");
}

#[test]
fn a_replaced_namespace_is_detected() {
    let Some(setup) = Setup::new(PLAIN, &["a", "b"]) else { return };
    setup.spaces[1].delete();
    setup.spaces[1].make();
    await_that("the tap in the new namespace", || setup.spaces[1].link("tap2"));
    setup.daemon.await_active(&setup.vifs[1]);
    let nics = [setup.nic(0), setup.nic(1)];
    setup.send_and_await((0, &nics[0]), (1, &nics[1]), "hello");
}

#[test]
fn a_foreign_tap_is_waited_for() {
    let Some(spaces) = (0..3).map(|_| Namespace::new()).collect::<Option<Vec<_>>>() else { return };
    spaces[2].ip("tuntap add dev tap3 mode tap");
    let vifs: Vec<Vif> = (1..).zip(&spaces).map(|(number, namespace)| Vif::new("fw", number, namespace)).collect();
    let daemon = Daemon::over(&vifs);
    let setup = Setup { daemon, vifs, spaces };
    setup.daemon.await_active(&setup.vifs[2]);
    while_others_talk(&setup, || {
        setup.spaces[2].ip("link del tap3");
        let first = setup.daemon.await_down(&setup.vifs[2]).status_reason;
        assert!(first.contains("gone") || first.contains("tap3"), "{first}");
        // The switch has looked for the tap since, and has not created it.
        let names_it = |reason: &str| reason.contains("tap3") && reason.contains(&setup.spaces[2].0);
        setup.daemon.await_port("its name", &setup.vifs[2], |port| names_it(&port.status_reason));
        assert_eq!(setup.spaces[2].links(), ["lo"]);
        setup.spaces[2].ip("tuntap add dev tap3 mode tap");
        setup.daemon.await_active(&setup.vifs[2]);
        assert_eq!(setup.spaces[2].link("tap3").unwrap().alias, "");
    });
    let nics = [setup.nic(0), setup.nic(2)];
    setup.send_and_await((0, &nics[0]), (2, &nics[1]), "welcome back");
}

#[test]
fn a_missing_namespace_is_waited_for() {
    let (Some(here), Some(later)) = (Namespace::new(), Namespace::planned()) else { return };
    let vifs = vec![Vif::new("a", 1, &here), Vif::new("b", 2, &later)];
    let setup = Setup { daemon: Daemon::over(&vifs), vifs, spaces: vec![here, later] };
    let [there, missing] = setup.daemon.ports().try_into().unwrap();
    assert_eq!((there.status, missing.status), (Status::Active, Status::Down));
    assert!(missing.status_reason.contains(&setup.spaces[1].0), "{}", missing.status_reason);
    // Frames to the absent port are dropped and counted.
    let nic = setup.nic(0);
    nic.send(&experiment(setup.vifs[1].mac, setup.vifs[0].mac, b"too early"));
    await_that("no_device", || (setup.daemon.drops(&setup.vifs[1], "no_device") == 1).then_some(()));
    setup.spaces[1].make();
    setup.daemon.await_active(&setup.vifs[1]);
    let nics = [nic, setup.nic(1)];
    setup.send_and_await((0, &nics[0]), (1, &nics[1]), "in time");
    setup.send_and_await((1, &nics[1]), (0, &nics[0]), "and back");
}
