//! Ports that end with their network namespace, also over a kill of the switch, and those that must not. Needs root; makes
//! its own namespaces.

use std::collections::BTreeSet;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use support::host::daemon::{Daemon, Vif, config, keeping};
use support::host::inject::Injected;
use support::host::{Inhabitant, Namespace, await_that, program};
use vifswitch::control::api::responses::Status;
use vifswitch::control::state::events::{Event, EventKind};

/// The port, with this lifetime.
fn ends(vif: Vif) -> Vif {
    Vif { more: format!("{}\nlifetime = \"netns\"", vif.more), ..vif }
}

/// A running switch with a state and these ports.
fn running(vifs: &[Vif]) -> Daemon {
    let mut daemon = Daemon::new();
    daemon.configure(&keeping(&config(&daemon.socket(), "", &[("net1", 1500)], vifs), &daemon.state()));
    daemon.start();
    daemon
}

/// Ports in the configuration, in order.
fn configured(daemon: &Daemon) -> Vec<String> {
    let config: Value = daemon.get("/v1/config");
    let vms = config["vms"].as_array().unwrap().iter();
    let ports = vms.flat_map(|vm| vm["ports"].as_array().unwrap());
    ports.map(|port| port["port_id"].as_str().unwrap().to_owned()).collect()
}

fn ids(vifs: &[&Vif]) -> Vec<String> {
    vifs.iter().map(|vif| vif.port.clone()).collect()
}

/// Waits until these ports, and no others, are configured and shown.
fn await_left(daemon: &Daemon, vifs: &[&Vif]) {
    await_that("the ports to end", || (configured(daemon) == ids(vifs)).then_some(()));
    await_that("no others to be shown", || (daemon.listed() == ids(vifs)).then_some(()));
}

/// The end of each port, as events have reported it.
fn ended(daemon: &Daemon) -> Vec<Event> {
    daemon.events().into_iter().filter(|event| event.kind == EventKind::PortEnded).collect()
}

/// Generations that ends of namespaces have made, the newest first.
fn made(daemon: &Daemon) -> Vec<Value> {
    let history: Vec<Value> = daemon.get("/v1/history");
    history.into_iter().filter(|entry| entry["source"] == "netns").collect()
}

fn generation(daemon: &Daemon) -> u64 {
    daemon.get::<Value>("/v1/status")["desired_generation"].as_u64().unwrap()
}

/// The status code of a port.
fn code(daemon: &Daemon, vif: &Vif) -> String {
    daemon.port(vif).status_code
}

fn await_code(daemon: &Daemon, vif: &Vif, wanted: &str) -> String {
    daemon.await_port(wanted, vif, |port| port.status_code == wanted).status_reason
}

#[test]
fn ports_end_with_their_namespace_and_all_others_stay() {
    let (Some(gone), Some(other)) = (Namespace::new(), Namespace::new()) else { return };
    let vifs = [
        Vif::new("vm", 1, &other),
        ends(Vif::new("vm", 2, &gone)),
        // In the same namespace, and not to end with it.
        Vif::new("vm", 3, &gone),
        ends(Vif::new("vm", 4, &gone)),
        ends(Vif::new("vm", 5, &other)),
        ends(Vif::new("alone", 6, &gone)),
    ];
    let daemon = running(&vifs);
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    assert_eq!((daemon.port(&vifs[0]).lifetime, daemon.port(&vifs[1]).lifetime), ("config".into(), "netns".into()));
    let before = generation(&daemon);
    gone.delete();
    await_left(&daemon, &[&vifs[0], &vifs[2], &vifs[4]]);
    assert_eq!(daemon.await_down(&vifs[2]).status_code, "no_namespace");
    assert_eq!(daemon.port(&vifs[4]).status, Status::Active);
    let config: Value = daemon.get("/v1/config");
    assert_eq!(config["vms"].as_array().unwrap().len(), 1, "a VM without ports and settings is removed: {config}");

    let events = ended(&daemon);
    let ports: Vec<&str> = events.iter().flat_map(|event| &event.ports).map(String::as_str).collect();
    assert_eq!(ports, ["port-2", "port-4", "port-6"], "{events:?}");
    let vms: Vec<&str> = events.iter().filter_map(|event| event.vm.as_deref()).collect();
    assert_eq!(vms, ["vm", "vm", "alone"]);
    for event in &events {
        assert_eq!(event.network.as_deref(), Some("net1"));
        let by = event.by.as_ref().unwrap();
        assert_eq!((by.pid, by.request_id.as_str()), (Some(daemon.pid()), "vifswitch"));
    }
    // One namespace, one change.
    let made = made(&daemon);
    assert_eq!((made.len(), generation(&daemon)), (1, before + 1), "{made:?}");
    assert_eq!((&made[0]["generation"], &made[0]["by"]["pid"]), (&(before + 1).into(), &daemon.pid().into()));
    let changes = made[0]["changes"].to_string();
    assert!(["port-2", "port-4", "port-6"].iter().all(|port| changes.contains(port)), "{changes}");
    assert!(!changes.contains("port-3") && !changes.contains("port-5"), "{changes}");
}

