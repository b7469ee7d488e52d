//! No frame reaches the network of another VLAN, wherever the kernel keeps its tag. Needs root; makes its own
//! namespaces.

use std::fmt::Write as _;
use std::process::Command;

use serde_json::Value;
use vifswitch::wire::Mac;

use support::host::daemon::{Daemon, Vif, config};
use support::host::nic::{Nic, experiment};
use support::host::setup::{DeviceKind, lay};
use support::host::{Namespace, await_that, run};

/// On the link of an uplink, and behind the bridge of a guest.
const OUTSIDE: Mac = Mac::from_bits(0x0200_0000_0999);

const NETWORKS: [(&str, u16); 2] = [("net1", 1500), ("net2", 1500)];

/// A guest or external network whose frames pass a bridge before they leave by a veth: the bridge strips the outer
/// tag into metadata, as a VLAN interface of the kernel does. On each of the two networks an observer receives.
struct Lab {
    daemon: Daemon,
    guest: Namespace,
    _host: Namespace,
    /// Behind the bridge.
    inside: Nic,
    /// On net1 and net2.
    observers: [Nic; 2],
    _spaces: [Namespace; 2],
}

/// A bridge with the netdev `outside` and i0, whose peer i1 sends and receives.
pub fn bridge(namespace: &Namespace, outside: &str) -> Nic {
    namespace.ip("link add br0 type bridge mcast_snooping 0");
    namespace.ip("link add i0 type veth peer name i1");
    for name in [outside, "i0"] {
        namespace.ip(&format!("link set dev {name} master br0"));
    }
    for name in ["br0", "i0", "i1"] {
        namespace.ip(&format!("link set dev {name} up"));
    }
    Nic::new(namespace, "i1")
}

impl Lab {
    /// `uplink`: the bridge is at an uplink with net1 untagged and net2 as VLAN 101; otherwise it is in a guest, the
    /// parent of whose trunk is on net1, with a subport of VLAN 101 on net2. `None` if the host cannot run the test.
    fn new(on: DeviceKind, uplink: bool, device: &str) -> Option<Lab> {
        Lab::started_by(on, uplink, device, Daemon::command)
    }

    /// The same with a switch started by this command.
    fn started_by(on: DeviceKind, uplink: bool, device: &str, command: impl FnOnce(&Daemon) -> Command) -> Option<Lab> {
        let (guest, host) = (Namespace::new()?, Namespace::new()?);
        let spaces = [Namespace::new()?, Namespace::new()?];
        let mut parent = Vif { kind: on.kind(), netns: host.0.clone(), ..Vif::new("a", 1, &guest) }.device(device);
        parent.mac = OUTSIDE;
        lay(&parent, &guest, 1500);
        let inside = bridge(&guest, &parent.name);
        let others = [Vif::new("b", 2, &spaces[0]), Vif::new("c", 3, &spaces[1]).on("net2")];
        let mut vifs = others.to_vec();
        if !uplink {
            vifs.extend([parent.clone(), Vif::new("a", 4, &guest).on("net2").subport_of(&parent, 101)]);
            vifs.iter_mut().for_each(|vif| vif.more = "port_security = \"off\"".into());
        }
        let mut daemon = Daemon::new();
        let mut text = config(&daemon.socket(), "", &NETWORKS, &vifs);
        if uplink {
            text = text.replace("frames = 2048", "frames = 16384");
            let (kind, name, netns) = (parent.kind, &parent.name, &parent.netns);
            let networks = "[{ network_id = \"net1\" }, { network_id = \"net2\", vlan = 101 }]";
            writeln!(text, "[[uplinks]]\nid = \"up0\"\nnetworks = {networks}").unwrap();
            writeln!(text, "device = {{ kind = \"{kind}\", name = \"{name}\", netns = \"{netns}\"{device} }}").unwrap();
        }
        daemon.configure(&text);
        let (command, file) = (command(&daemon), daemon.file());
        daemon.start_as(command, "--config", &file);
        others.iter().for_each(|vif| drop(daemon.await_active(vif)));
        let observers = [Nic::new(&spaces[0], "tap2"), Nic::new(&spaces[1], "tap3")];
        Some(Lab { daemon, guest, _host: host, inside, observers, _spaces: spaces })
    }

    /// JSON output of a `show` command.
    fn shown(&self, what: &str) -> Value {
        serde_json::from_str(&self.daemon.done(&["show", what, "--json"], "")).unwrap()
    }

