//! An orchestrator: it changes what it owns by random requests, each of which it repeats until it is answered.

use serde_json::{Map, Value, json};
use vifswitch::time;

use super::client::{Answer, Client, Cut, Outcome, Request};
use super::edits::{Edit, find, items, part, port, ports_of};
use super::records::Write;
use super::{PATIENCE, World};
use crate::random::{Random, pause};

/// Ports that it may have.
const PORTS: u64 = 12;

/// The first of them have a tap each.
const TAPS: u64 = 2;

/// Those from here on have positions in a VM of their own.
const POSITIONS: u64 = 6;

/// Those from here on are subports of the last one.
const SUBPORTS: u64 = 9;

/// Connections that may be cut off per write; further ones are not, so that it ends.
const CUTS: usize = 6;

/// How an edit is sent.
#[derive(Debug, Clone, PartialEq)]
enum Way {
    /// By a route of its entity.
    Entity(Request),
    /// With everything that the owner wants: `PUT /v1/config?owner=`.
    Owned,
    /// With everything that all want, as read just before: `PUT /v1/config` with `If-Match`.
    Whole,
}

/// The answer that a write must have in the end.
#[derive(Debug, Clone, PartialEq)]
enum Expected {
    Success,
    /// The same; nothing is changed.
    DryRun,
    Refused(u16, &'static str),
}

impl Expected {
    fn is_refusal(&self, answer: &Answer) -> bool {
        matches!(self, Expected::Refused(status, kind) if *status == answer.status && *kind == answer.kind())
    }
}

/// A write.
#[derive(Debug, Clone)]
struct Plan {
    edit: Option<Edit>,
    way: Way,
    /// Sent only for the generation that was read just before.
    is_conditional: bool,
    /// Waits until the ports concerned are ACTIVE.
    waits: bool,
    expected: Expected,
}

/// An orchestrator.
pub struct Orchestrator<'w> {
    world: &'w World,
    who: &'static str,
    other: &'static str,
    /// Choice of writes.
    choice: Random,
    /// Choice of cuts: apart, as their number depends on timing.
    chance: Random,
    /// What it wants.
    wanted: Value,
    client: Client,
    writes: u64,
    /// The newest generation that it knows.
    newest: u64,
}

/// A network of an orchestrator.
fn network(who: &str, number: u64, mtu: u64) -> Value {
    let mut network = json!({ "id": format!("{who}-net-{number}"), "owner": who });
    if mtu != 1500 {
        network["mtu"] = mtu.into();
    }
    network
}

