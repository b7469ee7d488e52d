//! Activation: which ports have been heard, and which pins have yielded.
//!
//! With `activation = "first-frame"` a port pins nothing until it has sent a frame. A pin, of whichever port, yields when
//! its station announces itself behind an uplink, because its VM has been migrated: until the port sends its next frame.
//! The port's own address stands for the VM: when it yields, so do all addresses of the port. An allowed address yields
//! alone, as that of a VRRP group whose master is elsewhere now, and comes back with the next frame from it.
//!
//! Such moves are counted as those of learned stations are (RFC 7432, 15.1): four within three minutes are let pass, and
//! the pin does not yield a fifth time. It ends at the local port, which control dampens.
//!
//! *Both survive a restart* where the switch keeps a state. Without one every port begins as the configuration says.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::{self, Activation, Config};
use crate::time::Moment;
use crate::wire::Mac;

/// Moves that are let pass within [`WINDOW`].
const FREE: usize = 4;

/// The time within which moves are counted.
const WINDOW: Duration = Duration::from_secs(180);

/// For how long an announcement from outside may be the echo of one that the guest sent. A network that returns frames
/// does so within a round trip.
const ECHO: Duration = Duration::from_millis(500);

/// Events about the pins of one port within [`TELLING`].
const TOLD: u32 = 10;

/// The time within which events are counted.
const TELLING: Duration = Duration::from_secs(60);

/// What is known of the pins of one port.
#[derive(Debug, Clone, Default)]
struct Pins {
    /// The port has sent a frame. Only of ports that wait for one.
    heard: bool,
    /// All its pins have yielded.
    yielded: bool,
    /// These have, one by one.
    addresses: BTreeSet<Mac>,
    /// When the guest has announced an address, lately.
    announced: HashMap<Mac, Moment>,
    /// When the pin of an address has yielded last.
    gone: HashMap<Mac, Moment>,
    /// When an address has moved to an uplink or back, within [`WINDOW`].
    moves: HashMap<Mac, Vec<Moment>>,
    /// When events began to be counted, and how many there were.
    told: (Moment, u32),
}

/// As it is kept over a restart.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    port: String,
    heard: bool,
    yielded: bool,
    addresses: Vec<String>,
}

/// What a frame of a port has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The port has been heard for the first time: its addresses are pinned to it.
    First,
    /// The port has been heard again after its pins had yielded.
    Again,
    /// The same, of one of its allowed addresses.
    Address,
}

/// What an announcement from outside has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elsewhere {
    /// All pins of the port yield.
    Port,
    /// The pin of this one address yields.
    Address,
    /// It has moved too often, and stays at the port.
    Flaps,
}

/// Whether an event is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    /// It is.
    Tell,
    /// It is the last one for a while.
    Last,
    /// There have been too many.
    Not,
}

/// The pins of all ports, by id, of which there is something to be known.
#[derive(Debug, Default)]
pub struct Activations(HashMap<String, Pins>);

impl Activations {
    /// Whether addresses are pinned to a port, if it is up.
    pub fn pins(&self, port: &config::Port) -> bool {
        let pins = self.0.get(port.id());
        let is_active = port.activation == Activation::Immediate || pins.is_some_and(|pins| pins.heard);
        is_active && !pins.is_some_and(|pins| pins.yielded)
    }

    /// The addresses of a port whose pins have yielded one by one.
    pub fn yielded(&self, port: &config::Port) -> Vec<Mac> {
        self.0.get(port.id()).map(|pins| pins.addresses.iter().copied().collect()).unwrap_or_default()
    }

    /// Follows a change of the configuration. Of ports that are gone nothing is known any more, and a port that has
    /// another address, or is on another network, has not yielded there. `has_spoken` says whether frames of a port have
    /// been let pass: one that waits for its first frame from now on need not wait.
    pub fn follow(&mut self, before: &Config, now: &Config, has_spoken: impl Fn(&str) -> bool) {
        let old: HashMap<&str, &config::Port> = before.ports().map(|(_, port)| (port.id(), port)).collect();
        let there: HashSet<&str> = now.ports().map(|(_, port)| port.id()).collect();
        self.0.retain(|id, _| there.contains(id.as_str()));
        for (_, port) in now.ports() {
            let was = old.get(port.id());
            let waits = port.activation == Activation::FirstFrame;
            if waits && was.is_some_and(|was| was.activation == Activation::Immediate) && has_spoken(port.id()) {
                self.0.entry(port.id().to_owned()).or_default().heard = true;
            }
            let Some(pins) = self.0.get_mut(port.id()) else { continue };
            if was.is_some_and(|was| (&was.network_id, was.mac) != (&port.network_id, port.mac)) {
                *pins = Pins { heard: pins.heard, ..Pins::default() };
            }
            let allows = |mac: &Mac| port.allowed_address_pairs.iter().any(|pair| pair.mac == Some(*mac));
            pins.addresses.retain(allows);
        }
    }

