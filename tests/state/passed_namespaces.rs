//! Network namespaces that clients pass as descriptors: paths that stay valid, also over a kill of the switch, and files
//! that are removed when nothing uses them. Needs root; makes its own namespaces.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::host::daemon::{Daemon, Vif, attachment, config, keeping};
use support::host::{Inhabitant, Namespace, await_that};
use vifswitch::sys::netns::{Netns, within};
use vifswitch::sys::{link, passing};

/// The directory for namespaces without a name. Cleared when this is dropped.
struct Files(PathBuf);

impl Files {
    fn of(daemon: &Daemon) -> Files {
        Files(daemon.socket().with_file_name("netns"))
    }

    fn list(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in self.list() {
            let _ = unmount(&path, UnmountFlags::DETACH);
        }
    }
}

fn running() -> Daemon {
    let mut daemon = Daemon::new();
    daemon.configure(&keeping(&config(&daemon.socket(), "", &[("net1", 1500)], &[]), &daemon.state()));
    daemon.start();
    daemon
}

/// Sends a request with these descriptors. Returns status and body.
fn passing(socket: &Path, request: (&str, &str), body: &Value, files: &[&File]) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let (method, path) = request;
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: vifswitch\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    );
    let descriptors: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    // With the first byte; the rest comes later.
    assert_eq!(passing::send(&stream, &head.as_bytes()[..1], &descriptors).unwrap(), 1);
    stream.write_all(&head.as_bytes()[1..]).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // It answers before it has read all of a body that it refuses.
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        done => assert_eq!(done.unwrap(), answer.len()),
    }
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn port(number: u8, netns: &str) -> Value {
    let name = format!("tap{number}");
    json!({ "port_id": format!("port-{number}"), "network_id": "net1", "mac_address": format!("02:00:00:00:01:{number:02x}"),
        "device": { "kind": "tap", "name": name, "netns": netns } })
}

/// The namespace of a port, as configured.
fn netns(daemon: &Daemon, port: &str) -> String {
    let config: Value = daemon.get("/v1/config");
    let ports = config["vms"].as_array().unwrap().iter().flat_map(|vm| vm["ports"].as_array().unwrap());
    let found = ports.into_iter().find(|found| found["port_id"] == port).unwrap();
    found["device"]["netns"].as_str().unwrap().to_owned()
}

#[test]
fn a_namespace_without_a_name_outlives_its_process_and_the_switch_until_no_port_uses_it() {
    let Some(namespace) = Namespace::planned() else { return };
    let inhabitant = Inhabitant::alone();
    let file = File::open(inhabitant.netns()).unwrap();
    let (vif, second) = (Vif::new("vm", 1, &namespace), Vif::new("vm", 2, &namespace));
    let mut daemon = running();
    let files = Files::of(&daemon);
    let (status, answer) = passing(&daemon.socket(), ("POST", "/v1/vms/vm/ports"), &port(1, "fd:0"), &[&file]);
    assert_eq!(status, 201, "{answer}");
    daemon.await_active(&vif);
    let path = netns(&daemon, &vif.port);
    assert_eq!(files.list(), [Path::new(&path)]);
    drop((inhabitant, file));
    let links = || within(&Netns::At(path.clone().into()), || link::find("tap1").unwrap().is_some()).unwrap();
    assert!(links());
    daemon.stop(Signal::KILL);
    daemon.start();
    daemon.await_active(&vif);
    assert!(links());
    // Another request with the same namespace uses the same file, by the path.
    let again = File::open(&path).unwrap();
    let both = json!({ "ports": [port(1, &path), port(2, "fd:1")] });
    let (status, answer) = passing(&daemon.socket(), ("PUT", "/v1/vms/vm"), &both, &[&again, &again]);
    assert_eq!(status, 200, "{answer}");
    drop(again);
    daemon.await_active(&second);
    assert_eq!(netns(&daemon, &second.port), path);
    daemon.detach(&vif);
    daemon.await_active(&second);
    assert_eq!(files.list(), [Path::new(&path)]);
    daemon.detach(&second);
    // The example of the documentation, while the file may just be about to be removed.
    let third = Vif::new("vm", 3, &namespace);
    let (script, example) = ("docs/examples/pass_namespace.py", daemon.file().with_file_name("port.json"));
    let mut body = port(3, "");
    body["device_id"] = "vm".into();
    std::fs::write(&example, body.to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let inhabitant = Inhabitant::alone();
    let output = Command::new(script).arg(daemon.socket()).arg(example).arg(inhabitant.netns()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    daemon.await_active(&third);
    let path_of_third = netns(&daemon, &third.port);
    assert_ne!(path_of_third, path);
    await_that("the file that no port uses to be removed", || {
        (files.list() == [Path::new(&path_of_third)]).then_some(())
    });
    daemon.detach(&third);
    await_that("the file to be removed", || files.list().is_empty().then_some(()));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&path), "{mounts}");
}

