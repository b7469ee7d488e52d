//! `vifswitch check` on a real host: what would keep a switch from starting, and what a port down.
#![allow(missing_docs, clippy::unwrap_used)]

mod host;

use std::fs;
use std::net::TcpListener;
use std::process::Output;

use host::Space;
use host::daemon::{Daemon, Vif, config};
use serde_json::Value;
use vifswitch::sys::tun::{Flags, Queue};

/// A configuration that nobody runs yet, and the program over it.
struct Asked {
    daemon: Daemon,
    switch: String,
    vifs: Vec<Vif>,
}

impl Asked {
    fn about(vifs: &[Vif]) -> Asked {
        Asked { daemon: Daemon::new(), switch: String::new(), vifs: vifs.to_vec() }
    }

    fn switch(self, switch: &str) -> Asked {
        Asked { switch: switch.into(), ..self }
    }

    fn ask(&self, json: &[&str]) -> Output {
        let text = config(&self.daemon.socket(), &self.switch, &[("net1", 1500)], &self.vifs);
        self.daemon.configure(&text);
        self.daemon.try_command(&[&["check", "FILE"], json].concat())
    }

    /// The exit code, and what is found: severity, what it is about, and what is said.
    fn findings(&self) -> (i32, Vec<[String; 3]>) {
        let output = self.ask(&["--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        assert_eq!(report["right"], true, "{report}");
        let code = output.status.code().unwrap();
        assert_eq!(report["starts"], code == 0, "{report}");
        let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
        let all = report["findings"].as_array().unwrap().iter();
        (code, all.map(|finding| ["severity", "about", "message"].map(|key| text(finding, key))).collect())
    }

    /// The only finding, and the exit code.
    fn finding(&self) -> (i32, [String; 3]) {
        let (code, mut all) = self.findings();
        assert_eq!(all.len(), 1, "{all:?}");
        (code, all.remove(0))
    }

    fn remark(&self, pieces: &[&str]) {
        let (code, [severity, about, message]) = self.finding();
        assert_eq!((code, severity.as_str()), (0, "remark"), "{message}");
        let said = format!("{about}: {message}");
        assert!(pieces.iter().all(|piece| said.contains(piece)), "{pieces:?}: {said}");
    }
}

fn flags(multi_queue: bool) -> Flags {
    Flags { vnet_header: true, multi_queue, exclusive: true }
}

#[test]
fn a_host_that_has_everything_says_nothing() {
    let Some(space) = Space::new() else { return };
    let asked = Asked::about(&[Vif::new("a", 1, &space), Vif::new("b", 2, &space)]);
    let output = asked.ask(&[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with(": right: 1 networks, 2 VMs, 2 ports\n") && text.lines().count() == 1, "{text}");
    assert_eq!(asked.findings(), (0, vec![]));
    assert_eq!(space.links(), ["lo"], "nothing is touched");
    assert!(!asked.daemon.socket().exists());
}

#[test]
fn a_namespace_that_is_not_there_is_a_remark() {
    let Some(space) = Space::planned() else { return };
    let asked = Asked::about(&[Vif::new("a", 1, &space)]);
    asked.remark(&["port \"port-1\" (VM \"a\")", "DOWN", "no such namespace", &space.0]);
    let text = String::from_utf8(asked.ask(&[]).stdout).unwrap();
    assert!(text.contains("\nremark: port \"port-1\""), "{text}");
    space.make();
    assert_eq!(asked.findings(), (0, vec![]));
}

/// What is right, and may still not be meant.
#[test]
fn what_a_port_may_hardly_be_meant_to_be_is_a_remark() {
    let Some(space) = Space::new() else { return };
    let with = |more: &str| Asked::about(&[Vif { more: more.into(), ..Vif::new("a", 1, &space) }]);
    let about = "port \"port-1\" (VM \"a\")";
    with("port_security = \"mac+ip\"").remark(&[about, "no IP address that it may use"]);
    with("mac_limit = 4").remark(&[about, "mac_limit has no effect"]);
    with("allowed_address_pairs = [{ ip_address = \"10.0.0.0/8\" }]").remark(&[about, "10.0.0.0/8", "no effect"]);
    assert_eq!(with("port_security = \"mac+ip\"\nfixed_ips = [\"10.5.0.1\"]").findings(), (0, vec![]));
}

#[test]
fn a_name_that_is_taken_is_a_remark_and_says_by_whom() {
    let Some(space) = Space::new() else { return };
    let asked = Asked::about(&[Vif::new("a", 1, &space)]);
    space.ip("tuntap add tap1 mode tun");
    asked.remark(&["DOWN", "no tap"]);
    space.ip("link del tap1");

    space.ip("tuntap add tap1 mode tap");
    asked.remark(&["made by others"]);
    space.ip("link set tap1 alias vifswitch:port-9");
    asked.remark(&["made for port \"port-9\""]);
    space.ip("link set tap1 alias vifswitch:port-1");
    assert_eq!(asked.findings(), (0, vec![]), "it is ours");

    let two = Asked::about(&[Vif::new("a", 1, &space).device(", queues = 2")]);
    two.remark(&["another kind of queues", "made anew"]);
    space.ip("link set tap1 alias vifswitch:port-9");
    two.remark(&["DOWN", "single queue"]);
    space.ip("link del tap1");

    for multi_queue in [false, true] {
        let held = space.within(|| Queue::open("tap1", flags(multi_queue))).unwrap();
        space.ip("link set tap1 up");
        asked.remark(&["DOWN", "held"]);
        drop(held);
        assert_eq!(asked.findings(), (0, vec![]));
    }
}

#[test]
fn a_running_switch_is_no_mistake() {
    let Some(space) = Space::new() else { return };
    let vifs = [Vif::new("a", 1, &space)];
    let daemon = Daemon::over(&vifs);
    let output = daemon.try_command(&["check", "FILE", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["findings"].as_array().unwrap().len(), 1, "{report}");
    assert!(report["findings"][0]["message"].as_str().unwrap().contains("a switch is running at"), "{report}");
    daemon.await_active(&vifs[0]);
}

/// What is said is what a switch that is started all the same ends with.
#[test]
fn what_keeps_a_switch_from_starting_is_an_error() {
    let Some(space) = Space::new() else { return };
    let vifs = [Vif::new("a", 1, &space)];
    let ends_so = |asked: &Asked, code: i32, about: &str| {
        let (said, [_, key, message]) = asked.finding();
        assert_eq!((said, key.as_str()), (code, about), "{message}");
        let output = asked.ask(&[]);
        assert_eq!(output.status.code(), Some(code));
        assert!(String::from_utf8(output.stderr).unwrap().contains(about));
        let run = asked.daemon.try_command(&["run", "--config", "FILE"]);
        assert_eq!(run.status.code(), Some(code), "{run:?}");
    };
    let asked = Asked::about(&vifs).switch("cores = [1023]");
    ends_so(&asked, 2, "switch.cores");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = format!("metrics = \"{}\"", taken.local_addr().unwrap());
    ends_so(&Asked::about(&vifs).switch(&metrics), 1, "switch.metrics");

    let asked = Asked::about(&vifs);
    fs::write(asked.daemon.socket(), "").unwrap();
    ends_so(&asked, 1, "switch.api");
    assert_eq!(space.links(), ["lo"]);
}

#[test]
fn what_cannot_be_kept_is_a_remark() {
    let Some(space) = Space::new() else { return };
    let asked = Asked::about(&[Vif::new("a", 1, &space)]);
    let output = asked.ask(&[]);
    assert!(output.status.success());
    let text = fs::read_to_string(asked.daemon.file()).unwrap();
    asked.daemon.configure(&text.replace("state = \"\"", "state = \"/proc/version/state.db\""));
    let output = asked.daemon.try_command(&["check", "FILE"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(
        String::from_utf8(output.stdout).unwrap().contains("remark: switch.state: /proc/version is not a directory")
    );
}

#[test]
fn missing_rights_are_named_with_what_they_are_for() {
    let Some(space) = Space::new() else { return };
    let asked = Asked::about(&[Vif::new("a", 1, &space)]);
    asked.ask(&[]);
    let file = asked.daemon.file();
    let program = env!("CARGO_BIN_EXE_vifswitch");
    let output = std::process::Command::new("setpriv")
        .args(["--bounding-set", "-all", program, "check", file.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for piece in ["CAP_NET_ADMIN", "no tap can be made", "CAP_SYS_ADMIN", "namespace can be entered", "would be DOWN"] {
        assert!(text.contains(piece), "{piece}: {text}");
    }
    assert!(!text.contains("CAP_SYS_PTRACE") && !text.contains("CAP_NET_BIND"), "no use for these: {text}");
}

#[test]
fn a_wrong_configuration_is_told_as_json_too() {
    let daemon = Daemon::new();
    daemon.configure("[[networks]]\nid = \"net1\"\nmtu = 1\n");
    let output = daemon.try_command(&["check", "FILE", "--json"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["right"], &report["starts"]), (&Value::from(false), &Value::from(false)));
    let problem = &report["problems"][0];
    assert_eq!((problem["line"].as_u64(), problem["key"].as_str()), (Some(3), Some("networks[0].mtu")), "{report}");
}
