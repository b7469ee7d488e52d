//! Fragments of the configuration in `conf.d`: applied at the start and on SIGHUP, each by its label. Needs root; makes its
//! own namespaces.

use std::fs;

use rustix::process::Signal;
use support::host::daemon::{Daemon, Vif, config, keeping};
use support::host::{Namespace, await_that};

/// A daemon over a file with one port, and a directory of fragments.
fn daemon(namespace: &Namespace) -> (Daemon, Vif) {
    let daemon = Daemon::new();
    let vif = Vif::new("a", 1, namespace);
    let text = config(&daemon.socket(), "", &[("net1", 1500)], std::slice::from_ref(&vif));
    daemon.configure(&keeping(&text, &daemon.state()));
    fs::create_dir(directory(&daemon)).unwrap();
    (daemon, vif)
}

fn directory(daemon: &Daemon) -> std::path::PathBuf {
    daemon.file().with_file_name("conf.d")
}

fn write(daemon: &Daemon, name: &str, text: &str) {
    fs::write(directory(daemon).join(name), text).unwrap();
}

/// A fragment with a port on a network.
fn with_port(vif: &Vif) -> String {
    let Vif { vm, port, network, mac, .. } = vif;
    format!(
        "[[vms]]\nid = \"{vm}\"\n[[vms.ports]]\nport_id = \"{port}\"\nnetwork_id = \"{network}\"\nmac_address = \"{mac}\"\n{}\n",
        vif.base()
    )
}

/// Waits until these are all ports.
fn await_ports(daemon: &Daemon, vifs: &[&Vif]) {
    let mut expected: Vec<&str> = vifs.iter().map(|vif| vif.port.as_str()).collect();
    expected.sort_unstable();
    await_that(&format!("{expected:?}"), || {
        let mut listed = daemon.listed();
        listed.sort_unstable();
        (listed == expected).then_some(())
    });
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
}

/// Waits until the log has a text.
fn await_log(daemon: &Daemon, text: &str) {
    await_that(text, || daemon.log().contains(text).then_some(()));
}

#[test]
fn fragments_are_applied_at_the_start_and_on_sighup() {
    let Some(namespace) = Namespace::new() else { return };
    let (mut daemon, of_file) = daemon(&namespace);
    let web = Vif { network: "net2".into(), ..Vif::new("web", 2, &namespace) };
    // The port's fragment comes before that of its network.
    write(&daemon, "a-web.toml", &with_port(&web));
    write(&daemon, "b-net.toml", "networks = [{ id = \"net2\" }]\n");
    let checked = daemon.try_command(&["check", "FILE"]);
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("2 networks") && checked.contains("with 2 fragments of conf.d"), "{checked}");
    daemon.start();
    await_ports(&daemon, &[&of_file, &web]);
    assert!(
        daemon.log().contains("conf.d/a-web.toml")
            || daemon
                .events()
                .iter()
                .any(|event| { event.by.as_ref().is_some_and(|by| by.request_id == "conf.d/a-web.toml") })
    );

    // Another one, an attached port, and one that is wrong: it keeps what it has.
    let (other, attached) = (Vif::new("other", 3, &namespace), Vif::new("c", 4, &namespace));
    daemon.attach(&attached);
    write(&daemon, "other.toml", &with_port(&other));
    write(&daemon, "a-web.toml", "[switch]\npoll = \"busy\"\n");
    daemon.signal(Signal::HUP);
    await_log(&daemon, "a-web.toml is not applied, and what has its label stays: [switch] belongs");
    await_ports(&daemon, &[&of_file, &web, &other, &attached]);

    // One is gone on SIGHUP, one while no switch runs.
    fs::remove_file(directory(&daemon).join("other.toml")).unwrap();
    write(&daemon, "a-web.toml", &with_port(&web));
    daemon.signal(Signal::HUP);
    await_ports(&daemon, &[&of_file, &web, &attached]);
    daemon.stop(Signal::KILL);
    fs::remove_file(directory(&daemon).join("a-web.toml")).unwrap();
    fs::remove_file(directory(&daemon).join("b-net.toml")).unwrap();
    daemon.start();
    await_ports(&daemon, &[&of_file, &attached]);
    await_that("its network to be removed", || {
        let networks: serde_json::Value = daemon.get("/v1/networks");
        (networks.as_array().unwrap().len() == 1).then_some(())
    });
}

/// A directory that cannot be read removes nothing.
#[test]
fn what_cannot_be_read_removes_nothing() {
    let Some(namespace) = Namespace::new() else { return };
    let (mut daemon, of_file) = daemon(&namespace);
    let web = Vif::new("web", 2, &namespace);
    write(&daemon, "web.toml", &with_port(&web));
    daemon.start();
    await_ports(&daemon, &[&of_file, &web]);
    let (there, aside) = (directory(&daemon), directory(&daemon).with_extension("aside"));
    fs::rename(&there, &aside).unwrap();
    fs::write(&there, "").unwrap();
    daemon.signal(Signal::HUP);
    await_log(&daemon, "no fragment is applied: ");
    await_ports(&daemon, &[&of_file, &web]);
    fs::remove_file(&there).unwrap();
    fs::rename(&aside, &there).unwrap();
    write(&daemon, "web.toml", "");
    daemon.signal(Signal::HUP);
    await_ports(&daemon, &[&of_file]);
}
