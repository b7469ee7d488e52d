//! Netdevs of others that are deleted under traffic, and made again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::thread::nanosleep;
use vifswitch::time;

use support::host::nic::{Nic, experiment};
use support::host::setup::{DeviceKind, PLAIN, Setup, SetupOptions, lay};
use support::host::{Finally, await_that};

#[test]
fn an_xdp_netdev_is_deleted_under_traffic_and_nobody_else_loses_a_frame() {
    a_netdev_is_deleted(DeviceKind::Xdp, 100);
}

#[test]
fn a_packet_netdev_is_deleted_under_traffic_and_nobody_else_loses_a_frame() {
    a_netdev_is_deleted(DeviceKind::Packet, 20);
}

fn pause(milliseconds: i64) {
    let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 });
}

/// A few thousand frames a second, so many at a time as every queue of the kernel holds. How many; each is
/// awaited, in order, and nothing else may come.
fn count_out(setup: &Setup, from: usize, to: usize, done: &AtomicBool) -> u64 {
    const WINDOW: u64 = 16;
    let (at, there) = (setup.nic(from), setup.nic(to));
    let mut sent = 0u64;
    while !done.load(Ordering::Relaxed) {
        let numbered = |number: u64| experiment(setup.vifs[to].mac, setup.vifs[from].mac, &number.to_be_bytes());
        (sent..sent + WINDOW).for_each(|number| at.send(&numbered(number)));
        (sent..sent + WINDOW).for_each(|number| assert_eq!(there.take(), numbered(number)));
        sent += WINDOW;
        pause(3);
    }
    sent
}

fn a_netdev_is_deleted(on: DeviceKind, times: u32) {
    let on: &'static [DeviceKind] = match on {
        DeviceKind::Xdp => &[DeviceKind::Xdp, DeviceKind::Packet, DeviceKind::Xdp, DeviceKind::Tap],
        _ => &[DeviceKind::Xdp, DeviceKind::Packet, DeviceKind::Packet, DeviceKind::Tap],
    };
    let Some(setup) = Setup::new(SetupOptions { on, ..PLAIN }, &["a", "b", "victim", "friend"]) else { return };
    let (host, victim, friend) = (setup.spaces.last().unwrap(), &setup.vifs[2], &setup.vifs[3]);
    let open_files = || std::fs::read_dir(format!("/proc/{}/fd", setup.daemon.pid())).unwrap().count();
    setup.daemon.await_active(victim);
    let (files, before) = (open_files(), setup.daemon.await_idle());
    let done = AtomicBool::new(false);
    let to_victim = experiment(victim.mac, friend.mac, b"are you there?");
    let noise = setup.nic(3);
    let (counted, max_len) = thread::scope(|scope| {
        let talk = scope.spawn(|| count_out(&setup, 0, 1, &done));
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                (0..4).for_each(|_| drop(noise.try_send(&to_victim)));
                pause(1);
            }
        });
        let finally = Finally(&done);
        let listener = setup.nic(3);
        let mut max_len = Duration::ZERO;
        for cycle in 0..times {
            let nic = setup.nic(2);
            let index = host.link(&victim.name).unwrap().index;
            (0..32).for_each(|_| nic.send(&experiment(friend.mac, victim.mac, b"going")));
            host.ip(&format!("link del dev {}", victim.name));
            assert_eq!(host.link(&victim.name), None);
            lay(victim, &setup.spaces[2], 1500);
            let start = time::now();
            assert_ne!(host.link(&victim.name).unwrap().index, index);
            // It hears the others again, and they hear it.
            let nic = setup.nic(2);
            assert_eq!(nic.take(), to_victim);
            max_len = max_len.max(time::now().since(start));
            let back = experiment(friend.mac, victim.mac, format!("back {cycle}").as_bytes());
            nic.send(&back);
            while listener.take() != back {}
            let link = host.link(&victim.name).unwrap();
            assert_eq!(link.xdp.is_some(), victim.kind == "xdp");
        }
        drop(finally);
        (talk.join().unwrap(), max_len)
    });
    println!("{times} times; back after {max_len:?} at most; {counted} frames between the others, none lost");
    setup.daemon.await_active(victim);
    await_that("no file is left open", || (open_files() <= files).then_some(()));
    let after = setup.daemon.await_idle();
    for at in [0, 1] {
        assert_eq!(after[at].counts.drops, before[at].counts.drops);
    }
    assert_eq!((after[0].counts.rx_frames, after[1].counts.tx_frames), (counted, counted));
    setup.daemon.detach(victim);
    assert_eq!(host.link(&victim.name).unwrap().xdp, None);
}

/// What was bound once is the netdev, not its name: another one of that name is bound anew, and its frames
/// are its own.
#[test]
fn a_netdev_that_is_replaced_at_once_by_one_of_its_name_is_bound_anew() {
    for on in [&[DeviceKind::Tap, DeviceKind::Xdp][..], &[DeviceKind::Tap, DeviceKind::Packet]] {
        let Some(setup) = Setup::new(SetupOptions { on, ..PLAIN }, &["a", "b"]) else { return };
        let host = setup.spaces.last().unwrap();
        // Also while nobody speaks, so that the worker cannot have met an error.
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

/// However it comes between the steps in which its port is closed and opened: a link that is up at last carries frames.
#[test]
fn a_netdev_that_flaps_carries_on_when_it_is_up_at_last() {
    let on = &[DeviceKind::Tap, DeviceKind::Xdp, DeviceKind::Packet];
    let Some(setup) = Setup::new(SetupOptions { on, ..PLAIN }, &["a", "b", "c"]) else { return };
    let host = setup.spaces.last().unwrap();
    for round in 0..41 {
        for index in [1, 2] {
            let vif = &setup.vifs[index];
            host.ip(&format!("link set dev {} down", vif.name));
            // As often as not before anybody has noticed.
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

/// Whoever finds out first, the worker or the news of links: what is said is that it is down.
#[test]
fn a_netdev_that_is_set_down_and_up_carries_on() {
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
