//! Frames through whole workers, with every policy and storm limits. The oracle says of each whether it may arrive.

use std::cell::RefCell;
use std::time::Duration;

use vifswitch::wire::Offload;

use super::Input;
use crate::frames::SentFrame;
use crate::oracle::{OffloadFields, behind_tags};
use crate::world::{Score, World, hex};

/// Worlds that inputs choose from. Building one takes as long as a thousand frames.
const WORLDS: usize = 8;

/// Class of frames of which the oracle knows nothing.
const NOISE: usize = 0;

thread_local!(static BUILT: RefCell<[Option<World>; WORLDS]> = const { RefCell::new([const { None }; WORLDS]) });

pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let number = usize::from(input.byte()) % WORLDS;
    BUILT.with_borrow_mut(|built| {
        // A failed world is not used again.
        let mut world = built[number].take().unwrap_or_else(|| World::new(0, number as u64, 0));
        let mut score = Score::default();
        let policies = input.byte();
        if policies != 0 {
            world.begin_epoch((0, number as u64), policies.into()).unwrap_or_else(|failure| panic!("{failure:?}"));
            world.limit_storms(policies.into());
        }
        let shots = burst(&mut input, &world);
        if let Err(failure) = world.round(&shots, &mut score) {
            let shown: Vec<_> = shots.iter().map(|shot| (shot.base, hex(&shot.offload), hex(&shot.bytes))).collect();
            panic!("world {number}, policies {policies}: {failure:?}: {shown:?}");
        }
        world.advance(Duration::from_millis(input.byte().into()));
        built[number] = Some(world);
    });
}

/// Addresses of a frame, and what follows its tags.
fn without_tags(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (addresses, rest) = bytes.split_at(bytes.len().min(12));
    (addresses, behind_tags(bytes).map_or(rest, |at| &bytes[at..]))
}

/// A burst of frames, or a single one with offload work: what becomes of it may equal another frame.
fn burst(input: &mut Input<'_>, world: &World) -> Vec<SentFrame> {
    let mut shots = Vec::new();
    let many = input.byte() % 16 + 1;
    while shots.len() < many.into() && !input.0.is_empty() {
        let places = &world.topology.places;
        let base = places[usize::from(input.byte()) % places.len()].base;
        let mut offload = [0; Offload::LEN];
        if input.byte() & 1 == 1 {
            for (to, from) in offload.iter_mut().zip(input.bytes(Offload::LEN)) {
                *to = *from;
            }
        }
        let len = usize::from(input.word()) % 2048;
        let mut bytes = input.bytes(len).to_vec();
        // A long payload by its first byte.
        if let Some(&last) = bytes.last() {
            let more = usize::from(input.byte()) * 64;
            bytes.resize(bytes.len() + more, last);
        }
        // No device receives a frame without bytes. Of equal ones, apart from tags, nobody could say which was delivered.
        if bytes.is_empty() || shots.iter().any(|shot: &SentFrame| without_tags(&shot.bytes) == without_tags(&bytes)) {
            continue;
        }
        let shot = SentFrame { base, bytes, offload, class: NOISE, honest: false };
        if !OffloadFields::read(&offload).is_nothing() {
            return vec![shot];
        }
        shots.push(shot);
    }
    shots
}
