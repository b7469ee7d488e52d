//! Routes that read: one per part of the state.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::conditions::{etag, query_of};
use super::error::{ApiError, ErrorBody};
use super::lists::{Extracted, ItemQuery, List, ListQuery, PortQuery, StationQuery};
use super::selection::{self, StationKey};
use crate::control::api::handle::{ConfigForm, ShuttingDown};
use crate::control::api::responses::{
    AuditView, DropView, NetworkView, PortView, StationKind, StationView, Status, UplinkView, VmView, WorkerView,
};
use crate::control::config::{self, raw};
use crate::control::loops::status::{LoopStatus, StormStatus};
use crate::control::problem::Subject;
use crate::telemetry::exposition::{self, Mitigation};

/// Name in a path, as extracted by axum.
pub type Name = Result<Path<String>, PathRejection>;

fn answer<T: Serialize>(found: Result<T, ShuttingDown>) -> Result<Json<T>, ApiError> {
    Ok(Json(found?))
}

/// Port id in the path. A name that is not UTF-8 is no port's.
pub fn port_id(id: Name) -> Result<String, ApiError> {
    match id {
        Ok(Path(id)) => Ok(id),
        Err(_) => Err(ApiError::unknown("unknown_port", "the port's id in the path is not UTF-8; escape it as UTF-8")),
    }
}

/// A list of desired state, with the generation that it has at least: all, or what bears the label of the query.
async fn list<T: Serialize + ToSchema + Send + 'static>(
    state: &AppState,
    path: &'static str,
    query: Extracted<ListQuery>,
    items: impl Future<Output = Result<Vec<T>, ShuttingDown>>,
    id: fn(&T) -> &String,
    owner: fn(&T) -> &Option<String>,
) -> Result<Response, ApiError> {
    let (list, wanted) = List::of::<T>(path, query)?;
    let generation = state.handle.generation().await?;
    let mut items = items.await?;
    items.retain(|item| wanted.is_none() || *owner(item) == wanted);
    let items = selection::paged(items, list.page.as_ref(), |item| id(item).clone());
    Ok((etag(generation), list.response(items, |item| Some(id(item).clone()), None)).into_response())
}

/// All ports, by VM, in the order of the configuration
///
/// With `limit` or `after` a page, in the order of their ids; `Link` has the next one.
#[utoipa::path(get, path = "/v1/ports", tag = "state",
    params(("owner" = Option<String>, Query, description = "only those with this label"),
        ("network_id" = Option<String>, Query, description = "only those on this network"),
        ("device_id" = Option<String>, Query, description = "only those of this VM"),
        ("status" = Option<Status>, Query, description = "only those with this status"),
        ("fields" = Option<String>, Query, description = "only these fields, separated by commas"),
        ("limit" = Option<u64>, Query, description = "at most so many, 1 to 10000"),
        ("after" = Option<String>, Query, description = "only those with a greater id")),
    responses((status = 200, body = Vec<PortView>), (status = 400, body = ErrorBody)))]
pub async fn ports(State(state): State<AppState>, query: Extracted<PortQuery>) -> Result<Response, ApiError> {
    let (list, which) = List::of_ports(query)?;
    let generation = state.handle.generation().await?;
    let ports = state.handle.select_ports(which).await?;
    Ok((etag(generation), list.response(ports, |port| Some(port.port_id.clone()), None)).into_response())
}

/// One port
#[utoipa::path(get, path = "/v1/ports/{id}", tag = "state",
    params(("id" = String, Path, description = "the port"),
        ("fields" = Option<String>, Query, description = "only these fields, separated by commas")),
    responses((status = 200, body = PortView), (status = 404, body = ErrorBody)))]
