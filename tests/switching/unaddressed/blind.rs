//! Blindness on real devices: configured addresses change no frame and no counter without `mac+ip`.
//! `tests/laws/blindness.rs` shows the same for random frames. Needs root; makes its own namespaces.

use vifswitch::control::api::responses::CountsView;
use vifswitch::wire::Probe;

use super::matrix::matrix;
use super::nat::recorded;
use support::host::daemon::{Daemon, Vif};
use support::host::setup::{DeviceKind, guests};

/// Address configuration of a port, by its number.
const ADDRESSES: [fn(u8) -> String; 5] = [
    |_| String::new(),
    |_| "fixed_ips = []\nip_allocation = \"none\"".into(),
    |_| "ip_allocation = \"deferred\"".into(),
    |number| {
        format!("fixed_ips = [\"10.10.{}.11\", \"2001:db8::{number}\"]\nip_allocation = \"immediate\"", number + 1)
    },
    |number| format!("fixed_ips = [\"192.0.2.{}\"]\nip_allocation = \"deferred\"", number + 1),
];

/// Received frames and counters of each port.
type Capture = (Vec<Vec<Vec<u8>>>, Vec<CountsView>);

/// Sends all frames on two networks of two ports each, configured with these addresses.
fn capture(on: DeviceKind, security: &str, events: fn(u8) -> String, said: &[Vec<Vec<u8>>; 4]) -> Option<Capture> {
    let (spaces, mut vifs) = guests(&["vm1", "vm2", "vm2", "vm3"], &[on], 1500)?;
    for ((number, vif), of) in (0..).zip(&mut vifs).zip([0x0111, 0x0112, 0x0212, 0x0213]) {
        vif.network = if number < 2 { "net1" } else { "net2" }.into();
        vif.mac = vifswitch::wire::Mac::from_bits(0x0200_0000_0000 + of);
        vif.more = format!("port_security = \"{security}\"\n{}", events(number));
    }
    let daemon = Daemon::with("", &[("net1", 1500), ("net2", 1500)], &vifs);
    let nics: Vec<_> =
        vifs.iter().zip(&spaces).map(|(vif, namespace)| support::host::nic::Nic::new(namespace, &vif.name)).collect();
    for (from, frames) in said.iter().enumerate() {
        frames.iter().for_each(|frame| nics[from].send(frame));
        // One port after the other, for a fixed order.
        daemon.await_idle();
    }
    for (from, to) in [(0, 1), (1, 0), (2, 3), (3, 2)] {
        let macs = [from, to].map(|at: usize| -> &Vif { &vifs[at] }).map(|vif| vif.mac);
        let rows = matrix(macs[0], macs[1]).into_iter().map(|(_, frame, _)| frame);
        rows.filter(|frame| frame.len() <= 1514).for_each(|frame| nics[from].send(&frame));
        daemon.await_idle();
    }
    let counts = daemon.await_idle().into_iter().map(|port| without_probes(port.counts)).collect();
    Some((nics.iter().map(|nic| nic.rest()).collect(), counts))
}

/// The counters without loop probes, which come by the second: slow captures have more of them.
fn without_probes(mut counts: CountsView) -> CountsView {
    let probes = std::mem::take(&mut counts.probes);
    counts.tx_frames -= probes;
    counts.tx_bytes -= probes * Probe::LEN as u64;
    counts
}

/// Shows: REQ-05
#[test]
fn configured_addresses_change_no_frame_on_real_devices() {
    let Some(said) = recorded() else { return };
    assert!(said.iter().all(|frames| frames.len() >= 5), "{said:02x?}");
    for on in DeviceKind::ALL {
        for security in ["mac", "off"] {
            let Some(blank) = capture(on, security, ADDRESSES[0], &said) else { return };
            assert!(blank.0.iter().all(|frames| frames.len() > 50), "{on:?}: frames were received");
            for events in &ADDRESSES[1..] {
                let Some(this) = capture(on, security, *events, &said) else { return };
                assert!(this.0 == blank.0, "{on:?}, {security}, {:?}: frames differ", events(0));
                assert_eq!(this.1, blank.1, "{on:?}, {security}, {:?}", events(0));
            }
        }
        // Control: with `mac+ip` the captures differ.
        let [blank, events] = [ADDRESSES[0], ADDRESSES[3]].map(|events| capture(on, "mac+ip", events, &said).unwrap());
        assert!(events.0 != blank.0, "{on:?}");
    }
}
