//! The switch is killed under traffic, over foreign netdevs, and leaves nothing attached. Needs root; makes its own
//! namespaces.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::event::Timespec;
use rustix::process::Signal;
use rustix::thread::nanosleep;

use support::host::Finally;
use support::host::nic::{Nic, experiment};
use support::host::setup::{DeviceKind, PLAIN, Setup, SetupOptions};

#[test]
fn a_switch_killed_under_traffic_leaves_nothing_attached() {
    let on = &[DeviceKind::Xdp, DeviceKind::Packet, DeviceKind::Xdp];
    let Some(mut setup) = Setup::new(SetupOptions { on, ..PLAIN }, &["a", "b", "c"]) else { return };
    let nics = [0, 1, 2].map(|index| setup.nic(index));
    let mouths = [0, 1, 2].map(|index| setup.nic(index));
    let links = |setup: &Setup| [0, 1, 2].map(|at| setup.spaces.last().unwrap().link(&setup.vifs[at].name).unwrap());
    let macs = [0, 1, 2].map(|index| setup.vifs[index].mac);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for from in 0..3 {
                    for to in (0..3).filter(|to| *to != from) {
                        let _ = mouths[from].try_send(&experiment(macs[to], macs[from], &[from as u8]));
                    }
                }
                let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 });
            }
        });
        let _finally = Finally(&done);
        for _ in 0..100 {
            let bound = links(&setup).map(|link| link.xdp.is_some());
            assert_eq!(bound, [true, false, true]);
            setup.daemon.stop(Signal::KILL);
            assert_eq!(links(&setup).map(|link| link.xdp), [None; 3]);
            // Later frames come from the next run.
            nics.iter().for_each(|nic| drop(nic.rest()));
            setup.daemon.start();
            for (to, nic) in nics.iter().enumerate() {
                hears_all(nic, to);
            }
        }
    });
    let host: Vec<String> = setup.daemon.ports().into_iter().map(|port| port.status_reason).collect();
    println!("after a hundred starts: {host:?}");
    assert!(setup.daemon.stop(Signal::TERM).success());
    assert_eq!(links(&setup).map(|link| link.xdp), [None; 3]);
}

/// Waits until a guest has received frames of both others.
fn hears_all(nic: &Nic, own: usize) {
    let mut received = [false; 3];
    received[own] = true;
    while received != [true; 3] {
        received[usize::from(nic.take()[14])] = true;
    }
}
