//! `vifswitch libvirt-hook`, called as libvirt calls it: requests, exit codes, and what is left for the next call. The switch is a
//! fake controller behind the real API server; needs nothing of the host. `scripts/libvirt-lab` has a real libvirtd.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use serde_json::json;
use support::fake::{Fake, FakeBehaviour, Received, Views};
use support::host::await_that;
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;
use vifswitch::control::config::{Activation, Config};
use vifswitch::control::desired::change::{Change, ChangeError, ErrorKind};

/// As libvirt 9.0 gives a domain to the hook: before its taps are made, and when it runs.
const PREPARE: &str = include_str!("../golden/libvirt/prepare.xml");
const RUNNING: &str = include_str!("../golden/libvirt/running.xml");

const UUID: &str = "6b0dd2f0-6f5c-4a41-9a0c-3c9c0f1e0001";

/// A hook with its directory.
struct Hook {
    socket: PathBuf,
    directory: TempDir,
}

impl Hook {
    fn at(socket: impl Into<PathBuf>) -> Hook {
        Hook { socket: socket.into(), directory: tempfile::tempdir().unwrap() }
    }

    /// Without a switch.
    fn alone() -> Hook {
        let directory = tempfile::tempdir().unwrap();
        Hook { socket: directory.path().join("api.sock"), directory }
    }

