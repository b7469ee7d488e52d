//! The switch as a systemd service: only the unit's capabilities, watchdog, counter audit under traffic. Needs root;
//! makes its own namespaces.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::event::Timespec;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use support::host::daemon::{Daemon, Vif, config};
use support::host::inject::{Stopped, thread_of};
use support::host::nic::{Nic, experiment};
use support::host::setup::{PLAIN, Setup, SetupOptions, two_workers};
use support::host::{Finally, Namespace, TEST_TIMEOUT, await_that};
use vifswitch::control::api::responses::AuditView;
use vifswitch::time;
use vifswitch::wire::Mac;

const UNIT: &str = include_str!("../../scripts/vifswitch.service");

/// User and group `nobody`.
const NOBODY: u32 = 65534;

/// Value of a key of the unit.
fn of_unit(key: &str) -> &'static str {
    let mut values = UNIT.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = values.next().unwrap_or_else(|| panic!("no {key}="));
    assert_eq!(values.next(), None, "{key}= twice");
    value
}

/// Capabilities of the unit, in the notation of `setpriv`.
fn rights_of_unit() -> String {
    assert_eq!(of_unit("CapabilityBoundingSet"), of_unit("AmbientCapabilities"));
    let names = of_unit("AmbientCapabilities").split(' ');
    names.fold("-all".into(), |all, name| format!("{all},+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()))
}

/// Effective capability sets of all threads of a process.
fn in_force(pid: u32) -> BTreeSet<u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = |thread: io::Result<fs::DirEntry>| fs::read_to_string(thread.unwrap().path().join("status")).ok();
    let set = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim().to_owned();
        u64::from_str_radix(&line, 16).unwrap()
    };
    threads.filter_map(status).map(set).collect()
}

const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const IPC_LOCK: u64 = 1 << 14;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;

/// Everything that needs capabilities: opening, forwarding, reopening a lost device.
fn works(daemon: &Daemon, spaces: &[Namespace], vifs: &[Vif]) {
    for _ in 0..2 {
        vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
        let nics = [Nic::new(&spaces[0], &vifs[0].name), Nic::new(&spaces[1], &vifs[1].name)];
        let frame = experiment(vifs[1].mac, vifs[0].mac, b"hello");
        nics[0].send(&frame);
        assert_eq!(nics[1].take(), frame);
        drop(nics);
        let index = |namespace: &Namespace| namespace.link(&vifs[0].name).map(|link| link.index);
        let before = index(&spaces[0]);
        spaces[0].ip("link del tap1");
        await_that("the tap to be created again", || {
            Some(index(&spaces[0])).filter(|&now| now.is_some() && now != before)
        });
        spaces[1].delete();
        daemon.await_down(&vifs[1]);
        spaces[1].make();
    }
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
}

/// `setpriv`, on a host where users may open /dev/net/tun (mode 0666, as set by udev). Without udev the node may be
/// restricted to root; then another node, created in `directory`, is mounted over it in a mount namespace of the
/// command's own. Mounts of the host still propagate, as with systemd's `PrivateMounts=`.
fn with_tun_for_all(directory: &Path) -> Command {
    const TUN: &str = "/dev/net/tun";
    let tun = fs::metadata(TUN).unwrap();
    if tun.permissions().mode() & 0o006 == 0o006 {
        return Command::new("setpriv");
    }
    let node = directory.join("tun");
    mknodat(CWD, &node, FileType::CharacterDevice, Mode::from_raw_mode(0o666), tun.rdev()).unwrap();
    fs::set_permissions(&node, Permissions::from_mode(0o666)).unwrap();
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--propagation",
        "slave",
        "sh",
        "-c",
        "mount --bind \"$0\" \"$1\" && shift && exec setpriv \"$@\"",
    ]);
    command.arg(&node).arg(TUN);
    command
}

