//! Keys of port security and delivery, and their conflicts.

use std::collections::HashMap;
use std::net::IpAddr;

use super::diagnostics::{Diagnostics, Path};
use super::error::kind;
use super::lowering::{Lowering, lower_each};
use super::model::{Config, Network, Port};
use super::named::Named;
use super::policy::{AddressPair, PortSecurity, UnknownUnicast};
use super::raw;
use crate::switch::{AtLimit, MacLimit};
use crate::wire::{Mac, Prefix};

impl Lowering<'_, '_> {
    /// Port security, by either of its two keys.
    pub fn security(&mut self, raw: &raw::Port) -> PortSecurity {
        let enabled = raw.port_security_enabled;
        let default = if enabled == Some(false) { PortSecurity::Off } else { PortSecurity::Mac };
        let security = self.keyword("port_security", raw.port_security.as_deref(), default);
        if enabled.is_some_and(|enabled| enabled != (security != PortSecurity::Off)) {
            let message = format!("contradicts port_security = \"{}\"; remove one of the two", security.name());
            self.report("port_security_enabled", kind::CONTRADICTION, message);
        }
        security
    }

    /// IP addresses of the guest.
    pub fn addresses(&mut self, raw: &[String]) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for (index, text) in raw.iter().enumerate() {
            match text.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => {
                    let remedy = "not an IP address; use one such as 10.5.0.1 or fd00::1, without a prefix length";
                    self.diagnostics.push(&self.path.key("fixed_ips").item(index), kind::BAD_VALUE, remedy);
                }
            }
        }
        addresses
    }

    /// Allowed address pairs of a port with MAC address `own`.
    pub fn pairs(&mut self, raw: Option<&[raw::AddressPair]>, security: PortSecurity, own: Mac) -> Vec<AddressPair> {
        if security == PortSecurity::Off && raw.is_some_and(|pairs| !pairs.is_empty()) {
            let message =
                "without port security every source is allowed; remove the pairs, or set port_security = \"mac\"";
            self.report("allowed_address_pairs", kind::CONTRADICTION, message);
        }
        let path = self.path.key("allowed_address_pairs");
        let pairs = lower_each(&path, raw, self.diagnostics, |mut at, pair| at.pair(pair));
        let mut first: HashMap<(Mac, Option<Prefix>), usize> = HashMap::new();
        for (index, pair) in pairs.iter().enumerate() {
            if pair.mac == Some(Mac::ZERO) {
                continue;
            }
            if let Some(&first) = first.get(&(pair.mac.unwrap_or(own), pair.ip)) {
                let message =
                    format!("{} allows the same; remove one of the two", self.diagnostics.location(&path.item(first)));
                self.diagnostics.push(&path.item(index), kind::DUPLICATE_PAIR, message);
                continue;
            }
            first.insert((pair.mac.unwrap_or(own), pair.ip), index);
        }
        pairs
    }

    fn pair(&mut self, raw: &raw::AddressPair) -> AddressPair {
        const STAND_IN: AddressPair = AddressPair { mac: Some(Mac::ZERO), ip: None };
        let [mac, ip] = ["mac_address", "ip_address"];
        // a value of a wrong type is already reported
        if self.is_missing(mac) && self.is_missing(ip) {
            let message = "empty pair; set mac_address, ip_address, or both";
            self.diagnostics.push(&self.path, kind::MISSING, message);
            return STAND_IN;
        }
        let is_typed =
            (raw.mac_address.is_some() || self.is_missing(mac)) && (raw.ip_address.is_some() || self.is_missing(ip));
        let station = raw.mac_address.as_deref().map(|text| self.station(mac, Some(text)));
        let prefix = raw.ip_address.as_deref().map(|text| {
            let remedy = "not an IP address or prefix; use one such as 10.5.0.1 or 10.5.0.0/24";
            text.parse::<Prefix>().map_err(|_| self.report(ip, kind::BAD_VALUE, remedy)).ok()
        });
        let is_right = is_typed && station != Some(Mac::ZERO) && prefix != Some(None);
        if is_right { AddressPair { mac: station, ip: prefix.flatten() } } else { STAND_IN }
    }

    /// Flooding of unknown unicast.
    pub fn unknown_unicast(&mut self, raw: &raw::Port) -> UnknownUnicast {
        let wanted = self.keyword("unknown_unicast", raw.unknown_unicast.as_deref(), UnknownUnicast::Deliver);
        if wanted == UnknownUnicast::Suppress && raw.promiscuous == Some(true) {
            let message = "a port with promiscuous = true receives every frame of its network, including those \
                           to unknown stations; remove one of the two";
            self.report("unknown_unicast", kind::CONTRADICTION, message);
        }
        wanted
    }

    /// MAC limit of a port, if set.
    pub fn mac_limit(&mut self, raw: &raw::Port) -> Option<MacLimit> {
        let policy = self.keyword("mac_limit_policy", raw.mac_limit_policy.as_deref(), AtLimit::ForwardUnlearned);
        if raw.mac_limit.is_none() {
            if raw.mac_limit_policy.is_some() && self.is_missing("mac_limit") {
                let message = "has no effect without a limit; set mac_limit, or remove this key";
                self.report("mac_limit_policy", kind::CONTRADICTION, message);
            }
            return None;
        }
        Some(MacLimit { stations: self.number("mac_limit", raw.mac_limit, 1..=u32::MAX, 1), policy })
    }
}