#[test]
fn a_namespace_with_a_name_is_known_by_it() {
    let Some(namespace) = Namespace::new() else { return };
    let file = File::open(format!("/run/netns/{}", namespace.0)).unwrap();
    let vif = Vif { more: "lifetime = \"netns\"".into(), ..Vif::new("vm", 1, &namespace) };
    let daemon = running();
    let files = Files::of(&daemon);
    let body = port(1, "fd:0");
    let (status, answer) = passing(&daemon.socket(), ("POST", "/v1/vms/vm/ports"), &body, &[&file]);
    assert_eq!(status, 201, "{answer}");
    daemon.await_active(&vif);
    assert_eq!((netns(&daemon, &vif.port), files.list()), (format!("/run/netns/{}", namespace.0), vec![]));
    daemon.detach(&vif);
    // By the command; it ends with the namespace as by its name. The descriptor passed before is closed.
    drop(file);
    let mut command = Command::new("sh");
    command.arg("-c").arg("exec \"$@\" 7<\"$0\"").arg(format!("/run/netns/{}", namespace.0));
    command.arg(support::host::program()).args(["attach", "-", "--netns-fd", "7", "--socket"]).arg(daemon.socket());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(attachment(&vif).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    daemon.await_active(&vif);
    namespace.delete();
    await_that("the port to end", || daemon.listed().is_empty().then_some(()));
}

#[test]
fn what_cannot_be_honoured_is_refused_with_what_would_be_right() {
    let Some(namespace) = Namespace::new() else { return };
    let inhabitant = Inhabitant::alone();
    let mut daemon = Daemon::new();
    let read = daemon.socket().with_file_name("read.sock");
    let text = config(&daemon.socket(), &format!("api_read = {read:?}"), &[("net1", 1500)], &[]);
    daemon.configure(&text);
    daemon.start();
    let files = Files::of(&daemon);
    let (nameless, uts) = (File::open(inhabitant.netns()).unwrap(), File::open("/proc/self/ns/uts").unwrap());
    let null = File::open("/dev/null").unwrap();
    let ends = {
        let mut ends = port(1, "fd:0");
        ends["lifetime"] = "netns".into();
        ends
    };
    let too_many: Vec<&File> = std::iter::repeat_n(&null, 6).collect();
    for (body, files, kind, part) in [
        (port(1, "fd:0"), &[][..], "bad_value", "has passed 0 descriptors"),
        (port(1, "fd:1"), &[&nameless], "bad_value", "has passed 1 descriptors"),
        (port(1, "fd:0"), &[&uts], "bad_value", "not a network namespace"),
        (port(1, "fd:0"), &[&null], "bad_value", "/dev/null, not a network namespace"),
        (port(1, "fd:7"), &too_many, "bad_value", "has passed 6 descriptors"),
        (ends, &[&nameless], "contradiction", "would never end"),
    ] {
        let (status, answer) = passing(&daemon.socket(), ("POST", "/v1/vms/vm/ports"), &body, files);
        assert!(status == 400 && answer.contains(kind) && answer.contains(part), "{status} {answer}");
    }
    // A file of a request that was refused is removed.
    let mut wrong = port(1, "fd:0");
    wrong["network_id"] = "nowhere".into();
    let (status, answer) = passing(&daemon.socket(), ("POST", "/v1/vms/vm/ports"), &wrong, &[&nameless]);
    assert_eq!(status, 404, "{answer}");
    await_that("the file to be removed", || files.list().is_empty().then_some(()));
    // Where none are accepted.
    let (status, answer) = passing(&read, ("POST", "/v1/vms/vm/ports"), &port(1, "fd:0"), &[&nameless]);
    assert_eq!(status, 405, "{answer}");
    let by_file = Vif { netns: "fd:0".into(), ..Vif::new("vm", 1, &namespace) };
    daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], &[by_file]));
    let checked = daemon.try_command(&["check", "FILE"]);
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(!checked.status.success() && said.contains("only with a request over the unix socket"), "{checked:?}");
    assert_eq!(daemon.listed(), [""; 0]);
    let pid = daemon.pid();
    let held = || {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        files
            .filter(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.to_string_lossy().starts_with("uts:[")))
            .count()
    };
    await_that("descriptors to be closed", || (held() == 0).then_some(()));
}

/// As with the systemd unit, which does not permit `mount`.
#[test]
fn a_switch_that_cannot_bind_a_namespace_says_so() {
    let Some(_namespace) = Namespace::planned() else { return };
    let inhabitant = Inhabitant::alone();
    let mut daemon = Daemon::new();
    daemon.configure(&config(&daemon.socket(), "", &[("net1", 1500)], &[]));
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-all,+net_admin,+net_raw,+ipc_lock"]).arg(support::host::program());
    let file = daemon.file();
    daemon.start_as(command, "--config", &file);
    let namespace = File::open(inhabitant.netns()).unwrap();
    let (status, answer) = passing(&daemon.socket(), ("POST", "/v1/vms/vm/ports"), &port(1, "fd:0"), &[&namespace]);
    assert!(status == 400 && answer.contains("ip netns attach"), "{status} {answer}");
    assert_eq!(Files::of(&daemon).list().len(), 0);
}
