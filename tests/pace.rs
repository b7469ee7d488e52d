//! Workers in threads of their own: they sleep when there is nothing to do, and no wake-up is lost.
//! Nothing here waits for time to pass; deadlines are for what should not happen.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;
use vifswitch::device::{Abilities, Device};
use vifswitch::frame::{Batch, Cache, Fate, Lane, Pool, Sent};
use vifswitch::switch::{Limits, NetworkId, NetworkRules, Owner, PortId, PortRules, ReservedMask, Rules, Secret};
use vifswitch::telemetry::{PortCounters, WorkerCounters};
use vifswitch::time;
use vifswitch::wire::{Mac, ProbeKey};
use vifswitch::worker::{Command, Gate, Pace, Post, SPIN, StationsPage, TeamSettings, team};

mod common;
use common::{frame, mac};

/// Longer than anything here takes, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something is there, and says what was missing if it does not come.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = time::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(time::now().since(start) < PATIENCE, "in vain: {what}");
        thread::yield_now();
    }
}

/// Does something that needs a worker to wake up, again and again. A wake-up that is lost is made up
/// for when the worker looks up by itself, once a second; so hardly any round may take nearly as
/// long. A few may, as the machine has other things to do.
fn none_is_slow(rounds: u32, mut round: impl FnMut()) {
    let mut slow = 0;
    for _ in 0..rounds {
        let start = time::now();
        round();
        slow += u32::from(time::now().since(start) > Duration::from_millis(900));
        assert!(slow < 5, "workers sleep through what should wake them");
    }
}

/// One end of a pair of datagram sockets: a device with a descriptor, without a kernel's leave.
struct Socket(UnixDatagram);

impl Device for Socket {
    fn receive(&mut self, batch: &mut Batch, _: &mut Cache) -> io::Result<()> {
        while !batch.is_full() {
            match batch.land(false, |room| self.0.recv(room)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn transmit(&mut self, lane: &mut Lane, batch: &Batch, cache: &mut Cache) -> Sent {
        lane.send_each(batch, cache, |view| match self.0.send(&view.to_vec()) {
            Ok(_) => Fate::Sent,
            Err(_) => Fate::Full,
        })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn abilities(&self) -> Abilities {
        Abilities { offloads: false }
    }
}

/// Running workers, and the guests' ends of their devices.
struct House {
    threads: Vec<JoinHandle<()>>,
    posts: Vec<Post>,
    counters: Vec<Arc<WorkerCounters>>,
    guests: Vec<UnixDatagram>,
    /// By worker and port.
    books: Vec<Vec<Arc<PortCounters>>>,
    pool: &'static Pool,
}

impl House {
    /// Ports are dealt out to the workers in turn, all on one network.
    fn new(workers: u16, ports: u16, pace: Pace) -> House {
        House::with(workers, ports, pace, |_, socket| Box::new(socket))
    }

    /// The same with the devices that `device` makes of the number of a port and its socket.
    fn with(workers: u16, ports: u16, pace: Pace, device: impl Fn(u16, Socket) -> Box<dyn Device>) -> House {
        let (pool, secret) = (Pool::new(4096).unwrap(), Secret::new([7; 16]));
        let team =
            team(TeamSettings { workers, pool, stations: 1024, secret, probe_key: ProbeKey::new([5; 16]) }).unwrap();
        let mut house = House {
            threads: team.workers.into_iter().map(|worker| thread::spawn(move || worker.run(pace))).collect(),
            posts: team.posts,
            counters: team.counters,
            guests: Vec::new(),
            books: (0..workers).map(|_| (0..ports).map(|_| Arc::default()).collect()).collect(),
            pool,
        };
        let network = NetworkId::new(0);
        let networks = vec![NetworkRules {
            id: network,
            mtu: 1500,
            ageing: 300,
            limits: Limits::default(),
            guard: true,
            reserved: ReservedMask::VM_DEFAULT,
        }];
        let rules = (0..ports).map(|index| PortRules {
            worker: Some(index % workers),
            ..PortRules::vif(PortId::new(index, 0), network, Owner(index.into()), mac(index.into()))
        });
        let rules = Arc::new(Rules::compile(secret, networks, rules.collect(), Vec::new()));
        for worker in 0..usize::from(workers) {
            let books = house.books[worker].iter().cloned().map(Some).collect();
            house.command(worker, |reply| Command::Rules(rules.clone(), books, reply));
        }
        for index in 0..ports {
            let (here, there) = UnixDatagram::pair().unwrap();
            here.set_nonblocking(true).unwrap();
            there.set_nonblocking(true).unwrap();
            let gate = Gate::new(PortId::new(index, 0), 0, device(index, Socket(here)));
            house.command(usize::from(index % workers), |reply| Command::Open(gate, reply)).unwrap();
            house.guests.push(there);
        }
        house
    }

    /// Sends a command and waits for its answer.
    fn command<T>(&self, worker: usize, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, answer) = oneshot::channel();
        assert!(self.posts[worker].send(command(reply)));
        answer.blocking_recv().expect("every command is answered")
    }

    /// Asks for no station at all.
    fn ping(&self, worker: usize) {
        let page = StationsPage { stations: Vec::new(), cursor: None };
        assert_eq!(self.command(worker, |reply| Command::Stations(page, reply)).cursor, None);
    }

    fn sleeps(&self, worker: usize) -> u64 {
        self.counters[worker].sleeps.get()
    }

    /// Waits until a worker has slept. It is woken now and then, as a sleep counts once it is over.
    fn wait_for_sleep(&self, worker: usize) {
        let (before, mut dice) = (self.sleeps(worker), Dice(5));
        wait_for("sleep", || {
            dice.dawdle();
            self.ping(worker);
            (self.sleeps(worker) > before).then_some(())
        });
    }

    /// What the guest at a port receives next.
    fn receive(&self, port: usize) -> Vec<u8> {
        let mut room = [0; 2048];
        let len = wait_for("a frame", || match self.guests[port].recv(&mut room) {
            Ok(len) => Some(len),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                None
            }
        });
        room[..len].to_vec()
    }

    fn end(self) {
        for worker in 0..self.posts.len() {
            self.command(worker, Command::Stop);
        }
        for thread in self.threads {
            thread.join().unwrap();
        }
        drop(self.posts);
        assert_eq!(self.pool.free(), self.pool.slots(), "every slot comes home");
    }
}

/// Numbers that look random, the same each time.
struct Dice(u64);
impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % sides
    }

