//! A switch with uplinks: setup of the tests of activation and announcements.

use std::fmt::Write as _;
use std::net::Ipv6Addr;

use serde_json::Value;
use vifswitch::wire::Mac;

use support::host::daemon::{Daemon, Vif, attachment, config, keeping};
use support::host::nic::{Nic, experiment, frame};
use support::host::{Namespace, await_that, run};

/// External VLAN of net1, and of net2.
pub const VLANS: [u16; 2] = [120, 130];

/// Creates a link from the host to the external network; both ends have the same name.
pub fn lay_wire(host: &Namespace, outside: &Namespace, name: &str) {
    let Namespace(outside_name) = outside;
    host.ip(&format!("link add {name} type veth peer name {name} netns {outside_name}"));
    for namespace in [host, outside] {
        // Keeps tags in the frames.
        namespace.run_in(|| run("ethtool", &["-K", name, "txvlan", "off", "rxvlan", "off"]));
        namespace.ip(&format!("link set dev {name} up"));
    }
}

/// A configuration with ports on net1, and uplinks with net1 and net2. Two uplinks are a group.
pub fn wired(daemon: &Daemon, switch: &str, vifs: &[Vif], host: &Namespace, wires: &[&str]) -> String {
    let mut text = config(&daemon.socket(), switch, &[("net1", 1500), ("net2", 1500)], vifs);
    for wire in wires {
        let group = if wires.len() > 1 { "group = \"wire\"\n" } else { "" };
        let [one, two] = VLANS;
        write!(
            text,
            "[[uplinks]]\nid = \"{wire}\"\n{group}device = {{ kind = \"packet\", name = \"{wire}\", netns = \"{}\" }}\n\
             networks = [{{ network_id = \"net1\", vlan = {one} }}, {{ network_id = \"net2\", vlan = {two} }}]\n",
            host.0
        )
        .unwrap();
    }
    keeping(&text, &daemon.state())
}

/// Attaches an inactive port. A switch without that key attaches an active one.
pub fn attach_waiting(daemon: &Daemon, vif: &Vif) {
    let waiting = Vif { more: format!("{}\nactivation = \"first-frame\"", vif.more), ..vif.clone() };
    if !daemon.run_command(&["attach", "-"], &attachment(&waiting)).status.success() {
        daemon.attach(vif);
    }
}

/// A frame with the tag of a VLAN.
pub fn tagged(vlan: u16, frame: &[u8]) -> Vec<u8> {
    let [a, b] = vlan.to_be_bytes();
    [&frame[..12], &[0x81, 0, a, b], &frame[12..]].concat()
}

/// The frame without its tag, if it is of this VLAN.
pub fn untagged(vlan: u16, frame: &[u8]) -> Option<Vec<u8>> {
    let [a, b] = vlan.to_be_bytes();
    (frame.get(12..16)? == [0x81, 0, a, b]).then(|| [&frame[..12], &frame[16..]].concat())
}

/// RARP as QEMU sends it after a migration.
pub fn rarp(mac: Mac) -> Vec<u8> {
    let sender = mac.octets();
    let packet = [&[0, 1, 8, 0, 6, 4, 0, 3][..], &sender, &[0; 4], &sender, &[0; 4], &[0; 18]].concat();
    frame(Mac::BROADCAST, mac, 0x8035, &packet)
}

/// An ARP request for the sender's own address.
pub fn gratuitous_arp(mac: Mac) -> Vec<u8> {
    let ip = [10, 5, 0, 7];
    let packet = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &mac.octets(), &ip, &[0; 6], &ip, &[0; 18]].concat();
    frame(Mac::BROADCAST, mac, 0x0806, &packet)
}

/// An unsolicited neighbor advertisement.
pub fn unsolicited_advertisement(mac: Mac) -> Vec<u8> {
    let own: Ipv6Addr = "fd00::7".parse().unwrap();
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    let message = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &own.octets(), &[2, 1], &mac.octets()].concat();
    let ip = [&[0x60, 0, 0, 0, 0, 32, 58, 255][..], &own.octets(), &all_nodes.octets()].concat();
    frame(Mac::new([0x33, 0x33, 0, 0, 0, 1]), mac, 0x86dd, &[ip, message].concat())
}