    /// A port, on which control waits for a frame, has sent one from `source`. What that changes. A frame that came
    /// before the pin has yielded, and is reported only now, changes nothing.
    pub fn hear(&mut self, port: &config::Port, source: Mac, now: Moment) -> Option<Heard> {
        let waits = port.activation == Activation::FirstFrame;
        let pins = self.0.entry(port.id().to_owned()).or_default();
        // It may have been an announcement.
        pins.announced.insert(source, now);
        let is_later = |gone: Option<&Moment>| gone.is_none_or(|&gone| now >= gone);
        if is_later(pins.gone.get(&source)) && pins.addresses.remove(&source) {
            pins.count(source, now);
            // The port has been heard as well.
            if !pins.yielded && (pins.heard || !waits) {
                return Some(Heard::Address);
            }
        }
        if pins.yielded && is_later(pins.gone.get(&port.mac)) {
            pins.yielded = false;
            pins.heard = waits;
            pins.count(port.mac, now);
            return Some(Heard::Again);
        }
        (waits && !std::mem::replace(&mut pins.heard, true)).then_some(Heard::First)
    }

    /// The guest behind a port has announced one of its addresses. If the pin has yielded to the echo of that, which
    /// another worker may have reported first, it is taken back: what that changes.
    pub fn announce(&mut self, port: &config::Port, mac: Mac, now: Moment) -> Option<Heard> {
        let pins = self.0.entry(port.id().to_owned()).or_default();
        pins.announced.retain(|_, at| now.since(*at) < ECHO);
        pins.announced.insert(mac, now);
        let gone = pins.gone.get(&mac).copied().filter(|gone| gone.since(now) < ECHO)?;
        self.hear(port, mac, gone.max(now))
    }

    /// An address that is pinned to a port has announced itself behind an uplink. What that changes.
    pub fn hear_elsewhere(&mut self, port: &config::Port, mac: Mac, now: Moment) -> Option<Elsewhere> {
        if !self.pins(port) {
            return None;
        }
        let pins = self.0.entry(port.id().to_owned()).or_default();
        let is_echo = pins.announced.get(&mac).is_some_and(|&at| now.since(at) < ECHO);
        if is_echo || pins.addresses.contains(&mac) {
            return None;
        }
        if pins.lately(mac, now) >= FREE {
            return Some(Elsewhere::Flaps);
        }
        pins.count(mac, now);
        pins.gone.insert(mac, now);
        if mac == port.mac {
            pins.yielded = true;
            return Some(Elsewhere::Port);
        }
        pins.addresses.insert(mac);
        Some(Elsewhere::Address)
    }

    /// Whether to tell of what has happened to the pins of a port.
    pub fn tell(&mut self, port: &config::Port, now: Moment) -> Telling {
        let pins = self.0.entry(port.id().to_owned()).or_default();
        let (since, told) = &mut pins.told;
        if *told == 0 || now.since(*since) >= TELLING {
            (*since, *told) = (now, 0);
        }
        *told = told.saturating_add(1);
        match *told {
            ..TOLD => Telling::Tell,
            TOLD => Telling::Last,
            _ => Telling::Not,
        }
    }

    /// What is to be kept over a restart.
    pub fn keep(&self) -> Value {
        let kept = |(port, pins): (&String, &Pins)| {
            let addresses: Vec<String> = pins.addresses.iter().map(Mac::to_string).collect();
            let kept = Kept { port: port.clone(), heard: pins.heard, yielded: pins.yielded, addresses };
            (kept.heard || kept.yielded || !kept.addresses.is_empty()).then_some((port.clone(), kept))
        };
        let all: BTreeMap<String, Kept> = self.0.iter().filter_map(kept).collect();
        serde_json::to_value(all.into_values().collect::<Vec<_>>()).unwrap_or_default()
    }

    /// Takes over what was kept. What is not understood is ignored.
    pub fn resume(&mut self, kept: &Value) {
        let all = kept.as_array().map(Vec::as_slice).unwrap_or_default();
        for Kept { port, heard, yielded, addresses } in all.iter().filter_map(|one| Kept::deserialize(one).ok()) {
            let addresses = addresses.iter().filter_map(|mac| mac.parse().ok()).collect();
            self.0.insert(port, Pins { heard, yielded, addresses, ..Pins::default() });
        }
    }
}

