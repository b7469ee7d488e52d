//! OpenAPI description of the API, generated from handlers and types.

use axum::Json;
use utoipa::OpenApi;

use super::{entity_routes, event_stream, health_routes, read_routes, write_routes};

#[derive(OpenApi)]
#[openapi(
    info(title = "vifswitch", description = "The API of a vifswitch, at its unix socket."),
    servers((url = "http://vifswitch")),
    tags(
        (name = "state", description = "What is"),
        (name = "configuration", description = "The desired state as a whole"),
        (name = "ports", description = "The desired state, port by port and VM by VM"),
        (name = "networks", description = "The desired state: networks and uplinks"),
        (name = "events", description = "What happened")
    ),
    paths(
        read_routes::ports,
        read_routes::port,
        read_routes::uplinks,
        read_routes::vms,
        read_routes::networks,
        read_routes::fdb,
        read_routes::workers,
        read_routes::drops,
        read_routes::loops,
        read_routes::storms,
        read_routes::audit,
        read_routes::configuration,
        read_routes::metrics,
        write_routes::apply,
        write_routes::diff,
        write_routes::unconfirmed,
        write_routes::confirm,
        write_routes::cancel,
        write_routes::attach,
        write_routes::set,
        entity_routes::put_port,
        entity_routes::delete_port,
        entity_routes::network,
        entity_routes::put_network,
        entity_routes::delete_network,
        entity_routes::uplink,
        entity_routes::put_uplink,
        entity_routes::delete_uplink,
        entity_routes::vm,
        entity_routes::put_vm,
        entity_routes::delete_vm,
        health_routes::status,
        health_routes::live,
        health_routes::ready,
        write_routes::release,
        write_routes::flush,
        event_stream::events,
        page,
    )
)]
struct Document;

/// The description of all requests and responses.
pub fn description() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// This description
#[utoipa::path(get, path = "/v1/openapi.json", tag = "state", responses((status = 200, body = Object)))]
pub async fn page() -> Json<utoipa::openapi::OpenApi> {
    Json(description())
}