pub async fn port(State(state): State<AppState>, id: Name, query: Extracted<ItemQuery>) -> Result<Response, ApiError> {
    let (id, fields) = (port_id(id)?, ItemQuery::fields::<PortView>(query)?);
    let generation = state.handle.generation().await?;
    match state.handle.ports_of(HashSet::from([id.clone()])).await?.pop() {
        Some(port) if fields.is_partial() => Ok((etag(generation), Json(fields.of_item(&port))).into_response()),
        Some(port) => Ok((etag(generation), Json(port)).into_response()),
        None => {
            let ports = state.handle.ports().await?;
            let similar = config::nearest(&id, ports.iter().map(|port| port.port_id.as_str()));
            let remedy = similar
                .map_or("`vifswitch show ports` lists them".to_owned(), |similar| format!("did you mean {similar:?}?"));
            Err(ApiError::unknown("unknown_port", format!("no such port {id:?}; {remedy}")).of(&Subject::port(id)))
        }
    }
}

/// All uplinks
#[utoipa::path(get, path = "/v1/uplinks", tag = "state",
    params(("owner" = Option<String>, Query, description = "only those with this label"),
        ("fields" = Option<String>, Query, description = "only these fields, separated by commas"),
        ("limit" = Option<u64>, Query, description = "at most so many, 1 to 10000, in the order of their ids"),
        ("after" = Option<String>, Query, description = "only those with a greater id, in the order of their ids")),
    responses((status = 200, body = Vec<UplinkView>), (status = 400, body = ErrorBody)))]
pub async fn uplinks(State(state): State<AppState>, query: Extracted<ListQuery>) -> Result<Response, ApiError> {
    let items = state.handle.uplinks();
    list(&state, "/v1/uplinks", query, items, |uplink: &UplinkView| &uplink.uplink_id, |uplink| &uplink.owner).await
}

/// All VMs, with the sums over their ports
#[utoipa::path(get, path = "/v1/vms", tag = "state",
    params(("owner" = Option<String>, Query, description = "only those with this label"),
        ("fields" = Option<String>, Query, description = "only these fields, separated by commas"),
        ("limit" = Option<u64>, Query, description = "at most so many, 1 to 10000, in the order of their ids"),
        ("after" = Option<String>, Query, description = "only those with a greater id, in the order of their ids")),
    responses((status = 200, body = Vec<VmView>), (status = 400, body = ErrorBody)))]
pub async fn vms(State(state): State<AppState>, query: Extracted<ListQuery>) -> Result<Response, ApiError> {
    let items = state.handle.vms();
    list(&state, "/v1/vms", query, items, |vm: &VmView| &vm.device_id, |vm| &vm.owner).await
}

/// All networks
#[utoipa::path(get, path = "/v1/networks", tag = "state",
    params(("owner" = Option<String>, Query, description = "only those with this label"),
        ("fields" = Option<String>, Query, description = "only these fields, separated by commas"),
        ("limit" = Option<u64>, Query, description = "at most so many, 1 to 10000, in the order of their ids"),
        ("after" = Option<String>, Query, description = "only those with a greater id, in the order of their ids")),
    responses((status = 200, body = Vec<NetworkView>), (status = 400, body = ErrorBody)))]
pub async fn networks(State(state): State<AppState>, query: Extracted<ListQuery>) -> Result<Response, ApiError> {
    let items = state.handle.networks();
    list(&state, "/v1/networks", query, items, |network: &NetworkView| &network.network_id, |network| &network.owner)
        .await
}

/// The forwarding database: the port of each station
///
/// Sent in chunks, as it may be long, to few clients at a time. With `limit` or `after` a page; `Link` has the next one.
#[utoipa::path(get, path = "/v1/fdb", tag = "state",
    params(("network_id" = Option<String>, Query, description = "only entries on this network"),
        ("port_id" = Option<String>, Query, description = "only entries at this port or uplink"),
        ("mac_address" = Option<String>, Query, description = "only entries with this address"),
        ("kind" = Option<StationKind>, Query, description = "only entries of this kind"),
        ("fields" = Option<String>, Query, description = "only these fields, separated by commas"),
        ("limit" = Option<u64>, Query, description = "at most so many, 1 to 10000"),
        ("after" = Option<String>, Query, description = "only entries behind this one: `KIND/NETWORK/MAC`, as in `Link`")),
    responses((status = 200, body = Vec<StationView>), (status = 400, body = ErrorBody)))]
