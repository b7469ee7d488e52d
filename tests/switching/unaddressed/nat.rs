//! Three VMs, the middle one with NAT between two unaddressed ports. The translated addresses belong to no host, so
//! that only Ethernet addresses decide where frames go. Needs root and nft; makes its own namespaces.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};
use vifswitch::control::api::responses::Status;
use vifswitch::wire::Mac;

use support::host::daemon::{Daemon, TIMEOUT, Vif};
use support::host::nic::Nic;
use support::host::setup::{DeviceKind, lay, ping};
use support::host::{Namespace, await_that, readable};

/// Index in [`Scenario::vifs`].
const VM1: usize = 0;
const VM2_LEFT: usize = 1;
const VM2_RIGHT: usize = 2;
const VM3: usize = 3;

const ONE: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 11);
const THREE: Ipv4Addr = Ipv4Addr::new(10, 10, 2, 13);
/// Address by which vm1 reaches vm3, and by which vm3 sees vm1. No host owns them.
const FOR_THREE: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 200);
const UNICAST: Ipv4Addr = Ipv4Addr::new(10, 10, 2, 200);

const RULES: &str = "table ip middle {
    chain before {
        type nat hook prerouting priority -100
        iifname \"tap2\" ip daddr 10.10.1.200 dnat to 10.10.2.13
    }
    chain behind {
        type nat hook postrouting priority 100
        oifname \"tap3\" snat to 10.10.2.200
    }
}
";

struct Scenario {
    /// vm1, vm2, vm3, and the host's.
    spaces: Vec<Namespace>,
    /// Four ports between the VMs, and one each on mgmt.
    vifs: Vec<Vif>,
    daemon: Daemon,
}

