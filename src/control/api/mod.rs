//! The API: HTTP/1.1 and JSON over a [`Handle`].
//!
//! ```text
//!   listener ─► limits ─► read_routes    reading, also over TCP
//!   (connections) (rate)  write_routes   changes of the configuration and of ports, unix socket only
//!                         entity_routes  single entities: put, delete, read
//!                         health_routes  status of the switch, also while it starts
//!                         conditions     of changes: If-Match, dry_run, wait
//!                         event_stream   live events, unix socket only
//!                         openapi        API description; responses: types of responses
//! ```

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post, put};

use crate::control::api::handle::Handle;

mod body;
pub mod client;
mod conditions;
mod entity_routes;
mod error;
mod event_stream;
pub mod handle;
mod health_routes;
mod limits;
mod listener;
mod openapi;
pub mod peer;
mod read_routes;
mod request_id;
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
        .route("/v1/confirm", get(write_routes::unconfirmed).post(write_routes::confirm).delete(write_routes::cancel))
        .route("/v1/vms/{id}/ports", post(write_routes::attach))
        .route(
            "/v1/ports/{id}",
            put(entity_routes::put_port).patch(write_routes::set).delete(entity_routes::delete_port),
        )
        .route("/v1/networks/{id}", put(entity_routes::put_network).delete(entity_routes::delete_network))
        .route("/v1/uplinks/{id}", put(entity_routes::put_uplink).delete(entity_routes::delete_uplink))
        .route("/v1/vms/{id}", put(entity_routes::put_vm).delete(entity_routes::delete_vm))
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
        .route("/v1/uplinks/{id}", get(entity_routes::uplink))
        .route("/v1/vms", get(read_routes::vms))
        .route("/v1/vms/{id}", get(entity_routes::vm))
        .route("/v1/networks", get(read_routes::networks))
        .route("/v1/networks/{id}", get(entity_routes::network))
        .route("/v1/fdb", get(read_routes::fdb))
        .route("/v1/workers", get(read_routes::workers))
        .route("/v1/drops", get(read_routes::drops))
        .route("/v1/loops", get(read_routes::loops))
        .route("/v1/storms", get(read_routes::storms))
        .route("/v1/audit", get(read_routes::audit))
        .route("/v1/config", get(read_routes::configuration))
        .route("/v1/status", get(health_routes::status))
        .route("/livez", get(health_routes::live))
        .route("/readyz", get(health_routes::ready))
        .route("/metrics", get(read_routes::metrics))
}

fn with_state(routes: Router<AppState>, handle: Handle) -> Router {
    let limits = Limits::default();
    routes
        .fallback(async |uri: Uri| ApiError::unknown("unknown_path", format!("no such path {}", uri.path())))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| ApiError::method(&method, uri.path()))
        .layer(from_fn_with_state(limits.clone(), limits::admit))
        .layer(from_fn(body::drain))
        .layer(from_fn(request_id::identify))
        .with_state(AppState { handle, limits })
}
