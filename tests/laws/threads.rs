//! Workers on threads of their own: they sleep when idle, and no wake-up is lost. Nothing here sleeps; timeouts bound
//! only what must not happen. Needs nothing of the host.
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

/// Longer than any step takes on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until `look` returns a value. Panics with `what` after [`TIMEOUT`].
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = time::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(time::now().since(start) < TIMEOUT, "timeout: {what}");
        thread::yield_now();
    }
}

/// Repeats a round that needs a worker to wake up. A worker wakes at least once a second, so that a lost wake-up
/// costs nearly that long: hardly any round may. A few may, because the machine may be busy.
fn assert_no_lost_wakeup(rounds: u32, mut round: impl FnMut()) {
    let mut slow = 0;
    for _ in 0..rounds {
        let start = time::now();
        round();
        slow += u32::from(time::now().since(start) > Duration::from_millis(900));
        assert!(slow < 5, "workers miss wake-ups");
    }
}

/// One end of a pair of datagram sockets: a device with a descriptor that needs no privileges.
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
    /// Assigns ports to workers round-robin, all on one network.
    fn new(workers: u16, ports: u16, pace: Pace) -> RunningWorkers {
        RunningWorkers::with(workers, ports, pace, |_, socket| Box::new(socket))
    }

    /// The same, with devices that `device` creates from port number and socket.
    fn with(workers: u16, ports: u16, pace: Pace, device: impl Fn(u16, Socket) -> Box<dyn Device>) -> RunningWorkers {
        let (pool, hash_key) = (Pool::new(4096).unwrap(), HashKey::new([7; 16]));
        let worker_set = worker_set(WorkerSetSettings {
            workers,
            pool,
            fdb_capacity: 1024,
            hash_key,
            probe_keys: ProbeKey::new([5; 16]).into(),
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

    /// Sends a command and waits for its reply.
    fn command<T>(&self, worker: usize, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, answer) = oneshot::channel();
        assert!(self.mailboxes[worker].send(command(reply)));
        answer.blocking_recv().expect("every command has its reply")
    }

    /// A command that changes nothing.
    fn ping(&self, worker: usize) {
        let page = FdbPage { entries: Vec::new(), cursor: None };
        assert_eq!(self.command(worker, |reply| Command::Stations(page, reply)).cursor, None);
    }

    fn sleeps(&self, worker: usize) -> u64 {
        self.counters[worker].sleeps.get()
    }

    /// Waits until a worker has slept. Wakes it repeatedly, because a sleep is counted when it ends.
    fn wait_for_sleep(&self, worker: usize) {
        let (before, mut rng) = (self.sleeps(worker), Rng(5));
        wait_for("sleep", || {
            rng.pause();
            self.ping(worker);
            (self.sleeps(worker) > before).then_some(())
        });
    }

    /// Next frame that the guest at a port receives.
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
        assert_eq!(self.pool.free(), self.pool.slots(), "every slot is freed");
    }
}

/// Deterministic random numbers.
struct Rng(u64);
impl Rng {
    fn below(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % sides
    }

    /// Waits a short random time, so that the next step meets the worker in any state: polling, about to sleep,
    /// asleep.
    fn pause(&mut self) {
        let nanos = match self.below(2) {
            0 => self.below(1 << 16),
            // Around the moment at which the worker goes to sleep.
            _ => SPIN.as_nanos() as usize - 5000 + self.below(10_000),
        };
        let until = time::now() + Duration::from_nanos(nanos as u64);
        while time::now() < until {
            std::hint::spin_loop();
        }
    }
}

#[test]
fn an_idle_worker_sleeps_and_executes_commands() {
    let lab = RunningWorkers::new(1, 0, Pace::Adaptive);
    let mut rng = Rng(1);
    assert_no_lost_wakeup(10_000, || {
        rng.pause();
        lab.ping(0);
    });
    lab.wait_for_sleep(0);
    lab.end();
}

