//! The controller over a store that hangs, and over one that becomes usable after the start.

mod groups;
mod history;
mod namespaces;
mod opened;
mod spent;
mod stations;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::mpsc as std_mpsc;
use std::thread;

use serde_json::json;
use tokio::sync::oneshot;

use super::*;
use crate::control::api::handle::{ChangeOptions, Handle};
use crate::control::author::Author;
use crate::control::config::Network;
use crate::control::descriptors::Descriptors;
use crate::control::desired::change::{Change, ChangeError, ChangeResult};
use crate::control::state::Precedence;
use crate::control::state::event_page::Cursor;
use crate::control::state::events::{Event, EventKind, Gap};
use crate::control::state::store::Store;
use crate::frame::Pool;
use crate::wire::ProbeKey;
use crate::worker::{Pace, WorkerSetSettings, worker_set};

fn config(networks: &[&str]) -> Config {
    Config { networks: networks.iter().map(|&id| Network::new(id)).collect(), ..Config::default() }
}

fn apply(networks: &[&str]) -> Change {
    Change::Apply(config(networks))
}

/// Applies a configuration of these networks.
async fn change(handle: &Handle, networks: &[&str]) -> Result<ChangeResult, ChangeError> {
    handle.change(apply(networks), ChangeOptions::default(), Box::new(())).await.unwrap()
}

async fn networks(handle: &Handle) -> Vec<String> {
    handle.networks().await.unwrap().into_iter().map(|network| network.network_id).collect()
}

async fn begin(file: Config, path: &Path) -> (Config, StateStore) {
    StateStore::open(Some(file.into()), Some(path), Precedence::Merge).await.unwrap()
}

/// Makes the store hang until the returned sender is dropped.
async fn hang(store: &Store) -> std_mpsc::Sender<()> {
    let (go_on, until) = std_mpsc::channel();
    store.hang(until).await;
    go_on
}

/// Runs a switch with network "a" during `request`, and stops it in order.
async fn while_running(request: impl AsyncFnOnce(Handle, Arc<Store>)) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let begun_with = begin(config(&["a"]), &path).await;
    let store = begun_with.1.store().unwrap().clone();
    run_over(begun_with, async |handle| request(handle, store).await).await;
    assert!(!path.with_extension("db-wal").exists(), "the store is closed when the switch has stopped");
}

/// Runs a switch with these networks over the state at `path`, usable or not, during `request`, and stops it in order.
async fn run(networks: &[&str], path: &Path, request: impl AsyncFnOnce(Handle)) {
    run_over(begin(config(networks), path).await, request).await;
}

async fn run_over(begun_with: (Config, StateStore), request: impl AsyncFnOnce(Handle)) {
    run_prepared(begun_with, async |_| {}, request).await;
}

/// The same; `begun` receives the controller before it runs.
async fn run_prepared(
    (first, state_store): (Config, StateStore),
    begun: impl AsyncFnOnce(&mut Controller),
    request: impl AsyncFnOnce(Handle),
) {
    let hash_key = HashKey::new([7; 16]);
    let pool = Pool::new(64).unwrap();
    let mut worker_set = worker_set(WorkerSetSettings {
        workers: 1,
        pool,
        fdb_capacity: 64,
        hash_key,
        probe_keys: ProbeKey::new([5; 16]).into(),
    })
    .unwrap();
    let worker = worker_set.workers.remove(0);
    let thread = thread::spawn(move || worker.run(Pace::Adaptive));
    let worker_handles = WorkerHandles::new(worker_set.mailboxes, worker_set.counters);
    let (notices, events) = (worker_set.notices, worker_set.events);
    let (handle, requests) = Handle::new();
    let beginning = Startup {
        cores: vec![0],
        hash_key,
        workers: worker_handles,
        notices,
        events,
        probes: ProbeIdentity::from(ProbeKey::new([5; 16])),
        state: state_store,
        pool,
        health: handle.health().clone(),
        descriptors: Descriptors::default(),
        handover: Default::default(),
    };
    let mut controller = Controller::new(beginning);
    // However slow the machine is, what waits together is made together.
    controller.max_group_time = Duration::MAX;
    controller.begin(first).await.unwrap();
    begun(&mut controller).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let asking = async {
        request(handle).await;
        drop(stop);
    };
    tokio::join!(controller.run(requests, async { drop(stopped.await) }), asking);
    controller.close_all().await;
    thread.join().unwrap();
}

