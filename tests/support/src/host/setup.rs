//! Common setup: a running switch, and guests that exchange frames through it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv, send, socket_with,
};

use super::daemon::{Daemon, TIMEOUT, Vif};
use super::nic::{Nic, experiment};
use super::{Namespace, readable, run};

/// Ports on net1, each in a namespace of its own, and the switch.
pub struct Setup {
    pub daemon: Daemon,
    pub vifs: Vec<Vif>,
    /// Namespaces of the guests, in the order of their ports; the host's is last, if there are netdevs.
    pub spaces: Vec<Namespace>,
}

/// Device kind of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// A tap that the switch creates and holds.
    Tap,
    /// AF_XDP on a veth whose peer is the guest's. The guest's stack sends complete checksums, as partial ones would
    /// be lost.
    Xdp,
    /// AF_PACKET on such a veth. The guest's stack has all its offloads.
    Packet,
}

impl DeviceKind {
    pub const ALL: [DeviceKind; 3] = [DeviceKind::Tap, DeviceKind::Xdp, DeviceKind::Packet];

    /// Its name in a configuration.
    pub fn kind(self) -> &'static str {
        match self {
            DeviceKind::Tap => "tap",
            DeviceKind::Xdp => "xdp",
            DeviceKind::Packet => "packet",
        }
    }
}

/// Creates the veth of a port, up. Both ends have the same name, each in its namespace. The switch's end has a larger
/// MTU than the guest's, so that the switch itself checks lengths.
pub fn lay(vif: &Vif, guest: &Namespace, mtu: u16) {
    let Vif { name, mac, netns, .. } = vif;
    let ours = format!("{name} mtu {} type veth", mtu + 200);
    let theirs = format!("peer name {name} address {mac} mtu {mtu} netns {}", guest.0);
    run("ip", &format!("-n {netns} link add {ours} {theirs}").split(' ').collect::<Vec<_>>());
    if vif.kind == "xdp" {
        offloads(guest, name, false);
    }
    guest.ip(&format!("link set dev {name} up"));
    run("ip", &["-n", netns, "link", "set", "dev", name, "up"]);
}

/// Enables or disables partial checksums and GSO packets of a guest's stack.
pub fn offloads(guest: &Namespace, name: &str, wanted: bool) {
    let wanted = if wanted { "on" } else { "off" };
    guest.run_in(|| run("ethtool", &["-K", name, "tx", wanted, "tso", wanted, "gso", wanted]));
}

/// One port per VM of `vms`, each in its own namespace, with device kinds from `on` in turn. `None` if the host
/// cannot run the test.
pub fn guests(vms: &[&str], on: &[DeviceKind], mtu: u16) -> Option<(Vec<Namespace>, Vec<Vif>)> {
    let mut spaces = vms.iter().map(|_| Namespace::new()).collect::<Option<Vec<_>>>()?;
    let vifs = (1..).zip(vms).zip(&spaces).map(|((number, vm), namespace)| Vif::new(vm, number, namespace));
    let mut vifs: Vec<Vif> = vifs.collect();
    if on.iter().any(|on| *on != DeviceKind::Tap) {
        let host = Namespace::new()?;
        for ((vif, on), guest) in vifs.iter_mut().zip(on.iter().cycle()).zip(&spaces) {
            if *on != DeviceKind::Tap {
                (vif.kind, vif.netns) = (on.kind(), host.0.clone());
                lay(vif, guest, mtu);
            }
        }
        spaces.push(host);
    }
    Some((spaces, vifs))
}

/// Differences from the default setup.
#[derive(Debug, Clone, Copy)]
pub struct SetupOptions {
    pub mtu: u16,
    /// More keys of the switch, one per line.
    pub switch: &'static str,
    /// More keys of every device, each after a comma.
    pub device: &'static str,
    /// Device kinds of its ports, in turn.
    pub on: &'static [DeviceKind],
}

pub const PLAIN: SetupOptions = SetupOptions { mtu: 1500, switch: "", device: "", on: &[DeviceKind::Tap] };

/// Runs a test on ports of every kind, at the same time: most of it is waiting.
pub fn on_every_kind(test: impl Fn(DeviceKind) + Sync) {
    let test = &test;
    thread::scope(|scope| {
        for on in DeviceKind::ALL {
            // The name is in the message of a panic.
            thread::Builder::new().name(format!("{on:?}")).spawn_scoped(scope, move || test(on)).unwrap();
        }
    });
}

