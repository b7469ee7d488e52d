//! Early drop, on a switch that runs: a storm at an AF_XDP port dies in the driver, and every frame of
//! it is in the books. As root, in namespaces of their own.

use support::host::daemon::{Daemon, Vif};
use support::host::nic::{Nic, experiment};
use support::host::{Namespace, await_that};
use vifswitch::device::xdp::program::NEVER_DROP;
use vifswitch::time;
use vifswitch::wire::Mac;

/// Frames of a storm between two looks.
const ROUND: u64 = 2000;

/// Frames that a netdev has dropped on their way in.
fn dropped(namespace: &Namespace, name: &str) -> u64 {
    namespace.run_in(|| {
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
    let (Some(host), Some(other)) = (Namespace::new(), Namespace::new()) else { return };
    let guest = Nic::owned_tap(&host, "storm");
    host.ip("link set dev storm up");
    let busy_port = Vif { kind: "xdp", name: "storm".into(), ..Vif::new("loud", 1, &host) };
    let bystander = Vif::new("quiet", 2, &other);
    for (to, reason, more) in [
        (Mac::BROADCAST, "storm_broadcast", ""),
        (Mac::from_bits(0x0100_5e00_0001), "storm_multicast", "storm = { multicast = { pps = 500 } }"),
    ] {
        let busy_port = Vif { more: more.into(), ..busy_port.clone() };
        let daemon = Daemon::over(&[busy_port.clone(), bystander.clone()]);
        let listener = Nic::new(&other, &bystander.name);
        let (start, before) = (time::now(), dropped(&host, "storm"));
        let mut sent = 0;
        let xdp_dropped = await_that("something is shed", || {
            for _ in 0..ROUND {
                guest.send(&experiment(to, busy_port.mac, &[7; 46]));
            }
            sent += ROUND;
            // What the device has missed is asked for when there is time.
            let counts = await_that("all of it is in the books", || {
                daemon.await_idle();
                Some(daemon.port(&busy_port).counts).filter(|counts| counts.rx_frames + counts.rx_missed == sent)
            });
            Some(dropped(&host, "storm") - before - counts.rx_missed).filter(|&xdp_dropped| xdp_dropped > ROUND)
        });
        let counts = daemon.port(&busy_port).counts;
        assert!(xdp_dropped <= counts.drops[reason], "{xdp_dropped} of {counts:?}");
        assert_eq!(counts.rx_frames, counts.flooded + counts.drops[reason], "{counts:?}");
        assert_eq!(counts.rx_bytes, counts.rx_frames * 60);
        // The bystander gets what the limit lets pass, and no more.
        let most = 500 + 500 * time::now().since(start).as_millis() as u64 / 1000 + 1;
        assert!((500..=most).contains(&counts.flooded), "{} of {most}", counts.flooded);
        let came = std::iter::from_fn(|| listener.try_take()).count() as u64;
        assert_eq!(came, counts.flooded);
        // In the midst of it, what is for one station passes, and what is never shed arrives.
        for _ in 0..ROUND {
            guest.send(&experiment(to, busy_port.mac, &[7; 46]));
        }
        guest.send(&experiment(NEVER_DROP[1], busy_port.mac, b"spanning tree"));
        guest.send(&experiment(bystander.mac, busy_port.mac, b"the last one"));
        let mut others = std::iter::from_fn(|| Some(listener.take())).filter(|bytes| !bytes.starts_with(&to.octets()));
        let expected = [(NEVER_DROP[1], &b"spanning tree"[..]), (bystander.mac, b"the last one")];
        for (to, tale) in expected {
            assert_eq!(others.next().unwrap(), experiment(to, busy_port.mac, tale));
        }
    }
}
