//! Shedding at the door, on a switch that runs: a storm at an AF_XDP port dies in the driver, and every frame of
//! it is in the books. As root, in namespaces of their own.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // the helpers of a test fail as the test does

mod host;

use host::daemon::{Daemon, Vif};
use host::nic::{Nic, experiment};
use host::{Space, await_that};
use vifswitch::device::xdp::program::SPARED;
use vifswitch::time;
use vifswitch::wire::Mac;

/// Frames of a storm between two looks.
const ROUND: u64 = 2000;

/// Frames that a netdev has dropped on their way in.
fn dropped(space: &Space, name: &str) -> u64 {
    space.within(|| {
        let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}:"))).unwrap();
        line.split_whitespace().nth(3).unwrap().parse().unwrap()
    })
}

/// A program on a tap runs within the call that writes a frame, so that nothing is on its way unseen: what was
/// written was received, shed or missed. A tap counts what its program drops, and what finds no room in the rings,
/// which is what the switch has missed; so the rest of that was shed.
#[test]
fn a_storm_dies_in_the_driver_and_every_frame_of_it_is_in_the_books() {
    let (Some(host), Some(other)) = (Space::new(), Space::new()) else { return };
    let guest = Nic::held(&host, "storm");
    host.ip("link set dev storm up");
    let loud = Vif { kind: "xdp", name: "storm".into(), ..Vif::new("loud", 1, &host) };
    let bystander = Vif::new("quiet", 2, &other);
    for (to, reason, more) in [
        (Mac::BROADCAST, "storm_broadcast", ""),
        (Mac::from_bits(0x0100_5e00_0001), "storm_multicast", "storm = { multicast = { pps = 500 } }"),
    ] {
        let loud = Vif { more: more.into(), ..loud.clone() };
        let daemon = Daemon::over(&[loud.clone(), bystander.clone()]);
        let ear = Nic::new(&other, &bystander.name);
        let (start, before) = (time::now(), dropped(&host, "storm"));
        let mut sent = 0;
        let shed = await_that("something is shed", || {
            for _ in 0..ROUND {
                guest.send(&experiment(to, loud.mac, &[7; 46]));
            }
            sent += ROUND;
            // What the device has missed is asked for when there is time.
            let counts = await_that("all of it is in the books", || {
                daemon.quiet();
                Some(daemon.port(&loud).counts).filter(|counts| counts.rx_frames + counts.missed == sent)
            });
            Some(dropped(&host, "storm") - before - counts.missed).filter(|&shed| shed > ROUND)
        });
        let counts = daemon.port(&loud).counts;
        assert!(shed <= counts.drops[reason], "{shed} of {counts:?}");
        assert_eq!(counts.rx_frames, counts.flooded + counts.drops[reason], "{counts:?}");
        assert_eq!(counts.rx_bytes, counts.rx_frames * 60);
        // The bystander gets what the limit lets pass, and no more.
        let most = 500 + 500 * time::now().since(start).as_millis() as u64 / 1000 + 1;
        assert!((500..=most).contains(&counts.flooded), "{} of {most}", counts.flooded);
        let came = std::iter::from_fn(|| ear.try_take()).count() as u64;
        assert_eq!(came, counts.flooded);
        // In the midst of it, what is for one station passes, and what is never shed arrives.
        for _ in 0..ROUND {
            guest.send(&experiment(to, loud.mac, &[7; 46]));
        }
        guest.send(&experiment(SPARED[1], loud.mac, b"spanning tree"));
        guest.send(&experiment(bystander.mac, loud.mac, b"the last one"));
        let mut others = std::iter::from_fn(|| Some(ear.take())).filter(|bytes| !bytes.starts_with(&to.octets()));
        let expected = [(SPARED[1], &b"spanning tree"[..]), (bystander.mac, b"the last one")];
        for (to, tale) in expected {
            assert_eq!(others.next().unwrap(), experiment(to, loud.mac, tale));
        }
    }
}