#[test]
fn a_port_whose_namespace_ends_while_the_switch_is_down_ends_at_the_start() {
    let (Some(gone), Some(other)) = (Namespace::new(), Namespace::new()) else { return };
    let stays = ends(Vif::new("vm", 1, &other));
    let goes = ends(Vif::new("vm", 2, &gone));
    let mut daemon = running(std::slice::from_ref(&stays));
    // Answered, and so stored, also if the switch is killed at once.
    daemon.attach(&goes);
    daemon.stop(Signal::KILL);
    gone.delete();
    daemon.start();
    await_left(&daemon, &[&stays]);
    assert_eq!(daemon.await_active(&stays).status, Status::Active);
    assert_eq!(ended(&daemon).iter().flat_map(|event| event.ports.clone()).collect::<Vec<_>>(), ids(&[&goes]));
    assert_eq!(made(&daemon).len(), 1);
    // And so it is at the next start.
    daemon.stop(Signal::KILL);
    daemon.start();
    assert_eq!(configured(&daemon), ids(&[&stays]));
    daemon.await_active(&stays);
}

#[test]
fn another_namespace_with_the_same_name_is_not_taken_for_the_one_that_has_ended() {
    let Some(namespace) = Namespace::new() else { return };
    let (tap, by_path) = (ends(Vif::new("vm", 1, &namespace)), ends(Vif::new("vm", 2, &namespace)));
    let by_path = Vif { netns: format!("/run/netns/../netns/{}", namespace.0), ..by_path };
    let mut daemon = running(&[]);
    [&tap, &by_path].into_iter().for_each(|vif| drop(daemon.attach(vif)));
    daemon.stop(Signal::KILL);
    // The kernel may give the new one the inode of the old one.
    namespace.delete();
    namespace.make();
    let ups = |daemon: &Daemon| daemon.events().iter().filter(|event| event.kind == EventKind::PortUp).count();
    daemon.start();
    await_left(&daemon, &[]);
    assert_eq!((ups(&daemon), ended(&daemon).len()), (2, 2), "{:?}", daemon.events());
    assert_eq!(namespace.links(), ["lo"], "nothing was made in the new one");
    // While the switch runs, too.
    daemon.attach(&tap);
    daemon.await_active(&tap);
    daemon.signal(Signal::STOP);
    namespace.delete();
    namespace.make();
    daemon.signal(Signal::CONT);
    await_left(&daemon, &[]);
    assert_eq!((ups(&daemon), ended(&daemon).len()), (3, 3), "{:?}", daemon.events());
    assert_eq!(namespace.links(), ["lo"]);
    // The id is free for a port in the new one.
    daemon.attach(&tap);
    daemon.await_active(&tap);
    assert_eq!(namespace.links(), ["lo", &tap.name]);
}

/// A port of a namespace that has ended while no switch ran is in the way of no change, not even of the first one.
#[test]
fn a_port_can_be_attached_in_the_next_namespace_at_once_after_a_start() {
    let Some(namespace) = Namespace::new() else { return };
    let vif = ends(Vif::new("vm", 1, &namespace));
    let mut daemon = running(&[]);
    for round in 1..=3 {
        daemon.attach(&vif);
        daemon.await_active(&vif);
        daemon.stop(Signal::KILL);
        namespace.end();
        namespace.make();
        daemon.start();
        daemon.attach(&vif);
        daemon.await_active(&vif);
        assert_eq!(namespace.links(), ["lo", &vif.name]);
        assert_eq!(ended(&daemon).len(), 2 * round - 1, "{:?}", daemon.events());
        // It is bound to this one.
        namespace.delete();
        await_left(&daemon, &[]);
        assert_eq!(ended(&daemon).len(), 2 * round);
        namespace.make();
    }
}

