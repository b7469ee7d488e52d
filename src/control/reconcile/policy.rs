//! Port security at runtime: flushes FDB entries that a stricter configuration forbids, and reports MAC-limit alarms.

use tracing::{info, warn};

use super::{Controller, Port};
use crate::control::compile::endpoints::{ConfigRef, Endpoint, Labels};
use crate::control::config::{self, Config, PortSecurity};
use crate::control::loops::alarm::{HOLD, Transition};
use crate::control::state::events::EventKind;
use crate::switch::{AtLimit, DropReason, MacLimit, PortId};
use crate::time;
use crate::wire::Mac;
use crate::worker::Flush;

/// Configuration of an endpoint, if it is a port.
fn configured<'c>(endpoint: &Endpoint, config: &'c Config) -> Option<&'c config::Port> {
    let ConfigRef::Port { vm, position, .. } = endpoint.config_ref else { return None };
    config.vms.get(vm)?.ports.get(position)
}

/// Frames received from stations beyond the MAC limit.
fn mac_limit_excess(port: &Port) -> u64 {
    port.sum(|counters| counters.not_learned.get() + counters.drops_in.get(DropReason::MacLimit))
}

/// Whether the new configuration refuses sources that the old one allowed.
fn is_stricter(was: &config::Port, is: &config::Port) -> bool {
    let allowed = |port: &config::Port| -> Vec<Mac> {
        let pairs = port.allowed_address_pairs.iter().filter_map(|pair| pair.mac);
        pairs.chain([port.mac]).collect()
    };
    match (was.port_security, is.port_security) {
        (_, PortSecurity::Off) => false,
        (PortSecurity::Off, _) => true,
        _ => {
            let now = allowed(is);
            allowed(was).iter().any(|mac| !now.contains(mac))
        }
    }
}

impl Controller {
    /// Id of a port whose new configuration refuses sources allowed `before`.
    pub(super) fn stricter(&self, index: usize, was: &Endpoint, before: &Config) -> Option<PortId> {
        let endpoint = &self.ports[index].endpoint;
        let (was, is) = (configured(was, before)?, configured(endpoint, &self.config)?);
        is_stricter(was, is).then_some(endpoint.id)
    }

    /// Flushes FDB entries of these ports: entries of sources refused now would attract frames of their rightful owner.
    pub(super) async fn flush_ports(&self, ports: Vec<PortId>) {
        for port in ports {
            self.workers.flush(Flush { port_index: Some(port.index()), ..Flush::default() }).await;
        }
    }

    /// Raises and clears MAC-limit alarms.
    pub(super) fn check_mac_limits(&mut self) {
        let now = time::now();
        for index in 0..self.ports.len() {
            let port = &mut self.ports[index];
            let limit = configured(&port.endpoint, &self.config).and_then(|port| port.mac_limit);
            let transition = match limit {
                Some(_) => {
                    let excess = mac_limit_excess(port);
                    port.mac_limit_alarm.observe(excess, now)
                }
                // Most ports have none: their counters are not summed.
                None if port.mac_limit_alarm.is_on() => {
                    let excess = mac_limit_excess(port);
                    port.mac_limit_alarm.turn_off(excess)
                }
                None => None,
            };
            if let Some(transition) = transition {
                self.emit_mac_limit(index, transition, limit);
            }
        }
    }

    fn emit_mac_limit(&mut self, index: usize, transition: Transition, limit: Option<MacLimit>) {
        let text = match (transition, limit) {
            (_, None) => "no longer at its limit of learned stations: it has no limit of its own".to_owned(),
            (Transition::Raised, Some(MacLimit { stations, policy: AtLimit::Drop })) => {
                format!("at its limit of {stations} learned stations: frames from further stations are dropped")
            }
            (Transition::Raised, Some(MacLimit { stations, policy: AtLimit::ForwardUnlearned })) => {
                format!(
                    "at its limit of {stations} learned stations: further stations are not learned, and frames to \
                     them are flooded"
                )
            }
            (Transition::Cleared, Some(MacLimit { stations, .. })) => {
                let hold = HOLD.as_secs();
                format!(
                    "no longer at its limit of {stations} learned stations: no further station has sent for {hold} seconds"
                )
            }
        };
        if !self.emit_for(EventKind::MacLimit, index, &text) {
            return;
        }
        let Labels { vm, network, id: port, .. } = self.names(index);
        match transition {
            Transition::Raised => warn!(event = "mac_limit", vm, network, port, "{text}"),
            Transition::Cleared => info!(event = "mac_limit", vm, network, port, "{text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse_toml;

    fn port(keys: &str) -> config::Port {
        let text = format!(
            "[[networks]]\nid = \"n\"\n[[vms]]\nid = \"v\"\n[[vms.ports]]\nport_id = \"p\"\nnetwork_id = \"n\"\n\
             device = {{ kind = \"tap\" }}\n{keys}"
        );
        parse_toml(&text, "x").unwrap().vms.remove(0).ports.remove(0)
    }

    #[test]
    fn stricter_security_refuses_more() {
        const ONE: &str = "mac_address = \"02:00:00:00:00:01\"\n";
        let off = port(&format!("{ONE}port_security = \"off\""));
        let mac = port(ONE);
        let strict = port(&format!("{ONE}port_security = \"mac+ip\""));
        let pair = port(&format!("{ONE}allowed_address_pairs = [{{ mac_address = \"02:00:00:00:00:02\" }}]"));
        let other = port("mac_address = \"02:00:00:00:00:03\"");
        for (was, is) in [(&off, &mac), (&off, &strict), (&off, &pair), (&pair, &mac), (&pair, &strict), (&mac, &other)]
        {
            assert!(is_stricter(was, is), "{was:?}: {is:?}");
        }
        // Nothing is learned above Ethernet.
        for (was, is) in [(&mac, &off), (&mac, &mac), (&mac, &pair), (&mac, &strict), (&strict, &mac), (&off, &off)] {
            assert!(!is_stricter(was, is), "{was:?}: {is:?}");
        }
    }
}
