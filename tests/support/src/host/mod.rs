//! Test hosts: namespaces, the switch as a process, and guests. Everything is removed when the test ends. Needs root.

pub mod core_waits;
pub mod daemon;
pub mod disk;
pub mod fd_store;
pub mod files;
pub mod inject;
pub mod inside;
pub mod nic;
pub mod relay;
pub mod setup;
pub mod streams;
pub mod vlans;

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::nanosleep;
use vifswitch::sys::link::{self, Link};
use vifswitch::sys::netns::{Netns, within};
use vifswitch::time;

/// The program under test: the one that `VIFSWITCH` names, or the one built with this test.
pub fn program() -> &'static str {
    static PROGRAM: LazyLock<String> = LazyLock::new(|| {
        let built = || std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("vifswitch");
        std::env::var("VIFSWITCH").unwrap_or_else(|_| built().to_str().unwrap().to_owned())
    });
    &PROGRAM
}

/// Timeout of events that must happen.
pub const TEST_TIMEOUT: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// Poll interval of states without an event.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// EtherType for local experiments (IEEE 802-2014, 9.2.3), which no stack answers.
pub const EXPERIMENT: u16 = 0x88b5;

/// A namespace, deleted with its contents when the test ends.
pub struct Namespace(pub String);

impl Namespace {
    /// Prints the reason and returns `None` if the host cannot run the test.
    pub fn new() -> Option<Namespace> {
        let namespace = Namespace::planned()?;
        namespace.make();
        Some(namespace)
    }

    /// A named namespace that does not exist yet.
    pub fn planned() -> Option<Namespace> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
            eprintln!("skipped: needs root and /dev/net/tun");
            return None;
        }
        Some(Namespace(format!("vift-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))))
    }

    /// Creates it, without IPv6, so that no host in it sends by itself.
    pub fn make(&self) {
        run("ip", &["netns", "add", &self.0]);
        self.run_in(|| {
            for who in ["all", "default"] {
                // A kernel without IPv6 needs no setting.
                let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{who}/disable_ipv6"), "1");
            }
        });
    }

    pub fn delete(&self) {
        run("ip", &["netns", "del", &self.0]);
    }

    /// The same, and waits until the kernel has ended it, which it does in the background. Until then it exists without a
    /// name.
    pub fn end(&self) {
        let outside = Namespace::new().expect("it has permitted this one");
        // goes with its other end, after the namespace's id
        outside.ip(&format!("link add here type veth peer name there netns {}", self.0));
        self.delete();
        await_that("the namespace to end", || (outside.links() == ["lo"]).then_some(()));
    }

    pub fn netns(&self) -> Netns {
        Netns::Named(self.0.clone())
    }

    pub fn ip(&self, arguments: &str) {
        let arguments: Vec<&str> = ["-n", &self.0].into_iter().chain(arguments.split(' ')).collect();
        run("ip", &arguments);
    }

    pub fn link(&self, name: &str) -> Option<Link> {
        self.run_in(|| link::find(name)).unwrap()
    }

    /// Names of all netdevs, in order.
    pub fn links(&self) -> Vec<String> {
        let mut names: Vec<String> = self.run_in(|| {
            let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
        });
        names.sort();
        names
    }

    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.netns(), work).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.netns().path().is_some_and(|path| path.exists()) {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
        }
    }
}

/// A process that lives in a network namespace until this is dropped.
pub struct Inhabitant(Child);

impl Inhabitant {
    /// In a named namespace.
    pub fn of(namespace: &Namespace) -> Inhabitant {
        Inhabitant::started(Command::new("ip").args(["netns", "exec", &namespace.0, "cat"]))
    }

    /// In a namespace of its own, without a name.
    pub fn alone() -> Inhabitant {
        Inhabitant::started(Command::new("unshare").args(["--net", "cat"]))
    }

    fn started(command: &mut Command) -> Inhabitant {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let name = format!("/proc/{}/comm", child.id());
        // Both programs become `cat` in the end, with the same process id.
        await_that("the inhabitant", || (std::fs::read_to_string(&name).unwrap().trim() == "cat").then_some(()));
        Inhabitant(child)
    }

    /// Path of its network namespace.
    pub fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).output().unwrap();
    assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Sets a flag when dropped, also on a panic.
pub struct Finally<'a>(pub &'a AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until the descriptor is readable.
pub fn readable(fd: impl AsFd) {
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    assert!(poll(&mut polled, Some(&TEST_TIMEOUT)).unwrap() > 0, "nothing came");
}

/// Polls until `look` returns a value. Panics with `what` after a timeout.
pub fn await_that<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = time::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        let timeout = Duration::from_secs(TEST_TIMEOUT.tv_sec.unsigned_abs());
        assert!(time::now().since(start) < timeout, "timeout waiting for: {what}");
        let _ = nanosleep(&LOOK_AGAIN);
    }
}