#[test]
fn a_namespace_without_a_name_takes_its_port_along_when_its_last_process_ends() {
    let Some(namespace) = Namespace::new() else { return };
    let vif = ends(Vif::new("vm", 1, &namespace));
    let inhabitant = Inhabitant::of(&namespace);
    let mut daemon = running(&[]);
    daemon.attach(&vif);
    daemon.await_active(&vif);
    namespace.delete();
    let why = await_code(&daemon, &vif, "namespace_unnamed");
    assert!(why.contains("still exists"), "{why}");
    // Also for a switch that starts now.
    daemon.stop(Signal::KILL);
    daemon.start();
    await_code(&daemon, &vif, "namespace_unnamed");
    assert_eq!(ended(&daemon), []);
    drop(inhabitant);
    await_left(&daemon, &[]);
    assert_eq!(ended(&daemon).len(), 1);
}

#[test]
fn a_namespace_named_by_a_process_ends_with_the_process() {
    let Some(namespace) = Namespace::planned() else { return };
    let inhabitants = [Inhabitant::alone(), Inhabitant::alone()];
    let [first, second] = [0, 1].map(|at| {
        let number = at as u8 + 1;
        ends(Vif { netns: inhabitants[at].netns(), ..Vif::new("vm", number, &namespace) })
    });
    let daemon = running(&[]);
    [&first, &second].into_iter().for_each(|vif| drop(daemon.attach(vif)));
    [&first, &second].into_iter().for_each(|vif| drop(daemon.await_active(vif)));
    let [ends_first, ends_second] = inhabitants;
    drop(ends_second);
    await_left(&daemon, &[&first]);
    assert_eq!(daemon.await_active(&first).status, Status::Active);
    drop(ends_first);
    await_left(&daemon, &[]);
}

/// While the switch can open no file, it cannot tell what the name leads to.
#[test]
fn a_namespace_that_cannot_be_read_keeps_its_port() {
    let (Some(guest), Some(host)) = (Namespace::new(), Namespace::new()) else { return };
    host.ip(&format!("link add tap1 type veth peer name tap1 netns {}", guest.0));
    host.ip("link set tap1 up");
    guest.ip("link set tap1 up");
    let [up, down] = [1, 2].map(|number| {
        let by_path = format!("/run/netns/../netns/{}", host.0);
        ends(Vif { kind: "packet", netns: by_path, ..Vif::new("vm", number, &host) })
    });
    host.ip("link add tap2 type veth peer name guest2");
    host.ip("link set tap2 up");
    host.ip("link set guest2 up");
    let daemon = running(&[up.clone(), down.clone()]);
    [&up, &down].into_iter().for_each(|vif| drop(daemon.await_active(vif)));
    host.ip("link del tap2");
    daemon.await_down(&down);
    for error in ["EACCES", "EMFILE", "ENFILE", "ENOMEM", "EIO"] {
        let Some(failing) = Injected::everywhere(&daemon, "open,openat", &format!("error={error}")) else { return };
        let before = failing.count();
        await_that("several looks", || (failing.count() > before + 8).then_some(()));
        daemon.await_port("what is unknown", &down, |port| port.status_reason.contains("cannot be told"));
        drop(failing);
        daemon.await_port("what is known", &down, |port| !port.status_reason.contains("cannot be told"));
        assert_eq!(code(&daemon, &up), "ok");
    }
    assert_eq!(configured(&daemon), ids(&[&up, &down]));
    assert_eq!(ended(&daemon), []);
    host.ip("link add tap2 type veth peer name guest2");
    host.ip("link set tap2 up");
    host.ip("link set guest2 up");
    daemon.await_active(&down);
    host.delete();
    await_left(&daemon, &[]);
}

/// A switch that is started in another mount namespace does not see the name, and the kernel still tells it the truth.
#[test]
fn a_name_that_the_switch_does_not_see_ends_no_port() {
    let Some(namespace) = Namespace::new() else { return };
    let vif = ends(Vif::new("vm", 1, &namespace));
    let mut daemon = running(&[]);
    daemon.attach(&vif);
    daemon.await_active(&vif);
    daemon.stop(Signal::KILL);
    let mut hidden = daemon.command();
    let variables: Vec<_> = hidden.get_envs().map(|(name, _)| name.to_owned()).collect();
    hidden = Command::new("unshare");
    for name in variables {
        hidden.env_remove(name);
    }
    let path = format!("/run/netns/{}", namespace.0);
    hidden.args(["--mount", "--propagation", "private", "sh", "-c", "umount \"$0\" && exec \"$@\"", &path, program()]);
    let file = daemon.file();
    daemon.start_as(hidden, "--config", &file);
    let why = await_code(&daemon, &vif, "namespace_unnamed");
    assert!(why.contains("mount namespace"), "{why}");
    assert_eq!((configured(&daemon), ended(&daemon)), (ids(&[&vif]), vec![]));
    namespace.delete();
    await_left(&daemon, &[]);
    assert_eq!(ended(&daemon).len(), 1);
}

