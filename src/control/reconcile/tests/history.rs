//! Generations over restarts: recorded with their origin, and restored.

use super::*;
use crate::control::api::handle::Restored;
use crate::control::state::history::Source;

/// Generations of the history with their sources, the newest first.
async fn generations(handle: &Handle) -> Vec<(u64, Source)> {
    handle.history().await.unwrap().iter().map(|of| (of.generation, of.source)).collect()
}

/// Restores a generation, by default the one before.
async fn roll_back(handle: &Handle, generation: Option<u64>) -> ChangeResult {
    let Restored { generation, config, .. } = handle.restored(generation, Box::new(())).await.unwrap().unwrap();
    let change = Change::Rollback { generation, config };
    handle.change(change, ChangeOptions::default(), Box::new(())).await.unwrap().unwrap()
}

/// Each accepted change is recorded with its origin, also over a restart; a rollback is a new generation.
#[tokio::test]
async fn generations_are_recorded_and_restored_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let (mut first, mut listed) = (0, Vec::new());
    run(&["a"], &path, async |handle| {
        first = handle.generation().await.unwrap();
        change(&handle, &["a", "b"]).await.unwrap();
        let confirm = ChangeOptions::from(Some(Duration::from_secs(60)));
        handle.change(apply(&["c"]), confirm.clone(), Box::new(())).await.unwrap().unwrap();
        handle.cancel(Box::new(())).await.unwrap().unwrap();
        handle.change(apply(&["d"]), confirm, Box::new(())).await.unwrap().unwrap();
        handle.confirm(Box::new(())).await.unwrap().unwrap();
        listed = generations(&handle).await;
    })
    .await;
    let expected = [
        (first + 4, Source::Api),
        (first + 3, Source::Revert),
        (first + 2, Source::Api),
        (first + 1, Source::Api),
        (first, Source::File),
    ];
    assert_eq!(listed, expected);
    run(&["a"], &path, async |handle| {
        assert_eq!(generations(&handle).await, expected);
        assert_eq!(networks(&handle).await, ["d"]);
        for (generation, wanted) in [(1, vec!["a", "b"]), (2, vec!["c"]), (3, vec!["a", "b"]), (0, vec!["a"])] {
            let restored = handle.restored(Some(first + generation), Box::new(())).await.unwrap().unwrap();
            let names: Vec<&str> = restored.config.networks.iter().map(|network| network.id.as_str()).collect();
            assert_eq!(names, wanted, "{generation}");
        }
        assert_eq!(roll_back(&handle, Some(first + 1)).await.generation, first + 5);
        assert_eq!(networks(&handle).await, ["a", "b"]);
        // The one before: there and back.
        roll_back(&handle, None).await;
        assert_eq!(networks(&handle).await, ["d"]);
        assert_eq!(generations(&handle).await[..2], [(first + 6, Source::Rollback), (first + 5, Source::Rollback)]);
        let unknown = handle.restored(Some(1), Box::new(())).await.unwrap().unwrap_err();
        assert_eq!(unknown.kind, "unknown_generation");
    })
    .await;
    // An edited file is a generation too.
    run(&["a", "z"], &path, async |handle| {
        assert_eq!(generations(&handle).await[0], (first + 7, Source::File));
        roll_back(&handle, None).await;
        assert_eq!(networks(&handle).await, ["d"]);
    })
    .await;
}

/// A kill leaves a provisional change as reverted, which the history says.
#[tokio::test]
async fn a_kill_reverts_a_provisional_change_in_the_history_too() {
    let dir = tempfile::tempdir().unwrap();
    let (path, killed) = (dir.path().join("state.db"), dir.path().join("killed.db"));
    let mut first = 0;
    run(&["a"], &path, async |handle| {
        first = handle.generation().await.unwrap();
        let confirm = ChangeOptions::from(Some(Duration::from_secs(60)));
        handle.change(apply(&["c"]), confirm, Box::new(())).await.unwrap().unwrap();
        // What a kill at this moment leaves.
        std::fs::copy(&path, &killed).unwrap();
        std::fs::copy(path.with_extension("db-wal"), killed.with_extension("db-wal")).unwrap();
    })
    .await;
    run(&["a"], &killed, async |handle| {
        let sources = [(first + 2, Source::Revert), (first + 1, Source::Api), (first, Source::File)];
        assert_eq!(generations(&handle).await, sources);
        assert_eq!(networks(&handle).await, ["a"]);
        roll_back(&handle, None).await;
        assert_eq!(networks(&handle).await, ["c"]);
    })
    .await;
}

/// A change that another version of the program stored is a hole, behind which nothing is restored.
#[tokio::test]
async fn a_change_of_another_version_is_a_hole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    run(&["a"], &path, async |handle| drop(change(&handle, &["a", "b"]).await.unwrap())).await;
    let database = rusqlite::Connection::open(&path).unwrap();
    let config = config(&["other"]).to_sparse().to_string();
    let version = r#"{"format":2,"switch":"0.0.9"}"#;
    for (part, json) in [("config", config.as_str()), ("version", version)] {
        database.execute("UPDATE desired SET json = ?2 WHERE part = ?1", [part, json]).unwrap();
    }
    database.close().unwrap();
    run(&["a"], &path, async |handle| {
        let listed = handle.history().await.unwrap();
        assert_eq!(listed.iter().map(|of| of.restorable).collect::<Vec<_>>(), [true, false, false], "{listed:?}");
        assert!(listed[0].changes[0].contains("another version"), "{listed:?}");
        let refused = handle.restored(None, Box::new(())).await.unwrap().unwrap_err();
        assert_eq!(refused.kind, "not_restorable");
        change(&handle, &["x"]).await.unwrap();
        roll_back(&handle, None).await;
        assert_eq!(networks(&handle).await, ["other"]);
    })
    .await;
}
