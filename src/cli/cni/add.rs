//! ADD: attaches a container. What fails is undone, as far as the switch answers; the runtime calls DEL then, too.
//!
//! The port comes before the addresses, because an IPAM plugin may use the interface (DHCP), unless the port checks addresses. A
//! repeated call finds the addresses in the record, and changes nothing.
//!
//! The port ends with the container's namespace (`lifetime = "netns"`), also that of a VM: its tap is in the namespace, and ends
//! with it. One that a call before has made in an earlier namespace is bound to that one, and is replaced.

use std::path::Path;

use serde_json::{Value, json};

use super::config::{Mode, NetworkConfig};
use super::error::{CniError, code};
use super::interface::Place;
use super::ipam::Ipam;
use super::record::{Locked, Record, Records};
use super::result::{AddResult, Interface};
use super::switch::{self, NotActive, Switch};
use super::{Call, LOCK, PATIENCE, names};
use crate::control::api::client;
use crate::control::api::responses::PortView;
use crate::sys::netns::Netns;
use crate::wire::Mac;

/// Attempts to find a MAC address that no other port of the network has. Each is random: one suffices but for an accident.
const ATTEMPTS: u8 = 4;

/// Kind of the error of a MAC address that another port has.
const MAC_IN_USE: &str = "mac_in_use";

/// What an ADD works with.
struct Add<'c> {
    call: &'c Call,
    place: Place<'c>,
    switch: Switch,
    ipam: Option<Ipam<'c>>,
    locked: Locked,
    record: Record,
}

impl Call {
    /// The IPAM plugin; `None` if the configuration names none.
    pub(super) fn ipam(&self) -> Result<Option<Ipam<'_>>, CniError> {
        let NetworkConfig { ipam, raw, version, .. } = &self.config;
        ipam.as_ref().map(|kind| Ipam::find(kind, raw, *version, &self.environment)).transpose()
    }

    /// The port of the call.
    pub(super) fn port_id(&self) -> String {
        names::port_id(&self.config.name, &self.environment.container, &self.environment.interface)
    }

    /// Result of the plugins before.
    pub(super) fn prev_result(&self) -> Result<Option<AddResult>, CniError> {
        let parsed = self.config.prev_result.as_ref().map(AddResult::parse).transpose();
        parsed.map_err(|why| CniError::new(code::DECODE, format!("prevResult: {why}")))
    }

    /// Attaches a container; returns the result.
    pub(super) fn add(&self) -> Result<Value, CniError> {
        let mut result = self.prev_result()?.unwrap_or_default();
        let ipam = self.ipam()?;
        let port = self.port_id();
        let Some(netns) = self.environment.netns.as_deref() else {
            return Err(CniError::new(code::INVALID_ENVIRONMENT, "ADD needs CNI_NETNS"));
        };
        let place = Place { netns, name: &self.environment.interface, port: &port };
        place.check_namespace()?;
        let records = Records::of(&self.config.state);
        let io = |e: std::io::Error| CniError::new(code::IO, e.to_string());
        let locked = records.lock(&port, LOCK).map_err(io)?;
        // Another call for the attachment has ended now, and with it the creation of the interface.
        if let Err(error) = place.check_free() {
            if locked.read(&port).is_none() {
                let _ = locked.remove();
            }
            return Err(error);
        }
        let switch = Switch::at(&self.config.socket, PATIENCE)?;
        self.carry_out(&records);
        let before = locked.read(&port).filter(|record| !record.is_detached);
        let is_known = before.is_some();
        let record = Record {
            socket: self.config.socket.clone(),
            owner: self.config.owner.clone(),
            ..before.unwrap_or_else(|| self.new_record(&port))
        };
        locked.write(&record).map_err(io)?;
        let mut add = Add { call: self, place, switch, ipam, locked, record };
        match add.attach() {
            Ok((interface, addressing)) => {
                result.append(interface, addressing);
                if let Some(dns) = &self.config.dns {
                    result.dns = Some(dns.clone());
                }
                Ok(result.to_json(self.config.version))
            }
            // A container that was attached before stays so.
            Err(error) if is_known => Err(error),
            Err(error) => Err(add.undo(error)),
        }
    }
}

