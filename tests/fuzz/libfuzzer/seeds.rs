//! Writes inputs from which guided fuzzing of the targets `worker`, `segments` and `sender` begins, into a folder: frames of
//! each class that the frame generator makes.

use std::path::Path;
use std::{env, fs};

use fuzz::frames::{CLASSES, FrameGenerator};
use fuzz::world::{World, rng};

fn main() {
    let folder = env::args().nth(1).expect("the folder of the corpora");
    let write = |target: &str, name: String, bytes: &[u8]| {
        let folder = Path::new(&folder).join(target);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    };
    for number in 0..8u64 {
        for (name, bytes) in bursts(number) {
            write("worker", name, &bytes);
        }
        let world = World::new(0, number, 0);
        let mut generator = FrameGenerator::new(rng(1, number, 2), number);
        let mut seen = [0; CLASSES.len()];
        for _ in 0..400 {
            let shot = generator.next(&world.topology, true);
            seen[shot.class] += 1;
            if seen[shot.class] > 1 {
                continue;
            }
            let frame = &shot.bytes[..shot.bytes.len().min(700)];
            let len = (frame.len() as u16).to_be_bytes();
            let name = format!("{}-{number}", CLASSES[shot.class].replace(' ', "-"));
            let more = [(shot.bytes.len() - frame.len()).div_ceil(64).min(255) as u8];
            let place = world.topology.places.iter().position(|place| place.base == shot.base).unwrap();
            let one = [&[place as u8, 1][..], &shot.offload, &len, frame, &more].concat();
            write("worker", name.clone(), &[&[number as u8, number as u8, 1][..], &one, &one, &[40]].concat());
            write("sender", name.clone(), frame);
            if shot.offload != [0; 12] {
                write("segments", name, &[&shot.offload[..], &[2, 0, 100, more[0] / 8], frame].concat());
            }
        }
    }
}

/// Bursts of frames without offload work: of all classes, and broadcasts from a port with a low storm limit.
fn bursts(number: u64) -> Vec<(String, Vec<u8>)> {
    let policies = number as u8 + 1;
    let mut world = World::new(0, number, 0);
    world.begin_epoch((0, number), policies.into()).unwrap();
    world.limit_storms(policies.into());
    let places = &world.topology.places;
    let one = |place: usize, bytes: &[u8]| [&[place as u8, 0, 0, bytes.len() as u8], bytes, &[0]].concat();
    let mut generator = FrameGenerator::new(rng(1, number, policies.into()), number);
    let mixed = std::iter::repeat_with(|| generator.next(&world.topology, true))
        .filter(|shot| shot.offload == [0; 12] && (14..200).contains(&shot.bytes.len()))
        .map(|shot| one(places.iter().position(|place| place.base == shot.base).unwrap(), &shot.bytes));
    let mut all = vec![("burst", mixed.take(16).collect::<Vec<_>>().concat())];
    if let Some(at) = places.iter().position(|place| place.up && place.storm.is_some_and(|limits| limits[0] < 12)) {
        let frame = |fill: u8| [&[0xff; 6][..], &places[at].mac, &[0x88, 0xb5], &[fill; 46]].concat();
        all.push(("storm", (0..16).flat_map(|fill| one(at, &frame(fill))).collect()));
    }
    let input = |frames: Vec<u8>| [&[number as u8, policies, 15][..], &frames, &[40]].concat();
    all.into_iter().map(|(name, frames)| (format!("{name}-{number}"), input(frames))).collect()
}
