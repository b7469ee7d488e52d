//! Netdevs of others that are deleted under traffic, and made again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::thread::nanosleep;
use vifswitch::time;

use crate::host::nic::{Nic, experiment};
use crate::host::rig::{Kind, On, PLAIN, Rig, lay};
use crate::host::{Finally, await_that};

#[test]
fn an_xdp_netdev_is_deleted_under_traffic_and_nobody_else_loses_a_frame() {
    a_netdev_is_deleted(On::Xdp, 100);
}

#[test]
fn a_packet_netdev_is_deleted_under_traffic_and_nobody_else_loses_a_frame() {
    a_netdev_is_deleted(On::Packet, 20);
}

fn pause(milliseconds: i64) {
    let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 });
}

/// A few thousand frames a second, so many at a time as every queue of the kernel holds. How many; each is
/// awaited, in order, and nothing else may come.
fn count_out(rig: &Rig, from: usize, to: usize, done: &AtomicBool) -> u64 {
    const WINDOW: u64 = 16;
    let (at, there) = (rig.nic(from), rig.nic(to));
    let mut sent = 0u64;
    while !done.load(Ordering::Relaxed) {
        let numbered = |number: u64| experiment(rig.vifs[to].mac, rig.vifs[from].mac, &number.to_be_bytes());
        (sent..sent + WINDOW).for_each(|number| at.send(&numbered(number)));
        (sent..sent + WINDOW).for_each(|number| assert_eq!(there.take(), numbered(number)));
        sent += WINDOW;
        pause(3);
    }
    sent
}

fn a_netdev_is_deleted(on: On, times: u32) {
    let on: &'static [On] = match on {
        On::Xdp => &[On::Xdp, On::Packet, On::Xdp, On::Tap],
        _ => &[On::Xdp, On::Packet, On::Packet, On::Tap],
    };
    let Some(rig) = Rig::new(Kind { on, ..PLAIN }, &["a", "b", "victim", "friend"]) else { return };
    let (host, victim, friend) = (rig.spaces.last().unwrap(), &rig.vifs[2], &rig.vifs[3]);
    let open_files = || std::fs::read_dir(format!("/proc/{}/fd", rig.daemon.pid())).unwrap().count();
    rig.daemon.await_active(victim);
    let (files, before) = (open_files(), rig.daemon.quiet());
    let done = AtomicBool::new(false);
    let to_victim = experiment(victim.mac, friend.mac, b"are you there?");
    let noise = rig.nic(3);
    let (counted, longest) = thread::scope(|scope| {
        let talk = scope.spawn(|| count_out(&rig, 0, 1, &done));
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                (0..4).for_each(|_| drop(noise.try_send(&to_victim)));
                pause(1);
            }
        });
        let finally = Finally(&done);
        let ear = rig.nic(3);
        let mut longest = Duration::ZERO;
        for cycle in 0..times {
            let nic = rig.nic(2);
            let index = host.link(&victim.name).unwrap().index;
            (0..32).for_each(|_| nic.send(&experiment(friend.mac, victim.mac, b"going")));
            host.ip(&format!("link del dev {}", victim.name));
            assert_eq!(host.link(&victim.name), None);
            lay(victim, &rig.spaces[2], 1500);
            let start = time::now();
            assert_ne!(host.link(&victim.name).unwrap().index, index);
            // It hears the others again, and they hear it.
            let nic = rig.nic(2);
            assert_eq!(nic.take(), to_victim);
            longest = longest.max(time::now().since(start));
            let back = experiment(friend.mac, victim.mac, format!("back {cycle}").as_bytes());
            nic.send(&back);
            while ear.take() != back {}
            let link = host.link(&victim.name).unwrap();
            assert_eq!(link.xdp.is_some(), victim.kind == "xdp");
        }
        drop(finally);
        (talk.join().unwrap(), longest)
    });
    println!("{times} times; back after {longest:?} at most; {counted} frames between the others, none lost");
    rig.daemon.await_active(victim);
    await_that("no file is left open", || (open_files() <= files).then_some(()));
    let after = rig.daemon.quiet();
    for at in [0, 1] {
        assert_eq!(after[at].counts.drops, before[at].counts.drops);
    }
    assert_eq!((after[0].counts.rx_frames, after[1].counts.tx_frames), (counted, counted));
    rig.daemon.detach(victim);
    assert_eq!(host.link(&victim.name).unwrap().xdp, None);
}

/// What was bound once is the netdev, not its name: another one of that name is bound anew, and its frames
/// are its own.
#[test]
fn a_netdev_that_is_replaced_at_once_by_one_of_its_name_is_bound_anew() {
    for on in [&[On::Tap, On::Xdp][..], &[On::Tap, On::Packet]] {
        let Some(rig) = Rig::new(Kind { on, ..PLAIN }, &["a", "b"]) else { return };
        let host = rig.spaces.last().unwrap();
        // Also while nobody speaks, so that the worker cannot have met an error.
        for round in 0..5 {
            host.ip(&format!("link del dev {}", rig.vifs[1].name));
            lay(&rig.vifs[1], &rig.spaces[1], 1500);
            let (nic, there) = (rig.nic(0), rig.nic(1));
            let hello = experiment(rig.vifs[0].mac, rig.vifs[1].mac, &[round]);
            await_that("heard", || {
                let _ = there.try_send(&hello);
                nic.rest().contains(&hello).then_some(())
            });
            rig.daemon.await_active(&rig.vifs[1]);
        }
    }
}

/// However it comes between the steps in which its port is closed and opened: a link that is up at last carries frames.
#[test]
fn a_netdev_that_flaps_carries_on_when_it_is_up_at_last() {
    let on = &[On::Tap, On::Xdp, On::Packet];
    let Some(rig) = Rig::new(Kind { on, ..PLAIN }, &["a", "b", "c"]) else { return };
    let host = rig.spaces.last().unwrap();
    for round in 0..41 {
        for index in [1, 2] {
            let vif = &rig.vifs[index];
            host.ip(&format!("link set dev {} down", vif.name));
            // As often as not before anybody has noticed.
            if round % 2 == 0 {
                rig.daemon.await_down(vif);
            }
            host.ip(&format!("link set dev {} up", vif.name));
        }
        for index in [1, 2] {
            rig.daemon.await_active(&rig.vifs[index]);
        }
    }
    let nics: Vec<Nic> = (0..3).map(|index| rig.nic(index)).collect();
    for index in [1, 2] {
        rig.pass((0, &nics[0]), (index, &nics[index]), "there");
        rig.pass((index, &nics[index]), (0, &nics[0]), "back");
    }
}

/// Whoever finds out first, the worker or the news of links: what is said is that it is down.
#[test]
fn a_netdev_that_is_set_down_and_up_carries_on() {
    let on = &[On::Tap, On::Xdp, On::Packet];
    let Some(rig) = Rig::new(Kind { on, ..PLAIN }, &["a", "b", "c"]) else { return };
    let host = rig.spaces.last().unwrap();
    for index in [1, 2] {
        let vif = &rig.vifs[index];
        for _ in 0..5 {
            host.ip(&format!("link set dev {} down", vif.name));
            let down = rig.daemon.await_down(vif);
            assert!(down.status_reason.contains("down"), "{down:?}");
            host.ip(&format!("link set dev {} up", vif.name));
            rig.daemon.await_active(vif);
            let nics: [Nic; 2] = [rig.nic(0), rig.nic(index)];
            rig.pass((0, &nics[0]), (index, &nics[1]), "there");
            rig.pass((index, &nics[1]), (0, &nics[0]), "back");
        }
    }
}
