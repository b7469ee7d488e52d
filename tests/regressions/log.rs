//! Readers of the log, slow or gone, neither block nor end the switch. Needs root for the tests with netdevs.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::Signal;
use serde_json::Value;
use vifswitch::control::api::responses::Status;

use support::host::daemon::{Daemon, Vif, config};
use support::host::nic::{Nic, experiment};
use support::host::{Namespace, await_that};

/// A pipe whose read end no other process inherits, which would be another reader.
fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

/// A pipe with a capacity of one page.
fn small_pipe() -> (File, OwnedFd) {
    let (read, write) = pipe();
    fcntl_setpipe_size(&write, 4096).unwrap();
    (read.into(), write)
}

/// Many changes, each logged and answered.
fn change_often(daemon: &Daemon) {
    for number in 0..120 {
        let security = ["port_security=off", "port_security=mac"][number % 2];
        daemon.done(&["set", "port-1", security], "");
    }
}

/// A switch with a port on a veth whose peer is the guest's, and a second one.
fn guest(log: impl Into<Stdio>, environment: &[(&str, &str)]) -> Option<(Daemon, Namespace, Vif)> {
    let namespace = Namespace::new()?;
    let [vif, other] = [1, 2].map(|number| {
        namespace.ip(&format!("link add port{number} type veth peer name guest{number}"));
        namespace.ip(&format!("link set port{number} up"));
        namespace.ip(&format!("link set guest{number} up"));
        Vif { kind: "packet", name: format!("port{number}"), ..Vif::new(&format!("vm{number}"), number, &namespace) }
    });
    let mut daemon = Daemon::new();
    daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], &[vif.clone(), other.clone()]));
    let mut command = daemon.command();
    command.envs(environment.iter().copied());
    daemon.start_logging_to(log, command);
    daemon.await_active(&vif);
    daemon.await_active(&other);
    Some((daemon, namespace, vif))
}

/// The guest sets its link down and up, which is logged both times.
fn flap(daemon: &Daemon, namespace: &Namespace, vif: &Vif) {
    namespace.ip("link set guest1 down");
    daemon.await_port("no carrier", vif, |port| port.status == Status::Down);
    namespace.ip("link set guest1 up");
    daemon.await_active(vif);
}

/// The guest sends frames to the other one.
fn forwards(namespace: &Namespace, vif: &Vif) {
    let [sender, receiver] = ["guest1", "guest2"].map(|name| Nic::new(namespace, name));
    let to = Vif::new("vm2", 2, namespace).mac;
    for number in 0..100u8 {
        let frame = experiment(to, vif.mac, &[number; 64]);
        sender.send(&frame);
        assert_eq!(receiver.take(), frame);
    }
}

#[test]
fn an_unread_log_blocks_nothing() {
    let (_read, write) = small_pipe();
    let Some((mut daemon, namespace, vif)) = guest(write, &[("WATCHDOG_USEC", "3000000")]) else { return };
    // More than the pipe holds: the log thread hangs from here on.
    change_often(&daemon);
    forwards(&namespace, &vif);
    flap(&daemon, &namespace, &vif);
    forwards(&namespace, &vif);
    daemon.await_note("WATCHDOG=1"); // earlier notifications
    while daemon.note_within(rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }).is_some() {}
    daemon.await_note("WATCHDOG=1");
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
}

#[test]
fn a_closed_log_pipe_does_not_end_the_switch() {
    let (read, write) = small_pipe();
    let Some((mut daemon, namespace, vif)) = guest(write, &[]) else { return };
    drop(read);
    flap(&daemon, &namespace, &vif);
    change_often(&daemon);
    forwards(&namespace, &vif);
    assert!(lost(&daemon.page("/metrics")) > 0);
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
}

#[test]
fn a_log_on_a_full_disk_does_not_end_the_switch() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let Some((mut daemon, namespace, vif)) = guest(full, &[]) else { return };
    flap(&daemon, &namespace, &vif);
    change_often(&daemon);
    forwards(&namespace, &vif);
    let metrics = daemon.page("/metrics");
    assert!(lost(&metrics) > 50, "{metrics}");
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
}

/// Lost log lines, from the metrics.
fn lost(metrics: &str) -> u64 {
    metrics.lines().find_map(|line| line.strip_prefix("vifswitch_log_lines_lost_total ")?.parse().ok()).unwrap()
}

