//! The configuration file and the stored state are merged, and neither loses anything.

use std::fs;

use rustix::process::Signal;
use serde_json::Value;
use vifswitch::sys::link::Link;

use super::host::Space;
use super::host::daemon::{Daemon, Vif, config, keeping};

/// A switch that keeps its state, over a file of its own that can be edited.
struct Kept {
    daemon: Daemon,
    vifs: Vec<Vif>,
    space: Space,
}

impl Kept {
    /// Over the first port of four, which does not run yet.
    fn new() -> Option<Kept> {
        let space = Space::new()?;
        let vif = |(number, vm): (u8, &str)| Vif::new(vm, number, &space);
        let vifs = (1..).zip(["a", "a", "b", "c"]).map(vif).collect();
        let kept = Kept { daemon: Daemon::new(), vifs, space };
        kept.write(&[0], "", "");
        Some(kept)
    }

    /// Writes the file: these ports, further keys of `[switch]` and of the network.
    fn write(&self, ports: &[usize], switch: &str, network: &str) {
        let vifs: Vec<Vif> = ports.iter().map(|&port| self.vifs[port].clone()).collect();
        let text = config(&self.daemon.socket(), switch, &[("net1", 1500)], &vifs);
        let text = text.replacen("mtu = 1500\n", &format!("mtu = 1500\n{network}\n"), 1);
        self.daemon.configure(&keeping(&text, &self.daemon.state()));
    }

    fn links(&self, ports: &[usize]) -> Vec<Option<Link>> {
        ports.iter().map(|&port| self.space.link(&self.vifs[port].name)).collect()
    }

    /// The value of a key of the network, as the API has it.
    fn network(&self, key: &str) -> Value {
        self.daemon.get::<Value>("/v1/config")["networks"][0][key].take()
    }

