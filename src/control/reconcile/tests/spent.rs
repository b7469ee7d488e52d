//! What requests may cost, in counts: forwarding configurations that are compiled, and views that are built.

use std::collections::HashSet;

use super::groups::{first, make, port};
use super::*;
use crate::control::api::selection::{Page, PortSelection};
use crate::control::reconcile::devices::COMPILED;
use crate::control::status::ports::BUILT;

/// Puts a port, on a namespace that does not exist.
fn put(id: usize) -> (usize, Change, ChangeOptions) {
    (id, Change::PutPort { vm: format!("v{id}"), port: port(id, id, 0, id) }, ChangeOptions::default())
}

/// A change compiles one forwarding configuration, and changes that wait for it one together: each is of all ports, and all workers
/// have to take it.
#[tokio::test]
async fn a_change_compiles_one_forwarding_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let begun_with = begin(first(), &dir.path().join("state.db")).await;
    let store = begun_with.1.store().unwrap().clone();
    run_over(begun_with, async |handle| {
        for (changes, allowed) in [(1..2, 1..=1), (2..8, 1..=2)] {
            let before = COMPILED.get();
            let answers = make(&handle, &store, changes.map(put).collect()).await;
            assert!(answers.iter().all(Result::is_ok), "{answers:?}");
            // The first one may not have waited.
            let compiled = COMPILED.get() - before;
            assert!(allowed.contains(&compiled), "{} changes: {compiled}", answers.len());
        }
        // What changes nothing compiles nothing.
        let before = COMPILED.get();
        make(&handle, &store, vec![put(1)]).await;
        assert_eq!(COMPILED.get(), before);
    })
    .await;
}

/// A request for one port, or for a page of them, does not build the views of all.
#[tokio::test]
async fn one_port_is_read_without_all_others() {
    let dir = tempfile::tempdir().unwrap();
    let begun_with = begin(first(), &dir.path().join("state.db")).await;
    let store = begun_with.1.store().unwrap().clone();
    run_over(begun_with, async |handle| {
        make(&handle, &store, (1..41).map(put).collect()).await;
        let before = BUILT.get();
        let one = handle.ports_of(HashSet::from(["p7".to_owned()])).await.unwrap();
        assert_eq!((one.len(), BUILT.get() - before), (1, 1));
        let before = BUILT.get();
        let page = PortSelection { page: Some(Page { after: None, limit: 10 }), ..PortSelection::default() };
        // One more, which shows that there is another page.
        assert_eq!((handle.select_ports(page).await.unwrap().len(), BUILT.get() - before), (11, 11));
        let before = BUILT.get();
        assert_eq!((handle.ports().await.unwrap().len(), BUILT.get() - before), (40, 40));
    })
    .await;
}
