//! The bodies of requests: JSON, bounded in bytes and in time.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::bounds::Bounds;
use super::problem::Problem;
use crate::control::config::kind;

/// Bytes of a whole configuration: ten thousand ports, written at length.
pub const CONFIGURATION: usize = 16 * 1024 * 1024;

/// Bytes of any other body.
pub const REQUEST: usize = 1024 * 1024;

/// How long a body may take to come.
const SENDING: Duration = Duration::from_secs(5);

/// How long a body that nobody wants is read on: whoever is still sending would miss the answer.
const LINGERING: Duration = Duration::from_secs(3);

/// Bytes of a body that are read on.
const UNWANTED: usize = 4 * CONFIGURATION;

/// Longer bodies are read aside, so that they hold up nobody else.
const LONG: usize = 64 * 1024;

/// The room that a body takes up, and what has been made of it. Free again when it is dropped.
pub type Room = Option<OwnedSemaphorePermit>;

/// A body that has come whole.
#[derive(Debug)]
pub struct Text {
    text: String,
    room: Room,
}

impl Text {
    /// Receives a body of at most `limit` bytes that says it is JSON; `""` if there is none.
    pub async fn receive(headers: &HeaderMap, mut body: Body, limit: usize, bounds: &Bounds) -> Result<Text, Problem> {
        let told = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if told.is_some_and(|length| length > limit as u64) {
            return Err(too_large(limit));
        }
        let collected = timeout(SENDING, collect(&mut body, limit, bounds)).await.map_err(|_| {
            let message = format!("the body has not come within {} seconds", SENDING.as_secs());
            Problem::new(StatusCode::REQUEST_TIMEOUT, "slow_body", message)
        })?;
        let (bytes, room) = collected?;
        if !bytes.is_empty() && !is_json(headers) {
            let message = "the body must be JSON, and say so: content-type: application/json";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", message));
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            Problem::wrong(kind::SYNTAX, format!("the body is no JSON; its byte at {at} is not UTF-8"))
        })?;
        Ok(Text { text, room })
    }

    /// Makes something of it, which is as large: its room is to be kept for as long.
    pub async fn read<T: Send + 'static>(
        self,
        read: impl FnOnce(&str) -> Result<T, Problem> + Send + 'static,
    ) -> Result<(T, Room), Problem> {
        let Text { text, room } = self;
        if text.len() < LONG {
            return Ok((read(&text)?, room));
        }
        // Nobody may be left to hear of it; the room is kept until it is done all the same.
        let aside = spawn_blocking(move || Ok((read(&text)?, room)));
        aside.await.map_err(|e| {
            let message = format!("reading the body failed: {e}");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
        })?
    }
}

/// Answers a request only when its body has come, wanted or not: the connection of a client that sends its body after
/// the head would be closed before it has the answer. It has a few seconds for that.
pub async fn drain(request: Request, next: Next) -> Response {
    // One who asks first has not begun to send.
    let asks_first = request.headers().contains_key(header::EXPECT);
    let back = Arc::new(Mutex::new(None));
    let lend = |body| Body::new(Lent { body, back: back.clone() });
    let response = next.run(request.map(lend)).await;
    let left = back.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(body) = left.filter(|body: &Body| !asks_first && !body.is_end_stream()) {
        pass_over(body).await;
    }
    response
}

/// A body that comes back when nobody reads it any more.
struct Lent {
    body: Body,
    back: Arc<Mutex<Option<Body>>>,
}

impl hyper::body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let body = std::mem::take(&mut self.body);
        *self.back.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }
}

/// Reads on for a while, and forgets what comes.
async fn pass_over(mut body: Body) {
    let mut left = UNWANTED;
    let passing = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len()));
            if left == 0 {
                return;
            }
        }
    };
    // Who has not had enough by then may miss the answer.
    let _ = timeout(LINGERING, passing).await;
}

async fn collect(body: &mut Body, limit: usize, bounds: &Bounds) -> Result<(Vec<u8>, Room), Problem> {
    let (mut bytes, mut room) = (Vec::new(), None::<OwnedSemaphorePermit>);
    while let Some(frame) = body.frame().await {
        let broken = |e| Problem::wrong("broken_body", format!("the body has not come whole: {e}"));
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        let more = bounds.bytes(u32::try_from(data.len()).unwrap_or(u32::MAX))?;
        match &mut room {
            Some(room) => room.merge(more),
            None => room = Some(more),
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, room))
}

fn too_large(limit: usize) -> Problem {
    let message = format!("the body is too large; it may have {limit} bytes here");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}