#[test]
fn the_service_works_without_root() {
    let Some(spaces) = (0..2).map(|_| Namespace::new()).collect::<Option<Vec<_>>>() else { return };
    let vifs = [Vif::new("a", 1, &spaces[0]), Vif::new("b", 2, &spaces[1])];
    let mut daemon = Daemon::new();
    daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], &vifs));
    daemon.give_to(NOBODY);
    // The build directory may be inaccessible to other users. Copied by another process: a child that another test starts
    // meanwhile would have our copy open for writing, and it could not be executed.
    let program = daemon.file().with_file_name("vifswitch");
    assert!(Command::new("cp").arg(support::host::program()).arg(&program).status().unwrap().success());
    let mut command = with_tun_for_all(daemon.file().parent().unwrap());
    let rights = rights_of_unit();
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"]);
    command.args(["--bounding-set", &rights, "--inh-caps", &rights, "--ambient-caps", &rights]).arg(program);
    let file = daemon.file();
    daemon.start_as(command, "--config", &file);
    works(&daemon, &spaces, &vifs);
    assert_eq!(in_force(daemon.pid()), BTreeSet::from([NET_ADMIN | NET_RAW | SYS_ADMIN]));
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
}

#[test]
fn a_switch_started_by_root_drops_capabilities() {
    let Some(spaces) = (0..2).map(|_| Namespace::new()).collect::<Option<Vec<_>>>() else { return };
    let vifs = [Vif::new("a", 1, &spaces[0]), Vif::new("b", 2, &spaces[1])];
    let mut daemon = Daemon::over(&vifs);
    works(&daemon, &spaces, &vifs);
    let all = NET_ADMIN | NET_RAW | IPC_LOCK | SYS_ADMIN | SYS_PTRACE;
    // A container may have fewer capabilities.
    let ours = *in_force(std::process::id()).first().unwrap();
    assert_eq!(in_force(daemon.pid()), BTreeSet::from([all & ours]));
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
    // The address is not reachable here; binding to it suffices.
    daemon.configure(&config(&daemon.socket(), "pages = \"127.77.0.1:977\"", &[("net1", 1500)], &vifs));
    daemon.start();
    assert_eq!(in_force(daemon.pid()), BTreeSet::from([(all | NET_BIND_SERVICE) & ours]));
}

/// Each capability of the unit is needed.
#[test]
fn without_a_capability_a_port_is_down_with_its_reason() {
    let Some(ns) = Namespace::new() else { return };
    let vif = Vif::new("a", 1, &ns);
    for (rights, why) in [("-all,+net_admin", "entering the namespace"), ("-all,+sys_admin", "opening a queue")] {
        let mut daemon = Daemon::new();
        daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], std::slice::from_ref(&vif)));
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", rights, support::host::program()]);
        let file = daemon.file();
        daemon.start_as(command, "--config", &file);
        let reason = daemon.await_down(&vif).status_reason;
        assert!(reason.contains(why) && reason.contains("not permitted"), "{rights}: {reason}");
    }
}

#[test]
fn the_unit_is_well_formed() {
    let directory = tempfile::tempdir().unwrap();
    let unit = directory.path().join("vifswitch.service");
    // `systemd-analyze verify` needs an installed program.
    let installed = of_unit("ExecStart").split(' ').next().unwrap();
    fs::write(&unit, UNIT.replace(installed, support::host::program())).unwrap();
    match Command::new("systemd-analyze").arg("verify").arg(&unit).output() {
        Err(e) => eprintln!("skipped: needs systemd-analyze: {e}"),
        Ok(output) => assert!(output.status.success() && output.stderr.is_empty(), "{output:?}"),
    }
    assert_eq!((of_unit("Type"), of_unit("Restart")), ("notify", "always"));
}

