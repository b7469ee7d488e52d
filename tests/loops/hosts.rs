//! Loops over several hosts: a guest that connects its port on one host with its port on another one, while the hosts' uplinks
//! connect them as well. Three switches, each a host with a name of its own. Needs root; makes its own namespaces.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use support::host::daemon::{Daemon, Vif, config};
use support::host::nic::{Nic, experiment};
use support::host::{Namespace, await_that};
use vifswitch::control::api::responses::{PortView, Status};
use vifswitch::control::loops::status::{LoopKind, LoopStatus};
use vifswitch::control::state::events::{Event, EventKind};
use vifswitch::time;
use vifswitch::wire::Mac;

/// Limit of each port of the guest, for broadcast, in frames a second and at once.
const LIMIT: u64 = 100;

const KEY: &str = "00112233445566778899aabbccddeeff";

/// Hosts with uplinks to one bridge.
struct Fabric {
    hosts: Vec<Daemon>,
    /// Namespaces of the hosts' devices, and of the bridge.
    _spaces: Vec<Namespace>,
}

impl Fabric {
    /// Hosts `host-0`, …, each with a port and a key.
    fn new(of: &[(&Vif, Option<&str>)]) -> Option<Fabric> {
        let outside = Namespace::new()?;
        outside.ip("link add br0 type bridge stp_state 0 mcast_snooping 0");
        outside.ip("link set dev br0 up");
        let mut spaces = Vec::new();
        let mut hosts = Vec::new();
        for (number, (vif, key)) in of.iter().enumerate() {
            let host = Namespace::new()?;
            host.ip(&format!("link add name wire type veth peer name up{number} netns {}", outside.0));
            outside.ip(&format!("link set dev up{number} master br0 up"));
            host.ip("link set dev wire up");
            hosts.push(switch(number, std::slice::from_ref(*vif), *key, Some(&host)));
            spaces.push(host);
        }
        spaces.push(outside);
        Some(Fabric { hosts, _spaces: spaces })
    }
}

