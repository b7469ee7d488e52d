//! The state store compared with a model, with a simulated clock.

use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use super::database::{Database, History};
use super::*;
use crate::control::config::Device;
use crate::control::state::event_log::RESERVED;
use crate::control::state::event_page::{PAGE, PAGE_BYTES};
use crate::control::state::events::EventKind;

/// A short history, which fills soon.
const HISTORY: History = History { events: 8, bytes: 1200 };

fn event(time: &str, text: &str) -> Event {
    let (vm, network, mac) = (Some(text.into()), None, Some("02:00:00:00:00:01".into()));
    Event {
        id: 0,
        start: String::new(),
        time: time.into(),
        kind: EventKind::Config,
        vm,
        ports: vec![text.into()],
        network,
        mac,
        ip: None,
        gap: None,
        by: None,
        text: text.into(),
    }
}

fn open(path: &std::path::Path) -> (Database, Option<DesiredState>) {
    Database::open_with(path, None, HISTORY).unwrap()
}

/// An operation on the store.
#[derive(Debug, Clone)]
enum Step {
    Commit(DesiredState, Vec<Event>),
    Note(Option<Value>, Option<Value>, Vec<Event>),
    Save(Vec<StoredStation>, i64),
    /// A save that is started and not finished.
    GiveUp(Vec<StoredStation>),
    Reopen,
    Query(Option<u32>, usize),
}

/// Any text, including special characters of SQL, JSON and C.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        Just("\0'; DROP TABLE events; --\u{202e}\u{1f525}\"\\".to_owned()),
        Just("long ".repeat(100)),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        (text(), any::<i64>(), any::<u64>(), any::<bool>()).prop_map(|(s, i, u, b)| json!({ s: [i, u, b] }))
    ]
}

/// A time of day in seconds, with different UTC offsets.
fn written(second: u32) -> String {
    let local = |h: u32| format!("{:02}:{:02}:{:02}", second / 3600 + h, second / 60 % 60, second % 60);
    match second % 3 {
        0 => format!("2026-11-20T{}.000Z", local(0)),
        1 => format!("2026-11-20T{}+02:00", local(2)),
        _ => format!("2026-11-20T{}.0+01:00", local(1)),
    }
}

fn second() -> impl Strategy<Value = u32> {
    0u32..20 * 3600
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec((second(), text()).prop_map(|(at, text)| event(&written(at), &text)), 0..12)
}

fn stations() -> impl Strategy<Value = Vec<StoredStation>> {
    let port = prop_oneof![Just("a".to_owned()), Just("b".to_owned()), text()];
    let station =
        (port.clone(), any::<u64>(), port, any::<u32>()).prop_map(|(network_id, bits, port_id, age_seconds)| {
            let place = StoredPlace { network_id, port_id }.into();
            StoredStation { place, mac_address: Mac::from_bits(bits), age_seconds }
        });
    prop::collection::vec(station, 0..20)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (value(), value(), value(), value(), events()).prop_map(
            |(last_applied, config, orphans, lifetimes, events)| {
                Step::Commit(DesiredState { last_applied, config, orphans, lifetimes, generation: 1 }, events)
            }
        ),
        (prop::option::of(value()), prop::option::of(value()), events())
            .prop_map(|(orphans, lifetimes, events)| Step::Note(orphans, lifetimes, events)),
        (stations(), 0i64..1 << 40).prop_map(|(stations, now)| Step::Save(stations, now)),
        stations().prop_map(Step::GiveUp),
        Just(Step::Reopen),
        (prop::option::of(second()), 0usize..12).prop_map(|(since, most)| Step::Query(since, most)),
    ]
}

/// Seconds of the day of an event of the model.
fn instant(event: &Event) -> u32 {
    let time: jiff::Timestamp = event.time.parse().unwrap();
    let midnight: jiff::Timestamp = "2026-11-20T00:00:00Z".parse().unwrap();
    u32::try_from(time.as_second() - midnight.as_second()).unwrap()
}

