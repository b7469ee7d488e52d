//! The gates of a worker: the device queues it polls, and what waits to leave by them.

use std::fmt;

use super::branch::{Branch, Room};
use super::gathering::Gathering;
use super::outbox::place;
use super::shedding::Shedding;
use crate::device::Device;
use crate::frame::{BURST, Frame, Lane, View};
use crate::switch::{DropReason, MOST_PORTS, PortId, PortRules, Reach, Rules, Verdict};
use crate::wire::Vid;

/// Frames that wait in one lane at most: a worker sends its lanes off after a burst or two.
pub(super) const LANE: usize = 3 * BURST;

/// One queue of a port's device, and the lane of frames that leave by it.
pub struct Gate {
    /// The port, or the carrier.
    pub port: PortId,
    /// Which of the device's queues.
    pub queue: u16,
    /// The device. Nobody else polls it.
    pub device: Box<dyn Device>,
    /// Its lane, until it is opened and after it has been closed; meanwhile [`Gates`] has it.
    lane: Lane,
    offloads: bool,
    /// Whether its device leads to a wire.
    pub(super) leads_to_wire: bool,
    /// How many frames its device hands over at once, at most.
    pub(super) most: usize,
    /// Whether its device is left alone for a moment.
    pub(super) gathering: Gathering,
    /// Whether it is polled even when it is quiet.
    pub(super) never_rests: bool,
    /// Whether its lane has frames that have to be finished before they can leave by it.
    pub(super) unfinished: bool,
    /// Reads that found nothing, in a row.
    pub(super) quiet: u8,
    /// Bursts received and bursts sent since its descriptor is watched, up to where it is watched no longer.
    pub(super) loud: u8,
    pub(super) state: GateState,
    /// Full bursts in a row of which no frame lived.
    pub(super) futile: u8,
    /// Frames to each kind of group that its device sheds.
    pub(super) shedding: Shedding,
}

/// Whether a gate is polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GateState {
    /// It is.
    Polled,
    /// It has been quiet, and is left alone until its descriptor becomes readable.
    Resting,
    /// It is, but not for this many breaths: nothing lives of what it brings.
    Deferred(u8),
    /// Its device is gone.
    Gone,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("port", &self.port).field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl Gate {
    /// A gate that nobody polls yet.
    pub fn new(port: PortId, queue: u16, device: Box<dyn Device>) -> Gate {
        Gate {
            port,
            queue,
            offloads: device.abilities().offloads,
            leads_to_wire: device.leads_to_wire(),
            most: device.most_at_once(),
            gathering: Gathering::new(device.gathering_time()),
            never_rests: device.is_cheap_to_ask() || device.fd().is_none(),
            device,
            lane: Lane::with_capacity(LANE),
            unfinished: false,
            quiet: 0,
            loud: 0,
            state: GateState::Polled,
            futile: 0,
            shedding: Shedding::default(),
        }
    }
}

/// Frames that went into lanes the short way.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// How many.
    pub(super) frames: usize,
    /// And their bytes.
    pub(super) bytes: u64,
    /// Whether some of them were borrowed.
    pub(super) borrowed: bool,
}

/// The numbers of branches begin here, behind those of all gates.
const BRANCHES: usize = MOST_PORTS;

/// Numbers of gates and branches.
const NUMBERS: usize = BRANCHES + MOST_PORTS;

/// Of how many gates, or branches, it is asked at once whether they have something to send.
pub(super) const AT_ONCE: usize = 8;

/// How frames leave for a port.
#[derive(Debug, Clone, Copy)]
pub(super) struct Door {
    /// The port.
    port: PortId,
    /// The number of the gate, or of the branch.
    gate: u16,
    /// Whether the gate takes offload headers.
    pub(super) offloads: bool,
    /// Whether floods leave by it: at one worker only, though a port may have queues at several.
    pub(super) floods: bool,
}

/// No door.
const SHUT: Door = Door { port: PortId::NONE, gate: u16::MAX, offloads: false, floods: false };

