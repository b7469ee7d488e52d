//! What a port may send, while it changes and while it is used: what was learned behind a port that may
//! not use it any more is forgotten, and a port that comes to its MAC limit is told of.

use tracing::{info, warn};

use super::{Controller, Port};
use crate::control::at_limit::{HOLD, Turn};
use crate::control::config::{self, Config, PortSecurity};
use crate::control::events::EventKind;
use crate::control::seats::{Names, Seat, Stand};
use crate::switch::{AtLimit, DropReason, MacLimit, PortId};
use crate::time;
use crate::wire::Mac;
use crate::worker::Flush;

/// What a configuration says of a port, if this is one.
fn wanted<'c>(seat: &Seat, config: &'c Config) -> Option<&'c config::Port> {
    let Stand::Port { vm, position, .. } = seat.stand else { return None };
    config.vms.get(vm)?.ports.get(position)
}

/// Frames that have ever come from stations beyond a limit.
fn beyond(port: &Port) -> u64 {
    port.sum(|counters| counters.unlearned.get() + counters.drops_in.get(DropReason::MacLimit))
}

/// Whether sources that a port could use when it `was` so are refused now that it `is` so.
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
    /// The place of a port, if sources that it could use `before` are refused now.
    pub(super) fn stricter(&self, index: usize, was: &Seat, before: &Config) -> Option<PortId> {
        let seat = &self.ports[index].seat;
        let (was, is) = (wanted(was, before)?, wanted(seat, &self.config)?);
        is_stricter(was, is).then_some(seat.id)
    }

    /// Forgets what was learned behind these ports: it may be of sources that are refused now, and would
    /// draw the frames of whoever has them by right.
    pub(super) async fn forget_behind(&self, ports: Vec<PortId>) {
        for port in ports {
            self.staff.flush(Flush { place: Some(port.index()), ..Flush::default() }).await;
        }
    }

    /// Tells which ports have come to their MAC limits, and which are below again.
    pub(super) fn watch_limits(&mut self) {
        let now = time::now();
        for index in 0..self.ports.len() {
            let port = &mut self.ports[index];
            let limit = wanted(&port.seat, &self.config).and_then(|port| port.mac_limit);
            let turn = match limit {
                Some(_) => {
                    let beyond = beyond(port);
                    port.at_limit.look(beyond, now)
                }
                // Most have none: nothing is counted for them.
                None if port.at_limit.is_limited() => {
                    let beyond = beyond(port);
                    port.at_limit.lift(beyond)
                }
                None => None,
            };
            if let Some(turn) = turn {
                self.tell_limit(index, turn, limit);
            }
        }
    }

    fn tell_limit(&mut self, index: usize, turn: Turn, limit: Option<MacLimit>) {
        let text = match (turn, limit) {
            (_, None) => "no longer at its limit of learned stations: it has none of its own any more".to_owned(),
            (Turn::Reached, Some(MacLimit { stations, policy: AtLimit::Drop })) => {
                format!("at its limit of {stations} learned stations: frames from others behind it are dropped")
            }
            (Turn::Reached, Some(MacLimit { stations, policy: AtLimit::ForwardUnlearned })) => {
                format!(
                    "at its limit of {stations} learned stations: others behind it are not learned, and frames to them \
                     are flooded"
                )
            }
            (Turn::Below, Some(MacLimit { stations, .. })) => {
                let hold = HOLD.as_secs();
                format!(
                    "no longer at its limit of {stations} learned stations: none beyond it has spoken for {hold} seconds"
                )
            }
        };
        if !self.tell(EventKind::MacLimit, index, &text) {
            return;
        }
        let Names { vm, network, id: port, .. } = self.names(index);
        match turn {
            Turn::Reached => warn!(vm, network, port, "mac_limit: {text}"),
            Turn::Below => info!(vm, network, port, "mac_limit: {text}"),
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
    fn stricter_is_what_refuses_more() {
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
        // Above Ethernet nothing is learned.
        for (was, is) in [(&mac, &off), (&mac, &mac), (&mac, &pair), (&mac, &strict), (&strict, &mac), (&off, &off)] {
            assert!(!is_stricter(was, is), "{was:?}: {is:?}");
        }
    }
}