impl Add<'_> {
    fn attach(&mut self) -> Result<(Interface, AddResult), CniError> {
        let Call { config, environment } = self.call;
        let mtu = self.switch.ensure_network(&config.network, config.mtu, &config.owner)?;
        let existing = self.existing()?;
        // A port that checks addresses lets none pass before it knows them; an IPAM plugin may use the interface of others (DHCP).
        if config.checks_addresses() {
            self.allocate()?;
        }
        let mac = self.put_here(mtu, existing)?;
        self.record.mac = Some(mac.to_string());
        self.save()?;
        self.allocate()?;
        let addressing = self.record.addressing.clone().unwrap_or_default();
        if config.mode == Mode::Container {
            self.place.configure(&addressing)?;
        }
        let interface = Interface {
            name: environment.interface.clone(),
            mac: Some(mac.to_string()),
            mtu: Some(mtu.into()),
            sandbox: Some(self.place.netns.display().to_string()),
            ..Interface::default()
        };
        Ok((interface, addressing))
    }

    /// Allocates addresses, unless a call before has.
    fn allocate(&mut self) -> Result<(), CniError> {
        if let (None, Some(ipam)) = (&self.record.addressing, &self.ipam) {
            self.record.addressing = Some(ipam.add()?);
            self.save()?;
        }
        Ok(())
    }

    fn save(&self) -> Result<(), CniError> {
        self.locked.write(&self.record).map_err(|e| CniError::new(code::IO, e.to_string()))
    }

    /// The port as it was before. One of an earlier namespace is deleted: it has ended and the switch has not removed it yet, or
    /// it waits for the end of a namespace that lives on without its name. It would be opened in no other one.
    fn existing(&self) -> Result<Option<PortView>, CniError> {
        let failed = |e: client::Error| CniError::of_switch(&e);
        let ours = &self.call.config.owner;
        let Some(port) = self.switch.port(self.place.port).map_err(failed)? else { return Ok(None) };
        if port.owner.as_ref() != Some(ours) {
            let message = format!(
                "port {:?} exists with owner {:?}, not {ours:?}; detach it, or set owner in the network configuration",
                self.place.port, port.owner
            );
            return Err(CniError::new(code::REFUSED, message));
        }
        if self.is_of_earlier(&port)? {
            self.switch.delete_port(self.place.port, ours).map_err(failed)?;
        }
        Ok(Some(port))
    }

    /// Whether a port is of an earlier namespace with the same path. The switch may not have noticed yet that there is another
    /// one: while the device is open in the earlier one, it says ACTIVE. The interface tells, because it is in one of them only.
    fn is_of_earlier(&self, port: &PortView) -> Result<bool, CniError> {
        let is_same_path = port.device.netns.as_ref().is_some_and(|netns| Path::new(netns) == self.place.netns);
        Ok(is_same_path && (is_of_other_namespace(&port.status_code) || !self.place.exists()?))
    }

    /// Makes the port, and once more if it ends or is removed at once, because the namespace is replaced meanwhile. Returns its
    /// MAC address.
    fn put_here(&self, mtu: u16, existing: Option<PortView>) -> Result<Mac, CniError> {
        let mut before = existing;
        loop {
            if let Some(mac) = self.put(mtu, before.as_ref())? {
                return Ok(mac);
            }
            if !self.switch.pause() {
                let Place { netns, port, .. } = self.place;
                let message = format!(
                    "port {port:?} does not stay: network namespace {} ends or is replaced while the container is attached, or \
                     someone detaches the port",
                    netns.display()
                );
                return Err(CniError::new(code::TRY_AGAIN, message));
            }
            before = self.existing()?.or(before);
        }
    }

    /// Makes the port; returns its MAC address: the wanted one, that of a call before, or one that no other port has. `None`: it
    /// is not in the namespace.
    fn put(&self, mtu: u16, existing: Option<&PortView>) -> Result<Option<Mac>, CniError> {
        let config = &self.call.config;
        let in_config = config.port.get("mac_address").and_then(Value::as_str).and_then(|text| text.parse().ok());
        let before = existing.map(|port| &port.mac_address).or(self.record.mac.as_ref());
        let fixed = config.mac.or(in_config).or_else(|| before.and_then(|text| text.parse().ok()));
        if let Some(mac) = fixed {
            return Ok(self.put_as(mac, mtu)?.then_some(mac));
        }
        let mut attempt = 0;
        loop {
            let mac = names::mac(self.place.port, attempt);
            attempt += 1;
            match self.put_as(mac, mtu) {
                Ok(is_there) => return Ok(is_there.then_some(mac)),
                Err(error) if attempt < ATTEMPTS && error.details.contains(MAC_IN_USE) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes the port with this address. Returns whether it is in the namespace: the switch does not list a port that has ended
    /// among those that are not ACTIVE.
    fn put_as(&self, mac: Mac, mtu: u16) -> Result<bool, CniError> {
        let port = self.place.port;
        let body = self.body(mac);
        let failed = |e: client::Error| CniError::of_switch(&e);
        let why = match self.call.config.mode {
            Mode::Container => self.put_and_wait(&body)?,
            Mode::Vm(tap) => {
                self.place.make_tap(tap, mac, mtu)?;
                self.switch.put_port(port, &body, 0).map_err(failed)?;
                // It has no carrier until the VM opens it, which may be much later.
                let Some(tried) = self.switch.await_tried(port).map_err(failed)? else { return Ok(false) };
                tried.filter(|why| {
                    !matches!(why.status_code.as_str(), "no_carrier" | "opening" | "reopening" | "admin_down")
                })
            }
        };
        match why.filter(|why| why.status_code != "admin_down") {
            Some(why) if is_of_other_namespace(&why.status_code) => Ok(false),
            Some(why) => Err(self.not_active(&why)),
            None => self.place.exists(),
        }
    }

    /// Makes the port, and waits until it is ACTIVE; returns why it is not. Waits a second at a time, because a port that turns
    /// out to be of another namespace would be waited for in vain.
    fn put_and_wait(&self, body: &Value) -> Result<Option<NotActive>, CniError> {
        let mut left = switch::WAIT;
        loop {
            let why = self.switch.put_port(self.place.port, body, 1).map_err(|e| CniError::of_switch(&e))?;
            left -= 1;
            let is_in_vain = |why: &NotActive| {
                why.status_code == "admin_down" || is_of_other_namespace(&why.status_code) || left == 0
            };
            if why.as_ref().is_none_or(is_in_vain) {
                return Ok(why);
            }
        }
    }

    /// The port as the switch gets it.
    fn body(&self, mac: Mac) -> Value {
        let Call { config, environment } = self.call;
        let mut body = Value::Object(config.port.clone());
        let set = json!({
            "device_id": names::vm_id(&environment.container),
            "network_id": config.network,
            "mac_address": mac.to_string(),
            "owner": config.owner,
            "lifetime": "netns",
        });
        for (key, value) in set.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        let by_name = || names::position(&environment.interface).filter(|_| config.mode == Mode::Container);
        let position = config.position.map(Value::from).or_else(|| config.port.get("position").cloned());
        body["position"] = position.or_else(|| by_name().map(Value::from)).unwrap_or_default();
        let mut device = config.port.get("device").cloned().unwrap_or_else(|| json!({}));
        if device["kind"].is_null() {
            device["kind"] = config.mode.default_kind().into();
        }
        device["name"] = environment.interface.clone().into();
        device["netns"] = self.place.netns.display().to_string().into();
        body["device"] = device;
        if let Some(addressing) = self.record.addressing.as_ref().filter(|_| config.checks_addresses()) {
            let addresses = addressing.ips.iter().map(|ip| Value::from(ip.address.address.to_string()));
            body["fixed_ips"] = addresses.collect();
        }
        body
    }

    /// Error of a port that is not ACTIVE: what is the cause, and what would be right.
    fn not_active(&self, why: &NotActive) -> CniError {
        let NotActive { status_code, status_reason } = why;
        let is_seen_here =
            || Netns::At(self.place.netns.to_owned()).identity().is_ok_and(|identity| identity.is_some());
        let remedy = match status_code.as_str() {
            "no_namespace" | "namespace_unbound" if is_seen_here() => {
                "the plugin sees this namespace and the switch does not: the switch runs in a mount namespace that does not \
                 receive later mounts; remove PrivateMounts= and MountFlags=private from its unit, or mount /run/netns into its \
                 container with propagation (rslave, HostToContainer)"
            }
            "no_permission" => {
                "the switch needs CAP_SYS_ADMIN to enter namespaces, and CAP_SYS_PTRACE for one given as /proc/PID/ns/net"
            }
            _ => "see `vifswitch show ports`",
        };
        let code = match status_code.as_str() {
            "opening" | "reopening" | "open_overdue" | "no_resources" | "worker_full" => code::TRY_AGAIN,
            _ => code::REFUSED,
        };
        let message = format!("port {:?} is not ACTIVE ({status_code}): {status_reason}", self.place.port);
        CniError::new(code, message).with(remedy)
    }

    /// Undoes what has been done before `error`. What cannot be undone now is recorded.
    fn undo(mut self, error: CniError) -> CniError {
        let released = self.ipam.as_ref().map_or(Ok(()), Ipam::del);
        let removed = match self.call.config.mode {
            Mode::Container => Ok(()),
            Mode::Vm(_) => self.place.remove(),
        };
        self.record.is_detached = true;
        let recorded = self.save();
        let deleted = self.switch.delete_port(self.place.port, &self.record.owner);
        if deleted.is_ok() {
            // One that stays is carried out once more.
            let _ = self.locked.remove();
        }
        let deleted = if recorded.is_err() { deleted.map_err(|e| CniError::of_switch(&e)) } else { Ok(()) };
        let failures: Vec<String> =
            [released, removed, deleted].into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
        if failures.is_empty() {
            return error;
        }
        let also = format!("undoing it failed as well: {}", failures.join("; "));
        let details = if error.details.is_empty() { also } else { format!("{}; {also}", error.details) };
        error.with(details)
    }
}

/// Whether this is the status code of a port that ends with another namespace than the one to which its path leads.
fn is_of_other_namespace(status_code: &str) -> bool {
    matches!(status_code, "namespace_unnamed" | "namespace_ended")
}
