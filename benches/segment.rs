//! Software segmentation and checksums, as a worker does them for ports without offloads: from a receive buffer into
//! slots. Per resulting frame and per byte; compared to copying the same bytes.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vifswitch::frame::{Batch, Frame, Magazine, Pool};
use vifswitch::wire::{Offload, Segmenter};

use support::lab::mac;
use support::lab::stream::open_frame;

/// MSS for frames of 1514 bytes.
const SIZE: u16 = 1460;

fn offload(kind: u8) -> Offload {
    let [s0, s1] = SIZE.to_le_bytes();
    Offload::read(&[1, kind, 54, 0, s0, s1, 34, 0, 16, 0, 0, 0])
}

/// A batch of one frame in a receive buffer.
fn received(bytes: &[u8], offload: Offload) -> Batch {
    let mut batch = Batch::new();
    let received = batch.receive(true, |room| {
        room[..Offload::LEN].copy_from_slice(&offload.write());
        room[Offload::LEN..][..bytes.len()].copy_from_slice(bytes);
        Ok::<_, ()>(Offload::LEN + bytes.len())
    });
    received.unwrap();
    batch
}

/// Segments the frame of a batch and frees the segments; returns their number.
fn finish(batch: &Batch, magazine: &mut Magazine, ready: &mut Vec<Frame>) -> usize {
    let view = batch.frame_ref(0);
    let mut work = Segmenter::new(view.head, view.tail(), view.frame.len(), view.frame.offload()).unwrap();
    while let Some(mut part) = work.next_segment() {
        ready.push(magazine.build(part.len(), Offload::NONE, |room| part.fill(room)).unwrap());
    }
    let count = ready.len();
    ready.drain(..).for_each(|frame| magazine.recycle(frame));
    count
}

fn segment(c: &mut Criterion) {
    let pool = Pool::new(4096).unwrap();
    let mut magazine = Magazine::new(pool);
    let mut ready = Vec::with_capacity(128);
    // Maximum length of IPv4.
    let whole = open_frame(mac(1), mac(0), 0, 65_495);
    let single = open_frame(mac(1), mac(0), 0, SIZE.into());
    let cases = [("a GSO packet of 64 KiB", &whole, offload(1), 45), ("a partial checksum", &single, offload(0), 1)];
    for (name, bytes, offload, frames) in cases {
        let batch = received(bytes, offload);
        assert_eq!(finish(&batch, &mut magazine, &mut ready), frames);
        for (unit, throughput) in
            [("frames", Throughput::Elements(frames as u64)), ("bytes", Throughput::Bytes(bytes.len() as u64))]
        {
            let mut group = c.benchmark_group(format!("segment/{unit}"));
            group.throughput(throughput);
            group.bench_function(name, |b| b.iter(|| finish(black_box(&batch), &mut magazine, &mut ready)));
            group.bench_function(format!("{name}, only copied"), |b| {
                b.iter(|| {
                    let copy = black_box(&batch).copy_to_pool(0, &mut magazine).unwrap();
                    magazine.recycle(copy);
                });
            });
            group.finish();
        }
    }
}

criterion_group!(benches, segment);
criterion_main!(benches);