/// Removes old events from the model.
fn flush(events: &mut Vec<Event>) {
    let size = |events: &[Event]| -> usize { events.iter().map(|e| serde_json::to_string(e).unwrap().len()).sum() };
    while events.len() > 8 || (events.len() > 1 && size(events) > 1200) {
        events.remove(0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_store_agrees_with_its_model(steps in prop::collection::vec(step(), 1..24)) {
        let place = TempDir::new().unwrap();
        let path = place.path().join("state.db");
        let (mut database, mut desired) = open(&path);
        let (mut events, mut stored, mut saved_at) = (Vec::<Event>::new(), Vec::<StoredStation>::new(), 0);
        prop_assert_eq!(&desired, &None);
        for step in steps {
            match step {
                Step::Commit(new, new_events) => {
                    database.commit(&StoredState::of(new.clone()), &new_events).unwrap();
                    desired = Some(new);
                    events.extend(new_events);
                    flush(&mut events);
                }
                Step::Note(orphans, lifetimes, new_events) => {
                    // Orphans and lifetimes exist only once there is a desired state.
                    let (orphans, lifetimes) =
                        (orphans.filter(|_| desired.is_some()), lifetimes.filter(|_| desired.is_some()));
                    let parts = Parts { orphans, lifetimes, generation: None };
                    database.append_events(&parts, &new_events).unwrap();
                    if let Some(desired) = &mut desired {
                        desired.orphans = parts.orphans.unwrap_or_else(|| desired.orphans.clone());
                        desired.lifetimes = parts.lifetimes.unwrap_or_else(|| desired.lifetimes.clone());
                    }
                    events.extend(new_events);
                    flush(&mut events);
                }
                Step::Save(stations, now) => {
                    database.begin_stations().unwrap();
                    for part in stations.chunks(7) {
                        database.add_stations(part).unwrap();
                    }
                    database.finish_stations(&Stamp::of_wall(now)).unwrap();
                    (stored, saved_at) = (stations, now);
                }
                Step::GiveUp(stations) => {
                    database.begin_stations().unwrap();
                    database.add_stations(&stations).unwrap();
                }
                Step::Reopen => {
                    drop(database);
                    let found;
                    (database, found) = open(&path);
                    prop_assert_eq!(&found, &desired);
                }
                Step::Query(since, most) => {
                    let found = database.events(since.map(written).as_deref(), most).unwrap();
                    let all: Vec<_> =
                        events.iter().filter(|event| since.is_none_or(|since| instant(event) >= since)).collect();
                    let newest: Vec<_> = all[all.len().saturating_sub(most)..].to_vec();
                    prop_assert_eq!(found.iter().collect::<Vec<_>>(), newest);
                }
            }
            prop_assert_eq!(&database.events(None, usize::MAX).unwrap(), &events);
            // In pages of any size.
            let (mut found, mut next) = (Vec::new(), Some(0));
            while let Some(from) = next {
                let (some, then) = database.stations(&Stamp::of_wall(saved_at), from, 7).unwrap();
                found.extend(some);
                next = then;
            }
            prop_assert_eq!(&found, &stored);
        }
        drop(database);
        prop_assert_eq!(open(&path).1, desired);
    }

    /// Earlier versions store a row per station, and read no others. Both sets may have blocks from before.
    #[test]
    fn stations_that_an_earlier_version_has_stored_are_read(ours in stations(), theirs in stations()) {
        let place = TempDir::new().unwrap();
        let path = place.path().join("state.db");
        let now = Stamp::of_wall(1000);
        let (mut database, _) = open(&path);
        for _ in 0..2 {
            database.begin_stations().unwrap();
            database.add_stations(&ours).unwrap();
            database.finish_stations(&now).unwrap();
        }
        drop(database);
        // As they do it: into the other set, which they empty before, as the one that was current afterwards.
        let connection = rusqlite::Connection::open(&path).unwrap();
        let current: i64 = connection.query_row("SELECT stations FROM current", [], |row| row.get(0)).unwrap();
        let set = 1 - current;
        connection.execute_batch(&format!("DELETE FROM stations_{set}; DELETE FROM places_{set};")).unwrap();
        for (number, StoredStation { place, mac_address, age_seconds }) in (0i64..).zip(&theirs) {
            let names = (number, &place.network_id, &place.port_id);
            connection.execute(&format!("INSERT INTO places_{set} VALUES (?1, ?2, ?3)"), names).unwrap();
            let row = (mac_address.bits().cast_signed(), number, age_seconds);
            connection.execute(&format!("INSERT INTO stations_{set} VALUES (?1, ?2, ?3)"), row).unwrap();
        }
        connection.execute("UPDATE current SET stations = ?1", [set]).unwrap();
        connection.execute_batch(&format!("DELETE FROM stations_{current}; DELETE FROM places_{current};")).unwrap();
        drop(connection);
        let (mut database, _) = open(&path);
        let read = |database: &Database| {
            let (mut found, mut next) = (Vec::new(), Some(0));
            while let Some(from) = next {
                let (some, then) = database.stations(&now, from, 7).unwrap();
                found.extend(some);
                next = then;
            }
            found
        };
        prop_assert_eq!(&read(&database), &theirs);
        // And the next save replaces all of it.
        database.begin_stations().unwrap();
        database.add_stations(&ours).unwrap();
        database.finish_stations(&now).unwrap();
        prop_assert_eq!(&read(&database), &ours);
    }

    #[test]
    fn a_block_of_stations_of_another_length_is_refused(length in 1usize..100) {
        let place = TempDir::new().unwrap();
        let path = place.path().join("state.db");
        let (mut database, _) = open(&path);
        database.begin_stations().unwrap();
        database.finish_stations(&Stamp::of_wall(1000)).unwrap();
        drop(database);
        let connection = rusqlite::Connection::open(&path).unwrap();
        let set: i64 = connection.query_row("SELECT stations FROM current", [], |row| row.get(0)).unwrap();
        let block = (0, vec![0u8; length]);
        connection.execute(&format!("INSERT INTO station_blocks_{set} VALUES (?1, ?2)"), block).unwrap();
        drop(connection);
        let found = open(&path).0.stations(&Stamp::of_wall(1000), 0, 9);
        if length.is_multiple_of(16) {
            prop_assert_eq!(found.unwrap(), (vec![], None), "of a port that is not known");
        } else {
            let is_corrupt = matches!(found, Err(StoreError::Corrupt { .. }));
            prop_assert!(is_corrupt);
        }
    }

    #[test]
    fn stored_stations_never_become_younger(age: u32, saved_at in 0i64..1 << 50, passed in -1i64 << 45..1 << 45) {
        let place = TempDir::new().unwrap();
        let (mut database, _) = open(&place.path().join("state.db"));
        let place = StoredPlace { network_id: "net1".into(), port_id: "port-1".into() }.into();
        let station = StoredStation { place, mac_address: Mac::from_bits(2), age_seconds: age };
        database.begin_stations().unwrap();
        database.add_stations(&[station]).unwrap();
        database.finish_stations(&Stamp::of_wall(saved_at)).unwrap();
        let older = i64::from(age) + passed.max(0) / 1000;
        let (found, _) = database.stations(&Stamp::of_wall(saved_at + passed), 0, 9).unwrap();
        prop_assert_eq!(i64::from(found[0].age_seconds), older.min(u32::MAX.into()));
    }

    #[test]
    fn any_text_is_parsed_as_time_or_refused(text in ".{0,40}") {
        let place = TempDir::new().unwrap();
        let (mut database, _) = open(&place.path().join("state.db"));
        let time: Result<jiff::Timestamp, _> = text.parse();
        prop_assert_eq!(database.events(Some(&text), 1).is_ok(), time.is_ok());
        prop_assert_eq!(database.append_events(&Parts::default(), &[event(&text, "")]).is_ok(), time.is_ok());
    }
}

#[test]
fn an_event_with_an_invalid_time_fails_the_commit() {
    let place = TempDir::new().unwrap();
    let (mut database, _) = open(&place.path().join("state.db"));
    let desired = DesiredState { config: json!({}), generation: 1, ..DesiredState::default() };
    let messages = database.commit(&StoredState::of(desired), &[event(&written(0), "good"), event("yesterday", "bad")]);
    let why = messages.unwrap_err().to_string();
    assert!(why.contains("\"yesterday\" is not a time") && why.contains("2026-01-31T12:00:00.000Z"), "{why}");
    assert_eq!(database.events(None, 9).unwrap(), []);
    drop(database);
    assert_eq!(open(&place.path().join("state.db")).1, None);
}

#[test]
fn synchronous_writes_are_enabled() {
    let place = TempDir::new().unwrap();
    let (database, _) = open(&place.path().join("state.db"));
    let pragma = |name: &str| database.pragma(name);
    assert_eq!(pragma("journal_mode"), "wal");
    assert_eq!(pragma("synchronous"), "2", "FULL");
    assert_eq!(pragma("locking_mode"), "exclusive");
}

#[test]
fn events_of_unknown_kinds_are_skipped() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("state.db");
    let (mut database, _) = open(&path);
    let events = ["one", "two", "three"].map(|text| event(&written(0), text));
    database.append_events(&Parts::default(), &events).unwrap();
    drop(database);
    let other = rusqlite::Connection::open(&path).unwrap();
    let changed = other.execute("UPDATE events SET json = replace(json, 'config', 'eclipse') WHERE number = 2", []);
    assert_eq!(changed, Ok(1));
    other.close().unwrap();
    assert_eq!(open(&path).0.events(None, 9).unwrap(), [events[0].clone(), events[2].clone()]);
}

#[test]
fn stored_events_are_read_page_by_page() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let database = &mut Database::open(&path, None).unwrap().0;
    assert_eq!(database.events_page(0, None).unwrap(), StoredPage { events: vec![], row: 0, is_last: true });
    // Without ids, as early versions stored them, then with ids and gaps between.
    let ids = (0..600).map(|number| if number < 100 { 0 } else { 2 * number });
    let all: Vec<Event> = ids.map(|id| Event { id, ..event(&written(0), "some") }).collect();
    database.append_events(&Parts::default(), &all).unwrap();
    let read = |after: Option<u64>| {
        let (mut row, mut events) = (0, Vec::new());
        loop {
            let page = database.events_page(row, after).unwrap();
            assert!(page.events.len() <= PAGE);
            events.extend(page.events);
            if page.is_last {
                return events;
            }
            row = page.row;
        }
    };
    assert_eq!(read(None), all);
    assert_eq!(read(Some(0)), all[100..]);
    assert_eq!(read(Some(801)), all[401..]);
    assert_eq!(read(Some(5000)), []);
    // Bounded in bytes too.
    let long = Event { id: 2000, text: "x".repeat(PAGE_BYTES / 4), ..event(&written(0), "") };
    database.append_events(&Parts::default(), &vec![long; 9]).unwrap();
    assert_eq!(database.events_page(0, Some(1999)).unwrap().events.len(), 4);
}

