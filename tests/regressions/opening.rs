//! No hung device, namespace or file system delays control, other ports or READY. Needs root; makes its own
//! namespaces; some tests need FUSE.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use vifswitch::control::api::responses::Status;
use vifswitch::device::{Opened, tap};
use vifswitch::time;

use support::host::core_waits::CoreWaits;
use support::host::daemon::{Daemon, Vif, attachment, config, keeping};
use support::host::nic::Nic;
use support::host::setup::pass;
use support::host::{Namespace, await_that};

/// Limit for a change that waits for nothing. It takes milliseconds.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Result and duration.
fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let start = time::now();
    let done = what();
    (done, time::now().since(start))
}

/// A port in the API.
fn shown(daemon: &Daemon, vif: &Vif) -> Value {
    serde_json::from_str(&daemon.page(&format!("/v1/ports/{}", vif.port))).unwrap()
}

#[test]
fn a_namespace_that_is_a_fifo_blocks_nothing() {
    let Some(namespace) = Namespace::new() else { return };
    let mut daemon = Daemon::new();
    let fifo = daemon.file().with_file_name("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
    let strange = Vif { netns: fifo.to_str().unwrap().to_owned(), ..Vif::new("vm", 1, &namespace) };
    let (first, second) = (Vif::new("vm", 2, &namespace), Vif::new("vm", 3, &namespace));
    daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], &[strange.clone(), first.clone()]));
    daemon.start();
    daemon.await_active(&first);
    let down = daemon.await_down(&strange);
    assert!(down.status_reason.contains("FIFO"), "{}", down.status_reason);
    daemon.attach(&second);
    daemon.await_active(&second);
    daemon.detach(&strange);
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
}

/// A hung file system: FUSE without a server. Unmounted when dropped.
pub struct Hung {
    dir: TempDir,
    _served_by_nobody: File,
}

impl Hung {
    /// Prints the reason and returns `None` without FUSE.
    pub fn new() -> Option<Hung> {
        let Ok(server) = File::options().read(true).write(true).open("/dev/fuse") else {
            eprintln!("skipped: needs /dev/fuse");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let mount = ["-i", "-t", "fuse", "-o", "fd=0,rootmode=40000,user_id=0,group_id=0", "hung"];
        let mounted = Command::new("mount").args(mount).arg(dir.path()).stdin(server.try_clone().unwrap()).status();
        assert!(mounted.unwrap().success());
        Some(Hung { dir, _served_by_nobody: server })
    }

    /// Path of a file in this file system.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    /// The same port, with a namespace in this file system.
    pub fn hold(&self, vif: Vif) -> Vif {
        Vif { netns: self.file().to_str().unwrap().to_owned(), ..vif }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

#[test]
fn a_hung_open_blocks_neither_ready_nor_changes_nor_the_stop() {
    let (Some(namespace), Some(fs)) = (Namespace::new(), Hung::new()) else { return };
    let hung: Vec<Vif> = (1..=12).map(|number| fs.hold(Vif::new("hung", number, &namespace))).collect();
    let (first, second) = (Vif::new("vm", 21, &namespace), Vif::new("vm", 22, &namespace));
    let mut daemon = Daemon::new();
    let all: Vec<Vif> = hung.iter().chain([&first]).cloned().collect();
    daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], &all));
    daemon.start();
    daemon.await_active(&first);
    for vif in &hung {
        let down = daemon.await_port("reported", vif, |port| port.status_reason.contains("not returned"));
        assert_eq!(down.status, Status::Down);
    }
    // Threads that open devices.
    let openers = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().map(|task| task.unwrap().path());
        let is_opener = |name: String| name.trim() == "vifswitch-job";
        tasks.filter(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(is_opener)).count()
    };
    await_that("a few of them hang", || (openers() <= 4).then_some(()));
    let attached = timed(|| daemon.attach(&second)).1;
    assert!(attached < AT_ONCE, "{attached:?}");
    daemon.await_active(&second);
    // Changes of hung ports are made too, and do not add hung threads.
    daemon.done(&["set", &hung[0].port, "admin_state_up=false"], "");
    daemon.detach(&hung[1]);
    daemon.attach(&hung[1]);
    await_that("the same few", || (openers() <= 4).then_some(()));
    let events = daemon.events();
    let text = events.iter().filter(|event| event.ports == [hung[2].port.clone()]).count();
    assert_eq!(text, 1, "{events:?}");
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
}

/// Opens the tap of a port, as another process would.
pub(super) fn hold(namespace: &Namespace, vif: &Vif) -> Opened {
    let settings = tap::Settings {
        name: vif.name.clone(),
        netns: namespace.netns(),
        queues: 1,
        offloads: true,
        persist: true,
        mac: vif.mac,
        mtu: 1500,
        owner: vif.port.clone(),
    };
    tap::open(&settings, true).unwrap()
}

