//! The running switch over real taps: who gets which frames, and what happens when devices go.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // the helpers of a test fail as the test does

mod host;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use host::daemon::{Daemon, Vif, config};
use host::nic::{Nic, experiment, frame};
use host::rig::{Kind, On, PLAIN, Rig, ping, tcp_both_ways, two_workers};
use host::{Space, await_that};
use vifswitch::control::view::{CountsView, Status};
use vifswitch::wire::{Mac, Probe};

/// Frames that a guest was sent by others, and not by the switch itself to find loops.
fn sent(counts: &CountsView) -> u64 {
    counts.tx_frames - counts.probes
}

#[test]
fn a_vm_may_have_a_network_more_than_once() {
    let Some(spaces) = (0..3).map(|_| Space::new()).collect::<Option<Vec<_>>>() else { return };
    let networks = ["net1", "net2", "net1"];
    let vifs = (1..).zip(&spaces).zip(networks).map(|((n, space), network)| Vif::new("fw", n, space).on(network));
    let vifs: Vec<Vif> = vifs.collect();
    let daemon = Daemon::with("", &[("net1", 1500), ("net2", 9000)], &vifs);
    let ports = daemon.ports();
    assert_eq!(ports.iter().map(|port| port.network_id.as_str()).collect::<Vec<_>>(), networks);
    assert_eq!(ports.iter().map(|port| port.mac_address.as_str()).collect::<HashSet<_>>().len(), 3);
    for (position, ((port, vif), space)) in ports.iter().zip(&vifs).zip(&spaces).enumerate() {
        assert_eq!((&port.port_id, port.status, port.position), (&vif.port, Status::Active, position), "{port:?}");
        let link = space.link(&vif.name).unwrap();
        let mtu = if vif.network == "net2" { 9000 } else { 1500 };
        assert_eq!((link.mac, link.mtu, link.up), (vif.mac, mtu, true));
        assert_eq!(space.links(), ["lo", &vif.name]);
    }
}

#[test]
fn eight_siblings_share_a_network() {
    let Some(space) = Space::new() else { return };
    let vifs: Vec<Vif> = (1..=8).map(|number| Vif::new("fw", number, &space)).collect();
    let daemon = Daemon::over(&vifs);
    let ports = daemon.ports();
    assert_eq!(ports.len(), 8);
    for (port, vif) in ports.iter().zip(&vifs) {
        assert_eq!((&port.port_id, port.status), (&vif.port, Status::Active), "{port:?}");
        assert_eq!(space.link(&vif.name).unwrap().mac, vif.mac);
    }
    // What one sends to everybody, each of the others gets once.
    let nics: Vec<Nic> = vifs.iter().map(|vif| Nic::new(&space, &vif.name)).collect();
    let to_all = experiment(Mac::BROADCAST, vifs[0].mac, b"all");
    nics[0].send(&to_all);
    assert!(nics[1..].iter().all(|nic| nic.take() == to_all));
    let ports = daemon.quiet();
    assert_eq!((ports[0].counts.flooded, ports[0].counts.copies), (1, 7));
    assert!(nics.iter().all(|nic| nic.rest().is_empty()));
}

#[test]
fn a_port_is_attached_once_or_not_at_all() {
    let Some(space) = Space::new() else { return };
    let first = Vif::new("fw", 1, &space);
    let again = Vif { mac: Mac::from_bits(0x0200_0000_0999), name: "tap2".into(), ..first.clone() };
    let daemon = Daemon::new();
    daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], &[first, again]));
    let refused = daemon.try_command(&["run", "--config", "FILE"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("vms[0].ports[1].port_id") && said.contains("port-1"), "{said}");
    assert_eq!(space.links(), ["lo"]);
    assert!(!daemon.socket().exists());
}