/// Events are shown before they are stored, and a kill must not give their ids again.
#[test]
fn event_ids_are_reserved_until_they_are_settled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let open = || Database::open(&path, None).unwrap().0;
    let some = |id| [Event { id, ..event(&written(0), "some") }];
    assert_eq!(open().reserve_ids(700).unwrap(), 0, "a new store");
    assert_eq!(open().reserve_ids(9).unwrap(), 700 + RESERVED, "after a kill");
    let mut database = open();
    database.settle_ids(800).unwrap();
    assert_eq!(database.reserve_ids(0).unwrap(), 800);
    // With each commit of events, at least half as many are reserved.
    let mut last = 801;
    for further in [0, RESERVED / 2, RESERVED / 2 + 1, 3 * RESERVED] {
        last += further;
        database.append_events(&Parts::default(), &some(last)).unwrap();
        drop(database);
        database = open();
        let reserved = database.reserve_ids(0).unwrap();
        assert!((last + RESERVED / 2..=last + RESERVED).contains(&reserved), "{reserved} after {last}");
        database.settle_ids(last).unwrap();
    }
}

/// Earlier versions may have stored ids out of order, and a later version events of unknown kinds.
#[test]
fn the_last_event_id_is_the_greatest_one() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("state.db");
    let (mut database, _) = open(&path);
    assert_eq!(database.last_event().unwrap(), 0);
    let events = [1, 7, 1 << 52, 2].map(|id| Event { id, ..event(&written(0), "some") });
    database.append_events(&Parts::default(), &events).unwrap();
    assert_eq!(database.last_event().unwrap(), 1 << 52);
    drop(database);
    let other = rusqlite::Connection::open(&path).unwrap();
    let strange = "UPDATE events SET json = replace(json, 'config', 'eclipse') WHERE number = 3;
        UPDATE events SET json = '{' WHERE number = 1;";
    other.execute_batch(strange).unwrap();
    other.close().unwrap();
    assert_eq!(open(&path).0.last_event().unwrap(), 1 << 52);
}

