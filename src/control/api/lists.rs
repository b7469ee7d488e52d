//! Lists: filters, fields and pages in the query, the list as JSON, and the link to the next page.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::client::escaped;
use super::conditions::query_of;
use super::error::ApiError;
use super::fields::Fields;
use super::responses::{PortView, StationKind, StationView, Status};
use super::selection::{Page, PortSelection, StationKey, StationSelection};

/// Items of a long list per chunk.
const PIECE: usize = 512;

/// Maximum items of a page.
const LONGEST_PAGE: usize = 10_000;

/// Items of a page that has no limit in its query.
const PAGE: usize = 1000;

/// A query, as axum extracts it.
pub type Extracted<T> = Result<Query<T>, QueryRejection>;

/// Query of a list of desired state.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    owner: Option<String>,
    fields: Option<String>,
    limit: Option<String>,
    after: Option<String>,
}

/// Query of the list of ports.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortQuery {
    owner: Option<String>,
    network_id: Option<String>,
    device_id: Option<String>,
    status: Option<String>,
    fields: Option<String>,
    limit: Option<String>,
    after: Option<String>,
}

/// Query of the FDB.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StationQuery {
    network_id: Option<String>,
    port_id: Option<String>,
    mac_address: Option<String>,
    kind: Option<String>,
    fields: Option<String>,
    limit: Option<String>,
    after: Option<String>,
}

/// Query of one item.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemQuery {
    fields: Option<String>,
}

impl ItemQuery {
    /// The fields wanted of an item.
    pub fn fields<T: utoipa::ToSchema>(query: Extracted<ItemQuery>) -> Result<Fields, ApiError> {
        Fields::of::<T>(query_of(query)?.fields.as_deref())
    }
}

/// What a list shows, and how its next page is asked for.
#[derive(Debug)]
pub struct List<K> {
    path: &'static str,
    /// The query of each page, without `after`.
    query: String,
    fields: Fields,
    /// The page wanted; `None`: all items.
    pub page: Option<Page<K>>,
}

impl List<String> {
    /// A list of desired state with items of type `T`; also the label wanted.
    pub fn of<T: utoipa::ToSchema>(
        path: &'static str,
        query: Extracted<ListQuery>,
    ) -> Result<(List<String>, Option<String>), ApiError> {
        let ListQuery { owner, fields, limit, after } = query_of(query)?;
        let mut list = List::new(path, Fields::of::<T>(fields.as_deref())?, limit.as_deref(), after)?;
        list.repeat(&[("owner", &owner), ("fields", &fields), ("limit", &limit)]);
        Ok((list, owner))
    }

    /// The list of ports, and which.
    pub fn of_ports(query: Extracted<PortQuery>) -> Result<(List<String>, PortSelection), ApiError> {
        let PortQuery { owner, network_id, device_id, status, fields, limit, after } = query_of(query)?;
        let wanted = status.as_deref().map(|name| {
            let names = Status::ALL.map(Status::name).join(", ");
            Status::named(name).ok_or_else(|| ApiError::query_value("status", name, &format!("one of {names}")))
        });
        let mut list = List::new("/v1/ports", Fields::of::<PortView>(fields.as_deref())?, limit.as_deref(), after)?;
        list.repeat(&[
            ("owner", &owner),
            ("network_id", &network_id),
            ("device_id", &device_id),
            ("status", &status),
            ("fields", &fields),
            ("limit", &limit),
        ]);
        let page = list.page.clone();
        Ok((list, PortSelection { owner, network: network_id, vm: device_id, status: wanted.transpose()?, page }))
    }
}

