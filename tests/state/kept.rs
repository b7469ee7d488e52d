//! What the service manager keeps over a restart: the API's socket, the queues of taps and the sockets of `packet` ports. The test is the service
//! manager. Needs root; makes its own namespaces.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::Signal;
use support::host::await_that;
use support::host::daemon::{Daemon, Vif, config, keeping};
use support::host::nic::{Nic, experiment, frame};
use support::host::{Finally, Namespace};
use vifswitch::control::api::responses::{StationKind, StationView};
use vifswitch::sys::tun::{Flags, Queue};
use vifswitch::wire::Mac;

/// A switch with a state over these ports, whose descriptors are kept.
fn switch(vifs: &[Vif], more: &str) -> Daemon {
    let mut daemon = Daemon::new();
    daemon.keep_descriptors();
    let text = config(&daemon.socket(), more, &[("net1", 1500)], vifs);
    daemon.configure(&keeping(&text, &daemon.state()));
    daemon.start();
    daemon
}

/// Three ports: two of one VM, and one of another.
fn ports(namespace: &Namespace) -> Vec<Vif> {
    let transient = |vif: Vif| vif.device(", persist = false");
    (1..).zip(["a", "a", "b"]).map(|(number, vm)| transient(Vif::new(vm, number, namespace))).collect()
}

/// Waits until this many descriptors of devices are kept.
fn await_devices(daemon: &Daemon, number: usize) -> Vec<String> {
    await_that(&format!("{number} kept devices"), || {
        let kept: Vec<_> = daemon.kept().into_iter().filter(|name| name.starts_with("v1p")).collect();
        (kept.len() == number).then_some(kept)
    })
}

/// Changes of links in a namespace, as the kernel reports them.
struct Monitor {
    child: std::process::Child,
}

impl Monitor {
    fn new(namespace: &Namespace) -> Monitor {
        let mut command = Command::new("ip");
        command.args(["-n", &namespace.0, "-o", "monitor", "link"]).stdout(std::process::Stdio::piped());
        let monitor = Monitor { child: command.spawn().unwrap() };
        // It has begun once it reports a change.
        await_that("the monitor", || {
            namespace.ip("link add begin type veth peer name begin1");
            namespace.ip("link del begin");
            let mut polled =
                [rustix::event::PollFd::new(monitor.child.stdout.as_ref().unwrap(), rustix::event::PollFlags::IN)];
            (rustix::event::poll(&mut polled, Some(&rustix::event::Timespec::default())).unwrap() > 0).then_some(())
        });
        monitor
    }

