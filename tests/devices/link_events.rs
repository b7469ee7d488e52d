//! Netlink link events of real netdevs. Needs root; makes its own namespaces.
use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::host::Namespace;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use vifswitch::sys::link_events::{LinkEvents, Listener};

/// For events that must arrive.
const TIMEOUT: Duration = Duration::from_secs(20);

struct NetdevListener {
    runtime: Runtime,
    listener: Listener,
}

impl NetdevListener {
    /// Listens in a namespace; the initial dump has been read.
    fn new(namespace: &Namespace) -> NetdevListener {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let events = namespace.run_in(LinkEvents::open).unwrap();
        let listener = runtime.block_on(async { Listener::new(events) }).unwrap();
        NetdevListener { runtime, listener }
    }

    /// Waits until events of all these netdevs have arrived; ignores others.
    fn await_names(&mut self, names: &[&str]) {
        let mut missing: HashSet<&str> = names.iter().copied().collect();
        while !missing.is_empty() {
            let next = self.runtime.block_on(async { timeout(TIMEOUT, self.listener.next()).await });
            let received = next.unwrap_or_else(|_| panic!("no event of {missing:?}")).unwrap();
            missing.retain(|name| !received.contains(*name));
        }
    }
}

#[test]
fn changes_of_a_netdev_are_events() {
    let Some(namespace) = Namespace::new() else { return };
    let mut listener = NetdevListener::new(&namespace);
    listener.await_names(&["lo"]);
    namespace.ip("link add v0 type veth peer name v1");
    listener.await_names(&["v0", "v1"]);
    namespace.ip("link set v0 up");
    listener.await_names(&["v0"]);
    // The peer comes up: carrier.
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

/// The kernel has more events than the socket buffer holds while nobody reads.
#[test]
fn missed_events_cause_a_new_dump() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.ip("link add old type veth peer name there");
    let mut listener = NetdevListener::new(&namespace);
    listener.await_names(&["lo", "old", "there"]);
    let mut batch = String::new();
    for round in 0..2000 {
        writeln!(batch, "link set there mtu {}", 1000 + round % 400).unwrap();
    }
    // The last events find the buffer full.
    batch += "link del old\nlink add new type veth peer name newer\n";
    let mut ip = Command::new("ip").args(["-n", &namespace.0, "-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
    listener.await_names(&["old", "there", "new", "newer"]);
    // Later events arrive.
    namespace.ip("link set new up");
    listener.await_names(&["new"]);
}

#[test]
fn a_listener_receives_from_a_namespace_of_another_thread() {
    let (Some(one), Some(other)) = (Namespace::new(), Namespace::new()) else { return };
    let (mut listener, mut second) = (NetdevListener::new(&one), NetdevListener::new(&other));
    listener.await_names(&["lo"]);
    second.await_names(&["lo"]);
    one.ip("link add a0 type veth peer name a1");
    other.ip("link add b0 type veth peer name b1");
    listener.await_names(&["a0", "a1"]);
    second.await_names(&["b0", "b1"]);
}
