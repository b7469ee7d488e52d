//! `vifswitch bugreport` of a running switch, and of none: the parts of the archive, what is left out with its reason, and that
//! no secret is in it. Needs root for the running switch; makes its own namespaces.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flate2::read::GzDecoder;
use serde_json::Value;
use support::host::Namespace;
use support::host::daemon::{Daemon, Vif, config, keeping};

/// Value of a secret key, and a comment of an operator.
const SECRET: &str = "file:/nowhere/0123456789abcdef";

/// Files of an archive by name, without their directory.
fn unpacked(bytes: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(GzDecoder::new(bytes));
    let file = |entry: std::io::Result<tar::Entry<'_, GzDecoder<&[u8]>>>| {
        let mut entry = entry.unwrap();
        let mut text = Vec::new();
        entry.read_to_end(&mut text).unwrap();
        let path = entry.path().unwrap().into_owned();
        let name = path.strip_prefix("vifswitch-report").unwrap().to_str().unwrap().to_owned();
        (name, String::from_utf8(text).unwrap())
    };
    archive.entries().unwrap().map(file).collect()
}

/// Files of the last report in this directory.
fn report(daemon: &Daemon, path: &Path) -> (String, BTreeMap<String, String>) {
    let (file, socket) = (daemon.file(), daemon.socket());
    let [file, socket, output] = [&*file, &*socket, path].map(|path| path.to_str().unwrap());
    let done = daemon.try_command(&["bugreport", "--output", output, "--config", file, "--socket", socket]);
    assert!(done.status.success(), "{done:?}");
    (String::from_utf8(done.stdout).unwrap(), unpacked(&fs::read(path).unwrap()))
}

#[test]
fn a_report_has_what_a_running_switch_says_and_no_secret() {
    let Some(namespace) = Namespace::new() else { return };
    let mut daemon = Daemon::new();
    let vif = Vif::new("vm", 1, &namespace);
    let text = keeping(&config(&daemon.socket(), "", &[("net1", 1500)], std::slice::from_ref(&vif)), &daemon.state());
    daemon.configure(&text);
    daemon.start();
    daemon.await_active(&vif);
    // A later version of the file has a secret, which a text of the operator repeats. The switch does not run with it.
    daemon.configure(&format!(
        "# {SECRET}\n{}",
        text.replacen("[switch]", &format!("[switch]\nprobe_key = \"{SECRET}\""), 1)
    ));
    let path = daemon.file().with_file_name("report.tar.gz");
    let (said, files) = report(&daemon, &path);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    // The groups of parts: answers of the switch, its files, its process, and the host.
    let answers = [
        "configuration.json",
        "status.json",
        "log.json",
        "confirm.json",
        "ports.json",
        "uplinks.json",
        "networks.json",
        "vms.json",
        "workers.json",
        "drops.json",
        "storms.json",
        "loops.json",
        "audit.json",
        "events.jsonl",
        "metrics.txt",
    ];
    let others = [
        "contents.txt",
        "version.txt",
        "configuration-file.json",
        "state-file.txt",
        "process.txt",
        "kernel.txt",
        "links.txt",
        "namespaces.txt",
        "doctor.txt",
    ];
    let left_out = |name: &str| files["contents.txt"].contains(&format!("left out: {name}: "));
    let missing: Vec<_> = answers.iter().chain(&others).filter(|name| !files.contains_key(**name)).collect();
    assert!(missing.is_empty(), "{missing:?}: {}", files["contents.txt"]);
    assert!(answers.iter().chain(&others).all(|name| !left_out(name)), "{}", files["contents.txt"]);
    let json = |name: &str| serde_json::from_str::<Value>(&files[name]).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(json("ports.json")[0]["port_id"], "port-1");
    assert_eq!(json("configuration.json")["vms"][0]["id"], "vm");
    assert!(files["events.jsonl"].contains("\"port_up\"") && files["metrics.txt"].contains("vifswitch_port"));
    assert!(files["process.txt"].contains(&format!("Pid:\t{}\n", daemon.pid())), "{}", files["process.txt"]);
    assert!(files["state-file.txt"].contains("readable; generation "), "{}", files["state-file.txt"]);
    assert!(files["namespaces.txt"].contains(&namespace.0));
    assert!(files["links.txt"].contains("\"lo\""));
    // The value of the key is named, not shown; nor is the comment.
    assert_eq!(json("configuration-file.json")["switch"]["probe_key"], "(left out)");
    assert!(left_out("secret") && files["contents.txt"].contains("switch.probe_key"), "{}", files["contents.txt"]);
    let shown: Vec<_> = files.iter().filter(|(_, text)| text.contains(SECRET)).map(|(name, _)| name).collect();
    assert!(shown.is_empty() && !said.contains(SECRET), "{shown:?} {said}");
    assert!(
        said.contains(&format!("{} parts", files.len() - 1)) && said.contains("read it before you pass it on"),
        "{said}"
    );
    // No file is overwritten.
    let before = fs::read(&path).unwrap();
    let again = daemon.try_command(&["bugreport", "--output", path.to_str().unwrap()]);
    let error = String::from_utf8(again.stderr).unwrap();
    assert!(!again.status.success() && error.contains("exists already"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// Where no switch runs, the report has what is left, and says what is missing; to standard output goes the archive alone.
#[test]
fn without_a_switch_a_report_says_what_is_left_out() {
    let daemon = Daemon::new();
    let (file, socket) = (daemon.file(), daemon.socket());
    let [file, socket] = [&file, &socket].map(|path| path.to_str().unwrap());
    let done = daemon.try_command(&["bugreport", "--output", "-", "--config", file, "--socket", socket]);
    assert!(done.status.success(), "{done:?}");
    let files = unpacked(&done.stdout);
    let said = String::from_utf8(done.stderr).unwrap();
    for name in ["ports.json", "events.jsonl", "process.txt", "configuration-file.json"] {
        assert!(!files.contains_key(name) && files["contents.txt"].contains(&format!("left out: {name}: ")), "{name}");
        assert!(said.contains(&format!("left out: {name}: ")), "{name}: {said}");
    }
    assert!(files.contains_key("version.txt") && files.contains_key("kernel.txt"), "{:?}", files.keys());
}
