//! MTU of ports whose frames pass a VXLAN netdev: compared with the route to each remote, over IPv4 and IPv6, and with a
//! remedy that causes no fragments. Needs root; makes its own namespaces.

use support::host::daemon::{Daemon, Vif, config};
use support::host::{Namespace, await_that};
use vifswitch::control::api::responses::UplinkView;

/// A host with an underlay to another one.
struct Underlay {
    host: Namespace,
    other: Namespace,
}

impl Underlay {
    fn new(mtu: u16) -> Option<Underlay> {
        let (host, other) = (Namespace::new()?, Namespace::new()?);
        host.ip(&format!("link add under mtu {mtu} type veth peer name under mtu {mtu} netns {}", other.0));
        for namespace in [&host, &other] {
            namespace.ip("link set dev under up");
        }
        host.ip("addr add 10.7.0.1/24 dev under");
        host.run_in(|| support::host::run("sysctl", &["-qw", "net.ipv6.conf.under.disable_ipv6=0"]));
        host.ip("addr add fd07::1/64 dev under nodad");
        Some(Underlay { host, other })
    }

    /// Sets the MTU of both ends.
    fn set_mtu(&self, mtu: u16) {
        for namespace in [&self.host, &self.other] {
            namespace.ip(&format!("link set dev under mtu {mtu}"));
        }
    }

    /// A VXLAN netdev with this MTU.
    fn add_tunnel(&self, attributes: &str, mtu: u16) {
        self.host.ip(&format!("link add vx1 type vxlan id 7 dstport 4789 nolearning {attributes}"));
        self.host.ip(&format!("link set dev vx1 mtu {mtu} up"));
    }

    fn add_remote(&self, remote: &str) {
        self.host.run_in(|| {
            support::host::run("bridge", &["fdb", "append", "00:00:00:00:00:00", "dev", "vx1", "dst", remote])
        });
    }

    /// A switch with a port on this netdev, on a network with MTU 1500.
    fn switch(&self, device: &str) -> (Daemon, Vif) {
        let vif =
            Vif { kind: "packet", netns: self.host.0.clone(), name: device.into(), ..Vif::new("a", 1, &self.host) };
        let daemon = Daemon::over(&[vif.clone().device(", isolate = true")]);
        daemon.await_active(&vif);
        (daemon, vif)
    }

    fn doctor(&self, daemon: &Daemon, device: &str) -> String {
        let said = daemon.try_command(&["doctor", &format!("{}:{device}", self.host.0)]);
        String::from_utf8(said.stdout).unwrap()
    }
}

/// Waits until the status reason of the port has all of these parts, and returns it.
fn await_reason(daemon: &Daemon, vif: &Vif, parts: &[&str]) -> String {
    let has = |reason: &str| parts.iter().all(|part| reason.contains(part));
    await_that(&format!("{parts:?}"), || Some(daemon.port(vif).status_reason).filter(|reason| has(reason)))
}

/// Waits until the status reason says nothing about an MTU, while the port stays open.
fn await_silence(daemon: &Daemon, vif: &Vif) {
    await_that("no word of an MTU", || (!daemon.port(vif).status_reason.contains("MTU")).then_some(()));
    let downs = daemon.events().into_iter().filter(|event| event.kind.name() == "port_down").count();
    assert_eq!(downs, 0, "the remedy is seen without opening the port again");
}

#[test]
fn the_narrowest_route_to_a_remote_counts() {
    let Some(underlay) = Underlay::new(1600) else { return };
    underlay.add_tunnel("local 10.7.0.1", 1500);
    underlay.add_remote("10.7.0.2");
    underlay.add_remote("10.7.0.3");
    underlay.host.ip("route add 10.7.0.3/32 dev under mtu 1400");
    let (daemon, vif) = underlay.switch("vx1");
    let narrow = "the route to 10.7.0.3 has MTU 1400";
    let remedy = "set the underlay's MTU to 1550, or the network's to 1350";
    await_reason(&daemon, &vif, &[narrow, "longer than 1350 bytes", "are fragmented", remedy]);
    let file = daemon.file();
    let said = String::from_utf8(daemon.try_command(&["check", file.to_str().unwrap()]).stdout).unwrap();
    assert!(said.contains(narrow) && said.contains(remedy), "{said}");
    let said = underlay.doctor(&daemon, "vx1");
    assert!(said.contains(narrow) && said.contains("a network's mtu may be up to 1350"), "{said}");
    underlay.host.ip("route change 10.7.0.3/32 dev under mtu 1550");
    await_silence(&daemon, &vif);
    // A remote that is added later.
    underlay.host.ip("route add 10.7.0.4/32 dev under mtu 1500");
    underlay.add_remote("10.7.0.4");
    await_reason(&daemon, &vif, &["the route to 10.7.0.4 has MTU 1500", "or the network's to 1450"]);
}

#[test]
fn over_ipv6_twenty_bytes_more_are_needed() {
    let Some(underlay) = Underlay::new(1550) else { return };
    underlay.add_tunnel("local fd07::1 remote fd07::2", 1500);
    let (daemon, vif) = underlay.switch("vx1");
    await_reason(
        &daemon,
        &vif,
        &["adds 70 bytes", "the route to fd07::2 has MTU 1550", "MTU to 1570, or the network's to 1480"],
    );
    underlay.set_mtu(1570);
    await_silence(&daemon, &vif);
}

