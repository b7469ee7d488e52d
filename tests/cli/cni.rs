//! The CNI plugin as container runtimes execute it, against a running switch: with namespaces for containers, and a shell
//! script for the IPAM plugin. Most need root.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::host::daemon::{Daemon, Vif, config, keeping};
use support::host::{Namespace, await_that, program, run};
use tempfile::TempDir;
use vifswitch::control::api::responses::{NetworkView, PortView, Status};
use vifswitch::sys::routing;

mod lifetime;

/// An IPAM plugin: one directory per address, and as host-local it refuses to allocate twice. `fail` in the directory makes ADD
/// fail, and `hook` is executed by it.
const IPAM: &str = r#"#!/bin/sh
cat >/dev/null
cd "$(dirname "$0")/leases" || exit 1
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
ADD)
    if [ -e ../hook ]; then ../hook; fi
    if [ -e ../fail ]; then echo '{"code":11,"msg":"no free address"}'; exit 1; fi
    if grep -qsx "$CNI_CONTAINERID $CNI_IFNAME" */of; then echo '{"code":100,"msg":"allocated already"}'; exit 1; fi
    n=2
    until mkdir $n 2>/dev/null; do n=$((n + 1)); done
    echo "$CNI_CONTAINERID $CNI_IFNAME" >$n/of
    echo '{"ips":[{"address":"10.77.0.'$n'/24","gateway":"10.77.0.1"}],"routes":[{"dst":"10.78.0.0/16"}]}' ;;
DEL)
    for of in $(grep -lsx "$CNI_CONTAINERID $CNI_IFNAME" */of); do rm -r "${of%/of}"; done ;;
CHECK)
    grep -qsx "$CNI_CONTAINERID $CNI_IFNAME" */of || { echo '{"code":100,"msg":"not allocated"}'; exit 1; } ;;
GC) touch ../gc ;;
esac
"#;

/// A host with a container runtime: the switch, and the directories of the plugin.
struct Host {
    daemon: Daemon,
    directory: TempDir,
}

impl Host {
    /// A switch with a state and this operator's port, on the network `ops`.
    fn new(vifs: &[Vif]) -> Host {
        let mut daemon = Daemon::new();
        let text = config(&daemon.socket(), "", &[("ops", 9000)], vifs);
        daemon.configure(&keeping(&text, &daemon.state()));
        daemon.start();
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("leases")).unwrap();
        let ipam = directory.path().join("test-ipam");
        fs::write(&ipam, IPAM).unwrap();
        fs::set_permissions(&ipam, PermissionsExt::from_mode(0o755)).unwrap();
        Host { daemon, directory }
    }

    fn records(&self) -> PathBuf {
        self.directory.path().join("records")
    }

    /// Files that the plugin keeps, and leases.
    fn left_over(&self) -> (BTreeSet<String>, usize) {
        let names = |path: &Path| {
            let entries = fs::read_dir(path).into_iter().flatten();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<BTreeSet<_>>()
        };
        (names(&self.records()), names(&self.directory.path().join("leases")).len())
    }

    /// A network configuration with these keys.
    fn network(&self, name: &str, keys: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": name, "type": "vifswitch", "socket": self.daemon.socket(),
            "state_directory": self.records(), "ipam": { "type": "test-ipam" }
        });
        for (key, value) in keys.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    fn execute(&self, command: &str, container: &Container<'_>, config: &Value) -> Output {
        execute(command, container, config, &self.directory.path().display().to_string())
    }

    /// A command that succeeds; its output.
    fn done(&self, command: &str, container: &Container<'_>, config: &Value) -> Value {
        let output = self.execute(command, container, config);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command} {}: {text}", container.id);
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
    }

    /// A command that fails; its error.
    fn refused(&self, command: &str, container: &Container<'_>, config: &Value) -> (u64, String) {
        error_of(&self.execute(command, container, config))
    }

    fn port(&self, container: &Container<'_>, network: &str) -> Option<PortView> {
        let id = format!("{network}:{}:{}", container.id, container.interface);
        self.daemon.ports().into_iter().find(|port| port.port_id == id)
    }
}

/// An interface of a container.
#[derive(Clone)]
struct Container<'n> {
    id: String,
    interface: &'n str,
    netns: String,
    args: &'n str,
}