    /// The entry of this id.
    fn of(&self, what: &str, key: &str, id: &str) -> Value {
        self.shown(what).as_array().unwrap().iter().find(|entry| entry[key] == id).unwrap().clone()
    }

    fn await_status(&self, what: &str, key: &str, id: &str, status: &str) -> Value {
        let mut last = Value::Null;
        await_that(&format!("{id} {status}: {last}"), || {
            last = self.of(what, key, id);
            (last["status"] == status).then(|| last.clone())
        })
    }

    /// Sends a broadcast with these tags from behind the bridge, then one untagged and one of VLAN 101. Returns what
    /// the observers receive up to these.
    fn received(&self, tags: &[[u8; 4]]) -> [Vec<Vec<u8>>; 2] {
        let plain = |text: &[u8]| experiment(Mac::BROADCAST, OUTSIDE, &[text, &[0; 46]].concat());
        let tagged = |frame: &[u8], tags: &[[u8; 4]]| [&frame[..12], &tags.concat(), &frame[12..]].concat();
        self.inside.send(&tagged(&plain(b"frame"), tags));
        self.inside.send(&plain(b"last"));
        self.inside.send(&tagged(&plain(b"last"), &[[0x81, 0, 0, 101]]));
        [0, 1].map(|network| {
            std::iter::from_fn(|| Some(self.take(network)).filter(|frame| *frame != plain(b"last"))).collect()
        })
    }

    /// Next broadcast from behind the bridge at an observer. Skips groups, to which the bridge sends itself.
    fn take(&self, network: usize) -> Vec<u8> {
        let addresses = [Mac::BROADCAST.octets(), OUTSIDE.octets()].concat();
        loop {
            let frame = self.observers[network].take();
            if frame.starts_with(&addresses) {
                return frame;
            }
        }
    }
}

/// Tags of every kind, stripped into metadata.
fn frames_stay_on_the_network_of_their_tag(on: DeviceKind, uplink: bool) {
    let Some(lab) = Lab::new(on, uplink, "") else { return };
    let (what, key, id) = if uplink { ("uplinks", "uplink_id", "up0") } else { ("ports", "port_id", "port-1") };
    lab.await_status(what, key, id, "ACTIVE");
    let plain = experiment(Mac::BROADCAST, OUTSIDE, &[&b"frame"[..], &[0; 46]].concat());
    let after = |tag: [u8; 4]| [&plain[..12], &tag, &plain[12..]].concat();
    let none: [Vec<Vec<u8>>; 2] = [vec![], vec![]];
    assert_eq!(lab.received(&[]), [vec![plain.clone()], vec![]], "{on:?}: untagged");
    assert_eq!(lab.received(&[[0x81, 0, 0, 101]]), [vec![], vec![plain.clone()]], "{on:?}: the tag of net2");
    assert_eq!(lab.received(&[[0x81, 0, 0, 102]]), none, "{on:?}: a VLAN of no port");
    assert_eq!(lab.received(&[[0x81, 0, 0, 102], [0x81, 0, 0, 101]]), none, "{on:?}: the tag of net2 after another");
    let inner = [0x81, 0, 0, 7];
    assert_eq!(lab.received(&[[0x81, 0, 0xa0, 101], inner]), [vec![], vec![after(inner)]], "{on:?}: a second tag");
    // The guest's setting makes no difference.
    for txvlan in ["off", "on"] {
        lab.guest.run_in(|| run("ethtool", &["-K", "tap1", "txvlan", txvlan]));
        assert_eq!(lab.received(&[[0x81, 0, 0, 101]]), [vec![], vec![plain.clone()]], "{on:?}: txvlan {txvlan}");
    }
    let drops = lab.of(what, key, id)["drops"].clone();
    assert_eq!(drops, serde_json::json!({ "unknown_vlan": 2 }), "{on:?}");
}

#[test]
fn a_stripped_tag_selects_the_port_of_an_xdp_trunk() {
    frames_stay_on_the_network_of_their_tag(DeviceKind::Xdp, false);
}

#[test]
fn a_stripped_tag_selects_the_network_of_an_xdp_uplink() {
    frames_stay_on_the_network_of_their_tag(DeviceKind::Xdp, true);
}

#[test]
fn a_stripped_tag_selects_the_port_of_a_packet_trunk() {
    frames_stay_on_the_network_of_their_tag(DeviceKind::Packet, false);
}

#[test]
fn a_stripped_tag_selects_the_network_of_a_packet_uplink() {
    frames_stay_on_the_network_of_their_tag(DeviceKind::Packet, true);
}

