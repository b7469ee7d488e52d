//! The API: HTTP/1.1 and JSON over a [`Handle`].
//!
//! ```text
//!   listener ─► bounds ─► pages     what can be read, also over TCP
//!   (connections) (rate)  changes   what can be changed, only at the unix socket
//!                         follow    events as they happen, likewise
//!                         openapi   what all of this looks like
//! ```

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, patch, post, put};

use super::handle::Handle;

mod body;
mod bounds;
mod changes;
mod follow;
mod listener;
mod openapi;
mod pages;
mod problem;

pub use listener::serve;
pub use openapi::description;

use bounds::Bounds;
use problem::Problem;

/// What the handlers share: the way to the controller, and what this listener may bear.
#[derive(Debug, Clone)]
struct Desk {
    handle: Handle,
    bounds: Bounds,
}

/// The pages that change nothing. Each call makes them with bounds of their own.
pub fn pages(handle: Handle) -> Router {
    finish(readable(), handle)
}

/// The whole API: the pages, and all that changes something. Whoever can reach it is trusted with
/// the switch. Each call makes it with bounds of its own.
pub fn api(handle: Handle) -> Router {
    let changing = Router::new()
        .route("/v1/config", put(changes::apply))
        .route("/v1/config/diff", post(changes::diff))
        .route("/v1/confirm", post(changes::confirm))
        .route("/v1/vms/{id}/ports", post(changes::attach))
        .route("/v1/ports/{id}", patch(changes::set).delete(changes::detach))
        .route("/v1/ports/{id}/release", post(changes::release))
        .route("/v1/fdb/flush", post(changes::flush))
        .route("/v1/events", get(follow::events))
        .route("/v1/openapi.json", get(openapi::page));
    finish(readable().merge(changing), handle)
}

fn readable() -> Router<Desk> {
    Router::new()
        .route("/v1/ports", get(pages::ports))
        .route("/v1/ports/{id}", get(pages::port))
        .route("/v1/uplinks", get(pages::uplinks))
        .route("/v1/vms", get(pages::vms))
        .route("/v1/networks", get(pages::networks))
        .route("/v1/fdb", get(pages::fdb))
        .route("/v1/workers", get(pages::workers))
        .route("/v1/drops", get(pages::drops))
        .route("/v1/loops", get(pages::loops))
        .route("/v1/storms", get(pages::storms))
        .route("/v1/audit", get(pages::audit))
        .route("/v1/config", get(pages::config))
        .route("/metrics", get(pages::metrics))
}

fn finish(routes: Router<Desk>, handle: Handle) -> Router {
    let bounds = Bounds::default();
    routes
        .fallback(async |uri: Uri| Problem::unknown("unknown_path", format!("there is nothing at {}", uri.path())))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| Problem::method(&method, uri.path()))
        .layer(from_fn_with_state(bounds.clone(), bounds::admit))
        .layer(from_fn(body::drain))
        .with_state(Desk { handle, bounds })
}
