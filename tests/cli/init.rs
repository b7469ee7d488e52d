//! `vifswitch init` on a real host: it proposes what nothing uses, says why it does not propose the rest, and `check` accepts the
//! file. Needs root; makes its own namespaces.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use support::host::Namespace;
use tempfile::TempDir;
use vifswitch::control::config::{Config, parse_toml};

/// Runs the program in a namespace.
fn in_namespace(namespace: &Namespace, arguments: &[&str]) -> Output {
    namespace.run_in(|| Command::new(support::host::program()).args(arguments).output().unwrap())
}

/// The configuration with all settings in force.
fn enabled(text: &str) -> Config {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
        _ => format!("{line}\n"),
    };
    let all: String = text.lines().map(line).collect();
    parse_toml(&all, "init").unwrap_or_else(|errors| panic!("{errors}\n{all}"))
}

/// A host with a netdev of each sort.
fn host() -> Option<Namespace> {
    let host = Namespace::new()?;
    for arguments in [
        "link add used type veth peer name used1",
        "addr add 10.8.0.1/24 dev used",
        "link set dev used up",
        "link add member type veth peer name member1",
        "link add br0 type bridge",
        "link set dev member master br0",
        "addr add 10.8.1.1/24 dev br0",
        "tuntap add vm-tap mode tap",
    ] {
        host.ip(arguments);
    }
    Some(host)
}

#[test]
fn what_nothing_uses_is_proposed_and_the_rest_is_explained() {
    let (Some(host), Some(guest)) = (host(), Namespace::new()) else { return };
    guest.ip("link add eth0 type veth peer name other");
    let before = host.links();
    let output = in_namespace(&host, &["init"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(host.links(), before, "it changes nothing");
    for (device, reason) in [
        ("used", "it has addresses of this host"),
        ("br0", "it has addresses of this host"),
        ("member", "it belongs to a bridge or a bond"),
    ] {
        assert!(text.contains(&format!("# {device}: not proposed, because {reason}.\n")), "{device}: {text}");
    }
    let nothing = parse_toml(&text, "init").unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    assert!(nothing.vms.is_empty() && nothing.uplinks.is_empty(), "nothing is taken over: {text}");
    let all = enabled(&text);
    let mut uplinks: Vec<&str> = all.uplinks.iter().map(|uplink| uplink.device.name()).collect();
    uplinks.sort_unstable();
    assert_eq!(uplinks, ["member1", "used1"], "{text}");
    let ports: Vec<(Option<&str>, &str)> =
        all.ports().filter_map(|(_, port)| port.device()).map(|device| (device.netns(), device.name())).collect();
    assert!(ports.contains(&(None, "vm-tap")), "{ports:?}");
    // The namespace has an eth0 already.
    assert!(ports.contains(&(Some(guest.0.as_str()), "eth1")), "{ports:?}");
    assert!(text.contains(&format!("# Namespace {} has ", guest.0)), "{text}");
}

#[test]
fn the_file_is_for_owner_and_group_and_no_file_is_overwritten() {
    let Some(host) = host() else { return };
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("vifswitch.toml");
    let name = path.to_str().unwrap();
    // A umask that takes nothing away.
    let write = format!("umask 0; exec {} init {name}", support::host::program());
    let output = host.run_in(|| Command::new("sh").args(["-c", &write]).output().unwrap());
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success() && said.starts_with(&format!("{name}: written; `vifswitch check")), "{output:?}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
    let text = fs::read_to_string(&path).unwrap();
    let output = in_namespace(&host, &["check", name]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() || !said.contains(name), "the file is valid: {output:?}");
    fs::write(&path, "# edited\n").unwrap();
    let output = in_namespace(&host, &["init", name]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains(name) && said.contains("exists already"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "# edited\n");
    // To standard output it is the same. The namespaces of other tests may have changed, which follow the networks.
    let printed = String::from_utf8(in_namespace(&host, &["init", "-"]).stdout).unwrap();
    let settings = |text: &str| {
        let (switch, _) = text.split_once("[[networks]]").unwrap();
        switch.lines().filter(|line| !line.starts_with("# ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(settings(&printed), settings(&text));
}