impl Pins {
    /// How often an address has moved lately.
    fn lately(&self, mac: Mac, now: Moment) -> usize {
        let moves = self.moves.get(&mac).map(Vec::as_slice).unwrap_or_default();
        moves.iter().filter(|&&at| now.since(at) < WINDOW).count()
    }

    /// Counts a move of an address.
    fn count(&mut self, mac: Mac, now: Moment) {
        self.moves.retain(|_, moves| {
            moves.retain(|&at| now.since(at) < WINDOW);
            !moves.is_empty()
        });
        self.moves.entry(mac).or_default().push(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse_toml;
    use proptest::prelude::*;

    const OWN: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
    const VRRP: Mac = Mac::new([0, 0, 0x5e, 0, 1, 1]);

    fn config(keys: &str) -> Config {
        let text = format!(
            "[[networks]]\nid = \"n\"\n[[networks]]\nid = \"m\"\n[[vms]]\nid = \"v\"\n[[vms.ports]]\nport_id = \"p\"\n\
             device = {{ kind = \"tap\" }}\n{keys}"
        );
        parse_toml(&text, "x").unwrap()
    }

    fn of(activation: &str) -> Config {
        config(&format!(
            "network_id = \"n\"\nmac_address = \"{OWN}\"\nactivation = \"{activation}\"\n\
             allowed_address_pairs = [{{ mac_address = \"{VRRP}\" }}]"
        ))
    }

    fn port(config: &Config) -> &config::Port {
        &config.vms[0].ports[0]
    }

    fn at(millis: u64) -> Moment {
        Moment::from_secs(1000) + Duration::from_millis(millis)
    }

    #[test]
    fn a_port_that_waits_pins_from_its_first_frame_on() {
        let (waits, immediate) = (of("first-frame"), of("immediate"));
        let mut all = Activations::default();
        assert!(all.pins(port(&immediate)) && !all.pins(port(&waits)));
        assert_eq!(all.hear_elsewhere(port(&waits), OWN, at(0)), None, "nothing is pinned that could yield");
        assert_eq!(all.hear(port(&waits), VRRP, at(0)), Some(Heard::First), "whichever address it has used");
        assert_eq!(all.hear(port(&waits), OWN, at(0)), None);
        assert!(all.pins(port(&waits)));
    }

    #[test]
    fn a_pin_yields_to_an_announcement_from_outside_until_the_next_frame() {
        for config in [of("immediate"), of("first-frame")] {
            let (port, mut all) = (port(&config), Activations::default());
            all.hear(port, OWN, at(0));
            assert_eq!(all.hear_elsewhere(port, OWN, at(499)), None, "what the guest has just said comes back");
            all.announce(port, OWN, at(600));
            assert_eq!(all.hear_elsewhere(port, OWN, at(1099)), None);
            assert_eq!(all.hear_elsewhere(port, OWN, at(1100)), Some(Elsewhere::Port));
            assert_eq!(all.hear_elsewhere(port, OWN, at(1100)), None, "it has yielded already");
            assert!(!all.pins(port));
            assert_eq!(all.hear(port, VRRP, at(1200)), Some(Heard::Again));
            assert!(all.pins(port));
        }
    }

    /// Workers report independently of each other, and control may come to it late.
    #[test]
    fn the_order_of_reports_does_not_matter() {
        let config = of("immediate");
        let (port, mut all) = (port(&config), Activations::default());
        for mac in [OWN, VRRP] {
            assert!(all.hear_elsewhere(port, mac, at(1001)).is_some());
            assert!(all.announce(port, mac, at(1000)).is_some(), "that was the echo");
            assert!(all.pins(port) && all.yielded(port).is_empty());
            assert!(all.hear_elsewhere(port, mac, at(2000)).is_some());
            assert_eq!(all.hear(port, mac, at(1999)), None, "it came before");
            assert_eq!(all.announce(port, mac, at(1500)), None, "and that is no echo any more");
            assert!(!all.pins(port) || all.yielded(port) == [mac]);
            assert!(all.hear(port, mac, at(2000)).is_some());
        }
    }

    #[test]
    fn an_allowed_address_yields_alone() {
        let config = of("immediate");
        let (port, mut all) = (port(&config), Activations::default());
        assert_eq!(all.hear_elsewhere(port, VRRP, at(0)), Some(Elsewhere::Address));
        assert_eq!((all.pins(port), all.yielded(port)), (true, vec![VRRP]));
        assert_eq!(all.hear(port, OWN, at(1)), None, "the VM is here, and is not the master");
        assert_eq!(all.hear(port, VRRP, at(2)), Some(Heard::Address));
        assert_eq!(all.yielded(port), []);
        assert_eq!(all.hear_elsewhere(port, VRRP, at(600)), Some(Elsewhere::Address));
        assert_eq!(all.hear_elsewhere(port, OWN, at(600)), Some(Elsewhere::Port));
        assert_eq!(all.hear(port, VRRP, at(700)), Some(Heard::Again), "both at once");
        assert_eq!((all.pins(port), all.yielded(port)), (true, vec![]));
    }

    #[test]
    fn who_goes_to_and_fro_ends_at_the_port() {
        let config = of("immediate");
        let (port, mut all) = (port(&config), Activations::default());
        for round in 0..2 {
            assert_eq!(all.hear_elsewhere(port, OWN, at(round * 10_000)), Some(Elsewhere::Port));
            assert_eq!(all.hear(port, OWN, at(round * 10_000 + 1000)), Some(Heard::Again));
        }
        assert_eq!(all.hear_elsewhere(port, OWN, at(20_000)), Some(Elsewhere::Flaps), "the fifth move");
        assert!(all.pins(port));
        assert_eq!(all.hear_elsewhere(port, OWN, at(179_999)), Some(Elsewhere::Flaps));
        assert_eq!(all.hear_elsewhere(port, OWN, at(180_000)), Some(Elsewhere::Port), "the first is three minutes ago");
    }

    #[test]
    fn what_is_known_survives_a_restart_and_changes_that_do_not_matter() {
        let waits = of("first-frame");
        let mut all = Activations::default();
        all.hear(port(&waits), OWN, at(0));
        all.hear_elsewhere(port(&waits), VRRP, at(5000));
        let resumed = |all: &Activations| {
            let mut back = Activations::default();
            back.resume(&serde_json::from_str(&all.keep().to_string()).unwrap());
            back
        };
        let mut back = resumed(&all);
        back.resume(&serde_json::json!([7, null, {"port": 3}]));
        back.follow(&Config::default(), &waits, |_| false);
        assert_eq!((back.pins(port(&waits)), back.yielded(port(&waits))), (true, vec![VRRP]));
        back.hear_elsewhere(port(&waits), OWN, at(9000));
        let mut back = resumed(&back);
        let mut down = waits.clone();
        down.vms[0].ports[0].admin_state_up = false;
        back.follow(&waits, &down, |_| false);
        back.follow(&down, &waits, |_| false);
        assert!(!back.pins(port(&waits)), "it has yielded, also after it has been down");
        let mut moved = waits.clone();
        moved.vms[0].ports[0].network_id = "m".into();
        moved.vms[0].ports[0].allowed_address_pairs.clear();
        back.follow(&waits, &moved, |_| false);
        assert_eq!((back.pins(port(&moved)), back.yielded(port(&moved))), (true, vec![]), "nobody is elsewhere there");
        back.follow(&moved, &Config::default(), |_| false);
        back.follow(&Config::default(), &waits, |_| false);
        assert!(!back.pins(port(&waits)), "a new port of the same id");
    }

    #[test]
    fn a_port_that_has_spoken_need_not_wait_when_it_is_told_to() {
        let (waits, immediate) = (of("first-frame"), of("immediate"));
        for has_spoken in [true, false] {
            let mut all = Activations::default();
            all.follow(&immediate, &waits, |_| has_spoken);
            assert_eq!(all.pins(port(&waits)), has_spoken);
            all.follow(&waits, &waits, |_| true);
            assert_eq!(all.pins(port(&waits)), has_spoken, "only the change asks");
        }
    }

    proptest! {
        /// Whatever comes: the port pins after each of its frames, and no more than so many events are told.
        #[test]
        fn the_last_word_is_the_ports(steps in prop::collection::vec((0usize..4, 0u64..40_000), 0..100)) {
            let config = of("first-frame");
            let (port, mut all, mut now) = (port(&config), Activations::default(), 0);
            let mut told = Vec::new();
            for (step, pause) in steps {
                now += pause;
                let mac = [OWN, VRRP][step % 2];
                match step {
                    0 | 1 => {
                        all.hear(port, mac, at(now));
                        prop_assert!(all.pins(port) && !all.yielded(port).contains(&mac));
                    }
                    _ => {
                        let pinned = all.pins(port) && !all.yielded(port).contains(&mac);
                        let came = all.hear_elsewhere(port, mac, at(now));
                        prop_assert!(pinned || came.is_none());
                        let is_pinned = all.pins(port) && !all.yielded(port).contains(&mac);
                        prop_assert_eq!(is_pinned, pinned && matches!(came, None | Some(Elsewhere::Flaps)));
                    }
                }
                if all.tell(port, at(now)) != Telling::Not {
                    told.push(now);
                }
            }
            prop_assert!(told.windows(2 * TOLD as usize + 1).all(|some| some[some.len() - 1] - some[0] >= 60_000));
        }
    }
}
