//! Text of a configuration: TOML, or JSON if it begins with `{`. What is accepted, and written and read again, is the same
//! configuration; a switch can compile it, and nothing changes between the two.

use vifswitch::control::compile::plan::plan;
use vifswitch::control::config::{Config, parse_json, parse_toml};
use vifswitch::control::desired::diff::describe_changes;

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parsed = if text.starts_with('{') { parse_json(text, "input") } else { parse_toml(text, "input") };
    match parsed {
        Ok(config) => check(&config),
        Err(errors) => {
            assert!(!errors.errors().is_empty() && !errors.to_string().is_empty() && !errors.kind().is_empty());
        }
    }
}

/// Checks what holds for each valid configuration.
pub fn check(config: &Config) {
    let _ = config.lint();
    let written = serde_json::to_string(&config.to_raw()).unwrap();
    let again = parse_json(&written, "written").unwrap_or_else(|errors| panic!("{written}: {errors}"));
    assert_eq!(&again, config, "{written}");
    assert!(plan(config, &again).is_empty(), "steps to the same configuration: {written}");
    assert!(describe_changes(config, &again).is_empty(), "changes to the same configuration: {written}");
}
