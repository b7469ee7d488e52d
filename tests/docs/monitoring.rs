//! The alert rules and the dashboard name metrics and labels that exist, and each rule has a test.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use vifswitch::switch::DropReason;

use crate::{metrics, root};

fn text(name: &str) -> String {
    fs::read_to_string(root().join("docs/monitoring").join(name)).unwrap()
}

/// Names of metrics in a text, without those suffixes of histograms.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.starts_with("vifswitch_"));
    names.map(|name| name.strip_suffix("_bucket").unwrap_or(name).to_owned()).collect()
}

#[test]
fn rules_and_dashboard_name_metrics_that_exist() {
    let metrics = metrics();
    for name in ["alerts.yaml", "alerts_test.yaml", "dashboard.json"] {
        let named = named(&text(name));
        assert!(named.len() > 5, "{name}: {named:?}");
        let unknown: Vec<_> = named.difference(&metrics).collect();
        assert!(unknown.is_empty(), "{name} names what no switch has: {unknown:?}");
    }
}

#[test]
fn each_rule_has_a_test() {
    let after = |text: &str, key: &str| -> BTreeSet<String> {
        let names = text.split(key).skip(1).map(|rest| rest.split(['\n', ' ', '}']).next().unwrap().to_owned());
        names.collect()
    };
    let (rules, tests) = (after(&text("alerts.yaml"), "alert: "), after(&text("alerts_test.yaml"), "alertname: "));
    assert!(rules.len() > 10, "{rules:?}");
    assert_eq!(rules, tests);
    for reason in after(&text("alerts_test.yaml"), "reason=\"") {
        let reason = reason.split('"').next().unwrap();
        assert!(DropReason::ALL.iter().any(|known| known.name() == reason), "{reason}");
    }
}

#[test]
fn the_dashboard_has_panels_with_queries() {
    let dashboard: Value = text("dashboard.json").parse().unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            assert!(target["expr"].as_str().is_some_and(|expr| expr.contains("vifswitch_")), "{panel}");
        }
    }
}