#[test]
fn ports_stay_in_the_order_of_the_file() {
    let Some(space) = Space::new() else { return };
    let order = [4, 1, 5, 3, 2];
    let vifs = order.map(|number| Vif::new("fw", number, &space));
    let mut daemon = Daemon::over(&vifs);
    let listed = |daemon: &Daemon| daemon.ports().into_iter().map(|port| port.port_id).collect::<Vec<_>>();
    let wanted = order.map(|number| format!("port-{number}"));
    assert_eq!(listed(&daemon), wanted);
    assert!(daemon.stop(rustix::process::Signal::TERM).success());
    daemon.start();
    assert_eq!(listed(&daemon), wanted);
    assert!(daemon.ports().iter().all(|port| port.status == Status::Active));
}

/// Two interfaces of one VM, in namespaces of their own: raw frames, echoes, streams.
fn siblings_talk(kind: Kind) {
    let Some(rig) = Rig::new(kind, &["fw", "fw"]) else { return };
    let nics = [rig.nic(0), rig.nic(1)];
    for (from, to) in [(0, 1), (1, 0)] {
        let payload = [&[from as u8], &b"to a sibling, and to all"[..]].concat();
        let unicast = experiment(rig.vifs[to].mac, rig.vifs[from].mac, &payload);
        let broadcast = experiment(Mac::BROADCAST, rig.vifs[from].mac, &payload);
        for frame in [&unicast, &broadcast] {
            nics[from].send(frame);
            assert_eq!(nics[to].take(), *frame);
        }
    }
    let quiet = rig.daemon.quiet();
    for port in quiet.iter().map(|port| &port.counts) {
        assert_eq!((port.rx_frames, sent(port)), (2, 2), "one copy each: {port:?}");
        assert_eq!((port.forwarded, port.flooded, port.copies), (1, 1, 1));
    }
    assert!(nics.iter().all(|nic| nic.rest().is_empty()), "none came back, none came twice");

    let addresses = [rig.address(0), rig.address(1)];
    ping(&rig.spaces[0], addresses[1], 5);
    for (port, before) in rig.daemon.quiet().iter().zip(&quiet) {
        let (port, before) = (&port.counts, &before.counts);
        let seen = (port.rx_frames - before.rx_frames, sent(port) - sent(before));
        assert_eq!(seen, (6, 6), "one for ARP, and five: {port:?}");
    }
    tcp_both_ways(&rig.spaces[0], &rig.spaces[1], addresses[1], 10_000_000);
    let ports = rig.daemon.quiet();
    assert!(ports.iter().all(|port| port.counts.rx_bytes > 10_000_000 && port.counts.tx_bytes > 10_000_000));
}

#[test]
fn siblings_talk_through_the_switch() {
    siblings_talk(PLAIN);
}

#[test]
fn siblings_talk_without_offloads() {
    siblings_talk(Kind { device: ", offloads = false", ..PLAIN });
}

#[test]
fn siblings_talk_over_several_queues() {
    siblings_talk(Kind { device: ", queues = 2", ..PLAIN });
}

#[test]
fn siblings_talk_over_two_workers() {
    let Some(switch) = two_workers() else { return };
    siblings_talk(Kind { switch, ..PLAIN });
}

#[test]
fn siblings_talk_over_two_workers_and_several_queues() {
    let Some(switch) = two_workers() else { return };
    siblings_talk(Kind { switch, device: ", queues = 2", ..PLAIN });
}

#[test]
fn siblings_talk_whatever_they_stand_on() {
    for on in [
        &[On::Tap, On::Xdp][..],
        &[On::Tap, On::Packet],
        &[On::Xdp, On::Xdp],
        &[On::Xdp, On::Packet],
        &[On::Packet, On::Packet],
    ] {
        siblings_talk(Kind { on, ..PLAIN });
    }
}

#[test]
fn siblings_talk_over_two_workers_whatever_they_stand_on() {
    let Some(switch) = two_workers() else { return };
    for on in [&[On::Tap, On::Xdp][..], &[On::Xdp, On::Packet], &[On::Packet, On::Tap]] {
        siblings_talk(Kind { switch, on, ..PLAIN });
    }
}

