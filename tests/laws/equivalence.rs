//! Equivalence: any number of workers, with any RX memory, delivers the same frames to the same ports. Needs nothing
//! of the host.

use std::time::Duration;

use proptest::prelude::*;
use vifswitch::device::loopback::RxMemory;
use vifswitch::wire::Offload;

use crate::generators::{self, Act};
use support::lab::{Lab, PortSpec, Setup, UplinkSpec};

/// Frames that each guest receives, with `virtio_net_hdr`. Every third port takes no offloads.
fn deliveries(
    port_specs: &[PortSpec],
    uplink_specs: &[UplinkSpec],
    workers: u16,
    memory: RxMemory,
    acts: &[Act],
) -> Vec<Vec<(Vec<u8>, Offload)>> {
    let setup = Setup { workers, memory, mtu: 9000, ..Setup::default() };
    let mut lab = Lab::build(setup, port_specs, uplink_specs, |port, end| Box::new(end.with_offloads(port % 3 != 1)));
    let has_trunks = port_specs.iter().any(|spec| spec.trunk.is_some());
    for act in acts {
        match act {
            Act::Send(sketch) => {
                // No two frames have the same time: between workers the port would decide which is later.
                lab.advance(Duration::from_nanos(1));
                let port = sketch.port(port_specs.len() + uplink_specs.len());
                let (bytes, offload) = sketch.offer(port_specs.len(), uplink_specs.len());
                let Some((bytes, offload)) = lab.tagged(port, &bytes, offload) else { continue };
                let base = lab.base(port);
                assert!(lab.ends[base].send(&bytes, offload));
                lab.settle();
            }
            Act::Advance(seconds) => lab.advance(Duration::from_secs(*seconds)),
        }
    }
    lab.check_counters();
    // Order is kept per port of a trunk, not between its ports.
    let arrived = if has_trunks {
        lab.sorted()
    } else {
        lab.ends.iter_mut().map(|end| std::iter::from_fn(|| end.take()).collect()).collect()
    };
    lab.end();
    arrived
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn any_number_of_workers_delivers_the_same_frames(port_specs in generators::measured(prop_oneof![generators::port_specs(2), generators::trunks(2)]), uplink_specs in generators::uplink_specs(2), acts in generators::acts(9, 60)) {
        let one = deliveries(&port_specs, &uplink_specs, 1, RxMemory::Owned, &acts);
        for (workers, memory) in [(1, RxMemory::Lent), (2, RxMemory::Owned), (2, RxMemory::Lent), (3, RxMemory::Owned), (3, RxMemory::Lent)] {
            let these = deliveries(&port_specs, &uplink_specs, workers, memory, &acts);
            for (port, (expected, these)) in one.iter().zip(&these).enumerate() {
                prop_assert_eq!(these.len(), expected.len(), "port {}, {} workers, {:?}", port, workers, memory);
                prop_assert!(these == expected, "port {}, {} workers, {:?}: frames differ", port, workers, memory);
            }
        }
    }
}
