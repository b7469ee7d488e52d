//! A storm limit that stops a legitimate service is reported with the command that lifts it, and that command works.
//! Needs root; makes its own namespaces.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use vifswitch::wire::Mac;

use support::host::daemon::{Daemon, Vif, config};
use support::host::nic::{Nic, experiment};
use support::host::{Namespace, await_that};

const GROUP: Mac = Mac::from_bits(0x0100_5e01_0101);

/// A VM with two ports, and another VM; the VM's limits are in the configuration.
struct Scenario {
    daemon: Daemon,
    nics: Vec<Nic>,
    macs: Vec<Mac>,
    _spaces: Vec<Namespace>,
}

impl Scenario {
    fn new(network: &str, vm: &str) -> Option<Scenario> {
        let spaces: Vec<Namespace> = (0..3).map(|_| Namespace::new()).collect::<Option<_>>()?;
        let vms = ["cluster", "cluster", "peer"];
        let vifs: Vec<Vif> =
            (1..).zip(vms).zip(&spaces).map(|((number, vm), namespace)| Vif::new(vm, number, namespace)).collect();
        let mut daemon = Daemon::new();
        let mut text = config(&daemon.socket(), "", &[("net1", 1500)], &vifs);
        text = text.replace("mtu = 1500\n", &format!("mtu = 1500\n{network}\n"));
        text = text.replace("id = \"cluster\"\n", &format!("id = \"cluster\"\n{vm}\n"));
        daemon.configure(&text);
        daemon.start();
        let nics = spaces.iter().zip(&vifs).map(|(namespace, vif)| Nic::new(namespace, &vif.name)).collect();
        Some(Scenario { daemon, nics, macs: vifs.iter().map(|vif| vif.mac).collect(), _spaces: spaces })
    }

    /// Sends frames to a group from a port of the VM. Returns how many did not arrive at the other VM.
    fn lost(&self, port: usize, to: Mac, count: u64) -> u64 {
        let before = self.dropped(port);
        // Few at once, so that none is lost elsewhere.
        for number in 0..count {
            self.nics[port].send(&experiment(to, self.macs[port], &number.to_be_bytes()));
            let rest = self.nics[2].rest();
            drop(rest);
        }
        let last = experiment(self.macs[2], self.macs[port], b"the last frame");
        self.nics[port].send(&last);
        // Frames sent earlier have been decided earlier.
        self.nics[2].take_until(&last);
        self.nics.iter().for_each(|nic| drop(nic.rest()));
        self.dropped(port) - before
    }

    /// Frames of a port dropped by storm limits.
    fn dropped(&self, port: usize) -> u64 {
        let ports: Value = self.daemon.get("/v1/ports");
        let drops = ports[port]["drops"].as_object().unwrap();
        drops.iter().filter(|(reason, _)| reason.starts_with("storm_")).map(|(_, count)| count.as_u64().unwrap()).sum()
    }