/// All events behind a position, and the position behind them.
async fn history_from(handle: &Handle, mut cursor: Cursor) -> (Vec<Event>, Cursor) {
    let mut all = Vec::new();
    loop {
        let page = handle.events(Arc::default(), cursor).await.unwrap();
        cursor = page.next;
        all.extend(page.events.iter().map(|event| Event::clone(event)));
        if page.is_last {
            return (all, cursor);
        }
    }
}

/// Past events, and the position of a follower of later ones.
async fn history(handle: &Handle, after: Option<u64>) -> (Vec<Event>, Cursor) {
    history_from(handle, after.map_or_else(Cursor::default, Cursor::after)).await
}

/// Events since the last call.
async fn received(handle: &Handle, live: &mut Cursor) -> Vec<Event> {
    let events;
    (events, *live) = history_from(handle, *live).await;
    events
}

/// Without messages about missing events.
fn without_gaps(events: Vec<Event>) -> Vec<Event> {
    events.into_iter().filter(|event| event.gap.is_none()).collect()
}

fn ids(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.id).collect()
}

fn texts(events: &[Event]) -> Vec<String> {
    events.iter().map(|event| event.text.clone()).collect()
}

/// Creates a state file with these events next to `path`, and a directory at `path`. Returns the path of the file.
async fn unusable(path: &Path, events: Vec<Event>) -> PathBuf {
    let away = path.with_extension("away");
    let (store, _) = Store::open(away.clone()).await.unwrap();
    let last = events.iter().map(|event| event.id).max().unwrap();
    store.append_events(events).await.unwrap();
    store.settle_ids(last).await.unwrap();
    store.close().await;
    std::fs::create_dir(path).unwrap();
    away
}

/// Puts the file at `away` in the place of the directory at `path`.
fn make_usable(path: &Path, away: &Path) {
    std::fs::remove_dir(path).unwrap();
    std::fs::rename(away, path).unwrap();
}

fn earlier(id: u64) -> Event {
    Event { id, start: "1".into(), text: format!("earlier {id}"), ..Event::new(EventKind::Config, time::wall()) }
}

fn is_increasing(events: &[Event]) -> bool {
    events.is_sorted_by(|a, b| a.id < b.id)
}

/// With a state that became usable after the start, new events reused the ids of stored events and hid them.
#[tokio::test]
async fn events_emitted_before_the_state_is_usable_do_not_collide_with_stored_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let away = unusable(&path, (1..=3).map(earlier).collect()).await;
    let mut all = Vec::new();
    run_prepared(
        begin(config(&["a"]), &path).await,
        async |controller| {
            let event = controller.event(EventKind::Config, "early".into());
            controller.emit(false, event);
        },
        async |handle| {
            // Without the state, a message without an id reports that stored events are missing.
            change(&handle, &["a", "x"]).await.unwrap_err();
            let (before, mut live) = history(&handle, None).await;
            assert!(before[0].id == 0 && before[0].text.contains("stored events are missing here"), "{before:?}");
            let (first, last) = (before[1].id, before.last().unwrap().id);
            assert!(
                before[1].text.contains("store_failed") && is_increasing(&before) && before.len() == 3,
                "{before:?}"
            );
            // A client that continues after the earlier start gets all events.
            assert_eq!(ids(&history(&handle, Some(3)).await.0), [&[0], &ids(&before)[1..]].concat());
            assert_eq!(ids(&history(&handle, Some(first)).await.0), ids(&before)[2..]);
            assert_eq!(history(&handle, Some(last)).await.0, []);

            make_usable(&path, &away);
            change(&handle, &["a", "b"]).await.unwrap();
            // The answer has each event once, and a follower missed none.
            (all, _) = history(&handle, None).await;
            let reported: Vec<_> = all.iter().filter_map(|event| event.gap).collect();
            assert_eq!(reported, [Gap { first_missing: 4, next_id: first }]);
            all.retain(|event| event.gap.is_none());
            assert_eq!(ids(&all)[..3], [1, 2, 3]);
            assert_eq!(all[3..5], before[1..]);
            assert!(is_increasing(&all) && all[3..].iter().all(|event| event.start == all[3].start), "{all:?}");
            let emitted = received(&handle, &mut live).await;
            assert_eq!(emitted, all[5..]);
            assert_eq!(history(&handle, Some(last)).await.0, emitted);
            assert_eq!(
                texts(&emitted),
                ["the state can be stored again; changes are accepted", "network \"b\" is new, with MTU 1500"]
            );
        },
    )
    .await;
    // A restart answers the same, and continues after it.
    run(&["a"], &path, async |handle| {
        assert_eq!(without_gaps(history(&handle, None).await.0), all);
        change(&handle, &["a"]).await.unwrap();
        assert_eq!(ids(&history(&handle, Some(all.last().unwrap().id)).await.0), [all.last().unwrap().id + 1]);
    })
    .await;
}