    /// What it has reported of these netdevs, up to a change made now.
    fn end(mut self, namespace: &Namespace, of: &[Vif]) -> Vec<String> {
        namespace.ip("link add end type veth peer name end1");
        let mut text = String::new();
        let mut pipe = self.child.stdout.take().unwrap();
        while !text.contains(" end@") {
            let mut buffer = [0; 65536];
            let read = pipe.read(&mut buffer).unwrap();
            assert!(read > 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        namespace.ip("link del end");
        let _ = self.child.kill();
        let _ = self.child.wait();
        let is_of = |line: &&str| of.iter().any(|vif| line.contains(&format!(" {}: ", vif.name)));
        text.lines().filter(is_of).map(str::to_owned).collect()
    }
}

/// Frames that arrive while no switch runs wait in the queues of the taps, whose carrier stays.
#[test]
fn taps_stay_open_over_a_restart_and_a_kill() {
    let Some(namespace) = Namespace::new() else { return };
    let mut vifs = ports(&namespace);
    vifs[2].device = ", persist = false, queues = 2".into();
    let mut daemon = switch(&vifs, "");
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    let kept = await_devices(&daemon, 4);
    let nics: Vec<Nic> = vifs.iter().map(|vif| Nic::new(&namespace, &vif.name)).collect();
    let links = || vifs.iter().map(|vif| namespace.link(&vif.name)).collect::<Vec<_>>();
    let (before, monitor) = (links(), Monitor::new(&namespace));
    for signal in [Signal::TERM, Signal::KILL] {
        daemon.stop(signal);
        // More than the kernel's own limit for a queue.
        for number in 0..2000u16 {
            nics[0].send(&experiment(vifs[2].mac, vifs[0].mac, &number.to_be_bytes()));
        }
        daemon.start();
        for number in 0..2000u16 {
            let expected = experiment(vifs[2].mac, vifs[0].mac, &number.to_be_bytes());
            assert_eq!(nics[2].take(), expected, "frame {number} after {signal:?}");
        }
        assert_eq!(await_devices(&daemon, 4), kept, "{signal:?}");
    }
    assert_eq!(links(), before);
    assert_eq!(monitor.end(&namespace, &vifs), [""; 0], "no link has changed");
    // They are still the switch's own: one that somebody deletes is created again.
    drop(nics);
    namespace.ip("link del tap1");
    await_that("the tap to be created again", || namespace.link("tap1"));
    daemon.await_active(&vifs[0]);
}

/// Number of stations of which the one seen first is the receiver.
const MANY: u64 = 30_000;

/// The station seen first is known again before the first frame is forwarded, however many others were seen later: the
/// frames to it that wait in the queue are not flooded.
#[test]
fn all_stations_are_restored_before_frames_are_forwarded() {
    let Some(namespace) = Namespace::new() else { return };
    let vif = |(number, vm)| {
        let more = "port_security = \"off\"".into();
        Vif { more, ..Vif::new(vm, number, &namespace).device(", persist = false") }
    };
    let mut vifs: Vec<Vif> = (1..).zip(["a", "b", "c", "d"]).map(vif).collect();
    vifs[3].more = String::new();
    let mut daemon = Daemon::new();
    daemon.keep_descriptors();
    let text = config(&daemon.socket(), "", &[("net1", 1500)], &vifs)
        .replace("stations = 4096", "stations = 65536")
        .replace("mtu = 1500", "mtu = 1500\nfdb_limit = 60000\nfdb_limit_per_port = 60000");
    daemon.configure(&keeping(&text, &daemon.state()));
    daemon.start();
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    await_devices(&daemon, 4);
    let nics: Vec<Nic> = vifs.iter().map(|vif| Nic::new(&namespace, &vif.name)).collect();
    let (hearer, other) = (Mac::from_bits(0x0a00_0000_ffff), |number: u64| Mac::from_bits(0x0a01_0000_0000 + number));
    nics[1].send(&experiment(Mac::BROADCAST, hearer, &[1; 46]));
    // All others are seen in a later second.
    await_that("the age of the first station", || {
        let stations: Vec<StationView> = daemon.get("/v1/fdb");
        stations.iter().any(|of| of.mac_address == hearer.to_string() && of.age_seconds >= 2).then_some(())
    });
    for first in (0..MANY).step_by(500) {
        (first..first + 500).for_each(|number| nics[2].send(&experiment(vifs[3].mac, other(number), &[7; 46])));
        // The queue of a tap is short.
        let end = experiment(hearer, other(first), &first.to_be_bytes());
        nics[2].send(&end);
        nics[1].take_until(&end);
    }
    let known = || daemon.get::<serde_json::Value>("/v1/networks")[0]["stations"].as_u64().unwrap();
    assert_eq!(known(), MANY + 1);
    for signal in [Signal::TERM, Signal::KILL] {
        daemon.stop(signal);
        nics[3].rest();
        for number in 0..200u16 {
            nics[0].send(&experiment(hearer, vifs[0].mac, &number.to_be_bytes()));
        }
        daemon.start();
        for number in 0..200u16 {
            let expected = experiment(hearer, vifs[0].mac, &number.to_be_bytes());
            assert_eq!(nics[1].take(), expected, "frame {number} after {signal:?}");
        }
        let end = experiment(Mac::BROADCAST, vifs[0].mac, &[9; 46]);
        nics[0].send(&end);
        assert_eq!(nics[3].take_until(&end).len(), 0, "frames that are flooded after {signal:?}");
        nics[1].take_until(&end);
    }
}

/// A `packet` port whose veth's other end is the guest's.
fn packet_port(host: &Namespace, guest: &Namespace, (vm, number): (&str, u8), device: &str) -> Vif {
    let vif = Vif { kind: "packet", netns: host.0.clone(), ..Vif::new(vm, number, guest) }.device(device);
    let Vif { name, mac, .. } = &vif;
    host.ip(&format!("link add {name} mtu 9000 type veth peer name {name} mtu 9000 address {mac} netns {}", guest.0));
    host.ip(&format!("link set dev {name} up"));
    guest.ip(&format!("link set dev {name} up"));
    vif
}

/// Frame `number` of a sequence: some are longer than a slot of the ring.
fn numbered(to: &Vif, from: &Vif, number: u16) -> Vec<u8> {
    let len = if number.is_multiple_of(50) { 5000 } else { 60 };
    let mut payload = vec![0; len];
    payload[..2].copy_from_slice(&number.to_be_bytes());
    experiment(to.mac, from.mac, &payload)
}

/// Frames that arrive while no switch runs wait in the rings of packet sockets, wherever reading had ended there.
#[test]
fn packet_ports_receive_what_arrived_meanwhile() {
    let (Some(host), Some(guest)) = (Namespace::new(), Namespace::new()) else { return };
    let vifs = [packet_port(&host, &guest, ("a", 1), ""), packet_port(&host, &guest, ("b", 2), ", isolate = true")];
    let mut daemon = Daemon::new();
    daemon.keep_descriptors();
    let text = config(&daemon.socket(), "", &[("net1", 9000)], &vifs);
    daemon.configure(&keeping(&text, &daemon.state()));
    daemon.start();
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    let kept = await_devices(&daemon, 3);
    let nics: Vec<Nic> = vifs.iter().map(|vif| Nic::new(&guest, &vif.name)).collect();
    // The ring of each has 1024 slots: some rounds, and a restart without a frame.
    for (signal, frames) in
        [(Signal::TERM, 900), (Signal::KILL, 1000), (Signal::KILL, 0), (Signal::TERM, 1024), (Signal::KILL, 37)]
    {
        daemon.stop(signal);
        for number in 0..frames {
            nics[0].send(&numbered(&vifs[1], &vifs[0], number));
            nics[1].send(&numbered(&vifs[0], &vifs[1], number));
        }
        daemon.start();
        for (of, to, from) in [(1, &vifs[1], &vifs[0]), (0, &vifs[0], &vifs[1])] {
            for number in 0..frames {
                assert!(nics[of].take() == numbered(to, from, number), "frame {number} to {of} after {signal:?}");
            }
        }
        assert_eq!(await_devices(&daemon, 3), kept, "{signal:?}");
    }
    let ports = daemon.await_idle();
    let missed: Vec<_> = ports.iter().map(|port| port.counts.rx_missed).collect();
    assert_eq!(missed, [0, 0]);
    // A ring that overflows loses the last frames, which are counted, and is not taken for stuck.
    daemon.stop(Signal::KILL);
    (0..1500).for_each(|number| nics[0].send(&numbered(&vifs[1], &vifs[0], number)));
    daemon.start();
    for number in 0..1024 {
        assert!(nics[1].take() == numbered(&vifs[1], &vifs[0], number), "frame {number} of a full ring");
    }
    daemon.await_port("the lost ones", &vifs[0], |port| port.counts.rx_missed == 476);
    assert!(!daemon.log().contains("without a ring"), "{}", daemon.log());
}

/// A socket of a netdev that is gone is not used for its successor, nor one whose settings have changed.
#[test]
fn sockets_of_other_netdevs_are_closed() {
    let (Some(host), Some(guest)) = (Namespace::new(), Namespace::new()) else { return };
    let isolated = ", isolate = true";
    let mut vifs = [("a", 1, ""), ("b", 2, isolated), ("c", 3, "")]
        .map(|(vm, number, device)| packet_port(&host, &guest, (vm, number), device));
    let mut daemon = switch(&vifs, "");
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    await_devices(&daemon, 4);
    daemon.stop(Signal::KILL);
    host.ip("link del tap1");
    vifs[0] = packet_port(&host, &guest, ("a", 1), isolated);
    vifs[1].device = String::new();
    vifs[2].device = isolated.into();
    let text = config(&daemon.socket(), "", &[("net1", 1500)], &vifs);
    daemon.configure(&keeping(&text, &daemon.state()));
    daemon.start();
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    await_devices(&daemon, 5);
    let nics: Vec<Nic> = vifs.iter().map(|vif| Nic::new(&guest, &vif.name)).collect();
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let frame = experiment(vifs[to].mac, vifs[from].mac, b"hello");
        nics[from].send(&frame);
        assert_eq!(nics[to].take(), frame);
    }
    host.ip("addr add 10.9.9.9/24 dev tap2");
    await_that("an answer of the stack to a port that is not isolated any more", || {
        nics[1].send(&request(&vifs[1]));
        nics[1].rest().into_iter().find(|frame| is_reply(frame))
    });
}

/// An ARP request of a guest for 10.9.9.9.
fn request(from: &Vif) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(from.mac.octets());
    arp.extend([10, 9, 9, 1, 0, 0, 0, 0, 0, 0, 10, 9, 9, 9]);
    frame(Mac::BROADCAST, from.mac, 0x0806, &arp)
}