#[test]
fn taps_in_use_block_nothing() {
    const HELD: u8 = 240;
    /// For the watchdog that `command` sets. The switch waited a second for a held tap, eight at a time.
    const WATCHDOG: Timespec = Timespec { tv_sec: 3, tv_nsec: 0 };
    let Some(namespace) = Namespace::new() else { return };
    let held: Vec<Vif> = (1..=HELD).map(|number| Vif::new("held", number, &namespace)).collect();
    let holders: Vec<Opened> = held.iter().map(|vif| hold(&namespace, vif)).collect();
    let [first, second, third] = [1, 2, 3].map(|number| Vif::new("vm", HELD + number, &namespace));
    let all: Vec<Vif> = held.iter().chain([&first]).cloned().collect();
    let mut daemon = Daemon::new();
    daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], &all));
    let start = |daemon: &mut Daemon| {
        let mut command = daemon.command();
        command.env("WATCHDOG_USEC", "3000000");
        let file = daemon.file();
        timed(|| daemon.start_as(command, "--config", &file)).1
    };
    let ready = start(&mut daemon);
    assert!(ready < AT_ONCE, "READY after {ready:?}");
    for vif in [&held[0], &held[usize::from(HELD) - 1]] {
        assert!(daemon.await_down(vif).status_reason.contains("in use by another process"));
    }
    for _ in 0..3 {
        let (_, attached) = timed(|| daemon.attach(&second));
        assert!(attached < AT_ONCE, "{attached:?}");
        daemon.await_active(&second);
        let nics = [&first, &second].map(|vif| Nic::new(&namespace, &vif.name));
        pass((&nics[0], &first), (&nics[1], &second), "hello");
        pass((&nics[1], &second), (&nics[0], &first), "hello");
        drop(nics);
        let (_, detached) = timed(|| daemon.detach(&second));
        assert!(detached < AT_ONCE, "{detached:?}");
    }
    // A change that needs a held tap waits for it for a while; others do not wait.
    let holder = hold(&namespace, &third);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| daemon.attach(&third));
        await_that("the change to be made", || daemon.listed().contains(&third.port).then_some(()));
        daemon.attach(&second);
        assert!(waiting.join().unwrap().contains("in use by another process"));
    });
    while daemon.note_within(Timespec { tv_sec: 0, tv_nsec: 0 }).is_some() {}
    for _ in 0..4 {
        let note = daemon.note_within(WATCHDOG).unwrap_or_default();
        assert_eq!(note.trim_end(), "WATCHDOG=1");
    }
    let (code, ended) = timed(|| daemon.stop(Signal::TERM).code());
    assert!(code == Some(0) && ended < AT_ONCE, "{code:?} after {ended:?}");
    start(&mut daemon);
    drop((holders, holder));
    for vif in held.iter().chain([&first]) {
        daemon.await_active(vif);
    }
}

#[test]
fn devices_that_reappear_after_a_long_time_are_opened_at_once() {
    let Some(ns) = Namespace::new() else { return };
    let Some(later) = Namespace::planned() else { return };
    let in_later = Vif::new("vm", 1, &later);
    let netdev = Vif { kind: "packet", ..Vif::new("vm", 2, &ns) };
    let link = Vif { kind: "packet", ..Vif::new("vm", 3, &ns) };
    let held = Vif::new("vm", 4, &ns);
    let holder = hold(&ns, &held);
    ns.ip("link add tap3 type veth peer name far3");
    ns.ip("link set far3 up");
    let by_path = Vif { netns: format!("/run/netns/../netns/{}", later.0), ..Vif::new("vm", 5, &later) };
    let daemon = Daemon::over(&[in_later.clone(), netdev.clone(), link.clone(), held.clone(), by_path.clone()]);
    for vif in [&in_later, &netdev, &link, &held, &by_path] {
        daemon.await_down(vif);
    }
    // By now retries have become rare.
    let start = time::now();
    await_that("eight seconds", || (time::now().since(start) > Duration::from_secs(8)).then_some(()));
    let is_soon = |what: &str, vif: &Vif| {
        let (waits, begin) = (CoreWaits::of(daemon.pid()), time::now());
        daemon.await_active(vif);
        let took = waits.without(begin);
        assert!(took < Duration::from_millis(1800), "{what}: {took:?}"); // a second is promised
    };
    ns.ip("link add tap2 type veth peer name far2");
    ns.ip("link set tap2 up");
    ns.ip("link set far2 up");
    is_soon("a netdev comes", &netdev);
    ns.ip("link set tap3 up");
    is_soon("a link set up", &link);
    drop(holder);
    is_soon("a tap that is released", &held);
    later.make();
    is_soon("a namespace comes", &in_later);
    is_soon("a namespace that is created, by path", &by_path);
}