/// Sets sysctls of a namespace.
fn sysctl(namespace: &Namespace, settings: &[(&str, &str)]) {
    namespace.run_in(|| {
        for (name, value) in settings {
            std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    });
}

/// Sets up NAT in a namespace. Prints the reason and returns false if it cannot.
fn translates(namespace: &Namespace) -> bool {
    let mut nft = Command::new("ip");
    nft.args(["netns", "exec", &namespace.0, "nft", "-f", "-"]);
    let mut child = nft.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A missing nft does not read its input.
    let _ = child.stdin.take().unwrap().write_all(RULES.as_bytes());
    let done = child.wait_with_output().unwrap();
    if !done.status.success() {
        eprintln!("skipped: needs nft with NAT: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    done.status.success()
}

impl Scenario {
    /// Sets up ports, routes, NAT and neighbours. vm1 and vm3 have their addresses in the configuration only if
    /// `is_told`.
    fn new(on: DeviceKind, is_told: bool) -> Option<Scenario> {
        let spaces = (0..4).map(|_| Namespace::new()).collect::<Option<Vec<_>>>()?;
        if !translates(&spaces[1]) {
            return None;
        }
        let places = [("vm1", 0, "net1"), ("vm2", 1, "net1"), ("vm2", 1, "net2"), ("vm3", 2, "net2")];
        let places = places.into_iter().chain([("vm1", 0, "mgmt"), ("vm2", 1, "mgmt"), ("vm3", 2, "mgmt")]);
        let vifs = (1..).zip(places).map(|(number, (vm, at, network))| Vif::new(vm, number, &spaces[at]).on(network));
        let mut vifs: Vec<Vif> = vifs.collect();
        for (vif, bits) in vifs.iter_mut().zip([0x0111, 0x0112, 0x0212, 0x0213]) {
            vif.mac = Mac::from_bits(0x0200_0000_0000 + bits);
        }
        for (at, address) in [(VM1, ONE), (VM3, THREE)].into_iter().filter(|_| is_told) {
            vifs[at].more = format!("fixed_ips = [\"{address}\"]");
        }
        for at in [VM2_LEFT, VM2_RIGHT] {
            vifs[at].more = "port_security = \"off\"\nip_allocation = \"none\"".into();
        }
        for (vif, at) in vifs.iter_mut().zip([0, 1, 1, 2]).filter(|_| on != DeviceKind::Tap) {
            (vif.kind, vif.netns) = (on.kind(), spaces[3].0.clone());
            lay(vif, &spaces[at], 1500);
        }
        let daemon = Daemon::with("", &[("net1", 1500), ("net2", 1500), ("mgmt", 1500)], &vifs);
        assert!(daemon.ports().iter().all(|port| port.status == Status::Active));
        let scene = Scenario { spaces, vifs, daemon };
        scene.address(&[(VM1, &format!("{ONE}/24")), (VM3, &format!("{THREE}/24"))]);
        scene.address(&[(4, "192.0.2.11/24"), (5, "192.0.2.12/24"), (6, "192.0.2.13/24")]);
        let filters = [("conf/all/rp_filter", "0"), ("conf/tap2/rp_filter", "0"), ("conf/tap3/rp_filter", "0")];
        sysctl(&scene.spaces[1], &[&filters[..], &[("ip_forward", "1")]].concat());
        scene.spaces[1].ip("route add 10.10.1.0/24 dev tap2");
        scene.spaces[1].ip("route add 10.10.2.0/24 dev tap3");
        scene.neighbours();
        Some(scene)
    }

    fn address(&self, addresses: &[(usize, &str)]) {
        for (at, address) in addresses {
            self.guest(*at).ip(&format!("addr add {address} dev {}", self.vifs[*at].name));
        }
    }

    /// The namespace of the guest of a port.
    fn guest(&self, at: usize) -> &Namespace {
        let number = self.vifs[at].vm.as_bytes()[2] - b'1';
        &self.spaces[usize::from(number)]
    }

    /// Sets permanent neighbour entries in all VMs.
    fn neighbours(&self) {
        for (at, address, there) in
            [(VM1, FOR_THREE, VM2_LEFT), (VM2_LEFT, ONE, VM1), (VM2_RIGHT, THREE, VM3), (VM3, UNICAST, VM2_RIGHT)]
        {
            let (mac, device) = (self.vifs[there].mac, &self.vifs[at].name);
            self.guest(at).ip(&format!("neigh replace {address} lladdr {mac} nud permanent dev {device}"));
        }
    }

    /// Captures frames received by the guest of a port from now on.
    fn listener(&self, at: usize) -> Nic {
        Nic::new(self.guest(at), &self.vifs[at].name)
    }

    /// 5 MB of TCP from vm1 to vm3, which sees the translated source address.
    fn stream(&self) {
        let content: Vec<u8> = (0..5_000_000u32).map(|i| (i * 7 + (i >> 9)) as u8).collect();
        let listener = self.spaces[2].run_in(|| TcpListener::bind((THREE, 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                readable(&listener);
                let (mut stream, peer) = listener.accept().unwrap();
                stream.set_read_timeout(Some(TIMEOUT)).unwrap();
                let mut came = Vec::new();
                stream.read_to_end(&mut came).unwrap();
                stream.write_all(b"thanks").unwrap();
                (came, peer)
            });
            let there = SocketAddr::from((FOR_THREE, port));
            let mut stream = self.spaces[0].run_in(|| TcpStream::connect_timeout(&there, TIMEOUT)).unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            stream.set_write_timeout(Some(TIMEOUT)).unwrap();
            stream.write_all(&content).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            let (came, peer) = reader.join().unwrap();
            assert!(came == content && answer == b"thanks", "{} bytes received, {answer:?} returned", came.len());
            assert_eq!(peer.ip(), UNICAST);
        });
    }

    /// Checks everything that must work, at all ports. `is_silent`: without any ARP.
    fn works(&self, is_silent: bool) {
        let listeners = [VM1, VM2_LEFT, VM2_RIGHT, VM3].map(|at| self.listener(at));
        ping(&self.spaces[0], FOR_THREE, 5);
        let seen = listeners.each_ref().map(Nic::rest);
        let icmp = |frames: &[Vec<u8>]| frames.iter().filter(|frame| is_icmp(frame)).cloned().collect::<Vec<_>>();
        let [at_one, at_left, at_right, at_three] = seen.each_ref().map(|frames| icmp(frames));
        for (what, frames, macs, addresses) in [
            ("requests to vm2", &at_left, (VM2_LEFT, VM1), (ONE, FOR_THREE)),
            ("requests to vm3", &at_three, (VM3, VM2_RIGHT), (UNICAST, THREE)),
            ("replies to vm2", &at_right, (VM2_RIGHT, VM3), (THREE, UNICAST)),
            ("replies to vm1", &at_one, (VM1, VM2_LEFT), (FOR_THREE, ONE)),
        ] {
            assert_eq!(frames.len(), 5, "{what}");
            for frame in frames {
                assert_eq!(frame[..6], self.vifs[macs.0].mac.octets(), "{what}");
                assert_eq!(frame[6..12], self.vifs[macs.1].mac.octets(), "{what}");
                assert_eq!((&frame[26..30], &frame[30..34]), (&addresses.0.octets()[..], &addresses.1.octets()[..]));
            }
        }
        if is_silent {
            assert!(seen.iter().flatten().all(|frame| frame[12..14] != [8, 6]), "there was an ARP frame");
        }
        self.stream();
        let [one, left, right, three] = listeners.each_ref().map(Nic::rest);
        let net1: HashSet<Vec<u8>> = one.into_iter().chain(left).chain(at_one).chain(at_left).collect();
        let net2: HashSet<Vec<u8>> = right.into_iter().chain(three).chain(at_right).chain(at_three).collect();
        assert!(net1.len() > 10 && net2.len() > 10, "{} and {}", net1.len(), net2.len());
        assert!(net1.is_disjoint(&net2), "a frame of one network is on the other");
        // No frame of one network appears on the other.
        for (frames, theirs) in [(&net1, [10, 10, 2]), (&net2, [10, 10, 1])] {
            for frame in frames.iter().filter(|frame| frame[12..14] == [8, 0]) {
                assert!(frame[26..29] != theirs && frame[30..33] != theirs, "{frame:02x?}");
            }
        }
        for device in ["tap2", "tap3"] {
            assert_eq!(self.addresses(device), "", "vm2 has an address on {device}");
        }
    }

    /// Addresses of a device of vm2.
    fn addresses(&self, device: &str) -> String {
        let shown =
            Command::new("ip").args(["-n", &self.spaces[1].0, "-o", "-4", "addr", "show", "dev", device]).output();
        String::from_utf8(shown.unwrap().stdout).unwrap()
    }

    /// Five echo requests without waiting for replies.
    fn ask_in_vain(&self) {
        let raw = || socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMP));
        let socket = self.spaces[0].run_in(raw).unwrap();
        for number in 0..5u8 {
            let [s0, s1] = (!(0x0800 + u16::from(number))).to_be_bytes();
            let echo = [8, 0, s0, s1, 0, 0, 0, number];
            sendto(&socket, &echo, SendFlags::empty(), &SocketAddrV4::new(FOR_THREE, 0)).unwrap();
        }
    }

    /// Without a neighbour entry, ARP for the translated address stays unanswered.
    fn nobody_answers(&self) {
        sysctl(&self.spaces[0], &[("neigh/tap1/retrans_time_ms", "20")]);
        self.spaces[0].ip(&format!("neigh del {FOR_THREE} dev tap1"));
        let listeners = [VM1, VM2_LEFT, VM3].map(|at| self.listener(at));
        self.ask_in_vain();
        await_that("vm1 has given up", || {
            let shown = Command::new("ip").args(["-n", &self.spaces[0].0, "neigh", "show", "dev", "tap1"]).output();
            String::from_utf8(shown.unwrap().stdout).unwrap().contains("FAILED").then_some(())
        });
        self.daemon.await_idle();
        let [one, left, three] = listeners.each_ref().map(Nic::rest);
        // The last frames of a stream may still arrive.
        let is_arp = |frame: &Vec<u8>| frame[12..14] == [8, 6];
        assert!(left.iter().any(is_arp), "vm1 has asked");
        assert!(!one.iter().any(is_arp), "no reply expected: {one:02x?}");
        assert!(
            [&one, &left, &three].into_iter().flatten().all(|frame| !is_icmp(frame)),
            "vm1 has sent no other frame"
        );
        self.neighbours();
    }

    fn secure(&self, keys: &str) {
        self.daemon.done(&["set", &self.vifs[VM2_LEFT].port, keys], "");
    }

    /// Port security `mac` on vm2's port has no effect; `mac+ip` blocks its traffic.
    fn security(&self) {
        self.secure("port_security=mac");
        ping(&self.spaces[0], FOR_THREE, 5);
        self.secure("port_security=mac+ip");
        let listeners = [VM1, VM3].map(|at| self.listener(at));
        self.ask_in_vain();
        let left = &self.vifs[VM2_LEFT];
        await_that("five dropped replies", || (self.daemon.drops(left, "spoofed_ip") == 5).then_some(()));
        self.daemon.await_idle();
        let [one, three] = listeners.each_ref().map(Nic::rest);
        assert_eq!(three.iter().filter(|frame| is_icmp(frame)).count(), 5, "the requests arrived");
        assert!(!one.iter().any(|frame| is_icmp(frame)), "{one:02x?}");
        self.secure("port_security=off");
        ping(&self.spaces[0], FOR_THREE, 5);
        assert_eq!(self.daemon.drops(left, "spoofed_ip"), 5);
    }
}