fn is_reply(frame: &[u8]) -> bool {
    frame[12..14] == [8, 6] && frame[20..22] == [0, 2]
}

/// The host's stack does not receive what arrives at an isolated port while no switch runs.
#[test]
fn an_isolated_port_stays_isolated_while_no_switch_runs() {
    let (Some(host), Some(guest)) = (Namespace::new(), Namespace::new()) else { return };
    let vifs = [packet_port(&host, &guest, ("a", 1), ""), packet_port(&host, &guest, ("b", 2), ", isolate = true")];
    host.ip("addr add 10.9.9.9/32 dev tap1");
    let mut daemon = switch(&vifs, "");
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    let nics: Vec<Nic> = vifs.iter().map(|vif| Nic::new(&guest, &vif.name)).collect();
    for signal in [Signal::TERM, Signal::KILL] {
        await_devices(&daemon, 3);
        daemon.stop(signal);
        nics[1].send(&request(&vifs[1]));
        await_that("an answer to the other port, as a control", || {
            nics[0].send(&request(&vifs[0]));
            nics[0].rest().into_iter().find(|frame| is_reply(frame))
        });
        assert!(!nics[1].rest().iter().any(|frame| is_reply(frame)), "{signal:?}");
        daemon.start();
        vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    }
}

/// A kept queue is used only where opening the device would yield the same; else the port is opened as without it.
#[test]
fn queues_that_do_not_fit_are_closed() {
    let Some(namespace) = Namespace::new() else { return };
    let vifs = ports(&namespace);
    let mut daemon = switch(&vifs, "");
    await_devices(&daemon, 3);
    // The configuration changes while no switch runs: a port without offloads, and one fewer.
    daemon.stop(Signal::KILL);
    let mut changed = vifs[..2].to_vec();
    changed[0].device.push_str(", offloads = false");
    let text = config(&daemon.socket(), "", &[("net1", 1500)], &changed);
    daemon.configure(&keeping(&text, &daemon.state()));
    daemon.start();
    changed.iter().for_each(|vif| drop(daemon.await_active(vif)));
    await_devices(&daemon, 2);
    await_that("the port's tap to be removed", || namespace.link("tap3").is_none().then_some(()));
    let nics = [Nic::new(&namespace, "tap1"), Nic::new(&namespace, "tap2")];
    let frame = experiment(vifs[1].mac, vifs[0].mac, b"hello");
    nics[0].send(&frame);
    assert_eq!(nics[1].take(), frame);
    // A netdev that is deleted while no switch runs, one that another program has made in its place, and names that only
    // another version knows.
    daemon.stop(Signal::KILL);
    namespace.ip("link del tap1");
    namespace.ip("link del tap2");
    namespace.ip("tuntap add tap2 mode tap vnet_hdr");
    daemon.edit_kept(|kept| {
        let copy = kept[0].1.try_clone().unwrap();
        kept.push(("v9tap-1".into(), copy));
    });
    daemon.start();
    changed.iter().for_each(|vif| drop(daemon.await_active(vif)));
    await_devices(&daemon, 2);
    await_that("the unknown one to be removed", || {
        daemon.kept().iter().all(|name| !name.starts_with("v9")).then_some(())
    });
    assert!(daemon.log().contains("of another version of vifswitch are not used"), "{}", daemon.log());
}