impl<'n> Container<'n> {
    fn new(id: &str, namespace: &Namespace) -> Container<'n> {
        Container { id: id.into(), interface: "eth0", netns: format!("/run/netns/{}", namespace.0), args: "" }
    }

    fn with(&self, interface: &'n str) -> Container<'n> {
        Container { interface, ..self.clone() }
    }
}

fn execute(command: &str, container: &Container<'_>, config: &Value, path: &str) -> Output {
    let mut child = Command::new(program());
    child.env("CNI_COMMAND", command).env("CNI_CONTAINERID", &container.id).env("CNI_NETNS", &container.netns);
    child.env("CNI_IFNAME", container.interface).env("CNI_ARGS", container.args).env("CNI_PATH", path);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One that fails at once does not read.
    let _ = child.stdin.take().unwrap().write_all(config.to_string().as_bytes());
    child.wait_with_output().unwrap()
}

fn error_of(output: &Output) -> (u64, String) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (error["code"].as_u64().unwrap(), format!("{} {}", error["msg"].as_str().unwrap(), error["details"]))
}

fn addresses(namespace: &Namespace, interface: &str) -> Vec<(IpAddr, u8)> {
    let index = namespace.link(interface).map(|link| link.index);
    namespace.run_in(|| index.map_or_else(Vec::new, |index| routing::addresses_of(index).unwrap()))
}

fn ping(from: &Namespace, to: &str) {
    run("ip", &["netns", "exec", &from.0, "ping", "-q", "-n", "-c", "1", "-W", "5", to]);
}

const NOBODY: Container<'static> = Container { id: String::new(), interface: "", netns: String::new(), args: "" };