/// How frames leave for a port by a device that carries several.
#[derive(Debug, Clone, Copy)]
pub(super) struct CarriedDoor {
    /// Through this door.
    pub(super) door: Door,
    /// With this tag, if any.
    pub(super) vlan: Option<Vid>,
    /// Whether they have to be as long as frames on a wire: it is an uplink, and its device may lead to one.
    pub(super) pads: bool,
}

/// The doors that lead through one gate: that of its port, or those of the ports that it carries. Not
/// those of ports or carriers that are administratively down or in standby. By those of ports in quarantine
/// only loop probes may leave.
fn doors<'a>(gate: &Gate, number: u16, me: u16, rules: &'a Rules) -> impl Iterator<Item = (Door, &'a PortRules)> {
    let own = rules.port(gate.port).filter(|port| port.reach == Reach::Own);
    let carried = rules.carrier(gate.port).into_iter().flat_map(|carrier| &carrier.ports).filter_map(|&(vlan, id)| {
        let reach = Reach::Carried { carrier: gate.port, vlan };
        rules.port(id).filter(|port| port.reach == reach)
    });
    let leads_out = |port: &&PortRules| gate.state != GateState::Gone && rules.way_out_of_probes(port.id).is_ok();
    own.into_iter().chain(carried).filter(leads_out).map(move |port| (door(gate, number, me, rules, port), port))
}

/// The door of a port through a gate that leads there.
fn door(gate: &Gate, number: u16, me: u16, rules: &Rules, port: &PortRules) -> Door {
    #[allow(clippy::cast_possible_truncation)] // there are at most as many branches as ports
    let through = rules.branch(port.id).map_or(number, |branch| (BRANCHES + branch) as u16);
    Door { port: port.id, gate: through, offloads: gate.offloads, floods: port.worker == Some(me) }
}

/// The gates of a worker, by a number that stays while they are open.
#[derive(Debug)]
pub(super) struct Gates {
    /// Which worker's.
    me: u16,
    slots: Vec<Option<Gate>>,
    /// By number: what waits to leave by each gate. Apart from the gates, to stand close together.
    lanes: Vec<Lane>,
    /// By [`PortId::index`]: how frames leave for this port by a device of its own. Shut while the port is
    /// administratively down, so that asking for the door is all that a frame has to ask.
    doors: Box<[Door; MOST_PORTS]>,
    /// The same for ports that are carried. These have no door above, so that a frame that finds one
    /// there has nothing more to ask.
    carried: Box<[Option<CarriedDoor>; MOST_PORTS]>,
    /// By number: 1 for the gates and branches whose lanes are not empty. Bytes, and not bits, as one is written for
    /// each frame.
    waiting: Box<[u8; NUMBERS]>,
    /// The lanes of subports, in the order of the rules.
    branches: Room,
    open: usize,
}

impl Gates {
    pub(super) fn new(me: u16) -> Gates {
        Gates {
            me,
            slots: Vec::with_capacity(MOST_PORTS),
            lanes: Vec::with_capacity(MOST_PORTS),
            doors: Box::new([SHUT; MOST_PORTS]),
            carried: Box::new([None; MOST_PORTS]),
            waiting: Box::new([0; NUMBERS]),
            branches: Room::default(),
            open: 0,
        }
    }

    /// How many gates are open.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// One more than the highest number of a gate.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut Gate> {
        self.slots.get_mut(number)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Gate> {
        self.slots.iter().flatten()
    }

    /// Opens a gate, and says its number. It comes back if there are too many.
    #[allow(clippy::result_large_err)] // it is the gate that comes back
    pub(super) fn insert(&mut self, mut gate: Gate, rules: &Rules) -> Result<usize, Gate> {
        let port = gate.port;
        let number = match self.slots.iter().position(Option::is_none) {
            Some(number) => number,
            None if self.slots.len() < MOST_PORTS => {
                self.slots.push(None);
                self.lanes.push(Lane::default());
                self.slots.len() - 1
            }
            None => return Err(gate),
        };
        self.lanes[number] = std::mem::take(&mut gate.lane);
        self.slots[number] = Some(gate);
        self.open += 1;
        self.find_door(port, rules);
        Ok(number)
    }

    pub(super) fn number_of(&self, port: PortId, queue: u16) -> Option<usize> {
        self.slots.iter().position(|slot| slot.as_ref().is_some_and(|gate| gate.port == port && gate.queue == queue))
    }