    /// Lets a little time pass, so that what comes next meets the worker in any state: spinning,
    /// about to sleep, asleep.
    fn dawdle(&mut self) {
        let nanos = match self.roll(2) {
            0 => self.roll(1 << 16),
            // Around the moment at which it goes to sleep.
            _ => SPIN.as_nanos() as usize - 5000 + self.roll(10_000),
        };
        let until = time::now() + Duration::from_nanos(nanos as u64);
        while time::now() < until {
            std::hint::spin_loop();
        }
    }
}

#[test]
fn a_worker_with_nothing_to_do_sleeps_and_answers_mail() {
    let house = House::new(1, 0, Pace::Adaptive);
    let mut dice = Dice(1);
    none_is_slow(10_000, || {
        dice.dawdle();
        house.ping(0);
    });
    house.wait_for_sleep(0);
    house.end();
}

/// Many ask at once; whoever sleeps is woken by the first of them, and forgets none.
#[test]
fn mail_from_many_is_answered() {
    let house = House::new(2, 0, Pace::Adaptive);
    thread::scope(|scope| {
        for asker in 0..4 {
            let house = &house;
            scope.spawn(move || {
                let mut dice = Dice(asker);
                none_is_slow(2000, || {
                    dice.dawdle();
                    house.ping(dice.roll(2));
                });
            });
        }
    });
    house.end();
}

#[test]
fn a_busy_worker_never_sleeps() {
    let house = House::new(2, 4, Pace::Busy);
    let breaths = || house.counters[1].breaths.get();
    let before = breaths();
    wait_for("breaths", || (breaths() > before + 20_000).then_some(()));
    for worker in [0, 1] {
        house.ping(worker);
        assert_eq!(house.sleeps(worker), 0);
    }
    house.guests[0].send(&frame(mac(1), mac(0), 0x88b5, b"up already")).unwrap();
    assert_eq!(house.receive(1)[14..], *b"up already");
    assert_eq!((house.sleeps(0), house.sleeps(1)), (0, 0));
    house.end();
}

/// Single frames between ports of two workers that sleep whenever they can. Each has to wake the
/// worker that reads it, and that one the worker that sends it.
#[test]
fn no_frame_is_stuck_between_sleepers() {
    // With many gates some of them rest, too.
    let house = House::new(2, 12, Pace::Adaptive);
    let mut dice = Dice(3);
    let (before, mut number) = ([house.sleeps(0), house.sleeps(1)], 0u32);
    none_is_slow(10_000, || {
        dice.dawdle();
        let from = dice.roll(12);
        let to = (from + 1 + dice.roll(11)) % 12;
        number += 1;
        let bytes = frame(mac(to), mac(from), 0x88b5, &number.to_be_bytes());
        house.guests[from].send(&bytes).unwrap();
        assert_eq!(house.receive(to), bytes, "from {from} to {to}");
    });
    for worker in [0, 1] {
        assert!(house.sleeps(worker) > before[worker]);
    }
    house.end();
}

