//! Foreign netdevs that are deleted or set down under traffic, and created again. Needs root; makes its own
//! namespaces.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::thread::nanosleep;
use vifswitch::time;

use support::host::files::{await_closed, files_at_rest};
use support::host::nic::{Nic, experiment};
use support::host::setup::{DeviceKind, PLAIN, Setup, SetupOptions, lay};
use support::host::streams::{Gaps, Stream, Streams, assert_within};
use support::host::{Finally, await_that};

#[test]
fn a_deleted_xdp_netdev_costs_others_no_frame() {
    a_netdev_is_deleted(DeviceKind::Xdp, 100);
}

#[test]
fn a_deleted_packet_netdev_costs_others_no_frame() {
    a_netdev_is_deleted(DeviceKind::Packet, 20);
}

fn pause(milliseconds: i64) {
    let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 });
}

fn a_netdev_is_deleted(on: DeviceKind, times: u32) {
    let on: &'static [DeviceKind] = match on {
        DeviceKind::Xdp => &[DeviceKind::Xdp, DeviceKind::Packet, DeviceKind::Xdp, DeviceKind::Tap],
        _ => &[DeviceKind::Xdp, DeviceKind::Packet, DeviceKind::Packet, DeviceKind::Tap],
    };
    let Some(setup) = Setup::new(SetupOptions { on, ..PLAIN }, &["a", "b", "victim", "friend"]) else { return };
    let (host, victim, friend) = (setup.spaces.last().unwrap(), &setup.vifs[2], &setup.vifs[3]);
    setup.daemon.await_active(victim);
    let (files, before) = (files_at_rest(&setup.daemon), setup.daemon.await_idle());
    let done = AtomicBool::new(false);
    let to_victim = experiment(victim.mac, friend.mac, b"are you there?");
    let noise = setup.nic(3);
    let stream = Stream::between((&setup.spaces[0], &setup.vifs[0]), (&setup.spaces[1], &setup.vifs[1]));
    let Some(mut streams) = Streams::through(&setup.daemon, 4000, vec![stream]) else { return };
    let (mut took, mut laid) = (Vec::new(), Vec::new());
    let gaps = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                (0..4).for_each(|_| drop(noise.try_send(&to_victim)));
                pause(1);
            }
        });
        let _finally = Finally(&done);
        let listener = setup.nic(3);
        let mut cycle = |number: u32| {
            let nic = setup.nic(2);
            let index = host.link(&victim.name).unwrap().index;
            (0..32).for_each(|_| nic.send(&experiment(friend.mac, victim.mac, b"going")));
            host.ip(&format!("link del dev {}", victim.name));
            assert_eq!(host.link(&victim.name), None);
            // Processes that create a netdev wait for a core as the switch does.
            let start = time::now();
            lay(victim, &setup.spaces[2], 1500);
            laid.push(time::now().since(start));
            let start = time::now();
            assert_ne!(host.link(&victim.name).unwrap().index, index);
            // The port exchanges frames with the others again.
            let nic = setup.nic(2);
            assert_eq!(nic.take(), to_victim);
            took.push(time::now().since(start));
            let back = experiment(friend.mac, victim.mac, format!("back {number}").as_bytes());
            nic.send(&back);
            while listener.take() != back {}
            let link = host.link(&victim.name).unwrap();
            assert_eq!(link.xdp.is_some(), victim.kind == "xdp");
        };
        let rounds = 0..5;
        rounds
            .map(|round| streams.gaps_during(|| (0..times / 5).for_each(|at| cycle(round * times + at))))
            .collect::<Vec<_>>()
    });
    Gaps::assert_all_smooth(&gaps, "streams of others while a netdev is deleted");
    let control = gaps.iter().map(|gaps| gaps.control).max().unwrap();
    let longest = |times: Vec<Duration>| times.into_iter().max().unwrap();
    let (took, control) = (longest(took), longest(laid).max(control));
    assert_within("a new netdev is opened, at most", Duration::from_secs(1), took, control);
    let counted: u64 = gaps.iter().map(|gaps| gaps.sent).sum();
    setup.daemon.await_active(victim);
    await_closed(&setup.daemon, &files);
    let after = setup.daemon.await_idle();
    for at in [0, 1] {
        assert_eq!(after[at].counts.drops, before[at].counts.drops);
    }
    assert_eq!((after[0].counts.rx_frames, after[1].counts.tx_frames), (counted, counted));
    setup.daemon.detach(victim);
    assert_eq!(host.link(&victim.name).unwrap().xdp, None);
}