/// Needs neither root nor a switch.
#[test]
fn errors_are_json_with_the_codes_of_the_specification() {
    let config = json!({ "cniVersion": "1.1.0", "name": "blue", "type": "vifswitch", "socket": "/nowhere/api.sock" });
    let there = Container { id: "c".into(), interface: "eth0", netns: "/run/netns/nowhere".into(), args: "" };
    let without_name = json!({ "cniVersion": "1.1.0" });
    let old = json!({ "cniVersion": "0.1.0", "name": "blue" });
    for (command, container, config, code, part) in [
        ("PLUG", &NOBODY, &config, 4, "no such command"),
        ("ADD", &NOBODY, &config, 4, "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"),
        ("ADD", &there, &config, 4, "no such network namespace"),
        ("ADD", &there, &json!([]), 6, "no JSON object"),
        ("ADD", &there, &without_name, 7, "name"),
        ("ADD", &there, &old, 1, "0.1.0"),
        ("STATUS", &NOBODY, &config, 50, "no switch is listening"),
    ] {
        let (found, text) = error_of(&execute(command, container, config, "/nowhere"));
        assert_eq!(found, code, "{command}: {text}");
        assert!(text.contains(part), "{command}: {part}: {text}");
    }
    let output = execute("VERSION", &NOBODY, &json!({ "cniVersion": "1.0.0" }), "");
    let versions: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(versions, json!({ "cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] }));
    // With arguments, and by name without the variable, it is the command line.
    let output = Command::new(program()).arg("--version").env("CNI_COMMAND", "ADD").output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"vifswitch "), "{output:?}");
    let output = Command::new(program()).arg("cni").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn a_container_is_attached_once_however_often_and_detached_without_a_trace() {
    let (Some(a), Some(b)) = (Namespace::new(), Namespace::new()) else { return };
    let host = Host::new(&[]);
    let network = host.network("blue", json!({ "mtu": 1400 }));
    let (first, second) = (Container::new("aaa", &a), Container::new("bbb", &b));
    let result = host.done("ADD", &first, &network);
    let port = host.port(&first, "blue").unwrap();
    let interface = json!({ "name": "eth0", "mac": port.mac_address, "mtu": 1400, "sandbox": first.netns });
    let wanted = json!({
        "cniVersion": "1.1.0", "interfaces": [interface], "dns": {}, "routes": [{ "dst": "10.78.0.0/16" }],
        "ips": [{ "interface": 0, "address": "10.77.0.2/24", "gateway": "10.77.0.1" }]
    });
    assert_eq!(result, wanted);
    assert_eq!(
        (port.device_id.as_str(), port.network_id.as_str(), port.owner.as_deref()),
        ("aaa", "blue", Some("cni"))
    );
    let link = a.link("eth0").unwrap();
    assert_eq!((link.mac.to_string(), link.mtu, link.up), (port.mac_address, 1400, true));
    assert_eq!(addresses(&a, "eth0"), [("10.77.0.2".parse().unwrap(), 24)]);
    let routes = a.run_in(|| routing::destinations().unwrap());
    assert!(routes.contains(&(("10.78.0.0".parse().unwrap(), 16), Some("10.77.0.1".parse().unwrap()))), "{routes:?}");
    // The same once more changes nothing, also not the generation.
    let generation = |host: &Host| host.daemon.get::<Value>("/v1/status")["desired_generation"].clone();
    let before = generation(&host);
    assert_eq!(host.done("ADD", &first, &network), wanted);
    assert_eq!((generation(&host), addresses(&a, "eth0").len()), (before, 1));
    host.done("ADD", &second, &network);
    ping(&a, "10.77.0.3");
    let mut check = network.clone();
    check["prevResult"] = result;
    host.done("CHECK", &first, &check);
    for container in [&first, &second, &second] {
        host.done("DEL", container, &network);
    }
    assert_eq!((host.daemon.listed().len(), a.links(), b.links()), (0, vec!["lo".into()], vec!["lo".into()]));
    assert_eq!(host.left_over(), (BTreeSet::new(), 0));
}

/// The port of an operator, and a network with another MTU, stay as they are.
#[test]
fn what_is_of_others_is_not_touched() {
    let (Some(a), Some(b)) = (Namespace::new(), Namespace::new()) else { return };
    let host = Host::new(&[Vif { network: "ops".into(), ..Vif::new("aaa", 1, &b) }]);
    let config_of = |host: &Host| host.daemon.get::<Value>("/v1/config")["networks"][0].clone();
    let before = (config_of(&host), b.link("tap1"));
    let network = host.network("blue", json!({ "network_id": "ops" }));
    let container = Container::new("aaa", &a);
    // It joins the operator's network, and its VM.
    let result = host.done("ADD", &container, &network);
    assert_eq!(result["interfaces"][0]["mtu"], 9000);
    let other = host.network("blue", json!({ "network_id": "ops", "mtu": 1500 }));
    let (code, text) = host.refused("ADD", &container.with("eth1"), &other);
    assert!(code == 7 && text.contains("MTU 9000") && text.contains("mtu = 1500"), "{code} {text}");
    assert_eq!(host.daemon.listed().len(), 2);
    host.done("GC", &NOBODY, &host.network("blue", json!({ "cni.dev/valid-attachments": [] })));
    assert_eq!((config_of(&host), b.link("tap1")), before);
    assert_eq!(host.daemon.listed(), ["port-1"]);
    // A port of another label is not taken over.
    let body = json!({ "device_id": "aaa", "network_id": "ops", "mac_address": "02:00:00:00:0c:01", "port_id": "blue:aaa:eth0",
                       "device": { "kind": "tap", "name": "x0", "netns": a.0 } });
    host.daemon.done(&["attach", "-"], &body.to_string());
    let (code, text) = host.refused("ADD", &container, &network);
    assert!(code == 100 && text.contains("owner"), "{code} {text}");
    assert_eq!(host.daemon.listed().len(), 2);
}

#[test]
fn interfaces_of_a_container_are_in_the_order_of_their_names_or_as_given() {
    let Some(a) = Namespace::new() else { return };
    let host = Host::new(&[]);
    let network = host.network("blue", json!({ "ipam": {} }));
    let container = Container::new("aaa", &a);
    for interface in ["eth2", "eth0", "eth1"] {
        host.done("ADD", &container.with(interface), &network);
    }
    let names = |host: &Host| {
        let ports = host.daemon.ports();
        ports.into_iter().filter(|port| port.device_id == "aaa").map(|port| port.device.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&host), ["eth0", "eth1", "eth2"]);
    let first =
        Container { args: "IgnoreUnknown=1;POSITION=0;K8S_POD_NAME=x;MAC=02:00:00:00:0c:09", ..container.with("late") };
    let result = host.done("ADD", &first, &network);
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:0c:09");
    assert_eq!(names(&host), ["eth0", "late", "eth1", "eth2"]);
    let given = host.network("blue", json!({ "ipam": {}, "args": { "cni": { "position": 1 } } }));
    host.done("ADD", &container.with("eth7"), &given);
    assert_eq!(names(&host), ["eth0", "late", "eth1", "eth7", "eth2"]);
}

/// Eight at once, on a network that does not exist.
#[test]
fn parallel_adds_make_a_network_once_and_all_succeed() {
    let Some(a) = Namespace::new() else { return };
    let host = Host::new(&[]);
    let interfaces: Vec<String> = (0..8).map(|number| format!("eth{number}")).collect();
    let networks = ["red", "blue"].map(|name| host.network(name, json!({ "mtu": 1450 })));
    let macs: BTreeSet<String> = std::thread::scope(|scope| {
        let calls: Vec<_> = interfaces
            .iter()
            .enumerate()
            .map(|(number, interface)| {
                let (host, network, container) =
                    (&host, &networks[number % 2], Container::new("aaa", &a).with(interface));
                scope.spawn(move || host.done("ADD", &container, network)["interfaces"][0]["mac"].to_string())
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let found: Vec<NetworkView> = host.daemon.get("/v1/networks");
    let mut found: Vec<_> = found.into_iter().map(|of| (of.network_id, of.mtu, of.ports, of.owner)).collect();
    found.sort();
    let cni = Some("cni".to_owned());
    let wanted = [
        ("blue".to_owned(), 1450, 4, cni.clone()),
        ("ops".to_owned(), 9000, 0, None),
        ("red".to_owned(), 1450, 4, cni),
    ];
    assert_eq!((found, macs.len()), (wanted.to_vec(), 8));
    assert!(host.daemon.ports().iter().all(|port| port.status == Status::Active));
}

/// The lease is free at once; the port is deleted by the next call after the switch is back.
#[test]
fn a_container_is_detached_while_the_switch_is_down() {
    let (Some(a), Some(b)) = (Namespace::new(), Namespace::new()) else { return };
    let mut host = Host::new(&[]);
    let network = host.network("blue", json!({}));
    let (first, gone) = (Container::new("aaa", &a), Container::new("bbb", &b));
    host.done("ADD", &first, &network);
    host.done("ADD", &gone, &network);
    host.daemon.stop(Signal::KILL);
    // The interface has outlived the switch.
    assert_eq!(addresses(&a, "eth0").len(), 1);
    b.delete();
    let (code, text) = host.refused("STATUS", &NOBODY, &network);
    assert!(code == 50 && text.contains("no switch"), "{code} {text}");
    let (code, text) = host.refused("ADD", &first.with("eth1"), &network);
    assert!(code == 11 && text.contains("vifswitch run"), "{code} {text}");
    host.done("DEL", &first.with("eth1"), &network);
    for container in [&first, &gone] {
        host.done("DEL", container, &network);
        host.done("DEL", container, &network);
    }
    assert_eq!((host.left_over().1, a.links()), (0, vec!["lo".to_owned()]));
    host.daemon.start();
    host.done("STATUS", &NOBODY, &network);
    assert_eq!((host.daemon.listed().len(), a.links()), (0, vec!["lo".to_owned()]));
    assert_eq!(host.left_over(), (BTreeSet::new(), 0));
}

/// The record of a container that was attached again is not carried out.
#[test]
fn a_container_that_is_attached_again_stays() {
    let Some(a) = Namespace::new() else { return };
    let mut host = Host::new(&[]);
    let network = host.network("blue", json!({}));
    let container = Container::new("aaa", &a);
    host.done("ADD", &container, &network);
    host.daemon.stop(Signal::KILL);
    host.done("DEL", &container, &network);
    host.daemon.start();
    host.done("ADD", &container, &network);
    host.done("STATUS", &NOBODY, &network);
    assert_eq!((host.daemon.listed(), addresses(&a, "eth0").len()), (vec!["blue:aaa:eth0".to_owned()], 1));
}

#[test]
fn what_fails_is_undone() {
    let (Some(a), Some(b)) = (Namespace::new(), Namespace::new()) else { return };
    let host = Host::new(&[]);
    let network = host.network("blue", json!({}));
    let container = Container::new("aaa", &a);
    fs::write(host.directory.path().join("fail"), "").unwrap();
    let (code, text) = host.refused("ADD", &container, &network);
    assert!(code == 11 && text.contains("test-ipam failed at ADD: no free address"), "{code} {text}");
    fs::remove_file(host.directory.path().join("fail")).unwrap();
    // An interface of others has the name.
    b.ip("tuntap add dev eth0 mode tap");
    let (code, text) = host.refused("ADD", &Container::new("bbb", &b), &network);
    assert!(code == 4 && text.contains("has an interface of this name"), "{code} {text}");
    // A MAC address that another port has.
    let fixed = host.network("blue", json!({ "port": { "mac_address": "02:00:00:00:0c:01" } }));
    host.done("ADD", &container, &fixed);
    let (code, text) = host.refused("ADD", &Container::new("bbb", &b).with("eth1"), &fixed);
    assert!(code == 11 && text.contains("02:00:00:00:0c:01 is the address of"), "{code} {text}");
    host.done("DEL", &container, &fixed);
    assert_eq!((host.daemon.listed().len(), a.links(), b.links().len()), (0, vec!["lo".to_owned()], 2));
    assert_eq!(host.left_over(), (BTreeSet::new(), 0));
}

/// The interface that the call before is creating has a name, and is not complete yet: it is not taken for that of others.
#[test]
fn the_interface_is_looked_at_after_the_call_before_has_ended() {
    let Some(a) = Namespace::new() else { return };
    let host = Host::new(&[]);
    let (network, container) = (host.network("blue", json!({})), Container::new("aaa", &a));
    fs::create_dir_all(host.records()).unwrap();
    let before = fs::File::create(host.records().join("blue:aaa:eth0.lock")).unwrap();
    rustix::fs::flock(&before, rustix::fs::FlockOperation::LockExclusive).unwrap();
    a.ip("tuntap add dev eth0 mode tap");
    std::thread::scope(|scope| {
        let call = scope.spawn(|| host.done("ADD", &container, &network));
        let inode = format!(":{} ", before.metadata().unwrap().ino());
        await_that("a call that waits for the lock", || {
            let locks = fs::read_to_string("/proc/locks").unwrap();
            locks.lines().any(|lock| lock.contains("-> FLOCK") && lock.contains(&inode)).then_some(())
        });
        a.ip("link del eth0");
        drop(before);
        call.join().unwrap();
    });
    assert_eq!(host.daemon.listed(), ["blue:aaa:eth0"]);
}

#[test]
fn gc_removes_what_the_runtime_does_not_list_and_nothing_else() {
    let Some(a) = Namespace::new() else { return };
    let host = Host::new(&[]);
    let container = Container::new("aaa", &a);
    for (name, interface) in [("blue", "eth0"), ("blue", "eth1"), ("blues", "eth2")] {
        host.done("ADD", &container.with(interface), &host.network(name, json!({ "network_id": "one" })));
    }
    let valid =
        json!({ "network_id": "one", "cni.dev/valid-attachments": [{ "containerID": "aaa", "ifname": "eth1" }] });
    host.done("GC", &NOBODY, &host.network("blue", valid));
    assert_eq!(host.daemon.listed(), ["blue:aaa:eth1", "blues:aaa:eth2"]);
    assert_eq!(a.links(), ["eth1", "eth2", "lo"]);
    assert!(host.directory.path().join("gc").exists(), "the IPAM plugin is asked too");
    let (code, text) = host.refused("GC", &NOBODY, &host.network("blue", json!({})));
    assert!(code == 7 && text.contains("valid-attachments"), "{code} {text}");
}

#[test]
fn check_finds_what_differs() {
    let Some(a) = Namespace::new() else { return };
    let host = Host::new(&[]);
    let network = host.network("blue", json!({}));
    let container = Container::new("aaa", &a);
    let result = host.done("ADD", &container, &network);
    let mut with_result = network.clone();
    with_result["prevResult"] = result;
    let differs = |part: &str| {
        let (code, text) = host.refused("CHECK", &container, &with_result);
        assert!(code >= 100 && text.contains(part), "{code}: {part}: {text}");
    };
    assert!(host.refused("CHECK", &container, &network).1.contains("needs prevResult"));
    host.done("CHECK", &container, &with_result);
    a.ip("route del 10.78.0.0/16");
    differs("lacks the route to 10.78.0.0/16");
    a.ip("address del 10.77.0.2/24 dev eth0");
    differs("lacks the address 10.77.0.2/24");
    host.done("ADD", &container, &network);
    host.done("CHECK", &container, &with_result);
    fs::remove_dir_all(host.directory.path().join("leases/2")).unwrap();
    differs("not allocated");
    host.daemon.done(&["detach", "blue:aaa:eth0"], "");
    differs("has no port \"blue:aaa:eth0\"");
    differs("it does not exist");
}

/// KubeVirt: QEMU opens the tap later, as another user.
#[test]
fn a_vm_in_a_container_gets_a_tap() {
    let Some(a) = Namespace::new() else { return };
    let host = Host::new(&[]);
    let tap = json!({ "mode": "vm", "mtu": 1400, "tap": { "uid": 54321, "gid": 54322 } });
    let network = host.network("blue", tap);
    let container = Container::new("aaa", &a).with("pod16477688c0e");
    let result = host.done("ADD", &container, &network);
    assert_eq!(result["ips"][0]["address"], "10.77.0.2/24");
    assert_eq!(host.done("ADD", &container, &network), result);
    let port = host.port(&container, "blue").unwrap();
    assert_eq!((port.status_code.as_str(), port.device.kind.as_str()), ("no_carrier", "packet"));
    let link = a.link(container.interface).unwrap();
    let tap = link.tap.unwrap();
    assert_eq!((link.mac.to_string(), link.mtu, link.up), (port.mac_address, 1400, true));
    assert!(tap.persist && tap.vnet_header && !tap.multi_queue, "{tap:?}");
    let shown = Command::new("ip").args(["-n", &a.0, "-d", "link", "show", container.interface]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("user 54321") && shown.contains("group 54322"), "{shown}");
    assert_eq!(addresses(&a, container.interface), [], "they are for the guest");
    let mut with_result = network.clone();
    with_result["prevResult"] = result;
    host.done("CHECK", &container, &with_result);
    // The VM opens it.
    let flags = vifswitch::sys::tun::Flags { vnet_header: true, multi_queue: false, exclusive: false };
    let queue = a.run_in(|| vifswitch::sys::tun::Queue::open(container.interface, flags).unwrap());
    await_that("a port that is ACTIVE", || (host.port(&container, "blue")?.status == Status::Active).then_some(()));
    host.done("ADD", &container, &network);
    drop(queue);
    host.done("DEL", &container, &network);
    assert_eq!(
        (a.links(), host.daemon.listed().len(), host.left_over()),
        (vec!["lo".to_owned()], 0, (BTreeSet::new(), 0))
    );
}

/// Port security that checks addresses knows those of the IPAM plugin.
#[test]
fn addresses_of_the_ipam_plugin_are_those_that_the_port_may_use() {
    let (Some(a), Some(b)) = (Namespace::new(), Namespace::new()) else { return };
    let host = Host::new(&[]);
    let network = host.network("blue", json!({ "port": { "port_security": "mac+ip" } }));
    host.done("ADD", &Container::new("aaa", &a), &network);
    host.done("ADD", &Container::new("bbb", &b), &network);
    ping(&a, "10.77.0.3");
    a.ip("address add 10.77.0.99/24 dev eth0");
    let output = Command::new("ip")
        .args(["netns", "exec", &a.0, "ping", "-q", "-n", "-c", "1", "-W", "1", "-I", "10.77.0.99", "10.77.0.3"])
        .output()
        .unwrap();
    assert!(!output.status.success(), "{output:?}");
    let drops = host.daemon.get::<Value>("/v1/drops").to_string();
    assert!(drops.contains("spoofed_ip"), "{drops}");
}

/// A plugin behind others passes their result on, in each version.
#[test]
fn the_result_of_plugins_before_is_passed_on_in_each_version() {
    let Some(a) = Namespace::new() else { return };
    let host = Host::new(&[]);
    let container = Container::new("aaa", &a).with("eth1");
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let before = json!({
            "cniVersion": version,
            "interfaces": [{ "name": "eth0", "sandbox": container.netns }],
            "ips": [{ "version": "4", "address": "192.0.2.7/24", "interface": 0 }],
            "dns": { "nameservers": ["192.0.2.53"] }
        });
        let network = host.network("blue", json!({ "cniVersion": version, "prevResult": before }));
        let result = host.done("ADD", &container, &network);
        assert_eq!(result["cniVersion"], version);
        assert_eq!(
            (&result["interfaces"][0]["name"], &result["interfaces"][1]["name"]),
            (&json!("eth0"), &json!("eth1"))
        );
        assert_eq!((&result["ips"][1]["interface"], &result["dns"]), (&json!(1), &before["dns"]));
        let is_old = version < "1.0.0";
        assert_eq!(result["ips"][1]["version"], if is_old { json!("4") } else { Value::Null });
        assert_eq!(result["interfaces"][1]["mtu"], if version == "1.1.0" { json!(1500) } else { Value::Null });
        host.done("DEL", &container, &network);
    }
}
