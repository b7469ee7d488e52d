//! Groups of changes compared with a model, in which each change is made alone, and with a store that fails in between.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::Value;

use super::*;
use crate::control::config::{Port, VmSettings, parse_port_json, parse_port_keys_json};
use crate::control::state::history::GenerationView;

/// A port that has no device, because its namespace does not exist.
pub(super) fn port(id: usize, mac: usize, network: usize, tap: usize) -> Port {
    let table = json!({"port_id": format!("p{id}"), "network_id": format!("n{network}"), "device_id": "v",
        "mac_address": format!("02:00:00:00:00:{mac:02x}"),
        "device": {"kind": "tap", "name": format!("t{tap}"), "netns": "no-such-netns"}});
    parse_port_json(&table.to_string(), "x", &format!("p{id}")).unwrap().1
}

/// A switch with networks n0 to n2.
pub(super) fn first() -> Config {
    config(&["n0", "n1", "n2"])
}

/// A change of few entities, so that many concern the same, and some are refused.
fn any_change() -> impl Strategy<Value = Change> {
    let put = (0usize..8, 1usize..9, 0usize..4, 0usize..8, 0usize..3).prop_map(|(id, mac, network, tap, vm)| {
        Change::PutPort { vm: format!("v{vm}"), port: port(id, mac, network, tap) }
    });
    // Ports of their own, which no other change concerns.
    let calm = (10usize..30).prop_map(|id| Change::PutPort { vm: format!("w{id}"), port: port(id, id, 0, id) });
    let set = (0usize..30, 1u32..3).prop_map(|(id, limit)| Change::Set {
        port: format!("p{id}"),
        keys: parse_port_keys_json(&json!({ "mac_limit": limit }).to_string(), "x").unwrap(),
    });
    let vm = (0usize..3, any::<bool>()).prop_map(|(vm, share_mac)| Change::PutVm {
        vm: format!("v{vm}"),
        settings: VmSettings { share_mac, ..VmSettings::default() },
        ports: None,
    });
    let network = (0usize..5, 0u16..2).prop_map(|(network, mtu)| {
        Change::PutNetwork(Network { mtu: 1500 - mtu, ..Network::new(format!("n{network}")) })
    });
    prop_oneof![
        4 => put,
        6 => calm,
        4 => set,
        3 => (0usize..30).prop_map(|id| Change::Detach { port: format!("p{id}") }),
        1 => vm,
        1 => (0usize..3).prop_map(|vm| Change::DeleteVm(format!("v{vm}"))),
        1 => network,
        1 => (0usize..5).prop_map(|network| Change::DeleteNetwork(format!("n{network}"))),
    ]
}

/// A request: a change, and by how many generations before it its client has read the configuration.
type Request = (Change, Option<u64>);

/// Requests that wait together, and the one whose event cannot be stored.
type Batch = (Vec<Request>, Option<Index>);

fn batches() -> impl Strategy<Value = Vec<Batch>> {
    let request = (any_change(), prop::option::weighted(0.1, 0u64..3));
    let batch = (prop::collection::vec(request, 1..24), prop::option::weighted(0.3, any::<Index>()));
    prop::collection::vec(batch, 1..4)
}

fn author(number: usize) -> Author {
    Author { uid: None, pid: None, request_id: format!("r{number};") }
}

/// Makes changes while the disk hangs, so that they wait and are then made together. Returns their answers.
pub(super) async fn make(
    handle: &Handle,
    store: &Store,
    requests: Vec<(usize, Change, ChangeOptions)>,
) -> Vec<Result<ChangeResult, ChangeError>> {
    let go_on = hang(store).await;
    let mut running = Vec::new();
    for (number, change, options) in requests {
        let handle = handle.clone();
        let request = async move { handle.change(change, options, Box::new(())).await.unwrap() };
        running.push(tokio::spawn(author(number).scope(request)));
        // They arrive in this order.
        tokio::task::yield_now().await;
    }
    for _ in 0..20 {
        // Read behind them: they have arrived.
        handle.generation().await.unwrap();
    }
    drop(go_on);
    let mut answers = Vec::new();
    for request in running {
        answers.push(request.await.unwrap());
    }
    answers
}

