//! The configuration file and the stored state are merged, and neither loses anything. Needs root; makes its own
//! namespaces.

use std::fs;
use std::path::Path;

use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::{Value, json};
use vifswitch::control::api::client::{Client, Error};
use vifswitch::control::api::responses::Status;
use vifswitch::sys::link::Link;
use vifswitch::wire::Mac;

use support::host::daemon::{Daemon, Vif, attachment, config, keeping};
use support::host::disk::Disk;
use support::host::inject::Injected;
use support::host::nic::{Nic, experiment};
use support::host::setup::pass;
use support::host::{Namespace, await_that};

/// A switch with a state, over a configuration file that can be edited.
struct StateHost {
    daemon: Daemon,
    vifs: Vec<Vif>,
    namespace: Namespace,
}

impl StateHost {
    /// Not running, with the first of four ports.
    fn new() -> Option<StateHost> {
        let namespace = Namespace::new()?;
        let vif = |(number, vm): (u8, &str)| Vif::new(vm, number, &namespace);
        let vifs = (1..).zip(["a", "a", "b", "c"]).map(vif).collect();
        let host = StateHost { daemon: Daemon::new(), vifs, namespace };
        host.write(&[0], "", "");
        Some(host)
    }

    /// Writes the file: these ports, further keys of `[switch]` and of the network.
    fn write(&self, ports: &[usize], switch: &str, network: &str) {
        let vifs: Vec<Vif> = ports.iter().map(|&port| self.vifs[port].clone()).collect();
        let text = config(&self.daemon.socket(), switch, &[("net1", 1500)], &vifs);
        let text = text.replacen("mtu = 1500\n", &format!("mtu = 1500\n{network}\n"), 1);
        self.daemon.configure(&keeping(&text, &self.daemon.state()));
    }

    fn links(&self, ports: &[usize]) -> Vec<Option<Link>> {
        ports.iter().map(|&port| self.namespace.link(&self.vifs[port].name)).collect()
    }

    /// A key of the network, from the API.
    fn network(&self, key: &str) -> Value {
        self.daemon.get::<Value>("/v1/config")["networks"][0][key].take()
    }

