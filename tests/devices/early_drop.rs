//! Early drop on a running switch: a storm at an AF_XDP port is dropped by its XDP program, and every frame is
//! counted. Needs root; makes its own namespaces.

use support::host::daemon::{Daemon, Vif};
use support::host::nic::{Nic, experiment};
use support::host::{Namespace, await_that};
use vifswitch::device::xdp::program::NEVER_DROP;
use vifswitch::time;
use vifswitch::wire::Mac;

/// Frames of a storm between two readings.
const ROUND: u64 = 2000;

/// Frames that a netdev has dropped on receive.
fn dropped(namespace: &Namespace, name: &str) -> u64 {
    namespace.run_in(|| {
        let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}:"))).unwrap();
        line.split_whitespace().nth(3).unwrap().parse().unwrap()
    })
}

/// On a tap the XDP program runs within the write of a frame, so that each written frame is received, dropped early
/// or missed. The tap counts drops of its program and frames that find the rings full, which the switch counts as
/// missed; the difference was dropped early.
#[test]
fn a_storm_is_dropped_early_and_every_frame_counted() {
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
        let xdp_dropped = await_that("early drop", || {
            for _ in 0..ROUND {
                guest.send(&experiment(to, busy_port.mac, &[7; 46]));
            }
            sent += ROUND;
            // Missed frames of the device are read when the worker is idle.
            let counts = await_that("all frames to be counted", || {
                daemon.await_idle();
                Some(daemon.port(&busy_port).counts).filter(|counts| counts.rx_frames + counts.rx_missed == sent)
            });
            Some(dropped(&host, "storm") - before - counts.rx_missed).filter(|&xdp_dropped| xdp_dropped > ROUND)
        });
        let counts = daemon.port(&busy_port).counts;
        assert!(xdp_dropped <= counts.drops[reason], "{xdp_dropped} of {counts:?}");
        assert_eq!(counts.rx_frames, counts.flooded + counts.drops[reason], "{counts:?}");
        assert_eq!(counts.rx_bytes, counts.rx_frames * 60);
        // The bystander receives what the limit admits, and no more.
        let most = 500 + 500 * time::now().since(start).as_millis() as u64 / 1000 + 1;
        assert!((500..=most).contains(&counts.flooded), "{} of {most}", counts.flooded);
        let came = std::iter::from_fn(|| listener.try_take()).count() as u64;
        assert_eq!(came, counts.flooded);
        // During the storm, unicast passes, and frames that are never dropped early arrive.
        for _ in 0..ROUND {
            guest.send(&experiment(to, busy_port.mac, &[7; 46]));
        }
        guest.send(&experiment(NEVER_DROP[1], busy_port.mac, b"spanning tree"));
        guest.send(&experiment(bystander.mac, busy_port.mac, b"the last frame"));
        let mut others = std::iter::from_fn(|| Some(listener.take())).filter(|bytes| !bytes.starts_with(&to.octets()));
        let expected = [(NEVER_DROP[1], &b"spanning tree"[..]), (bystander.mac, b"the last frame")];
        for (to, tale) in expected {
            assert_eq!(others.next().unwrap(), experiment(to, busy_port.mac, tale));
        }
    }
}
