//! Load for `scripts/bench`: a generator with a counting sink, and a minimal switch over taps as the limit to compare
//! with. Not run by `cargo bench`.
//!
//! ```text
//! tapload blast --tx NETNS:DEVICE --rx NETNS:DEVICE [--cpu N] [--size 64] [--time S] [--rate PPS --lat]
//! tapload forward A B [vnet] [poll]
//! tapload guest PORTS
//! tapload distance
//! ```
//!
//! `blast` sends at full speed and reports the counters of the receiving netdev; or, with `--lat`, sends at a rate and
//! measures the time until a busy-polling reader receives each frame. Sizes include the FCS (4 bytes). Prints one line
//! of JSON.
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
use std::io::IoSlice;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use netdev::Place;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{MMsgHdr, RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmmsg};
use vifswitch::sys::cores;
use vifswitch::sys::packet::{NOTHING, Socket};
use vifswitch::sys::tun::{Flags, Queue};

/// Ethertype for local experiments, which no stack answers.
const EXPERIMENT: u16 = 0x88b5;
const HERE: [u8; 6] = [2, 0xaa, 0, 0, 0, 0];
const THERE: [u8; 6] = [2, 0xbb, 0, 0, 0, 0];
/// Frames per system call.
const BURST: usize = 32;
const WARM_UP: Duration = Duration::from_millis(200);

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
    let taps = [&arguments[0], &arguments[1]].map(|name| {
        let flags = Flags { vnet_header: has("vnet"), multi_queue: false, exclusive: true };
        let queue = Queue::open(name, flags).unwrap();
        if has("vnet") {
            let _ = queue.set_offloads().unwrap();
        } else {
            queue.clear_offloads().unwrap()
        }
        queue
    });
    let mut room = vec![0; 70_000];
    loop {
        let mut idle = true;
        for (from, to) in [(&taps[0], &taps[1]), (&taps[1], &taps[0])] {
            for _ in 0..BURST {
                let Ok(len) = from.read(&mut room) else { break };
                idle = false;
                // Frames that do not fit are lost, as in any switch.
                let _ = to.write(&room[..len]);
            }
        }
        if idle && has("poll") {
            let mut ends = taps.each_ref().map(|tap| PollFd::new(tap, PollFlags::IN));
            let _ = poll(&mut ends, None);
        }
    }
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
    let burst = 2 * BURST / frames.len();
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
    let number = |key: &str, default: f64| options.get(key).map_or(default, |text| text.parse().unwrap());
    let [from, to] = ["--tx", "--rx"].map(|key| Place::written(options[key]));
    let time = Duration::from_secs_f64(number("--time", 2.0));
    let (size, rate) = (number("--size", 64.0) as usize, number("--rate", 0.0));
    cores::pin(number("--cpu", 0.0) as usize);

    let frame_there = frame(THERE, HERE, size);
    // The receiver sends first, so that the switch learns its port.
    send(to.socket(NOTHING), &frame(HERE, THERE, size), SendFlags::empty()).unwrap();
    if options.contains_key("--lat") {
        latency(&from.socket(NOTHING), &to.socket(EXPERIMENT), &frame_there, rate, time);
    } else {
        throughput(&from.socket(NOTHING), &to, &frame_there, time);
    }
}

fn throughput(socket: &Socket, to: &Place, frame: &[u8], time: Duration) {
    let mut offered = 0;
    let mut send_for = |time: Duration| {
        let begin = Instant::now();
        while begin.elapsed() < time {
            let slices = [IoSlice::new(frame)];
            let mut controls: [_; BURST] = std::array::from_fn(|_| SendAncillaryBuffer::default());
            let mut messages: Vec<_> = controls.iter_mut().map(|control| MMsgHdr::new(&slices, control)).collect();
            match sendmmsg(socket, &mut messages, SendFlags::DONTWAIT) {
                Ok(sent) => offered += sent as u64,
                Err(Errno::AGAIN | Errno::NOBUFS) => {}
                Err(e) => panic!("sending: {e}"),
            }
        }
    };
    send_for(WARM_UP);
    let mut counters = to.counters();
    let (before, begin) = (counters.received(), Instant::now());
    send_for(time);
    let (received, spent) = (counters.received() - before, begin.elapsed().as_secs_f64());
    println!(
        r#"{{"offered_pps":{:.0},"received_pps":{:.0}}}"#,
        offered as f64 / (spent + WARM_UP.as_secs_f64()),
        received as f64 / spent
    );
}

fn latency(sender: &Socket, receiver: &Socket, frame: &[u8], rate: f64, time: Duration) {
    let mut frame = frame.to_vec();
    let mut times = Vec::with_capacity((time.as_secs_f64() * rate) as usize + 1);
    let (begin, mut sent) = (Instant::now(), 0u64);
    let mut room = [0; 2048];
    // Waits for the last frames.
    while begin.elapsed() < WARM_UP + time {
        let due = begin + Duration::from_secs_f64(sent as f64 / rate);
        if Instant::now() >= due {
            frame[14..22].copy_from_slice(&(begin.elapsed().as_nanos() as u64).to_be_bytes());
            match send(sender, &frame, SendFlags::DONTWAIT) {
                Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS) => sent += 1,
                Err(e) => panic!("sending: {e}"),
            }
        }
        if let Ok((len, _)) = recv(receiver, &mut room[..], RecvFlags::DONTWAIT)
            && len >= 22
            && begin.elapsed() > WARM_UP
        {
            let stamp = u64::from_be_bytes(room[14..22].try_into().unwrap());
            times.push(begin.elapsed().as_nanos() as u64 - stamp);
        }
    }
    times.sort_unstable();
    let at = |part: f64| times.get((times.len() as f64 * part) as usize).map_or(f64::NAN, |&ns| ns as f64 / 1e3);
    let received = times.len() as f64 / time.as_secs_f64();
    println!(r#"{{"received_pps":{received:.0},"p50_us":{:.2},"p99_us":{:.2}}}"#, at(0.5), at(0.99));
}
