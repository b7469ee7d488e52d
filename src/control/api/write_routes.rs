//! Routes that change. A response is sent once the change is active on every worker.

use std::collections::HashSet;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::body::{BodyPermit, CONFIGURATION, REQUEST, RequestBody, table};
use super::conditions::{ChangeAnswer, ChangeQuery, Changed, Conditions, ConfigQuery, etag, query_of};
use super::error::{ApiError, BAD_QUERY, ErrorBody};
use super::read_routes::{Name, port_id};
use crate::control::api::handle::{ChangeOptions, ConfigForm, Flush};
use crate::control::api::responses::{Attached, Flushed, UnconfirmedView};
use crate::control::config::{self, Config, ConfigErrors, SwitchSettings, kind, raw};
use crate::control::desired::change::{Change, ChangeResult};
use crate::control::problem::{Problem, Subject};

/// Name of the request body in errors.
pub(super) const BODY: &str = "body";

/// Result of a request that is no write of the configuration.
type ChangeResponse = Result<Json<ChangeResult>, ApiError>;

/// Query of routes that take none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoQuery {}

/// Applies this configuration, all or nothing
///
/// Without `switch`, process settings stay; with it, they must equal the current ones, since they are fixed at start.
/// With `confirm`, the change is reverted unless `POST /v1/confirm` arrives in time. With `owner`, only what bears this label is
/// replaced; all that the body has gets it.
#[utoipa::path(put, path = "/v1/config", tag = "configuration", request_body = raw::Config,
    params(("confirm" = Option<u64>, Query, description = "seconds, 1 to 86400"),
        ("owner" = Option<String>, Query, description = "label of what is replaced"),
        ("dry_run" = Option<bool>, Query, description = "change nothing"),
        ("wait" = Option<u64>, Query, description = "seconds to wait until the ports concerned are ACTIVE, 1 to 300")),
    responses((status = 200, body = ChangeAnswer), (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn apply(
    State(state): State<AppState>,
    query: Result<Query<ConfigQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Changed, ApiError> {
    let (conditions, owner) = Conditions::of_config(query, &headers)?;
    if let Some(wrong) = owner.as_deref().and_then(config::wrong_id) {
        let problem = Problem::new(BAD_QUERY, format!("owner is {wrong}")).at("owner", owner);
        return Err(ApiError::wrong(BAD_QUERY, problem.message.clone()).with(problem));
    }
    let (change, room) = match owner {
        Some(owner) => {
            let (config, room) = wanted(&state, &headers, body, config::parse_json_part).await?;
            (Change::ApplyOwned { owner, config }, room)
        }
        None => {
            let (config, room) = wanted(&state, &headers, body, config::parse_json_over).await?;
            (Change::Apply(config), room)
        }
    };
    conditions.make(&state, change, room).await
}

/// Changes that this configuration would make; nothing is applied
#[utoipa::path(post, path = "/v1/config/diff", tag = "configuration", request_body = raw::Config,
    responses((status = 200, body = ChangeResult), (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn diff(
    State(state): State<AppState>,
    query: Result<Query<NoQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> ChangeResponse {
    query_of(query)?;
    let (config, room) = wanted(&state, &headers, body, config::parse_json_over).await?;
    let hold = Box::new((state.limits.change()?, room));
    Ok(Json(state.handle.diff(Change::Apply(config), ChangeOptions::default(), hold).await??))
}

/// Makes the unconfirmed change permanent
#[utoipa::path(post, path = "/v1/confirm", tag = "configuration",
    responses((status = 200, body = ChangeResult), (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn confirm(State(state): State<AppState>) -> ChangeResponse {
    let hold = Box::new(state.limits.change()?);
    Ok(Json(state.handle.confirm(hold).await??))
}

/// Whether a change waits to be confirmed.
#[derive(Debug, Serialize, ToSchema)]
pub struct Unconfirmed {
    /// Whether one does.
    pending: bool,
    /// The change.
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<UnconfirmedView>,
}

/// The change that waits to be confirmed, and the time that is left
#[utoipa::path(get, path = "/v1/confirm", tag = "configuration",
    responses((status = 200, body = Unconfirmed), (status = 503, body = ErrorBody)))]
pub async fn unconfirmed(State(state): State<AppState>) -> Result<Json<Unconfirmed>, ApiError> {
    let change = state.handle.unconfirmed().await?;
    Ok(Json(Unconfirmed { pending: change.is_some(), change }))
}

/// Reverts the unconfirmed change now
#[utoipa::path(delete, path = "/v1/confirm", tag = "configuration",
    responses((status = 200, body = ChangeResult), (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn cancel(State(state): State<AppState>) -> ChangeResponse {
    let hold = Box::new(state.limits.change()?);
    Ok(Json(state.handle.cancel(hold).await??))
}

/// One port, or several in order.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
// For the API description only: the configuration's parser reads the body.
#[allow(dead_code, clippy::large_enum_variant)]
pub enum PortOrPorts {
    /// One port.
    One(raw::Port),
    /// Several, in order.
    Several(Vec<raw::Port>),
}

/// Attaches ports to a VM, after its existing ones; an unknown VM is created
///
/// All or none: a port that exists is a conflict, unless the VM has all of them exactly so, as after a request whose answer was
/// lost. A port may name its VM with `device_id`, which must be the one in the path.
#[utoipa::path(post, path = "/v1/vms/{id}/ports", tag = "ports", request_body = PortOrPorts,
    params(("id" = String, Path, description = "the VM: Neutron's device_id")),
    responses((status = 200, body = Attached), (status = 201, body = Attached),
        (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn attach(
    State(state): State<AppState>,
    vm: Name,
    query: ChangeQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let vm = match vm {
        Ok(Path(vm)) => vm,
        Err(_) => return Err(ApiError::wrong(kind::BAD_VALUE, "the VM's id in the path is not UTF-8")),
    };
    if let Some(wrong) = config::wrong_id(&vm) {
        return Err(ApiError::wrong(kind::BAD_VALUE, format!("the VM's id in the path is {wrong}")));
    }
    let conditions = Conditions::of(query, &headers)?;
    let text = RequestBody::receive(&headers, body, REQUEST, &state.limits).await?;
    let owner = vm.clone();
    let (ports, room) = text.read(move |text| Ok(config::parse_ports_json(text, BODY, &owner)?)).await?;
    let ids: HashSet<String> = ports.iter().map(|port| port.port_id.clone()).collect();
    let is_dry_run = conditions.is_dry_run();
    let subject = Subject::vm(&vm);
    let changed = conditions.make(&state, Change::Attach { vm, ports }, room).await;
    let changed = changed.map_err(|error| error.of(&subject))?;
    if is_dry_run {
        return Ok(changed.into_response());
    }
    let ChangeResult { changes, warnings, generation, .. } = changed.into_result();
    // The change is done, even if the switch is stopping by now.
    let ports = state.handle.ports_of(ids).await.unwrap_or_default();
    let status = if changes.is_empty() { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, etag(generation), Json(Attached { changes, warnings, ports })).into_response())
}

/// Changes the given keys of a port; others stay
///
/// A key that is `null` gets its default.
#[utoipa::path(patch, path = "/v1/ports/{id}", tag = "ports", request_body = raw::PortPatch,
    params(("id" = String, Path, description = "the port"), ("dry_run" = Option<bool>, Query, description = "change nothing"),
        ("wait" = Option<u64>, Query, description = "seconds to wait until it is ACTIVE, 1 to 300")),
    responses((status = 200, body = ChangeAnswer), (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn set(
    State(state): State<AppState>,
    id: Name,
    query: ChangeQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Changed, ApiError> {
    let (port, conditions) = (port_id(id)?, Conditions::of(query, &headers)?);
    let text = RequestBody::receive(&headers, body, REQUEST, &state.limits).await?;
    let keys = text.read(|text| Ok(config::parse_port_keys_json(text, BODY)?)).await;
    let (keys, room) = keys.map_err(|error| error.of(&Subject::port(&port)))?;
    let subject = Subject::port(&port);
    conditions.make(&state, Change::Set { port, keys }, room).await.map_err(|error| error.of(&subject))
}

/// Releases a port from loop or storm quarantine
#[utoipa::path(post, path = "/v1/ports/{id}/release", tag = "ports",
    params(("id" = String, Path, description = "the port")),
    responses((status = 200, body = ChangeResult), (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn release(State(state): State<AppState>, id: Name) -> ChangeResponse {
    let port = port_id(id)?;
    let hold = Box::new(state.limits.change()?);
    Ok(Json(state.handle.release(port, hold).await??))
}

/// Filter of FDB entries to flush.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FlushRequest {
    /// On this network.
    network_id: Option<String>,
    /// At this port or uplink.
    port_id: Option<String>,
    /// With this MAC address.
    mac_address: Option<String>,
}

/// Flushes learned FDB entries that match all given fields; all of them without a body
#[utoipa::path(post, path = "/v1/fdb/flush", tag = "state", request_body = Option<FlushRequest>,
    responses((status = 200, body = Flushed), (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn flush(State(state): State<AppState>, headers: HeaderMap, body: Body) -> Result<Json<Flushed>, ApiError> {
    let text = RequestBody::receive(&headers, body, REQUEST, &state.limits).await?;
    let (flush, room) = text.read(flush_of).await?;
    let hold = Box::new((state.limits.change()?, room));
    let flushed = state.handle.flush(flush, hold).await??;
    Ok(Json(Flushed { flushed }))
}

fn flush_of(text: &str) -> Result<Flush, ApiError> {
    let wanted = match text {
        "" => FlushRequest::default(),
        text => table(text)?,
    };
    let FlushRequest { network_id: network, port_id: port, mac_address } = wanted;
    let mac = mac_address.map(|text| {
        text.parse().map_err(|e| {
            let message = format!("{BODY}: mac_address = {text:?}: {e}");
            let problem = Problem::new(kind::BAD_VALUE, format!("{e}")).at("mac_address", Some(format!("{text:?}")));
            ApiError::wrong(kind::BAD_VALUE, message).with(problem)
        })
    });
    Ok(Flush { network, port, mac: mac.transpose()? })
}

/// The configuration in the body, as `parse` reads it.
async fn wanted(
    state: &AppState,
    headers: &HeaderMap,
    body: Body,
    parse: fn(&str, &str, SwitchSettings) -> Result<Config, ConfigErrors>,
) -> Result<(Config, BodyPermit), ApiError> {
    let text = RequestBody::receive(headers, body, CONFIGURATION, &state.limits).await?;
    let switch = running(state).await?;
    text.read(move |text| Ok(parse(text, BODY, switch)?)).await
}

/// Process settings, which a configuration may omit.
async fn running(state: &AppState) -> Result<SwitchSettings, ApiError> {
    let (mut config, _) = state.handle.config(ConfigForm::Resolved).await?;
    let switch = serde_json::json!({ "switch": config["switch"].take() }).to_string();
    let Config { switch, .. } = config::parse_json(&switch, "the configuration in force").map_err(|e| {
        // The switch cannot parse its own output.
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", e.to_string())
    })?;
    Ok(switch)
}
