//! Effects of the host's network stack on guest frames are prevented or warned of. Needs root; makes its own
//! namespaces.

use std::fs;
use std::net::Ipv4Addr;

use serde_json::Value;

use support::host::daemon::{Daemon, Vif};
use support::host::nic::{Nic, experiment, frame};
use support::host::{Namespace, await_that, run};
use vifswitch::wire::Mac;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 1);

/// A namespace in the role of the host: it has an address, on no netdev of the switch, and IPv6.
struct Host {
    host: Namespace,
    guest: Namespace,
    vif: Vif,
}

fn host_with_addresses(device: &str) -> Option<Host> {
    let (host, guest) = (Namespace::new()?, Namespace::new()?);
    host.run_in(|| {
        for who in ["all", "default"] {
            fs::write(format!("/proc/sys/net/ipv6/conf/{who}/disable_ipv6"), "0").unwrap();
        }
    });
    host.ip("link set dev lo up");
    host.ip(&format!("addr add {HOST}/32 dev lo"));
    let vif = Vif { kind: "packet", netns: host.0.clone(), ..Vif::new("a", 1, &guest) }.device(device);
    let mac = vif.mac;
    host.ip(&format!("link add tap1 type veth peer name tap1 address {mac} netns {}", guest.0));
    host.ip("link set dev tap1 up");
    guest.ip("link set dev tap1 up");
    Some(Host { host, guest, vif })
}

impl Host {
    /// Sends an ARP request for the host's address.
    fn request(&self, nic: &Nic) {
        let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
        arp.extend(self.vif.mac.octets());
        arp.extend(GUEST.octets());
        arp.extend([0; 6]);
        arp.extend(HOST.octets());
        nic.send(&frame(Mac::BROADCAST, self.vif.mac, 0x0806, &arp));
    }

    /// A router advertisement of the guest: a default route for an hour.
    fn advertise(&self, nic: &Nic) {
        let source = [0xfe80_u16, 0, 0, 0, 0, 0xff, 0xfe00, 0x0101];
        let target = [0xff02_u16, 0, 0, 0, 0, 0, 0, 1];
        let mut icmp = vec![134, 0, 0, 0, 64, 0, 14, 16, 0, 0, 0, 0, 0, 0, 0, 0];
        let addresses: Vec<u8> = source.iter().chain(&target).flat_map(|word| word.to_be_bytes()).collect();
        let mut sum: u32 =
            [&addresses[..], &icmp].concat().chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
        sum += 58 + icmp.len() as u32;
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut packet = vec![0x60, 0, 0, 0, 0, icmp.len() as u8, 58, 255];
        packet.extend(addresses);
        packet.extend(icmp);
        nic.send(&frame(Mac::from_bits(0x3333_0000_0001), self.vif.mac, 0x86dd, &packet));
    }

    fn has_default_route(&self) -> bool {
        let routes = self.host.run_in(|| fs::read_to_string("/proc/thread-self/net/ipv6_route")).unwrap();
        let default = "00000000000000000000000000000000 00 ";
        routes.lines().any(|line| line.starts_with(default) && line.ends_with("tap1"))
    }
}

fn reason(daemon: &Daemon) -> String {
    let ports: Value = daemon.get("/v1/ports");
    ports[0]["status_reason"].as_str().unwrap().to_owned()
}

const SAID: [&str; 5] = [
    "answers ARP for 10.9.9.9",
    "router advertisements",
    "isolate = true",
    "net.ipv4.conf.tap1.arp_ignore=8",
    "net.ipv6.conf.tap1.disable_ipv6=1",
];

#[test]
fn a_host_stack_that_receives_guest_frames_is_reported_with_the_remedy() {
    let Some(lab) = host_with_addresses("") else { return };
    let daemon = Daemon::over(std::slice::from_ref(&lab.vif));
    daemon.await_active(&lab.vif);
    await_that("the warning about the host stack", || {
        SAID.iter().all(|piece| reason(&daemon).contains(piece)).then_some(())
    });
    let checked = String::from_utf8(daemon.try_command(&["check", "FILE"]).stdout).unwrap();
    assert!(SAID.iter().all(|piece| checked.contains(piece)), "{checked}");
    let doctor = daemon.try_command(&["doctor", &format!("{}:tap1", lab.host.0)]);
    let doctor = String::from_utf8(doctor.stdout).unwrap();
    assert!(SAID.iter().all(|piece| doctor.contains(piece)), "{doctor}");
    // Restores the settings of the namespace afterwards.
    lab.host.run_in(|| {
        fs::write("/proc/sys/net/ipv4/conf/tap1/arp_ignore", "8").unwrap();
        fs::write("/proc/sys/net/ipv6/conf/tap1/disable_ipv6", "1").unwrap();
    });
    await_that("no warning", || reason(&daemon).is_empty().then_some(()));
}

#[test]
fn an_isolated_netdev_answers_no_guest_and_takes_no_route_from_it() {
    let Some(lab) = host_with_addresses("") else { return };
    // Control: what happens without isolation.
    let nic = Nic::new(&lab.guest, "tap1");
    let answers = |frame: &Vec<u8>| frame[12..14] == [8, 6] && frame[20..22] == [0, 2];
    await_that("a reply of the host", || {
        lab.request(&nic);
        nic.try_take().filter(answers)
    });
    await_that("a route from the guest", || {
        lab.advertise(&nic);
        lab.has_default_route().then_some(())
    });
    lab.host.run_in(|| run("ip", &["-6", "route", "flush", "dev", "tap1", "proto", "ra"]));
    assert!(!lab.has_default_route());

    let there = Vif::new("b", 2, &lab.guest);
    let isolated = lab.vif.clone().device(", isolate = true");
    let mut daemon = Daemon::over(&[isolated.clone(), there.clone()]);
    daemon.await_active(&isolated);
    assert_eq!(reason(&daemon), "");
    let far = Nic::new(&lab.guest, "tap2");
    nic.rest();
    lab.request(&nic);
    lab.advertise(&nic);
    // A later frame has arrived, so that the earlier ones were processed.
    let last = experiment(there.mac, lab.vif.mac, b"behind them");
    nic.send(&last);
    assert!(far.take_until(&last).iter().any(|frame| frame[12..14] == [8, 6]), "the switch has received all frames");
    let back = experiment(lab.vif.mac, there.mac, b"and back");
    far.send(&back);
    assert!(!nic.take_until(&back).iter().any(answers), "no station on the network has that address");
    assert!(!lab.has_default_route());
    // Isolation ends with the switch, even if killed.
    daemon.stop(rustix::process::Signal::KILL);
    await_that("the host stack receives again", || {
        lab.request(&nic);
        nic.try_take().filter(answers)
    });
}
