//! Who may do what at a listener: listeners for reads, users who may change the switch, and names by which browsers may
//! reach a listener.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::{Authority, PathAndQuery};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::info;

use super::error::ApiError;
use super::peer::{Peer, PeerGroups};
use crate::control::author::Author;
use crate::control::config::Writers;

/// Maximum length of a path and query in the log.
const LONGEST_PATH: usize = 512;

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

/// Middleware: refuses changes by users who are not listed, root apart.
pub async fn writers_only(
    State(writers): State<Arc<Writers>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let peer = request.extensions().get::<Option<Peer>>().copied().flatten();
    let groups = request.extensions().get::<PeerGroups>().cloned().unwrap_or_default();
    if is_read(request.method()) || peer.is_some_and(|peer| is_writer(&writers, peer, &groups)) {
        return Ok(next.run(request).await);
    }
    let user = peer.map_or_else(|| "an unknown user".to_owned(), |peer| format!("uid {}", peer.uid));
    let message = format!(
        "{user} may not change the switch; ask as root, or add its uid to uids, or one of its groups to gids, of \
         api_writers in [switch]"
    );
    Err(ApiError::new(StatusCode::FORBIDDEN, "not_a_writer", message))
}

fn is_writer(Writers { uids, gids }: &Writers, peer: Peer, groups: &PeerGroups) -> bool {
    peer.uid == 0 || uids.contains(&peer.uid) || gids.contains(&peer.gid) || groups.0.iter().any(|id| gids.contains(id))
}

/// Middleware: logs changes with the user and process that asked for them, and what they were answered.
pub async fn log_changes(request: Request, next: Next) -> Response {
    if is_read(request.method()) {
        return next.run(request).await;
    }
    let mut change = Change::of(&request);
    let response = next.run(request).await;
    change.status = Some(response.status().as_u16());
    response
}

/// A request for a change, logged when it is answered, or its client has disconnected.
struct Change {
    text: String,
    by: Option<Author>,
    status: Option<u16>,
}

impl Change {
    fn of(request: &Request) -> Change {
        let path = request.uri().path_and_query().map_or("", PathAndQuery::as_str);
        // Beyond this length it says no more about what is changed. It is ASCII.
        let path = path.get(..LONGEST_PATH).unwrap_or(path);
        Change { text: format!("{} {path}", request.method()), by: Author::current(), status: None }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let Change { text, by, status } = self;
        let (uid, pid) = by.as_ref().map_or((None, None), |by| (by.uid, by.pid));
        let request_id = by.as_ref().map(|by| by.request_id.as_str());
        info!(uid, pid, request_id, status, "{text}");
    }
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
    fn root_and_listed_users_and_groups_are_writers() {
        let writers = Writers { uids: vec![1000, 1001], gids: vec![7, 8] };
        let is_writer =
            |uid, gid, groups: &[u32]| is_writer(&writers, Peer { uid, gid, pid: None }, &PeerGroups(groups.into()));
        assert!(is_writer(0, 0, &[]) && is_writer(1001, 0, &[]) && is_writer(5, 7, &[]) && is_writer(5, 5, &[1, 8, 2]));
        assert!(!is_writer(7, 0, &[]) && !is_writer(5, 1000, &[1000]) && !is_writer(5, 0, &[0, 9]));
        let none = Writers::default();
        assert!(!super::is_writer(&none, Peer { uid: 5, gid: 0, pid: None }, &PeerGroups(Arc::new([0]))));
        assert!(super::is_writer(&none, Peer { uid: 0, gid: 0, pid: None }, &PeerGroups::default()));
    }

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
