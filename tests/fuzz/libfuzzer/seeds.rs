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
