//! Fuzzing: millions of generated and corrupted frames through whole workers with every policy on. An oracle that
//! shares no code with the switch decides for each received frame whether it may be delivered. Needs nothing of the
//! host.
//!
//! The test is a short run. `scripts/test --long` makes the long one, by environment variables: `FRAMES` (number), `SEED`,
//! `WORLD` (only this world), `FRAME` with `EPOCH` (only this frame, as a failure prints it).
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod frames;
mod limits;
mod oracle;
mod parts;
mod rng;
mod targets;
mod topology;
mod world;

use std::cell::RefCell;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use vifswitch::switch::DropReason;

use frames::{CLASSES, MAX_LEN, SentFrame};
use rng::Rng;
use world::{FRAMES, Failure, Score, World, hex};

/// Frames of the short run.
const SHORT: u64 = 3 * FRAMES;
const SEED: u64 = 5;

/// Runs of each input of a corpus.
const MUTATIONS: usize = 30;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// Runs one world. Returns the failure, including a panic, with epoch and burst.
fn run(seed: u64, world: u64, frames: u64, score: &mut Score) -> Result<(), (Failure, u64, Vec<SentFrame>)> {
    let last: RefCell<(u64, Vec<SentFrame>)> = RefCell::default();
    let note = |epoch, shots: &[SentFrame]| *last.borrow_mut() = (epoch, shots.to_vec());
    let done = catch_unwind(AssertUnwindSafe(|| World::new(seed, world, 0).run((seed, world), frames, score, note)));
    let (epoch, shots) = last.into_inner();
    done.unwrap_or_else(|why| Err(Failure { what: events(&*why), shot: None }))
        .map_err(|failure| (failure, epoch, shots))
}

fn events(why: &(dyn std::any::Any + Send)) -> String {
    let text = why.downcast_ref::<String>().map(String::as_str).or(why.downcast_ref::<&str>().copied());
    format!("panic: {}", text.unwrap_or("the panic has no message"))
}

/// Sends one frame through a world of its own.
fn alone(seed: u64, world: u64, epoch: u64, shot: &SentFrame) -> Result<Score, String> {
    let mut score = Score::default();
    let done = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, world, epoch);
        world.round(std::slice::from_ref(shot), &mut score).and_then(|()| world.end(&mut score))
    }));
    match done {
        Ok(Ok(())) => Ok(score),
        Ok(Err(failure)) => Err(failure.what),
        Err(why) => Err(events(&*why)),
    }
}

fn written(shot: &SentFrame) -> String {
    format!("{}:{}:{}", shot.base, hex(&shot.offload), hex(&shot.bytes))
}

/// Parses the output of [`written`].
fn read(text: &str) -> Option<SentFrame> {
    let bytes = |hex: &str| {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok())
            .collect::<Option<Vec<u8>>>()
    };
    let mut parts = text.split(':');
    let (base, offload, frame) = (parts.next()?.parse().ok()?, bytes(parts.next()?)?, bytes(parts.next()?)?);
    Some(SentFrame { base, bytes: frame, offload: offload.try_into().ok()?, class: 0, honest: false })
}

fn fail(seed: u64, world: u64, epoch: u64, failure: &Failure, shots: &[SentFrame]) -> ! {
    println!("\nFAILED with SEED={seed} in world {world}, epoch {epoch}: {}", failure.what);
    println!("the world again: SEED={seed} WORLD={world} scripts/test --long");
    // If the frame is unknown, tries each alone.
    let culprit = failure.shot.or_else(|| shots.iter().position(|shot| alone(seed, world, epoch, shot).is_err()));
    match culprit {
        Some(at) => {
            println!("of class {}; alone:", CLASSES[shots[at].class]);
            println!("SEED={seed} WORLD={world} EPOCH={epoch} FRAME={} scripts/test --long", written(&shots[at]));
        }
        None => {
            println!("no single frame of the burst reproduces it. The burst:");
            shots.iter().for_each(|shot| println!("{}", written(shot)));
        }
    }
    panic!("{}", failure.what);
}

fn print(score: &Score) {
    println!("\n{:18} {:>9} {:>9} {:>9} {:>9}", "class", "made", "barred", "arrived", "copies");
    for (name, [made, barred, arrived, copies]) in CLASSES.iter().zip(score.classes) {
        println!("{name:18} {made:9} {barred:9} {arrived:9} {copies:9}");
    }
    println!("\n{:20} {:>9} {:>9}", "died", "in", "out");
    for reason in DropReason::ALL {
        let (died_in, died_out) = (score.died_in[reason], score.died_out[reason]);
        if died_in + died_out > 0 {
            println!("{:20} {died_in:9} {died_out:9}", reason.name());
        }
    }
    let Score { frames, due, segmented, checksummed, suppressed, mirror_copies, not_learned, .. } = score;
    println!(
        "\nsegmented {segmented}, checksummed {checksummed}, suppressed {suppressed}, mirrored {mirror_copies}, unlearned {not_learned}"
    );
    println!(
        "{} ethertypes, {} of the lengths 0 to {MAX_LEN}",
        score.kinds.len(),
        score.lengths.iter().filter(|&&len| len <= MAX_LEN).count()
    );
    println!("{due} frames were due and arrived; {frames} frames, none that policy forbids");
}

