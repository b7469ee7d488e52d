//! Group frames reach all ports, joined or not: the switch does no IGMP or MLD snooping. Needs root; makes its own
//! namespaces.

use vifswitch::wire::Mac;

use support::host::nic::frame;
use support::host::setup::{DeviceKind, PLAIN, Setup, SetupOptions};

/// UDP over IPv4 to a group, at its MAC address (RFC 1112, 6.4).
fn to_group(from: Mac, group: [u8; 4]) -> Vec<u8> {
    let low = u64::from(u32::from_be_bytes(group) & 0x7f_ffff);
    let head = [0x45, 0, 0, 32, 0, 1, 0, 0, 1, 17, 0, 0, 10, 5, 0, 1];
    let payload = [&head, &group[..], &[0, 9, 0, 9, 0, 12, 0, 0], b"news"].concat();
    frame(Mac::from_bits(0x0100_5e00_0000 | low), from, 0x0800, &payload)
}

/// An IGMPv2 message about a group (RFC 2236): 0x16 joins, 0x17 leaves, 0x11 queries.
fn igmp(from: Mac, kind: u8, group: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut frame = to_group(from, to);
    frame.truncate(34);
    (frame[14 + 3], frame[14 + 9]) = (28, 2);
    frame.extend([kind, 0, 0, 0]);
    frame.extend(group);
    frame
}

/// Shows: AT-16
#[test]
fn groups_reach_all_ports_without_joining() {
    for on in [&[DeviceKind::Tap][..], &[DeviceKind::Xdp], &[DeviceKind::Packet]] {
        let Some(setup) = Setup::new(SetupOptions { on, ..PLAIN }, &["a", "b", "c", "d"]) else { return };
        let nics = [0, 1, 2, 3].map(|at| setup.nic(at));
        let everybody_hears = |from: usize, frame: &[u8], what: &str| {
            nics[from].send(frame);
            for (to, nic) in nics.iter().enumerate().filter(|(to, _)| *to != from) {
                assert!(nic.take() == frame, "{on:?}: {what} from {from} at {to}");
            }
        };
        let macs = [0, 1, 2, 3].map(|at| setup.vifs[at].mac);
        let all_groups = |when: &str| {
            for group in [[224, 0, 0, 1], [224, 0, 0, 18], [224, 0, 1, 129], [232, 1, 2, 3], [239, 255, 0, 7]] {
                everybody_hears(0, &to_group(macs[0], group), &format!("{group:?} {when}"));
            }
            // All nodes, MLDv2 routers, and another IPv6 group (RFC 2464, 7).
            for low in [1u64, 0x16, 0xff00_0007] {
                let six = [&[0x60, 0, 0, 0, 0, 0, 59, 1][..], &[0xff; 32]].concat();
                let six = frame(Mac::from_bits(0x3333_0000_0000 | low), macs[0], 0x86dd, &six);
                everybody_hears(0, &six, &format!("{low:x} {when}"));
            }
        };
        const GROUP: [u8; 4] = [239, 255, 0, 7];
        all_groups("a group without members");
        everybody_hears(3, &igmp(macs[3], 0x11, [0; 4], [224, 0, 0, 1]), "a query");
        everybody_hears(1, &igmp(macs[1], 0x16, GROUP, GROUP), "a report");
        all_groups("a group with one member");
        everybody_hears(1, &igmp(macs[1], 0x17, GROUP, [224, 0, 0, 2]), "a leave");
        all_groups("a group that its last member has left");
        let ports = setup.daemon.await_idle();
        assert!(ports.iter().all(|port| port.counts.drops.is_empty() && port.counts.forwarded == 0), "{ports:?}");
        assert!(nics.iter().all(|nic| nic.rest().is_empty()), "{on:?}: each frame once");
    }
}