/// A new file got its name before it contained the desired state: a kill in between lost the desired state.
#[test]
fn a_file_contains_the_desired_state_as_soon_as_it_has_its_name() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("state.db");
    let desired = DesiredState {
        last_applied: json!({"a": 1}),
        config: json!({"b": 2}),
        orphans: json!([3]),
        lifetimes: json!([4]),
        generation: 1,
    };
    super::file::provide(&path, Some(&desired)).unwrap();
    assert_eq!(super::peek(&path).unwrap(), Some(desired.clone()));
    assert_eq!(Database::open(&path, None).unwrap().1, Some(desired.clone()));
    // An existing file is not changed.
    let other = DesiredState { orphans: Value::Null, ..desired.clone() };
    assert_eq!(Database::open(&path, Some(&other)).unwrap().1, Some(desired));
}

/// Another version may have stored a configuration without its generation.
#[test]
fn a_state_of_another_version_has_another_generation() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("state.db");
    let desired = DesiredState { config: json!({}), generation: 7, ..DesiredState::default() };
    super::file::provide(&path, Some(&desired)).unwrap();
    let generation = || Database::open(&path, None).unwrap().1.unwrap().generation;
    assert_eq!(generation(), 7);
    for (change, expected) in [
        ("UPDATE desired SET json = replace(json, '\"switch\":\"', '\"switch\":\"9.') WHERE part = 'version'", 8),
        ("DELETE FROM desired WHERE part = 'version'", 8),
        ("DELETE FROM desired WHERE part = 'generation'", 1),
    ] {
        let other = rusqlite::Connection::open(&path).unwrap();
        assert_eq!(other.execute(change, []).unwrap(), 1, "{change}");
        other.close().unwrap();
        assert_eq!(generation(), expected, "{change}");
    }
}