/// Each input of the kept corpora, and some mutations of it: changed, inserted and removed bytes, and parts of others.
#[test]
fn kept_inputs_and_their_mutations_pass() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let mut rng = Rng::new(number("SEED").unwrap_or(SEED));
    for (name, run) in targets::ALL {
        let mut paths: Vec<_> = fs::read_dir(corpora.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let inputs: Vec<_> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for (path, input) in paths.iter().zip(&inputs) {
            let mut mutated = input.clone();
            for mutation in 0..MUTATIONS {
                if let Err(why) = catch_unwind(|| run(&mutated)) {
                    let bytes = hex(&mutated);
                    panic!("{name}: {}: mutation {mutation} of {}: {bytes}", events(&*why), path.display());
                }
                mutated = mutate(input, &inputs, &mut rng);
            }
        }
    }
}

/// One to four random changes.
fn mutate(input: &[u8], others: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.within(1, 4) {
        let at = rng.below(bytes.len() + 1);
        let end = rng.within(at, bytes.len().min(at + 16));
        let other = &others[rng.below(others.len())];
        let start = rng.below(other.len() + 1);
        let part = &other[start..rng.within(start, other.len())];
        let len = rng.below(8);
        match rng.below(5) {
            0 => drop(bytes.splice(at..end, rng.some(end - at))),
            1 => drop(bytes.splice(at..at, rng.some(len))),
            2 => drop(bytes.drain(at..end)),
            3 => drop(bytes.splice(at..end, part.iter().copied())),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << rng.below(8);
                }
            }
        }
    }
    bytes
}

/// The tag is removed before the quarantine drops the frame. A checksum that would begin in that tag makes the offload header
/// invalid, so the frame counts as one, not as its segments.
#[test]
fn a_super_frame_that_no_longer_fits_its_header_counts_once_at_a_quarantined_subport() {
    let (seed, world, epoch) = (20_261_130, 2, 17);
    let World { topology, .. } = World::new(seed, world, epoch);
    let place = topology.port_at(0, 5).expect("a subport of VLAN 5");
    assert!(topology.bases[0].trunk && topology.places[place].quarantined && topology.is_enabled(place));
    let head = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x81, 0, 0, 5, 0x86, 0xdd];
    let shot = SentFrame {
        base: 0,
        bytes: [&head[..], &[0; 5000]].concat(),
        // a checksum from byte 16 on, segments of TCP over IPv6 of 1000 bytes (virtio 1.x, 5.1.6)
        offload: [1, 4, 0, 0, 0xe8, 3, 16, 0, 132, 0, 0, 0],
        class: 0,
        honest: false,
    };
    assert_eq!(alone(seed, world, epoch, &shot).err(), None);
}

#[test]
fn no_frame_is_delivered_that_policy_forbids() {
    let (seed, frames) = (number("SEED").unwrap_or(SEED), number("FRAMES").unwrap_or(SHORT));
    let only = number("WORLD");
    if let Ok(text) = std::env::var("FRAME").map(|text| text.trim().to_owned())
        && !text.is_empty()
    {
        let shot = read(&text).unwrap_or_else(|| panic!("FRAME={text}: expected DEVICE:OFFLOAD:BYTES in hex"));
        let (world, epoch) = (only.unwrap_or(0), number("EPOCH").unwrap_or(0));
        match alone(seed, world, epoch, &shot) {
            Ok(score) => return print(&score),
            Err(what) => panic!("{what}"),
        }
    }
    println!("SEED={seed} FRAMES={frames}");
    let mut score = Score::default();
    let mut world = only.unwrap_or(0);
    loop {
        if let Err((failure, epoch, shots)) = run(seed, world, FRAMES.min(frames), &mut score) {
            fail(seed, world, epoch, &failure, &shots);
        }
        world += 1;
        if world.is_multiple_of(10) {
            println!("{world} worlds, {} of {frames} frames", score.frames);
        }
        // A world sends slightly fewer frames than requested.
        if only.is_some() || score.frames >= frames {
            break;
        }
    }
    print(&score);
    if only.is_none() && frames >= SHORT {
        // Fails if a class or drop reason was never reached.
        for (name, [made, barred, arrived, _]) in CLASSES.iter().zip(score.classes) {
            assert!(made > 0 && barred > 0 && (arrived > 0 || *name == "runts"), "{name}");
        }
        use DropReason::*;
        let reasons = [
            AdminDown,
            Runt,
            TooLong,
            BadOffload,
            UnknownVlan,
            BadSource,
            ReservedGroup,
            Quarantined,
            Probe,
            ProbeForged,
            ProbeStale,
            ForeignSource,
            DampenedSource,
            SpoofedSource,
            SpoofedIp,
            MacLimit,
            Hairpin,
            SplitHorizon,
        ];
        for reason in reasons {
            assert!(score.died_in[reason] > 0, "no frame was dropped for {}", reason.name());
        }
        let reached =
            [score.due, score.segmented, score.checksummed, score.suppressed, score.mirror_copies, score.not_learned];
        assert!(reached.iter().all(|&count| count > 0), "{reached:?}");
    }
}
