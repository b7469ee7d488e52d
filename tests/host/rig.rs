//! What most tests stand on: a running switch, and guests that talk through it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv, send, socket_with,
};

use super::daemon::{Daemon, TIMEOUT, Vif};
use super::nic::{Nic, experiment};
use super::{Space, readable};

/// Ports on net1, each in a namespace of its own, and the switch over them.
pub struct Rig {
    pub daemon: Daemon,
    pub vifs: Vec<Vif>,
    pub spaces: Vec<Space>,
}

/// How a rig differs from the plainest one.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    pub mtu: u16,
    /// More keys of the switch, a line each.
    pub switch: &'static str,
    /// More keys of every device, each with a comma in front.
    pub device: &'static str,
}

pub const PLAIN: Kind = Kind { mtu: 1500, switch: "", device: "" };

/// Two workers. `None`, and a word about it, where there is one core only.
pub fn two_workers() -> Option<&'static str> {
    if vifswitch::sys::cores::allowed().starts_with(&[0, 1]) {
        return Some("cores = [0, 1]");
    }
    eprintln!("skipped: needs the cores 0 and 1");
    None
}

impl Rig {
    /// A port for each of `vms`, by the name of its VM, running. `None` where this cannot be tested.
    pub fn new(kind: Kind, vms: &[&str]) -> Option<Rig> {
        let spaces = vms.iter().map(|_| Space::new()).collect::<Option<Vec<_>>>()?;
        let vifs = (1..).zip(vms).zip(&spaces).map(|((number, vm), space)| Vif::new(vm, number, space));
        let vifs: Vec<Vif> = vifs.map(|vif| vif.device(kind.device)).collect();
        let daemon = Daemon::with(kind.switch, &[("net1", kind.mtu)], &vifs);
        Some(Rig { daemon, vifs, spaces })
    }

    pub fn nic(&self, index: usize) -> Nic {
        Nic::new(&self.spaces[index], &self.vifs[index].name)
    }

    /// Gives the port at `index` an IPv4 address.
    pub fn address(&self, index: usize) -> Ipv4Addr {
        let address = Ipv4Addr::new(10, 5, 0, index as u8 + 1);
        self.spaces[index].ip(&format!("addr add {address}/24 dev {}", self.vifs[index].name));
        address
    }

    /// Sends a frame from one port to the other, and takes it there. `tale` tells it from others.
    pub fn pass(&self, (from, at): (usize, &Nic), (to, there): (usize, &Nic), tale: &str) {
        let frame = experiment(self.vifs[to].mac, self.vifs[from].mac, tale.as_bytes());
        at.send(&frame);
        assert_eq!(there.take(), frame);
    }
}

/// Sends echo requests, each when the one before has been answered.
pub fn ping(space: &Space, to: Ipv4Addr, times: u16) {
    let raw = || socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMP));
    let socket = space.within(raw).unwrap();
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

/// An ICMP echo request (8) or its reply (0).
fn echo(kind: u8, number: u16) -> Vec<u8> {
    let [n0, n1] = number.to_be_bytes();
    let mut packet = vec![kind, 0, 0, 0, 0x76, 0x66, n0, n1];
    packet.extend((0..48).map(|i: u8| i.wrapping_mul(7)));
    let sum: u32 = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Streams `len` bytes each way between two namespaces at once, and compares them.
pub fn tcp_both_ways(left: &Space, right: &Space, address: impl Into<IpAddr>, len: u32) {
    let address = address.into();
    let content = |seed: u32| -> Vec<u8> { (0..len).map(|i| (i * 7 + (i >> 9) + seed) as u8).collect() };
    let listener = right.within(|| TcpListener::bind((address, 0))).unwrap();
    let there = listener.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            readable(&listener);
            exchange(&listener.accept().unwrap().0, &content(1), &content(2));
        });
        let stream = left.within(|| TcpStream::connect_timeout(&there, TIMEOUT)).unwrap();
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
        assert!(came == theirs, "other bytes came than were sent");
    });
}
