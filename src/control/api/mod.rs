//! The API: HTTP/1.1 and JSON over a [`Handle`].
//!
//! ```text
//!   listener ─► limits ─► access ─► read_routes    reading, also over TCP
//!   (connections) (rate)  (who)   write_routes   changes of the configuration and of ports, unix socket only
//!                                 entity_routes  single entities: put, delete, read
//!                                 health_routes  status of the switch, also while it starts
//!                                 log_routes     levels of the log
//!                                 conditions     of changes: If-Match, dry_run, wait
//!                                 passed         descriptors that clients pass
//!                                 lists          filters, fields, pages; selection: which items
//!                                 event_stream   events, unix socket only; event_query: which
//!                                 openapi        API description; responses: types of responses
//! ```

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::http::{Method, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post, put};

use crate::control::api::handle::Handle;
use crate::control::config::Writers;

mod access;
mod body;
pub mod client;
mod conditions;
mod entity_routes;
mod error;
mod event_query;
mod event_stream;
mod fields;
pub mod handle;
mod health_routes;
mod history_routes;
mod limits;
mod listener;
mod lists;
mod log_routes;
mod openapi;
mod passed;
pub mod peer;
mod read_routes;
mod request_id;
pub mod responses;
pub mod selection;
mod sending;
pub mod socket;
mod write_routes;

pub use listener::{SHUTDOWN_TIMEOUT, serve};
pub use log_routes::LogView;
pub use openapi::description;

use error::ApiError;
use limits::Limits;

/// State shared by handlers: controller and limits of the listener.
#[derive(Debug, Clone)]
struct AppState {
    handle: Handle,
    limits: Limits,
}

/// Metrics and health, for monitoring over TCP. Each call creates its own limits.
pub fn metrics_routes(handle: Handle) -> Router {
    with_state(with_errors(monitoring_router(), unserved_metrics), handle)
}

/// Reads over TCP, for clients that call the switch by an IP address or one of `hosts`. `socket`: where changes are made.
/// Each call creates its own limits.
pub fn pages(handle: Handle, hosts: Vec<String>, socket: &Path) -> Router {
    let routes = reads_only(with_errors(read_router(), unknown_path), socket);
    with_state(routes.layer(from_fn_with_state(hosts.into(), access::known_host)), handle)
}

/// All reads, for a second socket. `socket`: where changes are made. Each call creates its own limits.
pub fn read_only_api(handle: Handle, socket: &Path) -> Router {
    with_state(reads_only(with_errors(all_routes(), unknown_path), socket), handle)
}

/// All routes. Every client that can connect is trusted with the switch. Each call creates its own limits.
pub fn api(handle: Handle) -> Router {
    api_for(None, handle)
}

/// All routes, with changes by these users only; `None`: by everyone who can connect. Each call creates its own limits.
pub fn api_for(writers: Option<Writers>, handle: Handle) -> Router {
    let mut routes = with_errors(all_routes(), unknown_path);
    if let Some(writers) = writers {
        routes = routes.layer(from_fn_with_state(Arc::new(writers), access::writers_only));
    }
    with_state(routes.layer(from_fn(passed::provide)).layer(from_fn(access::log_changes)), handle)
}

fn all_routes() -> Router<AppState> {
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
        .route("/v1/rollback", post(history_routes::rollback))
        .route("/v1/fdb/flush", post(write_routes::flush))
        .route("/v1/log", put(log_routes::set_log))
        .route("/v1/events", get(event_stream::events))
        .route("/v1/openapi.json", get(openapi::page));
    read_router().merge(changing)
}

fn read_router() -> Router<AppState> {
    monitoring_router()
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
        .route("/v1/log", get(log_routes::log))
        .route("/v1/history", get(history_routes::history))
        .route("/v1/history/{id}", get(history_routes::generation))
        .route("/v1/status", get(health_routes::status))
}

fn monitoring_router() -> Router<AppState> {
    Router::new()
        .route("/livez", get(health_routes::live))
        .route("/readyz", get(health_routes::ready))
        .route("/metrics", get(read_routes::metrics))
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::unknown("unknown_path", format!("no such path {}; `GET /v1/openapi.json` describes all", uri.path()))
}

async fn unserved_metrics(uri: Uri) -> ApiError {
    const HERE: &str =
        "`metrics` of [switch] serves /metrics, /livez and /readyz; set `pages` there for reads over TCP";
    ApiError::unknown("unknown_path", format!("no such path {}; {HERE}", uri.path()))
}

/// The routes with answers to other paths and methods.
fn with_errors<H, T>(routes: Router<AppState>, unknown: H) -> Router<AppState>
where
    H: Handler<T, AppState>,
    T: 'static,
{
    let method = async |method: Method, uri: Uri| ApiError::method(&method, uri.path());
    routes.fallback(unknown).method_not_allowed_fallback(method)
}

fn reads_only(routes: Router<AppState>, socket: &Path) -> Router<AppState> {
    let changes: Arc<str> = format!("the unix socket {}, `api` of [switch]", socket.display()).into();
    routes.layer(from_fn_with_state(changes, access::reads_only))
}

fn with_state(routes: Router<AppState>, handle: Handle) -> Router {
    let limits = Limits::default();
    routes
        .layer(from_fn_with_state(limits.clone(), limits::admit))
        .layer(from_fn(body::drain))
        .layer(from_fn(request_id::identify))
        .with_state(AppState { handle, limits })
}
