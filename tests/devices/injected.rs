//! Opening, watching and closing of devices while system calls of the switch fail: whatever the kernel answers, the port
//! says why it is DOWN, its neighbours lose nothing, control answers, and all is as before when the calls succeed again.
//! Needs root; makes its own namespaces; needs strace.

use std::cell::Cell;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use vifswitch::control::state::events::{Event, EventKind};

use support::host::daemon::{Daemon, Vif, attachment, config, keeping};
use support::host::files::{await_closed, files_at_rest};
use support::host::inject::Injected;
use support::host::nic::{Nic, experiment};
use support::host::setup::{DeviceKind, PLAIN, Setup, SetupOptions, lay, pass, two_workers};
use support::host::{Finally, Namespace, await_that, program};

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
    rounds: Cell<u32>,
    _host: Namespace,
}

impl Scene {
    fn new() -> Option<Scene> {
        Scene::with("")
    }

    /// With more keys of the switch.
    fn with(switch: &str) -> Option<Scene> {
        let host = Namespace::new()?;
        let vifs = [1, 2].map(|number| Vif::new("talker", number, &host));
        let daemon = Daemon::with(switch, &[("net1", 1500)], &vifs);
        let talkers = vifs.map(|vif| {
            daemon.await_active(&vif);
            (Nic::new(&host, &vif.name), vif)
        });
        Some(Scene { daemon, talkers, rounds: Cell::new(0), _host: host })
    }

    /// The talkers exchange frames, and control answers.
    fn others_go_on(&self) {
        let [a, b] = &self.talkers;
        for _ in 0..10 {
            pass((&a.0, &a.1), (&b.0, &b.1), &format!("there {}", self.rounds.get()));
            pass((&b.0, &b.1), (&a.0, &a.1), &format!("back {}", self.rounds.get()));
            self.rounds.set(self.rounds.get() + 1);
        }
        assert!(!self.daemon.ports().is_empty());
    }

    fn talkers_were_undisturbed(&self) {
        let is_of_talkers = |event: &Event| event.vm.as_deref() == Some("talker");
        let of_talkers: Vec<Event> = self.daemon.events().into_iter().filter(is_of_talkers).collect();
        assert!(of_talkers.iter().all(|event| event.kind == EventKind::PortUp), "{of_talkers:?}");
        self.daemon.await_idle();
    }
}

fn downs(daemon: &Daemon) -> usize {
    daemon.events().iter().filter(|event| event.kind == EventKind::PortDown).count()
}

#[test]
fn a_port_whose_opening_fails_says_why_and_comes_up_when_it_can() {
    let Some(scene) = Scene::new() else { return };
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
            failing.await_call(&what);
            drop(failing);
            let said = String::from_utf8(said.stdout).unwrap();
            // strace delays each call: the opening may not have failed when attach ends.
            let is_late = said.contains("has not returned for 3 seconds");
            assert!(said.contains(&port.status_reason) || is_late, "{what}: {said} {port:?}");
            scene.daemon.await_active(&vif);
            scene.others_go_on();
            scene.daemon.detach(&vif);
        }
    }
    scene.talkers_were_undisturbed();
}

/// Calls that look at namespaces and files, and fail in all threads.
const LOOKING: &[Failing] = &[
    ("open,openat", &["EMFILE", "ENFILE", "ENODEV", "ENOMEM", "EIO", "EACCES"]),
    ("setns", &["EPERM", "ENOMEM"]),
    ("fstat,newfstatat,statx,fstatfs,statfs", &["EIO", "ENOMEM"]),
];

