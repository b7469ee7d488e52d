//! The last generations of the desired configuration: listed, shown, and restored.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::ToSchema;

use super::AppState;
use super::body::{REQUEST, RequestBody, table};
use super::conditions::{ChangeAnswer, Changed, Conditions, ConfigQuery, etag};
use super::error::{ApiError, ErrorBody};
use super::read_routes::Name;
use crate::control::api::handle::Restored;
use crate::control::config::raw;
use crate::control::desired::change::Change;
use crate::control::state::history::{GenerationView, shown};

/// The last 32 generations of the desired configuration, the newest first
///
/// Each with its author and the differences to the one before, at most 100 of them.
#[utoipa::path(get, path = "/v1/history", tag = "configuration", responses((status = 200, body = Vec<GenerationView>)))]
pub async fn history(State(state): State<AppState>) -> Result<Json<Vec<GenerationView>>, ApiError> {
    Ok(Json(state.handle.history().await?))
}

/// The configuration of a generation, without `switch` and without the keys that have their defaults
#[utoipa::path(get, path = "/v1/history/{id}", tag = "configuration",
    params(("id" = u64, Path, description = "the generation")),
    responses((status = 200, body = raw::Config), (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn generation(State(state): State<AppState>, id: Name) -> Result<Response, ApiError> {
    let Some(generation) = id.ok().and_then(|Path(id)| id.parse().ok()) else {
        return Err(ApiError::unknown("unknown_generation", "a generation is a number; `GET /v1/history` lists them"));
    };
    let hold = Box::new(state.limits.change()?);
    let Restored { config, .. } = state.handle.restored(Some(generation), hold).await??;
    Ok((etag(generation), Json(shown(&config))).into_response())
}

/// Generation to restore.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Its number; by default, that of the one before the newest, if no other change comes between.
    generation: Option<u64>,
}

/// Makes the configuration that of an earlier generation, as a new generation
#[utoipa::path(post, path = "/v1/rollback", tag = "configuration", request_body = Option<RollbackRequest>,
    params(("confirm" = Option<u64>, Query, description = "seconds, 1 to 86400"),
        ("dry_run" = Option<bool>, Query, description = "change nothing"),
        ("wait" = Option<u64>, Query, description = "seconds to wait until the ports concerned are ACTIVE, 1 to 300")),
    responses((status = 200, body = ChangeAnswer), (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn rollback(
    State(state): State<AppState>,
    query: Result<Query<ConfigQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Changed, ApiError> {
    let (conditions, owner) = Conditions::of_config(query, &headers)?;
    if owner.is_some() {
        return Err(ApiError::wrong("bad_query", "a rollback is of the whole configuration; omit `owner`"));
    }
    let text = RequestBody::receive(&headers, body, REQUEST, &state.limits).await?;
    let (RollbackRequest { generation: wanted }, room) = text.read(rollback_of).await?;
    let hold = Box::new(state.limits.change()?);
    let Restored { generation, newest, config } = state.handle.restored(wanted, hold).await??;
    let conditions = if wanted.is_none() { conditions.at(newest) } else { conditions };
    conditions.make(&state, Change::Rollback { generation, config }, room).await
}

fn rollback_of(text: &str) -> Result<RollbackRequest, ApiError> {
    if text.is_empty() {
        return Ok(RollbackRequest::default());
    }
    table(text)
}