/// Neither a queue of a tap with the same name in another namespace is used, nor one of a tap with another name, nor fewer queues
/// than are configured, nor any beside those of another process.
#[test]
fn queues_of_other_taps_are_closed() {
    let (Some(namespace), Some(other)) = (Namespace::new(), Namespace::new()) else { return };
    let mut vifs = ports(&namespace);
    let queues = |number: u8| format!(", persist = false, queues = {number}");
    vifs[2].device = queues(2);
    let mut daemon = switch(&vifs, "");
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    await_devices(&daemon, 4);
    daemon.stop(Signal::KILL);
    let mut changed = vifs.clone();
    (changed[0].netns, changed[1].name) = (other.0.clone(), "tap9".into());
    changed[2].device = queues(3);
    other.ip("tuntap add tap1 mode tap vnet_hdr");
    namespace.ip("tuntap add tap9 mode tap vnet_hdr");
    daemon.configure(&keeping(&config(&daemon.socket(), "", &[("net1", 1500)], &changed), &daemon.state()));
    daemon.start();
    changed.iter().for_each(|vif| drop(daemon.await_active(vif)));
    await_devices(&daemon, 5);
    let polled = || daemon.workers().iter().map(|worker| worker.queues).sum::<usize>();
    assert_eq!(polled(), 5);
    let nics = [Nic::new(&other, "tap1"), Nic::new(&namespace, "tap9"), Nic::new(&namespace, "tap3")];
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let frame = experiment(vifs[to].mac, vifs[from].mac, b"hello");
        nics[from].send(&frame);
        assert_eq!(nics[to].take(), frame, "from {from} to {to}");
    }
    assert_eq!([namespace.link("tap1"), namespace.link("tap2")], [None, None], "nothing holds the former ones");
    // Another process opens a queue beside the kept ones, and would receive a share of the frames.
    daemon.stop(Signal::KILL);
    let flags = Flags { vnet_header: true, multi_queue: true, exclusive: false };
    let beside = namespace.run_in(|| Queue::open("tap3", flags)).unwrap();
    daemon.start();
    let reason = daemon.await_down(&changed[2]).status_reason;
    assert!(reason.contains("in use"), "{reason}");
    drop(beside);
    daemon.await_active(&changed[2]);
    await_devices(&daemon, 5);
}

