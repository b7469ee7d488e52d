//! Law 4 on real devices: what the switch has been told of addresses makes no difference to any frame, nor to
//! any count, as long as nobody has asked for `mac+ip`. The law itself is among `laws`.

use vifswitch::control::api::responses::CountsView;

use super::matrix::matrix;
use super::nat::recorded;
use support::host::daemon::{Daemon, Vif};
use support::host::setup::{DeviceKind, guests};

/// What a port is told of its addresses, by its number.
const ADDRESSES: [fn(u8) -> String; 5] = [
    |_| String::new(),
    |_| "fixed_ips = []\nip_allocation = \"none\"".into(),
    |_| "ip_allocation = \"deferred\"".into(),
    |number| {
        format!("fixed_ips = [\"10.10.{}.11\", \"2001:db8::{number}\"]\nip_allocation = \"immediate\"", number + 1)
    },
    |number| format!("fixed_ips = [\"192.0.2.{}\"]\nip_allocation = \"deferred\"", number + 1),
];

/// What came to each port, and what was counted there.
type Capture = (Vec<Vec<Vec<u8>>>, Vec<CountsView>);

/// Says everything on two networks of two ports each, which have been told this, too.
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
        // One port behind the other, so that there is but one order.
        daemon.await_idle();
    }
    for (from, to) in [(0, 1), (1, 0), (2, 3), (3, 2)] {
        let macs = [from, to].map(|at: usize| -> &Vif { &vifs[at] }).map(|vif| vif.mac);
        let rows = matrix(macs[0], macs[1]).into_iter().map(|(_, frame, _)| frame);
        rows.filter(|frame| frame.len() <= 1514).for_each(|frame| nics[from].send(&frame));
        daemon.await_idle();
    }
    let counts = daemon.await_idle().into_iter().map(|port| port.counts).collect();
    Some((nics.iter().map(|nic| nic.rest()).collect(), counts))
}

#[test]
fn what_the_switch_knows_of_addresses_makes_no_difference() {
    let Some(said) = recorded() else { return };
    assert!(said.iter().all(|frames| frames.len() >= 5), "{said:02x?}");
    for on in DeviceKind::ALL {
        for security in ["mac", "off"] {
            let Some(blank) = capture(on, security, ADDRESSES[0], &said) else { return };
            assert!(blank.0.iter().all(|frames| frames.len() > 50), "{on:?}: it was to be more than nothing");
            for events in &ADDRESSES[1..] {
                let Some(this) = capture(on, security, *events, &said) else { return };
                assert!(this.0 == blank.0, "{on:?}, {security}, {:?}: other frames", events(0));
                assert_eq!(this.1, blank.1, "{on:?}, {security}, {:?}", events(0));
            }
        }
        // Where it is asked for, it does: the captures can tell.
        let [blank, events] = [ADDRESSES[0], ADDRESSES[3]].map(|events| capture(on, "mac+ip", events, &said).unwrap());
        assert!(events.0 != blank.0, "{on:?}");
    }
}
