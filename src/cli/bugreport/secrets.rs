//! Which values are secret, and texts without them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// In place of a secret value.
const LEFT_OUT: &str = "(left out)";

/// Least length of a value that is looked for in other texts: a shorter one would be found by chance.
const SHORTEST: usize = 6;

/// Endings of names of keys whose values are secret, in lower case.
const ENDINGS: [&str; 4] = ["_key", "password", "secret", "token"];

/// Secret values that have been found, and their keys.
#[derive(Debug, Default)]
pub(super) struct Secrets(BTreeMap<String, String>, BTreeSet<String>);

impl Secrets {
    /// The JSON text, indented, without values of secret keys, which are remembered.
    pub fn remove_from_json(&mut self, text: &[u8]) -> Result<Vec<u8>, String> {
        let mut value: Value = serde_json::from_slice(text).map_err(|_| "it is no valid JSON".to_owned())?;
        self.remove(&mut value, "");
        Ok(format!("{value:#}\n").into_bytes())
    }

    fn remove(&mut self, value: &mut Value, at: &str) {
        match value {
            Value::Object(table) => {
                for (key, value) in table {
                    let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                    let is_secret = ENDINGS.iter().any(|ending| key.to_lowercase().ends_with(ending));
                    if is_secret && !value.is_null() {
                        self.1.insert(at.clone());
                        if let Value::String(secret) = &*value {
                            self.0.insert(secret.clone(), at);
                        }
                        *value = LEFT_OUT.into();
                    } else {
                        self.remove(value, &at);
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.remove(item, at)),
            _ => {}
        }
    }

    /// Removes secret values that have been found from a text.
    pub fn remove_from_text(&self, text: &mut Vec<u8>) {
        if self.0.keys().any(|secret| secret.len() >= SHORTEST) {
            *text = self.without(&String::from_utf8_lossy(text)).into_bytes();
        }
    }

    /// The text without secret values that have been found.
    pub fn without(&self, text: &str) -> String {
        let long = self.0.keys().filter(|secret| secret.len() >= SHORTEST);
        // As they are, and as they stand in a JSON string.
        let forms = long.flat_map(|secret| [secret.clone(), Value::from(secret.as_str()).to_string()]);
        forms.fold(text.to_owned(), |text, secret| text.replace(secret.trim_matches('"'), LEFT_OUT))
    }

    /// Keys whose values have been removed.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.1.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_secret_keys_are_removed_at_any_depth() {
        let mut secrets = Secrets::default();
        let text = br#"{"a": [{"probe_key": "aaaaaaaa"}, {"Password": 7}], "token": {"x": "bbbbbbbb"}, "key": "c", "api_token": null}"#;
        let cleaned: Value = serde_json::from_slice(&secrets.remove_from_json(text).unwrap()).unwrap();
        let expected = serde_json::json!({"a": [{"probe_key": LEFT_OUT}, {"Password": LEFT_OUT}], "token": LEFT_OUT, "key": "c", "api_token": null});
        assert_eq!(cleaned, expected);
        assert_eq!(secrets.keys().collect::<Vec<_>>(), ["a.Password", "a.probe_key", "token"]);
        assert_eq!(secrets.without("say aaaaaaaa"), format!("say {LEFT_OUT}"));
    }

    #[test]
    fn secrets_with_escapes_are_found_in_json_and_short_ones_are_not_looked_for() {
        let mut secrets = Secrets::default();
        secrets.remove_from_json(br#"{"probe_key": "tab\there", "x_key": "a"}"#).unwrap();
        assert_eq!(secrets.without("a tab\there"), format!("a {LEFT_OUT}"));
        assert_eq!(secrets.without(r#"{"text": "tab\there"}"#), format!(r#"{{"text": "{LEFT_OUT}"}}"#));
    }
}