/// Nor a socket that is bound to a netdev with the same index in another namespace.
#[test]
fn sockets_of_other_namespaces_are_closed() {
    let (Some(host), Some(other), Some(guest)) = (Namespace::new(), Namespace::new(), Namespace::new()) else { return };
    let before = [packet_port(&host, &guest, ("a", 1), ""), packet_port(&host, &guest, ("b", 2), "")];
    let mut daemon = switch(&before, "");
    before.iter().for_each(|vif| drop(daemon.await_active(vif)));
    await_devices(&daemon, 2);
    daemon.stop(Signal::KILL);
    let Some(elsewhere) = Namespace::new() else { return };
    let moved = packet_port(&other, &elsewhere, ("a", 1), "");
    let index = |namespace: &Namespace| namespace.link("tap1").unwrap().index;
    assert_eq!(index(&host), index(&other), "the same steps give the same index");
    let after = [moved, before[1].clone()];
    daemon.configure(&keeping(&config(&daemon.socket(), "", &[("net1", 1500)], &after), &daemon.state()));
    daemon.start();
    after.iter().for_each(|vif| drop(daemon.await_active(vif)));
    let nics = [Nic::new(&elsewhere, "tap1"), Nic::new(&guest, "tap2")];
    for (from, to) in [(0, 1), (1, 0)] {
        let frame = experiment(after[to].mac, after[from].mac, b"hello");
        nics[from].send(&frame);
        assert_eq!(nics[to].take(), frame, "from {from} to {to}");
    }
}

/// A detached port's tap is gone at once, and its descriptors are no longer kept.
#[test]
fn a_detached_port_is_not_kept() {
    let Some(namespace) = Namespace::new() else { return };
    let vifs = ports(&namespace);
    let mut daemon = switch(&vifs[..1], "");
    daemon.attach(&vifs[1]);
    daemon.await_active(&vifs[1]);
    let both = await_devices(&daemon, 2);
    daemon.detach(&vifs[1]);
    assert_eq!(namespace.link("tap2"), None);
    let one = await_devices(&daemon, 1);
    // Attached again, with another device.
    let again = Vif { name: "tap9".into(), ..vifs[1].clone() };
    daemon.attach(&again);
    daemon.await_active(&again);
    assert_eq!(await_devices(&daemon, 2), both);
    daemon.stop(Signal::KILL);
    daemon.start();
    daemon.await_active(&again);
    daemon.detach(&again);
    assert_eq!(await_devices(&daemon, 1), one);
    // A persistent tap of a port that the file no longer has.
    let lasting = Vif { device: String::new(), ..vifs[2].clone() };
    let write = |daemon: &Daemon, vifs: &[Vif]| {
        let text = config(&daemon.socket(), "", &[("net1", 1500)], vifs);
        daemon.configure(&keeping(&text, &daemon.state()));
    };
    write(&daemon, &[vifs[0].clone(), lasting]);
    daemon.signal(Signal::HUP);
    daemon.await_note("READY=1");
    await_devices(&daemon, 2);
    daemon.stop(Signal::KILL);
    write(&daemon, &vifs[..1]);
    daemon.start();
    await_that("the tap to be removed", || namespace.link("tap3").is_none().then_some(()));
    assert_eq!(await_devices(&daemon, 1), one);
}

