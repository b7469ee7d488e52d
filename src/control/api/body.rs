//! Request bodies: JSON, bounded in bytes and time.

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
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::error::ApiError;
use super::limits::Limits;
use super::passed;
use super::write_routes::BODY;
use crate::control::background;
use crate::control::config::kind;

/// Maximum bytes of a configuration: ten thousand ports, written at length.
pub const CONFIGURATION: usize = 16 * 1024 * 1024;

/// Maximum bytes of other bodies.
pub const REQUEST: usize = 1024 * 1024;

/// Timeout of receiving a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time for which an unread body is drained: a client that is still sending would miss the response.
const DRAIN_TIME: Duration = Duration::from_secs(3);

/// Maximum bytes drained.
const DRAIN_LIMIT: usize = 4 * CONFIGURATION;

/// Bodies longer than this are parsed on another thread.
const LONG: usize = 64 * 1024;

/// Permit for the memory of a body and of what is parsed from it.
pub type BodyPermit = Option<OwnedSemaphorePermit>;

/// A completely received body.
#[derive(Debug)]
pub struct RequestBody {
    text: String,
    permit: BodyPermit,
}

impl RequestBody {
    /// Receives a JSON body of at most `limit` bytes; `""` if there is none.
    pub async fn receive(
        headers: &HeaderMap,
        mut body: Body,
        limit: usize,
        limits: &Limits,
    ) -> Result<RequestBody, ApiError> {
        let announced =
            headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > limit as u64) {
            return Err(too_large(limit));
        }
        let collected = timeout(BODY_TIMEOUT, collect(&mut body, limit, limits)).await.map_err(|_| {
            let message =
                format!("the body was not received within {} seconds; send it at once", BODY_TIMEOUT.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "slow_body", message)
        })?;
        let (bytes, permit) = collected?;
        if !bytes.is_empty() && !is_json(headers) {
            let message = "the body is not declared as JSON; send the header content-type: application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", message));
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            ApiError::wrong(kind::SYNTAX, format!("the body is not JSON: byte {at} is not UTF-8; encode it as UTF-8"))
        })?;
        Ok(RequestBody { text: passed::resolve(text).await?, permit })
    }

    /// Parses the body. Returns the permit as well, because the result is as large.
    pub async fn read<T: Send + 'static>(
        self,
        read: impl FnOnce(&str) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<(T, BodyPermit), ApiError> {
        let RequestBody { text, permit } = self;
        if text.len() < LONG {
            return Ok((read(&text)?, permit));
        }
        // The client may have disconnected; the permit is held until this is done.
        let read = background::run(move || Ok((read(&text)?, permit)));
        read.await.map_err(|e| {
            let message = format!("reading the body failed: {e}");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
        })?
    }
}

/// Reads a table of keys. A list is refused: serde would take its items as the values of the keys, in their order.
pub fn table<T: DeserializeOwned>(text: &str) -> Result<T, ApiError> {
    let table = serde_json::from_str(text).map_err(|e| {
        let kind = if e.is_data() { kind::BAD_VALUE } else { kind::SYNTAX };
        ApiError::wrong(kind, format!("{BODY}: {e}"))
    })?;
    if text.trim_start().starts_with('[') {
        return Err(ApiError::wrong(kind::BAD_VALUE, format!("{BODY}: expected a table of keys, found a list")));
    }
    Ok(table)
}

/// Middleware: responds only after the body has arrived, used or not. Without it, the connection of a client that sends
/// its body after the head would be closed before it reads the response. Limited to a few seconds.
pub async fn drain(request: Request, next: Next) -> Response {
    // A client that expects `100 Continue` has not started to send.
    let asks_first = request.headers().contains_key(header::EXPECT);
    let back = Arc::new(Mutex::new(None));
    let borrow = |body| Body::new(SharedBody { body, back: back.clone() });
    let response = next.run(request.map(borrow)).await;
    let unread = back.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(body) = unread.filter(|body: &Body| !asks_first && !body.is_end_stream()) {
        drain_body(body).await;
    }
    response
}

/// A body that is returned when no longer read.
struct SharedBody {
    body: Body,
    back: Arc<Mutex<Option<Body>>>,
}

impl hyper::body::Body for SharedBody {
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

impl Drop for SharedBody {
    fn drop(&mut self) {
        let body = std::mem::take(&mut self.body);
        *self.back.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }
}

/// Drains a body for a while.
async fn drain_body(mut body: Body) {
    let mut unread = DRAIN_LIMIT;
    let passing = async {
        while let Some(Ok(frame)) = body.frame().await {
            unread = unread.saturating_sub(frame.data_ref().map_or(0, |data| data.len()));
            if unread == 0 {
                return;
            }
        }
    };
    // A client that still sends then may miss the response.
    let _ = timeout(DRAIN_TIME, passing).await;
}

async fn collect(body: &mut Body, limit: usize, limits: &Limits) -> Result<(Vec<u8>, BodyPermit), ApiError> {
    let (mut bytes, mut room) = (Vec::new(), None::<OwnedSemaphorePermit>);
    while let Some(frame) = body.frame().await {
        let broken = |e| ApiError::wrong("broken_body", format!("the body is incomplete: {e}; send it again"));
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        let more = limits.bytes(u32::try_from(data.len()).unwrap_or(u32::MAX))?;
        match &mut room {
            Some(room) => room.merge(more),
            None => room = Some(more),
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, room))
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("the body is too large; send at most {limit} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}
