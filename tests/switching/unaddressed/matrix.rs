//! Frame matrix on real devices: frames of every kind from A to B, with bystander C. Prints the table of received
//! frames. Delivered frames are unmodified. Needs root; makes its own namespaces.

use std::collections::BTreeMap;

use vifswitch::wire::Mac;

use support::host::EXPERIMENT;
use support::host::daemon::config;
use support::host::nic::{experiment, frame};
use support::host::setup::{DeviceKind, PLAIN, Setup, SetupOptions, two_workers};

/// Expected receivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The destination.
    OnlyB,
    /// All ports but the sender.
    All,
    /// None, dropped for this reason.
    Nobody(&'static str),
}

/// Every kind of frame, on a network with an MTU of 9000.
pub fn matrix(a: Mac, b: Mac) -> Vec<(&'static str, Vec<u8>, Outcome)> {
    use Outcome::{All, Nobody, OnlyB};
    let mac = |bits: u64| Mac::from_bits(bits);
    let bytes = |len: usize| -> Vec<u8> { (0..len).map(|i| (i * 31) as u8).collect() };
    let to_b = |kind: u16| frame(b, a, kind, &bytes(60));
    let to = |group: u64, kind: u16| frame(mac(group), a, kind, &bytes(60));
    let llc = |to: Mac, service: &[u8]| frame(to, a, 46, &[service, &bytes(46 - service.len())].concat());
    let ipv4 = |first: u8, length: u16, kind: u8| {
        let [l0, l1] = length.to_be_bytes();
        [&[first, 0, l0, l1, 0, 1, 0, 0, 64, kind, 0x66, 0x66, 192, 0, 2, 1, 198, 51, 100, 1], &bytes(40)[..]].concat()
    };
    let tagged = |len: usize| frame(b, a, 0x8100, &[&[0, 120, 0x88, 0xb5][..], &bytes(len - 18)].concat());
    let twice =
        |len: usize| frame(b, a, 0x88a8, &[&[0, 7, 0x81, 0, 0x20, 120, 0x88, 0xb5][..], &bytes(len - 22)].concat());
    let deep = |tags: &[u16]| {
        let tags: Vec<u8> = tags.iter().flat_map(|kind| [kind.to_be_bytes(), [0x20, 7]].concat()).collect();
        let bare = bytes(60);
        [&b.octets(), &a.octets(), &tags[..], &EXPERIMENT.to_be_bytes(), &bare].concat()
    };
    let plain = |len: usize| frame(b, a, EXPERIMENT, &bytes(len - 14));
    let arp_probe = [&[0, 1, 8, 0, 6, 4, 0, 1], &a.octets()[..], &[0; 4], &[0; 6], &[10, 5, 0, 77], &[0; 18]].concat();
    vec![
        ("PPPoE session", to_b(0x8864), OnlyB),
        ("MPLS", to_b(0x8847), OnlyB),
        ("PROFINET", to_b(0x8892), OnlyB),
        ("4008", to_b(0x4008), OnlyB),
        ("FCoE", to_b(0x8906), OnlyB),
        ("MACsec", to_b(0x88e5), OnlyB),
        ("loopback test", to_b(0x9000), OnlyB),
        ("IPv4", frame(b, a, 0x0800, &ipv4(0x45, 60, 17)), OnlyB),
        ("L2TP over IPv4", frame(b, a, 0x0800, &ipv4(0x45, 60, 115)), OnlyB),
        ("IPv4 with a wrong version", frame(b, a, 0x0800, &ipv4(0x95, 60, 6)), OnlyB),
        ("IPv4 with a short header", frame(b, a, 0x0800, &ipv4(0x41, 60, 6)), OnlyB),
        ("IPv4 longer than its frame", frame(b, a, 0x0800, &ipv4(0x45, 6000, 17)), OnlyB),
        ("no IPv4 header", frame(b, a, 0x0800, b""), OnlyB),
        ("IPv6 of a wrong version", frame(b, a, 0x86dd, &bytes(60)), OnlyB),
        ("IPv6 truncated", frame(b, a, 0x86dd, &[0x60, 0]), OnlyB),
        ("ARP truncated", frame(b, a, 0x0806, &[0, 1]), OnlyB),
        ("LLC", llc(b, &[0xfe, 0xfe, 3]), OnlyB),
        ("LLC, wrong length", frame(b, a, 1500, &bytes(60)), OnlyB),
        ("VLAN", tagged(64), OnlyB),
        ("priority tag", frame(b, a, 0x8100, &[0xe0, 0, 0x88, 0xb5, 1, 2, 3]), OnlyB),
        ("QinQ", twice(68), OnlyB),
        ("QinQ, TPID 0x9100", deep(&[0x9100, 0x8100]), OnlyB),
        ("three tags", deep(&[0x88a8, 0x8100, 0x8100]), OnlyB),
        ("ten tags", deep(&[0x8100; 10]), OnlyB),
        ("header only", plain(14), OnlyB),
        ("one byte", plain(15), OnlyB),
        ("59 bytes", plain(59), OnlyB),
        ("1514 bytes", plain(1514), OnlyB),
        ("4097 bytes", plain(4097), OnlyB),
        ("8986 bytes", plain(8986), OnlyB),
        ("the longest", plain(9014), OnlyB),
        ("maximum length, tagged", tagged(9018), OnlyB),
        ("maximum length, two tags", twice(9022), OnlyB),
        ("broadcast", to(0xffff_ffff_ffff, EXPERIMENT), All),
        ("PADI", to(0xffff_ffff_ffff, 0x8863), All),
        ("MPLS multicast", to(0x0100_5e80_0001, 0x8848), All),
        ("PTP", to(0x011b_1900_0000, 0x88f7), All),
        ("GOOSE", to(0x010c_cd01_0001, 0x88b8), All),
        ("sampled values", to(0x010c_cd04_0001, 0x88ba), All),
        ("PROFINET DCP", to(0x010e_cf00_0000, 0x8892), All),
        ("EtherCAT", to(0xffff_ffff_ffff, 0x88a4), All),
        ("FIP", to(0x0110_1801_0001, 0x8914), All),
        ("RARP", to(0xffff_ffff_ffff, 0x8035), All),
        ("ARP probe", frame(Mac::BROADCAST, a, 0x0806, &arp_probe), All),
        ("CFM", to(0x0180_c200_0030, 0x8902), All),
        ("DOCSIS", llc(mac(0x01e0_2f00_0001), &[0, 0, 3]), All),
        ("IS-IS", llc(mac(0x0180_c200_0014), &[0xfe, 0xfe, 3]), All),
        ("CDP", llc(mac(0x0100_0ccc_cccc), &[0xaa, 0xaa, 3, 0, 0, 0xc, 0x20, 0]), All),
        ("PVST+", llc(mac(0x0100_0ccc_cccd), &[0xaa, 0xaa, 3, 0, 0, 0xc, 1, 0xb]), All),
        ("MVRP", to(0x0180_c200_0021, 0x88f5), All),
        ("STP", llc(mac(0x0180_c200_0000), &[0x42, 0x42, 3]), All),
        ("unknown unicast", to(0x0200_0000_7777, EXPERIMENT), All),
        ("PTP peer delay", to(0x0180_c200_000e, 0x88f7), All),
        ("LLDP", to(0x0180_c200_000e, 0x88cc), All),
        ("LACP", to(0x0180_c200_0002, 0x8809), All),
        ("EAPOL", to(0x0180_c200_0003, 0x888e), All),
        ("PAUSE", to(0x0180_c200_0001, 0x8808), Nobody("reserved_group")),
        ("group source", frame(b, mac(0x0300_0000_0001), EXPERIMENT, &bytes(60)), Nobody("bad_source")),
        ("broadcast source", frame(b, Mac::BROADCAST, EXPERIMENT, &bytes(60)), Nobody("bad_source")),
        ("zero source", frame(b, Mac::ZERO, EXPERIMENT, &bytes(60)), Nobody("bad_source")),
        ("to itself", frame(a, a, EXPERIMENT, &bytes(60)), Nobody("hairpin")),
        ("source of another VM", frame(a, b, EXPERIMENT, &bytes(60)), Nobody("foreign_source")),
        ("unknown source", frame(b, mac(0x0200_0000_6666), EXPERIMENT, &bytes(60)), Nobody("spoofed_source")),
        ("too long", plain(9015), Nobody("too_long")),
        ("too long, tagged", tagged(9019), Nobody("too_long")),
        ("too long, two tags", twice(9023), Nobody("too_long")),
    ]
}

