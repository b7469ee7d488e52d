//! Activation: which ports are active, and which pins have yielded.
//!
//! With `activation = "first-frame"` a port is inactive, and pins nothing, until it sends a frame. The pins of any port
//! yield when their station announces itself behind an uplink, because the VM has been migrated, until the port sends its
//! next frame. The port's own address stands for the VM: when it yields, all addresses of the port yield. An allowed
//! address yields alone, as that of a VRRP group whose master is on another host, until the port sends a frame from it. The
//! address of a virtual router yields until the port announces it: a backup sends other frames from it, such as IGMP and
//! MLD reports, while the master is on another host.
//!
//! Moves of a pinned address are counted as those of learned stations (RFC 7432, 15.1): four within three minutes are
//! permitted, and the pin does not yield a fifth time. Control dampens the address at the local port then.
//!
//! *The state survives a restart* if the switch has a state file. Otherwise each port starts as the configuration says.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::control::config::{self, Activation, Config, Shared, Vm};
use crate::time::MonoTime;
use crate::wire::Mac;

/// Moves that are permitted within [`WINDOW`].
const FREE: usize = 4;

/// The time within which moves are counted.
const WINDOW: Duration = Duration::from_secs(180);

/// The time for which an announcement from an uplink may be the echo of one that the guest has sent. An external network
/// that returns frames does so within a round trip.
const ECHO: Duration = Duration::from_millis(500);

/// Events about the pins of one port within [`EVENT_WINDOW`].
const MAX_EVENTS: u32 = 10;

/// The time within which events are counted.
const EVENT_WINDOW: Duration = Duration::from_secs(60);

/// The state of the pins of one port.
#[derive(Debug, Clone, Default)]
struct PinState {
    /// The port has sent a frame. Only for ports with `first-frame`.
    active: bool,
    /// All pins of the port have yielded.
    yielded: bool,
    /// Addresses whose pins have yielded one by one.
    addresses: BTreeSet<Mac>,
    /// When the guest last announced an address, within [`ECHO`].
    announced: HashMap<Mac, MonoTime>,
    /// When the pin of an address last yielded.
    yielded_at: HashMap<Mac, MonoTime>,
    /// When an address moved to an uplink or back, within [`WINDOW`].
    recent_moves_by_mac: HashMap<Mac, Vec<MonoTime>>,
    /// Start of the event window, and events within it.
    events: (MonoTime, u32),
}

/// The pins of one port in the state file.
#[derive(Debug, Serialize, Deserialize)]
struct PersistedPins {
    port: String,
    active: bool,
    yielded: bool,
    addresses: Vec<String>,
}

/// The effect of a frame that a port has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationEffect {
    /// The first frame of the port: its addresses are pinned to it.
    First,
    /// The first frame after its pins had yielded: its addresses are pinned to it again.
    Again,
    /// The first frame from an allowed address whose pin had yielded.
    Address,
}

/// The effect of an announcement from an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteEffect {
    /// All pins of the port yield.
    Port,
    /// The pin of this one address yields.
    Address,
    /// The address has moved too often: it stays pinned to the port.
    Flaps,
}

/// Whether an event is within the limit of its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinEventLimit {
    /// The event is emitted.
    Within,
    /// The event is emitted, as the last one within the window of a minute.
    Last,
    /// The event is suppressed.
    Exceeded,
}

/// The state of pins, by port id. A port without an entry has the state that its configuration says.
#[derive(Debug, Default)]
pub struct Activations {
    pins: HashMap<String, PinState>,
    /// Some were restored since the configuration was followed last.
    is_restored: bool,
}

impl Activations {
    /// Whether addresses are pinned to a port that is administratively up.
    pub fn pins(&self, port: &config::Port) -> bool {
        let pins = self.pins.get(port.id());
        let is_active = port.activation == Activation::Immediate || pins.is_some_and(|pins| pins.active);
        is_active && !pins.is_some_and(|pins| pins.yielded)
    }

    /// The addresses of a port whose pins have yielded one by one.
    pub fn yielded(&self, port: &config::Port) -> Vec<Mac> {
        self.pins.get(port.id()).map(|pins| pins.addresses.iter().copied().collect()).unwrap_or_default()
    }

