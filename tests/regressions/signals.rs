//! SIGTERM, SIGINT and SIGHUP end or reload the switch in time, whatever it is doing. Needs root; makes its own
//! namespaces; some tests need strace or FUSE.

use std::process::Output;
use std::thread;

use rustix::process::Signal;
use serde_json::Value;

use super::opening::Hung;
use support::host::daemon::{Daemon, Vif, attachment, config, keeping};
use support::host::inject::Injected;
use support::host::{Namespace, await_that};

/// A switch with a state, over the first of three ports.
fn switch() -> Option<(Daemon, Vec<Vif>, Namespace)> {
    let namespace = Namespace::new()?;
    let vifs: Vec<Vif> = (1..).zip(["a", "a", "b"]).map(|(number, vm)| Vif::new(vm, number, &namespace)).collect();
    let daemon = Daemon::new();
    write(&daemon, &vifs[..1], "");
    Some((daemon, vifs, namespace))
}

/// Writes the configuration file, with a further key of the network.
fn write(daemon: &Daemon, vifs: &[Vif], network: &str) {
    let text = config(&daemon.socket(), "", &[("net1", 1500)], vifs);
    let text = text.replacen("mtu = 1500\n", &format!("mtu = 1500\n{network}\n"), 1);
    daemon.configure(&keeping(&text, &daemon.state()));
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned()).concat()
}

/// The client received an empty reply although the change was made.
#[test]
fn a_change_in_progress_at_sigterm_is_completed_and_answered() {
    let Some((mut daemon, vifs, _space)) = switch() else { return };
    daemon.start();
    // The disk is slow: the change is being stored when the signal arrives.
    let Some(slow) = Injected::new(&daemon, "vifswitch-store", "fdatasync,fsync", "delay_enter=700ms") else { return };
    let (under_way, waiting, read) = thread::scope(|scope| {
        let change = scope.spawn(|| daemon.run_command(&["attach", "-"], &attachment(&vifs[1])));
        // A waiting change has not started, and is refused with a reason.
        pause(200);
        let after = scope.spawn(|| daemon.run_command(&["attach", "-"], &attachment(&vifs[2])));
        pause(200);
        daemon.signal(Signal::TERM);
        let read = daemon.run_command(&["show", "ports", "--json"], "");
        (change.join().unwrap(), after.join().unwrap(), read)
    });
    assert!(under_way.status.success(), "{}\n{}", said(&under_way), daemon.log());
    assert!(!waiting.status.success() && said(&waiting).contains("shutting down"), "{}", said(&waiting));
    assert!(read.status.success(), "requests are answered: {}", said(&read));
    drop(slow);
    assert_eq!(daemon.wait().code(), Some(0));
    daemon.start();
    assert_eq!(daemon.listed(), ["port-1", "port-2"]);
}

/// A change that waits for a device that never opens is stored, and therefore answered; the process ends in time.
#[test]
fn a_switch_ends_in_time_with_hung_opens() {
    let (Some((mut daemon, mut vifs, _space)), Some(fs)) = (switch(), Hung::new()) else { return };
    daemon.start();
    // A reload that hangs as well.
    std::fs::remove_file(daemon.file()).unwrap();
    std::os::unix::fs::symlink(fs.file(), daemon.file()).unwrap();
    daemon.signal(Signal::HUP);
    daemon.await_note("RELOADING=1");
    vifs[1] = fs.hold(vifs[1].clone());
    let answer = thread::scope(|scope| {
        let change = scope.spawn(|| daemon.run_command(&["attach", "-"], &attachment(&vifs[1])));
        // The change is made, and answered when its port is open or timed out.
        await_that("the port is being opened", || daemon.listed().contains(&vifs[1].port).then_some(()));
        daemon.signal(Signal::TERM);
        change.join().unwrap()
    });
    assert!(answer.status.success(), "{}\n{}", said(&answer), daemon.log());
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    assert!(daemon.log().contains("stopped"));
}

