//! Load for `scripts/bench`: a generator with a sink, and a minimal switch over taps as the limit to compare with. Not run
//! by `cargo bench`.
//!
//! ```text
//! tapload blast --tx NETNS:DEVICE --rx NETNS:DEVICE [--cpu N] [--size 64] [--time S] [--warm S]
//!     [--rate PPS [--burst 32] [--sleep] | --ndr LOSS]
//! tapload forward A B [vnet] [poll]
//! tapload guest PORTS
//! tapload distance
//! ```
//!
//! `blast` sends from one netdev to another and prints lines of a name and a figure. Without a rate it sends at full speed:
//! `mpps` that the receiving netdev got, and `offered`. With one it also prints latencies: `p50`, `p99` and `p999` in µs,
//! from when a frame was due until the receiving netdev got it, `inf` where that frame was lost; and the `loss` in percent.
//! With `--sleep` the sender sleeps while no frame is due, so that it does not take a whole core. `--ndr` searches for the
//! highest rate with at most this loss: `mpps`. Sizes include the FCS (4 bytes).
//!
//! `forward` creates two taps in its namespace and forwards between them until killed; `vnet`: with `virtio_net_hdr`,
//! `poll`: sleeps when idle.
//!
//! `guest` opens the taps v0, v1, …, as QEMU does, prints "ready", and then writes bursts of 64-byte frames (FCS
//! included) to the even ones and reads from all of them, until killed.
//!
//! `distance` prints the round trip time of a cache line between core 0 and core 1 in nanoseconds: some 60 with a
//! common cache, some 350 without. In a virtual machine it changes when the host moves the virtual cores.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, clippy::disallowed_methods)]

mod netdev;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use netdev::generator::BURST;
use netdev::trial::Trial;
use netdev::{EXPERIMENT, Place};
use vifswitch::sys::cores;
use vifswitch::sys::tun::{Flags, Queue};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((what, rest)) if what == "forward" && rest.len() >= 2 => forward(rest),
        Some((what, rest)) if what == "blast" => blast(rest),
        Some((what, [ports])) if what == "guest" => guest(ports.parse().unwrap()),
        Some((what, [])) if what == "distance" => println!("{}", distance().as_nanos()),
        _ => {
            eprintln!(
                "usage: tapload blast --tx NETNS:DEVICE --rx NETNS:DEVICE … | tapload forward A B [vnet] [poll] | tapload guest PORTS | tapload distance"
            );
            std::process::exit(2);
        }
    }
}

fn forward(arguments: &[String]) {
    let has = |word: &str| arguments[2..].iter().any(|argument| argument == word);
    netdev::forward::open([&arguments[0], &arguments[1]], has("vnet")).run(has("poll"), || false);
}

fn guest(ports: u8) {
    let flags = Flags { vnet_header: false, multi_queue: false, exclusive: true };
    let taps: Vec<_> = (0..ports).map(|port| Queue::open(&format!("v{port}"), flags).unwrap()).collect();
    for tap in &taps {
        tap.clear_offloads().unwrap();
    }
    println!("ready");
    let mac = |port: u8| [2, 0, 0, 0, 0, port + 1];
    let frames: Vec<_> = (0..ports).step_by(2).map(|port| frame(mac(port + 1), mac(port), 64)).collect();
    // The same number of frames per round for any number of ports.
    let burst = 2 * BURST as usize / frames.len();
    let mut room = [0; 2048];
    loop {
        for (pair, frame) in taps.chunks_exact(2).zip(&frames) {
            for _ in 0..burst {
                // Fails while the netdev is down.
                let _ = pair[0].write(frame);
            }
            for tap in pair {
                while tap.read(&mut room).is_ok() {}
            }
        }
    }
}

/// Round trip time: the minimum over several batches, so that interrupted ones do not count.
fn distance() -> Duration {
    const BATCHES: u32 = 10;
    const ROUNDS: u32 = 10_000;
    let ball = AtomicU32::new(0);
    // bounded: a core that is taken away for good must not hang the bench
    let wait_for = |value| {
        let since = Instant::now();
        while ball.load(Ordering::Acquire) != value {
            assert!(since.elapsed() < Duration::from_secs(10), "the other core does not answer");
        }
    };
    std::thread::scope(|threads| {
        threads.spawn(|| {
            cores::pin(1);
            for round in 0..BATCHES * ROUNDS {
                wait_for(2 * round + 1);
                ball.store(2 * round + 2, Ordering::Release);
            }
        });
        cores::pin(0);
        let batches = (0..BATCHES).map(|batch| {
            let since = Instant::now();
            for round in batch * ROUNDS..(batch + 1) * ROUNDS {
                ball.store(2 * round + 1, Ordering::Release);
                wait_for(2 * round + 2);
            }
            since.elapsed() / ROUNDS
        });
        batches.min().unwrap()
    })
}

fn frame(to: [u8; 6], from: [u8; 6], size: usize) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend(EXPERIMENT.to_be_bytes());
    frame.resize(size - 4, 0);
    frame
}

fn blast(arguments: &[String]) {
    let mut options = HashMap::new();
    let mut words = arguments.iter().peekable();
    while let Some(word) = words.next() {
        let value = words.next_if(|next| !next.starts_with("--"));
        options.insert(word.as_str(), value.map_or("", String::as_str));
    }
    let number =
        |key: &str| options.get(key).map(|text| text.parse::<f64>().unwrap_or_else(|_| panic!("{key} {text}")));
    let [from, to] = ["--tx", "--rx"].map(|key| Place::written(options[key]));
    let time = Duration::from_secs_f64(number("--time").unwrap_or(2.0));
    let warm_up = Duration::from_secs_f64(number("--warm").unwrap_or(0.2));
    netdev::stay_on(number("--cpu").unwrap_or(0.0) as usize);

    let trial = Trial::new(from, to, number("--size").unwrap_or(64.0) as usize);
    if let Some(loss) = number("--ndr") {
        let best = trial.no_drop(loss, time);
        assert!(best.received > 0.0, "at no rate less than {loss} was lost");
        println!("mpps {:.4}", best.received / 1e6);
    } else if let Some(rate) = number("--rate") {
        let burst = number("--burst").map_or(BURST, |burst| burst as u64);
        let them = trial.paced(rate, burst, warm_up, time, options.contains_key("--sleep"));
        println!("mpps {:.4}\noffered {:.4}", them.rates.received / 1e6, them.rates.offered / 1e6);
        println!("loss {:.4}", 100.0 * them.lost() as f64 / them.sent() as f64);
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
            println!("{name} {:.2}", them.at(share));
        }
    } else {
        let rates = trial.flood(warm_up, time);
        assert!(rates.received > 0.0, "no frame arrived");
        println!("mpps {:.4}\noffered {:.4}", rates.received / 1e6, rates.offered / 1e6);
    }
}