    fn check(&self) -> String {
        let output = self.daemon.try_command(&["check", "FILE"]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// An edit elsewhere in the file detached every port attached over the API, and deleted the netdev of a VM.
#[test]
fn an_edit_of_the_file_keeps_attached_ports_and_their_netdevs() {
    let Some(mut host) = StateHost::new() else { return };
    host.daemon.start();
    host.daemon.attach(&host.vifs[1]);
    host.daemon.attach(&host.vifs[2]);
    host.daemon.done(&["set", "port-1", "promiscuous=true"], "");
    let before = host.links(&[0, 1, 2]);
    host.daemon.stop(Signal::TERM);

    host.write(&[0, 3], "", "ageing_seconds = 60");
    host.daemon.start();
    assert_eq!(host.daemon.listed(), ["port-1", "port-2", "port-3", "port-4"]);
    assert_eq!(host.links(&[0, 1, 2]), before, "no netdev was created again");
    assert_eq!(host.network("ageing_seconds"), 60);
    let config: Value = host.daemon.get("/v1/config");
    assert_eq!(config["vms"][0]["ports"][0]["promiscuous"], true, "what was set by API stays");
    // An event names each changed key with its old and new value.
    let events: Vec<String> = host.daemon.events().into_iter().map(|event| event.text).collect();
    let edit = events.iter().find(|text| text.contains("configuration file has been edited")).unwrap();
    assert!(edit.contains("ageing_seconds was 300 and is 60") && edit.contains("port \"port-4\" is new"), "{edit}");
    assert!(host.daemon.log().contains("ageing_seconds was 300 and is 60"));

    // The same again changes nothing; removing the port from the file detaches it, and no other.
    host.daemon.stop(Signal::KILL);
    host.write(&[3], "", "ageing_seconds = 60");
    host.daemon.start();
    assert_eq!(host.daemon.listed(), ["port-2", "port-3", "port-4"]);
    assert_eq!(host.links(&[1, 2]), before[1..]);
    await_that("the netdev of port-1 is gone", || host.links(&[0])[0].is_none().then_some(()));
}

#[test]
fn the_file_takes_precedence_in_conflicts_which_are_reported() {
    let Some(mut host) = StateHost::new() else { return };
    host.daemon.start();
    host.daemon.done(&["set", "port-1", "mac_address=02:00:00:00:01:77"], "");
    host.daemon.attach(&host.vifs[1]);
    host.daemon.stop(Signal::TERM);
    // The file also changes the port's address, and gives that of the attached port to another one.
    host.vifs[0].mac = "02:00:00:00:01:78".parse().unwrap();
    host.vifs[3].mac = host.vifs[1].mac;
    host.write(&[0, 3], "", "");

    let said = host.check();
    assert!(said.contains("a start changes in it") && said.contains("drops"), "{said}");
    assert!(said.contains("port \"port-1\": mac_address was set to \"02:00:00:00:01:77\" by API"), "{said}");
    assert!(said.contains("port \"port-2\" was added by API, which contradicts the file"), "{said}");

    host.daemon.start();
    assert_eq!(host.daemon.listed(), ["port-1", "port-4"]);
    assert_eq!(host.daemon.port(&host.vifs[0]).mac_address, "02:00:00:00:01:78");
    let events: Vec<String> = host.daemon.events().into_iter().map(|event| event.text).collect();
    let dropped = events.iter().find(|text| text.contains("dropped")).unwrap();
    assert!(dropped.contains("02:00:00:00:01:77") && dropped.contains("port \"port-2\""), "{dropped}");
    assert!(host.daemon.log().contains("dropped because the configuration file has precedence"));
}

#[test]
fn check_predicts_the_merge_of_a_start_and_changes_nothing() {
    let Some(mut host) = StateHost::new() else { return };
    let state = host.daemon.state();
    assert!(!host.check().contains("stored state") && !state.exists(), "check creates nothing");
    host.daemon.start();
    host.daemon.attach(&host.vifs[1]);
    // While a switch has it open, with changes in the write-ahead log.
    let said = host.check();
    assert!(said.contains("a start changes nothing in it"), "{said}");
    host.write(&[0], "", "ageing_seconds = 60");
    let said = host.check();
    assert!(said.contains("network \"net1\": ageing_seconds was 300 and is 60"), "{said}");
    assert!(!said.contains("port-2"), "the state is unchanged: {said}");
    let output = host.daemon.try_command(&["check", "FILE", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["state"]["changes"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["state"]["path"], state.to_str().unwrap());
    host.daemon.attach(&host.vifs[2]);
    host.daemon.stop(Signal::KILL);
    let files = || {
        let all = fs::read_dir(state.parent().unwrap()).unwrap().map(Result::unwrap);
        let mut all: Vec<_> = all.map(|file| (file.file_name(), fs::read(file.path()).ok())).collect();
        all.sort();
        all
    };
    let before = files();
    host.check();
    assert!(files() == before, "nothing is changed");
}

#[test]
fn a_file_that_replaces_the_state_is_applied_unmerged() {
    let Some(mut host) = StateHost::new() else { return };
    host.daemon.start();
    host.daemon.attach(&host.vifs[1]);
    host.daemon.stop(Signal::TERM);
    let mut command = host.daemon.command();
    // `run` is followed by the appended arguments, so the option goes after them by a shell.
    let program = command.get_program().to_owned();
    command = std::process::Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" --replace"]).arg(program);
    let file = host.daemon.file();
    host.daemon.start_as(command, "--config", &file);
    assert_eq!(host.daemon.listed(), ["port-1"]);
    await_that("the netdev of port-2 is gone", || host.links(&[1])[0].is_none().then_some(()));
    assert!(host.daemon.log().contains("replaces the stored state"), "{}", host.daemon.log());
    host.daemon.stop(Signal::TERM);
    host.daemon.start();
    assert_eq!(host.daemon.listed(), ["port-1"]);
}

/// Installs a state of another version for the daemon, with `namespace` as its namespaces.
fn put_state(dump: &str, host: &StateHost) {
    let state = host.daemon.state();
    let database = Connection::open(&state).unwrap();
    database.execute_batch(&dump.replace("golden-netns", &host.namespace.0)).unwrap();
    drop(database);
}

/// A part of the stored desired state.
fn part(path: &Path, name: &str) -> Value {
    let database = Connection::open(path).unwrap();
    let text: String =
        database.query_row("SELECT json FROM desired WHERE part = ?1", [name], |row| row.get(0)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn edit_part(path: &Path, name: &str, edit: impl FnOnce(&mut Value)) {
    let mut value = part(path, name);
    edit(&mut value);
    let database = Connection::open(path).unwrap();
    database.execute("UPDATE desired SET json = ?2 WHERE part = ?1", [name, &value.to_string()]).unwrap();
}

/// States written by earlier versions are read: attached ports, settings and learned stations.
#[test]
fn states_of_all_versions_are_read() {
    let dumps = [("1", include_str!("../golden/state-1.sql")), ("2", include_str!("../golden/state-2.sql"))];
    for (version, dump) in dumps {
        let Some(mut host) = StateHost::new() else { return };
        host.namespace.ip("link add golden0 type veth peer name golden1");
        // Shifts its times as if it had been stored just now.
        put_state(dump, &host);
        let state = host.daemon.state();
        edit_part(&state, "config", |config| {
            config["switch"] = json!({"api": host.daemon.socket(), "state": state, "frames": 2048, "stations": 4096});
        });
        host.daemon.start_over("--state", &state);
        assert_eq!(host.daemon.listed(), ["file-1", "file-2", "api-1"], "version {version}");
        let config: Value = host.daemon.get("/v1/config");
        let [network, port, api] =
            [&config["networks"][0], &config["vms"][0]["ports"][0], &config["vms"][1]["ports"][0]];
        assert_eq!((&network["ageing_seconds"], &config["networks"][1]["mtu"]), (&json!(600), &json!(1400)));
        assert_eq!(
            (&network["storm"]["broadcast"]["pps"], &network["storm"]["multicast"]),
            (&json!(400), &json!("off"))
        );
        assert_eq!(
            (&port["promiscuous"], &port["port_security"], &port["fixed_ips"]),
            (&json!(true), &json!("mac+ip"), &json!(["10.5.0.1"]))
        );
        assert_eq!(
            (&api["port_security"], &api["mac_limit"], &api["device"]["queues"]),
            (&json!("off"), &json!(100), &json!(2))
        );
        assert_eq!((&config["uplinks"][0]["id"], &config["vms"][0]["share_mac"]), (&json!("up"), &json!(true)));
        assert!(!host.daemon.events().is_empty());
        host.daemon.stop(Signal::TERM);
        // A newly stored state has no defaults, and names its version.
        host.daemon.start_over("--state", &state);
        assert_eq!(host.daemon.get::<Value>("/v1/config"), config, "version {version}");
        host.daemon.stop(Signal::TERM);
        assert_eq!(part(&state, "version")["format"], 2);
        assert_eq!(part(&state, "config")["networks"][1], json!({"id": "net2", "mtu": 1400}));
    }
}

/// After a downgrade, one unknown key made the switch start without the attached ports.
#[test]
fn unknown_keys_of_a_state_are_kept() {
    let Some(mut host) = StateHost::new() else { return };
    host.daemon.start();
    host.daemon.attach(&host.vifs[1]);
    host.daemon.attach(&host.vifs[2]);
    host.daemon.stop(Signal::TERM);
    let (state, later) = (host.daemon.state(), json!({"fast": true}));
    edit_part(&state, "config", |config| {
        config["planets"] = json!(8);
        config["vms"][0]["ports"][1]["later"] = later.clone();
        // A device kind that this version does not have.
        config["vms"][1]["ports"][0]["device"] = json!({"kind": "vhost-user", "path": "/run/p.sock"});
    });
    let port = part(&state, "config")["vms"][1]["ports"][0].clone();
    host.daemon.start();
    assert_eq!(host.daemon.listed(), ["port-1", "port-2"]);
    assert!(host.daemon.log().contains("unknown to this version"), "{}", host.daemon.log());
    host.daemon.done(&["set", "port-2", "promiscuous=true"], "");
    host.daemon.stop(Signal::TERM);
    let config = part(&state, "config");
    assert_eq!((&config["planets"], &config["vms"][0]["ports"][1]["later"]), (&json!(8), &later));
    assert_eq!(config["vms"][1]["ports"][0], port);
    assert!(host.namespace.link("tap3").is_some(), "the netdev of a port of unknown kind is kept");
    // Conversely, keys with default values are not written, so that older versions do not meet them.
    assert_eq!(config["vms"][0]["ports"][1]["promiscuous"], true);
    assert_eq!(config["vms"][0]["ports"][1].get("port_security"), None);
}

#[test]
fn a_state_of_a_later_format_is_refused_and_unchanged() {
    let Some(mut host) = StateHost::new() else { return };
    host.daemon.start();
    host.daemon.stop(Signal::TERM);
    let state = host.daemon.state();
    Connection::open(&state).unwrap().pragma_update(None, "user_version", 7).unwrap();
    let before = fs::read(&state).unwrap();
    let said = host.check();
    assert!(said.contains("written by a later version of vifswitch (format 7"), "{said}");
    host.daemon.start();
    let refused = host.daemon.run_command(&["detach", "port-1"], "");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("(format 7;") && why.contains("run that version"), "{why}");
    host.daemon.stop(Signal::TERM);
    assert!(fs::read(&state).unwrap() == before, "the file is unchanged");
}

/// A lock held by another process for seconds cost the attached ports until the next start.
#[test]
fn a_state_in_use_is_waited_for() {
    let Some(mut host) = StateHost::new() else { return };
    host.daemon.start();
    host.daemon.attach(&host.vifs[1]);
    host.daemon.stop(Signal::TERM);
    let other = Connection::open(host.daemon.state()).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let file = host.daemon.file();
    host.daemon.spawn_over("--config", &file);
    // The first attempt takes half a second; the old version made no other.
    await_that("the switch to find the state in use", || {
        host.daemon.log().contains("in use by another process").then_some(())
    });
    drop(other);
    host.daemon.await_note("READY=1");
    assert_eq!(host.daemon.listed(), ["port-1", "port-2"]);
    host.daemon.attach(&host.vifs[2]);
}

impl StateHost {
    /// The same, with its state on a disk.
    fn on(disk: &Disk) -> Option<StateHost> {
        let host = StateHost::new()?;
        let text = fs::read_to_string(host.daemon.file()).unwrap();
        let [from, to] = [host.daemon.state(), disk.state()].map(|path| format!("{path:?}"));
        host.daemon.configure(&text.replace(&from, &to));
        Some(host)
    }

    fn is_refused(&self, vif: &Vif) {
        let output = self.daemon.run_command(&["attach", "-"], &attachment(vif));
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "a change was accepted that cannot be stored");
        assert!(why.contains(self.where_it_is().as_str()), "{why}");
    }

    /// Path of the state, as in the file.
    fn where_it_is(&self) -> String {
        let text = fs::read_to_string(self.daemon.file()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("state = ")).unwrap();
        line.trim_matches('"').to_owned()
    }

    /// Waits until a port can be attached, without a restart, and is there after one. Both have events.
    fn recovers(&mut self, vif: &Vif) {
        await_that("changes to be accepted again", || {
            self.daemon.run_command(&["attach", "-"], &attachment(vif)).status.success().then_some(())
        });
        let states = |daemon: &Daemon| -> Vec<String> {
            let reported = daemon.page("/v1/events");
            let events = reported.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            events
                .filter(|event| event["kind"] == "state")
                .map(|event| event["text"].as_str().unwrap().to_owned())
                .collect()
        };
        let reported = await_that("both events", || Some(states(&self.daemon)).filter(|reported| reported.len() >= 2));
        assert!(reported[0].contains("store_failed") && reported[0].contains(&self.where_it_is()), "{reported:?}");
        assert!(reported[1].contains("can be stored again") && reported.len() == 2, "{reported:?}");
        self.daemon.await_active(vif);
        self.daemon.stop(Signal::KILL);
        self.daemon.start();
        assert!(self.daemon.listed().contains(&vif.port), "answered changes are stored");
        assert_eq!(states(&self.daemon), reported, "and events");
    }
}

#[test]
fn a_disk_full_at_the_start_recovers() {
    let Some(disk) = Disk::new("size=1m") else { return };
    let Some(mut host) = StateHost::on(&disk) else { return };
    disk.fill();
    host.daemon.start();
    host.daemon.await_active(&host.vifs[0]);
    host.is_refused(&host.vifs[1]);
    disk.make_room();
    host.recovers(&host.vifs[1].clone());
}

/// A change was refused until the next retry of the state, up to two seconds later.
#[test]
fn the_first_change_after_a_full_disk_recovers_is_accepted() {
    let Some(disk) = Disk::new("size=1m") else { return };
    let Some(mut host) = StateHost::on(&disk) else { return };
    disk.fill();
    host.daemon.start();
    for _ in 0..3 {
        host.is_refused(&host.vifs[1]);
    }
    let reload = |host: &StateHost| host.daemon.page("/v1/events").matches("reload failed").count();
    host.daemon.signal(Signal::HUP);
    await_that("a reload is refused", || (reload(&host) == 1).then_some(()));
    disk.make_room();
    host.daemon.attach(&host.vifs[1]);
    assert_eq!(host.daemon.listed(), ["port-1", "port-2"]);
    host.daemon.await_active(&host.vifs[1]);
    // While running as well.
    disk.fill();
    let is_taken = |host: &StateHost, value: usize| {
        let value = format!("mac_limit={value}");
        host.daemon.run_command(&["set", "port-1", &value], "").status.success()
    };
    let refused = (0..2000).find(|&value| !is_taken(&host, 100 + value));
    assert!(refused.is_some(), "the disk is not full");
    disk.make_room();
    assert!(is_taken(&host, 99));
    host.daemon.stop(Signal::KILL);
    host.daemon.start();
    assert_eq!(host.daemon.listed(), ["port-1", "port-2"]);
    assert_eq!(host.daemon.get::<Value>("/v1/config")["vms"][0]["ports"][0]["mac_limit"], 99);
}

/// With a readable state the attached ports are there.
#[test]
fn a_state_read_only_at_the_start_is_read_and_written_later() {
    for how in ["inodes", "read-only"] {
        let Some(disk) = Disk::new("size=4m,nr_inodes=12") else { return };
        let Some(mut host) = StateHost::on(&disk) else { return };
        host.daemon.start();
        host.daemon.attach(&host.vifs[1]);
        // Killed, the desired state is in the write-ahead log only.
        host.daemon.stop(if how == "inodes" { Signal::TERM } else { Signal::KILL });
        if how == "inodes" {
            disk.take_inodes()
        } else {
            disk.remount("ro")
        }
        host.daemon.start();
        assert_eq!(host.daemon.listed(), ["port-1", "port-2"], "{how}");
        host.is_refused(&host.vifs[2]);
        if how == "inodes" {
            disk.make_room()
        } else {
            disk.remount("rw")
        }
        host.recovers(&host.vifs[2].clone());
    }
}

/// The state is unreadable at the start and readable later: attached ports are opened then.
#[test]
fn a_state_usable_after_the_start_restores_its_ports() {
    let Some(mut host) = StateHost::new() else { return };
    host.daemon.start();
    host.daemon.attach(&host.vifs[1]);
    host.daemon.stop(Signal::TERM);
    let (state, away) = (host.daemon.state(), host.daemon.state().with_extension("away"));
    fs::rename(&state, &away).unwrap();
    // In its place is something other than a file, such as the mount point of a disk.
    fs::create_dir(&state).unwrap();
    host.daemon.start();
    assert_eq!(host.daemon.listed(), ["port-1"]);
    assert_eq!(host.links(&[1]).iter().flatten().count(), 1, "the netdev of an unknown port is kept");
    fs::remove_dir(&state).unwrap();
    fs::rename(&away, &state).unwrap();
    await_that("the port that was attached", || (host.daemon.listed() == ["port-1", "port-2"]).then_some(()));
    host.daemon.await_active(&host.vifs[1]);
    host.recovers(&host.vifs[2].clone());
    assert_eq!(host.daemon.listed(), ["port-1", "port-2", "port-3"]);
}

/// Stations, mitigation and activation were lost when the state became usable only after the start.
#[test]
fn a_state_usable_after_the_start_restores_stations_and_mitigation() {
    let Some(mut host) = StateHost::new() else { return };
    host.vifs[0].more = "storm = { broadcast = { pps = 5, action = \"disable\", recovery_seconds = 3600 } }".to_owned();
    host.vifs[2].more = "port_security = \"off\"".to_owned();
    host.vifs[3].more = "activation = \"first-frame\"".to_owned();
    host.write(&[0, 2, 3], "", "");
    host.daemon.start();
    let [storming, open, waiting] = [0, 2, 3].map(|port| {
        host.daemon.await_active(&host.vifs[port]);
        Nic::new(&host.namespace, &host.vifs[port].name)
    });
    let station = Mac::from_bits(0x0200_0000_7777);
    open.send(&experiment(Mac::BROADCAST, station, b"here"));
    waiting.send(&experiment(Mac::BROADCAST, host.vifs[3].mac, b"here"));
    let found = |host: &StateHost, mac: Mac, kind: &str| {
        let stations: Value = host.daemon.get("/v1/fdb");
        let all = stations.as_array().unwrap();
        all.iter().any(|of| of["mac_address"] == mac.to_string() && of["kind"] == kind)
    };
    let is_held = |host: &StateHost| host.daemon.port(&host.vifs[0]).status == Status::Quarantined;
    let has_all =
        |host: &StateHost| is_held(host) && found(host, station, "learned") && found(host, host.vifs[3].mac, "pinned");
    await_that("all of it", || {
        (0..40).for_each(|number| storming.send(&experiment(Mac::BROADCAST, host.vifs[0].mac, &[number])));
        has_all(&host).then_some(())
    });
    host.daemon.stop(Signal::TERM);
    let (state, away) = (host.daemon.state(), host.daemon.state().with_extension("away"));
    fs::rename(&state, &away).unwrap();
    fs::create_dir(&state).unwrap();
    host.daemon.start();
    assert!(!is_held(&host) && !found(&host, station, "learned") && !found(&host, host.vifs[3].mac, "pinned"));
    fs::remove_dir(&state).unwrap();
    fs::rename(&away, &state).unwrap();
    await_that("all of it again", || has_all(&host).then_some(()));
    // And it is stored again.
    host.daemon.stop(Signal::TERM);
    host.daemon.start();
    await_that("all of it after a restart", || has_all(&host).then_some(()));
}

/// Writes to a deleted file are lost at the next start.
#[test]
fn a_deleted_state_is_created_again() {
    let Some(disk) = Disk::new("size=4m") else { return };
    let Some(mut host) = StateHost::on(&disk) else { return };
    host.daemon.start();
    host.daemon.attach(&host.vifs[1]);
    let take_away = || {
        for file in fs::read_dir(disk.path()).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
    };
    // An event that does not change the desired state.
    take_away();
    host.namespace.ip("link del tap2");
    await_that("the state", || disk.state().exists().then_some(()));
    host.daemon.stop(Signal::TERM);
    host.daemon.start();
    assert_eq!(host.daemon.listed(), ["port-1", "port-2"]);
    // And a change.
    take_away();
    host.daemon.attach(&host.vifs[2]);
    host.daemon.stop(Signal::KILL);
    host.daemon.start();
    assert_eq!(host.daemon.listed(), ["port-1", "port-2", "port-3"]);
}

/// A new state file got its name before it contained the desired state, and a kill in between lost it.
#[test]
fn a_new_state_file_contains_the_configuration_before_its_name() {
    let Some(disk) = Disk::new("size=4m") else { return };
    let Some(mut host) = StateHost::on(&disk) else { return };
    host.daemon.start();
    host.daemon.attach(&host.vifs[1]);
    // The thread stops after the system call that names the file, for longer than the test takes.
    let naming = Injected::new(&host.daemon, "vifswitch-store", "renameat2,linkat", "delay_exit=60000000");
    let Some(naming) = naming else { return };
    for file in fs::read_dir(disk.path()).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    host.namespace.ip("link del tap2");
    await_that("the state", || disk.state().exists().then_some(()));
    host.daemon.signal(Signal::KILL);
    // The process ends when strace detaches.
    drop(naming);
    host.daemon.wait();
    host.daemon.start();
    assert_eq!(host.daemon.listed(), ["port-1", "port-2"]);
}

#[test]
fn a_failing_disk_stops_changes_until_it_recovers() {
    let Some(mut host) = StateHost::new() else { return };
    host.daemon.start();
    let failing = Injected::new(&host.daemon, "vifswitch-store", "pwrite64,fdatasync,fsync", "error=EIO");
    let Some(failing) = failing else { return };
    host.is_refused(&host.vifs[1]);
    assert_eq!(host.daemon.listed(), ["port-1"]);
    drop(failing);
    host.recovers(&host.vifs[1].clone());
}

/// Calls of the store, errors, and what the refusal says of them.
const FAILING: &[(&str, &str, &str)] = &[
    ("pwrite64", "EIO", "disk I/O error"),
    ("pwrite64", "ENOSPC", "no space left"),
    ("pwrite64", "EDQUOT", "disk I/O error"),
    ("fsync,fdatasync", "EIO", "disk I/O error"),
    ("fsync,fdatasync", "ENOSPC", "disk I/O error"),
    ("statx,newfstatat,fstat", "EIO", "cannot"),
];

/// Calls that create a file, and errors.
const MAKING: &[(&str, &str, &str)] = &[
    ("open,openat", "EMFILE", "Too many open files"),
    ("open,openat", "EIO", "Input/output error"),
    ("open,openat", "ENOSPC", "no space left"),
    ("rename,renameat2,link,linkat", "EIO", "Input/output error"),
];

/// Whatever a call of the disk returns: frames pass, the change is refused with the reason and has no effect, and the next
/// one after the failure is accepted.
#[test]
fn each_error_of_the_disk_refuses_changes_and_passes() {
    let Some(mut host) = StateHost::new() else { return };
    host.write(&[0, 2], "", "");
    host.daemon.start();
    let nics = [0, 2].map(|port| {
        host.daemon.await_active(&host.vifs[port]);
        Nic::new(&host.namespace, &host.vifs[port].name)
    });
    let limit = |host: &StateHost| host.daemon.get::<Value>("/v1/config")["vms"][0]["ports"][0]["mac_limit"].clone();
    let set = |host: &StateHost, to: usize| host.daemon.run_command(&["set", "port-1", &format!("mac_limit={to}")], "");
    let made = FAILING.iter().map(|failing| (failing, false)).chain(MAKING.iter().map(|failing| (failing, true)));
    for (number, ((calls, error, reason), is_made)) in made.enumerate() {
        let what = format!("{calls} {error}");
        assert!(set(&host, 100 + number).status.success(), "{what}");
        let injected = Injected::new(&host.daemon, "vifswitch-store", calls, &format!("error={error}"));
        let Some(failing) = injected else { return };
        if is_made {
            // Someone removes the state, and it is created again.
            for suffix in ["", "-wal"] {
                let _ = fs::remove_file(format!("{}{suffix}", host.daemon.state().display()));
            }
        }
        let refused = set(&host, 200);
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && why.contains(reason), "{what}: {why}");
        assert!(why.contains(&host.where_it_is()), "{what}: {why}");
        failing.await_call(&what);
        assert_eq!(limit(&host), 100 + number, "{what}: a refused change is in effect");
        for round in 0..5 {
            let [a, b] = [0, 2].map(|port| &host.vifs[port]);
            pass((&nics[0], a), (&nics[1], b), &format!("{what} {round}"));
            pass((&nics[1], b), (&nics[0], a), &format!("{what} back {round}"));
        }
        drop(failing);
        let output = set(&host, 300 + number);
        assert!(output.status.success(), "{what}: the first change afterwards: {output:?}");
        assert_eq!(limit(&host), 300 + number);
    }
    host.daemon.stop(Signal::KILL);
    host.daemon.start();
    assert_eq!(limit(&host), 300 + FAILING.len() + MAKING.len() - 1, "the last answered change is stored");
}

/// The wall clock was ten years ahead or behind when a port was quarantined, and is right at the next start.
#[test]
fn a_quarantine_survives_clock_changes_over_a_restart() {
    const YEARS: i64 = 10 * 365 * 86_400_000;
    for shift in [YEARS, -YEARS] {
        let Some(mut host) = StateHost::new() else { return };
        let recovery = 6;
        host.vifs[0].more =
            format!("storm = {{ broadcast = {{ pps = 5, action = \"disable\", recovery_seconds = {recovery} }} }}");
        host.write(&[0, 2], "", "");
        host.daemon.start();
        let nic = Nic::new(&host.namespace, &host.vifs[0].name);
        let held = |host: &StateHost| host.daemon.port(&host.vifs[0]).status == Status::Quarantined;
        await_that("the quarantined port", || {
            (0..40).for_each(|number| nic.send(&experiment(Mac::BROADCAST, host.vifs[0].mac, &[number])));
            held(&host).then_some(())
        });
        host.daemon.stop(Signal::TERM);
        // Shifts the stored times as such a clock would have.
        edit_part(&host.daemon.state(), "loops", |loops| {
            for of in loops["disabled"].as_array_mut().unwrap() {
                for key in ["since", "until"] {
                    of[key] = json!(of[key].as_i64().unwrap() + shift);
                }
            }
            if let Some(wall) = loops["stamp"]["wall_millis"].as_i64() {
                loops["stamp"]["wall_millis"] = json!(wall + shift);
            }
        });
        host.daemon.start();
        assert!(held(&host), "the quarantine is lost: shifted by {shift}");
        // Within the hold time, plus the time of a slow machine.
        await_that("its end", || (!held(&host)).then_some(()));
    }
}

/// An id too long for the alias of its netdev was accepted, and the port stayed down.
#[test]
fn an_id_too_long_for_its_netdev_is_refused_with_the_limit() {
    let Some(mut host) = StateHost::new() else { return };
    host.daemon.start();
    let mut vif = host.vifs[1].clone();
    vif.port = "x".repeat(244);
    host.daemon.attach(&vif);
    host.daemon.await_active(&vif);
    // In bytes: each of these characters has two.
    for id in ["y".repeat(245), format!("z{}", "ü".repeat(123)), "y".repeat(255)] {
        let mut vif = host.vifs[2].clone();
        vif.port = id;
        let output = host.daemon.run_command(&["attach", "-"], &attachment(&vif));
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{} bytes are accepted: {why}", vif.port.len());
        let length = format!("{} bytes long", vif.port.len());
        for piece in ["port_id", &vif.port[..19], length.as_str(), "1 to 244 bytes"] {
            assert!(why.contains(piece), "no {piece} in {why}");
        }
    }
    host.vifs[0].port = "w".repeat(245);
    host.write(&[0], "", "");
    let output = host.daemon.try_command(&["check", "FILE"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    // The path of an API request is an id too.
    host.daemon.detach(&vif);
}

/// All stations are restored before the switch is ready, in bounded time, also those in rows of an earlier version. Once
/// it was those seen last, and frames to others were flooded.
#[test]
fn many_stations_are_restored_before_the_switch_is_ready() {
    const STATIONS: i64 = 65_536;
    let Some(mut host) = StateHost::new() else { return };
    let text = fs::read_to_string(host.daemon.file()).unwrap().replace("stations = 4096", "stations = 524288");
    let text = text.replace("mtu = 1500\n", "mtu = 1500\nfdb_limit = 524288\nfdb_limit_per_port = 524288\n");
    host.daemon.configure(&text.replace("network_id = \"net1\"\n", "network_id = \"net1\"\nport_security = \"off\"\n"));
    host.daemon.start();
    host.daemon.stop(Signal::TERM);
    let state = host.daemon.state();
    let mut database = Connection::open(&state).unwrap();
    let transaction = database.transaction().unwrap();
    let set: i64 = transaction.query_row("SELECT stations FROM current", [], |row| row.get(0)).unwrap();
    transaction.execute(&format!("DELETE FROM places_{set}"), []).unwrap();
    transaction.execute(&format!("INSERT INTO places_{set} VALUES (0, 'net1', 'port-1')"), []).unwrap();
    let first = 0x0a00_0000_0000_i64;
    transaction
        .execute(
            &format!(
                "INSERT INTO stations_{set} WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n LIMIT {STATIONS})
                 SELECT {first} + n, 0, 0 FROM n"
            ),
            [],
        )
        .unwrap();
    // A switch that was stopped at once has saved none, and has no time of a save.
    transaction.execute("UPDATE current SET saved_at = unixepoch() * 1000", []).unwrap();
    transaction.execute("DELETE FROM desired WHERE part = 'stations'", []).unwrap();
    transaction.commit().unwrap();
    drop(database);
    // All are restored; a switch stopped before that has them again at the next start.
    let known = |host: &StateHost| -> i64 { host.daemon.get::<Value>("/v1/networks")[0]["stations"].as_i64().unwrap() };
    let is_ready_behind = |host: &mut StateHost| {
        host.daemon.start();
        let at_ready = known(host);
        host.daemon.stop(Signal::KILL);
        at_ready == STATIONS
    };
    // Killed, it reads the same state again. On a busy machine the time for all may be over.
    assert!((0..5).any(|_| is_ready_behind(&mut host)), "READY comes before all stations");
    host.daemon.start();
    // On a busy machine it takes time.
    let mut now = known(&host);
    while now < STATIONS {
        now = await_that("more stations", || Some(known(&host)).filter(|&more| more > now));
    }
}

/// The file names the namespace of a port differently: its netdev is the same and stays.
#[test]
fn a_netdev_is_kept_when_its_namespace_is_named_differently() {
    let Some(mut host) = StateHost::new() else { return };
    host.daemon.start();
    let before = host.links(&[0]);
    let name = host.namespace.0.clone();
    // While running, and over a restart. As paths, the first two are equal.
    for (signal, netns) in [
        (Signal::TERM, format!("/run/./netns/{name}")),
        (Signal::HUP, format!("/run//netns/{name}")),
        (Signal::HUP, format!("/run/netns/../netns/{name}")),
    ] {
        host.vifs[0].netns = netns;
        host.write(&[0], "", "");
        if signal == Signal::HUP {
            host.daemon.signal(signal);
            host.daemon.await_note("READY=1");
        } else {
            host.daemon.stop(signal);
            host.daemon.start();
        }
        host.daemon.await_active(&host.vifs[0]);
        assert_eq!(host.links(&[0]), before, "{signal:?}");
    }
    // The netdev is still recognised: it is removed with its port.
    host.daemon.detach(&host.vifs[0]);
    await_that("its netdev is gone", || host.links(&[0])[0].is_none().then_some(()));
}

/// Deterministic random numbers, from a seed that is printed.
struct Rng(u64);

impl Rng {
    /// A number below `sides`.
    fn below(&mut self, sides: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

/// Expected state of a port that is attached and detached over the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Attached,
    Detached,
    /// The last change was not answered.
    Either,
}

/// A switch whose file is edited while ports are attached and detached over the API.
struct RestartScenario {
    host: StateHost,
    /// Ports of the file, and whether each is in it now.
    of_file: Vec<(Vif, bool)>,
    of_api: Vec<(Vif, Known)>,
    /// Interface indices by port of netdevs that must not be removed.
    netdevs: std::collections::HashMap<String, u32>,
    rng: Rng,
    answered: u32,
    unanswered: u32,
}

impl RestartScenario {
    /// Edits the file atomically.
    fn edit(&mut self) {
        let change = self.rng.below(self.of_file.len() as u64) as usize;
        self.of_file[change].1 ^= true;
        let ageing = format!("ageing_seconds = {}", 60 + self.rng.below(1000));
        let vifs: Vec<Vif> = self.of_file.iter().filter(|(_, stands)| *stands).map(|(vif, _)| vif.clone()).collect();
        let text = config(&self.host.daemon.socket(), "", &[("net1", 1500)], &vifs);
        let text = text.replacen("mtu = 1500\n", &format!("mtu = 1500\n{ageing}\n"), 1);
        let new = self.host.daemon.file().with_extension("new");
        fs::write(&new, keeping(&text, &self.host.daemon.state())).unwrap();
        fs::rename(new, self.host.daemon.file()).unwrap();
        for (vif, stands) in &self.of_file {
            if !stands {
                self.netdevs.remove(&vif.port);
            }
        }
    }

    /// Attaches and detaches until `until` is set, or the switch does not answer.
    fn change_until(&mut self, until: &std::sync::atomic::AtomicBool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = Client::new(self.host.daemon.socket());
        while !until.load(std::sync::atomic::Ordering::Relaxed) {
            let which = self.rng.below(self.of_api.len() as u64) as usize;
            let (vif, known) = &mut self.of_api[which];
            let attach = *known != Known::Attached;
            let answer = runtime.block_on(async {
                if attach {
                    let device = json!({"kind": "tap", "name": vif.name, "netns": vif.netns});
                    let mac = vif.mac.to_string();
                    let body =
                        json!({"port_id": vif.port, "network_id": vif.network, "mac_address": mac, "device": device});
                    client.request(hyper::Method::POST, &format!("/v1/vms/{}/ports", vif.vm), Some(&body)).await
                } else {
                    client.request(hyper::Method::DELETE, &format!("/v1/ports/{}", vif.port), None).await
                }
            });
            match answer {
                Ok(_) => {
                    *known = if attach { Known::Attached } else { Known::Detached };
                    self.answered += 1;
                    if !attach {
                        self.netdevs.remove(&vif.port);
                    }
                }
                Err(Error::Refused { kind, .. }) if kind != "shutting_down" => panic!("{attach} {vif:?}: {kind}"),
                // Unknown: either state is allowed.
                Err(_) => {
                    *known = Known::Either;
                    self.netdevs.remove(&vif.port);
                    self.unanswered += 1;
                    return;
                }
            }
        }
    }

    /// Asserts that answered changes are in force, and that no netdev of a desired port was removed.
    fn check(&mut self) {
        let listed = self.host.daemon.listed();
        let of_file =
            self.of_file.iter().map(|(vif, stands)| (vif, if *stands { Known::Attached } else { Known::Detached }));
        let of_api = self.of_api.iter().map(|(vif, known)| (vif, *known));
        for (vif, known) in of_file.chain(of_api) {
            let is_listed = listed.contains(&vif.port);
            assert!(
                known == Known::Either || is_listed == (known == Known::Attached),
                "{known:?}: {vif:?}, {listed:?}"
            );
            let link = || self.host.namespace.link(&vif.name).map(|link| link.index);
            if !is_listed {
                await_that("the removal of orphaned netdevs", || link().is_none().then_some(()));
                continue;
            }
            let index = link().unwrap_or_else(|| panic!("the netdev of {} was removed", vif.port));
            let before = *self.netdevs.entry(vif.port.clone()).or_insert(index);
            assert_eq!(index, before, "the netdev of {} was created again", vif.port);
        }
        for (vif, known) in &mut self.of_api {
            *known = if listed.contains(&vif.port) { Known::Attached } else { Known::Detached };
        }
    }

    /// Ends or reloads the switch at a random moment of changes, with its file edited.
    fn instant(&mut self) {
        let signal = [Signal::KILL, Signal::TERM, Signal::HUP][self.rng.below(3) as usize];
        let most = [2, 20, 60, 200][self.rng.below(4) as usize] * 1000;
        let micros = self.rng.below(most) as i64;
        let pid = rustix::process::Pid::from_raw(self.host.daemon.pid().cast_signed()).unwrap();
        if self.rng.below(2) == 0 {
            self.edit();
        }
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let over = &over;
            scope.spawn(move || {
                let pass = |micros: i64| {
                    let _ = rustix::thread::nanosleep(&rustix::event::Timespec { tv_sec: 0, tv_nsec: micros * 1000 });
                };
                pass(micros);
                rustix::process::kill_process(pid, signal).unwrap();
                if signal == Signal::HUP {
                    // Changes continue while the file is read.
                    pass(20_000);
                    over.store(true, std::sync::atomic::Ordering::Relaxed);
                }
            });
            self.change_until(over);
            over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        if signal == Signal::HUP {
            self.host.daemon.await_note("READY=1");
        } else {
            let ended = self.host.daemon.wait();
            assert!(signal == Signal::KILL || ended.code() == Some(0), "{ended:?}\n{}", self.host.daemon.log());
            if self.rng.below(2) == 0 {
                self.edit();
            }
            self.host.daemon.start();
        }
        self.check();
    }
}

/// Kills, stops and reloads at random moments during changes, with the file edited in between. `STATE_MOMENTS=200
/// cargo test --test regressions any_moment` tries more of them; `STATE_SEED` repeats a run, as far as timing
/// allows.
#[test]
fn ended_or_reloaded_at_any_moment_no_netdev_or_answered_change_is_lost() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (moments, seed) = (number("STATE_MOMENTS").unwrap_or(12), number("STATE_SEED"));
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 0x5_eed5);
    println!("STATE_SEED={seed}");
    let Some(mut host) = StateHost::new() else { return };
    let vif = |number: u8, vm: &str| Vif::new(vm, number, &host.namespace);
    let of_file: Vec<_> = (1..=3).map(|number| (vif(number, "a"), true)).collect();
    // Ports of the file's VM, and of others.
    let of_api = (4..=7).map(|number| (vif(number, if number < 6 { "a" } else { "b" }), Known::Detached)).collect();
    host.write(&[], "", "");
    host.daemon.start();
    let mut topology = RestartScenario {
        host,
        of_file,
        of_api,
        netdevs: std::collections::HashMap::new(),
        rng: Rng(seed | 1),
        answered: 0,
        unanswered: 0,
    };
    for (vif, stands) in &mut topology.of_file {
        *stands = vif.port == "port-1";
    }
    topology.edit();
    topology.host.daemon.stop(Signal::TERM);
    topology.host.daemon.start();
    topology.check();
    for _ in 0..moments {
        topology.instant();
    }
    let RestartScenario { answered, unanswered, .. } = topology;
    println!("{moments} moments: {answered} changes were answered, {unanswered} not");
    assert!(answered > 0 && unanswered > 0);
}
