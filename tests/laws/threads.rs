//! Workers in threads of their own: they sleep when there is nothing to do, and no wake-up is lost.
//! Nothing here waits for time to pass; deadlines are for what should not happen.
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::oneshot;
use vifswitch::device::{Device, DeviceCaps};
use vifswitch::frame::{Batch, Magazine, Pool, TxBatch, TxStats, TxStatus};
use vifswitch::switch::{
    ForwardingConfig, HashKey, Limits, NetworkConfig, NetworkId, PortConfig, PortId, ReservedMask, VmId,
};
use vifswitch::telemetry::{PortCounters, WorkerCounters};
use vifswitch::time;
use vifswitch::wire::{Mac, ProbeKey};
use vifswitch::worker::{Command, FdbPage, Mailbox, Pace, RxQueue, SPIN, WorkerSetSettings, worker_set};

use support::lab::{frame, mac};

/// Longer than anything here takes, however busy the machine is.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until something is there, and says what was missing if it does not come.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = time::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(time::now().since(start) < TIMEOUT, "in vain: {what}");
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
    fn receive(&mut self, batch: &mut Batch, _: &mut Magazine) -> io::Result<()> {
        while !batch.is_full() {
            match batch.receive(false, |room| self.0.recv(room)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn transmit(&mut self, tx: &mut TxBatch, batch: &Batch, magazine: &mut Magazine) -> TxStats {
        tx.send_each(batch, magazine, |view| match self.0.send(&view.to_vec()) {
            Ok(_) => TxStatus::Sent,
            Err(_) => TxStatus::Full,
        })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn caps(&self) -> DeviceCaps {
        DeviceCaps { offloads: false }
    }
}

/// Running workers, and the guests' ends of their devices.
struct RunningWorkers {
    threads: Vec<JoinHandle<()>>,
    mailboxes: Vec<Mailbox>,
    counters: Vec<Arc<WorkerCounters>>,
    guests: Vec<UnixDatagram>,
    /// By worker and port.
    port_counters: Vec<Vec<Arc<PortCounters>>>,
    pool: &'static Pool,
}

impl RunningWorkers {
    /// Ports are dealt out to the workers in turn, all on one network.
    fn new(workers: u16, ports: u16, pace: Pace) -> RunningWorkers {
        RunningWorkers::with(workers, ports, pace, |_, socket| Box::new(socket))
    }

    /// The same with the devices that `device` makes of the number of a port and its socket.
    fn with(workers: u16, ports: u16, pace: Pace, device: impl Fn(u16, Socket) -> Box<dyn Device>) -> RunningWorkers {
        let (pool, hash_key) = (Pool::new(4096).unwrap(), HashKey::new([7; 16]));
        let worker_set = worker_set(WorkerSetSettings {
            workers,
            pool,
            fdb_capacity: 1024,
            hash_key,
            probe_key: ProbeKey::new([5; 16]),
        })
        .unwrap();
        let mut lab = RunningWorkers {
            threads: worker_set.workers.into_iter().map(|worker| thread::spawn(move || worker.run(pace))).collect(),
            mailboxes: worker_set.mailboxes,
            counters: worker_set.counters,
            guests: Vec::new(),
            port_counters: (0..workers).map(|_| (0..ports).map(|_| Arc::default()).collect()).collect(),
            pool,
        };
        let network = NetworkId::new(0);
        let networks = vec![NetworkConfig {
            id: network,
            mtu: 1500,
            ageing: 300,
            limits: Limits::default(),
            anti_spoof: true,
            reserved: ReservedMask::VM_DEFAULT,
        }];
        let config = (0..ports).map(|index| PortConfig {
            worker: Some(index % workers),
            ..PortConfig::vif(PortId::new(index, 0), network, VmId(index.into()), mac(index.into()))
        });
        let config = Arc::new(ForwardingConfig::compile(hash_key, networks, config.collect(), Vec::new()));
        for worker in 0..usize::from(workers) {
            let port_counters = lab.port_counters[worker].iter().cloned().map(Some).collect();
            lab.command(worker, |reply| Command::Config(config.clone(), port_counters, reply));
        }
        for index in 0..ports {
            let (here, there) = UnixDatagram::pair().unwrap();
            here.set_nonblocking(true).unwrap();
            there.set_nonblocking(true).unwrap();
            let queue = RxQueue::new(PortId::new(index, 0), 0, device(index, Socket(here)));
            lab.command(usize::from(index % workers), |reply| Command::Open(queue, reply)).unwrap();
            lab.guests.push(there);
        }
        lab
    }

    /// Sends a command and waits for its answer.
    fn command<T>(&self, worker: usize, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, answer) = oneshot::channel();
        assert!(self.mailboxes[worker].send(command(reply)));
        answer.blocking_recv().expect("every command is answered")
    }

    /// Asks for no station at all.
    fn ping(&self, worker: usize) {
        let page = FdbPage { entries: Vec::new(), cursor: None };
        assert_eq!(self.command(worker, |reply| Command::Stations(page, reply)).cursor, None);
    }

    fn sleeps(&self, worker: usize) -> u64 {
        self.counters[worker].sleeps.get()
    }

    /// Waits until a worker has slept. It is woken now and then, as a sleep counts once it is over.
    fn wait_for_sleep(&self, worker: usize) {
        let (before, mut rng) = (self.sleeps(worker), Rng(5));
        wait_for("sleep", || {
            rng.dawdle();
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
        for worker in 0..self.mailboxes.len() {
            self.command(worker, Command::Stop);
        }
        for thread in self.threads {
            thread.join().unwrap();
        }
        drop(self.mailboxes);
        assert_eq!(self.pool.free(), self.pool.slots(), "every slot comes home");
    }
}

/// Numbers that look random, the same each time.
struct Rng(u64);
impl Rng {
    fn below(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % sides
    }

    /// Lets a little time pass, so that what comes next meets the worker in any state: spinning,
    /// about to sleep, asleep.
    fn dawdle(&mut self) {
        let nanos = match self.below(2) {
            0 => self.below(1 << 16),
            // Around the moment at which it goes to sleep.
            _ => SPIN.as_nanos() as usize - 5000 + self.below(10_000),
        };
        let until = time::now() + Duration::from_nanos(nanos as u64);
        while time::now() < until {
            std::hint::spin_loop();
        }
    }
}

#[test]
fn a_worker_with_nothing_to_do_sleeps_and_answers_mail() {
    let lab = RunningWorkers::new(1, 0, Pace::Adaptive);
    let mut rng = Rng(1);
    none_is_slow(10_000, || {
        rng.dawdle();
        lab.ping(0);
    });
    lab.wait_for_sleep(0);
    lab.end();
}

/// Many ask at once; whoever sleeps is woken by the first of them, and forgets none.
#[test]
fn mail_from_many_is_answered() {
    let lab = RunningWorkers::new(2, 0, Pace::Adaptive);
    thread::scope(|scope| {
        for asker in 0..4 {
            let lab = &lab;
            scope.spawn(move || {
                let mut rng = Rng(asker);
                none_is_slow(2000, || {
                    rng.dawdle();
                    lab.ping(rng.below(2));
                });
            });
        }
    });
    lab.end();
}

#[test]
fn a_busy_worker_never_sleeps() {
    let lab = RunningWorkers::new(2, 4, Pace::Busy);
    let polls = || lab.counters[1].polls.get();
    let before = polls();
    wait_for("polls", || (polls() > before + 20_000).then_some(()));
    for worker in [0, 1] {
        lab.ping(worker);
        assert_eq!(lab.sleeps(worker), 0);
    }
    lab.guests[0].send(&frame(mac(1), mac(0), 0x88b5, b"up already")).unwrap();
    assert_eq!(lab.receive(1)[14..], *b"up already");
    assert_eq!((lab.sleeps(0), lab.sleeps(1)), (0, 0));
    lab.end();
}

/// Single frames between ports of two workers that sleep whenever they can. Each has to wake the
/// worker that reads it, and that one the worker that sends it.
#[test]
fn no_frame_is_stuck_between_sleepers() {
    // With many queues some of them rest, too.
    let lab = RunningWorkers::new(2, 12, Pace::Adaptive);
    let mut rng = Rng(3);
    let (before, mut number) = ([lab.sleeps(0), lab.sleeps(1)], 0u32);
    none_is_slow(10_000, || {
        rng.dawdle();
        let from = rng.below(12);
        let to = (from + 1 + rng.below(11)) % 12;
        number += 1;
        let bytes = frame(mac(to), mac(from), 0x88b5, &number.to_be_bytes());
        lab.guests[from].send(&bytes).unwrap();
        assert_eq!(lab.receive(to), bytes, "from {from} to {to}");
    });
    for worker in [0, 1] {
        assert!(lab.sleeps(worker) > before[worker]);
    }
    lab.end();
}

/// A gate by which much came or went is not watched, until its worker is about to sleep, or the gate to rest.
#[test]
fn a_gate_that_was_loud_wakes_its_worker_again() {
    for ports in [2, 12] {
        let lab = RunningWorkers::new(1, ports, Pace::Adaptive);
        let [bytes, back] = [(1, 0), (0, 1)].map(|(to, from)| frame(mac(to), mac(from), 0x88b5, b"again"));
        for _ in 0..5 {
            for _ in 0..200 {
                lab.guests[0].send(&bytes).unwrap();
                assert_eq!(lab.receive(1), bytes);
            }
            lab.wait_for_sleep(0);
            lab.guests[0].send(&bytes).unwrap();
            assert_eq!(lab.receive(1), bytes);
            lab.wait_for_sleep(0);
            lab.guests[1].send(&back).unwrap();
            assert_eq!(lab.receive(0), back);
        }
        // All at once, so that it is loud and not watched as it is closed.
        for _ in 0..70 {
            while lab.guests[0].send(&bytes).is_err() {}
            lab.receive(1);
        }
        drop(lab.command(0, |reply| Command::Close(PortId::new(0, 0), 0, reply)).expect("it was open"));
        lab.wait_for_sleep(0);
        lab.end();
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
    fn receive(&mut self, batch: &mut Batch, magazine: &mut Magazine) -> io::Result<()> {
        self.socket.receive(batch, magazine)
    }

    fn transmit(&mut self, tx: &mut TxBatch, batch: &Batch, magazine: &mut Magazine) -> TxStats {
        self.tries = 0;
        tx.send_each(batch, magazine, |view| {
            self.waiting.push(view.to_vec());
            TxStatus::Sent
        })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.fd()
    }

    fn caps(&self) -> DeviceCaps {
        self.socket.caps()
    }

    fn prepare_sleep(&mut self, _: &mut Magazine) -> bool {
        self.try_again();
        !self.waiting.is_empty()
    }

    fn prepare_close(&mut self, _: &mut Magazine) {
        self.try_again();
        self.lost += self.waiting.drain(..).count() as u64;
    }

    fn rx_missed(&mut self) -> u64 {
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
        let lab = RunningWorkers::with(1, ports, Pace::Adaptive, full);
        let mut number = 0u32;
        none_is_slow(200, || {
            number += 1;
            let bytes = frame(mac(1), mac(0), 0x88b5, &number.to_be_bytes());
            lab.guests[0].send(&bytes).unwrap();
            assert_eq!(lab.receive(1), bytes);
        });
        lab.end();
    }
}

/// Nobody asks a device afterwards.
#[test]
fn what_a_device_has_lost_is_counted_when_it_is_closed() {
    // One that polls on never asks before a sleep.
    let full = |_, socket| Box::new(Full { socket, waiting: Vec::new(), tries: 0, lost: 0 }) as Box<dyn Device>;
    let lab = RunningWorkers::with(1, 2, Pace::Busy, full);
    let counters = &lab.port_counters[0][1];
    for _ in 0..3 {
        lab.guests[0].send(&frame(mac(1), mac(0), 0x88b5, b"waits")).unwrap();
    }
    wait_for("the frames", || (counters.tx_frames.get() == 3).then_some(()));
    let rx_missed = counters.rx_missed.get();
    assert_eq!(counters.tx_lost.get(), 0);
    drop(lab.command(0, |reply| Command::Close(PortId::new(1, 0), 0, reply)).expect("it was open"));
    assert!(counters.rx_missed.get() > rx_missed, "asked once more");
    assert_eq!(counters.tx_lost.get(), 3);
    lab.end();
}

/// What one worker learns the other one hears, asleep or not.
#[test]
fn a_sleeper_hears_of_stations() {
    let lab = RunningWorkers::new(2, 4, Pace::Adaptive);
    let station = |number: u64| Mac::from_bits(0x0a_00_00_00_00_00 | number);
    for number in 0..200 {
        // From port 0 to port 2, both of worker 0; the other worker only hears of it.
        if number % 10 == 0 {
            lab.wait_for_sleep(1);
        }
        let bytes = frame(mac(2), station(number), 0x88b5, &[]);
        lab.guests[0].send(&bytes).unwrap();
        assert_eq!(lab.receive(2), bytes);
        wait_for("the MAC update", || (lab.counters[1].stations.get() == number + 1).then_some(()));
    }
    lab.end();
}

/// Nothing of a gate is left to wake its worker.
#[test]
fn a_closed_gate_lets_its_worker_sleep() {
    let lab = RunningWorkers::new(1, 2, Pace::Adaptive);
    let queue = lab.command(0, |reply| Command::Close(PortId::new(1, 0), 0, reply)).expect("it was open");
    drop(queue);
    lab.wait_for_sleep(0);
    lab.ping(0);
    lab.end();
}