/// MAC addresses that ports other than their owners may use, each with the first pair that allows it: VM, port and pair
/// index.
struct SharedAddresses<'c>(HashMap<(&'c str, Mac), Vec<[usize; 3]>>);

impl<'c> SharedAddresses<'c> {
    fn of(config: &'c Config) -> SharedAddresses<'c> {
        let mut lent: HashMap<(&str, Mac), Vec<[usize; 3]>> = HashMap::new();
        for (vm, of) in config.vms.iter().enumerate() {
            for (position, port) in of.ports.iter().enumerate() {
                for (pair, mac) in
                    port.allowed_address_pairs.iter().enumerate().filter_map(|(at, p)| Some((at, p.mac?)))
                {
                    lent.entry((&port.network_id, mac)).or_default().push([vm, position, pair]);
                }
            }
        }
        SharedAddresses(lent)
    }

    /// A pair of another port that allows the address of this port.
    fn to_another(&self, port: &Port, here: [usize; 2]) -> Option<[usize; 3]> {
        let pairs = self.0.get(&(port.network_id.as_str(), port.mac))?;
        pairs.iter().find(|[vm, position, _]| [*vm, *position] != here).copied()
    }
}

/// Reports conflicts with other tables.
pub(super) fn check(config: &Config, diagnostics: &mut Diagnostics<'_>) {
    let networks: HashMap<&str, &Network> = config.networks.iter().map(|of| (of.id.as_str(), of)).collect();
    let lent = SharedAddresses::of(config);
    let path = |vm: usize, position: usize| Path::default().key("vms").item(vm).key("ports").item(position);
    for (vm, of) in config.vms.iter().enumerate() {
        for (position, port) in of.ports.iter().enumerate() {
            if port.unknown_unicast == UnknownUnicast::Suppress
                && let Some([other, at, pair]) = lent.to_another(port, [vm, position])
            {
                let pair = diagnostics.location(&path(other, at).key("allowed_address_pairs").item(pair));
                let message = format!(
                    "the address of this port is not pinned, because {pair} allows it to another port: frames \
                     to it would be lost until the port has sent one; remove this key, or the pair"
                );
                diagnostics.push(&path(vm, position).key("unknown_unicast"), kind::CONTRADICTION, message);
            }
            if let (Some(limit), Some(network)) = (port.mac_limit, networks.get(port.network_id.as_str()))
                && limit.stations > network.fdb_limit_per_port
            {
                let message = format!(
                    "greater than the limit of its network's ports; use at most fdb_limit_per_port of network \
                     {:?}, which is {}",
                    network.id, network.fdb_limit_per_port
                );
                diagnostics.push(&path(vm, position).key("mac_limit"), kind::CONTRADICTION, message);
            }
        }
    }
}
