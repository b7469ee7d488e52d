//! Policers shared by workers.

#[path = "../../../src/switch/policer.rs"]
mod policer;

use loom::sync::Arc;
use loom::thread;

use crate::time::MonoTime;
use policer::{Policer, Rate};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortId(pub u32);

/// A flood of the same size as the product's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flood(pub PortId, pub PortId);

#[derive(Debug)]
pub struct MacUpdate;

const START: u64 = 1_000_000_000_000;

/// What `threads` threads are granted together, if each asks for these costs at these times.
fn granted(rate: Rate, before: u64, threads: &'static [&'static [(u64, u64)]]) -> u64 {
    let bucket = Arc::new(Policer::default());
    for _ in 0..before {
        assert!(bucket.take(&rate, 1, MonoTime::from_nanos(START), true));
    }
    let ask = move |bucket: &Policer, tries: &[(u64, u64)]| -> u64 {
        let taken = tries.iter().filter(|(at, cost)| bucket.take(&rate, *cost, MonoTime::from_nanos(START + at), true));
        taken.map(|(_, cost)| cost).sum()
    };
    let (first, others) = threads.split_first().unwrap();
    let others: Vec<_> = others
        .iter()
        .map(|tries| {
            let bucket = bucket.clone();
            thread::spawn(move || ask(&bucket, tries))
        })
        .collect();
    ask(&bucket, first) + others.into_iter().map(|other| other.join().unwrap()).sum::<u64>()
}

/// Three workers ask for more than a burst at the same time: they get exactly the burst.
pub fn workers_share_one_burst() {
    assert_eq!(granted(Rate::new(1000, 3), 0, &[&[(0, 1), (0, 1)], &[(0, 1), (0, 1)], &[(0, 1)]]), 3);
}

/// Nobody is refused while there are tokens for all.
pub fn nobody_is_refused_while_tokens_last() {
    assert_eq!(granted(Rate::new(1000, 6), 1, &[&[(0, 2)], &[(0, 1), (0, 1)], &[(0, 1)]]), 5);
}

/// A token that is earned between the charges of workers, whose clocks differ, is granted once.
pub fn a_token_is_granted_once() {
    // One token per millisecond; the bucket is empty at START.
    let sum = granted(Rate::new(1000, 2), 2, &[&[(999_999, 1), (1_000_000, 1)], &[(1_000_000, 1), (1_000_001, 1)]]);
    assert_eq!(sum, 1);
}

/// The remainders of charges add up to a unit whichever worker adds the last: in the long run the rate is exact.
pub fn no_remainder_is_lost() {
    // A token is 65.6 units of 1/64 ns: the remainders of two charges are a unit, and that unit is the one that makes the
    // next token a nanosecond later.
    let rate = Rate::new(975_609_756, 2);
    let bucket = Arc::new(Policer::default());
    let now = MonoTime::from_nanos(START);
    let other = {
        let bucket = bucket.clone();
        thread::spawn(move || assert!(bucket.take(&rate, 1, now, true)))
    };
    assert!(bucket.take(&rate, 1, now, true));
    other.join().unwrap();
    assert_eq!(bucket.ready(&rate, now).nanos(), START + 2);
}

/// The rate has become faster, and two workers charge it: the debt of the slow rate becomes an empty bucket once. That
/// gives nobody a token, and takes no charge back.
pub fn a_changed_rate_gives_no_tokens() {
    let (slow, fast) = (Rate::new(1, 100), Rate::new(1_000_000, 2));
    let bucket = Arc::new(Policer::default());
    let (now, later) = (MonoTime::from_nanos(START), MonoTime::from_nanos(START + 1000));
    assert!(bucket.take(&slow, 100, now, true));
    let other = {
        let bucket = bucket.clone();
        thread::spawn(move || assert!(!bucket.take(&fast, 1, now, true), "it is empty"))
    };
    assert!(!bucket.take(&fast, 1, now, true), "it is empty");
    assert!(bucket.take(&fast, 1, later, true), "it fills at the new rate");
    other.join().unwrap();
    assert!(!bucket.take(&fast, 1, later, true), "with one token");
}