#[test]
fn newer_formats_and_foreign_files_are_refused() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("state.db");
    drop(open(&path));
    let change = |sql: &str| {
        let other = rusqlite::Connection::open(&path).unwrap();
        other.execute_batch(sql).unwrap();
        other.close().unwrap();
        Database::open(&path, None).unwrap_err()
    };
    let why = change("PRAGMA user_version = 7");
    assert!(matches!(why, StoreError::Newer { found: 7, known: 2, .. }), "{why}");
    let why = change("PRAGMA user_version = 0");
    assert!(matches!(why, StoreError::Corrupt { .. }), "{why}");
    let why = change("PRAGMA user_version = 1; PRAGMA application_id = 5");
    assert!(matches!(why, StoreError::Foreign { .. }), "{why}");
    let why = Database::open(place.path(), None).unwrap_err();
    assert!(matches!(why, StoreError::Foreign { .. }), "{why}");
}

#[test]
fn an_incomplete_desired_state_is_damage() {
    let whole = ["UPDATE desired SET json = '{' WHERE part = 'config'", "DELETE FROM desired WHERE part = 'config'"];
    let in_rows = [
        "UPDATE entities SET json = '{' WHERE id = 'a'",
        "DELETE FROM entities WHERE list = ''",
        "DELETE FROM entities",
    ];
    for (is_whole, damages) in [(true, &whole[..]), (false, &in_rows[..])] {
        let place = TempDir::new().unwrap();
        let path = place.path().join("state.db");
        let (mut database, _) = open(&path);
        database.commit(&StoredState::of(of_vms(&[("a", 1)])), &[]).unwrap();
        if is_whole {
            database.store_as_whole().unwrap();
        }
        drop(database);
        for sql in damages {
            let other = rusqlite::Connection::open(&path).unwrap();
            other.execute_batch(sql).unwrap();
            other.close().unwrap();
            let why = Database::open(&path, None).unwrap_err();
            assert!(matches!(why, StoreError::Corrupt { .. }), "{sql}: {why}");
        }
    }
}