/// The signal was ignored until the switch was ready, possibly forever.
#[test]
fn a_switch_that_is_starting_can_be_ended() {
    let (Some((mut daemon, mut vifs, _space)), Some(fs)) = (switch(), Hung::new()) else { return };
    // A namespace that hangs every open.
    vifs[0] = fs.hold(vifs[0].clone());
    write(&daemon, &vifs[..1], "");
    let file = daemon.file();
    daemon.spawn_over("--config", &file);
    await_that("the switch to open devices", || daemon.log().contains("workers started").then_some(()));
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0), "{}", daemon.log());
    assert!(!daemon.log().contains("INFO ready"), "the switch was ready before: {}", daemon.log());
    // And while it waits for its state, which another process holds.
    let other = rusqlite::Connection::open(daemon.state()).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    daemon.spawn_over("--config", &file);
    await_that("the state in use", || daemon.log().contains("in use by another process").then_some(()));
    assert_eq!(daemon.stop(Signal::INT).code(), Some(0), "{}", daemon.log());
    assert!(daemon.log().contains("stopped before startup has finished"), "{}", daemon.log());
    drop(other);
}

#[test]
fn a_second_signal_ends_the_switch_at_once() {
    let Some((mut daemon, vifs, _space)) = switch() else { return };
    daemon.start();
    let Some(slow) = Injected::new(&daemon, "vifswitch-store", "fdatasync,fsync", "delay_enter=60s") else { return };
    thread::scope(|scope| {
        scope.spawn(|| daemon.run_command(&["attach", "-"], &attachment(&vifs[1])));
        pause(300);
        daemon.signal(Signal::TERM);
        await_that("the report", || daemon.log().contains("received SIGTERM; stopping").then_some(()));
        daemon.signal(Signal::INT);
        await_that("its end", || {
            let status = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
            status.contains(") Z ").then_some(())
        });
        drop(slow);
    });
    assert_eq!(daemon.wait().code(), Some(1), "{}", daemon.log());
    assert!(daemon.log().contains("received SIGINT while stopping"), "{}", daemon.log());
}

/// SIGHUP killed the switch.
#[test]
fn sighup_reloads_the_file_and_keeps_attached_ports() {
    let Some((mut daemon, vifs, namespace)) = switch() else { return };
    daemon.start();
    daemon.attach(&vifs[1]);
    let link = namespace.link("tap2");
    write(&daemon, &[vifs[0].clone(), vifs[2].clone()], "ageing_seconds = 60");
    daemon.signal(Signal::HUP);
    daemon.await_note("RELOADING=1");
    daemon.await_note("READY=1");
    assert_eq!(daemon.listed(), ["port-1", "port-2", "port-3"]);
    let ageing = |daemon: &Daemon| daemon.get::<Value>("/v1/config")["networks"][0]["ageing_seconds"].take();
    assert_eq!(ageing(&daemon), 60);
    daemon.await_active(&vifs[2]);
    assert_eq!(namespace.link("tap2"), link);

    // An invalid file changes nothing and is reported.
    let good = std::fs::read_to_string(daemon.file()).unwrap();
    let wrong = [
        ("a mistake", good.replace("ageing_seconds = 60", "ageing_seconds = 7"), "ageing_seconds"),
        ("no file", good.replace("[switch]", "[switch"), "reload failed"),
        ("what is fixed", good.replace("frames = 2048", "frames = 4096"), "fixed at start"),
    ];
    for (what, text, reported) in wrong {
        daemon.configure(&text);
        daemon.signal(Signal::HUP);
        daemon.await_note("READY=1");
        let events = daemon.events();
        let last = &events.last().unwrap().text;
        assert!(last.contains("no changes") && last.contains(reported), "{what}: {last}");
        assert_eq!((daemon.listed().len(), ageing(&daemon)), (3, Value::from(60)), "{what}");
    }

    // A port removed from the file is removed, also at the next start: the file has been applied.
    write(&daemon, &vifs[2..], "ageing_seconds = 60");
    daemon.signal(Signal::HUP);
    daemon.await_note("READY=1");
    assert_eq!(daemon.listed(), ["port-2", "port-3"]);
    await_that("its netdev is gone", || namespace.link("tap1").is_none().then_some(()));
    daemon.detach(&vifs[2]);
    daemon.stop(Signal::KILL);
    daemon.start();
    assert_eq!(daemon.listed(), ["port-2"], "the file has not been edited since");
    assert_eq!(namespace.link("tap2"), link);
}

/// Waits for an operation to start: the result must be right at any moment.
fn pause(millis: i64) {
    let _ = rustix::thread::nanosleep(&rustix::event::Timespec { tv_sec: 0, tv_nsec: millis * 1_000_000 });
}