/// The switch binds to the netdev, not to its name: another netdev of the same name is opened again.
#[test]
fn a_replaced_netdev_of_the_same_name_is_opened_again() {
    for on in [&[DeviceKind::Tap, DeviceKind::Xdp][..], &[DeviceKind::Tap, DeviceKind::Packet]] {
        let Some(setup) = Setup::new(SetupOptions { on, ..PLAIN }, &["a", "b"]) else { return };
        let host = setup.spaces.last().unwrap();
        // Without traffic the worker meets no error.
        for round in 0..5 {
            host.ip(&format!("link del dev {}", setup.vifs[1].name));
            lay(&setup.vifs[1], &setup.spaces[1], 1500);
            let (nic, there) = (setup.nic(0), setup.nic(1));
            let hello = experiment(setup.vifs[0].mac, setup.vifs[1].mac, &[round]);
            await_that("heard", || {
                let _ = there.try_send(&hello);
                nic.rest().contains(&hello).then_some(())
            });
            setup.daemon.await_active(&setup.vifs[1]);
        }
    }
}

/// At whichever step of closing and reopening the link changes: once it is up, it carries frames.
#[test]
fn a_flapping_link_carries_frames_once_it_is_up() {
    let on = &[DeviceKind::Tap, DeviceKind::Xdp, DeviceKind::Packet];
    let Some(setup) = Setup::new(SetupOptions { on, ..PLAIN }, &["a", "b", "c"]) else { return };
    let host = setup.spaces.last().unwrap();
    for round in 0..41 {
        for index in [1, 2] {
            let vif = &setup.vifs[index];
            host.ip(&format!("link set dev {} down", vif.name));
            // In half of the cases before the change is noticed.
            if round % 2 == 0 {
                setup.daemon.await_down(vif);
            }
            host.ip(&format!("link set dev {} up", vif.name));
        }
        for index in [1, 2] {
            setup.daemon.await_active(&setup.vifs[index]);
        }
    }
    let nics: Vec<Nic> = (0..3).map(|index| setup.nic(index)).collect();
    for index in [1, 2] {
        setup.send_and_await((0, &nics[0]), (index, &nics[index]), "there");
        setup.send_and_await((index, &nics[index]), (0, &nics[0]), "back");
    }
}

/// Whether the worker or the netlink listener notices first: the reason is that the link is down.
#[test]
fn a_netdev_set_down_and_up_carries_frames() {
    let on = &[DeviceKind::Tap, DeviceKind::Xdp, DeviceKind::Packet];
    let Some(setup) = Setup::new(SetupOptions { on, ..PLAIN }, &["a", "b", "c"]) else { return };
    let host = setup.spaces.last().unwrap();
    for index in [1, 2] {
        let vif = &setup.vifs[index];
        for _ in 0..5 {
            host.ip(&format!("link set dev {} down", vif.name));
            let down = setup.daemon.await_down(vif);
            assert!(down.status_reason.contains("down"), "{down:?}");
            host.ip(&format!("link set dev {} up", vif.name));
            setup.daemon.await_active(vif);
            let nics: [Nic; 2] = [setup.nic(0), setup.nic(index)];
            setup.send_and_await((0, &nics[0]), (index, &nics[1]), "there");
            setup.send_and_await((index, &nics[1]), (0, &nics[0]), "back");
        }
    }
}