    /// Follows a change of the configuration. The state of removed ports is deleted. The pins of a port with another address
    /// or network have not yielded there. A port for which `has_forwarded` holds, because frames from it were forwarded or
    /// flooded, is active when it is set to `first-frame`.
    pub fn follow<'a>(&mut self, before: &'a Config, now: &'a Config, has_forwarded: impl Fn(&str) -> bool) {
        // Restored states may not fit to ports that have not changed.
        let is_restored = std::mem::take(&mut self.is_restored);
        let (vms_before, vms_now) = match is_restored {
            true => (before.vms.as_slice(), now.vms.as_slice()),
            false => config::differing(&before.vms, &now.vms),
        };
        let ports = |vms: &'a [Shared<Vm>]| vms.iter().flat_map(|vm| vm.ports.iter());
        let old: HashMap<&str, &config::Port> = ports(vms_before).map(|port| (port.id(), port)).collect();
        let there: HashSet<&str> = ports(vms_now).map(config::Port::id).collect();
        if is_restored {
            self.pins.retain(|id, _| there.contains(id.as_str()));
        }
        for gone in old.keys().filter(|id| !there.contains(*id)) {
            self.pins.remove(*gone);
        }
        for port in ports(vms_now) {
            let was = old.get(port.id());
            let waits = port.activation == Activation::FirstFrame;
            if waits && was.is_some_and(|was| was.activation == Activation::Immediate) && has_forwarded(port.id()) {
                self.pins.entry(port.id().to_owned()).or_default().active = true;
            }
            let Some(pins) = self.pins.get_mut(port.id()) else { continue };
            if was.is_some_and(|was| (&was.network_id, was.mac) != (&port.network_id, port.mac)) {
                *pins = PinState { active: pins.active, ..PinState::default() };
            }
            let allows = |mac: &Mac| port.allowed_address_pairs.iter().any(|pair| pair.mac == Some(*mac));
            pins.addresses.retain(allows);
        }
    }

    /// Handles a frame from `source` that a port has sent while control waited for one. A report of a frame that was
    /// received before the pin yielded has no effect.
    pub fn receive(&mut self, port: &config::Port, source: Mac, now: MonoTime) -> Option<ActivationEffect> {
        self.activate(port, source, now, !source.is_virtual_router())
    }

    /// `claims`: whether the frame shows that its source is at this port, and not at an uplink.
    fn activate(&mut self, port: &config::Port, source: Mac, now: MonoTime, claims: bool) -> Option<ActivationEffect> {
        let waits = port.activation == Activation::FirstFrame;
        let pins = self.pins.entry(port.id().to_owned()).or_default();
        // The frame may have been an announcement.
        pins.announced.insert(source, now);
        let is_later = |yielded_at: Option<&MonoTime>| yielded_at.is_none_or(|&at| now >= at);
        if claims && is_later(pins.yielded_at.get(&source)) && pins.addresses.remove(&source) {
            pins.count(source, now);
            if !pins.yielded && (pins.active || !waits) {
                return Some(ActivationEffect::Address);
            }
        }
        if pins.yielded && is_later(pins.yielded_at.get(&port.mac)) {
            pins.yielded = false;
            pins.active = waits;
            pins.count(port.mac, now);
            return Some(ActivationEffect::Again);
        }
        (waits && !std::mem::replace(&mut pins.active, true)).then_some(ActivationEffect::First)
    }

    /// Handles an announcement that the guest of a port has sent. If the pin has already yielded to the echo of the
    /// announcement, which another worker may report first, the address is pinned again.
    pub fn announce(&mut self, port: &config::Port, mac: Mac, now: MonoTime) -> Option<ActivationEffect> {
        let pins = self.pins.entry(port.id().to_owned()).or_default();
        pins.announced.retain(|_, at| now.since(*at) < ECHO);
        pins.announced.insert(mac, now);
        // Not known after a restart.
        let yielded_at = pins.yielded_at.get(&mac).copied().unwrap_or(now);
        if yielded_at.since(now) >= ECHO {
            return None;
        }
        self.activate(port, mac, yielded_at.max(now), true)
    }

    /// Handles an announcement from an uplink of an address that is pinned to a port.
    pub fn announce_elsewhere(&mut self, port: &config::Port, mac: Mac, now: MonoTime) -> Option<RemoteEffect> {
        if !self.pins(port) {
            return None;
        }
        let pins = self.pins.entry(port.id().to_owned()).or_default();
        let is_echo = pins.announced.get(&mac).is_some_and(|&at| now.since(at) < ECHO);
        if is_echo || pins.addresses.contains(&mac) {
            return None;
        }
        if pins.recent_moves(mac, now) >= FREE {
            return Some(RemoteEffect::Flaps);
        }
        pins.count(mac, now);
        pins.yielded_at.insert(mac, now);
        if mac == port.mac {
            pins.yielded = true;
            return Some(RemoteEffect::Port);
        }
        pins.addresses.insert(mac);
        Some(RemoteEffect::Address)
    }

    /// Counts an event about the pins of a port against the limit of the port.
    pub fn count_event(&mut self, port: &config::Port, now: MonoTime) -> PinEventLimit {
        let pins = self.pins.entry(port.id().to_owned()).or_default();
        let (since, count) = &mut pins.events;
        if *count == 0 || now.since(*since) >= EVENT_WINDOW {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        match *count {
            ..MAX_EVENTS => PinEventLimit::Within,
            MAX_EVENTS => PinEventLimit::Last,
            _ => PinEventLimit::Exceeded,
        }
    }

    /// The state as it is written to the state file.
    pub fn to_value(&self) -> Value {
        let stored = |(port, pins): (&String, &PinState)| {
            let addresses: Vec<String> = pins.addresses.iter().map(Mac::to_string).collect();
            let stored = PersistedPins { port: port.clone(), active: pins.active, yielded: pins.yielded, addresses };
            (stored.active || stored.yielded || !stored.addresses.is_empty()).then_some((port.clone(), stored))
        };
        let all: BTreeMap<String, PersistedPins> = self.pins.iter().filter_map(stored).collect();
        serde_json::to_value(all.into_values().collect::<Vec<_>>()).unwrap_or_default()
    }

    /// Restores the state from the state file. Entries that cannot be parsed are ignored, and those of ports for which more
    /// recent state is known, or for which `has_forwarded` holds.
    pub fn restore(&mut self, stored: &Value, has_forwarded: impl Fn(&str) -> bool) {
        self.is_restored = true;
        let all = stored.as_array().map(Vec::as_slice).unwrap_or_default();
        for PersistedPins { port, active, yielded, addresses } in
            all.iter().filter_map(|one| PersistedPins::deserialize(one).ok())
        {
            let addresses = addresses.iter().filter_map(|mac| mac.parse().ok()).collect();
            if !has_forwarded(&port) {
                self.pins.entry(port).or_insert(PinState { active, yielded, addresses, ..PinState::default() });
            }
        }
    }
}

