//! The state store: kills at any moment, full and read-only disks, damaged files. Some tests need root to mount a
//! file system.
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::{env, io, thread};

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::json;
use tempfile::TempDir;
use vifswitch::control::state::events::{Event, EventKind};
use vifswitch::control::state::store::{DesiredState, Store, StoreError, StoredPlace, StoredStation};
use vifswitch::wire::Mac;

fn event(text: &str) -> Event {
    let (time, vm, network, mac) = ("2026-11-20T12:00:00.000Z".into(), None, None, None);
    Event {
        id: 0,
        start: String::new(),
        time,
        kind: EventKind::Config,
        vm,
        ports: Vec::new(),
        network,
        mac,
        ip: None,
        gap: None,
        by: None,
        text: text.into(),
    }
}

fn desired(number: u64) -> DesiredState {
    DesiredState { config: json!({ "number": number }), generation: 1, ..DesiredState::default() }
}

/// Number of a desired state; 0 if there is none.
fn number(desired: Option<&DesiredState>) -> u64 {
    desired.map_or(0, |desired| desired.config["number"].as_u64().unwrap())
}

/// Stations that all carry the number of their save.
fn stations(save: u64, count: usize) -> Vec<StoredStation> {
    let station = |index: usize| StoredStation {
        place: StoredPlace { network_id: "net1".into(), port_id: format!("save-{save}") }.into(),
        mac_address: Mac::from_bits(0x0200_0000_0000 + index as u64),
        age_seconds: 0,
    };
    (0..count).map(station).collect()
}

async fn open(path: &Path) -> Store {
    Store::open(path.into()).await.unwrap().0
}

async fn refused(path: &Path) -> StoreError {
    Store::open(path.into()).await.unwrap_err()
}

/// A file system in memory, unmounted when the test ends.
struct Disk(TempDir);

impl Disk {
    /// Prints the reason and returns `None` if the host cannot mount it.
    fn new(size: &str) -> Option<Disk> {
        if !geteuid().is_root() {
            eprintln!("skipped: needs root, to mount a file system");
            return None;
        }
        let disk = Disk(TempDir::new().unwrap());
        disk.mount(&["-t", "tmpfs", "-o", size, "tmpfs"]);
        Some(disk)
    }

    fn mount(&self, how: &[&str]) {
        assert!(Command::new("mount").args(how).arg(self.0.path()).status().unwrap().success());
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state.db")
    }

    /// Fills the disk.
    fn fill(&self) {
        let mut file = File::options().append(true).create(true).open(self.0.path().join("filler")).unwrap();
        let full = loop {
            if let Err(why) = file.write_all(&[0; 4096]) {
                break why;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }

    fn make_room(&self) {
        fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a failed test has the store still open.
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn stored_values_are_read_back() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("new/and new/state.db");
    let (store, found) = Store::open(path.clone()).await.unwrap();
    assert_eq!(found, None);
    assert_eq!(store.stations_page(0, usize::MAX).await.unwrap().0, []);
    store.commit(desired(1), vec![event("one")]).await.unwrap();
    store.append_events(vec![event("two"), event("three")]).await.unwrap();
    store.save_stations(stations(1, 3)).await.unwrap();
    store.close().await;

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o640, 0o750));

    let (store, found) = Store::open(path).await.unwrap();
    assert_eq!(found, Some(desired(1)));
    assert_eq!(store.events(None, 2).await.unwrap(), [event("two"), event("three")]);
    assert_eq!(store.events(Some("2026-11-20T12:00:00.001Z".into()), 2).await.unwrap(), []);
    assert_eq!(store.events(Some("2026-11-20T14:00:00+02:00".into()), 9).await.unwrap().len(), 3);
    for _ in 0..2 {
        let mut found = store.stations_page(0, usize::MAX).await.unwrap().0;
        found.sort_by_key(|station| station.mac_address);
        let names: Vec<_> = found.iter().map(|s| (&*s.place.network_id, s.mac_address, &*s.place.port_id)).collect();
        assert_eq!(
            names,
            stations(1, 3).iter().map(|s| (&*s.place.network_id, s.mac_address, &*s.place.port_id)).collect::<Vec<_>>()
        );
    }
}

#[tokio::test]
async fn a_second_switch_is_refused_until_the_first_has_ended() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("state.db");
    let first = open(&path).await;
    for _ in 0..2 {
        let why = refused(&path).await;
        assert!(matches!(why, StoreError::InUse { .. }), "{why}");
        assert!(why.to_string().contains("in use by another process"), "{why}");
    }
    first.commit(desired(1), Vec::new()).await.unwrap();
    first.close().await;
    assert_eq!(number(Store::open(path).await.unwrap().1.as_ref()), 1);
}