fn is_icmp(frame: &[u8]) -> bool {
    frame[12..14] == [8, 0] && frame[23] == 1
}

fn addresses_are_translated_in_the_middle(on: DeviceKind, is_told: bool) {
    let Some(scene) = Scenario::new(on, is_told) else { return };
    scene.works(true);
    scene.nobody_answers();
    scene.works(true);
    scene.security();
    // Disables ARP. This removes neighbour entries, including permanent ones.
    for at in [VM1, VM2_LEFT, VM2_RIGHT, VM3] {
        scene.guest(at).ip(&format!("link set dev {} arp off", scene.vifs[at].name));
    }
    scene.neighbours();
    scene.works(true);
    scene.daemon.done(&["flush"], "");
    scene.works(true);
    // The management port, which has an address, works throughout.
    ping(&scene.spaces[0], Ipv4Addr::new(192, 0, 2, 12), 1);
    ping(&scene.spaces[1], Ipv4Addr::new(192, 0, 2, 13), 1);
    let ports = scene.daemon.await_idle();
    for port in &ports {
        let refused: Vec<&str> = port.counts.drops.keys().map(String::as_str).collect();
        let wanted = if port.port_id == scene.vifs[VM2_LEFT].port { &["spoofed_ip"][..] } else { &[] };
        assert_eq!(refused, wanted, "{on:?}, {}", port.port_id);
    }
}

