//! A switch written to be obviously right, and the real one against it, frame by frame.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use vifswitch::switch::{DropReason, Security};

use crate::common::{Lab, Plug, Setup, mac};
use crate::scenery::{self, Sketch, plain};

const MTU: usize = 1500;
const AGEING: u64 = 300;

type Address = [u8; 6];

/// What is to become of a frame: who gets it, or why nobody does.
type Fate = Result<Vec<usize>, DropReason>;

struct Model {
    plugs: Vec<Plug>,
    /// By network and address: behind which port, and when it was last seen.
    learned: HashMap<(u16, Address), (usize, u64)>,
    now: u64,
}

impl Model {
    /// Whether a port lists an address as its own or as allowed.
    fn lists(&self, port: usize, address: Address) -> bool {
        match &self.plugs[port].security {
            Security::Off => mac(port).octets() == address,
            security => mac(port).octets() == address || security.macs().any(|also| also.octets() == address),
        }
    }

    fn network(&self, port: usize) -> u16 {
        self.plugs[port].network
    }

    /// The only port of the network that lists this address.
    fn pinned(&self, network: u16, address: Address) -> Option<usize> {
        let mut listing =
            (0..self.plugs.len()).filter(|&port| self.network(port) == network && self.lists(port, address));
        listing.next().filter(|_| listing.next().is_none())
    }

    fn find(&self, network: u16, address: Address) -> Option<usize> {
        let learned = self.learned.get(&(network, address)).filter(|(_, seen)| self.now - seen < AGEING);
        self.pinned(network, address).or(learned.map(|(port, _)| *port))
    }

    fn frame(&mut self, from: usize, frame: &[u8]) -> Fate {
        let plug = &self.plugs[from];
        if !plug.admin_up {
            return Err(DropReason::AdminDown);
        }
        if frame.len() < 14 {
            return Err(DropReason::Runt);
        }
        let is_tag = |at: usize| matches!(frame.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xa8] | [0x91, 0x00]));
        let whole_tag = |at: usize| is_tag(at) && frame.len() >= at + 6;
        let tags = if !whole_tag(12) {
            0
        } else if !whole_tag(16) {
            1
        } else {
            2
        };
        if frame.len() > MTU + 14 + 4 * tags {
            return Err(DropReason::TooLong);
        }
        let (to, source): (Address, Address) = (frame[..6].try_into().unwrap(), frame[6..12].try_into().unwrap());
        if source[0] & 1 == 1 || source == [0; 6] {
            return Err(DropReason::BadSource);
        }
        if to == [0x01, 0x80, 0xc2, 0, 0, 1] {
            return Err(DropReason::ReservedGroup);
        }
        let network = plug.network;
        let pinned = self.pinned(network, source);
        if pinned.is_some_and(|owner| self.plugs[owner].owner != plug.owner) {
            return Err(DropReason::ForeignSource);
        }
        if plug.security != Security::Off && !self.lists(from, source) {
            return Err(DropReason::SpoofedSource);
        }
        let found = if to[0] & 1 == 1 { None } else { self.find(network, to) };
        if found == Some(from) {
            return Err(DropReason::Hairpin);
        }
        if pinned.is_none() {
            self.learned.insert((network, source), (from, self.now));
        }
        match found {
            Some(port) => Ok(vec![port]),
            None if to == source => Err(DropReason::Hairpin),
            None => Ok((0..self.plugs.len())
                .filter(|&port| port != from && self.network(port) == network && self.plugs[port].admin_up)
                .collect()),
        }
    }
}

#[derive(Debug, Clone)]
enum Act {
    Send(Sketch),
    Pass(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let pass = prop_oneof![Just(1u64), Just(AGEING - 1), Just(AGEING), 0..600u64];
    vec(prop_oneof![12 => plain().prop_map(Act::Send), 1 => pass.prop_map(Act::Pass)], 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn each_frame_goes_where_the_model_says(
        plugs in scenery::plugs(3),
        memory in scenery::memory(),
        acts in acts(),
    ) {
        let ports = plugs.len();
        let mut lab = Lab::new(Setup { memory, mtu: MTU as u16, ..Setup::default() }, &plugs);
        let mut model = Model { plugs, learned: HashMap::new(), now: 0 };
        for (number, act) in acts.iter().enumerate() {
            let sketch = match act {
                Act::Pass(seconds) => {
                    lab.pass(Duration::from_secs(*seconds));
                    model.now += seconds;
                    continue;
                }
                Act::Send(sketch) => sketch,
            };
            let (from, bytes) = (sketch.port(ports), sketch.bytes(ports));
            let before = DropReason::ALL.map(|reason| lab.drops_in(from, reason));
            let expected = model.frame(from, &bytes);
            prop_assert!(lab.send(from, &bytes));
            lab.settle();
            for (reason, before) in DropReason::ALL.into_iter().zip(before) {
                let died = lab.drops_in(from, reason) - before;
                prop_assert_eq!(died, u64::from(expected == Err(reason)), "act {}: {:?}, not {:?}", number, reason, expected);
            }
            let reached: HashSet<usize> = expected.unwrap_or_default().into_iter().collect();
            for port in 0..ports {
                // A frame may be meant for a port that is down, and dies there.
                let expected = reached.contains(&port) && model.plugs[port].admin_up;
                let received = lab.received(port);
                prop_assert_eq!(received.len(), usize::from(expected), "act {}: frames at port {}", number, port);
                prop_assert!(received.iter().all(|frame| *frame == bytes), "act {}: changed at port {}", number, port);
            }
        }
        let down = (0..ports).map(|port| lab.drops_out(port, DropReason::AdminDown)).sum::<u64>();
        prop_assert_eq!(lab.total(|c| c.drops_out.total()), down, "nothing else dies on its way out");
        lab.check_ledger();
        lab.end();
    }
}