/// Ports that only the state has stay open while it cannot be read, and are used when it can.
#[test]
fn taps_stay_open_while_the_state_cannot_be_read() {
    let Some(namespace) = Namespace::new() else { return };
    let vifs = ports(&namespace);
    let mut daemon = switch(&vifs[..1], "");
    daemon.attach(&vifs[1]);
    daemon.await_active(&vifs[1]);
    let kept = await_devices(&daemon, 2);
    let before = namespace.link("tap2");
    daemon.stop(Signal::KILL);
    let (state, aside) = (daemon.state(), daemon.state().with_file_name("aside"));
    std::fs::create_dir(&aside).unwrap();
    let move_all = |from: &Path, to: &Path| {
        for file in std::fs::read_dir(from).unwrap().map(|file| file.unwrap().file_name()) {
            if file.to_str().unwrap().starts_with("state.db") {
                std::fs::rename(from.join(&file), to.join(&file)).unwrap();
            }
        }
    };
    let directory = state.parent().unwrap();
    move_all(directory, &aside);
    std::fs::create_dir(&state).unwrap();
    daemon.start();
    daemon.await_active(&vifs[0]);
    assert_eq!((daemon.listed(), await_devices(&daemon, 2)), (vec![vifs[0].port.clone()], kept));
    std::fs::remove_dir(&state).unwrap();
    move_all(&aside, directory);
    await_that("the state to be read", || (daemon.listed().len() == 2).then_some(()));
    daemon.await_active(&vifs[1]);
    assert_eq!(namespace.link("tap2"), before);
}

