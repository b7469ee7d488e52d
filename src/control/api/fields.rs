//! Selection of fields of responses: `fields=a,b`.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;
use utoipa::{PartialSchema, ToSchema};

use super::error::{ApiError, BAD_QUERY};
use crate::control::problem::Problem;

/// Maximum length of a list of fields in bytes: more than all names that any item has.
const LONGEST: usize = 2048;

/// The fields wanted of each item; `None`: all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fields(Option<BTreeSet<String>>);

impl Fields {
    /// Those of the query, which must be fields of `T`.
    pub fn of<T: ToSchema>(query: Option<&str>) -> Result<Fields, ApiError> {
        let Some(text) = query else { return Ok(Fields(None)) };
        if text.len() > LONGEST {
            let message = format!("fields is {} bytes long; use {LONGEST} at most", text.len());
            return Err(ApiError::wrong(BAD_QUERY, message));
        }
        let known = names::<T>();
        let wanted: BTreeSet<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
        if let Some(unknown) = wanted.iter().find(|name| !known.contains(*name)) {
            let all = known.into_iter().collect::<Vec<_>>().join(", ");
            let message = format!("fields: no field {unknown:?}; fields are {all}");
            let problem = Problem::new(BAD_QUERY, message.clone()).at("fields", Some(format!("{unknown:?}")));
            return Err(ApiError::wrong(BAD_QUERY, message).with(problem));
        }
        Ok(Fields(Some(wanted)))
    }

    /// Whether only some fields are wanted.
    pub fn is_partial(&self) -> bool {
        self.0.is_some()
    }

    /// The item with the fields wanted.
    pub fn of_item(&self, item: &impl Serialize) -> Value {
        // Views have text keys only, so that serialising cannot fail.
        let mut value = serde_json::to_value(item).unwrap_or_default();
        if let (Some(wanted), Some(entries)) = (&self.0, value.as_object_mut()) {
            entries.retain(|name, _| wanted.contains(name));
        }
        value
    }
}

/// Names of all fields of `T`, with those of flattened parts.
fn names<T: ToSchema>() -> BTreeSet<String> {
    let mut parts = Vec::new();
    T::schemas(&mut parts);
    let parts: Vec<(String, Value)> =
        parts.into_iter().map(|(name, schema)| (name, serde_json::to_value(schema).unwrap_or_default())).collect();
    let mut found = BTreeSet::new();
    let schema = serde_json::to_value(<T as PartialSchema>::schema()).unwrap_or_default();
    collect(&schema, &parts, &mut found);
    found
}

fn collect(schema: &Value, parts: &[(String, Value)], found: &mut BTreeSet<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        found.extend(properties.keys().cloned());
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        collect(part, parts, found);
    }
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next())
        && let Some((_, part)) = parts.iter().find(|(known, _)| known == name)
    {
        collect(part, parts, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::responses::{NetworkView, PortView, StationView, UplinkView, VmView};

    #[test]
    fn the_names_are_those_of_the_schema() {
        let ports = names::<PortView>();
        for name in ["port_id", "status_code", "device", "rx_frames", "drops", "mac_limit"] {
            assert!(ports.contains(name), "{name} of {ports:?}");
        }
        assert!(!ports.contains("counts") && !ports.contains("kind"), "{ports:?}");
        assert!(names::<UplinkView>().contains("group"));
        assert!(names::<VmView>().contains("drops"));
        assert!(names::<NetworkView>().contains("mtu"));
        assert!(names::<StationView>().contains("age_seconds"));
    }

    #[test]
    fn an_unknown_field_is_refused_with_all_names() {
        let error = Fields::of::<StationView>(Some("mac_address,mac")).unwrap_err();
        assert!(error.message.contains("\"mac\"") && error.message.contains("age_seconds"), "{}", error.message);
        assert!(Fields::of::<StationView>(Some("")).is_err());
        assert!(Fields::of::<StationView>(Some(&"port_id,".repeat(1000))).is_err());
        let fields = Fields::of::<StationView>(Some("kind, port_id")).unwrap();
        let value = fields.of_item(&serde_json::json!({ "kind": 1, "port_id": 2, "age_seconds": 3 }));
        assert_eq!(value, serde_json::json!({ "kind": 1, "port_id": 2 }));
    }
}
