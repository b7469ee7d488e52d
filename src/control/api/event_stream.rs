//! Events in order, page by page: past ones, and live ones with `follow`; as JSON lines or as an event stream
//! (`text/event-stream`).
//!
//! A reader has a position, and the switch no more than the page that it is being sent: whoever reads slowly gets later events
//! from the history, and a message where the history does not have them any more.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::timeout;

use super::AppState;
use super::conditions::query_of;
use super::error::{ApiError, ErrorBody};
use super::event_query::EventQuery;
use super::listener::Shutdown;
use crate::control::api::handle::Handle;
use crate::control::state::event_filter::EventFilter;
use crate::control::state::event_page::{Cursor, Page};
use crate::control::state::events::Event;

/// Media type of newline-delimited JSON.
const NDJSON: &str = "application/x-ndjson";

/// Media type of an event stream.
const EVENT_STREAM: &str = "text/event-stream";

/// Interval of comments in an event stream without events.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Events in order: as JSON, one per line, or as an event stream with `Accept: text/event-stream`
///
/// Without `follow`, those that are stored. With it, the response continues with live events; it begins now, unless `after`
/// or `since` says where. An event stream follows by default, and `Last-Event-ID` continues it. Where events are
/// missing, a message of the kind `gap` names the first missing id and the next one.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(
        ("after" = Option<u64>, Query, description = "only events with a greater id"),
        ("since" = Option<String>, Query, description = "events from this time on, RFC 3339"),
        ("follow" = Option<bool>, Query, description = "whether further events are sent as they occur"),
        ("kind" = Option<String>, Query, description = "only events of these kinds: a list with commas, or repeated"),
        ("vm" = Option<String>, Query, description = "only events of these VMs"),
        ("port" = Option<String>, Query, description = "only events of these ports and uplinks"),
        ("network" = Option<String>, Query, description = "only events of these networks")
    ),
    responses((status = 200, content((Event = "application/x-ndjson"), (String = "text/event-stream"))),
        (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn events(
    State(state): State<AppState>,
    Extension(leave): Extension<Shutdown>,
    headers: HeaderMap,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, ApiError> {
    let EventQuery { filter, after, follow, is_stream } = EventQuery::parse(query_of(query)?, &headers)?;
    let mut cursor = after.map_or_else(Cursor::default, Cursor::after);
    let live = if follow {
        let place = state.limits.subscriber()?;
        let newest = state.handle.subscribe().await?;
        if after.is_none() && filter.since.is_none() {
            cursor = Cursor::after(*newest.borrow());
        }
        Some(Live { newest, leave, _place: place })
    } else {
        None
    };
    let mut reader = Reader {
        handle: state.handle,
        filter: filter.into(),
        cursor,
        began: cursor.id,
        page: None,
        is_last: false,
        live,
    };
    // The first one here, so that its errors have their status.
    reader.page = Some(reader.read().await?);
    let (kind, form) = if is_stream { (EVENT_STREAM, Form::Stream { sent: None }) } else { (NDJSON, Form::Lines) };
    let chunks = stream::unfold((reader, form), async |(mut reader, mut form)| {
        let chunk = form.chunk(&mut reader).await?;
        Some((Ok::<_, Infallible>(Bytes::from(chunk)), (reader, form)))
    });
    let head = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")];
    Ok((head, Body::from_stream(chunks)).into_response())
}

/// A reader of events; dropped when its connection is closed.
struct Reader {
    handle: Handle,
    filter: Arc<EventFilter>,
    cursor: Cursor,
    /// Id that it begins behind, until a stream has said so.
    began: Option<u64>,
    /// The first page.
    page: Option<Page>,
    /// Nothing was behind the last page.
    is_last: bool,
    live: Option<Live>,
}

/// What a reader that follows waits for.
struct Live {
    newest: watch::Receiver<u64>,
    leave: Shutdown,
    _place: OwnedSemaphorePermit,
}

/// What a reader gets next.
enum Next {
    Events(Vec<Arc<Event>>),
    /// Nothing has happened for a while.
    Quiet,
    End,
}

impl Reader {
    async fn read(&mut self) -> Result<Page, ApiError> {
        if let Some(live) = &mut self.live {
            // What happens from here on is in a later page.
            live.newest.borrow_and_update();
        }
        let page = self.handle.events(self.filter.clone(), self.cursor).await?;
        self.cursor = page.next;
        Ok(page)
    }

    async fn next(&mut self) -> Next {
        loop {
            if self.is_last {
                let Some(live) = &mut self.live else { return Next::End };
                tokio::select! {
                    changed = timeout(KEEP_ALIVE, live.newest.changed()) => match changed {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return Next::End,
                        Err(_) => return Next::Quiet,
                    },
                    () = live.leave.wait() => return Next::End,
                }
            }
            let page = match self.page.take() {
                Some(first) => Ok(first),
                None => self.read().await,
            };
            let Ok(Page { events, is_last, .. }) = page else { return Next::End };
            self.is_last = is_last;
            if !events.is_empty() {
                return Next::Events(events);
            }
        }
    }
}

/// Form of the response.
enum Form {
    Lines,
    Stream {
        /// Last id sent.
        sent: Option<u64>,
    },
}

impl Form {
    /// The next chunk; `None` at the end.
    async fn chunk(&mut self, reader: &mut Reader) -> Option<Vec<u8>> {
        loop {
            // The position that an event stream begins at is known before its first event.
            if let Form::Stream { sent: sent @ None } = self
                && let Some(id) = reader.began.take()
            {
                *sent = Some(id);
                return Some(format!("id: {id}\n\n").into_bytes());
            }
            match (reader.next().await, &mut *self) {
                (Next::End, _) => return None,
                (Next::Events(events), Form::Lines) => {
                    let mut chunk = Vec::new();
                    events.iter().for_each(|event| line(&mut chunk, event));
                    return Some(chunk);
                }
                (Next::Events(events), Form::Stream { sent }) => {
                    let mut chunk = Vec::new();
                    events.iter().for_each(|event| *sent = message(&mut chunk, event).or(*sent));
                    return Some(chunk);
                }
                (Next::Quiet, Form::Lines) => {}
                (Next::Quiet, Form::Stream { sent }) => return Some(keep_alive(sent, reader.cursor.id)),
            }
        }
    }
}

/// A comment that keeps an event stream alive, with the position if it has moved since the last id sent: a filter may have passed
/// over many events, which need not be searched again by a client that reconnects.
fn keep_alive(sent: &mut Option<u64>, position: Option<u64>) -> Vec<u8> {
    let mut chunk = ": nothing has happened\n".to_owned();
    if let Some(id) = position.filter(|id| Some(*id) != *sent) {
        // Writing to a string cannot fail.
        let _ = writeln!(chunk, "id: {id}");
        *sent = Some(id);
    }
    chunk.push('\n');
    chunk.into_bytes()
}

fn line(text: &mut Vec<u8>, event: &Event) {
    // Serialising an event to a vector cannot fail.
    let _ = serde_json::to_writer(&mut *text, event);
    text.push(b'\n');
}

/// A message of an event stream. Returns the id behind which a client continues that has it.
fn message(text: &mut Vec<u8>, event: &Event) -> Option<u64> {
    let id = match event.gap {
        Some(gap) => Some(gap.next_id.saturating_sub(1)),
        None => Some(event.id).filter(|id| *id > 0),
    };
    if let Some(id) = id {
        text.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    // JSON has no line breaks. Without a name, so that a client that registers one handler misses no kind.
    text.extend_from_slice(b"data: ");
    line(text, event);
    text.push(b'\n');
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_has_the_position_once_it_has_moved() {
        let mut sent = Some(7);
        let mut said = |position| String::from_utf8(keep_alive(&mut sent, position)).unwrap();
        assert_eq!(said(Some(7)), ": nothing has happened\n\n");
        assert_eq!(said(Some(9)), ": nothing has happened\nid: 9\n\n");
        assert_eq!(said(Some(9)), ": nothing has happened\n\n");
    }
}
