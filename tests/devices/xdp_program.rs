//! XDP programs on netdevs: attach, detach, foreign programs, frames without a socket. Needs root; makes its own
//! namespaces.

use std::env;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::{LinkAttribute, LinkXdp};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{Pid, Signal, kill_process};
use support::host::nic::{Nic, experiment};
use support::host::{Namespace, await_that};
use vifswitch::device::xdp::assembler::{Assembler, Register};
use vifswitch::device::xdp::drop_table::DropTable;
use vifswitch::device::xdp::program::{self, NoSocketAction};
use vifswitch::sys::bpf::{Arrival, Attach, Link, Program, XDP_PASS, XDP_REDIRECT, XskMap};
use vifswitch::sys::link::{self, Attached, XdpMode};
use vifswitch::sys::netns::{Netns, within};
use vifswitch::sys::tun::{Flags, Queue};
use vifswitch::wire::Mac;

const BOTH: [(Attach, XdpMode); 2] = [(Attach::Native, XdpMode::Native), (Attach::Generic, XdpMode::Generic)];

/// A namespace with a veth pair of two queues each, `v0` and `v1`, and a held tap `tap0`. All are up; no host
/// answers.
fn netdevs() -> Option<(Namespace, Queue)> {
    let namespace = Namespace::new()?;
    let flags = Flags { vnet_header: false, multi_queue: false, exclusive: true };
    let tap = namespace.run_in(|| Queue::open("tap0", flags)).unwrap();
    namespace.ip("link add v0 numrxqueues 2 numtxqueues 2 type veth peer name v1 numrxqueues 2 numtxqueues 2");
    for name in ["v0", "v1", "tap0"] {
        namespace.ip(&format!("link set dev {name} up"));
    }
    Some((namespace, tap))
}

/// Namespace helpers of these tests.
trait NamespaceExt {
    fn attach(&self, program: &Program, name: &str, attach: Attach) -> io::Result<Link>;

    fn xdp(&self, name: &str) -> Option<Attached>;

    /// Waits until nothing is attached. A child process forked by another test may hold descriptors until its exec.
    fn await_nothing_on(&self, name: &str);

    /// Attaches a program as `ip link set dev … xdp` does, without an owner.
    fn attach_by_netlink(&self, program: &Program, name: &str, flags: u32);

    /// Frames that the netdev has dropped on receive.
    fn dropped(&self, name: &str) -> u64;
}

impl NamespaceExt for Namespace {
    fn attach(&self, program: &Program, name: &str, attach: Attach) -> io::Result<Link> {
        let ifindex = self.link(name).unwrap().index;
        self.run_in(|| Link::attach(program, ifindex, attach))
    }

    fn xdp(&self, name: &str) -> Option<Attached> {
        self.link(name).unwrap().xdp
    }

    fn await_nothing_on(&self, name: &str) {
        await_that("nothing is attached", || self.xdp(name).is_none().then_some(()));
    }

    fn attach_by_netlink(&self, program: &Program, name: &str, flags: u32) {
        let what = vec![LinkXdp::Fd(program.as_fd().as_raw_fd()), LinkXdp::Flags(flags)];
        let message = LinkUnspec::new_with_index(self.link(name).unwrap().index)
            .append_extra_attribute(LinkAttribute::Xdp(what))
            .build();
        self.run_in(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().unwrap();
                tokio::spawn(connection);
                handle.link().set(message).execute().await.unwrap();
            });
        });
    }

    fn dropped(&self, name: &str) -> u64 {
        self.run_in(|| {
            let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            let line = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}:"))).unwrap();
            line.split_whitespace().nth(3).unwrap().parse().unwrap()
        })
    }
}

fn redirect(no_socket: NoSocketAction) -> Program {
    program::load(&XskMap::new(2).unwrap(), &DropTable::new(2).unwrap(), no_socket, None).unwrap()
}

fn pass_everything(frags: bool) -> Program {
    let code = Assembler::new().set(Register::R0, XDP_PASS.cast_signed()).exit().finish().unwrap();
    Program::load(&code, frags).unwrap()
}

fn socket() -> OwnedFd {
    socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap()
}

fn errno<T>(done: io::Result<T>) -> Option<i32> {
    done.err().expect("attaching is refused").raw_os_error()
}