/// Two workers. Prints the reason and returns `None` with one core only.
pub fn two_workers() -> Option<&'static str> {
    if vifswitch::sys::cores::allowed().starts_with(&[0, 1]) {
        return Some("cores = [0, 1]");
    }
    eprintln!("skipped: needs the cores 0 and 1");
    None
}

impl Setup {
    /// A running switch with one port per VM of `vms`. `None` if the host cannot run the test.
    pub fn new(kind: SetupOptions, vms: &[&str]) -> Option<Setup> {
        let (spaces, vifs) = guests(vms, kind.on, kind.mtu)?;
        let vifs: Vec<Vif> = vifs.into_iter().map(|vif| vif.device(kind.device)).collect();
        let daemon = Daemon::with(kind.switch, &[("net1", kind.mtu)], &vifs);
        Some(Setup { daemon, vifs, spaces })
    }

    pub fn nic(&self, index: usize) -> Nic {
        Nic::new(&self.spaces[index], &self.vifs[index].name)
    }

    /// Adds an IPv4 address to the port at `index`.
    pub fn address(&self, index: usize) -> Ipv4Addr {
        let address = Ipv4Addr::new(10, 5, 0, index as u8 + 1);
        self.spaces[index].ip(&format!("addr add {address}/24 dev {}", self.vifs[index].name));
        address
    }

    /// Like [`pass`], between ports of this setup.
    pub fn send_and_await(&self, (from, at): (usize, &Nic), (to, there): (usize, &Nic), tale: &str) {
        pass((at, &self.vifs[from]), (there, &self.vifs[to]), tale);
    }
}

/// Sends a frame from one port to another and receives it there. `tale` identifies it.
pub fn pass(from: (&Nic, &Vif), to: (&Nic, &Vif), tale: &str) {
    let frame = experiment(to.1.mac, from.1.mac, tale.as_bytes());
    from.0.send(&frame);
    assert_eq!(to.0.take(), frame);
}

/// Sends echo requests, each after the reply to the previous one.
pub fn ping(namespace: &Namespace, to: Ipv4Addr, times: u16) {
    let raw = || socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMP));
    let socket = namespace.run_in(raw).unwrap();
    connect(&socket, &SocketAddrV4::new(to, 0)).unwrap();
    for number in 1..=times {
        send(&socket, &echo(8, number), SendFlags::empty()).unwrap();
        loop {
            let mut packet = [0; 1500];
            readable(&socket);
            let (len, _) = recv(&socket, &mut packet[..], RecvFlags::empty()).unwrap();
            let header = usize::from(packet[0] & 15) * 4;
            if packet[header..len] == echo(0, number) {
                break;
            }
        }
    }
}

/// An ICMP echo request (8) or reply (0).
fn echo(kind: u8, number: u16) -> Vec<u8> {
    let [n0, n1] = number.to_be_bytes();
    let mut packet = vec![kind, 0, 0, 0, 0x76, 0x66, n0, n1];
    packet.extend((0..48).map(|i: u8| i.wrapping_mul(7)));
    let sum: u32 = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Streams `len` bytes in both directions between two namespaces at once, and compares them.
pub fn tcp_both_ways(left: &Namespace, right: &Namespace, address: impl Into<IpAddr>, len: u32) {
    let address = address.into();
    let content = |seed: u32| -> Vec<u8> { (0..len).map(|i| (i * 7 + (i >> 9) + seed) as u8).collect() };
    let listener = right.run_in(|| TcpListener::bind((address, 0))).unwrap();
    let there = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            readable(&listener);
            exchange(&listener.accept().unwrap().0, &content(1), &content(2));
        });
        let stream = left.run_in(|| TcpStream::connect_timeout(&there, TIMEOUT)).unwrap();
        exchange(&stream, &content(2), &content(1));
    });
}

fn exchange(mut stream: &TcpStream, ours: &[u8], theirs: &[u8]) {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || stream.write_all(ours).unwrap());
        let mut came = vec![0; theirs.len()];
        stream.read_exact(&mut came).unwrap();
        assert!(came == theirs, "received bytes differ from sent ones");
    });
}
