//! Identifies each request: an id, of the client or generated, which the answer has too, and the author.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

use super::peer::Peer;
use crate::control::author::Author;

/// Header of the id.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum length of an id in bytes; longer ones are cut.
const LONGEST: usize = 128;

/// Middleware: handles the request as one of its author, and answers with its id.
pub async fn identify(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Option<Peer>>().copied().flatten();
    let given = request.headers().get(&REQUEST_ID).map(|value| sanitized(value.as_bytes()));
    let request_id = given.filter(|id| !id.is_empty()).unwrap_or_else(generated);
    let id = HeaderValue::from_str(&request_id);
    let author = Author { uid: peer.map(|peer| peer.uid), pid: peer.and_then(|peer| peer.pid), request_id };
    let mut response = author.scope(next.run(request)).await;
    if let Ok(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// An id that is safe in headers, JSON and log lines: bounded, and with `_` in place of other characters.
fn sanitized(id: &[u8]) -> String {
    let safe =
        |byte: u8| if byte.is_ascii_alphanumeric() || b"-_.:/+@".contains(&byte) { char::from(byte) } else { '_' };
    id.iter().take(LONGEST).map(|byte| safe(*byte)).collect()
}

/// An id that no other request has, of this process or of another.
fn generated() -> String {
    static PROCESS: OnceLock<u64> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let process = PROCESS.get_or_init(|| {
        let mut random = [0; 8];
        // Without random numbers, ids repeat after a restart.
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK);
        u64::from_ne_bytes(random)
    });
    format!("{process:016x}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_bounded_and_safe() {
        assert_eq!(sanitized(b"req-5f1c:7/a+b@c.d_e"), "req-5f1c:7/a+b@c.d_e");
        assert_eq!(sanitized(b"a b\"c\\d\xff=e"), "a_b_c_d__e");
        assert_eq!(sanitized(&[b'x'; 1000]).len(), LONGEST);
        let (first, second) = (generated(), generated());
        assert_ne!(first, second);
        assert_eq!(sanitized(first.as_bytes()), first);
    }
}