#[tokio::test]
async fn commits_run_between_steps_of_a_save() {
    let place = TempDir::new().unwrap();
    let store = Arc::new(open(&place.path().join("state.db")).await);
    store.save_stations(stations(1, 5)).await.unwrap();
    let saves = [2, 3].map(|save| {
        let store = store.clone();
        tokio::spawn(async move { store.save_stations(stations(save, 50_000)).await })
    });
    let mut commits = 0;
    while !saves.iter().all(|save| save.is_finished()) {
        commits += 1;
        store.commit(desired(commits), Vec::new()).await.unwrap();
        // Before, during or after the save: always one complete set.
        let found = store.stations_page(0, usize::MAX).await.unwrap().0;
        assert!(found.len() == 5 || found.len() == 50_000, "{}", found.len());
        assert!(found.iter().all(|station| station.place.port_id == found[0].place.port_id));
    }
    for save in saves {
        save.await.unwrap().unwrap();
    }
    assert!(commits > 5, "only {commits} commits during two saves of five steps each");
}

/// A writer, which is this test as a separate process, changes the state and reports each change until it is killed.
/// All reported changes are stored, and at most one that was not reported.
#[test]
fn answered_changes_survive_a_kill() {
    const WRITER: &str = "VIFSWITCH_STORE_WRITER";
    const STATIONS: usize = 12_000;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    if let Some(path) = env::var_os(WRITER) {
        runtime.block_on(write_for_ever(Path::new(&path), STATIONS));
    }
    let place = TempDir::new().unwrap();
    let path = place.path().join("state.db");
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let (mut answered, mut killed_on_the_way) = (0, 0);
    for round in 0..100 {
        let mut writer = Command::new(env::current_exe().unwrap())
            .args(["--exact", "store::answered_changes_survive_a_kill", "--nocapture"])
            .env(WRITER, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut numbers = lines.by_ref().filter_map(|line| line.strip_prefix("answered ").map(|n| n.parse().unwrap()));
        // Some are killed while they open the file, most while writing.
        for _ in 0..random.next_u32() % 8 {
            answered = numbers.next().unwrap();
        }
        for _ in 0..random.next_u32() % 2000 {
            thread::yield_now();
        }
        kill_process(Pid::from_child(&writer), Signal::KILL).unwrap();
        answered = numbers.last().unwrap_or(answered);
        assert!(!writer.wait().unwrap().success());

        runtime.block_on(async {
            let (store, found) = Store::open(path.clone()).await.unwrap();
            let found = number(found.as_ref());
            assert!(found == answered || found == answered + 1, "round {round}: {found} stored, {answered} answered");
            killed_on_the_way += found - answered;
            answered = found;
            // The events of a commit are stored with it, each once.
            let events: Vec<_> = store.events(None, usize::MAX).await.unwrap().into_iter().map(|e| e.text).collect();
            let all: Vec<_> = (1..=found).map(|number| number.to_string()).collect();
            assert_eq!(events, all[all.len().saturating_sub(10_000)..]);
            let stations = store.stations_page(0, usize::MAX).await.unwrap().0;
            assert!(stations.is_empty() || stations.len() == STATIONS, "round {round}: {} stations", stations.len());
            assert!(stations.iter().all(|station| station.place.port_id == stations[0].place.port_id));
            store.close().await;
        });
    }
    assert!(answered > 100, "the writers have made few changes");
    println!("{answered} changes, {killed_on_the_way} of them stored and not answered");
}

async fn write_for_ever(path: &Path, count: usize) -> ! {
    let (store, found) = Store::open(path.into()).await.unwrap();
    let save = async {
        for save in 0.. {
            store.save_stations(stations(save, count)).await.unwrap();
        }
    };
    let commit = async {
        let mut out = io::stdout();
        for next in number(found.as_ref()) + 1.. {
            store.commit(desired(next), vec![event(&next.to_string())]).await.unwrap();
            // In one write.
            out.write_all(format!("\nanswered {next}\n").as_bytes()).unwrap();
            out.flush().unwrap();
        }
    };
    tokio::join!(save, commit);
    unreachable!("the numbers are unlimited")
}

#[tokio::test]
async fn a_full_disk_is_reported_and_recovers() {
    let Some(disk) = Disk::new("size=32m") else { return };
    let big = |number: u64| DesiredState { last_applied: json!("x".repeat(400_000)), ..desired(number) };
    let store = open(&disk.state()).await;
    store.commit(desired(1), vec![event("one")]).await.unwrap();

    disk.fill();
    let why = store.commit(big(2), vec![event("never")]).await.unwrap_err();
    assert!(matches!(why, StoreError::Full { .. }), "{why}");
    assert!(why.to_string().contains("no space left"), "{why}");
    let why = store.save_stations(stations(1, 9)).await.unwrap_err();
    assert!(matches!(why, StoreError::Scarce { .. }), "{why}");
    // Existing contents can be read, by this process and the next.
    assert_eq!(store.events(None, 9).await.unwrap(), [event("one")]);
    store.close().await;
    let (store, found) = Store::open(disk.state()).await.unwrap();
    assert_eq!(found, Some(desired(1)));
    assert_eq!(store.events(None, 9).await.unwrap(), [event("one")]);
    assert!(matches!(store.commit(big(2), Vec::new()).await, Err(StoreError::Full { .. })));

    disk.make_room();
    store.commit(big(3), vec![event("three")]).await.unwrap();
    store.save_stations(stations(1, 1000)).await.unwrap();
    store.close().await;
    let (store, found) = Store::open(disk.state()).await.unwrap();
    assert_eq!(found, Some(big(3)));
    assert_eq!(store.events(None, 9).await.unwrap(), [event("one"), event("three")]);
    assert_eq!(store.stations_page(0, usize::MAX).await.unwrap().0.len(), 1000);
}

#[tokio::test]
async fn stations_that_do_not_fit_leave_room_for_commits() {
    let Some(disk) = Disk::new("size=32m") else { return };
    let store = open(&disk.state()).await;
    store.save_stations(stations(1, 1000)).await.unwrap();
    let why = store.save_stations(stations(2, 1_000_000)).await.unwrap_err();
    assert!(matches!(why, StoreError::Scarce { .. }), "{why}");
    assert!(why.to_string().contains("less than 16 MiB left"), "{why}");
    for number in 1..500 {
        let last_applied = json!("x".repeat(100_000) + &number.to_string());
        store.commit(DesiredState { last_applied, ..desired(number) }, vec![event("go on")]).await.unwrap();
    }
    let host = store.stations_page(0, usize::MAX).await.unwrap().0;
    assert_eq!((host.len(), &*host[0].place.port_id), (1000, "save-1"));
}

#[tokio::test]
async fn a_new_file_on_a_full_disk_is_an_error() {
    let Some(disk) = Disk::new("size=64k") else { return };
    disk.fill();
    let why = refused(&disk.state()).await;
    assert!(matches!(why, StoreError::Full { .. }), "{why}");
    // No temporary file remains.
    assert_eq!(fs::read_dir(disk.0.path()).unwrap().count(), 1);
    disk.make_room();
    open(&disk.state()).await.commit(desired(1), Vec::new()).await.unwrap();
}

#[tokio::test]
async fn a_read_only_disk_can_be_read() {
    let Some(disk) = Disk::new("size=4m") else { return };
    let store = open(&disk.state()).await;
    store.commit(desired(1), Vec::new()).await.unwrap();
    store.close().await;
    disk.mount(&["-o", "remount,ro"]);
    for path in [disk.state(), disk.0.path().join("other.db")] {
        let why = refused(&path).await;
        assert!(matches!(why, StoreError::ReadOnly { .. }), "{why}");
        assert!(why.to_string().contains("writable for the switch"), "{why}");
    }
    let why = refused(&disk.0.path().join("directory/state.db")).await;
    assert!(matches!(why, StoreError::Directory { .. }), "{why}");
    disk.mount(&["-o", "remount,rw"]);
    assert_eq!(Store::open(disk.state()).await.unwrap().1, Some(desired(1)));
}

#[tokio::test]
async fn a_damaged_file_is_reported_and_unchanged() {
    let place = TempDir::new().unwrap();
    let good = place.path().join("good.db");
    let store = open(&good).await;
    for number in 0..100 {
        store.commit(desired(number), vec![event(&"much ".repeat(100))]).await.unwrap();
    }
    store.save_stations(stations(1, 5000)).await.unwrap();
    store.close().await;
    let good = fs::read(good).unwrap();

    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut noise = vec![0; 50_000];
    random.fill_bytes(&mut noise);
    let page = 4096;
    let mut scribbled = good.clone();
    scribbled[page..good.len() / 2 / page * page]
        .copy_from_slice(&noise.repeat(20)[..good.len() / 2 / page * page - page]);
    let cases = [
        ("empty", Vec::new()),
        ("one byte", vec![0]),
        ("noise", noise),
        ("zeroes", vec![0; 8192]),
        ("cut in half", good[..good.len() / 2].to_vec()),
        ("the last page is gone", good[..good.len() - page].to_vec()),
        ("no more than a header", good[..100].to_vec()),
        ("scribbled over", scribbled),
    ];
    for (what, bytes) in cases {
        let path = place.path().join(what);
        fs::write(&path, &bytes).unwrap();
        let why = refused(&path).await;
        assert!(matches!(why, StoreError::Corrupt { .. }), "{what}: {why:?}");
        let events = why.to_string();
        assert!(events.contains(path.to_str().unwrap()) && events.contains("move it away"), "{events}");
        assert!(fs::read(&path).unwrap() == bytes, "{what}: the file was changed");
        // As the error recommends.
        fs::rename(&path, path.with_extension("bad")).unwrap();
        open(&path).await.commit(desired(1), Vec::new()).await.unwrap();
    }
}

#[tokio::test]
async fn the_write_ahead_log_of_a_moved_file_is_not_used_for_a_new_one() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("state.db");
    let log = place.path().join("state.db-wal");
    let store = open(&path).await;
    store.commit(desired(1), Vec::new()).await.unwrap();
    let left = fs::read(&log).unwrap();
    store.close().await;
    fs::remove_file(&path).unwrap();
    for log in [log, place.path().join("state.db-journal")] {
        fs::write(&log, &left).unwrap();
        let why = refused(&path).await;
        assert!(matches!(why, StoreError::LeftBehind { .. }), "{why}");
        assert!(why.to_string().contains(log.to_str().unwrap()), "{why}");
        fs::remove_file(log).unwrap();
    }
    assert_eq!(Store::open(path).await.unwrap().1, None);
}

#[tokio::test]
async fn file_names_special_to_the_database_are_supported() {
    let place = TempDir::new().unwrap();
    for name in [":memory:", "file:state.db?mode=memory", "Zustand \u{1f525}'\"%20.db"] {
        let path = place.path().join(name);
        let store = open(&path).await;
        store.commit(desired(1), Vec::new()).await.unwrap();
        store.close().await;
        assert_eq!(Store::open(path).await.unwrap().1, Some(desired(1)), "{name}");
    }
}
