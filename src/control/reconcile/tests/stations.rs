//! Stations over a restart: stored at an orderly stop, and restored before ports open.

use super::*;
use crate::control::config::parse_json;
use crate::control::state::store::{StoredPlace, StoredStation};
use crate::wire::Mac;
use crate::worker::Flush;

/// Stations learned since were lost when the switch stopped while the state was being verified.
#[tokio::test]
async fn a_stop_stores_the_stations_also_while_the_state_is_verified_or_stations_are_stored() {
    let text = json!({"networks": [{"id": "a"}], "vms": [{"id": "v", "ports": [{"port_id": "p", "network_id": "a",
        "mac_address": "02:00:00:00:00:01", "port_security": "off", "device": {"kind": "tap", "name": "p", "netns": "no-such-netns"}}]}]});
    let file = parse_json(&text.to_string(), "x").unwrap();
    let station = |last: u8| StoredStation {
        place: StoredPlace { network_id: "a".into(), port_id: "p".into() }.into(),
        mac_address: Mac::new([2, 0, 0, 0, 1, last]),
        age_seconds: 0,
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    for (last, is_stored) in [(1, false), (2, true)] {
        let begun = async |controller: &mut Controller| {
            if is_stored {
                controller.finish_saving_stations().await;
            }
            // The running verification, and stored entries, wait for this.
            let go_on = hang(controller.state.store().unwrap()).await;
            controller.save_stations();
            tokio::task::yield_now().await;
            let learned = controller.fdb_index().resolve_stored(&[station(last)], time::now());
            controller.workers.learn(&learned).await;
            tokio::spawn(async move {
                // Until the stopping switch waits for the store too.
                for _ in 0..1000 {
                    tokio::task::yield_now().await;
                }
                drop(go_on);
            });
        };
        run_prepared(begin(file.clone(), &path).await, begun, async |_| {}).await;
        let (store, _) = Store::open(path.clone()).await.unwrap();
        let stored: Vec<Mac> =
            store.stations_page(0, usize::MAX).await.unwrap().0.iter().map(|station| station.mac_address).collect();
        assert!(stored.contains(&station(last).mac_address), "{stored:?}");
        store.close().await;
    }
}

/// All stations are restored before a port opens, those seen last first, as far as the time given suffices.
#[tokio::test]
async fn stations_are_restored_the_youngest_first_within_the_time_given() {
    let text = json!({"networks": [{"id": "a", "fdb_limit_per_port": 10}, {"id": "b"}],
        "vms": [{"id": "v", "ports": [
            {"port_id": "p", "network_id": "a", "mac_address": "02:00:00:00:00:01", "port_security": "off",
             "device": {"kind": "tap", "name": "p", "netns": "no-such-netns"}},
            {"port_id": "q", "network_id": "b", "mac_address": "02:00:00:00:00:02", "port_security": "off",
             "device": {"kind": "tap", "name": "q", "netns": "no-such-netns"}}]}]});
    let file = parse_json(&text.to_string(), "x").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let places = [("a", "p"), ("b", "q")]
        .map(|(network_id, port_id)| Arc::new(StoredPlace { network_id: network_id.into(), port_id: port_id.into() }));
    // By turns at both ports; those with a higher number are older.
    let station = |number: u8| StoredStation {
        place: places[usize::from(number) % 2].clone(),
        mac_address: Mac::new([2, 0, 0, 0, 1, number]),
        age_seconds: u32::from(number),
    };
    let begun_with = begin(file.clone(), &path).await;
    begun_with.1.store().unwrap().save_stations((0..50).rev().map(station).collect()).await.unwrap();
    let learned = async |controller: &Controller| {
        let all = controller.workers.stations().await.unwrap();
        let mut numbers: Vec<u8> = all.iter().map(|entry| entry.station.mac().octets()[5]).collect();
        numbers.sort_unstable();
        numbers
    };
    // The first port has room for ten.
    let expected: Vec<u8> = (0..50).filter(|number| number % 2 == 1 || *number < 20).collect();
    let begun = async |controller: &mut Controller| {
        assert_eq!(learned(controller).await, expected);
        controller.finish_saving_stations().await;
        let all = Flush { network: None, port_index: None, mac: None, cursor: 0 };
        controller.workers.flush(all).await;
        let store = controller.state.store().unwrap().clone();
        let go_on = hang(&store).await;
        assert_eq!(controller.take_first_stations(Duration::from_millis(20), 10).await, Some(0), "the disk hangs");
        assert_eq!(learned(controller).await, [0u8; 0]);
        drop(go_on);
        // It hangs behind the request of the first page, which it answers when that is so.
        let busy = hang(&store).await;
        let first = tokio::task::unconstrained(controller.take_first_stations(Duration::from_secs(2), 10));
        let behind = tokio::task::unconstrained(async {
            let go_on = hang(&store).await;
            drop(busy);
            go_on
        });
        let (more, go_on) = tokio::join!(biased; first, behind);
        assert_eq!(more, Some(10));
        assert_eq!(learned(controller).await, (0..10).collect::<Vec<u8>>(), "the youngest");
        drop(go_on);
        // The others come later.
        controller.verify_state(more);
        controller.finish_saving_stations().await;
        assert_eq!(learned(controller).await, expected);
        controller.workers.flush(all).await;
        assert_eq!(controller.take_first_stations(Duration::from_secs(60), 10).await, None);
        assert_eq!(learned(controller).await, expected);
    };
    run_prepared(begun_with, begun, async |_| {}).await;
}