/// Many threads send commands at once; the first wakes the worker, which executes all.
#[test]
fn commands_of_many_threads_are_executed() {
    let lab = RunningWorkers::new(2, 0, Pace::Adaptive);
    thread::scope(|scope| {
        for asker in 0..4 {
            let lab = &lab;
            scope.spawn(move || {
                let mut rng = Rng(asker);
                assert_no_lost_wakeup(2000, || {
                    rng.pause();
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

/// Single frames between ports of two workers that sleep whenever idle. Each frame wakes the worker of its ingress
/// port, which wakes the worker of its egress port.
#[test]
fn no_frame_waits_between_sleeping_workers() {
    // With many queues some are watched.
    let lab = RunningWorkers::new(2, 12, Pace::Adaptive);
    let mut rng = Rng(3);
    let (before, mut number) = ([lab.sleeps(0), lab.sleeps(1)], 0u32);
    assert_no_lost_wakeup(10_000, || {
        rng.pause();
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

/// A busy queue is unwatched until its worker is about to sleep, or it becomes idle.
#[test]
fn a_queue_that_was_busy_wakes_its_worker_again() {
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
        // All at once, so that the queue is busy and unwatched when it is closed.
        for _ in 0..70 {
            while lab.guests[0].send(&bytes).is_err() {}
            lab.receive(1);
        }
        drop(lab.command(0, |reply| Command::Close(PortId::new(0, 0), 0, reply)).expect("the queue was open"));
        lab.wait_for_sleep(0);
        lab.end();
    }
}

/// A device that is full at the first transmit of a frame and takes it at the second.
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

/// No event tells that a device has room again. Its worker retries, asleep or not.
#[test]
fn pending_frames_do_not_wait_for_the_longest_sleep() {
    for ports in [2, 12] {
        let full = |_, socket| Box::new(Full { socket, waiting: Vec::new(), tries: 0, lost: 0 }) as Box<dyn Device>;
        let lab = RunningWorkers::with(1, ports, Pace::Adaptive, full);
        let mut number = 0u32;
        assert_no_lost_wakeup(200, || {
            number += 1;
            let bytes = frame(mac(1), mac(0), 0x88b5, &number.to_be_bytes());
            lab.guests[0].send(&bytes).unwrap();
            assert_eq!(lab.receive(1), bytes);
        });
        lab.end();
    }
}

/// Devices are not asked after they are closed.
#[test]
fn frames_lost_by_a_device_are_counted_on_close() {
    // A busy-polling worker never asks before a sleep.
    let full = |_, socket| Box::new(Full { socket, waiting: Vec::new(), tries: 0, lost: 0 }) as Box<dyn Device>;
    let lab = RunningWorkers::with(1, 2, Pace::Busy, full);
    let counters = &lab.port_counters[0][1];
    for _ in 0..3 {
        lab.guests[0].send(&frame(mac(1), mac(0), 0x88b5, b"waits")).unwrap();
    }
    wait_for("the frames", || (counters.tx_frames.get() == 3).then_some(()));
    let rx_missed = counters.rx_missed.get();
    assert_eq!(counters.tx_lost.get(), 0);
    drop(lab.command(0, |reply| Command::Close(PortId::new(1, 0), 0, reply)).expect("the queue was open"));
    assert!(counters.rx_missed.get() > rx_missed, "the device is asked once more on close");
    assert_eq!(counters.tx_lost.get(), 3);
    lab.end();
}

/// A MAC update reaches a sleeping worker.
#[test]
fn a_sleeping_worker_applies_mac_updates() {
    let lab = RunningWorkers::new(2, 4, Pace::Adaptive);
    let station = |number: u64| Mac::from_bits(0x0a_00_00_00_00_00 | number);
    for number in 0..200 {
        // From port 0 to port 2, both at worker 0; the other worker learns from MAC updates only.
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

/// A closed queue cannot wake its worker.
#[test]
fn a_closed_queue_does_not_wake_its_worker() {
    let lab = RunningWorkers::new(1, 2, Pace::Adaptive);
    let queue = lab.command(0, |reply| Command::Close(PortId::new(1, 0), 0, reply)).expect("the queue was open");
    drop(queue);
    lab.wait_for_sleep(0);
    lab.ping(0);
    lab.end();
}