/// CPU time of a process.
fn cpu(daemon: &Daemon) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let fields: Vec<u64> = stat.rsplit_once(')').unwrap().1.split(' ').filter_map(|field| field.parse().ok()).collect();
    // utime and stime are fields 14 and 15; the state before them is no number.
    Duration::from_millis((fields[10] + fields[11]) * 10)
}

#[test]
fn waiting_ports_cost_little_cpu_time() {
    let Some(namespace) = Namespace::new() else { return };
    let waits = |number: u8| Vif { kind: "packet", ..Vif::new("vm", number, &namespace) };
    let idle = Daemon::over(&[]);
    let waiting = Daemon::over(&(0..200).map(waits).collect::<Vec<_>>());
    let start = time::now();
    await_that("ten seconds", || (time::now().since(start) > Duration::from_secs(10)).then_some(()));
    let before = [&idle, &waiting].map(cpu);
    await_that("sixteen seconds", || (time::now().since(start) > Duration::from_secs(16)).then_some(()));
    let [idle, waiting] = [cpu(&idle) - before[0], cpu(&waiting) - before[1]];
    let share = (waiting.as_secs_f64() - idle.as_secs_f64()) / time::now().since(start).as_secs_f64() * 16.0 / 6.0;
    assert!(share < 0.06, "{waiting:?} of 6 seconds, and {idle:?} without ports");
}

/// A hung open is reported with its duration.
#[test]
fn the_duration_of_a_hung_open_is_shown() {
    let (Some(namespace), Some(fs)) = (Namespace::new(), Hung::new()) else { return };
    let hung = fs.hold(Vif::new("hung", 1, &namespace));
    let mut daemon = Daemon::new();
    daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], std::slice::from_ref(&hung)));
    daemon.start();
    let seconds = || {
        let reason = shown(&daemon, &hung)["status_reason"].as_str().unwrap().to_owned();
        let (_, rest) = reason.split_once("has not returned for ")?;
        rest.split_once(" seconds")?.0.parse::<u64>().ok()
    };
    let first = await_that("reported", seconds);
    await_that("a greater number", || seconds().filter(|&then| then > first));
}

/// The start, `check` and the end waited for a writer of the FIFO, without limit.
#[test]
fn a_state_that_is_a_fifo_holds_up_neither_start_nor_check_nor_end() {
    let Some(namespace) = Namespace::new() else { return };
    let (first, second) = (Vif::new("vm", 1, &namespace), Vif::new("vm", 2, &namespace));
    let mut daemon = Daemon::new();
    let fifo = daemon.file().with_file_name("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let text = config(&daemon.socket(), "", &[("net1", 1500)], std::slice::from_ref(&first));
    daemon.configure(&keeping(&text, &fifo));
    let checked = daemon.try_command(&["check", "FILE"]);
    let warnings = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(warnings.contains("a FIFO, directory or device"), "{checked:?}");
    assert_eq!(warnings.matches("switch.state").count(), 1, "said once: {warnings}");
    daemon.start();
    daemon.await_active(&first);
    let refused = daemon.run_command(&["attach", "-"], &attachment(&second));
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains("a FIFO, directory or device"), "{why}");
    // Without a restart.
    std::fs::remove_file(&fifo).unwrap();
    await_that("changes to be accepted", || {
        daemon.run_command(&["attach", "-"], &attachment(&second)).status.success().then_some(())
    });
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
}

/// The start waited for the disk without limit.
#[test]
fn a_state_on_a_disk_that_hangs_holds_up_neither_start_nor_end() {
    let (Some(namespace), Some(fs)) = (Namespace::new(), Hung::new()) else { return };
    let (first, second) = (Vif::new("vm", 1, &namespace), Vif::new("vm", 2, &namespace));
    let mut daemon = Daemon::new();
    let text = config(&daemon.socket(), "", &[("net1", 1500)], std::slice::from_ref(&first));
    daemon.configure(&keeping(&text, &fs.file()));
    daemon.start();
    daemon.await_active(&first);
    let refused = || {
        let refused = daemon.run_command(&["attach", "-"], &attachment(&second));
        let why = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && why.contains("does not answer"), "{why}");
    };
    // Each refused change has retried the state: a disk that hangs holds one thread, however often it is retried.
    (0..3).for_each(|_| refused());
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    assert_eq!(names.filter(|name| name.trim() == "vifswitch-store").count(), 1);
    let (ended, took) = timed(|| daemon.stop(Signal::TERM));
    assert!(ended.code() == Some(0) && took < AT_ONCE, "{ended:?} after {took:?}");
}