#[test]
fn a_hung_worker_stops_the_watchdog_notifications() {
    let Some(namespace) = Namespace::new() else { return };
    let switch = two_workers().unwrap_or_default();
    let vif = Vif::new("a", 1, &namespace);
    let mut daemon = Daemon::new();
    daemon.configure(&config(&daemon.socket(), switch, &[("net1", 1500)], std::slice::from_ref(&vif)));
    let mut command = daemon.command();
    command.env("WATCHDOG_USEC", "300000");
    let file = daemon.file();
    daemon.start_as(command, "--config", &file);
    daemon.await_active(&vif);
    // Idle workers sleep, and the watchdog is notified.
    (0..3).for_each(|_| daemon.await_note("WATCHDOG=1"));
    let workers = daemon.workers().len();
    for worker in 0..workers {
        let thread = thread_of(daemon.pid(), &format!("vifswitch-w{worker}")).unwrap();
        let stopped = Stopped::new(thread);
        let said = std::iter::from_fn(|| daemon.note_within(Timespec { tv_sec: 0, tv_nsec: 900_000_000 }));
        // Notifications sent before are still queued.
        let said: Vec<String> = said.take(3).collect();
        assert!(said.len() <= 2, "worker {worker} hangs: {said:?}");
        assert_eq!(daemon.ports().len(), 1, "control still answers");
        drop(stopped);
        daemon.await_note("WATCHDOG=1");
    }
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
}

/// A switch with a port that is up and one whose namespace does not exist, that is told to send a watchdog message in this time,
/// and the generation of its configuration.
fn reporting(here: &Namespace, away: &Namespace, watchdog: &str) -> (Daemon, u64) {
    let vifs = [Vif::new("a", 1, here), Vif::new("b", 2, away)];
    let mut daemon = Daemon::new();
    daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], &vifs));
    let mut command = daemon.command();
    command.env("WATCHDOG_USEC", watchdog);
    let file = daemon.file();
    daemon.spawn_as(command, "--config", &file);
    assert_eq!(note(&daemon), "READY=1", "the first message");
    let status: serde_json::Value = daemon.get("/v1/status");
    let generation = status["desired_generation"].as_u64().unwrap();
    (daemon, generation)
}

/// The next message, which is awaited.
fn note(daemon: &Daemon) -> String {
    let note = daemon.note_within(TEST_TIMEOUT).unwrap_or_else(|| panic!("no message:\n{}", daemon.log()));
    note.trim_end().to_owned()
}

/// The next status line. Other messages before it are those of the watchdog; there are fewer than `most`.
fn status_line(daemon: &Daemon, most: usize) -> Option<String> {
    for _ in 0..most {
        let note = note(daemon);
        match note.strip_prefix("STATUS=") {
            Some(line) => return Some(line.to_owned()),
            None => assert_eq!(note, "WATCHDOG=1"),
        }
    }
    None
}

/// Reads status lines, none of which is sent twice, until this one.
fn await_status(daemon: &Daemon, before: &mut String, wanted: &str) {
    await_that(wanted, || {
        let line = status_line(daemon, 400).expect("a status line");
        assert_ne!(line, *before, "a line is sent when it changes");
        *before = line;
        (before == wanted).then_some(())
    });
}

/// What `systemctl status` shows: sent behind READY, and again whenever it changes, but no more often.
#[test]
fn the_status_line_is_sent_when_it_changes() {
    let (Some(here), Some(away)) = (Namespace::new(), Namespace::planned()) else { return };
    let (mut daemon, generation) = reporting(&here, &away, "300000");
    let (mut last, line) =
        (String::new(), |up, generation| format!("{up} of 2 ports and uplinks up, generation {generation}"));
    await_status(&daemon, &mut last, &line(1, generation));
    // 25 messages of the watchdog take 2.5 s.
    assert_eq!(status_line(&daemon, 25), None, "nothing has changed:\n{}", daemon.log());
    daemon.done(&["set", "port-1", "port_security=off"], "");
    await_status(&daemon, &mut last, &line(1, generation + 1));
    away.make();
    await_status(&daemon, &mut last, &line(2, generation + 1));
    daemon.signal(Signal::TERM);
    let rest: Vec<String> = std::iter::repeat_with(|| note(&daemon)).take_while(|note| note != "STOPPING=1").collect();
    assert!(rest.iter().all(|note| note == "WATCHDOG=1"), "{rest:?}\n{}", daemon.log());
    assert_eq!(daemon.wait().code(), Some(0));
}

