//! Flushing FDB entries, and restoring entries of an earlier run. Needs nothing of the host.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use vifswitch::switch::{FdbEntry, NetworkId, PortId, Station};
use vifswitch::wire::Mac;
use vifswitch::worker::{Command, Flush};

use crate::generators::wild;
use support::lab::{Lab, PortSpec, Setup, frame, mac};

/// Four ports on two networks.
fn lab(workers: u16) -> Lab {
    let port_specs: Vec<_> =
        [0, 0, 1, 1].into_iter().zip(0..).map(|(network, owner)| PortSpec::new(network, owner)).collect();
    Lab::new(Setup { workers, ..Setup::default() }, &port_specs)
}

/// Flushes at one worker, part by part. Returns the number of flushed entries.
fn flush(lab: &mut Lab, worker: usize, flush: Flush) -> u32 {
    let (mut forgotten, mut cursor) = (0, Some(0));
    while let Some(at) = cursor {
        let part = Flush { cursor: at, ..flush };
        let flushed = lab.command(worker, |reply| Command::Flush(part, reply));
        assert!(flushed.cursor.is_none_or(|next| next > at), "the cursor advances");
        forgotten += flushed.stations;
        cursor = flushed.cursor;
    }
    forgotten
}

fn known(lab: &mut Lab, worker: usize) -> BTreeSet<(Station, usize)> {
    lab.stations(worker).into_iter().map(|learned| (learned.station, learned.port.index())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Flushing removes all matching entries at every worker, and no other.
    #[test]
    fn a_flush_removes_matching_entries_only(
        workers in 1u16..4,
        sent in vec((0..4usize, 0..12usize), 0..40),
        network in prop::option::of(0u16..3),
        port_index in prop::option::of(0usize..5),
        address in prop::option::of((0..14usize).prop_map(wild)),
    ) {
        let mut lab = lab(workers);
        for (port, number) in sent {
            lab.send(port, &frame(Mac::BROADCAST, wild(number), 0x88b5, b"here I am"));
            lab.settle();
        }
        let wanted = Flush { network: network.map(NetworkId::new), port_index, mac: address, cursor: 0 };
        let expected = |&(station, port): &(Station, usize)| {
            network.is_none_or(|network| station.network() == NetworkId::new(network))
                && port_index.is_none_or(|place| port == place)
                && address.is_none_or(|mac| station.mac() == mac)
        };
        for worker in 0..usize::from(workers) {
            let before = known(&mut lab, worker);
            let forgotten = flush(&mut lab, worker, wanted);
            let (gone, left): (BTreeSet<_>, BTreeSet<_>) = before.into_iter().partition(expected);
            prop_assert_eq!(forgotten as usize, gone.len());
            prop_assert_eq!(known(&mut lab, worker), left);
        }
        lab.end();
    }

    /// Restored entries keep their age; entries learned since take precedence.
    #[test]
    fn restored_entries_keep_their_age(
        workers in 1u16..4,
        sent in vec((0..4usize, 0..6usize), 0..10),
        host in vec((0..5u16, 0..12usize, 0u32..300), 0..30),
    ) {
        let mut lab = lab(workers);
        for (port, number) in sent {
            lab.send(port, &frame(Mac::BROADCAST, wild(number), 0x88b5, b"here I am"));
            lab.settle();
        }
        let now = lab.now.secs();
        let host: Vec<_> = host
            .into_iter()
            .map(|(port, number, age)| FdbEntry {
                station: Station::new(NetworkId::new(port / 2), wild(number)),
                port: PortId::new(port, 0),
                last_seen: now - age,
            })
            .collect();
        for worker in 0..usize::from(workers) {
            let mut expected: Vec<FdbEntry> = lab.stations(worker);
            for learned in host.iter().filter(|learned| learned.port.index() < 4) {
                if expected.iter().all(|known| known.station != learned.station) {
                    expected.push(*learned);
                }
            }
            let back = lab.command(worker, |reply| Command::Learn(host.clone(), reply));
            prop_assert_eq!(&back, &host, "the worker returns the page");
            let mut found = lab.stations(worker);
            let key = |learned: &FdbEntry| (learned.station, learned.port.index(), learned.last_seen);
            expected.sort_by_key(key);
            found.sort_by_key(key);
            prop_assert_eq!(found, expected);
        }
        lab.end();
    }
}

/// A large table is flushed in parts; frames are forwarded in between.
#[test]
fn a_large_table_is_flushed_in_parts() {
    let mut lab = lab(1);
    let host: Vec<_> = (0..4000)
        .map(|number| FdbEntry {
            station: Station::new(NetworkId::new(0), wild(number)),
            port: lab.ports[number % 2],
            last_seen: lab.now.secs(),
        })
        .collect();
    for page in host.chunks(512) {
        lab.command(0, |reply| Command::Learn(page.to_vec(), reply));
    }
    assert_eq!(lab.stations(0).len(), 4000);
    let first = lab.command(0, |reply| Command::Flush(Flush { port_index: Some(0), ..Flush::default() }, reply));
    assert!(first.cursor.is_some() && first.stations < 2000, "{first:?}");
    lab.send(0, &frame(mac(1), mac(0), 0x88b5, b"in between"));
    lab.settle();
    assert_eq!(lab.received(1).len(), 1);
    assert_eq!(first.stations + flush(&mut lab, 0, Flush { port_index: Some(0), ..Flush::default() }), 2000);
    assert!(lab.stations(0).iter().all(|learned| learned.port.index() == 1));
    assert_eq!(lab.stations(0).len(), 2000);
    lab.end();
}
