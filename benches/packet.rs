//! Cost per frame of a packet port: receive and transmit over veths, by one thread. Run as root.
//!
//! ```text
//! cargo bench --bench packet
//! ```
//!
//! Median over many bursts of 64 frames, in nanoseconds per frame. Transmit figures include the kernel's work at the
//! veth's peer, which runs within the sender's system call. Compare ratios, not absolute values.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, clippy::disallowed_methods)]

use std::time::Instant;

use vifswitch::device::packet::{self, Settings};
use vifswitch::device::{Device, Opened};
use vifswitch::frame::{BURST, Batch, Magazine, Pool, TxBatch};
use vifswitch::sys::packet::{EVERYTHING, Socket};
use vifswitch::wire::Offload;

use support::host::nic::Nic;
use support::host::{EXPERIMENT, Namespace};

const ROUNDS: usize = 2000;

/// Median time of `work` in nanoseconds per frame. `prepare` is not counted.
fn median<T>(mut prepare: impl FnMut() -> T, mut work: impl FnMut(T)) -> f64 {
    let mut spent: Vec<u128> = (0..ROUNDS)
        .map(|_| {
            let prepared = prepare();
            let begin = Instant::now();
            work(prepared);
            begin.elapsed().as_nanos()
        })
        .collect();
    spent.sort_unstable();
    spent[ROUNDS / 2] as f64 / BURST as f64
}

fn open(namespace: &Namespace, offloads: bool) -> Box<dyn Device> {
    let settings = Settings {
        name: "port".into(),
        netns: namespace.netns(),
        offloads,
        isolate: false,
        mtu: 1500,
        owner: "port-1".into(),
    };
    let Opened { mut queues, .. } = packet::open(&settings).unwrap();
    queues.remove(0)
}

fn main() {
    let Some(spaces) = (0..2).map(|_| Namespace::new()).collect::<Option<Vec<_>>>() else { return };
    let [port, guest] = &spaces[..] else { unreachable!("there are two") };
    port.ip(&format!("link add dev port type veth peer name guest netns {}", guest.0));
    port.ip("link set dev port up");
    guest.ip("link set dev guest up");
    let index = port.link("port").unwrap().index;
    let mut magazine = Magazine::new(Pool::new(4096).unwrap());
    let mut batch = Batch::new();
    let mut tx = TxBatch::with_capacity(BURST);
    println!("{:<44} {:>8} {:>8}", "ns per frame", "60 B", "1514 B");
    let message = |what: &str, cost: &mut dyn FnMut(&[u8]) -> f64| {
        let costs = [60, 1514].map(|len| {
            let mut frame = [&[2, 0xbb, 0, 0, 0, 1], &[2, 0xaa, 0, 0, 0, 1], &EXPERIMENT.to_be_bytes()[..]].concat();
            frame.resize(len, 0);
            cost(&frame)
        });
        println!("{what:<44} {:>8.0} {:>8.0}", costs[0], costs[1]);
    };

    let mut device = open(port, true);
    let nic = Nic::new(guest, "guest");
    let burst_from_nic = |frame: &[u8]| (0..BURST).for_each(|_| nic.send(frame));
    message("received by ring", &mut |frame| {
        median(
            || burst_from_nic(frame),
            |()| {
                device.receive(&mut batch, &mut magazine).unwrap();
                assert_eq!(batch.len(), BURST);
                batch.clear(&mut magazine);
            },
        )
    });
    drop(device);
    let socket = port.run_in(Socket::new).unwrap();
    socket.set_header().unwrap();
    socket.tell_tags().unwrap();
    socket.set_room(8 << 20, 0).unwrap();
    socket.bind(index, EVERYTHING).unwrap();
    let mut room = vec![0; 70_000];
    message("received by recvmsg", &mut |frame| {
        median(
            || burst_from_nic(frame),
            |()| (0..BURST).for_each(|_| assert!(socket.receive(&mut room).unwrap().is_some())),
        )
    });
    drop((socket, nic));
    let batch = Batch::new();
    for (what, offloads) in [("sent, with virtio_net_hdr", true), ("sent, without virtio_net_hdr", false)] {
        let mut device = open(port, offloads);
        message(what, &mut |frame| {
            median(
                || (),
                |()| {
                    (0..BURST).for_each(|_| tx.push(magazine.frame(frame, Offload::NONE).unwrap()));
                    assert_eq!(device.transmit(&mut tx, &batch, &mut magazine).frames, BURST as u64);
                },
            )
        });
    }
}
