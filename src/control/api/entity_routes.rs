//! Routes that put, delete and read single entities. Each write is idempotent: an equal repeat changes nothing, and what is gone is
//! deleted.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use super::AppState;
use super::body::{CONFIGURATION, REQUEST, RequestBody};
use super::conditions::{ChangeAnswer, ChangeQuery as Conditional, Changed, Conditions, etag};
use super::error::{ApiError, ErrorBody};
use super::read_routes::Name;
use super::write_routes::BODY;
use crate::control::api::responses::{NetworkView, UplinkView, VmView};
use crate::control::config::{self, kind, raw};
use crate::control::desired::change::Change;
use crate::control::desired::diff::Entity;

/// Id in the path of a write.
pub(super) fn id_of(what: &str, id: Name) -> Result<String, ApiError> {
    let Ok(Path(id)) = id else {
        return Err(ApiError::wrong(kind::BAD_VALUE, format!("the {what}'s id in the path is not UTF-8")));
    };
    match config::wrong_id(&id) {
        Some(wrong) => Err(ApiError::wrong(kind::BAD_VALUE, format!("the {what}'s id in the path is {wrong}"))),
        None => Ok(id),
    }
}

/// Makes a port as given, new or not
///
/// Keys that are absent have their defaults. `device_id` names its VM, which is created if it is new. The port keeps its place
/// among the VM's ports, or comes after the last one, unless it has a `position`.
#[utoipa::path(put, path = "/v1/ports/{id}", tag = "ports", request_body = raw::PortOfVm,
    params(("id" = String, Path, description = "the port"), ("dry_run" = Option<bool>, Query, description = "change nothing"),
        ("wait" = Option<u64>, Query, description = "seconds to wait until it is ACTIVE, 1 to 300")),
    responses((status = 200, body = ChangeAnswer), (status = 201, body = ChangeAnswer), (status = "4XX", body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub async fn put_port(
    State(state): State<AppState>,
    id: Name,
    query: Conditional,
    headers: HeaderMap,
    body: Body,
) -> Result<Changed, ApiError> {
    let (id, conditions) = (id_of("port", id)?, Conditions::of(query, &headers)?);
    let text = RequestBody::receive(&headers, body, REQUEST, &state.limits).await?;
    let of = id.clone();
    let ((vm, port), room) = text.read(move |text| Ok(config::parse_port_json(text, BODY, &of)?)).await?;
    let changed = conditions.make(&state, Change::PutPort { vm, port }, room).await?;
    Ok(changed.or_created(Entity::Port, &id))
}

/// Makes a network as given, new or not
#[utoipa::path(put, path = "/v1/networks/{id}", tag = "networks", request_body = raw::Network,
    params(("id" = String, Path, description = "the network"), ("dry_run" = Option<bool>, Query, description = "change nothing")),
    responses((status = 200, body = ChangeAnswer), (status = 201, body = ChangeAnswer), (status = "4XX", body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub async fn put_network(
    State(state): State<AppState>,
    id: Name,
    query: Conditional,
    headers: HeaderMap,
    body: Body,
) -> Result<Changed, ApiError> {
    let (id, conditions) = (id_of("network", id)?, Conditions::of(query, &headers)?);
    let text = RequestBody::receive(&headers, body, REQUEST, &state.limits).await?;
    let of = id.clone();
    let (network, room) = text.read(move |text| Ok(config::parse_network_json(text, BODY, &of)?)).await?;
    let changed = conditions.make(&state, Change::PutNetwork(network), room).await?;
    Ok(changed.or_created(Entity::Network, &id))
}

/// Deletes a network that nothing uses
#[utoipa::path(delete, path = "/v1/networks/{id}", tag = "networks",
    params(("id" = String, Path, description = "the network"), ("dry_run" = Option<bool>, Query, description = "change nothing")),
    responses((status = 200, body = ChangeAnswer), (status = 204, description = "there is none"),
        (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn delete_network(
    State(state): State<AppState>,
    id: Name,
    query: Conditional,
    headers: HeaderMap,
) -> Result<Changed, ApiError> {
    let change = Change::DeleteNetwork(id_of("network", id)?);
    Ok(Conditions::of(query, &headers)?.make(&state, change, None).await?.or_gone())
}

/// Makes an uplink as given, new or not
#[utoipa::path(put, path = "/v1/uplinks/{id}", tag = "networks", request_body = raw::Uplink,
    params(("id" = String, Path, description = "the uplink"), ("dry_run" = Option<bool>, Query, description = "change nothing")),
    responses((status = 200, body = ChangeAnswer), (status = 201, body = ChangeAnswer), (status = "4XX", body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub async fn put_uplink(
    State(state): State<AppState>,
    id: Name,
    query: Conditional,
    headers: HeaderMap,
    body: Body,
) -> Result<Changed, ApiError> {
    let (id, conditions) = (id_of("uplink", id)?, Conditions::of(query, &headers)?);
    let text = RequestBody::receive(&headers, body, REQUEST, &state.limits).await?;
    let of = id.clone();
    let (uplink, room) = text.read(move |text| Ok(config::parse_uplink_json(text, BODY, &of)?)).await?;
    let changed = conditions.make(&state, Change::PutUplink(uplink), room).await?;
    Ok(changed.or_created(Entity::Uplink, &id))
}

/// Deletes an uplink
#[utoipa::path(delete, path = "/v1/uplinks/{id}", tag = "networks",
    params(("id" = String, Path, description = "the uplink"), ("dry_run" = Option<bool>, Query, description = "change nothing")),
    responses((status = 200, body = ChangeAnswer), (status = 204, description = "there is none"),
        (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn delete_uplink(
    State(state): State<AppState>,
    id: Name,
    query: Conditional,
    headers: HeaderMap,
) -> Result<Changed, ApiError> {
    let change = Change::DeleteUplink(id_of("uplink", id)?);
    Ok(Conditions::of(query, &headers)?.make(&state, change, None).await?.or_gone())
}

/// Gives a VM these settings, new or not; with `ports`, also these ports in their order
///
/// Without `ports` it keeps those that it has.
#[utoipa::path(put, path = "/v1/vms/{id}", tag = "ports", request_body = raw::Vm,
    params(("id" = String, Path, description = "the VM: Neutron's device_id"),
        ("dry_run" = Option<bool>, Query, description = "change nothing"),
        ("wait" = Option<u64>, Query, description = "seconds to wait until its ports are ACTIVE, 1 to 300")),
    responses((status = 200, body = ChangeAnswer), (status = 201, body = ChangeAnswer), (status = "4XX", body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub async fn put_vm(
    State(state): State<AppState>,
    id: Name,
    query: Conditional,
    headers: HeaderMap,
    body: Body,
) -> Result<Changed, ApiError> {
    let (id, conditions) = (id_of("VM", id)?, Conditions::of(query, &headers)?);
    let text = RequestBody::receive(&headers, body, CONFIGURATION, &state.limits).await?;
    let of = id.clone();
    let ((settings, ports), room) = text.read(move |text| Ok(config::parse_vm_json(text, BODY, &of)?)).await?;
    let changed = conditions.make(&state, Change::PutVm { vm: id.clone(), settings, ports }, room).await?;
    Ok(changed.or_created(Entity::Vm, &id))
}

/// Deletes a VM with its ports
#[utoipa::path(delete, path = "/v1/vms/{id}", tag = "ports",
    params(("id" = String, Path, description = "the VM"), ("dry_run" = Option<bool>, Query, description = "change nothing")),
    responses((status = 200, body = ChangeAnswer), (status = 204, description = "there is none"),
        (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn delete_vm(
    State(state): State<AppState>,
    id: Name,
    query: Conditional,
    headers: HeaderMap,
) -> Result<Changed, ApiError> {
    let change = Change::DeleteVm(id_of("VM", id)?);
    Ok(Conditions::of(query, &headers)?.make(&state, change, None).await?.or_gone())
}

/// One network
#[utoipa::path(get, path = "/v1/networks/{id}", tag = "state", params(("id" = String, Path, description = "the network")),
    responses((status = 200, body = NetworkView), (status = 404, body = ErrorBody)))]
pub async fn network(State(state): State<AppState>, id: Name) -> Result<Response, ApiError> {
    let generation = state.handle.generation().await?;
    let of = state.handle.networks().await?;
    one("network", "unknown_network", id, of, |network| &network.network_id, generation)
}

/// One uplink
#[utoipa::path(get, path = "/v1/uplinks/{id}", tag = "state", params(("id" = String, Path, description = "the uplink")),
    responses((status = 200, body = UplinkView), (status = 404, body = ErrorBody)))]
pub async fn uplink(State(state): State<AppState>, id: Name) -> Result<Response, ApiError> {
    let generation = state.handle.generation().await?;
    let of = state.handle.uplinks().await?;
    one("uplink", "unknown_uplink", id, of, |uplink| &uplink.uplink_id, generation)
}

/// One VM
#[utoipa::path(get, path = "/v1/vms/{id}", tag = "state", params(("id" = String, Path, description = "the VM")),
    responses((status = 200, body = VmView), (status = 404, body = ErrorBody)))]
pub async fn vm(State(state): State<AppState>, id: Name) -> Result<Response, ApiError> {
    let generation = state.handle.generation().await?;
    let of = state.handle.vms().await?;
    one("VM", "unknown_vm", id, of, |vm| &vm.device_id, generation)
}

/// The item with the id in the path.
fn one<T: serde::Serialize>(
    what: &str,
    kind: &'static str,
    id: Name,
    items: Vec<T>,
    id_of: impl Fn(&T) -> &String,
    generation: u64,
) -> Result<Response, ApiError> {
    let Ok(Path(id)) = id else { return Err(ApiError::unknown(kind, format!("no such {what}"))) };
    match items.into_iter().find(|item| *id_of(item) == id) {
        Some(item) => Ok((etag(generation), Json(item)).into_response()),
        None => Err(ApiError::unknown(kind, format!("no such {what} {id:?}"))),
    }
}
