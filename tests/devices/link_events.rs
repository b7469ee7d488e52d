//! What the kernel tells of real netdevs, in namespaces of the tests' own.
use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::host::Namespace;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use vifswitch::sys::link_events::{LinkEvents, Listener};

/// For news that is bound to come.
const TIMEOUT: Duration = Duration::from_secs(20);

struct NetdevListener {
    runtime: Runtime,
    listener: Listener,
}

impl NetdevListener {
    /// Listens in a namespace, and has heard what there is.
    fn new(namespace: &Namespace) -> NetdevListener {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let events = namespace.run_in(LinkEvents::open).unwrap();
        let listener = runtime.block_on(async { Listener::new(events) }).unwrap();
        NetdevListener { runtime, listener }
    }

    /// Waits until all of these have been heard of; also of others.
    fn await_names(&mut self, names: &[&str]) {
        let mut missing: HashSet<&str> = names.iter().copied().collect();
        while !missing.is_empty() {
            let next = self.runtime.block_on(async { timeout(TIMEOUT, self.listener.next()).await });
            let received = next.unwrap_or_else(|_| panic!("nothing was heard of {missing:?}")).unwrap();
            missing.retain(|name| !received.contains(*name));
        }
    }
}

#[test]
fn what_happens_to_a_netdev_is_heard() {
    let Some(namespace) = Namespace::new() else { return };
    let mut listener = NetdevListener::new(&namespace);
    listener.await_names(&["lo"]);
    namespace.ip("link add v0 type veth peer name v1");
    listener.await_names(&["v0", "v1"]);
    namespace.ip("link set v0 up");
    listener.await_names(&["v0"]);
    // Its other end comes up: that is its carrier.
    namespace.ip("link set v1 up");
    listener.await_names(&["v0", "v1"]);
    namespace.ip("link set v1 down");
    listener.await_names(&["v0", "v1"]);
    namespace.ip("link set v0 mtu 1400");
    listener.await_names(&["v0"]);
    namespace.ip("link set v0 down");
    listener.await_names(&["v0"]);
    namespace.ip("link set v0 name w0");
    listener.await_names(&["v0", "w0"]);
    namespace.ip("link del v1");
    listener.await_names(&["w0", "v1"]);
}

/// The kernel has more to tell than there is room for, and nobody reads meanwhile.
#[test]
fn what_was_missed_is_asked_for() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.ip("link add old type veth peer name there");
    let mut listener = NetdevListener::new(&namespace);
    listener.await_names(&["lo", "old", "there"]);
    let mut batch = String::new();
    for round in 0..2000 {
        writeln!(batch, "link set there mtu {}", 1000 + round % 400).unwrap();
    }
    // What happens at last is told of only if there is room, and there is none.
    batch += "link del old\nlink add new type veth peer name newer\n";
    let mut ip = Command::new("ip").args(["-n", &namespace.0, "-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
    listener.await_names(&["old", "there", "new", "newer"]);
    // And it goes on hearing.
    namespace.ip("link set new up");
    listener.await_names(&["new"]);
}

#[test]
fn an_ear_hears_from_a_namespace_that_its_thread_has_never_entered() {
    let (Some(one), Some(other)) = (Namespace::new(), Namespace::new()) else { return };
    let (mut listener, mut second) = (NetdevListener::new(&one), NetdevListener::new(&other));
    listener.await_names(&["lo"]);
    second.await_names(&["lo"]);
    one.ip("link add a0 type veth peer name a1");
    other.ip("link add b0 type veth peer name b1");
    listener.await_names(&["a0", "a1"]);
    second.await_names(&["b0", "b1"]);
}