    fn check(&self) -> String {
        let output = self.daemon.try_command(&["check", "FILE"]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// An edit elsewhere in the file detached every port that had been attached by API, and deleted the netdev of a VM.
#[test]
fn an_edit_of_the_file_keeps_the_ports_that_were_attached_and_their_netdevs() {
    let Some(mut kept) = Kept::new() else { return };
    kept.daemon.start();
    kept.daemon.attach(&kept.vifs[1]);
    kept.daemon.attach(&kept.vifs[2]);
    kept.daemon.done(&["set", "port-1", "promiscuous=true"], "");
    let before = kept.links(&[0, 1, 2]);
    kept.daemon.stop(Signal::TERM);

    kept.write(&[0, 3], "", "ageing_seconds = 60");
    kept.daemon.start();
    assert_eq!(kept.daemon.listed(), ["port-1", "port-2", "port-3", "port-4"]);
    assert_eq!(kept.links(&[0, 1, 2]), before, "no netdev was made anew");
    assert_eq!(kept.network("ageing_seconds"), 60);
    let config: Value = kept.daemon.get("/v1/config");
    assert_eq!(config["vms"][0]["ports"][0]["promiscuous"], true, "what was set by API stays");
    // It is told, and so that it reads from the state to what it has become.
    let told: Vec<String> = kept.daemon.events().into_iter().map(|event| event.text).collect();
    let edit = told.iter().find(|text| text.contains("configuration file has been edited")).unwrap();
    assert!(edit.contains("ageing_seconds was 300 and is 60") && edit.contains("port \"port-4\" is new"), "{edit}");
    assert!(kept.daemon.log().contains("ageing_seconds was 300 and is 60"));

    // The same once more changes nothing, and taking the port out of the file takes it off the host, and no other.
    kept.daemon.stop(Signal::KILL);
    kept.write(&[3], "", "ageing_seconds = 60");
    kept.daemon.start();
    assert_eq!(kept.daemon.listed(), ["port-2", "port-3", "port-4"]);
    assert_eq!(kept.links(&[1, 2]), before[1..]);
    super::host::await_that("the netdev of port-1 is gone", || kept.links(&[0])[0].is_none().then_some(()));
}

#[test]
fn where_both_have_changed_the_same_the_file_has_precedence_and_it_is_told() {
    let Some(mut kept) = Kept::new() else { return };
    kept.daemon.start();
    kept.daemon.done(&["set", "port-1", "mac_address=02:00:00:00:01:77"], "");
    kept.daemon.attach(&kept.vifs[1]);
    kept.daemon.stop(Signal::TERM);
    // The file has another address for the port, too, and gives that of the one that was attached to another one.
    kept.vifs[0].mac = "02:00:00:00:01:78".parse().unwrap();
    kept.vifs[3].mac = kept.vifs[1].mac;
    kept.write(&[0, 3], "", "");

    let said = kept.check();
    assert!(said.contains("a start changes in it") && said.contains("drops"), "{said}");
    assert!(said.contains("port \"port-1\": mac_address was set to \"02:00:00:00:01:77\" by API"), "{said}");
    assert!(said.contains("port \"port-2\" was added by API, and that does not go with the file"), "{said}");

    kept.daemon.start();
    assert_eq!(kept.daemon.listed(), ["port-1", "port-4"]);
    assert_eq!(kept.daemon.port(&kept.vifs[0]).mac_address, "02:00:00:00:01:78");
    let told: Vec<String> = kept.daemon.events().into_iter().map(|event| event.text).collect();
    let dropped = told.iter().find(|text| text.contains("dropped")).unwrap();
    assert!(dropped.contains("02:00:00:00:01:77") && dropped.contains("port \"port-2\""), "{dropped}");
    assert!(kept.daemon.log().contains("dropped because the configuration file has precedence"));
}

#[test]
fn check_says_what_a_start_would_make_of_the_state_and_touches_nothing() {
    let Some(mut kept) = Kept::new() else { return };
    let state = kept.daemon.state();
    assert!(!kept.check().contains("stored state") && !state.exists(), "looking makes nothing");
    kept.daemon.start();
    kept.daemon.attach(&kept.vifs[1]);
    // While a switch has it open, whose log is not in the file yet.
    let said = kept.check();
    assert!(said.contains("a start changes nothing in it"), "{said}");
    kept.write(&[0], "", "ageing_seconds = 60");
    let said = kept.check();
    assert!(said.contains("network \"net1\": ageing_seconds was 300 and is 60"), "{said}");
    assert!(!said.contains("port-2"), "it stays: {said}");
    let output = kept.daemon.try_command(&["check", "FILE", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["state"]["changes"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["state"]["path"], state.to_str().unwrap());
    kept.daemon.attach(&kept.vifs[2]);
    kept.daemon.stop(Signal::KILL);
    let files = || {
        let all = fs::read_dir(state.parent().unwrap()).unwrap().map(Result::unwrap);
        let mut all: Vec<_> = all.map(|file| (file.file_name(), fs::read(file.path()).ok())).collect();
        all.sort();
        all
    };
    let before = files();
    kept.check();
    assert!(files() == before, "nothing is touched");
}

#[test]
fn a_file_that_replaces_the_state_is_taken_as_it_is() {
    let Some(mut kept) = Kept::new() else { return };
    kept.daemon.start();
    kept.daemon.attach(&kept.vifs[1]);
    kept.daemon.stop(Signal::TERM);
    let mut command = kept.daemon.command();
    // `run` stands in front of the arguments that are added, so this goes behind them by the shell.
    let program = command.get_program().to_owned();
    command = std::process::Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" --replace"]).arg(program);
    let file = kept.daemon.file();
    kept.daemon.start_as(command, "--config", &file);
    assert_eq!(kept.daemon.listed(), ["port-1"]);
    super::host::await_that("the netdev of port-2 is gone", || kept.links(&[1])[0].is_none().then_some(()));
    assert!(kept.daemon.log().contains("replaces the stored state"), "{}", kept.daemon.log());
    kept.daemon.stop(Signal::TERM);
    kept.daemon.start();
    assert_eq!(kept.daemon.listed(), ["port-1"]);
}