/// A running switch on a host with a name of its own, with these ports on one network, and with an uplink in the namespace `wired`.
fn switch(number: usize, vifs: &[Vif], key: Option<&str>, wired: Option<&Namespace>) -> Daemon {
    let mut daemon = Daemon::new();
    let mut switch = String::new();
    if let Some(key) = key {
        let path = daemon.file().with_file_name("probe.key");
        std::fs::write(&path, format!("{key}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        switch = format!("probe_key = \"file:{}\"", path.display());
    }
    let network = &vifs[0].network;
    let mut text = config(&daemon.socket(), &switch, &[(network.as_str(), 1500)], vifs);
    if let Some(host) = wired {
        write!(
            text,
            "[[uplinks]]\nid = \"up\"\ndevice = {{ kind = \"packet\", name = \"wire\", netns = \"{}\", isolate = true }}\n\
             networks = [{{ network_id = \"{network}\" }}]\n",
            host.0
        )
        .unwrap();
    }
    daemon.configure(&text);
    let program = daemon.command();
    let mut command = Command::new("unshare");
    command.args(["--uts", "sh", "-ec", "echo \"$0\" > /proc/sys/kernel/hostname; exec \"$@\""]);
    command.arg(format!("host-{number}")).arg(program.get_program());
    for (name, _) in program.get_envs() {
        command.env_remove(name);
    }
    let file = daemon.file();
    daemon.start_as(command, "--config", &file);
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    daemon
}

/// A port of the guest that loops, with storm limits and without port security.
fn looping(number: u8, guest: &Namespace) -> Vif {
    let storm = format!("storm = {{ broadcast = {{ pps = {LIMIT}, burst = {LIMIT} }} }}");
    Vif { more: format!("port_security = \"off\"\n{storm}"), ..Vif::new("loopy", number, guest) }
}

/// The guest connects its ports.
fn bridge(guest: &Namespace) {
    guest.ip("link add gb type bridge stp_state 0 mcast_snooping 0");
    for name in ["tap1", "tap2"] {
        guest.ip(&format!("link set dev {name} master gb"));
    }
    guest.ip("link set dev gb up");
}

fn events(daemon: &Daemon, kind: EventKind) -> Vec<Event> {
    daemon.events().into_iter().filter(|event| event.kind == kind).collect()
}

fn loops(daemon: &Daemon) -> Vec<LoopStatus> {
    daemon.get("/v1/loops")
}

/// A frame that circulates.
fn noise(from: Mac) -> Vec<u8> {
    experiment(Mac::BROADCAST, from, b"noise, which circulates through two hosts and a guest")
}

#[test]
fn a_loop_over_two_hosts_is_found_and_cut_by_one_of_them() {
    let (Some(guest), Some(third)) = (Namespace::new(), Namespace::new()) else { return };
    let vifs = [looping(1, &guest), looping(2, &guest), Vif::new("bystander", 3, &third)];
    let Some(fabric) = Fabric::new(&[(&vifs[0], Some(KEY)), (&vifs[1], Some(KEY)), (&vifs[2], None)]) else { return };
    let [a, b, _] = &fabric.hosts[..] else { unreachable!() };
    bridge(&guest);
    let bystander = Nic::new(&third, "tap3");
    let begin = time::now();
    bystander.send(&noise(vifs[2].mac));
    // Named on both hosts, with the guest's ports on both.
    for (number, (host, other)) in [(a, "host-1"), (b, "host-0")].into_iter().enumerate() {
        let event = await_that(&format!("the loop on host-{number}"), || events(host, EventKind::LoopStart).pop());
        assert_eq!((event.vm.as_deref(), event.network.as_deref()), (Some("loopy"), Some("net1")), "{event:?}");
        let mut ports = event.ports.clone();
        ports.sort();
        assert_eq!(ports, ["port-1", "port-2"], "{event:?}");
        let named = [
            format!("port \"port-{}\" (#0) of VM \"loopy\"", number + 1),
            format!("of VM \"loopy\" on host {other:?}"),
        ];
        assert!(named.iter().all(|part| event.text.contains(part)), "{}", event.text);
        let of = &loops(host)[0];
        assert_eq!(
            (of.kind, &of.hosts[..], &of.device_id[..]),
            (LoopKind::CrossHost, &[other.to_owned()][..], "loopy")
        );
    }
    // One of the two ports is quarantined, that on host-1, and the other host says so.
    let status = |daemon: &Daemon, vif: &Vif| -> PortView { daemon.port(vif) };
    await_that("the quarantine", || (status(b, &vifs[1]).status == Status::Quarantined).then_some(()));
    await_that("host-0 to know it", || {
        loops(a)[0].measures.contains("port \"port-2\" is quarantined by host \"host-1\"").then_some(())
    });
    assert_eq!(status(a, &vifs[0]).status, Status::Active, "{:#?}", loops(a));
    let seconds = time::now().since(begin).as_secs_f64();
    let copies = bystander.rest().iter().filter(|frame| **frame == noise(vifs[2].mac)).count();
    let most = 2.0 * (LIMIT as f64 * seconds + LIMIT as f64 + 1.0);
    assert!(copies as f64 <= most, "{copies} copies in {seconds} s");
    // It is cut: a further frame comes back by no host.
    let after = experiment(Mac::BROADCAST, vifs[2].mac, b"after the quarantine");
    bystander.send(&after);
    let guest_nic = Nic::new(&guest, "tap1");
    let marker = |number: u8| experiment(Mac::BROADCAST, vifs[0].mac, &[number; 46]);
    for number in 0..3 {
        guest_nic.send(&marker(number));
        let seen = bystander.take_until(&marker(number));
        assert!(!seen.contains(&after), "a frame has circulated after the quarantine");
        assert_eq!(seen.iter().filter(|frame| **frame == noise(vifs[2].mac)).count(), 0, "the storm goes on");
    }
    // None of the probes was taken for a forgery, and the key is nowhere to be read.
    for host in [a, b] {
        assert_eq!(host.drops(if std::ptr::eq(host, a) { &vifs[0] } else { &vifs[1] }, "probe_forged"), 0);
        for page in ["/v1/config", "/v1/status", "/v1/loops", "/v1/events", "/metrics"] {
            assert!(!host.page(page).contains(KEY), "{page}");
        }
        assert!(!host.log().contains(KEY));
    }
    // It ends like any loop.
    guest.ip("link del dev gb");
    b.done(&["release", "port-2"], "");
    a.done(&["release", "port-1"], "");
    await_that("the release", || (status(b, &vifs[1]).status == Status::Active).then_some(()));
    assert!([a, b].iter().all(|host| loops(host).iter().all(|of| !of.active)), "{:#?}", loops(b));
}

/// The guest bridges its ports, and each host drops the probes of the other one for this reason; none finds a loop.
fn meets_no_loop(guest: &Namespace, fabric: &Fabric, vifs: &[Vif; 2], reason: &str) {
    bridge(guest);
    // The guest's bridge sends from an address of its own.
    Nic::new(guest, "gb").send(&noise(Mac::from_bits(0x0200_0000_0999)));
    let ports = || fabric.hosts.iter().zip(vifs);
    let have_met = || ports().all(|(host, vif)| host.drops(vif, reason) >= 3).then_some(());
    await_that("probes of the other host", have_met);
    for (host, vif) in ports() {
        assert!(loops(host).is_empty(), "{:#?}", loops(host));
        assert_eq!(host.port(vif).status, Status::Active);
    }
}

/// Neither a host with another key nor one without is believed.
#[test]
fn hosts_with_different_keys_do_not_recognise_each_other() {
    let Some(guest) = Namespace::new() else { return };
    let vifs = [looping(1, &guest), looping(2, &guest)];
    let other = KEY.replace('0', "f");
    let Some(fabric) = Fabric::new(&[(&vifs[0], Some(KEY)), (&vifs[1], Some(&other))]) else { return };
    meets_no_loop(&guest, &fabric, &vifs, "probe_forged");
}

/// Two hosts with the same key, whose ports of the guest are on networks of different names: none of their business.
#[test]
fn ports_on_different_networks_are_no_loop() {
    let Some(guest) = Namespace::new() else { return };
    let vifs = [looping(1, &guest), looping(2, &guest).on("net2")];
    let Some(fabric) = Fabric::new(&[(&vifs[0], Some(KEY)), (&vifs[1], Some(KEY))]) else { return };
    meets_no_loop(&guest, &fabric, &vifs, "probe");
}

/// A host whose network has no uplink is connected by the guest alone: that is its only connection, and is not cut, whatever a
/// storm makes of the port on the other host.
#[test]
fn a_host_without_uplinks_keeps_its_only_connection() {
    let (Some(guest), Some(host), Some(outside)) = (Namespace::new(), Namespace::new(), Namespace::new()) else {
        return;
    };
    host.ip(&format!("link add name wire type veth peer name up0 netns {}", outside.0));
    outside.ip("link set dev up0 up");
    host.ip("link set dev wire up");
    let vifs = [looping(1, &guest), looping(2, &guest)];
    let a = switch(0, &vifs[..1], Some(KEY), Some(&host));
    let b = switch(1, &vifs[1..], Some(KEY), None);
    bridge(&guest);
    let nic = Nic::new(&guest, "gb");
    await_that("probes of the other host", || {
        (0..2 * LIMIT).for_each(|_| drop(nic.try_send(&noise(Mac::from_bits(0x0200_0000_0999)))));
        (b.drops(&vifs[1], "probe") >= 3).then_some(())
    });
    assert!(loops(&b).is_empty(), "{:#?}", loops(&b));
    assert_eq!(b.port(&vifs[1]).status, Status::Active);
    assert_eq!(a.port(&vifs[0]).status, Status::Active);
}

/// Probes have this destination group.
fn is_probe(frame: &[u8]) -> bool {
    frame[..6] == [0x03, 0x76, 0x69, 0x66, 0x73, 0x77]
}

/// Pending frames, also those of the switch.
fn all(nic: &Nic) -> impl Iterator<Item = Vec<u8>> {
    std::iter::from_fn(|| nic.try_take_any())
}

/// A VM with one port is not probed, until a station flaps between its port and an uplink; also without a shared key.
#[test]
fn a_single_port_is_probed_when_a_station_flaps_between_it_and_an_uplink() {
    let spaces = (0..4).map(|_| Namespace::new()).collect::<Option<Vec<_>>>();
    let Some([guest, pair, host, outside]) = spaces.as_deref() else { return };
    host.ip(&format!("link add name wire type veth peer name up0 netns {}", outside.0));
    outside.ip("link set dev up0 up");
    host.ip("link set dev wire up");
    let single = Vif { more: "port_security = \"off\"".into(), ..Vif::new("single", 1, guest) };
    let vifs = [single, Vif::new("pair", 2, pair), Vif::new("pair", 3, pair)];
    let daemon = switch(0, &vifs, None, Some(host));
    let [nic, sibling, wire] = [(guest, "tap1"), (pair, "tap2"), (outside, "up0")].map(|(of, name)| Nic::new(of, name));
    let mut probes = 0;
    await_that("three probes of a sibling", || {
        probes += all(&sibling).filter(|frame| is_probe(frame)).count();
        (probes >= 3).then_some(())
    });
    assert!(!all(&nic).any(|frame| is_probe(&frame)), "a single port");
    let roaming = Mac::from_bits(0x0200_0000_0aaa);
    await_that("a probe of the single port", || {
        // More moves than are allowed within a second.
        (0..40u8).find_map(|number| {
            let [there, back] = [b"there", b"back!"]
                .map(|way| experiment(Mac::BROADCAST, roaming, &[&way[..], &[number; 60]].concat()));
            nic.send(&there);
            wire.take_until(&there);
            wire.send(&back);
            let mut is_probed = false;
            await_that("the frame from outside", || {
                all(&nic)
                    .any(|frame| {
                        is_probed |= is_probe(&frame);
                        frame == back
                    })
                    .then_some(())
            });
            is_probed.then_some(())
        })
    });
    assert!(loops(&daemon).is_empty(), "none has returned: {:#?}", loops(&daemon));
}