impl PinState {
    /// Moves of an address within [`WINDOW`].
    fn recent_moves(&self, mac: Mac, now: MonoTime) -> usize {
        let flaps = self.recent_moves_by_mac.get(&mac).map(Vec::as_slice).unwrap_or_default();
        flaps.iter().filter(|&&at| now.since(at) < WINDOW).count()
    }

    /// Counts a move of an address.
    fn count(&mut self, mac: Mac, now: MonoTime) {
        self.recent_moves_by_mac.retain(|_, flaps| {
            flaps.retain(|&at| now.since(at) < WINDOW);
            !flaps.is_empty()
        });
        self.recent_moves_by_mac.entry(mac).or_default().push(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse_toml;
    use proptest::prelude::*;

    const OWN: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
    const ALLOWED: Mac = Mac::new([2, 0, 0, 0, 0, 2]);
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
             allowed_address_pairs = [{{ mac_address = \"{ALLOWED}\" }}, {{ mac_address = \"{VRRP}\" }}]"
        ))
    }

    fn port(config: &Config) -> &config::Port {
        &config.vms[0].ports[0]
    }

    fn at(millis: u64) -> MonoTime {
        MonoTime::from_secs(1000) + Duration::from_millis(millis)
    }

    #[test]
    fn an_inactive_port_pins_from_its_first_frame_on() {
        let (waits, immediate) = (of("first-frame"), of("immediate"));
        let mut all = Activations::default();
        assert!(all.pins(port(&immediate)) && !all.pins(port(&waits)));
        assert_eq!(all.announce_elsewhere(port(&waits), OWN, at(0)), None, "no pin could yield");
        assert_eq!(
            all.receive(port(&waits), ALLOWED, at(0)),
            Some(ActivationEffect::First),
            "whichever address the guest has used"
        );
        assert_eq!(all.receive(port(&waits), OWN, at(0)), None);
        assert!(all.pins(port(&waits)));
    }

    #[test]
    fn a_pin_yields_to_an_external_announcement_until_the_next_frame() {
        for config in [of("immediate"), of("first-frame")] {
            let (port, mut all) = (port(&config), Activations::default());
            all.receive(port, OWN, at(0));
            assert_eq!(all.announce_elsewhere(port, OWN, at(499)), None, "the guest has just sent a frame");
            all.announce(port, OWN, at(600));
            assert_eq!(all.announce_elsewhere(port, OWN, at(1099)), None);
            assert_eq!(all.announce_elsewhere(port, OWN, at(1100)), Some(RemoteEffect::Port));
            assert_eq!(all.announce_elsewhere(port, OWN, at(1100)), None, "the pin has yielded already");
            assert!(!all.pins(port));
            assert_eq!(all.receive(port, ALLOWED, at(1200)), Some(ActivationEffect::Again));
            assert!(all.pins(port));
        }
    }

    /// Workers report independently of each other, and control may handle reports late.
    #[test]
    fn the_order_of_reports_does_not_matter() {
        let config = of("immediate");
        let (port, mut all) = (port(&config), Activations::default());
        for mac in [OWN, ALLOWED] {
            assert!(all.announce_elsewhere(port, mac, at(1001)).is_some());
            assert!(all.announce(port, mac, at(1000)).is_some(), "an echo of the guest's own frame");
            assert!(all.pins(port) && all.yielded(port).is_empty());
            assert!(all.announce_elsewhere(port, mac, at(2000)).is_some());
            assert_eq!(all.receive(port, mac, at(1999)), None, "an earlier report");
            assert_eq!(all.announce(port, mac, at(1500)), None, "too late for an echo");
            assert!(!all.pins(port) || all.yielded(port) == [mac]);
            assert!(all.receive(port, mac, at(2000)).is_some());
        }
    }

    #[test]
    fn an_allowed_address_yields_alone() {
        let config = of("immediate");
        let (port, mut all) = (port(&config), Activations::default());
        assert_eq!(all.announce_elsewhere(port, ALLOWED, at(0)), Some(RemoteEffect::Address));
        assert_eq!((all.pins(port), all.yielded(port)), (true, vec![ALLOWED]));
        assert_eq!(all.receive(port, OWN, at(1)), None, "the VM is here and does not use this address");
        assert_eq!(all.receive(port, ALLOWED, at(2)), Some(ActivationEffect::Address));
        assert_eq!(all.yielded(port), []);
        assert_eq!(all.announce_elsewhere(port, ALLOWED, at(600)), Some(RemoteEffect::Address));
        assert_eq!(all.announce_elsewhere(port, OWN, at(600)), Some(RemoteEffect::Port));
        assert_eq!(all.receive(port, ALLOWED, at(700)), Some(ActivationEffect::Again), "both pins at once");
        assert_eq!((all.pins(port), all.yielded(port)), (true, vec![]));
    }

    #[test]
    fn an_address_that_flaps_stays_at_the_port() {
        let config = of("immediate");
        let (port, mut all) = (port(&config), Activations::default());
        for round in 0..2 {
            assert_eq!(all.announce_elsewhere(port, OWN, at(round * 10_000)), Some(RemoteEffect::Port));
            assert_eq!(all.receive(port, OWN, at(round * 10_000 + 1000)), Some(ActivationEffect::Again));
        }
        assert_eq!(all.announce_elsewhere(port, OWN, at(20_000)), Some(RemoteEffect::Flaps), "the fifth move");
        assert!(all.pins(port));
        assert_eq!(all.announce_elsewhere(port, OWN, at(179_999)), Some(RemoteEffect::Flaps));
        assert_eq!(
            all.announce_elsewhere(port, OWN, at(180_000)),
            Some(RemoteEffect::Port),
            "the first move is three minutes old"
        );
    }

    /// The master of a virtual router announces it several times per second.
    #[test]
    fn periodic_announcements_move_an_address_once() {
        let config = of("immediate");
        let (port, mut all) = (port(&config), Activations::default());
        let second = |number: u64| (0..3).map(move |part| number * 1000 + part * 333);
        assert_eq!(all.announce_elsewhere(port, VRRP, at(0)), Some(RemoteEffect::Address));
        for millis in (0..180).flat_map(second) {
            assert_eq!(all.announce_elsewhere(port, VRRP, at(millis)), None, "it has yielded already");
        }
        assert_eq!(all.announce(port, VRRP, at(180_000)), Some(ActivationEffect::Address), "a master here");
        for millis in (180..360).flat_map(second) {
            assert_eq!(all.announce(port, VRRP, at(millis)), None);
            assert_eq!(all.announce_elsewhere(port, VRRP, at(millis + 1)), None, "the echo");
        }
        assert_eq!(all.announce_elsewhere(port, VRRP, at(361_000)), Some(RemoteEffect::Address), "a master elsewhere");
        assert_eq!(all.yielded(port), [VRRP]);
    }

    /// Both sides announce the address each second.
    #[test]
    fn an_address_with_a_master_on_either_side_stays_at_the_port() {
        let config = of("immediate");
        let (port, mut all) = (port(&config), Activations::default());
        // Within 0.5 s it may be an echo. Later the address moves twice there and twice back within a minute.
        for (offset, moves, last) in [(300, 0, None), (700, 2, Some(RemoteEffect::Flaps))] {
            let mut effects = Vec::new();
            for second in 0..60 {
                let millis = offset * 1000 + second * 1000;
                all.announce(port, VRRP, at(millis));
                assert_eq!(all.yielded(port), [], "each announcement of the port pins it");
                effects.push(all.announce_elsewhere(port, VRRP, at(millis + offset)));
            }
            let moved = effects.iter().filter(|&&effect| effect == Some(RemoteEffect::Address)).count();
            assert_eq!((moved, effects.last()), (moves, Some(&last)));
        }
    }

    /// A backup sends reports of its group memberships from the address (RFC 3376, RFC 3810), in answer to each query.
    #[test]
    fn only_an_announcement_takes_the_address_of_a_virtual_router_back() {
        for (config, is_known) in [(of("immediate"), true), (of("first-frame"), true), (of("immediate"), false)] {
            let (port, mut all) = (port(&config), Activations::default());
            all.receive(port, OWN, at(0));
            assert_eq!(all.announce_elsewhere(port, VRRP, at(0)), Some(RemoteEffect::Address));
            for second in 1..100 {
                assert_eq!(all.receive(port, VRRP, at(second * 1000)), None, "a backup");
                assert_eq!(all.announce_elsewhere(port, VRRP, at(second * 1000 + 700)), None);
                assert_eq!((all.pins(port), all.yielded(port)), (true, vec![VRRP]));
            }
            if !is_known {
                let stored = all.to_value();
                all = Activations::default();
                all.restore(&stored, |_| false);
            }
            assert_eq!(all.announce(port, VRRP, at(100_000)), Some(ActivationEffect::Address), "the master");
            assert_eq!((all.pins(port), all.yielded(port)), (true, vec![]));
        }
        // Any frame shows that the VM is here.
        let waits = of("first-frame");
        let (port, mut all) = (port(&waits), Activations::default());
        assert_eq!(all.receive(port, VRRP, at(0)), Some(ActivationEffect::First));
        assert_eq!(all.announce_elsewhere(port, OWN, at(1000)), Some(RemoteEffect::Port));
        assert_eq!(all.receive(port, VRRP, at(2000)), Some(ActivationEffect::Again));
        let mut all = Activations::default();
        assert_eq!(all.announce(port, VRRP, at(0)), Some(ActivationEffect::First));
    }

    #[test]
    fn the_state_survives_a_restart_and_unrelated_changes() {
        let waits = of("first-frame");
        let mut all = Activations::default();
        all.receive(port(&waits), OWN, at(0));
        all.announce_elsewhere(port(&waits), ALLOWED, at(5000));
        let resumed = |all: &Activations| {
            let mut back = Activations::default();
            back.restore(&serde_json::from_str(&all.to_value().to_string()).unwrap(), |_| false);
            back
        };
        let mut back = resumed(&all);
        back.restore(&serde_json::json!([7, null, {"port": 3}]), |_| false);
        back.follow(&Config::default(), &waits, |_| false);
        assert_eq!((back.pins(port(&waits)), back.yielded(port(&waits))), (true, vec![ALLOWED]));
        back.announce_elsewhere(port(&waits), OWN, at(9000));
        let mut back = resumed(&back);
        let mut down = waits.clone();
        down.vms[0].ports[0].admin_state_up = false;
        back.follow(&waits, &down, |_| false);
        back.follow(&down, &waits, |_| false);
        assert!(!back.pins(port(&waits)), "a yielded pin stays yielded after the port was down");
        let mut moved = waits.clone();
        moved.vms[0].ports[0].network_id = "m".into();
        moved.vms[0].ports[0].allowed_address_pairs.clear();
        back.follow(&waits, &moved, |_| false);
        assert_eq!(
            (back.pins(port(&moved)), back.yielded(port(&moved))),
            (true, vec![]),
            "no station is elsewhere on that network"
        );
        back.follow(&moved, &Config::default(), |_| false);
        back.follow(&Config::default(), &waits, |_| false);
        assert!(!back.pins(port(&waits)), "a new port of the same id");
    }

    #[test]
    fn a_port_that_has_sent_stays_active_when_set_to_first_frame() {
        let (waits, immediate) = (of("first-frame"), of("immediate"));
        for has_forwarded in [true, false] {
            let mut all = Activations::default();
            all.follow(&immediate, &waits, |_| has_forwarded);
            assert_eq!(all.pins(port(&waits)), has_forwarded);
            all.follow(&waits, &waits, |_| true);
            assert_eq!(all.pins(port(&waits)), has_forwarded, "only a change resets the state");
        }
    }

    proptest! {
        /// For any sequence of reports: the port pins after each of its frames, and the event limit holds.
        #[test]
        fn each_frame_of_the_port_restores_its_pins(steps in prop::collection::vec((0usize..4, 0u64..40_000), 0..100)) {
            let config = of("first-frame");
            let (port, mut all, mut now) = (port(&config), Activations::default(), 0);
            let mut emitted = Vec::new();
            for (step, pause) in steps {
                now += pause;
                let mac = [OWN, ALLOWED][step % 2];
                match step {
                    0 | 1 => {
                        all.receive(port, mac, at(now));
                        prop_assert!(all.pins(port) && !all.yielded(port).contains(&mac));
                    }
                    _ => {
                        let pinned = all.pins(port) && !all.yielded(port).contains(&mac);
                        let came = all.announce_elsewhere(port, mac, at(now));
                        prop_assert!(pinned || came.is_none());
                        let is_pinned = all.pins(port) && !all.yielded(port).contains(&mac);
                        prop_assert_eq!(is_pinned, pinned && matches!(came, None | Some(RemoteEffect::Flaps)));
                    }
                }
                if all.count_event(port, at(now)) != PinEventLimit::Exceeded {
                    emitted.push(now);
                }
            }
            prop_assert!(emitted.windows(2 * MAX_EVENTS as usize + 1).all(|some| some[some.len() - 1] - some[0] >= 60_000));
        }
    }
}
