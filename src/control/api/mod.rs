//! The API: HTTP/1.1 and JSON over a [`Handle`].
//!
//! ```text
//!   listener ─► limits ─► read_routes    reading, also over TCP
//!   (connections) (rate)  write_routes   changes, unix socket only
//!                         event_stream   live events, unix socket only
//!                         openapi        API description; responses: types of responses
//! ```

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, patch, post, put};

use crate::control::api::handle::Handle;

mod body;
pub mod client;
mod error;
mod event_stream;
pub mod handle;
mod limits;
mod listener;
mod openapi;
mod read_routes;
pub mod responses;
pub mod socket;
mod write_routes;

pub use listener::serve;
pub use openapi::description;

use error::ApiError;
use limits::Limits;

/// State shared by handlers: controller and limits of the listener.
#[derive(Debug, Clone)]
struct AppState {
    handle: Handle,
    limits: Limits,
}

/// Routes that change nothing. Each call creates its own limits.
pub fn read_routes(handle: Handle) -> Router {
    with_state(read_router(), handle)
}

/// All routes. Every client that can connect is trusted with the switch. Each call creates its own limits.
pub fn api(handle: Handle) -> Router {
    let changing = Router::new()
        .route("/v1/config", put(write_routes::apply))
        .route("/v1/config/diff", post(write_routes::diff))
        .route("/v1/confirm", post(write_routes::confirm))
        .route("/v1/vms/{id}/ports", post(write_routes::attach))
        .route("/v1/ports/{id}", patch(write_routes::set).delete(write_routes::detach))
        .route("/v1/ports/{id}/release", post(write_routes::release))
        .route("/v1/fdb/flush", post(write_routes::flush))
        .route("/v1/events", get(event_stream::events))
        .route("/v1/openapi.json", get(openapi::page));
    with_state(read_router().merge(changing), handle)
}

fn read_router() -> Router<AppState> {
    Router::new()
        .route("/v1/ports", get(read_routes::ports))
        .route("/v1/ports/{id}", get(read_routes::port))
        .route("/v1/uplinks", get(read_routes::uplinks))
        .route("/v1/vms", get(read_routes::vms))
        .route("/v1/networks", get(read_routes::networks))
        .route("/v1/fdb", get(read_routes::fdb))
        .route("/v1/workers", get(read_routes::workers))
        .route("/v1/drops", get(read_routes::drops))
        .route("/v1/loops", get(read_routes::loops))
        .route("/v1/storms", get(read_routes::storms))
        .route("/v1/audit", get(read_routes::audit))
        .route("/v1/config", get(read_routes::config))
        .route("/metrics", get(read_routes::metrics))
}

fn with_state(routes: Router<AppState>, handle: Handle) -> Router {
    let limits = Limits::default();
    routes
        .fallback(async |uri: Uri| ApiError::unknown("unknown_path", format!("no such path {}", uri.path())))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| ApiError::method(&method, uri.path()))
        .layer(from_fn_with_state(limits.clone(), limits::admit))
        .layer(from_fn(body::drain))
        .with_state(AppState { handle, limits })
}
