//! The controller over a store that hangs.

use std::pin::pin;
use std::sync::mpsc as std_mpsc;
use std::thread;

use serde_json::json;
use tokio::sync::oneshot;

use super::*;
use crate::control::api::handle::Handle;
use crate::control::config::{Network, parse_json};
use crate::control::desired::change::Change;
use crate::control::state::Precedence;
use crate::control::state::event_log::EventFilter;
use crate::control::state::store::{Store, StoredStation};
use crate::frame::Pool;
use crate::wire::{Mac, ProbeKey};
use crate::worker::{Pace, WorkerSetSettings, worker_set};

fn config(networks: &[&str]) -> Config {
    Config { networks: networks.iter().map(|&id| Network::new(id)).collect(), ..Config::default() }
}

fn apply(networks: &[&str]) -> Change {
    Change::Apply(config(networks))
}

async fn networks(handle: &Handle) -> Vec<String> {
    handle.networks().await.unwrap().into_iter().map(|network| network.network_id).collect()
}

async fn begin(file: Config, path: &std::path::Path) -> (Config, StateStore) {
    StateStore::open(Some(file.into()), Some(path), Precedence::Merge).await.unwrap()
}

/// Lets a store hang until what comes back is dropped.
async fn hang(store: &Store) -> std_mpsc::Sender<()> {
    let (go_on, until) = std_mpsc::channel();
    store.hang(until).await;
    go_on
}

/// Runs a switch with network "a" as long as `ask` asks it, and stops it in order.
async fn while_running(request: impl AsyncFnOnce(Handle, Arc<Store>)) {
    let dir = tempfile::tempdir().unwrap();
    run(config(&["a"]), &dir.path().join("state.db"), async |_| {}, request).await;
}

/// Runs a switch with this configuration as long as `ask` asks it, and stops it in order. `partial` has the controller
/// before it runs.
async fn run(
    file: Config,
    path: &std::path::Path,
    begun: impl AsyncFnOnce(&mut Controller),
    request: impl AsyncFnOnce(Handle, Arc<Store>),
) {
    let (first, state_store) = begin(file, path).await;
    let store = state_store.store().unwrap().clone();
    let hash_key = HashKey::new([7; 16]);
    let pool = Pool::new(64).unwrap();
    let mut worker_set = worker_set(WorkerSetSettings {
        workers: 1,
        pool,
        fdb_capacity: 64,
        hash_key,
        probe_key: ProbeKey::new([5; 16]),
    })
    .unwrap();
    let worker = worker_set.workers.remove(0);
    let thread = thread::spawn(move || worker.run(Pace::Adaptive));
    let worker_handles = WorkerHandles::new(worker_set.mailboxes, worker_set.counters);
    let (notices, events, probe_key) = (worker_set.notices, worker_set.events, ProbeKey::new([5; 16]));
    let beginning = Startup {
        cores: vec![0],
        hash_key,
        workers: worker_handles,
        notices,
        events,
        probe_key,
        state: state_store,
        pool,
    };
    let mut controller = Controller::new(beginning);
    controller.begin(first).await.unwrap();
    begun(&mut controller).await;
    let (handle, requests) = Handle::new();
    let (stop, stopped) = oneshot::channel::<()>();
    let asking = async {
        request(handle, store).await;
        drop(stop);
    };
    let log = path.with_extension("db-wal");
    tokio::join!(controller.run(requests, async { drop(stopped.await) }), asking);
    controller.close_all().await;
    thread.join().unwrap();
    assert!(!log.exists(), "the store is closed when the switch has stopped");
}

