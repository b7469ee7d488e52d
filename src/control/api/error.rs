//! Errors of the API.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::control::api::handle::ShuttingDown;
use crate::control::config::{self, ConfigErrors};
use crate::control::desired::change::{ChangeError, ErrorKind};

/// Why a request was refused. It changed nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// Kind, for programs.
    pub kind: &'static str,
    /// Message, for people.
    pub message: String,
    /// Errors of the body as a configuration.
    pub problems: Vec<ProblemDetail>,
}

/// The body of an error.
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorBody {
    /// The error.
    error: ErrorDetail,
}

/// An error.
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorDetail {
    /// Kind, for programs: `duplicate_port`, `unknown_port`, `port_in_use` …
    #[schema(value_type = String)]
    kind: &'static str,
    /// Message, for people, with the remedy. One line per error.
    message: String,
    /// Errors of a body that is validated as a configuration.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    problems: Vec<ProblemDetail>,
}

/// An error of a body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProblemDetail {
    /// Path, such as `vms[1].ports[0].mac_address`; empty for the whole body.
    key: String,
    /// The value, shortened if long.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// Message, with the remedy.
    message: String,
    /// Kind, for programs: `bad_value`, `missing`, `unknown_key` …
    #[schema(value_type = String)]
    kind: &'static str,
}

impl ApiError {
    /// An error with this status.
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, kind, message: message.into(), problems: Vec::new() }
    }

    /// An invalid request.
    pub fn wrong(kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, kind, message)
    }

    /// An unknown object.
    pub fn unknown(kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, kind, message)
    }

    /// A method that the path does not support.
    pub fn method(method: &Method, path: &str) -> ApiError {
        let message = format!("{path} does not take {method}");
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    /// Too many requests; retry later.
    pub fn too_many(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", message)
    }
}

impl From<ShuttingDown> for ApiError {
    fn from(closing: ShuttingDown) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", closing.to_string())
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> ApiError {
        let status = match error.category {
            ErrorKind::Request => StatusCode::BAD_REQUEST,
            ErrorKind::Unknown => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Outdated => StatusCode::PRECONDITION_FAILED,
            ErrorKind::Switch => StatusCode::SERVICE_UNAVAILABLE,
        };
        ApiError::new(status, error.kind, error.message)
    }
}

impl From<ConfigErrors> for ApiError {
    fn from(errors: ConfigErrors) -> ApiError {
        let view = |problem: &config::ConfigError| ProblemDetail {
            key: problem.key.clone(),
            value: problem.value.clone(),
            message: problem.message.clone(),
            kind: problem.kind,
        };
        let problems = errors.errors().iter().map(view).collect();
        ApiError { problems, ..ApiError::wrong(errors.kind(), errors.to_string()) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let ApiError { status, kind, message, problems } = self;
        let mut response = (status, Json(ErrorBody { error: ErrorDetail { kind, message, problems } })).into_response();
        if status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
