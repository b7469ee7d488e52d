//! Frames of any length from every kind of port to every kind. Needs root; makes its own namespaces.

use support::host::daemon::Daemon;
use support::host::nic::{Nic, experiment};
use support::host::setup::{DeviceKind, Setup, guests};

/// Two ports of each kind, and two by AF_XDP on taps of other owners: each sends to each.
///
/// Shows: REQ-10
#[test]
fn jumbo_frames_pass_unmodified_between_all_kinds() {
    const MTU: u16 = 9000;
    let on = [DeviceKind::Tap, DeviceKind::Xdp, DeviceKind::Packet, DeviceKind::Tap];
    let vms = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let Some((spaces, mut vifs)) = guests(&vms, &on, MTU) else { return };
    let mut held = Vec::new();
    for index in [3, 7] {
        let (namespace, vif) = (&spaces[index], &mut vifs[index]);
        held.push(Nic::owned_tap(namespace, &vif.name));
        namespace.ip(&format!("link set dev {} mtu {MTU} up", vif.name));
        vif.kind = "xdp";
    }
    let daemon = Daemon::with("", &[("net1", MTU)], &vifs);
    let setup = Setup { daemon, vifs, spaces };
    let mut held = held.into_iter();
    let nics: Vec<Nic> =
        (0..vms.len()).map(|index| if index % 4 == 3 { held.next().unwrap() } else { setup.nic(index) }).collect();
    for (from, at) in nics.iter().enumerate() {
        for (to, there) in nics.iter().enumerate().filter(|(to, _)| *to != from) {
            // Around the capacity of an AF_XDP chunk, and of a packet ring slot.
            for len in [14, 60, 1514, 2048, 3840, 3841, 7680, 7681, 9014] {
                let payload: Vec<u8> = (0..len - 14).map(|i| (i * 31 + i / 251 + from * 7 + to) as u8).collect();
                let frame = experiment(setup.vifs[to].mac, setup.vifs[from].mac, &payload);
                at.send(&frame);
                let came = there.take();
                assert!(
                    came == frame,
                    "{len} bytes from {:?} to {:?}: {} received",
                    on[from % 4],
                    on[to % 4],
                    came.len()
                );
            }
        }
    }
    let ports = setup.daemon.await_idle();
    let each = (9 * (vms.len() - 1)) as u64;
    for port in ports.iter().map(|port| &port.counts) {
        assert_eq!((port.rx_frames, port.tx_frames, port.drops.len()), (each, each, 0), "{port:?}");
    }
    assert!(nics.iter().all(|nic| nic.rest().is_empty()), "no frame is duplicated or misdelivered");
}
