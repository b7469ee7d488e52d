//! `vifswitch check` on a real host: errors that keep a switch from starting, and warnings for ports that would be
//! down. Needs root; makes its own namespaces.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::net::TcpListener;
use std::process::Output;

use serde_json::Value;
use support::host::Namespace;
use support::host::daemon::{Daemon, Vif, config};
use support::host::setup::lay;
use vifswitch::sys::tun::{Flags, Queue};

/// A configuration that no switch runs, and the program with it.
struct CheckRun {
    daemon: Daemon,
    switch: String,
    vifs: Vec<Vif>,
    /// Tables after its VMs.
    more: String,
}

impl CheckRun {
    fn about(vifs: &[Vif]) -> CheckRun {
        CheckRun { daemon: Daemon::new(), switch: String::new(), vifs: vifs.to_vec(), more: String::new() }
    }

    fn switch(self, switch: &str) -> CheckRun {
        CheckRun { switch: switch.into(), ..self }
    }

    fn request(&self, json: &[&str]) -> Output {
        let text = config(&self.daemon.socket(), &self.switch, &[("net1", 1500)], &self.vifs);
        self.daemon.configure(&(text + &self.more));
        self.daemon.try_command(&[&["check", "FILE"], json].concat())
    }

    /// Exit code, and results: severity, subject, text.
    fn results(&self) -> (i32, Vec<[String; 3]>) {
        let output = self.request(&["--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        assert_eq!(report["right"], true, "{report}");
        let code = output.status.code().unwrap();
        assert_eq!(report["starts"], code == 0, "{report}");
        let text = |result: &Value, key: &str| result[key].as_str().unwrap().to_owned();
        let all = report["findings"].as_array().unwrap().iter();
        (code, all.map(|result| ["severity", "about", "message"].map(|key| text(result, key))).collect())
    }

    /// The only result, and the exit code.
    fn result(&self) -> (i32, [String; 3]) {
        let (code, mut all) = self.results();
        assert_eq!(all.len(), 1, "{all:?}");
        (code, all.remove(0))
    }

    fn warning(&self, chunks: &[&str]) {
        let (code, [severity, about, message]) = self.result();
        assert_eq!((code, severity.as_str()), (0, "warning"), "{message}");
        let said = format!("{about}: {message}");
        assert!(chunks.iter().all(|piece| said.contains(piece)), "{chunks:?}: {said}");
    }
}

fn flags(multi_queue: bool) -> Flags {
    Flags { vnet_header: true, multi_queue, exclusive: true }
}

#[test]
fn a_complete_host_yields_no_result() {
    let Some(namespace) = Namespace::new() else { return };
    let requests = CheckRun::about(&[Vif::new("a", 1, &namespace), Vif::new("b", 2, &namespace)]);
    let output = requests.request(&[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.ends_with(": valid: 1 networks, 2 VMs, 2 ports\n") && text.lines().count() == 1, "{text}");
    assert_eq!(requests.results(), (0, vec![]));
    assert_eq!(namespace.links(), ["lo"], "check changes nothing");
    assert!(!requests.daemon.socket().exists());
}

#[test]
fn a_missing_namespace_is_a_warning() {
    let Some(ns) = Namespace::planned() else { return };
    let requests = CheckRun::about(&[Vif::new("a", 1, &ns)]);
    requests.warning(&["port \"port-1\" (VM \"a\")", "DOWN", "no such namespace", &ns.0]);
    let text = String::from_utf8(requests.request(&[]).stdout).unwrap();
    assert!(text.contains("\nwarning: port \"port-1\""), "{text}");
    ns.make();
    assert_eq!(requests.results(), (0, vec![]));
}

/// Valid settings that are probably unintended.
#[test]
fn unintended_port_settings_are_a_warning() {
    let Some(namespace) = Namespace::new() else { return };
    let with = |more: &str| CheckRun::about(&[Vif { more: more.into(), ..Vif::new("a", 1, &namespace) }]);
    let about = "port \"port-1\" (VM \"a\")";
    with("port_security = \"mac+ip\"").warning(&[about, "all its IP packets are dropped"]);
    with("mac_limit = 4").warning(&[about, "mac_limit has no effect"]);
    with("allowed_address_pairs = [{ ip_address = \"10.0.0.0/8\" }]").warning(&[about, "10.0.0.0/8", "no effect"]);
    assert_eq!(with("port_security = \"mac+ip\"\nfixed_ips = [\"10.5.0.1\"]").results(), (0, vec![]));
}

#[test]
fn a_used_netdev_name_is_a_warning_with_its_owner() {
    let Some(namespace) = Namespace::new() else { return };
    let requests = CheckRun::about(&[Vif::new("a", 1, &namespace)]);
    namespace.ip("tuntap add tap1 mode tun");
    requests.warning(&["DOWN", "no tap"]);
    namespace.ip("link del tap1");

    namespace.ip("tuntap add tap1 mode tap");
    requests.warning(&["created by others"]);
    namespace.ip("link set tap1 alias vifswitch:port-9");
    requests.warning(&["created for port \"port-9\""]);
    namespace.ip("link set tap1 alias vifswitch:port-1");
    assert_eq!(requests.results(), (0, vec![]), "the tap is the port's own");

    let two = CheckRun::about(&[Vif::new("a", 1, &namespace).device(", queues = 2")]);
    two.warning(&["another queue mode", "recreated"]);
    namespace.ip("link set tap1 alias vifswitch:port-9");
    two.warning(&["DOWN", "single queue"]);
    namespace.ip("link del tap1");

    for multi_queue in [false, true] {
        let held = namespace.run_in(|| Queue::open("tap1", flags(multi_queue))).unwrap();
        namespace.ip("link set tap1 up");
        requests.warning(&["DOWN", "in use"]);
        drop(held);
        assert_eq!(requests.results(), (0, vec![]));
    }
}

#[test]
fn too_small_an_mtu_for_tags_is_a_warning() {
    let (Some(host), Some(guest)) = (Namespace::new(), Namespace::new()) else { return };
    let parent = Vif { kind: "packet", netns: host.0.clone(), ..Vif::new("a", 1, &guest) };
    lay(&parent, &guest, 1500);
    host.ip("link set dev tap1 mtu 1500");
    assert_eq!(CheckRun::about(std::slice::from_ref(&parent)).results(), (0, vec![]), "without tags there is room");
    let trunk = CheckRun::about(&[parent.clone(), Vif::new("a", 2, &guest).subport_of(&parent, 7)]);
    let uplink = |vlan: &str| {
        let device = format!("{{ kind = \"packet\", name = \"tap1\", netns = \"{}\" }}", host.0);
        let networks = format!("[{{ network_id = \"net1\"{vlan} }}]");
        let more = format!("[[uplinks]]\nid = \"up0\"\nnetworks = {networks}\ndevice = {device}\n");
        CheckRun { more, ..CheckRun::about(&[Vif::new("b", 3, &guest)]) }
    };
    trunk.warning(&["port \"port-1\" (VM \"a\")", "has MTU 1500", "second tag", "ip link set dev tap1 mtu 1504"]);
    uplink(", vlan = 120").warning(&["uplink \"up0\"", "has MTU 1500", "ip link set dev tap1 mtu 1504"]);
    assert_eq!(uplink("").results(), (0, vec![]), "the native network has no tag");
    // The remedy in the warning suffices.
    host.ip("link set dev tap1 mtu 1504");
    assert_eq!(trunk.results(), (0, vec![]));
    assert_eq!(uplink(", vlan = 120").results(), (0, vec![]));
}

#[test]
fn long_frames_by_xdp_are_no_warning_on_a_tap() {
    let Some(namespace) = Namespace::new() else { return };
    let flags = Flags { vnet_header: false, ..flags(false) };
    let _guest = namespace.run_in(|| Queue::open("tap1", flags)).unwrap();
    namespace.ip("link set dev tap1 mtu 9000 up");
    let vif = Vif { kind: "xdp", ..Vif::new("a", 1, &namespace) };
    for mode in ["", ", mode = \"generic\""] {
        assert_eq!(CheckRun::about(&[vif.clone().device(mode)]).results(), (0, vec![]), "{mode}");
    }
}

#[test]
fn a_running_switch_is_no_error() {
    let Some(namespace) = Namespace::new() else { return };
    let vifs = [Vif::new("a", 1, &namespace)];
    let daemon = Daemon::over(&vifs);
    let output = daemon.try_command(&["check", "FILE", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["findings"].as_array().unwrap().len(), 1, "{report}");
    assert!(report["findings"][0]["message"].as_str().unwrap().contains("a switch is already running at"), "{report}");
    daemon.await_active(&vifs[0]);
}

/// `check` reports the same error as a switch that is started.
#[test]
fn conditions_that_prevent_a_start_are_errors() {
    let Some(namespace) = Namespace::new() else { return };
    let vifs = [Vif::new("a", 1, &namespace)];
    let ends_so = |requests: &CheckRun, code: i32, about: &str| {
        let (said, [_, key, message]) = requests.result();
        assert_eq!((said, key.as_str()), (code, about), "{message}");
        let output = requests.request(&[]);
        assert_eq!(output.status.code(), Some(code));
        assert!(String::from_utf8(output.stderr).unwrap().contains(about));
        let run = requests.daemon.try_command(&["run", "--config", "FILE"]);
        assert_eq!(run.status.code(), Some(code), "{run:?}");
    };
    let requests = CheckRun::about(&vifs).switch("cores = [1023]");
    ends_so(&requests, 2, "switch.cores");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics = format!("metrics = \"{}\"", taken.local_addr().unwrap());
    ends_so(&CheckRun::about(&vifs).switch(&metrics), 1, "switch.metrics");
    ends_so(&CheckRun::about(&vifs).switch(&metrics.replace("metrics", "pages")), 1, "switch.pages");
    let file = tempfile::NamedTempFile::new().unwrap();
    ends_so(&CheckRun::about(&vifs).switch(&format!("api_read = {:?}", file.path())), 1, "switch.api_read");

    let requests = CheckRun::about(&vifs);
    fs::write(requests.daemon.socket(), "").unwrap();
    ends_so(&requests, 1, "switch.api");
    assert_eq!(namespace.links(), ["lo"]);
}

#[test]
fn an_unwritable_state_is_a_warning() {
    let Some(namespace) = Namespace::new() else { return };
    let requests = CheckRun::about(&[Vif::new("a", 1, &namespace)]);
    let output = requests.request(&[]);
    assert!(output.status.success());
    let text = fs::read_to_string(requests.daemon.file()).unwrap();
    requests.daemon.configure(&text.replace("state = \"\"", "state = \"/proc/version/state.db\""));
    let output = requests.daemon.try_command(&["check", "FILE"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(
        String::from_utf8(output.stdout).unwrap().contains("warning: switch.state: /proc/version is not a directory")
    );
}

#[test]
fn missing_capabilities_are_named_with_their_use() {
    let Some(ns) = Namespace::new() else { return };
    let requests = CheckRun::about(&[Vif::new("a", 1, &ns)]);
    requests.request(&[]);
    let file = requests.daemon.file();
    let program = support::host::program();
    let output = std::process::Command::new("setpriv")
        .args(["--bounding-set", "-all", program, "check", file.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for piece in
        ["CAP_NET_ADMIN", "taps cannot be created", "CAP_SYS_ADMIN", "namespace can be entered", "would be DOWN"]
    {
        assert!(text.contains(piece), "{piece}: {text}");
    }
    assert!(
        !text.contains("CAP_SYS_PTRACE") && !text.contains("CAP_NET_BIND"),
        "unused capabilities are not reported: {text}"
    );
}

#[test]
fn configuration_errors_are_available_as_json() {
    let daemon = Daemon::new();
    daemon.configure("[[networks]]\nid = \"net1\"\nmtu = 1\n");
    let output = daemon.try_command(&["check", "FILE", "--json"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["right"], &report["starts"]), (&Value::from(false), &Value::from(false)));
    let problem = &report["problems"][0];
    assert_eq!((problem["line"].as_u64(), problem["key"].as_str()), (Some(3), Some("networks[0].mtu")), "{report}");
}