impl<'w> Orchestrator<'w> {
    /// One with a network, that nothing deletes.
    pub fn new(world: &'w World, who: &'static str, other: &'static str, seed: u64) -> Orchestrator<'w> {
        let wanted = json!({ "networks": [], "vms": [], "uplinks": [] });
        let client = Client::new(world.socket.clone());
        let (choice, chance) = (Random(seed | 1), Random(seed.wrapping_mul(31) | 1));
        let mut this = Orchestrator { world, who, other, choice, chance, wanted, client, writes: 0, newest: 0 };
        let edit = Some(Edit::Put("networks", network(who, 0, 1500)));
        let plan = Plan { edit, way: Way::Owned, is_conditional: false, waits: false, expected: Expected::Success };
        this.make(&plan, false);
        this
    }

    /// What it wants, as a part of a configuration.
    pub fn wanted(&self) -> Value {
        part(&self.wanted, Some(self.who))
    }

    /// Makes so many writes. The switch is killed at the answer to the one with the number `strike`.
    pub fn run(&mut self, writes: u64, strike: Option<u64>) {
        for write in 0..writes {
            if self.world.has_failed() {
                return;
            }
            let plan = self.choose();
            self.make(&plan, strike == Some(write));
            if self.choice.once_in(6) {
                // The same once more, which changes nothing.
                self.make(&Plan { waits: false, ..plan }, false);
            }
            if self.choice.once_in(3) {
                self.check_own_part();
            }
            if write % 8 == 7 {
                self.world.read_history(&mut self.client);
            }
            self.world.count();
        }
    }

    /// Its part of the configuration is what it wants at any time, as others do not change it.
    fn check_own_part(&mut self) {
        let (config, _) = self.read_config();
        let found = part(&config, Some(self.who));
        assert_eq!(found, self.wanted(), "the part of {}", self.who);
        if self.chance.once_in(3) {
            let ports = self.read(&format!("/v1/ports?owner={}&limit=100&fields=port_id", self.who)).body;
            let mut wanted: Vec<&Value> = items(&self.wanted, "vms")
                .iter()
                .flat_map(|vm| items(vm, "ports"))
                .map(|port| &port["port_id"])
                .collect();
            wanted.sort_by_key(|id| id.as_str());
            let ports: Vec<&Value> = ports.as_array().unwrap().iter().map(|port| &port["port_id"]).collect();
            assert_eq!(ports, wanted, "ports of {}", self.who);
        }
    }

    /// Reads a page, from the next switch if there is none.
    fn read(&mut self, path: &str) -> Answer {
        self.world.read(&mut self.client, path)
    }

    /// The configuration and its generation.
    fn read_config(&mut self) -> (Value, u64) {
        let answer = self.read("/v1/config");
        let generation = answer.generation.unwrap();
        self.must_follow(generation);
        (answer.body, generation)
    }

    /// A generation is never older than one that was known.
    fn must_follow(&mut self, generation: u64) {
        assert!(generation >= self.newest, "generation {generation} after {}", self.newest);
        self.newest = generation;
    }

    /// Sends a write until it is answered.
    fn make(&mut self, plan: &Plan, strikes: bool) {
        let mut wanted = self.wanted.clone();
        plan.edit.iter().for_each(|edit| edit.apply(&mut wanted));
        let is_change = part(&wanted, Some(self.who)) != self.wanted();
        let makes = is_change && plan.expected == Expected::Success;
        let mut write = Write {
            who: self.who,
            text: format!("{} {}: {plan:?}", self.who, self.writes),
            ids: Vec::new(),
            expected: Some(usize::from(makes)),
            answers: Vec::new(),
        };
        let (mut is_unknown, mut is_acknowledged, mut strikes) = (false, false, strikes);
        let since = time::now();
        loop {
            let waited = time::now().since(since);
            assert!(waited < PATIENCE, "not answered for {waited:?}: {write:?}");
            if self.world.has_failed() {
                return;
            }
            let request = self.request(plan, &wanted);
            let id = format!("{}-{}-{}", self.who, self.writes, write.ids.len());
            let cut = self.cut(write.ids.len());
            let world = self.world;
            let outcome = self.client.send(&request, &id, cut, || {
                if std::mem::take(&mut strikes) {
                    world.strike();
                }
            });
            world.note(|| match &outcome {
                Outcome::Answered(answer) => {
                    format!(
                        "{id}: {} {}: {}, generation {:?}",
                        request.method, request.path, answer.status, answer.generation
                    )
                }
                _ => format!("{id}: {} {}: {cut:?}: {outcome:?}", request.method, request.path),
            });
            let answer = match outcome {
                Outcome::Unsent => {
                    pause(5000);
                    continue;
                }
                Outcome::Unknown { is_acknowledged: acknowledged } => {
                    write.ids.push(id);
                    is_unknown = true;
                    is_acknowledged |= acknowledged;
                    if self.chance.once_in(2) {
                        pause(self.chance.below(3000));
                    }
                    continue;
                }
                Outcome::Answered(answer) => answer,
            };
            write.ids.push(id);
            match (answer.status, answer.kind()) {
                (200..=299, _) => {
                    let has_changed = self.accepted(plan, &request, &answer, &write);
                    assert!(!(is_acknowledged && has_changed && makes), "lost after its answer: {write:?}");
                    assert!(is_unknown || has_changed == is_change, "{answer:?} to {write:?}");
                    if plan.expected == Expected::Success {
                        let generation = answer.generation.unwrap();
                        write.answers.push((write.ids.last().unwrap().clone(), generation, has_changed));
                    }
                    break;
                }
                _ if plan.expected.is_refusal(&answer) => break,
                // The person's change waits to be confirmed.
                (409, "unconfirmed") | (429, _) => pause(2000 + self.chance.below(5000)),
                (412, "generation_moved") if request.generation.is_some() => {}
                // It may have been made.
                (503, "shutting_down") => is_unknown = true,
                _ => panic!("{answer:?} to {write:?}"),
            }
        }
        if plan.expected == Expected::Success {
            self.wanted = wanted;
        }
        self.writes += 1;
        self.world.record(write);
    }

    /// Checks a successful answer. Returns whether something has changed, or would change.
    fn accepted(&mut self, plan: &Plan, request: &Request, answer: &Answer, write: &Write) -> bool {
        assert!(!matches!(plan.expected, Expected::Refused(..)), "{answer:?} to {write:?}");
        let generation = answer.generation.unwrap();
        self.must_follow(generation);
        if answer.status == 204 {
            assert_eq!(request.method, "DELETE", "{answer:?} to {write:?}");
            return false;
        }
        if request.method == "POST" && plan.expected == Expected::Success {
            // Its answer has the ports in place of generation and differences.
            let has_changed = answer.body["changes"] != json!([]);
            assert_eq!(answer.status, if has_changed { 201 } else { 200 }, "{answer:?} to {write:?}");
            return has_changed;
        }
        assert_eq!(answer.body["generation"], generation, "{answer:?} to {write:?}");
        if plan.waits {
            assert_eq!(answer.body["not_active"], json!([]), "{answer:?} to {write:?}");
        }
        let has_changed = answer.body["changes"] != json!([]);
        assert!(answer.status == 200 || has_changed, "{answer:?} to {write:?}");
        has_changed
    }

    /// The request of a write.
    fn request(&mut self, plan: &Plan, wanted: &Value) -> Request {
        let put = |path: String, body: Value| Request { method: "PUT", path, generation: None, body: Some(body) };
        let mut request = match &plan.way {
            Way::Entity(request) => request.clone(),
            Way::Owned => put(format!("/v1/config?owner={}", self.who), part(wanted, Some(self.who))),
            Way::Whole => {
                let (mut config, generation) = self.read_config();
                plan.edit.iter().for_each(|edit| edit.apply(&mut config));
                Request { generation: Some(generation), ..put("/v1/config".into(), config) }
            }
        };
        if plan.is_conditional && request.generation.is_none() {
            request.generation = Some(self.read_config().1);
        }
        if plan.waits {
            request = request.with("wait=15");
        }
        if plan.expected == Expected::DryRun { request.with("dry_run=true") } else { request }
    }

    /// Where the next connection is cut off.
    fn cut(&mut self, attempt: usize) -> Cut {
        if attempt >= CUTS {
            return Cut::Never;
        }
        match self.chance.below(12) {
            0 => Cut::BeforeRequest,
            1 => Cut::InRequest(self.chance.below(1000)),
            2 => Cut::BeforeAnswer(0),
            3 => Cut::BeforeAnswer(self.chance.below(20_000)),
            4 => Cut::InAnswer(1 + self.chance.below(300)),
            _ => Cut::Never,
        }
    }

    /// The next write.
    fn choose(&mut self) -> Plan {
        let (edit, request) = match self.choice.below(100) {
            0..=49 => self.of_port(),
            50..=57 => self.of_network(),
            58..=65 => self.of_uplink(),
            66..=77 => self.of_vm(),
            78..=84 => self.of_several_ports(),
            _ => return self.refused(),
        };
        // An owner gives no settings to a VM in which others may have ports, unless it has given some before.
        let is_first = |vm: &String| {
            vm.starts_with("shared-") && find(&self.wanted(), "vms", vm).is_none_or(|vm| vm["owner"].is_null())
        };
        let is_refused = matches!(&edit, Edit::SetVm(vm, ..) if is_first(vm));
        let way = match self.choice.below(10) {
            0..=5 => Way::Entity(request),
            6..=7 if !is_refused => Way::Owned,
            _ => Way::Whole,
        };
        let expected = if self.choice.once_in(10) { Expected::DryRun } else { Expected::Success };
        let is_conditional = self.choice.once_in(5);
        let plan = Plan { edit: Some(edit), way, is_conditional, waits: false, expected };
        let plan = self.or_refused(plan);
        let waits = plan.expected == Expected::Success && self.has_active_tap(&plan) && self.choice.once_in(3);
        Plan { waits, ..plan }
    }

    /// Whether a write is about one port with a tap, which becomes ACTIVE.
    fn has_active_tap(&self, plan: &Plan) -> bool {
        let Some(Edit::PutPorts(_, ports)) = &plan.edit else { return false };
        let is_put = matches!(&plan.way, Way::Entity(request) if ["PUT", "PATCH"].contains(&request.method));
        is_put && ports.iter().all(|port| port["device"]["kind"] == "tap" && port["admin_state_up"].is_null())
    }

    /// The same; by the only route that says so, if it is to be refused.
    fn or_refused(&self, plan: Plan) -> Plan {
        let ports = || items(&self.wanted, "vms").iter().flat_map(|vm| items(vm, "ports"));
        let (kind, path) = match plan.edit.as_ref().unwrap() {
            Edit::DeletePort(id) if ports().any(|port| port["parent"] == **id) => {
                ("has_subports", format!("/v1/ports/{id}"))
            }
            Edit::Delete("networks", id) => {
                let uplinks = items(&self.wanted, "uplinks").iter().flat_map(|uplink| items(uplink, "networks"));
                if !ports().chain(uplinks).any(|user| user["network_id"] == **id) {
                    return plan;
                }
                ("network_in_use", format!("/v1/networks/{id}"))
            }
            _ => return plan,
        };
        let request = Request { method: "DELETE", path, generation: None, body: None };
        Plan { edit: None, way: Way::Entity(request), expected: Expected::Refused(409, kind), ..plan }
    }

    /// A port is attached, changed, moved or detached.
    fn of_port(&mut self) -> (Edit, Request) {
        let mut slot = self.choice.below(PORTS);
        if (SUBPORTS..PORTS - 1).contains(&slot) && port(&self.wanted, &self.port_id(PORTS - 1)).is_none() {
            slot = PORTS - 1;
        }
        let (id, path) = (self.port_id(slot), format!("/v1/ports/{}", self.port_id(slot)));
        if self.choice.once_in(if port(&self.wanted, &id).is_some() { 3 } else { 12 }) {
            return (Edit::DeletePort(id), Request { method: "DELETE", path, generation: None, body: None });
        }
        let vm = self.vm_of(slot);
        let new = self.port(slot);
        let put = with(&new, "device_id", &vm);
        let request = match port(&self.wanted, &id) {
            Some((of, before)) if of == vm && before["device"] == new["device"] && self.choice.once_in(2) => {
                Request { method: "PATCH", path, generation: None, body: Some(difference(before, &new)) }
            }
            None if self.choice.once_in(4) => Request {
                method: "POST",
                path: format!("/v1/vms/{vm}/ports"),
                generation: None,
                body: Some(new.clone()),
            },
            _ => Request { method: "PUT", path, generation: None, body: Some(put) },
        };
        (Edit::PutPorts(vm, vec![new]), request)
    }

    /// New ports are attached to a VM together.
    fn of_several_ports(&mut self) -> (Edit, Request) {
        let vm = self.vm_of(0);
        let new = (0..POSITIONS).filter(|&slot| port(&self.wanted, &self.port_id(slot)).is_none());
        let mut new: Vec<u64> = new.collect();
        if self.choice.once_in(2) {
            new.reverse();
        }
        new.truncate(3);
        let ports: Vec<Value> = new.into_iter().map(|slot| self.port(slot)).collect();
        if ports.is_empty() {
            return self.of_port();
        }
        let (path, body) = (format!("/v1/vms/{vm}/ports"), Some(json!(ports)));
        (Edit::PutPorts(vm, ports), Request { method: "POST", path, generation: None, body })
    }

    fn port_id(&self, slot: u64) -> String {
        format!("{}-{slot}", self.who)
    }

    fn vm_of(&mut self, slot: u64) -> String {
        let who = self.who;
        match slot {
            SUBPORTS.. => format!("{who}-vm-t"),
            POSITIONS.. => format!("{who}-vm-p"),
            _ => {
                let own = [format!("{who}-vm-0"), format!("{who}-vm-1")];
                let shared = ["north", "south", "person"].map(|of| format!("shared-{of}"));
                self.choice.of(&[own.as_slice(), &shared].concat())
            }
        }
    }

    /// A random port in this slot.
    fn port(&mut self, slot: u64) -> Value {
        let (who, group) = (self.who, if self.who == "north" { 1 } else { 2 });
        let mac = |kind: u64| format!("02:00:00:{group:02x}:{kind:02x}:{slot:02x}");
        // The MTU of a subport is at most its parent's, and that of this network does not change.
        let network = if slot >= SUBPORTS { "base-0".to_owned() } else { self.any_network() };
        let mut port = json!({
            "port_id": self.port_id(slot), "network_id": network, "mac_address": mac(0), "owner": who,
        });
        if (SUBPORTS..PORTS - 1).contains(&slot) {
            port["parent"] = self.port_id(PORTS - 1).into();
            port["vlan"] = (100 + slot).into();
        } else {
            let kind = if slot < TAPS { "tap" } else { "packet" };
            port["device"] = json!({ "kind": kind, "name": format!("{who}{slot}"), "netns": self.world.namespace.0 });
            if slot < TAPS && self.choice.once_in(4) {
                port["device"]["offloads"] = false.into();
            }
        }
        if (POSITIONS..SUBPORTS).contains(&slot) {
            port["position"] = (SUBPORTS - slot).into();
        }
        let keys = [
            json!({}),
            json!({}),
            json!({ "admin_state_up": false }),
            json!({ "promiscuous": true }),
            json!({ "port_security": "off" }),
            json!({ "fixed_ips": [format!("10.{group}.0.{slot}")] }),
            json!({ "activation": "first-frame" }),
            json!({ "allowed_address_pairs": [{ "mac_address": mac(1) }] }),
            json!({ "mac_learning": false }),
        ];
        let keys = self.choice.of(&keys);
        port.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        port
    }

    /// A network that is there, of its own or of others.
    fn any_network(&mut self) -> String {
        let mut networks = vec!["base-0".to_owned(), "base-1".to_owned(), format!("{}-net-0", self.other)];
        networks.extend(items(&self.wanted, "networks").iter().map(|of| of["id"].as_str().unwrap().to_owned()));
        self.choice.of(&networks)
    }

    fn of_network(&mut self) -> (Edit, Request) {
        let number = self.choice.below(4);
        let network = network(self.who, number, 1500 + 100 * self.choice.below(3));
        let id = network["id"].as_str().unwrap().to_owned();
        let path = format!("/v1/networks/{id}");
        if number > 0 && self.choice.once_in(3) {
            return (Edit::Delete("networks", id), Request { method: "DELETE", path, generation: None, body: None });
        }
        let request = Request { method: "PUT", path, generation: None, body: Some(network.clone()) };
        (Edit::Put("networks", network), request)
    }

    fn of_uplink(&mut self) -> (Edit, Request) {
        let (who, number) = (self.who, self.choice.below(2));
        let id = format!("{who}-up-{number}");
        let path = format!("/v1/uplinks/{id}");
        if self.choice.once_in(3) {
            return (Edit::Delete("uplinks", id), Request { method: "DELETE", path, generation: None, body: None });
        }
        let networks = json!([{ "network_id": self.any_network(), "vlan": 100 + self.choice.below(5) }]);
        let device = json!({ "kind": "packet", "name": format!("{who}up{number}"), "netns": self.world.namespace.0 });
        let uplink = json!({ "id": id, "networks": networks, "device": device, "owner": who });
        let request = Request { method: "PUT", path, generation: None, body: Some(uplink.clone()) };
        (Edit::Put("uplinks", uplink), request)
    }

    /// Settings of a VM, with its ports in another order or without naming them; or the VM is deleted.
    fn of_vm(&mut self) -> (Edit, Request) {
        let who = self.who;
        let own = ["0", "1", "t"].map(|name| format!("{who}-vm-{name}"));
        if self.choice.once_in(4) {
            let vm = self.choice.of(&own);
            let path = format!("/v1/vms/{vm}");
            return (Edit::DeleteVm(vm), Request { method: "DELETE", path, generation: None, body: None });
        }
        let vm = self.choice.of(&[own[0].clone(), own[1].clone(), format!("shared-{who}")]);
        let ports = ports_of(&self.wanted, &vm);
        let keys = [json!({ "share_mac": true }), json!({ "sibling_split_horizon": true }), json!({})];
        let is_own = own.contains(&vm);
        let keys = self.choice.of(&keys[..if is_own && !ports.is_empty() { 3 } else { 2 }]);
        let mut settings: Map<String, Value> = keys.as_object().unwrap().clone();
        if !settings.is_empty() {
            settings.insert("owner".into(), who.into());
        }
        let order = (is_own && ports.len() > 1 && self.choice.once_in(2)).then(|| {
            let mut order = ports;
            order.rotate_left(1);
            order
        });
        let edit = Edit::SetVm(vm.clone(), settings.clone(), order.clone());
        let mut body = Value::Object(settings);
        if order.is_some() {
            let mut wanted = self.wanted.clone();
            edit.apply(&mut wanted);
            body["ports"] = find(&wanted, "vms", &vm).unwrap()["ports"].clone();
        }
        (edit, Request { method: "PUT", path: format!("/v1/vms/{vm}"), generation: None, body: Some(body) })
    }

    /// A write that is refused, and changes nothing.
    fn refused(&mut self) -> Plan {
        let (who, other) = (self.who, self.other);
        let plan = |way: Way, status: u16, kind: &'static str| {
            let expected = Expected::Refused(status, kind);
            Plan { edit: None, way, is_conditional: false, waits: false, expected }
        };
        let put = |path: String, body: Value| {
            Way::Entity(Request { method: "PUT", path, generation: None, body: Some(body) })
        };
        // With one more network in what the owner wants.
        let wanted = self.wanted();
        let owned = |network: Value| {
            let mut config = wanted.clone();
            Edit::Put("networks", network).apply(&mut config);
            put(format!("/v1/config?owner={who}"), config)
        };
        match self.choice.below(6) {
            0 => plan(owned(json!({ "id": format!("{other}-net-0"), "mtu": 1400 })), 409, "owned_by_other"),
            1 => plan(owned(json!({ "id": "base-0" })), 409, "owned_by_other"),
            2 => plan(owned(json!({ "id": format!("{who}-net-9"), "owner": other })), 400, "contradiction"),
            3 => {
                let wrong = with(&self.port(3), "mac_address", "x");
                plan(put(format!("/v1/ports/{who}-3"), with(&wrong, "device_id", "x")), 400, "bad_value")
            }
            4 => {
                let wrong = with(&self.port(3), "network_id", &format!("{who}-net-9"));
                plan(put(format!("/v1/ports/{who}-3"), with(&wrong, "device_id", "x")), 404, "unknown_network")
            }
            _ => {
                let Way::Entity(request) = put(format!("/v1/networks/{who}-net-0"), network(who, 0, 1450)) else {
                    unreachable!()
                };
                plan(Way::Entity(Request { generation: Some(self.newest - 1), ..request }), 412, "generation_moved")
            }
        }
    }
}

/// The same with this key.
fn with(table: &Value, key: &str, value: &str) -> Value {
    let mut table = table.clone();
    table[key] = value.into();
    table
}

/// The keys that lead from one table to another; `null` for what is not set any more.
fn difference(before: &Value, after: &Value) -> Value {
    let (before, after) = (before.as_object().unwrap(), after.as_object().unwrap());
    let gone = before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let new = after.iter().filter(|(key, value)| before.get(*key) != Some(value));
    // It is not in the tables, and depends on the addresses.
    let allocation =
        (before.get("fixed_ips") != after.get("fixed_ips")).then(|| ("ip_allocation".to_owned(), Value::Null));
    gone.chain(allocation).chain(new.map(|(key, value)| (key.clone(), value.clone()))).collect::<Map<_, _>>().into()
}