impl List<StationKey> {
    /// The FDB, and which entries.
    pub fn of_stations(query: Extracted<StationQuery>) -> Result<(List<StationKey>, StationSelection), ApiError> {
        let StationQuery { network_id, port_id, mac_address, kind, fields, limit, after } = query_of(query)?;
        let mac = mac_address.as_deref().map(|text| {
            text.parse().map_err(|_| ApiError::query_value("mac_address", text, "an address such as 02:00:00:00:01:0a"))
        });
        let of_kind = kind.as_deref().map(|name| {
            let names = StationKind::ALL.map(StationKind::name).join(", ");
            StationKind::named(name).ok_or_else(|| ApiError::query_value("kind", name, &format!("one of {names}")))
        });
        let after = after.map(|text| {
            text.parse().map_err(|()| ApiError::query_value("after", &text, "the value in the Link of the page before"))
        });
        let fields_wanted = Fields::of::<StationView>(fields.as_deref())?;
        let mut list = List::new("/v1/fdb", fields_wanted, limit.as_deref(), after.transpose()?)?;
        list.repeat(&[
            ("network_id", &network_id),
            ("port_id", &port_id),
            ("mac_address", &mac_address),
            ("kind", &kind),
            ("fields", &fields),
            ("limit", &limit),
        ]);
        let page = list.page.clone();
        let (mac, kind) = (mac.transpose()?, of_kind.transpose()?);
        Ok((list, StationSelection { network: network_id, port: port_id, mac, kind, page }))
    }
}

impl<K> List<K> {
    fn new(path: &'static str, fields: Fields, limit: Option<&str>, after: Option<K>) -> Result<List<K>, ApiError> {
        let wrong = |text| ApiError::query_value("limit", text, &format!("a whole number, 1 to {LONGEST_PAGE}"));
        let limit = match limit {
            Some(text) => match text.parse() {
                Ok(limit) if (1..=LONGEST_PAGE).contains(&limit) => Some(limit),
                _ => return Err(wrong(text)),
            },
            None => after.is_some().then_some(PAGE),
        };
        let page = limit.map(|limit| Page { limit, after });
        Ok(List { path, query: String::new(), fields, page })
    }

    /// Repeats these keys in the link to the next page.
    fn repeat(&mut self, keys: &[(&str, &Option<String>)]) {
        for (key, value) in keys {
            if let Some(value) = value {
                // Writing to a string cannot fail.
                let _ = write!(self.query, "{key}={}&", escaped(value));
            }
        }
    }

    /// The list as a response. `items`: up to one more than the page has. `place` is held until the last chunk is sent.
    pub fn response<T: Serialize + Send + 'static>(
        self,
        mut items: Vec<T>,
        key: impl Fn(&T) -> Option<String>,
        place: Option<Arc<OwnedSemaphorePermit>>,
    ) -> Response {
        let mut next = None;
        if let Some(page) = self.page.filter(|page| items.len() > page.limit) {
            items.truncate(page.limit);
            next = items.last().and_then(key);
        }
        let link = next.map(|after| format!("<{}?{}after={}>; rel=\"next\"", self.path, self.query, escaped(&after)));
        let mut response = long_list(items, self.fields, place);
        // Escaped text is valid in a header.
        if let Some(link) = link.and_then(|link| HeaderValue::from_str(&link).ok()) {
            response.headers_mut().insert(header::LINK, link);
        }
        response
    }
}

/// Serialises a list to JSON while it is sent, so that its whole text is never in memory. Holds `place` until the last
/// chunk is sent.
fn long_list<T: Serialize + Send + 'static>(
    items: Vec<T>,
    fields: Fields,
    place: Option<Arc<OwnedSemaphorePermit>>,
) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    if items.is_empty() {
        return (json, "[]").into_response();
    }
    // Serialising a view to a vector cannot fail.
    let write = move |piece: &mut Vec<u8>, item: &T| match fields.is_partial() {
        true => drop(serde_json::to_writer(piece, &fields.of_item(item))),
        false => drop(serde_json::to_writer(piece, item)),
    };
    if items.len() <= PIECE {
        let mut text = Vec::new();
        for (index, item) in items.iter().enumerate() {
            text.push(if index == 0 { b'[' } else { b',' });
            write(&mut text, item);
        }
        text.push(b']');
        return (json, text).into_response();
    }
    let begun = (items.into_iter(), Some(b'['), place, write);
    let chunks = stream::unfold(begun, async |(mut items, open, place, write)| {
        // Text before the next item: bracket or comma. `None` after the end.
        let mut before = open?;
        let mut piece = Vec::new();
        for item in items.by_ref().take(PIECE) {
            piece.push(before);
            write(&mut piece, &item);
            before = b',';
        }
        let more = items.len() > 0;
        if !more {
            piece.push(b']');
        }
        Some((Ok::<_, Infallible>(Bytes::from(piece)), (items, more.then_some(before), place, write)))
    });
    (json, Body::from_stream(chunks)).into_response()
}