/// Last digit of a reserved group address.
fn reserved(frame: &[u8]) -> Option<u8> {
    (frame[..5] == [0x01, 0x80, 0xc2, 0, 0] && frame[5] < 16).then_some(frame[5])
}

/// Drop reason of a reserved group.
fn name_of(group: u8) -> String {
    match group {
        0 => "bpdu".into(),
        1 => "pause".into(),
        2 => "slow_protocols".into(),
        3 => "eapol".into(),
        14 => "lldp".into(),
        _ => format!("reserved_{group:02x}"),
    }
}

/// A row of the table: name, expected receivers, frames received at B and at C.
type Seen = (&'static str, Outcome, [usize; 2]);

/// Sends all frames on a network with this policy on reserved groups, or the default. `None` if the host cannot run
/// the test.
fn every_kind_of_frame(kind: SetupOptions, policy: Option<(&str, u16)>) -> Option<Vec<Seen>> {
    let setup = Setup::new(SetupOptions { mtu: 9000, ..kind }, &["a", "b", "c"])?;
    if let Some((policy, _)) = policy {
        let text = config(&setup.daemon.socket(), kind.switch, &[("net1", 9000)], &setup.vifs);
        let text = text.replace("mtu = 9000", &format!("mtu = 9000\nreserved_groups = \"{policy}\""));
        setup.daemon.done(&["apply", "-"], &text);
    }
    // Guests set the MTU of their interfaces themselves.
    for (namespace, vif) in setup.spaces.iter().zip(&setup.vifs) {
        namespace.ip(&format!("link set {} mtu 9200", vif.name));
    }
    let [a, b, c] = [0, 1, 2].map(|index| setup.nic(index));
    let macs = [0, 1, 2].map(|index| setup.vifs[index].mac);
    let mut rows = matrix(macs[0], macs[1]);
    let (mut reasons, mut groups, mut seen) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for (number, (name, row, attachment)) in rows.iter_mut().enumerate() {
        if let (Some((_, mask)), Some(group)) = (policy, reserved(row)) {
            *attachment = if mask >> group & 1 == 1 { Outcome::All } else { Outcome::Nobody("reserved_group") };
        }
        let mark = experiment(Mac::BROADCAST, macs[0], &[&number.to_be_bytes()[..], b" and nothing after it"].concat());
        a.try_send(row).unwrap_or_else(|e| panic!("{name}: {e}"));
        a.send(&mark);
        let came = [b.take_until(&mark), c.take_until(&mark)];
        let one = || vec![row.clone()];
        let wanted = match attachment {
            Outcome::OnlyB => [one(), vec![]],
            Outcome::All => [one(), one()],
            Outcome::Nobody(reason) => {
                *reasons.entry((*reason).to_owned()).or_insert(0) += 1;
                if let Some(group) = reserved(row) {
                    *groups.entry(name_of(group)).or_insert(0) += 1;
                }
                [vec![], vec![]]
            }
        };
        assert!(came == wanted, "{name}, {attachment:?}:\nsent {row:02x?}\nreceived {came:02x?}");
        seen.push((*name, *attachment, came.map(|frames| frames.len())));
    }
    let count = |wanted: Outcome| rows.iter().filter(|(_, _, attachment)| *attachment == wanted).count() as u64;
    let ports = setup.daemon.await_idle().into_iter().map(|port| port.counts).collect::<Vec<_>>();
    let (all, only, marks) = (count(Outcome::All), count(Outcome::OnlyB), rows.len() as u64);
    assert_eq!((ports[0].rx_frames, ports[0].forwarded, ports[0].flooded), (2 * marks, only, all + marks));
    assert_eq!((ports[1].tx_frames, ports[2].tx_frames), (only + all + marks, all + marks));
    assert_eq!((ports[0].tx_frames, &ports[0].drops, &ports[0].reserved_groups), (0, &reasons, &groups));
    assert!([a, b, c].iter().all(|nic| nic.rest().is_empty()));
    Some(seen)
}

/// One row per frame: name, expected receivers, and frames received at B and C for each device kind.
///
/// Shows: REQ-06, REQ-11, AT-07
#[test]
fn the_frame_matrix_holds_on_every_device_kind() {
    let kinds = [&[DeviceKind::Tap][..], &[DeviceKind::Xdp], &[DeviceKind::Packet]];
    let seen = kinds.map(|on| every_kind_of_frame(SetupOptions { on, ..PLAIN }, None));
    let [Some(tap), Some(xdp), Some(packet)] = seen else { return };
    println!("{:<26} {:<24} {:>7} {:>7} {:>7}", "frame", "expected", "tap B C", "xdp B C", "pkt B C");
    for ((row, xdp), packet) in tap.iter().zip(&xdp).zip(&packet) {
        let (name, attachment, came) = row;
        let expected = match attachment {
            Outcome::OnlyB => "B".to_owned(),
            Outcome::All => "B and C".to_owned(),
            Outcome::Nobody(reason) => format!("none: {reason}"),
        };
        let [tap, xdp, packet] = [came, &xdp.2, &packet.2].map(|[b, c]| format!("{b} {c}"));
        println!("{name:<26} {expected:<24} {tap:>7} {xdp:>7} {packet:>7}");
    }
    println!("{} frames, all as expected and unmodified", tap.len());
}

/// Shows: REQ-17
#[test]
fn reserved_groups_pass_or_are_dropped_with_their_reason() {
    for on in [&[DeviceKind::Tap][..], &[DeviceKind::Xdp], &[DeviceKind::Packet]] {
        for policy in [("none", 0), ("all", 0xffff), ("0x400d", 0x400d)] {
            every_kind_of_frame(SetupOptions { on, ..PLAIN }, Some(policy));
        }
    }
}

#[test]
fn the_frame_matrix_holds_without_offloads() {
    every_kind_of_frame(SetupOptions { device: ", offloads = false", ..PLAIN }, None);
}

#[test]
fn the_frame_matrix_holds_between_workers() {
    let Some(switch) = two_workers() else { return };
    every_kind_of_frame(SetupOptions { switch, ..PLAIN }, None);
}

/// Each device kind sends, receives and stands by, in combination with each other kind.
///
/// Shows: REQ-06, AT-07
#[test]
fn the_frame_matrix_holds_between_device_kinds() {
    for on in [
        &[DeviceKind::Tap, DeviceKind::Xdp, DeviceKind::Packet][..],
        &[DeviceKind::Xdp, DeviceKind::Packet, DeviceKind::Tap],
        &[DeviceKind::Packet, DeviceKind::Tap, DeviceKind::Xdp],
        &[DeviceKind::Tap, DeviceKind::Packet, DeviceKind::Xdp],
        &[DeviceKind::Xdp, DeviceKind::Tap, DeviceKind::Packet],
        &[DeviceKind::Packet, DeviceKind::Xdp, DeviceKind::Tap],
    ] {
        every_kind_of_frame(SetupOptions { on, ..PLAIN }, None);
    }
}