    /// Closes a gate.
    pub(super) fn remove(&mut self, number: usize, rules: &Rules) -> Option<Gate> {
        let mut gate = self.slots.get_mut(number)?.take()?;
        gate.lane = std::mem::take(&mut self.lanes[number]);
        self.open -= 1;
        self.waiting[number] = 0;
        self.find_door(gate.port, rules);
        Some(gate)
    }

    /// Marks a gate as one whose device is gone.
    pub(super) fn lose(&mut self, number: usize, rules: &Rules) {
        if let Some(gate) = self.get_mut(number) {
            gate.state = GateState::Gone;
            let port = gate.port;
            self.find_door(port, rules);
        }
    }

    /// Takes other room for branches. That before comes back. Between two breaths, when nothing waits.
    pub(super) fn take_room(&mut self, room: Room, rules: &Rules) -> Room {
        let old = std::mem::replace(&mut self.branches, room);
        self.find_doors(rules);
        old
    }

    /// Finds the doors again, under new rules.
    pub(super) fn find_doors(&mut self, rules: &Rules) {
        self.doors.fill(SHUT);
        self.carried.fill(None);
        for (number, gate) in (0..).zip(&self.slots).filter_map(|(number, gate)| Some((number, gate.as_ref()?))) {
            for (door, port) in doors(gate, number, self.me, rules) {
                let (plain, carried) = (&mut self.doors[door.port.index()], &mut self.carried[door.port.index()]);
                match port.reach {
                    Reach::Own if plain.port != door.port && !port.held => *plain = door,
                    Reach::Carried { vlan, .. } if carried.is_none() => {
                        let branch = usize::from(door.gate).checked_sub(BRANCHES);
                        // What waits in a branch stays in it: the rules number them.
                        let has_lane =
                            branch.is_none_or(|branch| self.branches.assign(branch, door.port, number.into()));
                        let pads = gate.leads_to_wire && port.is_uplink();
                        *carried = (has_lane && !port.held).then_some(CarriedDoor { door, vlan, pads });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Finds the door of `port` again, or, if it is a carrier, those of the ports it carries.
    fn find_door(&mut self, port: PortId, rules: &Rules) {
        if rules.carrier(port).is_some() {
            return self.find_doors(rules);
        }
        let gates = (0..).zip(&self.slots).filter_map(|(number, gate)| Some((number, gate.as_ref()?)));
        let mut found =
            gates.filter(|(_, gate)| gate.port == port).flat_map(|(number, gate)| doors(gate, number, self.me, rules));
        self.doors[port.index()] = found.find(|(_, port)| !port.held).map_or(SHUT, |(door, _)| door);
    }

    /// How loop probes leave for `port`, be it in quarantine or not, or why they cannot.
    pub(super) fn door_for_probes(&self, port: PortId, rules: &Rules) -> Result<CarriedDoor, DropReason> {
        let port = rules.way_out_of_probes(port)?;
        let (by, vlan) = match port.reach {
            Reach::Own => (port.id, None),
            Reach::Carried { carrier, vlan } => (carrier, vlan),
        };
        let gates = (0..).zip(&self.slots).filter_map(|(number, gate)| Some((number, gate.as_ref()?)));
        let mut fit = gates.filter(|(_, gate)| gate.port == by && gate.state != GateState::Gone);
        let (number, gate) = fit.next().ok_or(DropReason::NoDevice)?;
        if rules.branch(port.id).is_some_and(|branch| branch >= self.branches.len()) {
            return Err(DropReason::NoDevice);
        }
        Ok(CarriedDoor { door: door(gate, number, self.me, rules, port), vlan, pads: false })
    }

    /// How frames leave for `port` by a device of its own. `None`: it has none here, or the port is
    /// administratively down, or it is closed.
    #[inline(always)]
    pub(super) fn door(&self, port: PortId) -> Option<Door> {
        let door = self.doors[port.index() % MOST_PORTS];
        (door.port == port).then_some(door)
    }

    /// How frames leave for `port` by a device that carries several.
    #[inline]
    pub(super) fn carried_door(&self, port: PortId) -> Option<CarriedDoor> {
        self.carried[port.index() % MOST_PORTS].filter(|carried| carried.door.port == port)
    }

    /// The lane behind a door, for a frame to be put into it.
    #[inline(always)]
    pub(super) fn enter(&mut self, door: Door) -> &mut Lane {
        let number = usize::from(door.gate);
        self.waiting[number % NUMBERS] = 1;
        if number < self.lanes.len() { &mut self.lanes[number] } else { self.enter_branch(number) }
    }

    /// Puts frames into the lanes of the ports that they are for, from the one at `first` of their burst on: as far as
    /// nothing has to be done to them, and the port has a device of its own here. A frame that owns its slot is taken
    /// out of its place, one that is lent is borrowed.
    #[inline(never)] // with registers of its own
    pub(super) fn pass_on(&mut self, frames: &mut [Frame], first: usize, verdicts: &[Verdict]) -> Passed {
        let mut passed = Passed::default();
        for (frame, verdict) in frames.iter_mut().zip(verdicts) {
            let Verdict::To(to) = *verdict else { break };
            let door = self.doors[to.index() % MOST_PORTS];
            let number = usize::from(door.gate);
            if door.port != to {
                break;
            }
            let Some(lane) = self.lanes.get_mut(number) else { break };
            // Also where frames wait in it: whether they do, no processor could foresee.
            self.waiting[number % NUMBERS] = 1;
            let len = u64::from(frame.len());
            if frame.is_plain_slot() {
                lane.take_in(frame);
            } else if frame.is_plain_loan(door.offloads) {
                lane.borrow(place(first + passed.frames));
                passed.borrowed = true;
            } else {
                break;
            }
            passed.bytes += len;
            passed.frames += 1;
        }
        passed
    }

    #[inline(never)] // it takes the place of what would be a panic
    fn enter_branch(&mut self, number: usize) -> &mut Lane {
        self.branches.lane(number - BRANCHES)
    }

    /// Whether a frame with offload work can leave by a door as it is.
    #[inline(never)] // hardly any frame asks
    pub(super) fn takes(&self, door: Door, view: &View<'_>) -> bool {
        let number = usize::from(door.gate);
        let number = number.checked_sub(BRANCHES).map_or(Some(number), |branch| self.branches.gate_of(branch));
        let gate = number.and_then(|number| self.slots.get(number)?.as_ref());
        gate.is_some_and(|gate| view.is_ready_for(gate.device.offload_set()))
    }

    /// Notes that a frame goes into the lane behind a door that has to be finished first.
    #[inline]
    pub(super) fn note_unfinished(&mut self, door: Door) {
        let number = usize::from(door.gate);
        if let Some(gate) = self.get_mut(number) {
            gate.unfinished = true;
        } else if let Some(branch) = number.checked_sub(BRANCHES).and_then(|branch| self.branches.get_mut(branch)) {
            branch.unfinished = true;
        }
    }

    /// The numbers of branches, [`AT_ONCE`] at a time: none, if there is no trunk.
    #[inline]
    pub(super) fn branch_numbers(&self) -> impl Iterator<Item = usize> + use<> {
        (BRANCHES..BRANCHES + self.branches.len()).step_by(AT_ONCE)
    }

    /// A branch, by its number, and the gate by which it leaves.
    pub(super) fn with_branch(&mut self, number: usize) -> Option<(&mut Gate, &mut Branch)> {
        let branch = self.branches.get_mut(number.checked_sub(BRANCHES)?)?;
        Some((self.slots.get_mut(branch.gate)?.as_mut()?, branch))
    }

    /// Of [`AT_ONCE`] gates or branches from `first` on, those that have something to send, as a set of bits with
    /// room for eight times as many. It is not remembered any longer.
    #[inline]
    pub(super) fn take_waiting(&mut self, first: usize) -> u64 {
        self.waiting[first..].first_chunk_mut().map_or(0, |bytes| u64::from_le_bytes(std::mem::take(bytes)))
    }

    /// A gate and its lane.
    #[inline]
    pub(super) fn with_lane(&mut self, number: usize) -> Option<(&mut Gate, &mut Lane)> {
        Some((self.slots.get_mut(number)?.as_mut()?, self.lanes.get_mut(number)?))
    }
}