/// A third VM streams to two siblings at once.
fn an_outsider_streams(kind: Kind) {
    const FRAMES: u32 = 2000;
    const WINDOW: u32 = 50;
    let Some(rig) = Rig::new(kind, &["fw", "fw", "web"]) else { return };
    let ears = [rig.nic(0), rig.nic(1)];
    let outsider = rig.nic(2);
    thread::scope(|scope| {
        for (sibling, ear) in ears.iter().enumerate() {
            let (rig, outsider) = (&rig, &outsider);
            scope.spawn(move || {
                let numbered = |n: u32| {
                    let payload = [&n.to_be_bytes()[..], &[sibling as u8; 100]].concat();
                    experiment(rig.vifs[sibling].mac, rig.vifs[2].mac, &payload)
                };
                for first in (0..FRAMES).step_by(WINDOW as usize) {
                    (first..first + WINDOW).for_each(|n| outsider.send(&numbered(n)));
                    (first..first + WINDOW).for_each(|n| assert_eq!(ear.take(), numbered(n), "frame {n}"));
                }
            });
        }
    });
    let (frames, bytes) = (u64::from(FRAMES), u64::from(FRAMES) * 118);
    let ports = rig.daemon.quiet();
    for port in ports[..2].iter().map(|port| &port.counts) {
        let probes = port.probes * Probe::LEN as u64;
        assert_eq!((sent(port), port.tx_bytes - probes, port.rx_frames), (frames, bytes, 0), "{port:?}");
    }
    let outside = &ports[2].counts;
    assert_eq!((outside.rx_frames, outside.forwarded, outside.flooded), (2 * frames, 2 * frames, 0));
    assert!(ports.iter().all(|port| port.counts.drops.is_empty()), "{ports:?}");
    assert!(ears.iter().chain([&outsider]).all(|nic| nic.rest().is_empty()), "nothing else came anywhere");
}

#[test]
fn an_outsider_reaches_each_sibling_separately() {
    an_outsider_streams(PLAIN);
}

#[test]
fn an_outsider_reaches_each_sibling_on_another_worker() {
    let Some(switch) = two_workers() else { return };
    an_outsider_streams(Kind { switch, ..PLAIN });
}

#[test]
fn an_outsider_reaches_each_sibling_whatever_they_stand_on() {
    for on in [&[On::Xdp, On::Packet, On::Tap][..], &[On::Packet, On::Tap, On::Xdp], &[On::Tap, On::Xdp, On::Packet]] {
        an_outsider_streams(Kind { on, ..PLAIN });
    }
    an_outsider_streams(Kind { on: &[On::Xdp], ..PLAIN });
    an_outsider_streams(Kind { on: &[On::Packet], ..PLAIN });
}

/// `virtio_net_hdr` as a guest may write it, little endian.
fn header(flags: u8, kind: u8, len: u16, size: u16, start: u16, offset: u16) -> Vec<u8> {
    let words = [len, size, start, offset].map(u16::to_le_bytes);
    [&[flags, kind], words.as_flattened()].concat()
}