#[tokio::test]
async fn while_the_disk_hangs_questions_are_answered_and_changes_wait_in_their_order() {
    while_running(async |handle, store| {
        let go_on = hang(&store).await;
        let mut first = pin!(handle.change(apply(&["a", "b"]), None));
        let mut second = pin!(handle.change(apply(&["a", "b", "c"]), None));
        for _ in 0..20 {
            tokio::select! {
                biased;
                _ = &mut first => panic!("it is not kept yet"),
                _ = &mut second => panic!("the one before is not kept yet"),
                there = networks(&handle) => assert_eq!(there, ["a"]),
            }
            assert_eq!(handle.workers().await.unwrap().len(), 1, "the watchdog asks so");
            assert_eq!(handle.diff(apply(&["b"])).await.unwrap().unwrap().changes.len(), 2);
        }
        let (mut messages, mut live) = handle.events(EventFilter::default()).await.unwrap().unwrap();
        assert_eq!(messages, [], "what is remembered is answered, and what is not kept yet is not told");
        drop(go_on);
        let (first, second) = tokio::join!(first, second);
        assert_eq!(first.unwrap().unwrap().changes, ["network \"b\" is new, with MTU 1500"]);
        assert_eq!(second.unwrap().unwrap().changes, ["network \"c\" is new, with MTU 1500"]);
        assert_eq!(networks(&handle).await, ["a", "b", "c"]);
        messages.extend(std::iter::from_fn(|| live.try_recv().ok()));
        let texts = |messages: &[Event]| messages.iter().map(|event| event.text.clone()).collect::<Vec<_>>();
        let expected = ["network \"b\" is new, with MTU 1500", "network \"c\" is new, with MTU 1500"];
        assert_eq!(texts(&messages), expected, "each once");
        assert_eq!(texts(&store.events(None, 10).await.unwrap()), expected);
    })
    .await;
}

#[tokio::test]
async fn while_the_disk_hangs_an_unconfirmed_change_goes_back() {
    while_running(async |handle, store| {
        // What it would leave behind is kept before it is made.
        handle.change(apply(&["a", "b"]), Some(Duration::from_millis(200))).await.unwrap().unwrap();
        let go_on = hang(&store).await;
        // It cannot be confirmed: that would have to be kept.
        while networks(&handle).await != ["a"] {}
        let mut next = pin!(handle.change(apply(&["c"]), None));
        tokio::select! {
            biased;
            _ = &mut next => panic!("it is not kept yet"),
            there = networks(&handle) => assert_eq!(there, ["a"]),
        }
        drop(go_on);
        next.await.unwrap().unwrap();
        assert_eq!(networks(&handle).await, ["c"]);
        assert_eq!(store.events(None, 10).await.unwrap().len(), 3, "made, taken back, and the next one");
    })
    .await;
}

/// What was learned since was lost when the switch stopped while the state was being verified.
#[tokio::test]
async fn a_stop_stores_the_stations_also_while_the_state_is_verified_or_stations_are_stored() {
    let text = json!({"networks": [{"id": "a"}], "vms": [{"id": "v", "ports": [{"port_id": "p", "network_id": "a",
        "mac_address": "02:00:00:00:00:01", "port_security": "off", "device": {"kind": "tap", "name": "p", "netns": "no-such-netns"}}]}]});
    let file = parse_json(&text.to_string(), "x").unwrap();
    let station = |last: u8| StoredStation {
        network_id: "a".into(),
        mac_address: Mac::new([2, 0, 0, 0, 1, last]),
        port_id: "p".into(),
        age_seconds: 0,
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    for (last, is_stored) in [(1, false), (2, true)] {
        let begun = async |controller: &mut Controller| {
            if is_stored {
                controller.finish_keeping_stations().await;
            }
            // The verification that has been begun, and what is stored, wait for this.
            let go_on = hang(controller.state.store().unwrap()).await;
            controller.save_stations();
            tokio::task::yield_now().await;
            let learned = controller.fdb_index().resolve_stored(vec![station(last)], time::now());
            controller.workers.learn(&learned).await;
            tokio::spawn(async move {
                // Until the switch, which stops, waits for the store as well.
                for _ in 0..1000 {
                    tokio::task::yield_now().await;
                }
                drop(go_on);
            });
        };
        run(file.clone(), &path, begun, async |_, _| {}).await;
        let (store, _) = Store::open(path.clone()).await.unwrap();
        let stored: Vec<Mac> = store.take_stations().await.unwrap().iter().map(|station| station.mac_address).collect();
        assert!(stored.contains(&station(last).mac_address), "{stored:?}");
        store.close().await;
    }
}