/// Frames of the four ports between the VMs while vm1 pings vm3 and then fails to resolve it, by port. `None` if the
/// host cannot run the test.
pub fn recorded() -> Option<[Vec<Vec<u8>>; 4]> {
    let scene = Scenario::new(DeviceKind::Tap, true)?;
    // Frames received by one guest were sent by the other.
    let listeners = [VM2_LEFT, VM1, VM3, VM2_RIGHT].map(|at| scene.listener(at));
    ping(&scene.spaces[0], FOR_THREE, 5);
    scene.nobody_answers();
    Some(listeners.each_ref().map(Nic::rest))
}

/// Shows: REQ-13, AT-06
#[test]
fn nat_between_unaddressed_ports_works_over_taps() {
    addresses_are_translated_in_the_middle(DeviceKind::Tap, true);
}

/// Shows: AT-06
#[test]
fn nat_between_unaddressed_ports_works_over_af_xdp() {
    addresses_are_translated_in_the_middle(DeviceKind::Xdp, true);
}

/// Shows: AT-06
#[test]
fn nat_between_unaddressed_ports_works_over_af_packet() {
    addresses_are_translated_in_the_middle(DeviceKind::Packet, true);
}

/// The result does not depend on configured addresses.
///
/// Shows: REQ-05, AT-06
#[test]
fn nat_works_without_configured_addresses() {
    addresses_are_translated_in_the_middle(DeviceKind::Tap, false);
}