#[test]
fn broken_offload_headers_do_no_harm() {
    let Some(rig) = Rig::new(PLAIN, &["evil", "good", "good"]) else { return };
    let (evil, nics) = (Nic::with_header(&rig.spaces[0], "tap1"), [rig.nic(1), rig.nic(2)]);
    let to = |length: usize, protocol: u8| {
        let [l0, l1] = (length as u16 - 14).to_be_bytes();
        let ip = [0x45, 0, l0, l1, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 5, 0, 1, 10, 5, 0, 2];
        let tcp = [0, 9, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0, 9, 0, 0, 0, 0];
        let mut packet = frame(rig.vifs[1].mac, rig.vifs[0].mac, 0x0800, &[ip, tcp].concat());
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
    assert!(taken > 0, "the kernel lets nothing of it pass");
    rig.daemon.quiet();
    // What came of it is for the guest to bear. The others talk as ever.
    nics.iter().for_each(|nic| drop(nic.rest()));
    for round in 0..100 {
        rig.pass((1, &nics[0]), (2, &nics[1]), &format!("there {round}"));
        rig.pass((2, &nics[1]), (1, &nics[0]), &format!("back {round}"));
    }
    let ports = rig.daemon.quiet();
    assert!(ports.iter().all(|port| port.status == Status::Active));
    assert_eq!(sent(&ports[2].counts), 100, "nothing was for this one");
}

/// Two ports talk, one frame at a time, while something happens to a third. None is lost.
fn while_others_talk(rig: &Rig, happens: impl FnOnce()) {
    let done = AtomicBool::new(false);
    let nics = [rig.nic(0), rig.nic(1)];
    let before = rig.daemon.quiet();
    let rounds = thread::scope(|scope| {
        let talk = scope.spawn(|| {
            let mut rounds = 0u64;
            while !done.load(Ordering::Relaxed) {
                rig.pass((0, &nics[0]), (1, &nics[1]), &format!("there {rounds}"));
                rig.pass((1, &nics[1]), (0, &nics[0]), &format!("back {rounds}"));
                rounds += 1;
            }
            rounds
        });
        // However it ends, the talking does.
        let happened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(happens));
        done.store(true, Ordering::Relaxed);
        let rounds = talk.join().unwrap();
        happened.map(|()| rounds).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert!(rounds > 0);
    // A worker counts a frame after it has been sent: the guest may be ahead of the counters.
    for (port, before) in rig.daemon.quiet().iter().zip(&before).take(2) {
        let (port, before) = (&port.counts, &before.counts);
        let seen = (port.rx_frames - before.rx_frames, sent(port) - sent(before));
        assert_eq!(seen, (rounds, rounds), "{port:?}");
        assert_eq!(port.drops, before.drops);
    }
}

#[test]
fn a_tap_of_ours_that_is_deleted_is_made_again() {
    ours_is_deleted(PLAIN);
    ours_is_deleted(Kind { device: ", persist = false", ..PLAIN });
}

#[test]
fn a_tap_with_queues_on_two_workers_is_made_again() {
    let Some(switch) = two_workers() else { return };
    ours_is_deleted(Kind { switch, device: ", queues = 4", ..PLAIN });
}

fn ours_is_deleted(kind: Kind) {
    let Some(rig) = Rig::new(kind, &["a", "b", "c"]) else { return };
    while_others_talk(&rig, || {
        for time in 1..=3 {
            let before = rig.spaces[2].link("tap3").unwrap();
            rig.spaces[2].ip("link del tap3");
            // It is down for a moment only; the log remembers.
            let gone = || rig.daemon.log().matches("its netdev is gone").count() == time;
            await_that("port_down", || gone().then_some(()));
            rig.daemon.await_active(&rig.vifs[2]);
            let link = rig.spaces[2].link("tap3").unwrap();
            assert_ne!(link.index, before.index);
            assert_eq!((link.mac, link.mtu, link.up, link.alias), (before.mac, before.mtu, true, before.alias));
        }
    });
    let nics = [rig.nic(0), rig.nic(2)];
    rig.pass((0, &nics[0]), (2, &nics[1]), "welcome back");
    rig.pass((2, &nics[1]), (0, &nics[0]), "thanks");
}

#[test]
fn a_namespace_that_is_made_again_has_its_taps_again() {
    let Some(rig) = Rig::new(PLAIN, &["a", "b", "c"]) else { return };
    while_others_talk(&rig, || {
        rig.spaces[2].delete();
        let down = rig.daemon.await_down(&rig.vifs[2]);
        assert!(!down.status_reason.is_empty());
        let names_it = |reason: &str| reason.contains(&rig.spaces[2].0);
        rig.daemon.await_port("its namespace named", &rig.vifs[2], |port| names_it(&port.status_reason));
        rig.spaces[2].make();
        rig.daemon.await_active(&rig.vifs[2]);
    });
    assert_eq!(rig.spaces[2].links(), ["lo", "tap3"]);
    let nics = [rig.nic(0), rig.nic(2)];
    rig.pass((0, &nics[0]), (2, &nics[1]), "welcome back");
    rig.pass((2, &nics[1]), (0, &nics[0]), "thanks");
}

#[test]
fn a_namespace_replaced_at_once_is_noticed() {
    let Some(rig) = Rig::new(PLAIN, &["a", "b"]) else { return };
    rig.spaces[1].delete();
    rig.spaces[1].make();
    await_that("the tap in the new namespace", || rig.spaces[1].link("tap2"));
    rig.daemon.await_active(&rig.vifs[1]);
    let nics = [rig.nic(0), rig.nic(1)];
    rig.pass((0, &nics[0]), (1, &nics[1]), "hello");
}

#[test]
fn a_tap_that_others_made_is_waited_for() {
    let Some(spaces) = (0..3).map(|_| Space::new()).collect::<Option<Vec<_>>>() else { return };
    spaces[2].ip("tuntap add dev tap3 mode tap");
    let vifs: Vec<Vif> = (1..).zip(&spaces).map(|(number, space)| Vif::new("fw", number, space)).collect();
    let daemon = Daemon::over(&vifs);
    let rig = Rig { daemon, vifs, spaces };
    rig.daemon.await_active(&rig.vifs[2]);
    while_others_talk(&rig, || {
        rig.spaces[2].ip("link del tap3");
        let first = rig.daemon.await_down(&rig.vifs[2]).status_reason;
        assert!(first.contains("gone") || first.contains("tap3"), "{first}");
        // It has been looked for since, and not been made.
        let names_it = |reason: &str| reason.contains("tap3") && reason.contains(&rig.spaces[2].0);
        rig.daemon.await_port("its name", &rig.vifs[2], |port| names_it(&port.status_reason));
        assert_eq!(rig.spaces[2].links(), ["lo"]);
        rig.spaces[2].ip("tuntap add dev tap3 mode tap");
        rig.daemon.await_active(&rig.vifs[2]);
        assert_eq!(rig.spaces[2].link("tap3").unwrap().alias, "");
    });
    let nics = [rig.nic(0), rig.nic(2)];
    rig.pass((0, &nics[0]), (2, &nics[1]), "welcome back");
}

#[test]
fn a_namespace_that_is_not_there_yet_is_waited_for() {
    let (Some(here), Some(later)) = (Space::new(), Space::planned()) else { return };
    let vifs = vec![Vif::new("a", 1, &here), Vif::new("b", 2, &later)];
    let rig = Rig { daemon: Daemon::over(&vifs), vifs, spaces: vec![here, later] };
    let [there, missing] = rig.daemon.ports().try_into().unwrap();
    assert_eq!((there.status, missing.status), (Status::Active, Status::Down));
    assert!(missing.status_reason.contains(&rig.spaces[1].0), "{}", missing.status_reason);
    // What is sent to it meanwhile dies, and is counted.
    let nic = rig.nic(0);
    nic.send(&experiment(rig.vifs[1].mac, rig.vifs[0].mac, b"too early"));
    await_that("no_device", || (rig.daemon.drops(&rig.vifs[1], "no_device") == 1).then_some(()));
    rig.spaces[1].make();
    rig.daemon.await_active(&rig.vifs[1]);
    let nics = [nic, rig.nic(1)];
    rig.pass((0, &nics[0]), (1, &nics[1]), "in time");
    rig.pass((1, &nics[1]), (0, &nics[0]), "and back");
}