/// Ids follow the clock while the last stored id is unknown, and the clock can be set back.
#[tokio::test]
async fn events_get_new_ids_if_stored_ones_have_greater_ids() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let far = 1 << 52;
    let away = unusable(&path, (far..far + 2).map(earlier).collect()).await;
    let mut all = Vec::new();
    run(&["a"], &path, async |handle| {
        let (before, mut live) = history(&handle, None).await;
        make_usable(&path, &away);
        change(&handle, &["a", "b"]).await.unwrap();
        (all, _) = history(&handle, None).await;
        assert_eq!(ids(&all), (far..far + 6).collect::<Vec<_>>());
        assert_eq!(all[2].text, before[1].text, "the event is not lost");
        assert!(all[2].start != before[1].start && all[2..].iter().all(|event| event.start == all[2].start), "{all:?}");
        let emitted = received(&handle, &mut live).await;
        // A follower is told that ids are missing, and gets all behind them.
        assert_eq!((emitted[0].kind, &emitted[1..]), (EventKind::Gap, &all[..]));
        assert!(emitted.iter().any(|of| of.text.contains(&format!("new ids, from {} on", far + 2))), "{emitted:?}");
    })
    .await;
    run(&["a"], &path, async |handle| {
        assert_eq!(history(&handle, None).await.0, all);
    })
    .await;
}

/// If the last stored id could not be read at the start, ids began at 1 again.
#[tokio::test]
async fn a_start_that_cannot_read_the_last_event_id_reuses_no_id() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let (store, _) = Store::open(path.clone()).await.unwrap();
    store.append_events((1..=3).map(earlier).collect()).await.unwrap();
    store.close().await;
    let begun_with = begin(config(&["a"]), &path).await;
    // The disk hangs for longer than the start waits for it.
    let go_on = hang(begun_with.1.store().unwrap()).await;
    tokio::spawn(async move {
        sleep(DISK + DISK / 2).await;
        drop(go_on);
    });
    let request = async |handle: Handle| {
        change(&handle, &["a", "b"]).await.unwrap();
        let all = without_gaps(history(&handle, None).await.0);
        assert!(ids(&all)[..3] == [1, 2, 3] && all.len() == 4 && is_increasing(&all), "{all:?}");
    };
    run_over(begun_with, request).await;
}

/// The start waited for loops and FDB entries without limit.
#[tokio::test]
async fn a_disk_that_hangs_after_the_state_is_open_does_not_hold_up_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let begun_with = begin(config(&["a"]), &dir.path().join("state.db")).await;
    let go_on = hang(begun_with.1.store().unwrap()).await;
    let request = async |handle: Handle| {
        assert_eq!(handle.networks().await.unwrap().len(), 1);
        drop(go_on);
    };
    run_over(begun_with, request).await;
}

/// Events about an edit of the configuration file were stored without an id, so that no follower received them.
#[tokio::test]
async fn events_about_an_edit_of_the_file_have_ids() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    run(&["a"], &path, async |handle| {
        change(&handle, &["a", "b"]).await.unwrap();
    })
    .await;
    let away = path.with_extension("away");
    std::fs::rename(&path, &away).unwrap();
    // The state is usable after the start, and at the start.
    std::fs::create_dir(&path).unwrap();
    run(&["a", "c"], &path, async |handle| {
        let mut live = history(&handle, None).await.1;
        make_usable(&path, &away);
        change(&handle, &["a"]).await.unwrap();
        let emitted = received(&handle, &mut live).await;
        assert!(emitted[1].text.contains("has been edited") && is_increasing(&emitted), "{emitted:?}");
    })
    .await;
    run(&["a", "c", "d"], &path, async |handle| {
        let all = without_gaps(history(&handle, None).await.0);
        assert!(all.last().unwrap().text.contains("has been edited") && is_increasing(&all), "{all:?}");
        assert!(all[0].id > 0);
    })
    .await;
}