#[test]
fn a_program_is_attached_while_its_link_is_held() {
    let Some((namespace, _tap)) = netdevs() else { return };
    let program = redirect(NoSocketAction::Drop);
    for name in ["v1", "tap0", "lo"] {
        for (attach, mode) in BOTH {
            assert_eq!(namespace.xdp(name), None);
            if (name, attach) == ("lo", Attach::Native) {
                assert_eq!(errno(namespace.attach(&program, name, attach)), Some(libc::EOPNOTSUPP));
                continue;
            }
            let link = namespace.attach(&program, name, attach).unwrap_or_else(|e| panic!("{name}, {mode}: {e}"));
            let attached = Attached { mode, program: program.id().unwrap() };
            assert_eq!(namespace.xdp(name), Some(attached), "{name}");
            drop(link);
            namespace.await_nothing_on(name);
        }
    }
}

#[test]
fn no_other_program_attaches_to_a_bound_netdev() {
    let Some((namespace, _tap)) = netdevs() else { return };
    let (ours, others) = (redirect(NoSocketAction::Drop), pass_everything(true));
    for name in ["v1", "tap0"] {
        for (attach, mode) in BOTH {
            let link = namespace.attach(&ours, name, attach).unwrap();
            let attached = Some(Attached { mode, program: ours.id().unwrap() });
            for (second, _) in BOTH {
                let expected = if second == attach { libc::EBUSY } else { libc::EEXIST };
                assert_eq!(
                    errno(namespace.attach(&others, name, second)),
                    Some(expected),
                    "{name}, {mode}, {second:?}"
                );
            }
            let found = namespace.link(name).unwrap();
            assert_eq!(errno(namespace.run_in(|| link::remove_xdp_program(&found))), Some(libc::EBUSY));
            assert_eq!(namespace.xdp(name), attached);
            drop(link);
            namespace.await_nothing_on(name);
        }
    }
}

#[test]
fn a_program_without_an_owner_is_detected_and_removed() {
    let Some((namespace, _tap)) = netdevs() else { return };
    let ours = redirect(NoSocketAction::Drop);
    // XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, and none, which is native where supported
    for (flags, mode) in [(4, XdpMode::Native), (2, XdpMode::Generic), (0, XdpMode::Native)] {
        for name in ["v1", "tap0"] {
            let left = pass_everything(true);
            let attached = Attached { mode, program: left.id().unwrap() };
            namespace.attach_by_netlink(&left, name, flags);
            drop(left);
            assert_eq!(namespace.xdp(name), Some(attached), "{name}: the program outlives its descriptor");
            for (attach, wanted) in BOTH {
                let expected = if wanted == mode { libc::EBUSY } else { libc::EEXIST };
                assert_eq!(errno(namespace.attach(&ours, name, attach)), Some(expected), "{name}, {mode}, {wanted}");
            }
            let found = namespace.link(name).unwrap();
            namespace.run_in(|| link::remove_xdp_program(&found)).unwrap();
            assert_eq!(namespace.xdp(name), None, "{name}, {mode}");
            namespace.run_in(|| link::remove_xdp_program(&found)).expect("detaching a missing program succeeds");
            namespace.attach(&ours, name, Attach::Native).unwrap();
            namespace.await_nothing_on(name);
        }
    }
}

#[test]
fn long_frames_need_a_multi_buffer_program() {
    let Some((namespace, _tap)) = netdevs() else { return };
    namespace.ip("link set dev v0 mtu 9000");
    namespace.ip("link set dev v1 mtu 9000");
    assert_eq!(errno(namespace.attach(&pass_everything(false), "v1", Attach::Native)), Some(libc::ERANGE));
    namespace.attach(&pass_everything(true), "v1", Attach::Native).unwrap();
    namespace.await_nothing_on("v1");
    namespace.attach(&redirect(NoSocketAction::Drop), "v1", Attach::Native).unwrap();
}