/// A port without subports forwards frames unmodified, including tags that a guest's bridge has stripped.
#[test]
fn a_stripped_tag_passes_a_port_without_subports() {
    for on in [DeviceKind::Xdp, DeviceKind::Packet] {
        let Some(lab) = Lab::new(on, false, "") else { return };
        lab.await_status("ports", "port_id", "port-1", "ACTIVE");
        lab.daemon.done(&["detach", "port-4"], "");
        let plain = experiment(Mac::BROADCAST, OUTSIDE, &[0; 46]);
        for tags in [&[[0x81, 0, 0x60, 101]][..], &[[0x88, 0xa8, 0, 5], [0x81, 0, 0, 101]]] {
            let written = [&plain[..12], &tags.concat(), &plain[12..]].concat();
            lab.inside.send(&written);
            assert_eq!(lab.take(0), written, "{on:?}");
        }
        assert_eq!(lab.observers[1].rest(), [[0; 0]; 0], "{on:?}");
    }
}

/// On a kernel without BTF of its functions a program cannot read tags of a veth.
#[test]
fn a_trunk_is_refused_without_kernel_support_for_stripped_tags() {
    let hidden = |daemon: &Daemon| {
        let (plain, mut command) = (daemon.command(), Command::new("unshare"));
        let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"";
        command.args(["--mount", "sh", "-c", script]).arg(plain.get_program());
        command.env_remove("NOTIFY_SOCKET").env_remove("VIFSWITCH_LOG");
        command
    };
    let Some(lab) = Lab::started_by(DeviceKind::Xdp, false, "", hidden) else { return };
    let refused = lab.await_status("ports", "port_id", "port-1", "DOWN");
    let why = refused["status_reason"].as_str().unwrap();
    assert!(why.contains("CONFIG_DEBUG_INFO_BTF") && why.contains("kind = packet"), "{why}");
    lab.daemon.done(&["detach", "port-4"], "");
    let alone = lab.await_status("ports", "port_id", "port-1", "ACTIVE");
    assert!(alone["status_reason"].as_str().unwrap().contains("native copy"), "{alone}");
}

/// In generic mode no program can read a stripped tag: the trunk is refused.
#[test]
fn a_trunk_or_uplink_that_may_lose_tags_is_refused() {
    for uplink in [false, true] {
        let Some(lab) = Lab::new(DeviceKind::Xdp, uplink, ", mode = \"generic\"") else { return };
        let (what, key, id) = if uplink { ("uplinks", "uplink_id", "up0") } else { ("ports", "port_id", "port-1") };
        let named = |text: &str| text.contains("VLAN tag") && text.contains("kind = packet");
        let refused = lab.await_status(what, key, id, "DOWN");
        assert!(named(refused["status_reason"].as_str().unwrap()), "{refused}");
        let checked = lab.daemon.try_command(&["check", "FILE"]);
        assert!(named(&String::from_utf8_lossy(&checked.stdout)), "{checked:?}");
        let event = |kind: &str| {
            let events = lab.daemon.done(&["events"], "");
            events.lines().any(|line| line.contains(kind) && line.contains(id) && named(line))
        };
        assert!(event("port_down"), "{}", lab.daemon.done(&["events"], ""));
        if uplink {
            continue;
        }
        assert_eq!(lab.of("ports", key, "port-4")["status"], "DOWN");

        // Without subports the port forwards, and warns of lost tags.
        lab.daemon.done(&["detach", "port-4"], "");
        let alone = lab.await_status(what, key, id, "ACTIVE");
        assert!(named(alone["status_reason"].as_str().unwrap()), "{alone}");
        assert!(event("port_up"), "{}", lab.daemon.done(&["events"], ""));
        // With a subport it is refused again, at once.
        let subport = "device_id = \"a\"\nport_id = \"port-4\"\nnetwork_id = \"net2\"\nmac_address = \"02:00:00:00:01:04\"\n\
                       parent = \"port-1\"\nvlan = 101\n";
        lab.daemon.done(&["attach", "-"], subport);
        assert_eq!(lab.of("ports", key, id)["status"], "DOWN");
        lab.inside.send(&experiment(Mac::BROADCAST, OUTSIDE, &[0; 46]));
        lab.daemon.done(&["detach", "port-4"], "");
        lab.await_status(what, key, id, "ACTIVE");
        let later = experiment(Mac::BROADCAST, OUTSIDE, &[1; 46]);
        lab.inside.send(&later);
        assert_eq!(lab.take(0), later, "no frame arrived while refused");
    }
}