/// A line that was dropped, as the service manager did not read, is sent when it reads again, although nothing changes any more.
#[test]
fn a_status_line_that_found_the_queue_full_is_sent_again() {
    let (Some(here), Some(away)) = (Namespace::new(), Namespace::planned()) else { return };
    let (daemon, generation) = reporting(&here, &away, "60000");
    let mut last = String::new();
    await_status(&daemon, &mut last, &format!("1 of 2 ports and uplinks up, generation {generation}"));
    // From here on nobody reads.
    await_that("a full queue", || {
        daemon.signal(Signal::HUP);
        daemon.log().contains("cannot notify the supervisor: it does not read its socket").then_some(())
    });
    daemon.done(&["set", "port-1", "port_security=off"], "");
    // The line is tried once a second.
    let changed = time::now();
    await_that("some attempts", || {
        daemon.ports();
        (time::now().since(changed) > std::time::Duration::from_millis(2500)).then_some(())
    });
    let wanted = format!("STATUS=1 of 2 ports and uplinks up, generation {}", generation + 1);
    await_that(&wanted, || (note(&daemon) == wanted).then_some(()));
}

/// The audit balances repeatedly under traffic, and once more when idle.
fn assert_balanced(kind: SetupOptions) {
    let Some(setup) = Setup::new(kind, &["a", "a", "b", "c"]) else { return };
    let socket = setup.daemon.socket();
    let verify = || {
        let output = setup.daemon.try_command(&["show", "drops", "--verify", "--socket", socket.to_str().unwrap()]);
        let said = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
        assert_eq!(output.status.code(), Some(0), "{}{}", said[0], said[1]);
        said[0].to_string()
    };
    let done = AtomicBool::new(false);
    let stranger = Mac::from_bits(0x0200_0000_7777);
    thread::scope(|scope| {
        for (index, vif) in setup.vifs.iter().enumerate() {
            let (nic, next, done) = (setup.nic(index), setup.vifs[(index + 1) % setup.vifs.len()].mac, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    for (to, from) in [(next, vif.mac), (Mac::BROADCAST, vif.mac), (next, stranger), (vif.mac, vif.mac)]
                    {
                        // Its queue may be full; then the frame was not sent.
                        let _ = nic.try_send(&experiment(to, from, &[0x50; 100]));
                    }
                }
            });
        }
        let stop = Finally(&done);
        setup.daemon.await_port("traffic", &setup.vifs[3], |port| port.counts.rx_frames > 1000);
        for _ in 0..20 {
            let text = verify();
            assert!(text.contains("adds up: every frame is accounted for"), "{text}");
        }
        drop(stop);
    });
    setup.daemon.await_idle();
    let text = verify();
    assert!(text.ends_with("adds up: every frame is accounted for\n") && text.contains("hairpin"), "{text}");
    // Each worker keeps up to 512 slots.
    let AuditView { slots, slots_free, ref workers, .. } = setup.daemon.get("/v1/audit");
    assert!(
        slots > 0 && slots_free <= slots && slots_free + 512 * workers.len() as u32 >= slots,
        "{slots_free} of {slots} are free"
    );
}

#[test]
fn counters_balance_under_traffic() {
    assert_balanced(PLAIN);
}

#[test]
fn counters_balance_between_workers_under_traffic() {
    let Some(switch) = two_workers() else { return };
    assert_balanced(SetupOptions { switch, device: ", queues = 2", ..PLAIN });
}