/// The advertisement of a VRRP master: VRRPv3 over IPv6 for 00:00:5e:00:02:xx, over IPv4 for others.
pub fn vrrp_advert(router: Mac) -> Vec<u8> {
    let [.., family, vrid] = router.octets();
    let message = [0x31, vrid, 100, 1, 0, 100, 0, 0];
    if family == 2 {
        let [own, routers]: [Ipv6Addr; 2] = ["fe80::2", "ff02::12"].map(|address| address.parse().unwrap());
        let ip = [&[0x60, 0, 0, 0, 0, 24, 112, 255][..], &own.octets(), &routers.octets()].concat();
        return frame(
            Mac::new([0x33, 0x33, 0, 0, 0, 0x12]),
            router,
            0x86dd,
            &[&ip, &message[..], &[0xfe; 16]].concat(),
        );
    }
    let ip = [0x45, 0xc0, 0, 32, 0, 0, 0, 0, 255, 112, 0, 0, 10, 5, 0, 2, 224, 0, 0, 18];
    frame(
        Mac::new([0x01, 0, 0x5e, 0, 0, 0x12]),
        router,
        0x0800,
        &[&ip[..], &message, &[10, 5, 0, 1], &[0; 14]].concat(),
    )
}

/// The address that a RARP frame announces.
pub fn announced(frame: &[u8]) -> Option<Mac> {
    let is_rarp = frame.len() >= 42 && frame[..6] == [0xff; 6] && frame[12..22] == [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3];
    let mac = Mac::new(frame.get(6..12)?.try_into().unwrap());
    (is_rarp && frame[22..28] == mac.octets()).then_some(mac)
}

/// Events of a kind that name a port.
pub fn events(daemon: &Daemon, kind: &str, port: &str) -> Vec<Value> {
    let page = daemon.page("/v1/events");
    let events = page.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let names = |event: &Value| event["ports"].as_array().is_some_and(|ports| ports.iter().any(|name| name == port));
    events.filter(|event| event["kind"] == kind && names(event)).collect()
}

/// Waits for this number of events of a kind that name a port. Returns the last one.
pub fn await_events(daemon: &Daemon, kind: &str, port: &str, count: usize) -> Value {
    await_that(&format!("event {count} {kind} of {port}"), || {
        let mut events = events(daemon, kind, port);
        (events.len() >= count).then(|| events.remove(count - 1))
    })
}

/// Port and kind of a station's FDB entry.
pub fn station(daemon: &Daemon, mac: Mac) -> Option<(String, String)> {
    let all: Value = daemon.get("/v1/fdb");
    let found = all.as_array().unwrap().iter().find(|station| station["mac_address"] == mac.to_string())?;
    let text = |key: &str| found[key].as_str().unwrap().to_owned();
    Some((text("port_id"), text("kind")))
}

/// A receiver: a guest, or the external network with a VLAN.
pub struct WirePlace<'a>(pub &'a Nic, pub Option<u16>);

impl WirePlace<'_> {
    /// Frames up to this one, which is awaited.
    fn take_until(&self, last: &[u8]) -> Vec<Vec<u8>> {
        let next = || {
            let frame = self.0.take();
            match self.1 {
                Some(vlan) => untagged(vlan, &frame).unwrap_or_default(),
                None => frame,
            }
        };
        std::iter::from_fn(|| Some(next()).filter(|frame| frame != last)).collect()
    }
}

/// Receivers at which a frame from `from` to a station arrives: a broadcast after it bounds the wait.
pub fn arrives(from: (&Nic, Mac), to: Mac, places: &[WirePlace<'_>], tale: &str) -> Vec<usize> {
    let last = experiment(Mac::BROADCAST, from.1, format!("last {tale}").as_bytes());
    let wanted = experiment(to, from.1, tale.as_bytes());
    // Frames below the minimum length are padded on the way.
    let padded = |mut frame: Vec<u8>| {
        frame.resize(60, 0);
        frame
    };
    let (wanted, last) = (padded(wanted), padded(last));
    from.0.send(&wanted);
    from.0.send(&last);
    let came = places.iter().map(|place| place.take_until(&last).contains(&wanted));
    came.enumerate().filter_map(|(index, came)| came.then_some(index)).collect()
}
