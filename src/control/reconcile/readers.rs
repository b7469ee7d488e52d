//! Events for readers, from memory or from the store; and ids for new events.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::warn;

use super::{Controller, DISK};
use crate::control::state::StateStore;
use crate::control::state::event_filter::EventFilter;
use crate::control::state::event_page::{Cursor, Page};

/// The greatest event id that may be in use, 0 if none is; those behind it, or behind `first`, are reserved. `None` without state
/// and, with a warning, if it is unknown.
pub(super) async fn reserve_event_ids(state: &StateStore, first: u64) -> Option<u64> {
    match timeout(DISK, state.reserve_event_ids(first)).await {
        Ok(Ok(last)) => return last,
        // The start has logged why the state is unusable.
        Ok(Err(_)) if state.check().is_err() => {}
        Ok(Err(why)) => warn!("cannot reserve ids of events: {why}"),
        Err(_) => warn!("reserving ids of events took more than {} s", DISK.as_secs()),
    }
    None
}

impl Controller {
    /// Replies with the next events of a reader: from memory, or from the store. A message reports missing ones, also if stored
    /// events cannot be read: the reply does not wait for a hung disk.
    pub(super) fn read_events(&self, which: Arc<EventFilter>, from: Cursor, reply: oneshot::Sender<Page>) {
        if let Some(page) = self.event_log.page(&which, from) {
            return drop(reply.send(page));
        }
        let forgotten = self.event_log.forgotten();
        let Some(store) = self.state.store().cloned() else {
            let why = self.state.check().err().map(|error| error.message);
            let mut page = Page::at(from);
            page.end_stored(forgotten, why.as_deref());
            return drop(reply.send(page));
        };
        tokio::spawn(async move {
            let stored = match timeout(DISK, store.events_page(from.row, from.id)).await {
                Ok(stored) => stored.map_err(|why| why.to_string()),
                Err(_) => Err(format!("no answer from the disk within {} s", DISK.as_secs())),
            };
            let mut page = Page::at(from);
            match stored {
                Ok(stored) => {
                    stored.events.into_iter().for_each(|event| page.push(&event.into(), &which));
                    page.next.row = stored.row;
                    if stored.is_last {
                        page.end_stored(forgotten, None);
                    }
                }
                Err(why) => page.end_stored(forgotten, Some(&why)),
            }
            // The client may have disconnected.
            let _ = reply.send(page);
        });
    }
}