#[test]
fn lost_log_lines_are_counted_and_logged_in_place() {
    let mut daemon = Daemon::new();
    let path = daemon.file().with_file_name("fifo");
    mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
    // Opened for both, so that neither end waits for the other.
    let open = || File::options().read(true).write(true).open(&path).unwrap();
    let reader = open();
    daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], &[]));
    let write = File::options().write(true).open(&path).unwrap();
    daemon.start_logging_to(write, daemon.command());
    drop(reader);
    let change = || ["debug", "info"].iter().for_each(|level| drop(daemon.done(&["log", level], "")));
    await_that("lost lines", || {
        change();
        (lost(&daemon.page("/metrics")) >= 10).then_some(())
    });
    // A reader comes back: it reads the number of lost lines, and later lines.
    let mut reader = open();
    change();
    let mut text = String::new();
    let mut some = [0; 4096];
    while !text.contains("from debug to info") {
        let length = reader.read(&mut some).unwrap();
        text.push_str(std::str::from_utf8(&some[..length]).unwrap());
    }
    let count = |line: &str| line.split_once(" WARN ")?.1.split_once(" log lines lost here")?.0.parse::<u64>().ok();
    assert_eq!(text.lines().filter_map(count).sum::<u64>(), lost(&daemon.page("/metrics")), "{text}");
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
}

#[test]
fn the_log_has_the_format_and_levels_that_were_asked_for() {
    let mut daemon = Daemon::new();
    let apply = |daemon: &Daemon, mtu: u16| {
        daemon.configure(&config(&daemon.socket(), "", &[("net1", mtu)], &[]));
        assert!(daemon.try_command(&["apply", "FILE", "--socket", daemon.socket().to_str().unwrap()]).status.success());
    };
    daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], &[]));
    let mut command = daemon.command();
    command.envs([("VIFSWITCH_LOG_FORMAT", "json"), ("VIFSWITCH_LOG", "warn")]);
    daemon.start_as(command, "--config", &daemon.file());
    let levels = ["info", "vifswitch::control::reconcile=warn,vifswitch::daemon=debug", "off", "info"];
    apply(&daemon, 1400);
    for (level, mtu) in levels.into_iter().zip(1401..) {
        let shown = daemon.done(&["log", level], "");
        assert!(shown.contains(&format!("level {level}\nformat json\n")), "{shown}");
        apply(&daemon, mtu);
    }
    let socket = daemon.socket();
    let wrong = daemon.try_command(&["log", "loud", "--socket", socket.to_str().unwrap()]);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
    let log = daemon.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for key in ["time", "level", "module", "message"] {
        assert!(lines.iter().all(|line| line[key].is_string()), "{key}: {log}");
    }
    let changes: Vec<&str> =
        lines.iter().filter(|line| line["event"] == "config").map(|line| line["message"].as_str().unwrap()).collect();
    assert!(changes.len() == 2 && changes[0].contains("is 1401") && changes[1].contains("is 1404"), "{changes:?}");
    assert!(lines.iter().any(|line| line["message"] == "stopped" && line["module"] == "vifswitch::daemon"), "{log}");

    let run = daemon.try_command(&["run", "--config", "FILE", "--log-format", "xml"]);
    let why = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.code() == Some(2) && why.contains("use text, logfmt or json"), "{why}");
    // What is said before there is an error's format is in it, too.
    std::fs::create_dir(daemon.socket()).unwrap();
    let run = daemon.try_command(&["run", "--config", "FILE", "--log-format", "logfmt"]);
    let why = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(why.lines().all(|line| line.starts_with("time=")) && why.contains("is not a socket"), "{why}");
}

/// A command whose standard output is a closed pipe, as with `| head -1`.
#[test]
fn a_command_with_a_closed_output_pipe_ends_quietly() {
    let Some((daemon, ..)) = guest(Stdio::null(), &[]) else { return };
    let (file, socket) = (daemon.file(), daemon.socket());
    let (file, socket) = (file.to_str().unwrap(), socket.to_str().unwrap());
    let commands: &[&[&str]] = &[
        &["check", file],
        &["check", file, "--json"],
        &["show", "ports", "--socket", socket],
        &["show", "ports", "--json", "--socket", socket],
        &["events", "--socket", socket],
        &["diff", file, "--socket", socket],
        &["doctor"],
        &["--help"],
        &[],
    ];
    let run = |arguments: &[&str], out: Stdio, err: Stdio| {
        let mut command: Command = daemon.command();
        command.args(arguments).stdout(out).stderr(err).output().unwrap()
    };
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    for arguments in commands {
        let (read, write) = pipe();
        drop(read);
        let ended = run(arguments, write.into(), Stdio::piped());
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(0), "{arguments:?}: {said}");
        assert_eq!(said, "", "{arguments:?}");
        // On a full disk the command has failed, and is not killed by reporting it.
        let code = run(arguments, full(), full()).status.code();
        assert!(matches!(code, Some(0..=3)), "{arguments:?}: {code:?}");
    }
}
