//! Tests of the recorded generations.

use std::thread;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::control::config::testgen;

/// Records a change from one configuration to another as this generation.
fn record(history: &mut History, old: &Config, new: &Config, generation: u64) {
    let result = ChangeResult::between(old, new, generation);
    history.record(Entry::between(old, new, &result, Source::Api, None).into());
}

/// After a restart.
fn reloaded(history: &History, generation: u64) -> History {
    History::load(&history.rows(), generation, Source::State)
}

/// Whatever changes, each listed generation is restored exactly, also over a restart.
#[test]
fn each_generation_is_restored() {
    let run = || {
        let changes = (testgen::three(), prop::collection::vec(0..3usize, 1..12));
        TestRunner::default().run(&changes, |(all, order)| check_restored(&all, &order)).unwrap();
    };
    // Strategies of whole configurations take more than the stack of a test.
    thread::Builder::new().stack_size(16 << 20).spawn(run).unwrap().join().unwrap();
}

fn check_restored(all: &[Config; 3], order: &[usize]) -> Result<(), TestCaseError> {
    let mut history = History::load(&[], 100, Source::File);
    let mut made = vec![all[0].clone()];
    for (generation, &next) in (101..).zip(order) {
        let new = Config { switch: made[0].switch.clone(), ..all[next].clone() };
        record(&mut history, &made[made.len() - 1], &new, generation);
        made.push(new);
    }
    let last = &made[made.len() - 1];
    for history in [&history, &reloaded(&history, 100 + order.len() as u64)] {
        for (generation, config) in (100..).zip(&made) {
            prop_assert_eq!(&history.restore(last, generation).unwrap(), config, "generation {}", generation);
        }
        prop_assert!(history.views().iter().all(|view| view.restorable));
    }
    Ok(())
}

fn networks(count: usize) -> Config {
    Config {
        networks: (0..count).map(|number| config::Network::new(number.to_string())).collect(),
        ..Config::default()
    }
}

#[test]
fn the_oldest_are_forgotten() {
    let mut history = History::load(&[], 1, Source::File);
    for number in 1..100 {
        record(&mut history, &networks(number - 1), &networks(number), 1 + number as u64);
    }
    let numbers: Vec<u64> = history.views().iter().map(|view| view.generation).collect();
    assert_eq!(numbers, (69..=100).rev().collect::<Vec<u64>>());
    assert_eq!(history.restore(&networks(99), 69).unwrap(), networks(68));
    assert_eq!(history.restore(&networks(99), 68).unwrap_err().kind, "unknown_generation");
    assert_eq!(history.newest(), (Some(100), Some(99)));
}

#[test]
fn bytes_are_bounded() {
    let mut history = History::load(&[], 1, Source::File);
    let large = |number: usize| {
        let networks = (0..8000).map(|id| config::Network::new(format!("{number}-{id}-{}", "x".repeat(100))));
        Config { networks: networks.collect(), ..Config::default() }
    };
    let mut last = Config::default();
    for number in 1..12 {
        let new = large(number);
        record(&mut history, &last, &new, 1 + number as u64);
        last = new;
    }
    let bytes: usize = history.rows().iter().map(|row| row.text.len()).sum();
    assert!(bytes <= MAX_BYTES && (2..12).contains(&history.rows().len()), "{bytes}");
}

/// One port of thousands costs a few hundred bytes.
#[test]
fn a_small_change_is_small() {
    let (old, new) = (networks(4000), networks(4001));
    for (old, new) in [(&old, &new), (&new, &old)] {
        let entry = Entry::between(old, new, &ChangeResult::between(old, new, 7), Source::Api, None);
        assert!(entry.text.len() < 2000, "{}", entry.text);
    }
}

#[test]
fn a_hole_is_told() {
    let mut history = History::load(&[], 1, Source::File);
    record(&mut history, &networks(0), &networks(1), 2);
    // Another version wrote generation 5.
    let mut history = reloaded(&history, 5);
    record(&mut history, &networks(3), &networks(4), 6);
    let restorable: Vec<(u64, bool)> = history.views().iter().map(|view| (view.generation, view.restorable)).collect();
    assert_eq!(restorable, [(6, true), (5, true), (2, false), (1, false)]);
    assert_eq!(history.restore(&networks(4), 5).unwrap(), networks(3));
    let refused = history.restore(&networks(4), 2).unwrap_err();
    assert_eq!(refused.kind, "not_restorable");
    assert!(refused.message.contains("generation 5"), "{refused}");
    // A greater number was not stored.
    assert_eq!(reloaded(&history, 2).newest(), (Some(2), Some(1)));
}