/// Calls that watch netdevs, and fail in all threads.
const WATCHING: &[Failing] = &[
    ("socket", &["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]),
    ("ioctl", &["EIO", "ENOMEM", "EPERM", "ENODEV", "EOPNOTSUPP"]),
    ("recvfrom", &["ENOBUFS", "ENOMEM", "EIO"]),
    // Watchers end, and cannot be opened.
    ("socket,recvfrom", &["EMFILE", "ENFILE"]),
];

/// Ports of each kind stay ACTIVE and lose nothing while nothing can be asked about their netdevs: that a netdev or a
/// namespace cannot be read does not mean that it is gone.
fn running_ports_outlive(calls: &[Failing]) {
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
    for (call, error) in calls.iter().flat_map(|(call, errors)| errors.iter().map(move |error| (*call, *error))) {
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
    for vif in vifs.iter().filter(|vif| vif.kind != "tap") {
        host.ip(&format!("link set dev {} down", vif.name));
        daemon.await_down(vif);
        host.ip(&format!("link set dev {} up", vif.name));
        daemon.await_active(vif);
    }
    assert!(daemon.is_running());
    daemon.await_idle();
}

#[test]
fn running_ports_outlive_failures_of_what_looks_at_their_namespaces() {
    running_ports_outlive(LOOKING);
}

#[test]
fn running_ports_outlive_failures_of_what_watches_their_netdevs() {
    running_ports_outlive(WATCHING);
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

/// Calls that a closing makes, and what they return or how late they are.
const CLOSING: [(DeviceKind, &[(&str, &str)]); 3] = [
    (
        DeviceKind::Tap,
        &[
            ("setns", "error=EPERM"),
            ("open,openat", "error=EMFILE"),
            ("socket", "error=ENOBUFS"),
            ("sendto", "error=ENOMEM"),
            ("ioctl", "error=EIO"),
            ("epoll_create1,eventfd2", "error=EMFILE"),
            ("munmap", "error=ENOMEM"),
            ("close", "delay_enter=10000"),
        ],
    ),
    (
        DeviceKind::Packet,
        &[
            ("setns", "error=ENOMEM"),
            ("open,openat", "error=ENFILE"),
            // A change waits three seconds for a closing.
            ("clone,clone3", "error=EAGAIN"),
            ("munmap", "error=ENOMEM"),
            ("close", "delay_enter=10000"),
        ],
    ),
    (
        DeviceKind::Xdp,
        &[
            ("setns", "error=EPERM"),
            ("open,openat", "error=EIO"),
            ("socket", "error=EMFILE"),
            ("ioctl", "error=ENODEV"),
            ("getsockopt", "error=ENOMEM"),
            // Not munmap: the mapping of a ring would hold its socket, and that the netdev's queue.
            ("close", "delay_enter=10000"),
        ],
    ),
];

/// Calls that close a device on a netdev of others; further ones look at the netdev.
const WITHOUT_LOOKING: [&str; 3] = ["clone,clone3", "munmap", "close"];

/// Ports are detached and netdevs deleted while calls fail: the change is answered, the port is gone or DOWN, others
/// lose nothing, and nothing stays open.
fn closings(switch: &str) {
    let Some(mut scene) = Scene::with(switch) else { return };
    // The first AF_XDP port registers the memory of the pool, which a socket holds from then on.
    {
        let (guest, host) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        let first = Vif { kind: "xdp", ..Vif::new("first", 8, &host) };
        lay(&first, &guest, 1500);
        scene.daemon.attach(&first);
        scene.daemon.await_active(&first);
        scene.daemon.detach(&first);
    }
    let (before, mut number) = (files_at_rest(&scene.daemon), 8);
    for (kind, calls) in CLOSING {
        let (guest, host) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        for (call, so) in calls {
            number += 1;
            let vif = Vif { kind: kind.kind(), ..Vif::new("closed", number, &host) };
            let what = format!("{} {call} {so}", vif.kind);
            let make = || {
                if kind != DeviceKind::Tap {
                    lay(&vif, &guest, 1500)
                }
            };
            make();
            for is_detached in [true, false] {
                if is_detached && kind != DeviceKind::Tap && !WITHOUT_LOOKING.contains(call) {
                    continue;
                }
                scene.daemon.attach(&vif);
                scene.daemon.await_active(&vif);
                let had = downs(&scene.daemon);
                let Some(failing) = Injected::everywhere(&scene.daemon, call, so) else { return };
                let await_down = || await_that(&format!("{what}: DOWN"), || (downs(&scene.daemon) > had).then_some(()));
                if is_detached {
                    scene.daemon.detach(&vif);
                    assert!(!scene.daemon.listed().contains(&vif.port), "{what}");
                } else {
                    host.ip(&format!("link del dev {}", vif.name));
                    // The worker of an AF_XDP socket does not notice it: the netdev has to be looked at.
                    if kind != DeviceKind::Xdp {
                        await_down();
                    }
                }
                scene.others_go_on();
                failing.await_call(&what);
                drop(failing);
                if !is_detached {
                    await_down();
                }
            }
            make();
            scene.daemon.await_active(&vif);
            scene.others_go_on();
            scene.daemon.detach(&vif);
            let link = host.link(&vif.name);
            assert!(link.as_ref().is_none_or(|link| link.tap.is_none() && link.xdp.is_none()), "{what}: {link:?}");
        }
    }
    await_closed(&scene.daemon, &before);
    scene.talkers_were_undisturbed();
    assert_eq!(scene.daemon.stop(Signal::TERM).code(), Some(0));
}

#[test]
fn failing_calls_keep_no_port_from_closing() {
    closings("");
}

#[test]
fn failing_calls_keep_no_port_from_closing_on_two_workers() {
    if let Some(switch) = two_workers() {
        closings(switch);
    }
}

/// Calls of the end of the switch.
const ENDING: &[(&str, &str)] = &[
    ("socket", "error=ENOBUFS"),
    ("getsockopt", "error=EINVAL"),
    ("clone,clone3", "error=EAGAIN"),
    ("munmap", "error=ENOMEM"),
    ("unlink", "error=EIO"),
    ("statx,newfstatat", "error=EIO"),
    ("pwrite64", "error=ENOSPC"),
    ("fsync,fdatasync", "error=EIO"),
    ("close", "delay_enter=5000"),
];

/// The switch ends in order while calls fail, and the next start finds nothing in its way.
#[test]
fn failing_calls_keep_no_switch_from_ending() {
    let (Some(guest), Some(host)) = (Namespace::new(), Namespace::new()) else { return };
    let vifs = (1..).zip(DeviceKind::ALL).map(|(number, kind)| {
        let vif = Vif { kind: kind.kind(), ..Vif::new(&format!("vm{number}"), number, &host) };
        if kind != DeviceKind::Tap {
            lay(&vif, &guest, 1500);
        }
        vif
    });
    let vifs: Vec<Vif> = vifs.collect();
    let mut daemon = Daemon::new();
    for (number, (call, so)) in ENDING.iter().enumerate() {
        // One worker and two in turn.
        let switch = Some("").filter(|_| number % 2 == 0).or_else(two_workers).unwrap_or_default();
        let text = config(&daemon.socket(), switch, &[("net1", 1500)], &vifs);
        daemon.configure(&keeping(&text, &daemon.state()));
        daemon.start();
        vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
        daemon.done(&["set", "port-1", &format!("mac_limit={}", 100 + number)], "");
        let Some(failing) = Injected::everywhere(&daemon, call, so) else { return };
        daemon.signal(Signal::TERM);
        let ended = daemon.wait();
        assert_eq!(ended.code(), Some(0), "{call} {so}: {}", daemon.log());
        failing.await_call(&format!("{call} {so}"));
        let programs = vifs.iter().filter_map(|vif| host.link(&vif.name)).filter(|link| link.xdp.is_some()).count();
        assert_eq!(programs, 0, "{call} {so}: a program is left");
    }
    daemon.start();
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    let config: serde_json::Value = daemon.get("/v1/config");
    assert_eq!(config["vms"][0]["ports"][0]["mac_limit"], 100 + ENDING.len() - 1, "no change was lost");
}

/// No thread can be created: what needs one waits or is refused, and nothing ends.
#[test]
fn a_switch_that_gets_no_threads_goes_on() {
    let Some(mut scene) = Scene::new() else { return };
    let Some(failing) = Injected::everywhere(&scene.daemon, "clone,clone3", "error=EAGAIN") else { return };
    let counted = || failing.count();
    let meets = |scene: &Scene, what: &str, work: &dyn Fn(&Daemon)| {
        let before = counted();
        work(&scene.daemon);
        await_that(&format!("{what}: a thread is refused"), || (counted() > before).then_some(()));
        scene.others_go_on();
    };
    // The table of stations and a long body are prepared aside.
    meets(&scene, "stations", &|daemon| drop(daemon.run_command(&["show", "fdb"], "")));
    let long = fs::read_to_string(scene.daemon.file()).unwrap() + &"# long\n".repeat(20_000);
    let vms: String = (0..4000).map(|number| format!("[[vms]]\nid = \"other-{number}\"\nshare_mac = true\n")).collect();
    scene.daemon.configure(&(long + &vms));
    meets(&scene, "a long body", &|daemon| {
        let refused = daemon.try_command(&["apply", "FILE", "--socket", daemon.socket().to_str().unwrap()]);
        assert!(!refused.status.success(), "{refused:?}");
    });
    meets(&scene, "reload", &|daemon| daemon.signal(Signal::HUP));
    await_that("the reload is refused", || scene.daemon.log().contains("cannot be read").then_some(()));
    drop(failing);
    scene.daemon.signal(Signal::HUP);
    scene.daemon.await_note("READY=1");
    await_that("the file is read", || {
        let config: serde_json::Value = scene.daemon.get("/v1/config");
        (config["vms"].as_array().unwrap().len() > 4000).then_some(())
    });
    scene.others_go_on();
    scene.talkers_were_undisturbed();
}

/// A worker that dies takes the switch with it, by the signal: a service manager starts it again, and it finds its ports.
#[test]
fn the_death_of_a_worker_ends_the_switch() {
    let Some(Scene { mut daemon, talkers, _host, .. }) = Scene::new() else { return };
    let Some(failing) = Injected::new(&daemon, "vifswitch-w0", "read", "signal=ABRT:when=1") else { return };
    let [a, b] = &talkers;
    a.0.send(&experiment(b.1.mac, a.1.mac, b"last"));
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(daemon.wait().signal(), Some(Signal::ABORT.as_raw()));
    drop(failing);
    daemon.start();
    talkers.iter().for_each(|(_, vif)| drop(daemon.await_active(vif)));
    pass((&a.0, &a.1), (&b.0, &b.1), "again");
    daemon.await_idle();
}

/// While a netlink socket overflows all the time, its thread goes on with the others, and closes the socket when it is of
/// no use.
#[test]
fn an_overflowing_watcher_delays_no_other() {
    let Some(scene) = Scene::new() else { return };
    let host = Namespace::new().unwrap();
    let vif = Vif::new("other", 9, &host);
    scene.daemon.await_idle();
    let before = files_at_rest(&scene.daemon);
    scene.daemon.attach(&vif);
    scene.daemon.await_active(&vif);
    let Some(failing) = Injected::new(&scene.daemon, "netdevs", "recvfrom", "error=ENOBUFS") else { return };
    host.ip("link set dev lo up");
    await_that("many overflows", || (failing.count() > 1000).then_some(()));
    scene.others_go_on();
    scene.daemon.detach(&vif);
    await_closed(&scene.daemon, &before);
    drop(failing);
    scene.talkers_were_undisturbed();
}

/// Netdevs change all the time while all are listed: the kernel says that such a list may be inconsistent.
#[test]
fn interrupted_lists_of_netdevs_lose_no_change() {
    let Some(scene) = Scene::new() else { return };
    let (guest, host) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    let add: String = (0..60).map(|number| format!("link add a{number} type veth peer name b{number}\n")).collect();
    let batch = |host: &Namespace, text: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        host.ip(&format!("-batch {}", file.path().display()));
    };
    batch(&host, &add);
    let vif = Vif { kind: "packet", ..Vif::new("watched", 9, &host) };
    lay(&vif, &guest, 1500);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _finally = Finally(&done);
        scope.spawn(|| {
            let rounds: String = (0..5).map(|_| "link add c0 type veth peer name c1\nlink del c0\n").collect();
            while !done.load(Ordering::Relaxed) {
                batch(&host, &rounds);
            }
        });
        let Some(failing) = Injected::everywhere(&scene.daemon, "recvfrom", "delay_exit=3000") else { return };
        await_that("interrupted lists", || {
            scene.daemon.attach(&vif);
            scene.daemon.await_active(&vif);
            scene.daemon.detach(&vif);
            failing.log().contains("NLM_F_DUMP_INTR").then_some(())
        });
        drop(failing);
        scene.daemon.attach(&vif);
        scene.daemon.await_active(&vif);
        // Found in spite of all the others.
        host.ip(&format!("link set dev {} down", vif.name));
        scene.daemon.await_down(&vif);
        host.ip(&format!("link set dev {} up", vif.name));
        scene.daemon.await_active(&vif);
    });
    host.ip(&format!("link del dev {}", vif.name));
    scene.daemon.await_down(&vif);
    scene.others_go_on();
    scene.talkers_were_undisturbed();
}

/// Changes of the names of namespaces cannot be watched: they are looked at instead.
#[test]
fn namespaces_that_cannot_be_watched_are_found() {
    let watch = |daemon: &Daemon| {
        let files = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
        let target = |file: std::io::Result<fs::DirEntry>| fs::read_link(file.unwrap().path()).ok();
        files.filter_map(target).any(|target| target.to_string_lossy().contains("inotify"))
    };
    for (call, error) in [("inotify_init1", "EMFILE"), ("inotify_add_watch", "ENOSPC")] {
        let Some(host) = Namespace::planned() else { return };
        let vif = Vif::new("later", 1, &host);
        let mut daemon = Daemon::new();
        daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], std::slice::from_ref(&vif)));
        // Stopped until strace is there.
        let mut stopped = Command::new("sh");
        stopped.args(["-c", "kill -STOP $$; exec \"$0\" \"$@\"", program()]);
        let file = daemon.file();
        daemon.spawn_as(stopped, "--config", &file);
        let state = || fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
        await_that("the shell is stopped", || state().contains(") T ").then_some(()));
        let Some(failing) = Injected::everywhere(&daemon, call, &format!("error={error}")) else { return };
        daemon.signal(Signal::CONT);
        daemon.await_note("READY=1");
        host.make();
        daemon.await_active(&vif);
        failing.await_call(call);
        // A descriptor may be open for a moment.
        await_that(&format!("{call}: no watch"), || (!watch(&daemon)).then_some(()));
        drop(failing);
        await_that("the watch", || watch(&daemon).then_some(()));
        host.delete();
        daemon.await_down(&vif);
    }
}