    fn call(&self, arguments: &[&str], xml: &str) -> Output {
        let mut command = Command::new(support::host::program());
        command.arg("libvirt-hook").arg("--socket").arg(&self.socket);
        command.arg("--records").arg(self.directory.path().join("records")).arg("--domains").arg(self.directory.path());
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One that has nothing to do does not read.
        let _ = child.stdin.take().unwrap().write_all(xml.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn operation(&self, operation: &str, xml: &str) -> Output {
        self.call(&["vm1", operation, "begin", "-"], xml)
    }

    /// What is remembered of the domain.
    fn record(&self) -> Option<String> {
        std::fs::read_to_string(self.directory.path().join(format!("records/{UUID}.json"))).ok()
    }
}

/// Standard error of a call that ended so. Standard output is the XML of the domain to some operations, and always empty.
fn ended(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn willing() -> (Fake, UnboundedReceiver<Received>) {
    let (mind, requests) = FakeBehaviour::willing();
    (Fake::with_behaviour(Views::default(), mind), requests)
}

/// The configurations that the switch was asked for, all of the label of the hook.
fn asked(requests: &mut UnboundedReceiver<Received>) -> Vec<Config> {
    let mut asked = Vec::new();
    while let Ok(request) = requests.try_recv() {
        match request {
            Received::Change(Change::ApplyOwned { owner, config }, options) => {
                assert_eq!(owner, "libvirt");
                assert!(options.generations.is_some(), "a change of others in the meantime is refused");
                asked.push(config);
            }
            other => panic!("{other:?}"),
        }
    }
    asked
}

#[test]
fn all_ports_of_a_domain_are_attached_in_one_request() {
    let (fake, mut requests) = willing();
    let hook = Hook::at(fake.socket());
    assert_eq!(ended(&hook.operation("prepare", PREPARE), 0), "");
    assert!(asked(&mut requests).is_empty(), "its taps are not made yet");
    for operation in ["start", "reconnect"] {
        assert_eq!(ended(&hook.operation(operation, RUNNING), 0), "");
        let asked = asked(&mut requests);
        assert_eq!((asked.len(), asked[0].vms.len()), (1, 1), "{operation}");
        let ports: Vec<_> =
            asked[0].vms[0].ports.iter().map(|port| (port.port_id.as_str(), port.device().unwrap())).collect();
        let ids: Vec<_> = ports.iter().map(|(id, device)| (*id, device.netdev().1)).collect();
        assert_eq!(
            (asked[0].vms[0].id.as_str(), ids),
            ("vm1", vec![("vm1-a", "vnet0"), ("vm1-b", "vnet1"), ("vm1-c", "vnet2")])
        );
        assert_eq!(hook.record(), None);
    }
}

#[test]
fn a_domain_from_another_host_is_pinned_from_its_first_frame_on() {
    let (fake, mut requests) = willing();
    let hook = Hook::at(fake.socket());
    for (operation, xml) in [("migrate", PREPARE), ("prepare", PREPARE), ("start", RUNNING), ("start", RUNNING)] {
        assert_eq!(ended(&hook.operation(operation, xml), 0), "", "{operation}");
    }
    let activations: Vec<_> = asked(&mut requests).iter().map(|config| config.vms[0].ports[0].activation).collect();
    assert_eq!(activations, [Activation::FirstFrame, Activation::Immediate], "the second start is one of its own");
}

/// Also if its ports of an earlier time are deleted by a call for another domain in between: it stays one from another host.
#[test]
fn ports_that_are_deleted_late_do_not_make_an_incoming_domain_a_local_one() {
    let hook = Hook::alone();
    ended(&hook.operation("stopped", RUNNING), 0);
    assert_eq!(ended(&hook.operation("migrate", PREPARE), 0), "");
    let (fake, mut requests) = willing();
    let hook = Hook { socket: fake.socket(), ..hook };
    let other = RUNNING.replace(UUID, "6b0dd2f0-6f5c-4a41-9a0c-3c9c0f1e0002").replace("vm1-", "vm2-");
    assert_eq!(ended(&hook.call(&["vm2", "start", "begin", "-"], &other), 0), "");
    let record = hook.record().unwrap();
    assert!(record.contains("\"gone\":false") && record.contains("\"incoming\":true"), "{record}");
    assert_eq!(ended(&hook.operation("start", RUNNING), 0), "");
    let activations: Vec<_> = asked(&mut requests).iter().map(|config| config.vms[0].ports[0].activation).collect();
    assert_eq!(activations, [Activation::Immediate, Activation::FirstFrame]);
}

#[test]
fn a_domain_that_cannot_be_attached_does_not_start() {
    let refused = "port \"vm1-a\" exists and has the owner \"neutron\"; use another id";
    let fake =
        Fake::with_behaviour(Views::default(), FakeBehaviour::refusing(ErrorKind::Conflict, "owned_by_other", refused));
    let hook = Hook::at(fake.socket());
    let text = ended(&hook.operation("start", RUNNING), 1);
    assert!(text.contains("domain \"vm1\", start") && text.contains(refused), "{text}");
    // what is wrong in the metadata is known before taps are made
    let wrong = PREPARE.replace("52:54:00:00:01:0b\" network", "52:54:00:00:01:0f\" network");
    let text = ended(&hook.operation("prepare", &wrong), 1);
    assert!(text.contains("\"vm1-c\": no interface of the domain has the MAC address 52:54:00:00:01:0f"), "{text}");
    let text = ended(&hook.operation("start", "<domain>"), 1);
    assert!(text.contains("not the XML of a domain"), "{text}");
}

#[test]
fn without_a_switch_domains_do_not_start_and_stop_all_the_same() {
    let hook = Hook::alone();
    let text = ended(&hook.operation("start", RUNNING), 3);
    assert!(text.contains("no switch is listening at") && text.contains("systemctl start vifswitch"), "{text}");
    let text = ended(&hook.operation("reconnect", RUNNING), 0);
    assert!(text.contains("the domain runs on"), "{text}");
    for operation in ["stopped", "release"] {
        let text = ended(&hook.operation(operation, RUNNING), 0);
        assert!(text.contains("the next call of the hook deletes"), "{text}");
        assert!(hook.record().unwrap().contains("\"gone\":true"));
    }
    let text = ended(&hook.call(&["down", "vnet0"], ""), 0);
    assert!(text.contains("no switch is listening at"), "{text}");
    // the next call, for another domain, makes up for it
    let (mind, mut requests) = FakeBehaviour::willing();
    let vm = |number: u8| {
        let (port, tap, mac) = (format!("vm{number}-a"), format!("vnet{number}0"), format!("52:54:00:00:0{number}:0f"));
        let device = json!({ "kind": "packet", "name": tap });
        let port =
            json!({ "port_id": port, "owner": "libvirt", "network_id": "net1", "mac_address": mac, "device": device });
        json!({ "id": format!("vm{number}"), "ports": [port] })
    };
    let config = json!({ "vms": [vm(1), vm(3)] });
    let fake = Fake::with_behaviour(Views { config, ..Views::default() }, mind);
    let hook = Hook { socket: fake.socket(), ..hook };
    let other = RUNNING.replace(UUID, "6b0dd2f0-6f5c-4a41-9a0c-3c9c0f1e0002").replace("vm1-", "vm2-");
    assert_eq!(ended(&hook.call(&["vm2", "start", "begin", "-"], &other), 0), "");
    let asked: Vec<Vec<String>> =
        asked(&mut requests).iter().map(|config| config.vms.iter().map(|vm| vm.id.clone()).collect()).collect();
    assert_eq!(asked, [["vm3", "vm2"]], "the ports of vm1 go, those of vm3 stay");
    assert_eq!(hook.record(), None);
}

/// A domain starts although others change the switch at the same time, or it is being restarted.
#[test]
fn a_switch_that_is_being_changed_or_restarted_is_waited_for() {
    let (mind, mut requests) = FakeBehaviour::willing();
    let outdated = ChangeError::new(ErrorKind::Outdated, "generation_mismatch", "the generation is 8 by now");
    *mind.first_answer.lock().unwrap() = Some(outdated);
    let fake = Fake::with_behaviour(Views::default(), mind);
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let hook = Hook::at(&socket);
    let output = thread::scope(|scope| {
        let start = scope.spawn(|| hook.operation("start", RUNNING));
        // The record's lock is there once the hook has begun.
        await_that("the hook", || hook.directory.path().join("records/lock").exists().then_some(()));
        symlink(fake.socket(), &socket).unwrap();
        start.join().unwrap()
    });
    assert_eq!(ended(&output, 0), "");
    let asked: Vec<usize> = asked(&mut requests).iter().map(|config| config.vms[0].ports.len()).collect();
    assert_eq!(asked, [3, 3], "the same again");
}

#[test]
fn a_switch_that_does_not_answer_holds_libvirt_up_for_seconds_only() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let hook = Hook::at(socket);
    let text = ended(&hook.operation("start", RUNNING), 1);
    assert!(text.contains("no answer within") || text.contains("no end after"), "{text}");
    let text = ended(&hook.operation("stopped", RUNNING), 0);
    assert!(text.contains("the next call of the hook deletes"), "{text}");
    assert!(hook.record().unwrap().contains("\"gone\":true"));
}

#[test]
fn domains_without_ports_are_left_alone() {
    let hook = Hook::alone();
    let (head, rest) = RUNNING.split_once("<metadata>").unwrap();
    let plain = format!("{head}{}", rest.split_once("</metadata>").unwrap().1);
    for operation in ["prepare", "start", "started", "reconnect", "stopped", "release", "migrate", "restore", "later"] {
        assert_eq!(ended(&hook.operation(operation, &plain), 0), "", "{operation}");
    }
    assert_eq!(hook.record(), None);
    // also after one with ports has stopped without a switch
    ended(&hook.operation("stopped", RUNNING), 0);
    for operation in ["prepare", "start", "started", "reconnect"] {
        assert_eq!(ended(&hook.operation(operation, &plain), 0), "", "{operation}");
    }
    assert!(hook.record().unwrap().contains("\"gone\":true"), "its ports are still to be deleted");
}

#[test]
fn the_port_of_a_plugged_nic_must_be_described() {
    let hook = Hook::alone();
    let text = ended(&hook.call(&["up", "lo"], ""), 1);
    assert!(text.contains("tap \"lo\", up: no running domain has a port in its metadata"), "{text}");
    let text = ended(&hook.call(&["up", "../lo"], ""), 1);
    assert!(text.contains("not the name of a netdev"), "{text}");
    let text = ended(&hook.call(&["sideways", "lo"], ""), 2);
    assert!(text.contains("DOMAIN OPERATION"), "{text}");
}

#[test]
fn a_link_by_its_name_is_the_hook() {
    let directory = tempfile::tempdir().unwrap();
    let run = |name: &Path| Command::new(name).args(["../x"]).output().unwrap();
    for name in ["qemu", "vifswitch-libvirt-hook", "vifswitch-libvirt-up", "vifswitch-libvirt-down"] {
        let link = directory.path().join(name);
        symlink(support::host::program(), &link).unwrap();
        let output = run(&link);
        let text = String::from_utf8_lossy(&output.stderr);
        // `up` and `down` want the name of a tap, the others four arguments
        let is_tap = name.ends_with("-up") || name.ends_with("-down");
        assert_eq!(
            output.status.code(),
            Some(if is_tap { i32::from(name.ends_with("-up")) } else { 2 }),
            "{name}: {text}"
        );
        assert!(text.contains("libvirt-hook: "), "{name}: {text}");
    }
}
