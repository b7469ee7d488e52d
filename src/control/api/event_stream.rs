//! Events, one per line: past ones, and live ones with `follow`.

use std::convert::Infallible;
use std::vec;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::AppState;
use super::error::{ApiError, ErrorBody};
use super::listener::Shutdown;
use crate::control::state::event_log;
use crate::control::state::events::{Event, EventKind};
use crate::time;

/// Media type of newline-delimited JSON.
const NDJSON: &str = "application/x-ndjson";

/// Past events per chunk.
const PIECE: usize = 256;

/// Query.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    since: Option<String>,
    after: Option<u64>,
    #[serde(default)]
    follow: bool,
}

/// Events, one JSON object per line
///
/// With `follow`, the response continues with live events. To a client that reads too slowly, a line of kind `lagged`
/// reports the number of events missed.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    params(
        ("since" = Option<String>, Query, description = "events from this time on, RFC 3339; all stored events \
                                                         without it"),
        ("after" = Option<u64>, Query, description = "only events with a greater id"),
        ("follow" = Option<bool>, Query, description = "whether to follow: further events are sent as they occur")
    ),
    responses((status = 200, body = Event, content_type = "application/x-ndjson"),
        (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn events(
    State(state): State<AppState>,
    Extension(leave): Extension<Shutdown>,
    query: Result<Query<EventQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(EventQuery { since, after, follow }) = query.map_err(|e| ApiError::wrong("bad_query", e.body_text()))?;
    let place = if follow { Some(state.limits.subscriber()?) } else { None };
    let (past, coming) = state.handle.events(event_log::EventFilter { since, after }).await??;
    let coming = place.map(|place| Subscriber { coming, leave, _place: place });
    let stream = EventStream { past: past.into_iter(), coming };
    let body = Body::from_stream(stream::unfold(stream, EventStream::next));
    Ok(([(header::CONTENT_TYPE, NDJSON)], body).into_response())
}

/// State of a streaming response.
struct EventStream {
    past: vec::IntoIter<Event>,
    coming: Option<Subscriber>,
}

/// A subscriber; dropped when its connection is closed.
struct Subscriber {
    coming: Receiver<Event>,
    leave: Shutdown,
    _place: OwnedSemaphorePermit,
}

impl EventStream {
    /// The next chunk; `None` at the end.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, EventStream)> {
        let mut piece = Vec::new();
        for event in self.past.by_ref().take(PIECE) {
            line(&mut piece, &event);
        }
        if piece.is_empty() {
            line(&mut piece, &self.coming.as_mut()?.next().await?);
        }
        Some((Ok(piece.into()), self))
    }
}

impl Subscriber {
    async fn next(&mut self) -> Option<Event> {
        let event = tokio::select! {
            event = self.coming.recv() => event,
            () = self.leave.wait() => return None,
        };
        match event {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(missed)) => Some(lagged(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}

/// The event for a subscriber that has missed events.
fn lagged(missed: u64) -> Event {
    Event {
        text: format!(
            "{missed} events are missing here, because they were not read in time; request them with `after` \
             and the last id before this line"
        ),
        ..Event::new(EventKind::Lagged, time::wall())
    }
}

fn line(text: &mut Vec<u8>, event: &Event) {
    // Serialising an event to a vector cannot fail.
    let _ = serde_json::to_writer(&mut *text, event);
    text.push(b'\n');
}