#[tokio::test]
async fn while_the_disk_hangs_requests_are_answered_and_changes_wait_in_order() {
    while_running(async |handle, store| {
        let go_on = hang(&store).await;
        let mut first = pin!(change(&handle, &["a", "b"]));
        let mut second = pin!(change(&handle, &["a", "b", "c"]));
        for _ in 0..20 {
            tokio::select! {
                biased;
                _ = &mut first => panic!("it is not kept yet"),
                _ = &mut second => panic!("the one before is not kept yet"),
                there = networks(&handle) => assert_eq!(there, ["a"]),
            }
            assert_eq!(handle.workers().await.unwrap().len(), 1, "the watchdog's request is answered");
            assert_eq!(
                handle
                    .diff(apply(&["b"]), ChangeOptions::default(), Box::new(()))
                    .await
                    .unwrap()
                    .unwrap()
                    .changes
                    .len(),
                2
            );
        }
        let (mut messages, mut live) = history(&handle, None).await;
        assert!(messages.remove(0).text.contains("stored events are missing here"), "the reply reports missing events");
        // Events in memory are answered; the disk is waited for a second.
        while messages.is_empty() {
            messages.extend(received(&handle, &mut live).await);
        }
        let waits = "the disk has not answered for 1 s; this change waits for it: network \"b\" is new, with MTU 1500";
        assert_eq!(texts(&messages), [waits]);
        drop(go_on);
        let (first, second) = tokio::join!(first, second);
        assert_eq!(first.unwrap().changes, ["network \"b\" is new, with MTU 1500"]);
        assert_eq!(second.unwrap().changes, ["network \"c\" is new, with MTU 1500"]);
        assert_eq!(networks(&handle).await, ["a", "b", "c"]);
        messages.extend(received(&handle, &mut live).await);
        let [b, stored, c] = [
            "network \"b\" is new, with MTU 1500",
            "stored now: network \"b\" is new, with MTU 1500",
            "network \"c\" is new, with MTU 1500",
        ];
        assert_eq!(texts(&messages), [waits, stored, c], "each event once");
        assert_eq!(texts(&store.events(None, 10).await.unwrap()), [b, stored, c]);
    })
    .await;
}

#[tokio::test]
async fn events_about_changes_name_who_made_them() {
    while_running(async |handle, _store| {
        let author = |request_id: &str| Author { uid: Some(7), pid: Some(8), request_id: request_id.into() };
        author("one").scope(change(&handle, &["a", "b"])).await.unwrap();
        let confirm = Some(Duration::from_secs(60)).into();
        author("two").scope(handle.change(apply(&["a"]), confirm, Box::new(()))).await.unwrap().unwrap();
        author("three").scope(handle.confirm(Box::new(()))).await.unwrap().unwrap();
        change(&handle, &["a", "c"]).await.unwrap();
        let by: Vec<_> = history(&handle, None).await.0.into_iter().map(|event| event.by).collect();
        assert_eq!(by, [Some(author("one")), Some(author("two")), Some(author("three")), None]);
    })
    .await;
}

#[tokio::test]
async fn while_the_disk_hangs_an_unconfirmed_change_is_reverted() {
    while_running(async |handle, store| {
        // Possible orphans are stored before they are created.
        let confirm = Some(Duration::from_millis(200));
        handle.change(apply(&["a", "b"]), confirm.into(), Box::new(())).await.unwrap().unwrap();
        let go_on = hang(&store).await;
        // It cannot be confirmed: that would have to be stored.
        while networks(&handle).await != ["a"] {}
        let mut next = pin!(change(&handle, &["c"]));
        tokio::select! {
            biased;
            _ = &mut next => panic!("it is not kept yet"),
            there = networks(&handle) => assert_eq!(there, ["a"]),
        }
        drop(go_on);
        next.await.unwrap();
        assert_eq!(networks(&handle).await, ["c"]);
        assert_eq!(store.events(None, 10).await.unwrap().len(), 3, "made, reverted, and the next change");
    })
    .await;
}
