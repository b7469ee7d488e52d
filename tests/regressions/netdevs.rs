//! Properties of netdevs are read at opening and watched, and changes are reported. Needs root; makes its own
//! namespaces.

use std::process::Command;

use serde_json::Value;

use super::trunk_tags::bridge;
use support::host::daemon::{Daemon, Vif, config};
use support::host::nic::{Nic, experiment};
use support::host::setup::{lay, tcp_both_ways};
use support::host::{Namespace, await_that, run};
use vifswitch::time;
use vifswitch::wire::Mac;

/// A port in the API, with keys that this build may not know.
fn shown(daemon: &Daemon, port: &str) -> Value {
    let ports: Value = daemon.get("/v1/ports");
    ports.as_array().unwrap().iter().find(|shown| shown["port_id"] == port).unwrap().clone()
}

/// Waits until the status reason of a port contains all of these texts.
fn await_reason(daemon: &Daemon, vif: &Vif, chunks: &[&str]) {
    let has = |reason: &str| chunks.iter().all(|piece| reason.contains(piece));
    await_that(&format!("{chunks:?} in the reason of {}", vif.port), || {
        shown(daemon, &vif.port)["status_reason"].as_str().is_some_and(has).then_some(())
    });
}

/// Texts of the events of this kind about a port.
fn events(daemon: &Daemon, kind: &str, vif: &Vif) -> Vec<String> {
    let lines = daemon.page("/v1/events");
    let all = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let about = all.filter(|event| event["kind"] == kind && event["ports"][0] == vif.port);
    about.map(|event| event["text"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Waits for an event that names VM, port and network, with this in its text.
fn await_event(daemon: &Daemon, vif: &Vif, piece: &str) {
    await_that(&format!("an event with {piece:?}"), || {
        let page = daemon.page("/v1/events");
        let mut all = page.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_it = |event: &Value| event["kind"] == "netdev_changed" && event["text"].to_string().contains(piece);
        let event = all.find(is_it)?;
        assert_eq!((&event["vm"], &event["ports"][0]), (&vif.vm.as_str().into(), &vif.port.as_str().into()), "{event}");
        assert_eq!(event["network"], vif.network, "{event}");
        Some(())
    });
}

/// A switch in `namespace`, which is then the host's namespace to it.
fn living_in(namespace: &Namespace, vifs: &[Vif]) -> Daemon {
    let mut daemon = Daemon::new();
    let text = config(&daemon.socket(), "", &[("net1", 1500)], vifs);
    daemon.configure(&text.replace(&format!(", netns = \"{}\"", namespace.0), ""));
    let program = daemon.command();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &namespace.0]).arg(program.get_program());
    for (name, _) in program.get_envs() {
        command.env_remove(name);
    }
    let file = daemon.file();
    daemon.start_as(command, "--config", &file);
    daemon
}

#[test]
fn changes_of_a_tap_are_reported_with_both_values() {
    let Some(namespace) = Namespace::new() else { return };
    let vif = Vif::new("a", 1, &namespace);
    let daemon = Daemon::over(std::slice::from_ref(&vif));
    daemon.await_active(&vif);
    namespace.ip("link set dev tap1 address 02:99:99:99:99:99");
    let address = format!("has MAC address 02:99:99:99:99:99, port has {}", vif.mac);
    await_reason(&daemon, &vif, &["tap1", &address]);
    await_event(&daemon, &vif, &address);
    namespace.ip("link set dev tap1 mtu 900");
    await_reason(&daemon, &vif, &[&address, "has MTU 900, port has 1500"]);
    await_event(&daemon, &vif, "has MTU 900, port has 1500");
    namespace.ip("link add br0 type bridge mcast_snooping 0");
    namespace.ip("link set dev tap1 master br0");
    await_reason(&daemon, &vif, &["has master br0, port has none"]);
    await_event(&daemon, &vif, "has master br0, port has none");
    // In a namespace of others, their change stays.
    let link = namespace.link("tap1").unwrap();
    assert_eq!((link.mac, link.mtu), (Mac::from_bits(0x0299_9999_9999), 900));
    // Restored: no reason is left.
    namespace.ip("link set dev tap1 nomaster");
    namespace.ip(&format!("link set dev tap1 mtu 1500 address {}", vif.mac));
    await_event(&daemon, &vif, "as the port has it again");
    assert_eq!(shown(&daemon, &vif.port)["status_reason"], "");
}

#[test]
fn a_renamed_moved_or_down_tap_is_reported() {
    let (Some(ns), Some(elsewhere)) = (Namespace::new(), Namespace::new()) else { return };
    let vif = Vif::new("a", 1, &ns);
    let daemon = Daemon::over(std::slice::from_ref(&vif));
    daemon.await_active(&vif);
    ns.ip("link set dev tap1 down");
    await_reason(&daemon, &vif, &["link is down", "ip link set dev tap1 up"]);
    assert_eq!(shown(&daemon, &vif.port)["status"], "DOWN");
    ns.ip("link set dev tap1 name blue");
    ns.ip("link set dev blue up");
    await_reason(&daemon, &vif, &["has name blue, port has tap1"]);
    assert_eq!(shown(&daemon, &vif.port)["status"], "ACTIVE");
    // The same netdev, followed under its new name.
    ns.ip("link set dev blue address 02:99:99:99:99:99");
    await_reason(&daemon, &vif, &["has MAC address 02:99:99:99:99:99"]);
    ns.ip(&format!("link set dev blue netns {}", elsewhere.0));
    await_reason(&daemon, &vif, &["moved to another namespace"]);
}

#[test]
fn a_tap_of_the_switch_in_the_host_namespace_is_corrected() {
    let Some(namespace) = Namespace::new() else { return };
    let vif = Vif::new("a", 1, &namespace);
    let daemon = living_in(&namespace, std::slice::from_ref(&vif));
    daemon.await_active(&vif);
    let before = namespace.link("tap1").unwrap();
    let mut pause = std::time::Duration::ZERO;
    for change in ["mtu 900", "address 02:99:99:99:99:99", "down"] {
        namespace.ip(&format!("link set dev tap1 {change}"));
        let start = time::now();
        await_that(&format!("put right after {change:?}"), || {
            (namespace.link("tap1").unwrap() == before).then_some(())
        });
        pause = pause.max(time::now().since(start));
    }
    await_event(&daemon, &vif, "had MTU 900, port has 1500; restored");
    await_that("ACTIVE without a reason", || {
        let shown = shown(&daemon, &vif.port);
        (shown["status"] == "ACTIVE" && shown["status_reason"] == "").then_some(())
    });
    // Repeated changes are corrected at a limited rate, and the port reports the difference in between.
    let start = time::now();
    for _ in 0..100 {
        namespace.ip("link set dev tap1 mtu 900");
        namespace.ip("link set dev tap1 mtu 1500");
    }
    namespace.ip("link set dev tap1 mtu 900");
    let restored = || events(&daemon, "netdev_changed", &vif).iter().filter(|text| text.contains("; restored")).count();
    let elapsed = time::now().since(start).as_secs() + pause.as_secs();
    // The pause doubles, starting at one second.
    let most = 5 + usize::try_from(elapsed.checked_ilog2().unwrap_or(0)).unwrap();
    assert!(restored() <= most, "{} in {elapsed} s: {:#?}", restored(), events(&daemon, "netdev_changed", &vif));
}

#[test]
fn constant_address_changes_do_not_flood_the_log() {
    let Some(namespace) = Namespace::new() else { return };
    let vif = Vif::new("a", 1, &namespace);
    let daemon = Daemon::over(std::slice::from_ref(&vif));
    daemon.await_active(&vif);
    let start = time::now();
    for number in 0..100 {
        namespace.ip(&format!("link set dev tap1 address 02:99:00:00:00:{number:02x}"));
    }
    await_reason(&daemon, &vif, &["has MAC address 02:99:00:00:00:63"]);
    let reported = events(&daemon, "netdev_changed", &vif).len() as u64;
    assert!(reported >= 1, "the event");
    assert!(reported <= 9 + time::now().since(start).as_secs() / 10, "{reported} events");
}

#[test]
fn changes_of_a_foreign_netdev_are_reported() {
    let (Some(host), Some(guest)) = (Namespace::new(), Namespace::new()) else { return };
    for (number, kind) in [(1, "packet"), (2, "xdp")] {
        let vif = Vif { kind, netns: host.0.clone(), ..Vif::new("a", number, &guest) };
        lay(&vif, &guest, 1500);
        let daemon = Daemon::over(std::slice::from_ref(&vif));
        daemon.await_active(&vif);
        host.ip(&format!("link set dev {} address 02:99:99:99:99:99", vif.name));
        await_event(&daemon, &vif, "and is 02:99:99:99:99:99");
        host.ip(&format!("link add br{number} type bridge mcast_snooping 0"));
        host.ip(&format!("link set dev {} master br{number}", vif.name));
        await_reason(&daemon, &vif, &[&format!("has master br{number}, port has none"), "nomaster"]);
        await_event(&daemon, &vif, "has master");
    }
}

/// One flow for each of 64 source ports, from a guest whose netdev distributes them over its queues.
fn flows(guest: &Namespace, to: &str) {
    guest.run_in(|| {
        for port in 20_000..20_064 {
            let socket = std::net::UdpSocket::bind(("10.5.0.1", port)).unwrap();
            socket.send_to(b"flow", (to, 9)).unwrap();
        }
    });
}

/// A guest behind a veth with four queues, of which one is in use.
fn four_queues(host: &Namespace, guest: &Namespace, vif: &Vif) {
    let queues = "numrxqueues 4 numtxqueues 4";
    let Vif { name, mac, .. } = vif;
    host.ip(&format!("link add {name} {queues} type veth peer name {name} address {mac} {queues} netns {}", guest.0));
    for namespace in [host, guest] {
        namespace.run_in(|| run("ethtool", &["-L", name, "rx", "1", "tx", "1"]));
        namespace.ip(&format!("link set dev {name} up"));
    }
    guest.run_in(|| run("ethtool", &["-K", name, "tx", "off", "tso", "off", "gso", "off"]));
}

#[test]
fn queues_added_to_a_bound_xdp_port_are_bound_too() {
    let (Some(host), Some(guest), Some(other)) = (Namespace::new(), Namespace::new(), Namespace::new()) else { return };
    let vif = Vif { kind: "xdp", netns: host.0.clone(), ..Vif::new("a", 1, &guest) };
    let there = Vif::new("b", 2, &other);
    four_queues(&host, &guest, &vif);
    let daemon = Daemon::over(&[vif.clone(), there.clone()]);
    daemon.await_active(&vif);
    guest.ip("addr add 10.5.0.1/24 dev tap1");
    guest.ip(&format!("neigh add 10.5.0.2 lladdr {} dev tap1", there.mac));
    let nic = Nic::new(&other, "tap2");
    let all_arrive = |what: &str| {
        flows(&guest, "10.5.0.2");
        let mut came = 0;
        await_that(what, || {
            came += std::iter::from_fn(|| nic.try_take()).filter(|frame| frame.ends_with(b"flow")).count();
            (came == 64).then_some(())
        });
    };
    all_arrive("64 flows by one queue");
    let set = |queues: &str| {
        for namespace in [&host, &guest] {
            namespace.run_in(|| run("ethtool", &["-L", "tap1", "rx", queues, "tx", queues]));
        }
    };
    set("4");
    await_that("four queues", || {
        let port = shown(&daemon, &vif.port);
        (port["device"]["queues"] == 4 && port["status"] == "ACTIVE").then_some(())
    });
    all_arrive("64 flows by four queues");
    let said = events(&daemon, "port_down", &vif);
    assert!(said.iter().any(|text| text.contains("had 1 receive queues and has 4")), "{said:?}");
}

#[test]
fn a_port_with_too_few_queues_is_down_with_the_remedy() {
    let (Some(host), Some(guest)) = (Namespace::new(), Namespace::new()) else { return };
    let vif = Vif { kind: "xdp", netns: host.0.clone(), ..Vif::new("a", 1, &guest) }.device(", queues = 1");
    four_queues(&host, &guest, &vif);
    let daemon = Daemon::over(std::slice::from_ref(&vif));
    daemon.await_active(&vif);
    host.run_in(|| run("ethtool", &["-L", "tap1", "rx", "4", "tx", "4"]));
    await_reason(&daemon, &vif, &["the netdev has 4 receive queues, but queues = 1", "ethtool -L tap1"]);
    assert_eq!(shown(&daemon, &vif.port)["status"], "DOWN");
    // The reverse: fewer queues than were bound.
    host.run_in(|| run("ethtool", &["-L", "tap1", "rx", "1", "tx", "1"]));
    daemon.await_active(&vif);
}

#[test]
fn offloads_that_change_later_are_followed() {
    let (Some(host), Some(guest), Some(other)) = (Namespace::new(), Namespace::new(), Namespace::new()) else { return };
    let vif = Vif { kind: "packet", netns: host.0.clone(), ..Vif::new("a", 1, &guest) };
    let there = Vif::new("b", 2, &other);
    lay(&vif, &guest, 1500);
    let daemon = Daemon::over(&[vif.clone(), there.clone()]);
    daemon.await_active(&vif);
    host.run_in(|| run("ethtool", &["-K", "tap1", "tso", "off"]));
    let said = || [events(&daemon, "port_down", &vif), events(&daemon, "netdev_changed", &vif)].concat();
    let is_said = |piece: &str| said().iter().any(|text| text.contains(piece)).then_some(());
    await_that("the end of TSO", || is_said("tx-tcp-segmentation off"));
    // The device is not reopened, and no GSO packet is lost.
    guest.ip("addr add 10.5.0.1/24 dev tap1");
    other.ip("addr add 10.5.0.2/24 dev tap2");
    // A short stream first: one whose GSO packets are lost takes forever.
    for len in [100_000, 4_000_000] {
        tcp_both_ways(&other, &guest, std::net::Ipv4Addr::new(10, 5, 0, 1), len);
        assert_eq!(daemon.drops(&vif, "device_refused"), 0, "{len} bytes");
    }
    assert_eq!(events(&daemon, "port_down", &vif), [""; 0]);
    host.ip("link set dev tap1 gso_max_size 20000");
    await_that("another limit", || is_said("gso_max_size was 65536 and is 20000"));
    host.ip("link set dev tap1 gso_max_segs 10");
    await_that("a limit of segments", || is_said("gso_max_segs was 65535 and is 10"));
    daemon.await_active(&vif);
    // The port still carries frames.
    let (near, far) = (Nic::new(&guest, "tap1"), Nic::new(&other, "tap2"));
    let frame = experiment(there.mac, vif.mac, b"after all changes");
    near.send(&frame);
    assert_eq!(far.take(), frame);
}

#[test]
fn vlan_offloads_that_change_while_an_xdp_port_is_open_lose_no_tag() {
    let (Some(host), Some(guest), Some(other)) = (Namespace::new(), Namespace::new(), Namespace::new()) else { return };
    let vif = Vif { kind: "xdp", netns: host.0.clone(), ..Vif::new("a", 1, &guest) };
    let there = Vif::new("b", 2, &other);
    lay(&vif, &guest, 1500);
    // A bridge keeps the tag beside the frame.
    let near = bridge(&guest, "tap1");
    let set = |namespace: &Namespace, feature: &str, on: &str| {
        namespace.run_in(|| run("ethtool", &["-K", "tap1", feature, on]));
    };
    set(&host, "rxvlan", "off");
    let daemon = Daemon::over(&[vif.clone(), there.clone()]);
    daemon.await_active(&vif);
    let far = Nic::new(&other, "tap2");
    let passes = |what: &str| {
        let plain = experiment(there.mac, vif.mac, format!("{what:<46}").as_bytes());
        let frame = [&plain[..12], &[0x81, 0, 0, 5], &plain[12..]].concat();
        near.send(&frame);
        assert_eq!(far.take(), frame, "{what}");
    };
    passes("as opened");
    // At the netdev of the port: it is reopened, and asked for the tag of each frame.
    set(&host, "rxvlan", "on");
    await_that("the event", || {
        let events = events(&daemon, "port_down", &vif);
        events.iter().any(|text| text.contains("VLAN tags") && text.contains("rx-vlan-hw-parse on")).then_some(())
    });
    daemon.await_active(&vif);
    passes("the netdev takes tags out");
    set(&host, "rxvlan", "off");
    passes("and no longer");
    // The setting of the guest is no event here, and nothing depends on it.
    for on in ["off", "on"] {
        set(&guest, "txvlan", on);
        passes(on);
    }
    assert_eq!(events(&daemon, "port_down", &vif).len(), 1);
    daemon.await_active(&vif);
}

#[test]
fn the_mtu_of_a_foreign_netdev_is_followed() {
    let (Some(host), Some(guest), Some(other)) = (Namespace::new(), Namespace::new(), Namespace::new()) else { return };
    let there = Vif::new("b", 3, &other);
    for (number, kind) in [(1, "packet"), (2, "xdp")] {
        let vif = Vif { kind, netns: host.0.clone(), ..Vif::new("a", number, &guest) };
        lay(&vif, &guest, 1500);
        host.ip(&format!("link set dev {} mtu 1400", vif.name));
        let daemon = Daemon::over(&[vif.clone(), there.clone()]);
        daemon.await_active(&vif);
        await_reason(
            &daemon,
            &vif,
            &["has MTU 1400, its network has 1500", &format!("ip link set dev {} mtu 1500", vif.name)],
        );
        host.ip(&format!("link set dev {} mtu 1500", vif.name));
        await_that("no warning", || {
            let port = shown(&daemon, &vif.port);
            (port["status"] == "ACTIVE" && !port["status_reason"].as_str()?.contains("MTU")).then_some(())
        });
        let said = events(&daemon, "port_down", &vif);
        assert!(said.iter().any(|text| text.contains("1400") && text.contains("1500")), "{kind}: {said:?}");
        let (near, far) = (Nic::new(&other, "tap3"), Nic::new(&guest, &vif.name));
        let frame = experiment(vif.mac, there.mac, &[7; 1500]);
        near.send(&frame);
        far.take_until(&frame);
        // The reverse: an MTU that is too small is reported.
        host.ip(&format!("link set dev {} mtu 1400", vif.name));
        await_reason(&daemon, &vif, &["has MTU 1400, its network has 1500"]);
    }
}

#[test]
fn gso_and_gro_beyond_64_kib_are_told_by_check_doctor_and_the_port() {
    let (Some(host), Some(guest)) = (Namespace::new(), Namespace::new()) else { return };
    let vif = Vif { kind: "packet", netns: host.0.clone(), ..Vif::new("a", 1, &guest) };
    lay(&vif, &guest, 1500);
    guest.ip("link set dev tap1 down");
    guest.ip("link set dev tap1 name eth0 up");
    let daemon = Daemon::over(std::slice::from_ref(&vif));
    daemon.await_active(&vif);
    assert_eq!(shown(&daemon, &vif.port)["status_reason"], "");
    // Which end has it: GRO is what a netdev does on receive, GSO what its peer does on transmit.
    for (namespace, name, limit, found) in [
        (&host, "tap1", "gro_max_size", "it has gro_max_size"),
        (&guest, "eth0", "gso_max_size", "its peer eth0 has gso"),
    ] {
        namespace.ip(&format!("link set dev {name} {limit} 185000"));
        let remedy = format!("`ip link set dev {name} {limit} 65536`");
        await_reason(&daemon, &vif, &["tap1", found, " 185000", &remedy]);
        await_event(&daemon, &vif, found);
        let file = daemon.file();
        for command in [&["check", file.to_str().unwrap()][..], &["doctor", &format!("{}:tap1", host.0)]] {
            let said = String::from_utf8(daemon.try_command(command).stdout).unwrap();
            assert!(said.contains(found) && said.contains(&remedy), "{command:?}: {said}");
        }
        // The remedy works.
        namespace.ip(&format!("link set dev {name} {limit} 65536"));
        await_that("nothing to say", || (shown(&daemon, &vif.port)["status_reason"] == "").then_some(()));
    }
}

#[test]
fn no_warning_about_a_vxlan_netdev_recommends_fragmentation() {
    let (Some(host), Some(other)) = (Namespace::new(), Namespace::new()) else { return };
    host.ip(&format!("link add under mtu 1500 type veth peer name under mtu 1500 netns {}", other.0));
    host.ip("addr add 10.7.0.1/24 dev under");
    for namespace in [&host, &other] {
        namespace.ip("link set dev under up");
    }
    host.ip("link add vx1 type vxlan id 7 dstport 4789 local 10.7.0.1 remote 10.7.0.2");
    host.ip("link set dev vx1 mtu 1450 up");
    let vif = Vif { kind: "packet", netns: host.0.clone(), name: "vx1".into(), ..Vif::new("a", 1, &host) };
    let daemon = Daemon::over(std::slice::from_ref(&vif));
    daemon.await_active(&vif);
    await_reason(&daemon, &vif, &["longer frames are dropped", "MTU to 1550, or the network's to 1450"]);
    // The naive remedy: frames pass, in fragments.
    host.ip("link set dev vx1 mtu 1500");
    await_reason(&daemon, &vif, &["longer than 1450 bytes", "are fragmented", "MTU to 1550"]);
    for namespace in [&host, &other] {
        namespace.ip("link set dev under mtu 1550");
    }
    // Routes cause no event; the route is read when the port is opened.
    host.ip("link set dev vx1 down");
    // A netdev that is up again at once is not reopened.
    daemon.await_down(&vif);
    host.ip("link set dev vx1 up");
    await_that("no reason", || {
        let port = shown(&daemon, &vif.port);
        let reason = port["status_reason"].as_str()?;
        (port["status"] == "ACTIVE" && !reason.contains("fragments") && !reason.contains("MTU")).then_some(())
    });
}

#[test]
fn doctor_recognises_the_program_of_a_running_switch() {
    let (Some(host), Some(guest)) = (Namespace::new(), Namespace::new()) else { return };
    let vif = Vif { kind: "xdp", netns: host.0.clone(), ..Vif::new("a", 1, &guest) };
    lay(&vif, &guest, 1500);
    let daemon = Daemon::over(std::slice::from_ref(&vif));
    daemon.await_active(&vif);
    let said = daemon.try_command(&["doctor", &format!("{}:tap1", host.0)]);
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(
        !said.contains("detach it") && !said.contains("replace_xdp_program") && !said.contains("foreign"),
        "{said}"
    );
    assert!(said.contains("is that of a vifswitch") && said.contains("xdp        yes"), "{said}");
}

#[test]
fn partial_checksums_received_by_xdp_are_reported() {
    let (Some(host), Some(guest)) = (Namespace::new(), Namespace::new()) else { return };
    let vif = Vif { kind: "xdp", netns: host.0.clone(), ..Vif::new("a", 1, &guest) };
    let there = Vif::new("b", 2, &guest);
    lay(&vif, &guest, 1500);
    let daemon = Daemon::over(&[vif.clone(), there.clone()]);
    daemon.await_active(&vif);
    guest.ip("addr add 10.5.0.1/24 dev tap1");
    guest.ip(&format!("neigh add 10.5.0.2 lladdr {} dev tap1", there.mac));
    let far = Nic::new(&guest, "tap2");
    let send_some = || {
        flows(&guest, "10.5.0.2");
        // Other pending frames would fill the socket.
        far.rest();
    };
    // Complete checksums cause no warning.
    let start = time::now();
    await_that("two seconds of complete checksums", || {
        send_some();
        (time::now().since(start).as_secs() >= 2).then_some(())
    });
    assert!(!shown(&daemon, &vif.port)["status_reason"].as_str().unwrap().contains("checksum"));
    guest.run_in(|| run("ethtool", &["-K", "tap1", "tx", "on"]));
    await_that("the warning on partial checksums", || {
        send_some();
        let port = shown(&daemon, &vif.port);
        port["status_reason"].as_str()?.contains("partial checksums").then_some(())
    });
    await_event(&daemon, &vif, "partial checksums");
}

#[test]
fn full_size_frames_with_two_tags_are_refused_with_the_mtu_to_set() {
    let (Some(host), Some(guest)) = (Namespace::new(), Namespace::new()) else { return };
    let from = Vif::new("a", 1, &guest);
    let to = Vif { kind: "packet", netns: host.0.clone(), ..Vif::new("b", 2, &guest) };
    host.ip(&format!("link add tap2 mtu 1500 type veth peer name tap2 mtu 1508 netns {}", guest.0));
    host.ip("link set dev tap2 up");
    guest.ip("link set dev tap2 up");
    let daemon = Daemon::over(&[from.clone(), to.clone()]);
    daemon.await_active(&to);
    guest.ip("link set dev tap1 mtu 1508");
    let (near, far) = (Nic::new(&guest, "tap1"), Nic::new(&guest, "tap2"));
    let tagged = |tags: &[u8]| {
        let mut frame = experiment(to.mac, from.mac, &[7; 1500]);
        frame.splice(12..12, tags.iter().copied());
        frame
    };
    let one = tagged(&[0x81, 0, 0, 5]);
    near.send(&one);
    far.take_until(&one);
    let reason = || shown(&daemon, &to.port)["status_reason"].as_str().unwrap().to_owned();
    assert!(!reason().contains("refused"), "{}", reason());
    let two = tagged(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]);
    near.send(&two);
    await_reason(&daemon, &to, &["has refused frames", "ip link set dev tap2 mtu 1508"]);
    await_event(&daemon, &to, "mtu 1508");
    // VLAN tags count towards the MTU, except for an outer 802.1Q tag.
    let of_8021q = tagged(&[0x81, 0, 0, 5, 0x81, 0, 0, 6]);
    let of_8021ad = tagged(&[0x88, 0xa8, 0, 5]);
    for (mtu, passing) in [(1504, &[&of_8021q, &of_8021ad][..]), (1508, &[&of_8021q, &of_8021ad, &two])] {
        host.ip(&format!("link set dev tap2 mtu {mtu}"));
        await_that("ACTIVE and nothing refused", || {
            let port = shown(&daemon, &to.port);
            (port["status"] == "ACTIVE" && !port["status_reason"].as_str()?.contains("refused")).then_some(())
        });
        for frame in passing {
            near.send(frame);
            far.take_until(frame);
        }
        if mtu == 1504 {
            near.send(&two);
            await_reason(&daemon, &to, &["has refused frames", "ip link set dev tap2 mtu 1508"]);
        }
    }
}

#[test]
fn a_switch_in_a_private_mount_namespace_names_the_cause() {
    let Some(ns) = Namespace::planned() else { return };
    let vif = Vif::new("a", 1, &ns);
    let mut daemon = Daemon::new();
    daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], std::slice::from_ref(&vif)));
    let program = daemon.command();
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private"]).arg(program.get_program());
    for (name, _) in program.get_envs() {
        command.env_remove(name);
    }
    let file = daemon.file();
    daemon.start_as(command, "--config", &file);
    await_reason(&daemon, &vif, &["no such namespace yet"]);
    ns.make();
    await_reason(&daemon, &vif, &["another mount namespace", "start the switch in the host's mount namespace"]);
}
