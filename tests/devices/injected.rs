//! Opening and watching of devices while system calls of the switch fail: whatever the kernel answers, the port is DOWN
//! and says why, its neighbours lose nothing, control answers, and the port comes up when the calls succeed again. Needs
//! root; makes its own namespaces; needs strace.

use vifswitch::control::state::events::{Event, EventKind};

use support::host::daemon::{Daemon, Vif, attachment};
use support::host::inject::Injected;
use support::host::nic::{Nic, experiment};
use support::host::setup::{DeviceKind, PLAIN, Setup, SetupOptions, lay, pass};
use support::host::{Namespace, await_that};

/// A system call, and errors that the kernel documents for it.
type Failing = (&'static str, &'static [&'static str]);

const OPENING: [(DeviceKind, &[Failing]); 3] = [
    (
        DeviceKind::Tap,
        &[
            ("setns", &["EPERM", "EINVAL", "ENOMEM"]),
            ("open,openat", &["EMFILE", "ENFILE", "ENODEV", "EACCES", "ENOMEM", "EIO"]),
            ("ioctl", &["EBUSY", "EINVAL", "ENOMEM", "EPERM", "ENODEV", "EIO"]),
        ],
    ),
    (
        DeviceKind::Packet,
        &[
            ("setns", &["EPERM", "ENOMEM"]),
            ("socket", &["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EPERM", "EACCES"]),
            ("setsockopt", &["ENOMEM", "EINVAL", "EBUSY", "ENOBUFS", "EPERM"]),
            ("bind", &["ENODEV", "ENETDOWN", "ENOMEM", "EINVAL"]),
        ],
    ),
    (
        DeviceKind::Xdp,
        &[
            ("setns", &["EPERM", "ENOMEM"]),
            ("socket", &["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EPERM"]),
            ("setsockopt", &["ENOMEM", "EINVAL", "ENOBUFS", "EPERM"]),
            ("bind", &["EBUSY", "EINVAL", "ENODEV", "ENOBUFS", "EOPNOTSUPP", "EPROTONOSUPPORT", "ENETDOWN"]),
            ("bpf", &["EPERM", "ENOMEM", "EINVAL", "E2BIG", "ENOSPC", "EBUSY"]),
        ],
    ),
];

/// Two taps that exchange frames, and a port that is attached.
struct Scene {
    daemon: Daemon,
    talkers: [(Nic, Vif); 2],
    rounds: u32,
    _host: Namespace,
}

impl Scene {
    fn new() -> Option<Scene> {
        let host = Namespace::new()?;
        let vifs = [1, 2].map(|number| Vif::new("talker", number, &host));
        let daemon = Daemon::over(&vifs);
        let talkers = vifs.map(|vif| {
            daemon.await_active(&vif);
            (Nic::new(&host, &vif.name), vif)
        });
        Some(Scene { daemon, talkers, rounds: 0, _host: host })
    }

    /// The talkers exchange frames, and control answers.
    fn others_go_on(&mut self) {
        let [a, b] = &self.talkers;
        for _ in 0..10 {
            pass((&a.0, &a.1), (&b.0, &b.1), &format!("there {}", self.rounds));
            pass((&b.0, &b.1), (&a.0, &a.1), &format!("back {}", self.rounds));
            self.rounds += 1;
        }
        assert!(!self.daemon.ports().is_empty());
    }
}

fn downs(daemon: &Daemon) -> usize {
    daemon.events().iter().filter(|event| event.kind == EventKind::PortDown).count()
}

#[test]
fn a_port_whose_opening_fails_says_why_and_comes_up_when_it_can() {
    let Some(mut scene) = Scene::new() else { return };
    for (kind, calls) in OPENING {
        let (guest, host) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let vif = Vif { kind: kind.kind(), ..Vif::new("opened", 9, &host) };
        if kind == DeviceKind::Tap {
            host.ip(&format!("tuntap add dev {} mode tap", vif.name));
        } else {
            lay(&vif, &guest, 1500);
        }
        for (call, error) in calls.iter().flat_map(|(call, errors)| errors.iter().map(move |error| (*call, *error))) {
            let what = format!("{} {call} {error}", vif.kind);
            let Some(failing) = Injected::everywhere(&scene.daemon, call, &format!("error={error}")) else { return };
            let said = scene.daemon.run_command(&["attach", "-"], &attachment(&vif));
            scene.others_go_on();
            let port = scene.daemon.await_down(&vif);
            assert!(failing.count() > 0, "{what}: not called");
            drop(failing);
            let said = String::from_utf8(said.stdout).unwrap();
            assert!(said.contains(&port.status_reason), "{what}: {said} {port:?}");
            scene.daemon.await_active(&vif);
            scene.others_go_on();
            scene.daemon.detach(&vif);
        }
    }
    let is_of_talkers = |event: &Event| event.vm.as_deref() == Some("talker");
    let of_talkers: Vec<Event> = scene.daemon.events().into_iter().filter(is_of_talkers).collect();
    assert!(of_talkers.iter().all(|event| event.kind == EventKind::PortUp), "{of_talkers:?}");
    scene.daemon.await_idle();
}

/// Calls that watch namespaces, netdevs and files, and fail in all threads.
const WATCHING: &[Failing] = &[
    ("open,openat", &["EMFILE", "ENFILE", "ENODEV", "ENOMEM", "EIO", "EACCES"]),
    ("setns", &["EPERM", "ENOMEM"]),
    ("fstat,newfstatat,statx,fstatfs,statfs", &["EIO", "ENOMEM"]),
    ("socket", &["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]),
    ("ioctl", &["EIO", "ENOMEM", "EPERM", "ENODEV", "EOPNOTSUPP"]),
    ("recvfrom", &["ENOBUFS", "ENOMEM", "EIO"]),
];

/// Ports of each kind stay ACTIVE and lose nothing while nothing can be asked about their netdevs: that a netdev or a
/// namespace cannot be read does not mean that it is gone.
#[test]
fn running_ports_outlive_failures_of_what_watches_them() {
    let (Some(guest), Some(host)) = (Namespace::new(), Namespace::new()) else { return };
    // A name of which no changes are reported: the switch looks at it twice a second.
    let unreported = format!("/run/netns/../netns/{}", host.0);
    let vifs = (1..).zip(DeviceKind::ALL.into_iter().cycle().take(6)).map(|(number, kind)| {
        let vif = Vif { kind: kind.kind(), ..Vif::new(&format!("vm{number}"), number, &host) };
        if kind != DeviceKind::Tap {
            lay(&vif, &guest, 1500);
        }
        Vif { netns: unreported.clone(), ..vif }
    });
    let vifs: Vec<Vif> = vifs.collect();
    let mut daemon = Daemon::over(&vifs);
    let nics = vifs.iter().map(|vif| {
        daemon.await_active(vif);
        Nic::new(if vif.kind == "tap" { &host } else { &guest }, &vif.name)
    });
    let nics: Vec<Nic> = nics.collect();
    for (call, error) in WATCHING.iter().flat_map(|(call, errors)| errors.iter().map(move |error| (*call, *error))) {
        let Some(failing) = Injected::everywhere(&daemon, call, &format!("error={error}")) else { return };
        let mut rounds = 0;
        await_that(&format!("a call of {call}"), || {
            for (from, to) in [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)] {
                pass((&nics[from], &vifs[from]), (&nics[to], &vifs[to]), &format!("{call} {error} {rounds} {from}"));
            }
            rounds += 1;
            // Several looks at each.
            (failing.count() > 4).then_some(())
        });
        drop(failing);
        assert_eq!(downs(&daemon), 0, "{call} {error}: {:?}", daemon.events());
    }
    assert!(daemon.is_running());
    daemon.await_idle();
}

/// An `xdp` port transmits by system calls that wake its driver. Whatever they answer, frames follow in order, lost ones
/// are counted, and the port is ACTIVE again without a restart.
#[test]
fn an_xdp_port_outlives_failed_wakeups() {
    let Some(setup) = Setup::new(SetupOptions { on: &[DeviceKind::Tap, DeviceKind::Xdp], ..PLAIN }, &["a", "b"]) else {
        return;
    };
    let (daemon, nics) = (&setup.daemon, [setup.nic(0), setup.nic(1)]);
    let [from, to] = [&setup.vifs[0], &setup.vifs[1]];
    let dropped = || daemon.port(to).counts.drops.values().sum::<u64>();
    daemon.await_active(to);
    for error in ["EAGAIN", "EBUSY", "ENOBUFS", "ENOMEM", "EINVAL", "EIO", "EMSGSIZE", "ENETDOWN", "ENXIO", "ENODEV"] {
        let before = dropped();
        let frame = |number: u32| experiment(to.mac, from.mac, format!("{error} {number:02}").as_bytes());
        let Some(failing) = Injected::new(daemon, "vifswitch-w0", "sendto", &format!("error={error}:when=1..3")) else {
            return;
        };
        (0..40).for_each(|number| nics[0].send(&frame(number)));
        await_that("the failures", || {
            nics[0].send(&frame(40));
            (failing.count() >= 3).then_some(())
        });
        drop(failing);
        daemon.await_active(to);
        daemon.await_idle();
        nics[0].send(&frame(99));
        let mut received = nics[1].take_until(&frame(99));
        received.retain(|received| *received != frame(40));
        assert!(received.is_sorted(), "{error}: in order");
        let lost = 40 - received.len() as u64;
        assert!(dropped() - before >= lost, "{error}: {lost} lost, {} counted", dropped() - before);
        println!("{error}: {lost} lost, {} counted", dropped() - before);
    }
}