pub async fn fdb(State(state): State<AppState>, query: Extracted<StationQuery>) -> Result<Response, ApiError> {
    let (list, which) = List::of_stations(query)?;
    // Held until the last chunk is sent, and until control has collected the entries even if the client disconnects.
    let place = state.limits.long_answer().await.map(Arc::new);
    let stations = state.handle.fdb(which, Box::new(place.clone())).await?;
    Ok(list.response(stations, |station| StationKey::of(station).map(|key| key.to_string()), place))
}

/// All workers
#[utoipa::path(get, path = "/v1/workers", tag = "state", responses((status = 200, body = Vec<WorkerView>)))]
pub async fn workers(State(state): State<AppState>) -> Result<Json<Vec<WorkerView>>, ApiError> {
    answer(state.handle.workers().await)
}

/// Dropped frames by port, direction and reason
#[utoipa::path(get, path = "/v1/drops", tag = "state", responses((status = 200, body = Vec<DropView>)))]
pub async fn drops(State(state): State<AppState>) -> Result<Json<Vec<DropView>>, ApiError> {
    answer(state.handle.drops().await)
}

/// Loops, active and recent: ports involved, start, measures
///
/// A VM that bridges two networks is listed as a notice, without measures.
#[utoipa::path(get, path = "/v1/loops", tag = "state", responses((status = 200, body = Vec<LoopStatus>)))]
pub async fn loops(State(state): State<AppState>) -> Result<Json<Vec<LoopStatus>>, ApiError> {
    answer(state.handle.loops().await)
}

/// Storms, active and recent: source, limit, start, dropped frames
#[utoipa::path(get, path = "/v1/storms", tag = "state", responses((status = 200, body = Vec<StormStatus>)))]
pub async fn storms(State(state): State<AppState>) -> Result<Json<Vec<StormStatus>>, ApiError> {
    answer(state.handle.storms().await)
}

/// Counter audit: whether every frame is accounted for
#[utoipa::path(get, path = "/v1/audit", tag = "state", responses((status = 200, body = AuditView)))]
pub async fn audit(State(state): State<AppState>) -> Result<Json<AuditView>, ApiError> {
    state.limits.audit().await?;
    answer(state.handle.audit().await)
}

/// Query of the configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedQuery {
    #[serde(default)]
    resolved: bool,
}

/// The desired configuration, without the keys that have their defaults
///
/// With `resolved`, with all keys.
#[utoipa::path(get, path = "/v1/config", tag = "configuration",
    params(("resolved" = Option<bool>, Query, description = "with all defaults")),
    responses((status = 200, body = raw::Config), (status = 400, body = ErrorBody)))]
pub async fn configuration(
    State(state): State<AppState>,
    query: Result<Query<ResolvedQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let form = if query_of(query)?.resolved { ConfigForm::Resolved } else { ConfigForm::Sparse };
    let (config, generation) = state.handle.config(form).await?;
    Ok((etag(generation), Json(config)).into_response())
}

/// All counters, for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "state",
    responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
pub async fn metrics(State(state): State<AppState>) -> Result<Response, ApiError> {
    let handle = state.handle;
    let (ports, vms, networks) = (handle.ports().await?, handle.vms().await?, handle.networks().await?);
    let (workers, drops, uplinks) = (handle.workers().await?, handle.drops().await?, handle.uplinks().await?);
    let (loops, storms, counts) = (handle.loops().await?, handle.storms().await?, handle.loop_counts().await?);
    let contained = Mitigation { loops, storms, counts };
    let text = exposition::render(ports, vms, networks, workers, drops, uplinks, (contained, handle.health()));
    Ok(([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], text).into_response())
}
