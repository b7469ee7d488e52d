//! Routes that read: one per part of the state.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::AppState;
use super::conditions::{etag, query_of};
use super::error::{ApiError, ErrorBody};
use crate::control::api::handle::{ConfigForm, ShuttingDown};
use crate::control::api::responses::{
    AuditView, DropView, NetworkView, PortView, StationView, UplinkView, VmView, WorkerView,
};
use crate::control::config::{self, raw};
use crate::control::loops::status::{LoopStatus, StormStatus};
use crate::telemetry::exposition::{self, Mitigation};

/// Items of a long list per chunk.
const PIECE: usize = 512;

/// Name in a path, as extracted by axum.
pub type Name = Result<Path<String>, PathRejection>;

fn answer<T: Serialize>(found: Result<T, ShuttingDown>) -> Result<Json<T>, ApiError> {
    Ok(Json(found?))
}

/// Port id in the path. A name that is not UTF-8 is no port's.
pub fn port_id(id: Name) -> Result<String, ApiError> {
    match id {
        Ok(Path(id)) => Ok(id),
        Err(_) => Err(ApiError::unknown("unknown_port", "no such port")),
    }
}

/// Query of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    owner: Option<String>,
}

/// Query of a list, as axum extracts it.
type Filtered = Result<Query<ListQuery>, QueryRejection>;

/// A list of desired state, with the generation that it has at least: all, or what bears the label of the query.
async fn list<T: Serialize>(
    state: &AppState,
    query: Filtered,
    items: impl Future<Output = Result<Vec<T>, ShuttingDown>>,
    owner: fn(&T) -> &Option<String>,
) -> Result<Response, ApiError> {
    let ListQuery { owner: wanted } = query_of(query)?;
    let generation = state.handle.generation().await?;
    let mut items = items.await?;
    items.retain(|item| wanted.is_none() || *owner(item) == wanted);
    Ok((etag(generation), Json(items)).into_response())
}

/// All ports, by VM, in the order of the configuration
#[utoipa::path(get, path = "/v1/ports", tag = "state",
    params(("owner" = Option<String>, Query, description = "only those with this label")),
    responses((status = 200, body = Vec<PortView>), (status = 400, body = ErrorBody)))]
pub async fn ports(State(state): State<AppState>, query: Filtered) -> Result<Response, ApiError> {
    list(&state, query, state.handle.ports(), |port| &port.owner).await
}

/// One port
#[utoipa::path(get, path = "/v1/ports/{id}", tag = "state", params(("id" = String, Path, description = "the port")),
    responses((status = 200, body = PortView), (status = 404, body = ErrorBody)))]
pub async fn port(State(state): State<AppState>, id: Name) -> Result<Response, ApiError> {
    let id = port_id(id)?;
    let generation = state.handle.generation().await?;
    match state.handle.ports_of(HashSet::from([id.clone()])).await?.pop() {
        Some(port) => Ok((etag(generation), Json(port)).into_response()),
        None => {
            let ports = state.handle.ports().await?;
            let similar = config::nearest(&id, ports.iter().map(|port| port.port_id.as_str()));
            let question = similar.map(|similar| format!("; did you mean {similar:?}?")).unwrap_or_default();
            Err(ApiError::unknown("unknown_port", format!("no such port {id:?}{question}")))
        }
    }
}

/// All uplinks
#[utoipa::path(get, path = "/v1/uplinks", tag = "state",
    params(("owner" = Option<String>, Query, description = "only those with this label")),
    responses((status = 200, body = Vec<UplinkView>), (status = 400, body = ErrorBody)))]
pub async fn uplinks(State(state): State<AppState>, query: Filtered) -> Result<Response, ApiError> {
    list(&state, query, state.handle.uplinks(), |uplink| &uplink.owner).await
}

/// All VMs, with the sums over their ports
#[utoipa::path(get, path = "/v1/vms", tag = "state",
    params(("owner" = Option<String>, Query, description = "only those with this label")),
    responses((status = 200, body = Vec<VmView>), (status = 400, body = ErrorBody)))]
pub async fn vms(State(state): State<AppState>, query: Filtered) -> Result<Response, ApiError> {
    list(&state, query, state.handle.vms(), |vm| &vm.owner).await
}

/// All networks
#[utoipa::path(get, path = "/v1/networks", tag = "state",
    params(("owner" = Option<String>, Query, description = "only those with this label")),
    responses((status = 200, body = Vec<NetworkView>), (status = 400, body = ErrorBody)))]
pub async fn networks(State(state): State<AppState>, query: Filtered) -> Result<Response, ApiError> {
    list(&state, query, state.handle.networks(), |network| &network.owner).await
}

/// The forwarding database: the port of each station
///
/// Sent in chunks, as it may be long, to few clients at a time.
#[utoipa::path(get, path = "/v1/fdb", tag = "state", responses((status = 200, body = Vec<StationView>)))]
pub async fn fdb(State(state): State<AppState>) -> Result<Response, ApiError> {
    // Held until the last chunk is sent, and until control has collected the entries even if the client disconnects.
    let place = state.limits.long_answer().await.map(Arc::new);
    Ok(long_list(state.handle.fdb(Box::new(place.clone())).await?, place))
}

/// Serialises a list to JSON while it is sent, so that its whole text is never in memory. Holds `place` until the last
/// chunk is sent.
fn long_list<T: Serialize + Send + 'static>(items: Vec<T>, place: Option<Arc<OwnedSemaphorePermit>>) -> Response {
    if items.len() <= PIECE {
        return Json(items).into_response();
    }
    let begun = (items.into_iter(), Some(b'['), place);
    let chunks = stream::unfold(begun, async |(mut items, open, place)| {
        // Text before the next item: bracket or comma. `None` after the end.
        let mut before = open?;
        let mut piece = Vec::new();
        for item in items.by_ref().take(PIECE) {
            piece.push(before);
            // Serialising a view to a vector cannot fail.
            let _ = serde_json::to_writer(&mut piece, &item);
            before = b',';
        }
        let more = items.len() > 0;
        if !more {
            piece.push(b']');
        }
        Some((Ok::<_, Infallible>(Bytes::from(piece)), (items, more.then_some(before), place)))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(chunks)).into_response()
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
    let text = exposition::render(ports, vms, networks, workers, drops, uplinks, contained);
    Ok(([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], text).into_response())
}
