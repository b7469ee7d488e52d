//! What the kernel tells of real netdevs, in namespaces of the tests' own.

mod host;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use host::Space;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use vifswitch::sys::link_events::{LinkEvents, Listener};

/// For news that is bound to come.
const PATIENCE: Duration = Duration::from_secs(20);

struct Ear {
    runtime: Runtime,
    listener: Listener,
}

impl Ear {
    /// Listens in a namespace, and has heard what there is.
    fn new(space: &Space) -> Ear {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let events = space.within(LinkEvents::open).unwrap();
        let listener = runtime.block_on(async { Listener::new(events) }).unwrap();
        Ear { runtime, listener }
    }

    /// Waits until all of these have been heard of; also of others.
    fn hear(&mut self, names: &[&str]) {
        let mut missing: HashSet<&str> = names.iter().copied().collect();
        while !missing.is_empty() {
            let next = self.runtime.block_on(async { timeout(PATIENCE, self.listener.next()).await });
            let heard = next.unwrap_or_else(|_| panic!("nothing was heard of {missing:?}")).unwrap();
            missing.retain(|name| !heard.contains(*name));
        }
    }
}

#[test]
fn what_happens_to_a_netdev_is_heard() {
    let Some(space) = Space::new() else { return };
    let mut ear = Ear::new(&space);
    ear.hear(&["lo"]);
    space.ip("link add v0 type veth peer name v1");
    ear.hear(&["v0", "v1"]);
    space.ip("link set v0 up");
    ear.hear(&["v0"]);
    // Its other end comes up: that is its carrier.
    space.ip("link set v1 up");
    ear.hear(&["v0", "v1"]);
    space.ip("link set v1 down");
    ear.hear(&["v0", "v1"]);
    space.ip("link set v0 mtu 1400");
    ear.hear(&["v0"]);
    space.ip("link set v0 down");
    ear.hear(&["v0"]);
    space.ip("link set v0 name w0");
    ear.hear(&["v0", "w0"]);
    space.ip("link del v1");
    ear.hear(&["w0", "v1"]);
}

/// The kernel has more to tell than there is room for, and nobody reads meanwhile.
#[test]
fn what_was_missed_is_asked_for() {
    let Some(space) = Space::new() else { return };
    space.ip("link add old type veth peer name there");
    let mut ear = Ear::new(&space);
    ear.hear(&["lo", "old", "there"]);
    let mut batch = String::new();
    for round in 0..2000 {
        writeln!(batch, "link set there mtu {}", 1000 + round % 400).unwrap();
    }
    // What happens at last is told of only if there is room, and there is none.
    batch += "link del old\nlink add new type veth peer name newer\n";
    let mut ip = Command::new("ip").args(["-n", &space.0, "-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
    ear.hear(&["old", "there", "new", "newer"]);
    // And it goes on hearing.
    space.ip("link set new up");
    ear.hear(&["new"]);
}

#[test]
fn an_ear_hears_from_a_namespace_that_its_thread_has_never_entered() {
    let (Some(one), Some(other)) = (Space::new(), Space::new()) else { return };
    let (mut ear, mut second) = (Ear::new(&one), Ear::new(&other));
    ear.hear(&["lo"]);
    second.hear(&["lo"]);
    one.ip("link add a0 type veth peer name a1");
    other.ip("link add b0 type veth peer name b1");
    ear.hear(&["a0", "a1"]);
    second.hear(&["b0", "b1"]);
}