#[test]
fn many_namespaces_that_end_at_once_are_few_changes() {
    const MANY: u8 = 24;
    let Some(first) = Namespace::new() else { return };
    let more: Vec<Namespace> = (1..MANY).map(|_| Namespace::new().unwrap()).collect();
    let spaces: Vec<&Namespace> = std::iter::once(&first).chain(&more).collect();
    let vifs: Vec<Vif> = spaces
        .iter()
        .zip(1..)
        .map(|(namespace, number)| ends(Vif::new(&format!("vm{number}"), number, namespace)))
        .collect();
    let daemon = running(&vifs);
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    // It learns of all of them together.
    daemon.signal(Signal::STOP);
    spaces.iter().for_each(|namespace| namespace.delete());
    daemon.signal(Signal::CONT);
    await_left(&daemon, &[]);
    let reported: BTreeSet<String> = ended(&daemon).into_iter().flat_map(|event| event.ports).collect();
    assert_eq!(reported, vifs.iter().map(|vif| vif.port.clone()).collect());
    let made = made(&daemon);
    assert!(made.len() < usize::from(MANY) / 2, "{} changes", made.len());
}

/// A change that waits to be confirmed is not mixed with the end of a port, and a port that it has removed is bound to its
/// namespace again when it is taken back.
#[test]
fn an_ended_port_goes_when_the_unconfirmed_change_is_settled() {
    let (Some(first), Some(second)) = (Namespace::new(), Namespace::new()) else { return };
    let (goes, returns) = (ends(Vif::new("vm", 1, &first)), ends(Vif::new("vm", 2, &second)));
    let daemon = running(&[]);
    [&goes, &returns].into_iter().for_each(|vif| drop(daemon.attach(vif)));
    let without =
        keeping(&config(&daemon.socket(), "", &[("net1", 1500)], std::slice::from_ref(&goes)), &daemon.state());
    daemon.configure(&without);
    let file = daemon.file();
    daemon.done(&["apply", file.to_str().unwrap(), "--confirm", "60"], "");
    assert_eq!(configured(&daemon), ids(&[&goes]));
    first.delete();
    second.delete();
    let why = await_code(&daemon, &goes, "namespace_ended");
    assert!(why.contains("is removed as soon as"), "{why}");
    assert_eq!((configured(&daemon), ended(&daemon)), (ids(&[&goes]), vec![]));
    daemon.done(&["confirm", "--cancel"], "");
    await_left(&daemon, &[]);
    assert_eq!(ended(&daemon).len(), 2);
}

/// The lifetime of a port may be changed while it is open.
#[test]
fn a_port_is_bound_to_its_namespace_when_its_lifetime_is_set() {
    let Some(namespace) = Namespace::new() else { return };
    let (vif, kept) = (Vif::new("vm", 1, &namespace), ends(Vif::new("vm", 2, &namespace)));
    let mut daemon = running(&[vif.clone(), kept.clone()]);
    [&vif, &kept].into_iter().for_each(|vif| drop(daemon.await_active(vif)));
    daemon.done(&["set", &vif.port, "lifetime=netns"], "");
    daemon.done(&["set", &kept.port, "lifetime="], "");
    daemon.await_stored(&format!("\"netns\":\"{}\",\"port_id\":\"{}\"", vif.netns, vif.port));
    daemon.stop(Signal::KILL);
    namespace.delete();
    daemon.start();
    await_left(&daemon, &[&kept]);
}

#[test]
fn subports_end_with_their_parent() {
    let Some(namespace) = Namespace::new() else { return };
    let Some(other) = Namespace::new() else { return };
    let parent = ends(Vif::new("vm", 1, &namespace));
    let subport = Vif::new("vm", 2, &namespace).subport_of(&parent, 7);
    let sibling = Vif::new("vm", 3, &other);
    let daemon = running(&[parent.clone(), subport.clone(), sibling.clone()]);
    [&parent, &subport, &sibling].into_iter().for_each(|vif| drop(daemon.await_active(vif)));
    let refused = daemon.run_command(&["set", &subport.port, "lifetime=netns"], "");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("a subport ends with its parent"), "{refused:?}");
    namespace.delete();
    await_left(&daemon, &[&sibling]);
    let reported: BTreeSet<String> = ended(&daemon).into_iter().flat_map(|event| event.ports).collect();
    assert_eq!(reported, [parent.port, subport.port].into());
}