/// A desired state with these VMs, each with a number.
fn of_vms(vms: &[(&str, u64)]) -> DesiredState {
    let vms: Vec<Value> = vms.iter().map(|(id, number)| json!({"id": id, "number": number})).collect();
    DesiredState { config: json!({"switch": {}, "vms": vms}), generation: 1, ..DesiredState::default() }
}

/// Versions that know no rows refuse a file with rows, and read one that was closed in order.
#[test]
fn rows_are_in_a_file_that_is_being_changed_and_the_whole_in_one_that_was_closed() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("state.db");
    let mut wanted = of_vms(&[("b", 1), ("a", 1)]);
    drop(Database::open(&path, Some(&wanted)).unwrap());
    let look =
        |sql: &str| -> i64 { rusqlite::Connection::open(&path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap() };
    let whole = "SELECT count(*) FROM desired WHERE part = 'config'";
    assert_eq!((look("PRAGMA user_version"), look(whole)), (1, 1), "a new file");
    for vms in [&[("b", 1), ("a", 2), ("c", 1)][..], &[("c", 1), ("b", 1)]] {
        let (mut handle, found) = reopen::StoreHandle::open(path.clone(), None).unwrap();
        assert_eq!(found.as_ref(), Some(&wanted));
        wanted = of_vms(vms);
        handle.commit(StoredState::of(wanted.clone()), None, &[]).unwrap();
        // As after a kill.
        drop(handle);
        assert_eq!((look("PRAGMA user_version"), look(whole)), (2, 0));
        let (handle, found) = reopen::StoreHandle::open(path.clone(), None).unwrap();
        assert_eq!(found.as_ref(), Some(&wanted));
        handle.close();
        assert_eq!((look("PRAGMA user_version"), look(whole)), (1, 1));
        assert_eq!(open(&path).1.as_ref(), Some(&wanted));
    }
}

#[test]
fn a_change_writes_the_rows_that_it_changes() {
    let place = TempDir::new().unwrap();
    let (mut database, _) = open(&place.path().join("state.db"));
    let names: Vec<String> = (0..1000).map(|number| format!("vm-{number}")).collect();
    let state = |changed: usize| {
        let vms: Vec<(&str, u64)> =
            names.iter().enumerate().map(|(at, id)| (id.as_str(), u64::from(at < changed))).collect();
        StoredState::of(of_vms(&vms))
    };
    database.commit(&state(0), &[]).unwrap();
    for changed in 1..4 {
        let before = database.written();
        database.commit(&state(changed), &[]).unwrap();
        // The file last applied is another value each time.
        assert!(database.written() - before <= 2, "{} rows", database.written() - before);
    }
}

/// A state file with the names of earlier versions is read.
#[test]
fn names_of_earlier_versions_are_read() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("state.db");
    let dump = include_str!("../../../../tests/golden/state-names.sql");
    rusqlite::Connection::open(&path).unwrap().execute_batch(dump).unwrap();
    let (database, desired) = Database::open(&path, None).unwrap();
    let desired = desired.unwrap();
    for stored in [&desired.last_applied, &desired.config] {
        let stored = crate::control::config::read_stored(stored).unwrap();
        assert!(stored.unknown.is_empty(), "{:?}", stored.unknown);
        let network = &stored.config.networks[0];
        assert_eq!((network.anti_spoof, network.dampening_seconds), (false, 90));
        let replaces = |device: &Device| matches!(device, Device::Xdp(xdp) if xdp.replace_xdp_program);
        assert_eq!(stored.config.devices().filter(|device| replaces(device)).count(), 2);
    }
    let kinds: Vec<_> = database.events(None, 10).unwrap().iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::NetworksBridged, EventKind::SpoofedMac, EventKind::MacDampened]);
    let loops = database.loops().unwrap();
    let kind = |of: &Value| of["key"].as_object().unwrap().keys().next().unwrap().clone();
    let all = [&loops["loops"][0], &loops["loops"][1], &loops["past"][0]];
    assert_eq!(all.map(kind), ["intra_vm", "inter_network", "external"]);
    assert_eq!(
        (&loops["loops"][0]["level"], &loops["loops"][1]["level"]),
        (&json!("all_but_one"), &json!("split_horizon"))
    );
}