    fn starts(&self) -> Vec<Value> {
        let events = self.daemon.page("/v1/events");
        let events = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["kind"] == "storm_start").collect()
    }

    /// Runs the one command that an event, or a shown storm, names in backticks.
    fn obey(&self, text: &str) {
        let parts: Vec<&str> = text.split('`').collect();
        assert_eq!(parts.len(), 3, "one command: {text}");
        let words = parts[1].strip_prefix("vifswitch ").unwrap_or_else(|| panic!("{text}"));
        let program = PathBuf::from(self.daemon.command().get_program());
        // By a shell, as an operator does.
        let line = format!("{} {words} --socket {}", program.display(), self.daemon.socket().display());
        let done = Command::new("sh").args(["-c", &line]).output().unwrap();
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

/// The limits of port and VM are equal by default: the command lifts the one that is exceeded, and the other does not
/// drop the frames instead.
#[test]
fn the_command_that_the_event_names_lifts_the_limit_of_a_port() {
    for (network, class, to) in [
        (
            "storm = { multicast = { pps = 100, burst = 100 }, copies = { pps = 100, burst = 1000 } }",
            "multicast",
            GROUP,
        ),
        ("storm = { broadcast = { pps = 90 } }", "broadcast", Mac::BROADCAST),
        ("storm = { unknown_unicast = { pps = 80 } }", "unknown_unicast", Mac::from_bits(0x02bf_0a00_0001)),
    ] {
        let Some(scene) = Scenario::new(network, "") else { return };
        assert!(scene.lost(0, to, 1000) > 0);
        let event = await_that("the event", || scene.starts().pop());
        let text = event["text"].as_str().unwrap();
        let figure = network.split("pps = ").nth(1).unwrap().split([',', ' ']).next().unwrap();
        assert_eq!((&event["vm"], &event["network"]), (&"cluster".into(), &"net1".into()), "{event}");
        assert!(text.contains(&format!("storm.{class} of {figure} frames a second")), "{text}");
        let shown: Value = scene.daemon.get("/v1/storms");
        assert!(shown[0]["text"].as_str().unwrap().contains(&format!("storm.{class}=off")), "{shown}");
        scene.obey(text);
        assert_eq!(scene.lost(0, to, 1000), 0, "{class}: after {text}");
        // Its sibling still has its own limit, and the VM's limit for itself.
        assert!(scene.lost(1, to, 1000) > 0, "{class}");
    }
}

/// Two siblings, each within its own limit, exceed that of their VM.
#[test]
fn the_command_that_the_event_names_lifts_the_limit_of_a_vm() {
    for (vm, key) in [
        ("storm = { multicast = { pps = 100, burst = 100 } }", "vm.storm.multicast of 100 frames a second"),
        (
            "storm = { multicast = \"off\", copies = { pps = 100, burst = 100 } }",
            "vm.storm.copies of 100 copies a second",
        ),
    ] {
        let network = "storm = { multicast = { pps = 100_000, burst = 100_000 } }";
        let Some(scene) = Scenario::new(network, vm) else { return };
        assert!(scene.lost(0, GROUP, 500) + scene.lost(1, GROUP, 500) > 0);
        let event = await_that("the event", || scene.starts().pop());
        let text = event["text"].as_str().unwrap();
        assert!(text.contains(key) && text.contains("multicast"), "{text}");
        assert_eq!(event["ports"].as_array().unwrap().len(), 2, "{event}");
        scene.obey(text);
        assert_eq!(scene.lost(0, GROUP, 500) + scene.lost(1, GROUP, 500), 0, "after {text}");
    }
}

/// Limits lifted by hand, in the notation of the configuration.
#[test]
fn a_port_without_storm_limits_is_exempt_from_its_vms() {
    let network = "storm = { multicast = { pps = 100 }, broadcast = { pps = 100 }, unknown_unicast = { pps = 100 }, \
                   copies = { pps = 100, burst = 100 } }";
    let Some(scene) = Scenario::new(network, "") else { return };
    let all = [GROUP, Mac::BROADCAST, Mac::from_bits(0x02bf_0a00_0001)];
    assert!(all.iter().all(|&to| scene.lost(0, to, 500) > 0));
    scene.daemon.done(&["set", "port-1", "storm=off"], "");
    assert_eq!(all.map(|to| scene.lost(0, to, 500)), [0; 3]);
    // The network's limits apply again.
    scene.daemon.done(&["set", "port-1", "storm="], "");
    assert!(all.iter().all(|&to| scene.lost(0, to, 500) > 0));
}

/// A port disabled by a limit is enabled once the limit is lifted.
#[test]
fn a_disabled_port_is_enabled_when_its_limit_is_lifted() {
    let network = "storm = { multicast = { pps = 100, action = \"disable\", recovery_seconds = 0 } }";
    let Some(scene) = Scenario::new(network, "") else { return };
    for number in 0..1000u64 {
        scene.nics[0].send(&experiment(GROUP, scene.macs[0], &number.to_be_bytes()));
    }
    let status = || scene.daemon.get::<Value>("/v1/ports")[0]["status"].clone();
    await_that("the port to be disabled", || (status() == "QUARANTINED").then_some(()));
    let event = await_that("the event", || scene.starts().pop());
    scene.obey(event["text"].as_str().unwrap());
    await_that("the port to be enabled", || (status() == "ACTIVE").then_some(()));
    assert_eq!(scene.lost(0, GROUP, 1000), 0);
}