/// On a tap, where a program runs within the write of the frame: it has finished before the next write.
#[test]
fn a_frame_without_a_socket_is_dropped_or_passed_as_chosen() {
    let Some((namespace, tap)) = netdevs() else { return };
    let nic = Nic::new(&namespace, "tap0");
    let frame = |number: u8| experiment(Mac::new([2, 0, 0, 0, 0, 1]), Mac::new([2, 0, 0, 0, 0, 2]), &[number; 46]);
    for (attach, mode) in BOTH {
        let before = namespace.dropped("tap0");
        let link = namespace.attach(&redirect(NoSocketAction::Drop), "tap0", attach).unwrap();
        tap.write(&frame(1)).unwrap();
        assert_eq!(namespace.dropped("tap0"), before + u64::from(attach == Attach::Native), "{mode}");
        let passing = redirect(NoSocketAction::PassToStack);
        link.update(&passing).unwrap();
        assert_eq!(namespace.xdp("tap0"), Some(Attached { mode, program: passing.id().unwrap() }));
        tap.write(&frame(2)).unwrap();
        assert_eq!(nic.take(), frame(2), "{mode}: the first one was dropped");
        drop(link);
        namespace.await_nothing_on("tap0");
    }
}

#[test]
fn each_queue_has_its_own_socket() {
    let Some((namespace, _tap)) = netdevs() else { return };
    let sockets = XskMap::new(2).unwrap();
    let program = program::load(&sockets, &DropTable::new(2).unwrap(), NoSocketAction::PassToStack, None).unwrap();
    let _link = namespace.attach(&program, "v1", Attach::Native).unwrap();
    let ifindex = namespace.link("v1").unwrap().index;
    let verdict = |queue: u32| {
        let run = namespace.run_in(|| program.test_run(&[0; 60], Some(Arrival { ifindex, queue })));
        run.unwrap_or_else(|e| panic!("queue {queue}: {e}")).verdict
    };
    assert_eq!([verdict(0), verdict(1)], [XDP_PASS, XDP_PASS]);
    let socket = socket();
    sockets.set(1, socket.as_fd()).unwrap();
    assert_eq!([verdict(0), verdict(1)], [XDP_PASS, XDP_REDIRECT]);
    sockets.clear(1).unwrap();
    sockets.set(0, socket.as_fd()).unwrap();
    assert_eq!([verdict(0), verdict(1)], [XDP_REDIRECT, XDP_PASS]);
}

#[test]
fn a_link_outlives_its_netdev() {
    let Some((namespace, _tap)) = netdevs() else { return };
    let program = redirect(NoSocketAction::Drop);
    let link = namespace.attach(&program, "v1", Attach::Native).unwrap();
    let gone = namespace.link("v1").unwrap();
    namespace.ip("link del dev v0");
    assert_eq!(errno(link.update(&program)), Some(libc::ENOLINK));
    assert_eq!(errno(namespace.run_in(|| Link::attach(&program, gone.index, Attach::Native))), Some(libc::EINVAL));
    assert_eq!(
        errno(namespace.run_in(|| link::remove_xdp_program(&link::Link { xdp: Some(ATTACHED), ..gone }))),
        Some(libc::ENODEV)
    );
}

/// Any value.
const ATTACHED: Attached = Attached { mode: XdpMode::Native, program: 1 };

/// A process that is killed when the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

/// The killed process is this test again: it attaches its programs, reports that, and waits forever.
#[test]
fn a_process_that_is_killed_leaves_nothing_attached() {
    const SPACE: &str = "VIFSWITCH_XDP_SPACE";
    if let Ok(name) = env::var(SPACE) {
        let netns = Netns::Named(name);
        let on = |name: &str, attach: Attach| {
            let ifindex = within(&netns, || link::find(name)).unwrap().unwrap().unwrap().index;
            within(&netns, || Link::attach(&redirect(NoSocketAction::Drop), ifindex, attach)).unwrap().unwrap()
        };
        let _links = [on("v0", Attach::Generic), on("v1", Attach::Native), on("tap0", Attach::Native)];
        println!("attached");
        let _ = io::stdin().read(&mut [0]);
        return;
    }
    let Some((namespace, _tap)) = netdevs() else { return };
    for _ in 0..10 {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "xdp_program::a_process_that_is_killed_leaves_nothing_attached", "--nocapture"])
            .env(SPACE, &namespace.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = Killed(child.unwrap());
        let mut said = BufReader::new(child.0.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(said.any(|line| line.ends_with("attached")), "the attached programs");
        let mode = |name: &str| namespace.xdp(name).map(|attached| attached.mode);
        assert_eq!(mode("v0"), Some(XdpMode::Generic));
        assert_eq!([mode("v1"), mode("tap0")], [Some(XdpMode::Native); 2]);
        drop(child);
        // The kernel closes its descriptors before it reports its end.
        assert_eq!(["v0", "v1", "tap0"].map(mode), [None; 3]);
    }
}
