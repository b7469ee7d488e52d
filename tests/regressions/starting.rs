//! Several switches that start with the same socket. Needs strace.

use std::os::unix::net::UnixListener;
use std::process::Command;

use rustix::process::Signal;

use support::host::daemon::{Daemon, config};
use support::host::{Namespace, await_that};

/// System call in which the main thread of a switch is.
fn call(daemon: &Daemon) -> Option<i64> {
    let file = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", daemon.pid())).ok();
    let number = file("syscall")?.split(' ').next()?.parse().ok()?;
    (file("comm")?.trim() == "vifswitch").then_some(number)
}

/// Between bind and listen, and between the check of an orphaned socket and its removal, another switch took the
/// socket away.
#[test]
fn of_two_concurrent_starts_one_listens() {
    if Namespace::planned().is_none() {
        return;
    }
    if !Command::new("strace").arg("-V").output().is_ok_and(|ended| ended.status.success()) {
        return eprintln!("skipped: needs strace");
    }
    let unlink = [
        libc::SYS_unlinkat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink,
    ];
    for (names, numbers, is_left) in [("listen", &[libc::SYS_listen][..], false), ("/^unlink", &unlink[..], true)] {
        let (mut slow, mut other) = (Daemon::new(), Daemon::new());
        for daemon in [&slow, &other] {
            daemon.configure(&config(&slow.socket(), "", &[("net1", 1500)], &[]));
        }
        // The socket of a dead switch.
        drop(is_left.then(|| UnixListener::bind(slow.socket()).unwrap()));
        let mut command = Command::new("strace");
        command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={names}"), "-e"]);
        command.arg(format!("inject={names}:delay_enter=2000000:when=1")).arg(slow.command().get_program());
        let file = slow.file();
        slow.spawn_as(command, "--config", &file);
        await_that(names, || call(&slow).filter(|number| numbers.contains(number)));
        let file = other.file();
        other.spawn_over("--config", &file);
        assert_eq!(other.wait().code(), Some(1), "{names}: {}", other.log());
        assert!(other.log().contains("another switch is listening"), "{names}: {}", other.log());
        slow.await_note("READY=1");
        assert!(slow.ports().is_empty(), "the switch answers at its socket");
        assert_eq!(slow.stop(Signal::TERM).code(), Some(0));
        assert!(!slow.socket().exists(), "{names}");
    }
}