/// One request on a connection of its own, and its status.
fn ask(daemon: &Daemon) -> Result<u16, std::io::Error> {
    let mut stream = UnixStream::connect(daemon.socket())?;
    stream.write_all(b"GET /v1/ports HTTP/1.1\r\nHost: vifswitch\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default())
}

/// Clients that connect while no switch runs wait, and a planned restart answers all of them.
#[test]
fn the_api_refuses_nobody_over_a_restart() {
    let Some(namespace) = Namespace::new() else { return };
    let mut daemon = switch(&ports(&namespace)[..1], "");
    await_that("the socket to be kept", || daemon.kept().iter().any(|name| name.starts_with("v1api-")).then_some(()));
    let (ended, answered) = (AtomicBool::new(false), std::sync::atomic::AtomicUsize::new(0));
    let path = daemon.socket();
    thread::scope(|scope| {
        let _end = Finally(&ended);
        for _ in 0..2 {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let mut stream = UnixStream::connect(&path).expect("refused");
                    stream
                        .write_all(b"GET /v1/ports HTTP/1.1\r\nHost: vifswitch\r\nConnection: close\r\n\r\n")
                        .unwrap();
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).unwrap();
                    assert!(answer.starts_with("HTTP/1.1 200 ") || answer.starts_with("HTTP/1.1 429 "), "{answer:?}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..3 {
            let before = answered.load(Ordering::Relaxed);
            await_that("answers", || (answered.load(Ordering::Relaxed) > before + 20).then_some(()));
            daemon.stop(Signal::TERM);
            daemon.start();
        }
    });
    // After a kill clients wait too; only those whose request was being answered are cut off.
    daemon.stop(Signal::KILL);
    let mut waiting = UnixStream::connect(daemon.socket()).unwrap();
    waiting.write_all(b"GET /livez HTTP/1.1\r\nHost: vifswitch\r\nConnection: close\r\n\r\n").unwrap();
    daemon.start();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // A socket whose file is gone leads nowhere: another one is bound.
    daemon.stop(Signal::KILL);
    std::fs::remove_file(daemon.socket()).unwrap();
    daemon.start();
    assert_eq!(ask(&daemon).unwrap(), 200);
    assert_eq!(daemon.kept().iter().filter(|name| name.starts_with("v1api-")).count(), 1, "{:?}", daemon.kept());
}

/// The read-only socket and the listener for metrics are kept as well: clients that connect while no switch runs are answered by
/// the next one. One that is configured elsewhere is closed.
#[test]
fn all_listening_sockets_are_kept() {
    let Some(namespace) = Namespace::new() else { return };
    let vifs = ports(&namespace);
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let metrics = free();
    let mut daemon = Daemon::new();
    daemon.keep_descriptors();
    let read = daemon.socket().with_file_name("read.sock");
    let configure = |daemon: &Daemon, more: &str| {
        let text = config(&daemon.socket(), more, &[("net1", 1500)], &vifs[..1]);
        daemon.configure(&keeping(&text, &daemon.state()));
    };
    configure(&daemon, &format!("api_read = {read:?}\nmetrics = \"{metrics}\""));
    daemon.start();
    let sockets = |daemon: &Daemon| -> Vec<String> {
        let is_socket = |name: &String| ["v1api-", "v1read-", "v1tcp-"].iter().any(|prefix| name.starts_with(prefix));
        daemon.kept().into_iter().filter(is_socket).collect()
    };
    let kept = await_that("three kept sockets", || Some(sockets(&daemon)).filter(|sockets| sockets.len() == 3));
    let request = b"GET /livez HTTP/1.1\r\nHost: vifswitch\r\nConnection: close\r\n\r\n";
    for signal in [Signal::TERM, Signal::KILL] {
        daemon.stop(signal);
        let mut by_path = UnixStream::connect(&read).unwrap();
        let mut by_address = std::net::TcpStream::connect(metrics).unwrap();
        by_path.write_all(request).unwrap();
        by_address.write_all(request).unwrap();
        daemon.start();
        for stream in [&mut by_path as &mut dyn Read, &mut by_address] {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{signal:?}: {answer}");
        }
        assert_eq!(sockets(&daemon), kept, "{signal:?}");
    }
    daemon.stop(Signal::KILL);
    configure(&daemon, &format!("metrics = \"{}\"", free()));
    daemon.start();
    await_that("those of the last run to be closed", || {
        let now = sockets(&daemon);
        (now.len() == 2 && now.iter().filter(|name| kept.contains(name)).count() == 1).then_some(())
    });
    assert!(UnixStream::connect(&read).is_err() && std::net::TcpStream::connect(metrics).is_err());
}

/// Sockets of a socket unit are used where the configuration names them.
#[test]
fn sockets_of_units_are_used() {
    let Some(namespace) = Namespace::new() else { return };
    let vifs = ports(&namespace);
    let mut daemon = Daemon::new();
    let listener = UnixListener::bind(daemon.socket()).unwrap();
    let metrics = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = metrics.local_addr().unwrap();
    let stray = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    daemon.of_units = [("vifswitch.socket", listener.into()), ("m", metrics.into()), ("stray", stray.into())]
        .map(|(name, descriptor): (&str, std::os::fd::OwnedFd)| (name.to_owned(), descriptor))
        .into();
    let more = format!("metrics = \"{address}\"");
    daemon.configure(&config(&daemon.socket(), &more, &[("net1", 1500)], &vifs[..1]));
    for _ in 0..2 {
        daemon.start();
        assert_eq!(ask(&daemon).unwrap(), 200);
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: vifswitch\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(daemon.log().contains("has passed \"stray\""), "{}", daemon.log());
        daemon.stop(Signal::TERM);
        assert!(daemon.socket().exists(), "the unit's");
    }
}

/// Without a service manager that keeps descriptors, nothing is left behind.
#[test]
fn without_a_store_taps_and_socket_end_with_the_switch() {
    let Some(namespace) = Namespace::new() else { return };
    let vifs = ports(&namespace);
    let mut daemon = Daemon::over(&vifs);
    daemon.stop(Signal::TERM);
    assert_eq!((namespace.links(), daemon.socket().exists(), daemon.kept()), (vec!["lo".to_owned()], false, vec![]));
}

/// Stations learned before are known after, without a flood to a bystander.
#[test]
fn a_frame_that_waited_is_not_flooded() {
    let Some(namespace) = Namespace::new() else { return };
    let mut vifs = ports(&namespace);
    vifs.iter_mut().for_each(|vif| vif.more = "port_security = \"off\"".into());
    let mut daemon = switch(&vifs, "");
    await_devices(&daemon, 3);
    let nics: Vec<Nic> = vifs.iter().map(|vif| Nic::new(&namespace, &vif.name)).collect();
    let station = Mac::from_bits(0x0a00_0000_0001);
    nics[1].send(&experiment(Mac::BROADCAST, station, b"here"));
    await_that("the station", || {
        let stations: Vec<StationView> = daemon.get("/v1/fdb");
        stations.iter().any(|of| of.kind == StationKind::Learned && of.port_id == "port-2").then_some(())
    });
    [0, 2].iter().for_each(|&at| drop(nics[at].take()));
    daemon.stop(Signal::TERM);
    let waited = experiment(station, vifs[0].mac, b"waits");
    nics[0].send(&waited);
    daemon.start();
    assert_eq!(nics[1].take(), waited);
    let all = experiment(Mac::BROADCAST, vifs[0].mac, b"all");
    nics[0].send(&all);
    assert_eq!(nics[2].take(), all, "the bystander received nothing else");
}

/// Counters of ports continue over an orderly restart, and add up. After a kill they begin at zero.
#[test]
fn counters_continue_over_a_restart() {
    let Some(namespace) = Namespace::new() else { return };
    let vifs = ports(&namespace);
    let mut daemon = switch(&vifs, "");
    await_devices(&daemon, 3);
    let nics = [Nic::new(&namespace, "tap1"), Nic::new(&namespace, "tap3")];
    let send = |number: u8| {
        let frame = experiment(vifs[2].mac, vifs[0].mac, &[number; 46]);
        nics[0].send(&frame);
        assert_eq!(nics[1].take(), frame);
    };
    let counted = |daemon: &Daemon| {
        let ports = daemon.await_idle();
        let count = |vif: &Vif| ports.iter().find(|port| port.port_id == vif.port).unwrap().counts.clone();
        (count(&vifs[0]).rx_frames, count(&vifs[2]).tx_frames)
    };
    (0..5).for_each(send);
    let before = counted(&daemon);
    assert!(before.0 >= 5 && before.1 >= 5, "{before:?}");
    daemon.stop(Signal::TERM);
    let waits = experiment(vifs[2].mac, vifs[0].mac, &[9; 46]);
    nics[0].send(&waits);
    daemon.start();
    assert_eq!(nics[1].take(), waits);
    let after = counted(&daemon);
    assert!(after.0 > before.0 && after.1 > before.1, "{before:?}, {after:?}\n{}", daemon.log());
    daemon.stop(Signal::KILL);
    daemon.start();
    assert!(counted(&daemon).1 < before.1, "read once, and not written by a kill");
}

/// Counters are handed over when the workers have stopped: under traffic no frame is missing.
#[test]
fn no_frame_is_missing_in_the_counters_after_a_restart_under_traffic() {
    let Some(namespace) = Namespace::new() else { return };
    let vifs = ports(&namespace);
    let mut daemon = switch(&vifs, "");
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    await_devices(&daemon, 3);
    let nics = [Nic::new(&namespace, "tap1"), Nic::new(&namespace, "tap3")];
    let frame = experiment(vifs[2].mac, vifs[0].mac, &[7; 46]);
    let (ended, taken) = (AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
    let sent = thread::scope(|scope| {
        let _end = Finally(&ended);
        let sender = scope.spawn(|| {
            let mut sent = 0;
            while !ended.load(Ordering::Relaxed) {
                // Fewer than any queue on the way holds.
                if sent - taken.load(Ordering::Relaxed) < 200 {
                    nics[0].send(&frame);
                    sent += 1;
                } else {
                    thread::yield_now();
                }
            }
            sent
        });
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let arrived = nics[1].rest().iter().filter(|arrived| **arrived == frame).count();
                taken.fetch_add(arrived as u64, Ordering::Relaxed);
                thread::yield_now();
            }
        });
        for _ in 0..3 {
            let before = taken.load(Ordering::Relaxed);
            await_that("traffic", || (taken.load(Ordering::Relaxed) > before + 1000).then_some(()));
            daemon.stop(Signal::TERM);
            daemon.start();
        }
        ended.store(true, Ordering::Relaxed);
        sender.join().unwrap()
    });
    let ports = daemon.await_idle();
    let counts = |vif: &Vif| ports.iter().find(|port| port.port_id == vif.port).unwrap().counts.clone();
    let (from, to) = (counts(&vifs[0]), counts(&vifs[2]));
    assert_eq!((from.forwarded, to.tx_frames), (sent, sent));
}

/// Policers continue over an orderly restart: it gives nobody another burst.
#[test]
fn a_restart_refills_no_bucket() {
    let Some(namespace) = Namespace::new() else { return };
    let mut vifs = ports(&namespace);
    vifs[0].more = "storm = { broadcast = { pps = 1, burst = 100 } }".into();
    let mut daemon = switch(&vifs, "");
    await_devices(&daemon, 3);
    let nics = [Nic::new(&namespace, "tap1"), Nic::new(&namespace, "tap3")];
    let storm = || {
        for number in 0..150u8 {
            nics[0].send(&experiment(Mac::BROADCAST, vifs[0].mac, &[number; 46]));
        }
        let last = experiment(vifs[2].mac, vifs[0].mac, b"the last one");
        nics[0].send(&last);
        nics[1].take_until(&last).len()
    };
    assert!(storm() >= 100);
    daemon.stop(Signal::TERM);
    daemon.start();
    let passed = storm();
    assert!(passed < 50, "{passed} of a rate of 1/s");
    daemon.stop(Signal::KILL);
    daemon.start();
    assert!(storm() >= 100, "after a kill it is full");
}
