//! Routes about the switch as a whole. They answer at once, also while it starts or is busy.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::AppState;
use crate::control::health::SwitchStatus;

/// The switch as a whole: phase, generations, and whether changes can be stored
#[utoipa::path(get, path = "/v1/status", tag = "state", responses((status = 200, body = SwitchStatus)))]
pub async fn status(State(state): State<AppState>) -> Json<SwitchStatus> {
    Json(state.handle.health().status())
}

/// Whether the process answers
#[utoipa::path(get, path = "/livez", tag = "state", responses((status = 200, body = String)))]
pub async fn live() -> &'static str {
    "ok\n"
}

/// Whether the initial configuration is applied
#[utoipa::path(get, path = "/readyz", tag = "state", responses((status = 200, body = String), (status = 503, body = String)))]
pub async fn ready(State(state): State<AppState>) -> (StatusCode, &'static str) {
    let status = state.handle.health().status();
    match (status.ready, status.starting) {
        (true, _) => (StatusCode::OK, "ok\n"),
        (false, true) => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    }
}