#[test]
fn a_tunnel_without_known_remotes_is_not_enlarged_blindly() {
    let Some(underlay) = Underlay::new(1600) else { return };
    underlay.add_tunnel("ttl 64", 1450);
    let (daemon, vif) = underlay.switch("vx1");
    let blind = "set the network's to 1450, or, if the route to its remotes, which are not known yet, has MTU 1550 (over IPv6 1570)";
    await_reason(&daemon, &vif, &["longer frames are dropped", blind]);
    assert!(underlay.doctor(&daemon, "vx1").contains("its remotes are not known yet"));
    underlay.add_remote("10.7.0.2");
    let reason =
        await_reason(&daemon, &vif, &["longer frames are dropped; set it with `ip link set dev vx1 mtu 1500`"]);
    assert!(!reason.contains("not known"), "{reason}");
    underlay.host.ip("link set dev vx1 mtu 1500");
    await_that("no word of an MTU", || (!daemon.port(&vif).status_reason.contains("MTU")).then_some(()));
}

/// As with EVPN: the port is one end of a veth, whose other end is on a bridge with the VXLAN netdev.
#[test]
fn a_tunnel_behind_a_bridge_is_found() {
    let Some(underlay) = Underlay::new(1500) else { return };
    underlay.add_tunnel("local 10.7.0.1", 1450);
    for arguments in [
        "link add br1 type bridge mcast_snooping 0",
        "link add sw1 type veth peer name swp1",
        "link set dev swp1 master br1",
        "link set dev vx1 master br1",
        "link set dev br1 up",
        "link set dev swp1 up",
        "link set dev sw1 up",
    ] {
        underlay.host.ip(arguments);
    }
    let (daemon, vif) = underlay.switch("sw1");
    let named = format!("vx1, to which bridge br1 connects sw1 in namespace {},", underlay.host.0);
    await_reason(
        &daemon,
        &vif,
        &[&named, "under has MTU 1500", "MTU to 1550, or the network's to 1450; with the former, also"],
    );
    underlay.add_remote("10.7.0.2");
    await_reason(&daemon, &vif, &[&named, "the route to 10.7.0.2 has MTU 1500"]);
    assert!(underlay.doctor(&daemon, "sw1").contains(&named));
    // Both steps of the remedy. The first alone is none.
    underlay.set_mtu(1550);
    await_reason(&daemon, &vif, &[&named, "longer frames are dropped; set it with `ip link set dev vx1 mtu 1500`"]);
    underlay.host.ip("link set dev vx1 mtu 1500");
    await_silence(&daemon, &vif);
}

/// The same with an uplink whose tap is a port of the bridge, where it belongs.
#[test]
fn a_tunnel_behind_a_bridge_with_an_uplinks_tap_is_found() {
    let Some(underlay) = Underlay::new(1500) else { return };
    underlay.add_tunnel("local 10.7.0.1", 1450);
    for arguments in ["link add br1 type bridge mcast_snooping 0", "link set dev vx1 master br1", "link set dev br1 up"]
    {
        underlay.host.ip(arguments);
    }
    let vif = Vif { name: "sw1".into(), ..Vif::new("none", 90, &underlay.host) };
    let written = |vif: &Vif, daemon: &Daemon| {
        let text = config(&daemon.socket(), "", &[("net1", 1500)], &[]);
        format!("{text}[[uplinks]]\nid = \"up0\"\n{}\nnetworks = [{{ network_id = \"net1\" }}]\n", vif.base())
    };
    let mut daemon = Daemon::new();
    daemon.configure(&written(&vif, &daemon));
    daemon.start();
    let uplink = || daemon.get::<Vec<UplinkView>>("/v1/uplinks").remove(0);
    await_that("the uplink", || uplink().active.then_some(()));
    underlay.host.ip("link set dev sw1 master br1");
    let named = format!("vx1, to which bridge br1 connects sw1 in namespace {},", underlay.host.0);
    let await_reason = |parts: &[&str]| {
        let has = |reason: &str| parts.iter().all(|part| reason.contains(part));
        await_that(&format!("{parts:?}"), || Some(uplink().status_reason).filter(|reason| has(reason)))
    };
    let reason = await_reason(&[&named, "under has MTU 1500", "MTU to 1550, or the network's to 1450"]);
    assert!(!reason.contains("nomaster"), "{reason}");
    assert!(underlay.doctor(&daemon, "sw1").contains(&named));
    underlay.add_remote("10.7.0.2");
    await_reason(&[&named, "the route to 10.7.0.2 has MTU 1500"]);
    underlay.set_mtu(1550);
    await_reason(&[&named, "longer frames are dropped; set it with `ip link set dev vx1 mtu 1500`"]);
    underlay.host.ip("link set dev vx1 mtu 1500");
    await_that("no word of an MTU", || (!uplink().status_reason.contains("MTU")).then_some(()));
    // `check` looks behind a tap that exists.
    for arguments in ["link set dev vx1 mtu 1400", "tuntap add dev sw2 mode tap", "link set dev sw2 master br1"] {
        underlay.host.ip(arguments);
    }
    let stopped = Daemon::new();
    stopped.configure(&written(&Vif { name: "sw2".into(), ..vif }, &stopped));
    let said = String::from_utf8(stopped.try_command(&["check", stopped.file().to_str().unwrap()]).stdout).unwrap();
    assert!(said.contains("vx1, to which bridge br1 connects sw2") && said.contains("frames are dropped"), "{said}");
}