/// A gate by which much came or went is not watched, until its worker is about to sleep, or the gate to rest.
#[test]
fn a_gate_that_was_loud_wakes_its_worker_again() {
    for ports in [2, 12] {
        let house = House::new(1, ports, Pace::Adaptive);
        let [bytes, back] = [(1, 0), (0, 1)].map(|(to, from)| frame(mac(to), mac(from), 0x88b5, b"again"));
        for _ in 0..5 {
            for _ in 0..200 {
                house.guests[0].send(&bytes).unwrap();
                assert_eq!(house.receive(1), bytes);
            }
            house.wait_for_sleep(0);
            house.guests[0].send(&bytes).unwrap();
            assert_eq!(house.receive(1), bytes);
            house.wait_for_sleep(0);
            house.guests[1].send(&back).unwrap();
            assert_eq!(house.receive(0), back);
        }
        // All at once, so that it is loud and not watched as it is closed.
        for _ in 0..70 {
            while house.guests[0].send(&bytes).is_err() {}
            house.receive(1);
        }
        drop(house.command(0, |reply| Command::Close(PortId::new(0, 0), 0, reply)).expect("it was open"));
        house.wait_for_sleep(0);
        house.end();
    }
}

/// A device that is full whenever it is sent something: the frame waits, and leaves when it is tried the second time.
struct Full {
    socket: Socket,
    waiting: Vec<Vec<u8>>,
    tries: u32,
    lost: u64,
}

impl Full {
    fn try_again(&mut self) {
        self.tries += 1;
        if self.tries >= 2 {
            self.waiting.drain(..).for_each(|frame| drop(self.socket.0.send(&frame)));
        }
    }
}

impl Device for Full {
    fn receive(&mut self, batch: &mut Batch, cache: &mut Cache) -> io::Result<()> {
        self.socket.receive(batch, cache)
    }

    fn transmit(&mut self, lane: &mut Lane, batch: &Batch, cache: &mut Cache) -> Sent {
        self.tries = 0;
        lane.send_each(batch, cache, |view| {
            self.waiting.push(view.to_vec());
            Fate::Sent
        })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.fd()
    }

    fn abilities(&self) -> Abilities {
        self.socket.abilities()
    }

    fn prepare_sleep(&mut self, _: &mut Cache) -> bool {
        self.try_again();
        !self.waiting.is_empty()
    }

    fn prepare_close(&mut self, _: &mut Cache) {
        self.try_again();
        self.lost += self.waiting.drain(..).count() as u64;
    }

    fn missed(&mut self) -> u64 {
        7
    }

    fn tx_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}

/// Nothing tells when a device has room again. Its worker asks it, asleep or not.
#[test]
fn what_waits_in_a_device_does_not_wait_for_the_longest_sleep() {
    for ports in [2, 12] {
        let full = |_, socket| Box::new(Full { socket, waiting: Vec::new(), tries: 0, lost: 0 }) as Box<dyn Device>;
        let house = House::with(1, ports, Pace::Adaptive, full);
        let mut number = 0u32;
        none_is_slow(200, || {
            number += 1;
            let bytes = frame(mac(1), mac(0), 0x88b5, &number.to_be_bytes());
            house.guests[0].send(&bytes).unwrap();
            assert_eq!(house.receive(1), bytes);
        });
        house.end();
    }
}

/// Nobody asks a device afterwards.
#[test]
fn what_a_device_has_lost_is_counted_when_it_is_closed() {
    // One that polls on never asks before a sleep.
    let full = |_, socket| Box::new(Full { socket, waiting: Vec::new(), tries: 0, lost: 0 }) as Box<dyn Device>;
    let house = House::with(1, 2, Pace::Busy, full);
    let book = &house.books[0][1];
    for _ in 0..3 {
        house.guests[0].send(&frame(mac(1), mac(0), 0x88b5, b"waits")).unwrap();
    }
    wait_for("the frames", || (book.tx_frames.get() == 3).then_some(()));
    let missed = book.missed.get();
    assert_eq!(book.tx_lost.get(), 0);
    drop(house.command(0, |reply| Command::Close(PortId::new(1, 0), 0, reply)).expect("it was open"));
    assert!(book.missed.get() > missed, "asked once more");
    assert_eq!(book.tx_lost.get(), 3);
    house.end();
}

/// What one worker learns the other one hears, asleep or not.
#[test]
fn a_sleeper_hears_of_stations() {
    let house = House::new(2, 4, Pace::Adaptive);
    let station = |number: u64| Mac::from_bits(0x0a_00_00_00_00_00 | number);
    for number in 0..200 {
        // From port 0 to port 2, both of worker 0; the other worker only hears of it.
        if number % 10 == 0 {
            house.wait_for_sleep(1);
        }
        let bytes = frame(mac(2), station(number), 0x88b5, &[]);
        house.guests[0].send(&bytes).unwrap();
        assert_eq!(house.receive(2), bytes);
        wait_for("the sighting", || (house.counters[1].stations.get() == number + 1).then_some(()));
    }
    house.end();
}

/// Nothing of a gate is left to wake its worker.
#[test]
fn a_closed_gate_lets_its_worker_sleep() {
    let house = House::new(1, 2, Pace::Adaptive);
    let gate = house.command(0, |reply| Command::Close(PortId::new(1, 0), 0, reply)).expect("it was open");
    drop(gate);
    house.wait_for_sleep(0);
    house.ping(0);
    house.end();
}
