//! The page of the CNI plugin: its keys are those of the plugin, and its network configurations are accepted by it.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use vifswitch::cli;

use super::{Page, Wrong, codes, pages};

#[test]
fn each_key_of_a_network_configuration_is_documented_and_no_other() {
    let rows = Page::named("docs/integrations/cni.md").table("Network configuration");
    let documented: BTreeSet<String> = rows.iter().map(|row| codes(&row[0]).concat()).collect();
    assert_eq!(documented, cli::cni_keys().iter().map(ToString::to_string).collect());
}

/// What the plugin says of a configuration. No switch listens: one that is accepted is told that.
fn status_of(config: &Value) -> Value {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vifswitch"));
    let mut child = child.env("CNI_COMMAND", "STATUS").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn network_configurations_are_accepted() {
    let mut wrong = Wrong::default();
    let mut seen = 0;
    for block in pages().iter().flat_map(Page::blocks) {
        // those in YAML are indented
        let text = match block.info.as_str() {
            "json,cni" => block.text.clone(),
            "yaml" if block.text.contains("  config: |\n") => {
                let config = block.text.split("  config: |\n").nth(1).unwrap();
                config.lines().take_while(|line| line.starts_with("    ")).collect::<Vec<_>>().join("\n")
            }
            _ => continue,
        };
        let list: Value = text.parse().unwrap_or_else(|e| panic!("{}: {e}", block.at));
        let plugins = list["plugins"].as_array().cloned().unwrap_or_else(|| vec![list.clone()]);
        for mut plugin in plugins.into_iter().filter(|plugin| plugin["type"] == "vifswitch") {
            seen += 1;
            // STATUS exists since 1.1.0
            assert!(list["cniVersion"].is_string() && list["name"].is_string(), "{}", block.at);
            (plugin["cniVersion"], plugin["name"]) = (json!("1.1.0"), list["name"].clone());
            plugin["socket"] = json!("/nowhere/api.sock");
            let answer = status_of(&plugin);
            if answer["code"] != 50 {
                wrong.add(&block.at, answer);
            }
        }
    }
    assert!(seen >= 4, "only {seen} blocks are network configurations");
    wrong.end();
}