/// Calls of workers that are late delay frames, and lose none.
#[test]
fn slow_calls_of_workers_cost_no_frame() {
    let on = &[DeviceKind::Tap, DeviceKind::Packet, DeviceKind::Xdp];
    let Some(setup) = Setup::new(SetupOptions { on, ..PLAIN }, &["tap", "packet", "xdp"]) else { return };
    let nics = [0, 1, 2].map(|index| setup.nic(index));
    setup.vifs.iter().for_each(|vif| drop(setup.daemon.await_active(vif)));
    for call in ["read", "write,writev", "sendmmsg", "sendto"] {
        let Some(slow) = Injected::new(&setup.daemon, "vifswitch-w0", call, "delay_enter=5000:when=1+2") else {
            return;
        };
        for number in 0..20 {
            for (from, to) in [(0, 1), (1, 2), (2, 0)] {
                let [from, to] = [from, to].map(|index: usize| (&nics[index], &setup.vifs[index]));
                from.0.send(&experiment(to.1.mac, from.1.mac, format!("{call} {number}").as_bytes()));
            }
        }
        for (index, nic) in nics.iter().enumerate() {
            for number in 0..20 {
                assert!(nic.take().ends_with(format!("{call} {number}").as_bytes()), "{call}: {number} to {index}");
            }
        }
        slow.await_call(call);
    }
    let ports = setup.daemon.await_idle();
    assert!(ports.iter().all(|port| port.counts.drops.is_empty() && port.counts.tx_lost == 0), "{ports:?}");
}