/// What a switch shows at its end.
#[derive(Debug)]
struct Shown {
    config: Value,
    generation: u64,
    history: Vec<GenerationView>,
}

async fn shown(handle: &Handle) -> Shown {
    use crate::control::api::handle::ConfigForm;
    let (config, generation) = handle.config(ConfigForm::Sparse).await.unwrap();
    Shown { config, generation, history: handle.history().await.unwrap() }
}

/// Makes all batches, and compares answers, configuration, generations, events and history with the model: each accepted change
/// is made alone, and one that could not be stored is not made. A restart finds the same.
async fn compare(batches: Vec<Batch>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let begun_with = begin(first(), &path).await;
    let store = begun_with.1.store().unwrap().clone();
    let mut last = None;
    run_over(begun_with, async |handle| {
        let base = handle.generation().await.unwrap();
        let (mut now, mut generation, mut number) = (first(), base, 0);
        // Texts, authors and generations of the changes that were made.
        let mut made: Vec<(String, Author, u64)> = Vec::new();
        for (requests, fails) in batches {
            let fails = fails.map(|index| number + index.index(requests.len()));
            if let Some(fails) = fails {
                store.fail_once_at(author(fails).request_id).await;
            }
            let from = number;
            let with_options = |(index, (change, read_before)): (usize, &Request)| {
                let generations = read_before.map(|before| vec![(generation + index as u64).saturating_sub(before)]);
                (from + index, change.clone(), ChangeOptions { generations, ..ChangeOptions::default() })
            };
            let requests: Vec<_> = requests.iter().enumerate().map(with_options).collect();
            number += requests.len();
            let answers = make(&handle, &store, requests.clone()).await;
            for ((number, change, options), answer) in requests.into_iter().zip(answers) {
                if answer.as_ref().is_err_and(|error| error.kind == "store_failed") {
                    assert!(fails.is_some(), "{answer:?}");
                    continue;
                }
                let outcome = options.check(generation).and_then(|()| change.outcome(&now, generation));
                let expected = outcome.map(|(config, result)| {
                    if result.generation > generation {
                        made.push((result.changes.join("; "), author(number), result.generation));
                    }
                    (now, generation) = (config, result.generation);
                    result
                });
                let answer = answer.map(|result| ChangeResult { warnings: Vec::new(), ..result });
                assert_eq!(answer, expected, "request {number}: {change:?}");
            }
        }
        let end = shown(&handle).await;
        assert_eq!((&end.config, end.generation), (&now.to_sparse(), generation));
        let expected = made.iter().rev().map(|(text, by, of)| (text.clone(), Some(by.clone()), *of));
        let listed = end.history.iter().map(|of| (of.changes.join("; "), of.by.clone(), of.generation));
        assert!(listed.take(made.len()).eq(expected.take(32)), "{:#?}\n{made:#?}", end.history);
        let events = without_gaps(history(&handle, None).await.0);
        assert!(is_increasing(&events));
        let stored = events.iter().filter(|event| event.kind == EventKind::Config);
        let stored = stored.filter(|event| !event.text.starts_with("not stored and not applied"));
        let stored: Vec<_> = stored.map(|event| (event.text.clone(), event.by.clone())).collect();
        let expected: Vec<_> = made.iter().map(|(text, by, _)| (text.clone(), Some(by.clone()))).collect();
        assert_eq!(stored, expected);
        last = Some((end, events, made.len()));
        drop(store);
    })
    .await;
    let (end, events, made) = last.unwrap();
    run_over(begin(first(), &path).await, async |handle| {
        let again = shown(&handle).await;
        assert_eq!((&again.config, again.generation), (&end.config, end.generation));
        // The first generation is stored with the first change.
        assert!(made == 0 || again.history == end.history, "{:#?}\n{:#?}", again.history, end.history);
        assert!(without_gaps(history(&handle, None).await.0).starts_with(&events), "all are stored");
    })
    .await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn groups_of_changes_are_as_if_each_was_made_alone(batches in batches()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(compare(batches));
    }
}

