//! Routes about the log: its format and levels.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::body::{REQUEST, RequestBody, table};
use super::error::{ApiError, ErrorBody};
use super::write_routes::BODY;
use crate::control::config::kind;
use crate::control::log_settings::{LogFormat, LogLevel, LogSettings};
use crate::telemetry::{LOG_LINES_LEFT_OUT, LOG_LINES_LOST};

/// The log of the switch.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct LogView {
    /// Level of all modules, and of single ones: `info,vifswitch::control::api=debug`.
    pub level: String,
    /// Format of its lines.
    pub format: LogFormat,
    /// Lines lost because standard error was not read in time or failed.
    pub lines_lost: u64,
    /// Lines left out because their source had more than its limit.
    pub lines_left_out: u64,
}

impl LogView {
    fn of(log: &LogSettings) -> LogView {
        LogView {
            level: log.level().to_string(),
            format: log.format(),
            lines_lost: LOG_LINES_LOST.load(Ordering::Relaxed),
            lines_left_out: LOG_LINES_LEFT_OUT.load(Ordering::Relaxed),
        }
    }
}

/// Change of the log.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LogRequest {
    /// Level of all modules, and of single ones: `info,vifswitch::control::api=debug`.
    level: String,
}

/// The log: its levels and format, and how many lines it lacks
#[utoipa::path(get, path = "/v1/log", tag = "state", responses((status = 200, body = LogView)))]
pub async fn log(State(state): State<AppState>) -> Json<LogView> {
    Json(LogView::of(state.handle.log()))
}

/// Changes the levels of the log, until the switch stops
#[utoipa::path(put, path = "/v1/log", tag = "state", request_body = LogRequest,
    responses((status = 200, body = LogView), (status = "4XX", body = ErrorBody), (status = 503, body = ErrorBody)))]
pub async fn set_log(State(state): State<AppState>, headers: HeaderMap, body: Body) -> Result<Json<LogView>, ApiError> {
    let text = RequestBody::receive(&headers, body, REQUEST, &state.limits).await?;
    let (level, _room) = text.read(level_of).await?;
    let log = state.handle.log();
    log.set_level(level).map_err(|why| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", why))?;
    Ok(Json(LogView::of(log)))
}

fn level_of(text: &str) -> Result<LogLevel, ApiError> {
    let LogRequest { level } = table(text)?;
    level.parse().map_err(|why| ApiError::wrong(kind::BAD_VALUE, format!("{BODY}: level: {why}")))
}
