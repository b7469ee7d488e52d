//! A person at the command line: changes things of an owner by `apply --owner`, and things without one by `attach`, `set` and
//! `detach`. Commands are killed at random, and typed again.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use support::host::program;
use vifswitch::time;

use super::client::Client;
use super::edits::{Edit, find, items, part, port};
use super::records::{Write, process};
use super::{PATIENCE, World};
use crate::random::{Random, pause};

/// Label of what it applies.
const OWNER: &str = "person";

/// Ports with the label, and ports without.
const PORTS: u64 = 5;

/// Commands that may be killed per change.
const KILLS: usize = 3;

/// A person.
pub struct Person<'w> {
    world: &'w World,
    choice: Random,
    chance: Random,
    /// What it has applied.
    owned: Value,
    /// What it has attached.
    attached: Value,
    client: Client,
    changes: u64,
}

/// What a command that ends with an error shows that an earlier one has done already.
type DoneBefore = Option<&'static str>;

impl<'w> Person<'w> {
    pub fn new(world: &'w World, seed: u64) -> Person<'w> {
        let nothing = json!({ "networks": [], "vms": [], "uplinks": [] });
        let (choice, chance) = (Random(seed | 1), Random(seed.wrapping_mul(31) | 1));
        let client = Client::new(world.socket.clone());
        Person { world, choice, chance, owned: nothing.clone(), attached: nothing, client, changes: 0 }
    }

    /// What is applied, and what is attached, as parts of a configuration.
    pub fn wanted(&self) -> (Value, Value) {
        (part(&self.owned, Some(OWNER)), part(&self.attached, None))
    }

    /// Types so many commands.
    pub fn run(&mut self, commands: u64) {
        for command in 0..commands {
            if self.world.has_failed() {
                return;
            }
            match self.choice.below(20) {
                0 => self.apply_provisionally(),
                1..=8 => self.apply(),
                9..=16 => self.change_attached(),
                _ => self.look(),
            }
            if command % 8 == 7 {
                self.world.read_history(&mut self.client);
            }
            self.world.count();
        }
    }

    /// Applies what bears its label, with one thing changed.
    fn apply(&mut self) {
        let mut owned = self.owned.clone();
        self.edit().apply(&mut owned);
        let makes = part(&owned, Some(OWNER)) != self.wanted().0;
        let file = part(&owned, Some(OWNER)).to_string();
        self.type_until_done(&["apply", "-", "--owner", OWNER], &file, Some(makes), None);
        self.owned = owned;
    }

    /// The same, and confirms it or takes it back.
    fn apply_provisionally(&mut self) {
        let mut owned = self.owned.clone();
        self.edit().apply(&mut owned);
        let file = part(&owned, Some(OWNER)).to_string();
        let apply = ["apply", "-", "--owner", OWNER, "--confirm", "600"];
        let confirms = self.choice.once_in(2);
        let confirm: &[&str] = if confirms { &["confirm"] } else { &["confirm", "--cancel"] };
        let mut write = self.write(format!("{apply:?} {file}, then {confirm:?}"), None);
        let since = time::now();
        loop {
            assert!(time::now().since(since) < PATIENCE, "never confirmed: {write:?}");
            if self.world.has_failed() {
                return;
            }
            // An earlier one may wait to be confirmed: then this one is refused.
            let applied = self.type_once(&apply, &file, &mut write);
            if applied.as_ref().is_some_and(|output| text(output).starts_with("no changes")) {
                if confirms {
                    break;
                }
                // It is as it was before, or it was never another one.
                assert_eq!(part(&owned, Some(OWNER)), self.wanted().0, "{write:?}");
                break;
            }
            let confirmed = self.type_once(confirm, "", &mut write);
            let is_over = confirmed
                .as_ref()
                .is_some_and(|output| output.status.success() || error(output).contains("no unconfirmed change"));
            if !confirms && is_over {
                break;
            }
            pause(2000);
        }
        if confirms {
            self.owned = owned;
        }
        self.changes += 1;
        self.world.record(write);
    }

    /// A change of what bears the label.
    fn edit(&mut self) -> Edit {
        let slot = self.choice.below(PORTS);
        let id = format!("{OWNER}-{slot}");
        if self.choice.once_in(4) {
            let network = format!("{OWNER}-net-0");
            let ports = || items(&self.owned, "vms").iter().flat_map(|vm| items(vm, "ports"));
            let is_used = ports().any(|port| port["network_id"] == *network);
            if find(&self.owned, "networks", &network).is_some() && !is_used && self.choice.once_in(2) {
                return Edit::Delete("networks", network);
            }
            let mtu = 1600 + self.choice.below(3);
            return Edit::Put("networks", json!({ "id": network, "mtu": mtu, "owner": OWNER }));
        }
        if port(&self.owned, &id).is_some() && self.choice.once_in(3) {
            return Edit::DeletePort(id);
        }
        let network = find(&self.owned, "networks", "person-net-0").map_or("base-0", |_| "person-net-0");
        let vm = self.choice.of(&["person-vm-0", "shared-north", "shared-south", "shared-person"]);
        let mut port = self.port(&id, 3, slot, network);
        port["owner"] = OWNER.into();
        Edit::PutPorts(vm.into(), vec![port])
    }

    fn port(&mut self, id: &str, group: u8, slot: u64, network: &str) -> Value {
        let kind = if slot == 0 { "tap" } else { "packet" };
        let mut port = json!({
            "port_id": id, "network_id": network, "mac_address": format!("02:00:00:{group:02x}:00:{slot:02x}"),
            "device": { "kind": kind, "name": id, "netns": self.world.namespace.0 },
        });
        if self.choice.once_in(3) {
            port["promiscuous"] = true.into();
        }
        port
    }

    /// Attaches, changes or detaches a port without a label.
    fn change_attached(&mut self) {
        let slot = self.choice.below(PORTS);
        let id = format!("none-{slot}");
        let mut attached = self.attached.clone();
        let Some((vm, before)) = port(&self.attached, &id) else {
            let vm = self.choice.of(&["none-vm-0", "shared-north", "shared-south", "shared-person"]);
            let port = self.port(&id, 4, slot, "base-1");
            Edit::PutPorts(vm.into(), vec![port.clone()]).apply(&mut attached);
            let mut file = port;
            file["device_id"] = vm.into();
            self.type_until_done(&["attach", "-"], &file.to_string(), Some(true), None);
            self.attached = attached;
            return;
        };
        let (vm, mut new) = (vm.to_owned(), before.clone());
        if self.choice.once_in(3) {
            Edit::DeletePort(id.clone()).apply(&mut attached);
            self.type_until_done(&["detach", &id], "", Some(true), Some("no such port"));
            self.attached = attached;
            return;
        }
        let (key, value) = match self.choice.below(3) {
            0 => ("admin_state_up", json!(false)),
            1 => ("mac_learning", json!(false)),
            _ => ("ip_allocation", json!("deferred")),
        };
        let keys = new.as_object_mut().unwrap();
        let setting = if keys.remove(key).is_some() {
            format!("{key}=")
        } else {
            keys.insert(key.into(), value.clone());
            format!("{key}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        };
        Edit::PutPorts(vm, vec![new]).apply(&mut attached);
        self.type_until_done(&["set", &id, &setting], "", Some(true), None);
        self.attached = attached;
    }

    /// Commands that change nothing.
    fn look(&mut self) {
        let commands: [&[&str]; 4] =
            [&["show", "ports", "--json"], &["history", "--json"], &["diff", "-"], &["events", "--json"]];
        let command = self.choice.of(&commands);
        let file = json!({ "networks": [{ "id": "other" }] }).to_string();
        self.type_until_done(command, &file, Some(false), None);
    }

    fn write(&self, text: String, expected: Option<usize>) -> Write {
        let text = format!("person {}: {text}", self.changes);
        Write { who: OWNER, text, ids: Vec::new(), expected, answers: Vec::new() }
    }

    /// Types a command until it succeeds, or shows that a killed one has.
    fn type_until_done(&mut self, command: &[&str], input: &str, makes: Option<bool>, done: DoneBefore) {
        let mut write = self.write(format!("{command:?} {input}"), makes.map(usize::from));
        let (since, mut last) = (time::now(), None);
        loop {
            assert!(time::now().since(since) < PATIENCE, "{last:?} of {write:?}");
            if self.world.has_failed() {
                return;
            }
            let is_repeated = !write.ids.is_empty();
            if let Some(output) = self.type_once(command, input, &mut write) {
                if output.status.success() {
                    let has_changed = !text(&output).starts_with("no changes");
                    assert!(is_repeated || makes != Some(true) || has_changed, "{output:?} of {write:?}");
                    break;
                }
                if is_repeated && done.is_some_and(|done| error(&output).contains(done)) {
                    break;
                }
                last = Some(output);
            }
            pause(5000);
        }
        self.changes += 1;
        self.world.record(write);
    }

    /// Types a command. `None` if it was killed.
    fn type_once(&mut self, command: &[&str], input: &str, write: &mut Write) -> Option<Output> {
        let is_killed = write.ids.len() < KILLS && self.chance.once_in(4);
        let mut child = Command::new(program());
        child.args(command).arg("--socket").arg(&self.world.socket).env_remove("NOTIFY_SOCKET");
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        write.ids.push(process(child.id()));
        // One that ends before it has read its input says why.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        if is_killed {
            pause(self.chance.below(30_000));
            child.kill().unwrap();
        }
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        self.world.note(|| {
            format!("person {}: pid {pid}: {command:?} {input}: {:?} {}", self.changes, output.status, error(&output))
        });
        output.status.code().map(|_| output)
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
