//! The description of the API for programs: OpenAPI, made from the handlers and the types themselves.

use axum::Json;
use utoipa::OpenApi;

use super::{changes, follow, pages};

#[derive(OpenApi)]
#[openapi(
    info(title = "vifswitch", description = "The API of a vifswitch, at its unix socket."),
    servers((url = "http://vifswitch")),
    tags(
        (name = "state", description = "What is"),
        (name = "configuration", description = "What shall be, as a whole"),
        (name = "ports", description = "What shall be, port by port"),
        (name = "events", description = "What happened")
    ),
    paths(
        pages::ports,
        pages::port,
        pages::uplinks,
        pages::vms,
        pages::networks,
        pages::fdb,
        pages::workers,
        pages::drops,
        pages::loops,
        pages::storms,
        pages::audit,
        pages::config,
        pages::metrics,
        changes::apply,
        changes::diff,
        changes::confirm,
        changes::attach,
        changes::set,
        changes::detach,
        changes::release,
        changes::flush,
        follow::events,
        page,
    )
)]
struct Document;

/// The description of all requests and answers, with the types of their bodies.
pub fn description() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// This description
#[utoipa::path(get, path = "/v1/openapi.json", tag = "state", responses((status = 200, body = Object)))]
pub async fn page() -> Json<utoipa::openapi::OpenApi> {
    Json(description())
}
