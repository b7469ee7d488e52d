//! The Debian package: its parts agree with each other. `scripts/package --test` builds and installs it.

use std::fs;
use std::path::{Path, PathBuf};

use vifswitch::control::config::parse_toml;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

/// The package's table in Cargo.toml.
fn table() -> toml::Table {
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    manifest["package"]["metadata"]["deb"].as_table().unwrap().clone()
}

/// Value of a key of the unit.
fn of_unit(key: &str) -> String {
    let unit = text("scripts/vifswitch.service");
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.next().unwrap_or_else(|| panic!("no {key}= in the unit")).to_owned()
}

/// As installed, and with all settings in force that it suggests.
#[test]
fn the_default_configuration_is_valid() {
    let text = text("scripts/deb/vifswitch.toml");
    let config = parse_toml(&text, "vifswitch.toml").unwrap();
    assert!(config.networks.is_empty() && config.vms.is_empty() && config.uplinks.is_empty());
    let is_setting = |line: &str| line.strip_prefix('#').is_some_and(|rest| rest.starts_with(|c: char| c != ' '));
    let in_force: Vec<&str> =
        text.lines().map(|line| if is_setting(line) { line.strip_prefix('#').unwrap() } else { line }).collect();
    let config = parse_toml(&in_force.join("\n"), "vifswitch.toml").unwrap();
    assert_eq!((config.networks.len(), config.ports().count(), config.switch.metrics.is_some()), (1, 1, true));
}

#[test]
fn unit_user_and_configuration_file_agree() {
    let conffiles = table()["conf-files"].as_array().unwrap().clone();
    let [file] = &conffiles[..] else { panic!("{conffiles:?}") };
    let file = file.as_str().unwrap();
    assert_eq!(of_unit("ExecStart"), format!("/usr/local/bin/vifswitch run --config {file}"));
    let user = of_unit("User");
    assert_eq!(of_unit("Group"), user);
    assert!(text("scripts/deb/sysusers.conf").lines().any(|line| line.starts_with(&format!("u {user} "))));
    let scripts = ["postinst", "prerm", "postrm"].map(|name| text(&format!("scripts/deb/{name}")));
    assert!(scripts.iter().all(|script| script.contains("vifswitch.service")));
    assert!(scripts[0].contains(&format!("config={file}\n")));
    let state = format!("/var/lib/{}", of_unit("StateDirectory"));
    assert!(scripts[2].contains(&format!("{state} ")) && scripts[2].contains(&format!("userdel {user} ")));
}

/// Files of the tree that the package has, exist.
#[test]
fn each_asset_exists() {
    let assets = table()["assets"].as_array().unwrap().clone();
    let sources: Vec<String> = assets.iter().map(|asset| asset[0].as_str().unwrap().to_owned()).collect();
    let in_tree = || sources.iter().filter(|source| !source.starts_with("target/release/"));
    for source in in_tree() {
        let path: PathBuf = root().join(source);
        let found = match source.split_once('*') {
            Some((folder, ending)) => fs::read_dir(root().join(folder))
                .unwrap_or_else(|why| panic!("{source}: {why}"))
                .any(|entry| entry.unwrap().file_name().to_string_lossy().ends_with(ending)),
            None => path.is_file(),
        };
        assert!(found, "{source}");
    }
    assert!(in_tree().count() > 5 && sources.len() > in_tree().count());
}