/// One sync of the disk is enough for all changes that wait.
#[tokio::test]
async fn changes_that_wait_are_stored_by_one_commit() {
    let dir = tempfile::tempdir().unwrap();
    let begun_with = begin(first(), &dir.path().join("state.db")).await;
    let store = begun_with.1.store().unwrap().clone();
    run_over(begun_with, async |handle| {
        let commits = || handle.health().measures().commits.read().1.iter().map(|(_, count)| count).sum::<u64>();
        let before = commits();
        let put = |id: usize, mac: usize| {
            (id, Change::PutPort { vm: format!("v{id}"), port: port(id, mac, 0, id) }, ChangeOptions::default())
        };
        // The third has the address of the second.
        let answers = make(&handle, &store, vec![put(1, 1), put(2, 2), put(3, 2), put(4, 4), put(5, 5)]).await;
        let generations: Vec<_> = answers.iter().map(|answer| answer.as_ref().map(|of| of.generation)).collect();
        let first = *generations[0].as_ref().unwrap();
        assert_eq!(generations[1], Ok(first + 1));
        assert_eq!(generations[2].as_ref().unwrap_err().kind, "mac_in_use");
        assert_eq!(generations[3..], [Ok(first + 2), Ok(first + 3)]);
        for (id, answer) in [1, 2, 4, 5].into_iter().zip(answers.iter().flatten()) {
            let [warning] = answer.warnings.as_slice() else { panic!("of its own port: {answer:?}") };
            assert!(warning.starts_with(&format!("port \"p{id}\" is down: ")), "{warning}");
        }
        // The first may not have waited, and events may have been stored before it.
        assert!((1..=3).contains(&(commits() - before)), "{} commits", commits() - before);
    })
    .await;
}

/// A commit that fails at one of its changes fails all of them, and those that depend on them; nothing of it remains.
#[tokio::test]
async fn a_commit_that_fails_in_between_makes_no_change_of_its_group() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let begun_with = begin(first(), &path).await;
    let store = begun_with.1.store().unwrap().clone();
    run_over(begun_with, async |handle| {
        let put = |id: usize| {
            (id, Change::PutPort { vm: format!("v{id}"), port: port(id, id, 0, id) }, ChangeOptions::default())
        };
        let before = handle.generation().await.unwrap();
        store.fail_once_at(author(4).request_id).await;
        // The last one changes nothing, because of another one.
        let mut requests: Vec<_> = (1..7).map(put).collect();
        requests.push((7, put(5).1, ChangeOptions::default()));
        let answers = make(&handle, &store, requests).await;
        // The first waits alone for the disk.
        assert_eq!(answers[0].as_ref().unwrap().generation, before + 1);
        for answer in &answers[1..] {
            assert_eq!(answer.as_ref().unwrap_err().kind, "store_failed", "{answer:?}");
        }
        assert_eq!(handle.ports().await.unwrap().len(), 1);
        assert_eq!(handle.generation().await.unwrap(), before + 1);
        let answered = history(&handle, None).await.0.into_iter().filter(|event| event.text.starts_with("not stored"));
        let answered: Vec<_> = answered.map(|event| event.by).collect();
        assert_eq!(answered, (2..7).map(|id| Some(author(id))).collect::<Vec<_>>(), "each is answered to its author");
        // The next ones are made.
        let answers = make(&handle, &store, (2..4).map(put).collect()).await;
        assert_eq!(answers[1].as_ref().unwrap().generation, before + 3);
        drop(store);
    })
    .await;
    run_over(begin(first(), &path).await, async |handle| {
        let ports: Vec<_> = handle.ports().await.unwrap().into_iter().map(|port| port.port_id).collect();
        assert_eq!(ports, ["p1", "p2", "p3"]);
    })
    .await;
}
