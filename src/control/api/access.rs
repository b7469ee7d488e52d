//! Who may do what at a listener: listeners for reads, and names by which browsers may reach one.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

/// Methods that change nothing.
pub fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Middleware: refuses what may change something. The state says where changes are made.
pub async fn reads_only(State(changes): State<Arc<str>>, request: Request, next: Next) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    if is_read(method) {
        return next.run(request).await;
    }
    let message = format!("{method} {path}: this listener is for reads; send changes to {changes}");
    let mut refused = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "read_only", message).into_response();
    refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    refused
}

/// Middleware: refuses requests to names that are none of the switch. This keeps out web pages whose name an attacker
/// makes resolve to this address (DNS rebinding), to read with the browser of someone who can reach it.
pub async fn known_host(
    State(names): State<Arc<[String]>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let hosts = request.headers().get_all(header::HOST).into_iter();
    let mut called: Vec<&str> = hosts.map(|host| host.to_str().unwrap_or_default()).collect();
    called.extend(request.uri().authority().map(Authority::as_str));
    if called.is_empty() {
        return Err(ApiError::wrong("bad_header", "the header Host is missing; name the switch in it"));
    }
    if let Some(host) = called.into_iter().find(|host| !is_ours(host, &names)) {
        let message = format!(
            "Host: {host:?} is no name of this switch; use its IP address or localhost, or list the name in pages_hosts of \
             [switch]"
        );
        return Err(ApiError::new(StatusCode::FORBIDDEN, "unknown_host", message));
    }
    Ok(next.run(request).await)
}

/// Whether a `Host` names the switch: by any IP address, as no one can make an address resolve to another one.
fn is_ours(host: &str, names: &[String]) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_named = |known: &str| known.strip_suffix('.').unwrap_or(known).eq_ignore_ascii_case(name);
    !host.contains('@')
        && (address.parse::<IpAddr>().is_ok() || is_named("localhost") || names.iter().any(|known| is_named(known)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_ours_by_address_or_listed_name() {
        let names = ["Switch-1.example.net".to_owned(), "plain".to_owned()];
        let ours = [
            "127.0.0.1",
            "127.0.0.1:9478",
            "10.5.0.1:80",
            "[::1]",
            "[::1]:9478",
            "localhost",
            "LOCALHOST:1",
            "localhost.",
            "switch-1.example.net",
            "SWITCH-1.example.net:9478",
            "switch-1.example.net.",
            "plain:1",
        ];
        let others = [
            "",
            "evil.example",
            "evil.example:9478",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "evil-localhost",
            "switch-1.example.net.evil.example",
            "1.example.net",
            "user@127.0.0.1",
            "127.0.0.1@evil.example",
            "[::1",
            "a b",
            "127.1",
            "0x7f000001",
            "2130706433",
            "localhost..",
        ];
        ours.iter().for_each(|host| assert!(is_ours(host, &names), "{host:?}"));
        others.iter().for_each(|host| assert!(!is_ours(host, &names), "{host:?}"));
    }
}
