//! Foreign XDP programs on a netdev of a port. Needs root; makes its own namespaces.

use std::os::fd::{AsFd, AsRawFd};

use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::{LinkAttribute, LinkXdp};
use vifswitch::control::api::responses::Status;
use vifswitch::device::xdp::assembler::{Assembler, Register};
use vifswitch::sys::bpf::{Attach, Link, Program, XDP_PASS};

use support::host::Namespace;
use support::host::daemon::{Daemon, attachment};
use support::host::setup::{DeviceKind, Setup, guests};

fn passes_everything() -> Program {
    let code = Assembler::new().set(Register::R0, XDP_PASS.cast_signed()).exit().finish().unwrap();
    Program::load(&code, true).unwrap()
}

/// Attaches a program as `ip link set dev … xdp` does: it outlives its owner.
fn leave(namespace: &Namespace, name: &str) {
    let program = passes_everything();
    let what = vec![LinkXdp::Fd(program.as_fd().as_raw_fd()), LinkXdp::Flags(0)];
    let link = namespace.link(name).unwrap().index;
    let message = LinkUnspec::new_with_index(link).append_extra_attribute(LinkAttribute::Xdp(what)).build();
    namespace.run_in(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            handle.link().set(message).execute().await.unwrap();
        });
    });
}

#[test]
fn an_orphaned_program_is_named_and_replaced_on_request() {
    let Some((spaces, mut vifs)) = guests(&["a", "b"], &[DeviceKind::Tap, DeviceKind::Xdp], 1500) else { return };
    leave(&spaces[2], &vifs[1].name);
    let before = spaces[2].link(&vifs[1].name).unwrap().xdp;
    assert!(before.is_some());
    let daemon = Daemon::over(&vifs);
    let down = daemon.await_down(&vifs[1]);
    assert!(down.status_reason.contains("replace_xdp_program = true"), "{}", down.status_reason);
    assert_eq!(spaces[2].link(&vifs[1].name).unwrap().xdp, before, "the program is kept by default");
    daemon.detach(&vifs[1]);
    vifs[1].device = ", replace_xdp_program = true".into();
    let said = daemon.done(&["attach", "-"], &attachment(&vifs[1]));
    assert!(said.contains("ACTIVE"), "{said}");
    let after = spaces[2].link(&vifs[1].name).unwrap().xdp;
    assert!(after.is_some() && after != before);
    let setup = Setup { daemon, vifs, spaces };
    let nics = [setup.nic(0), setup.nic(1)];
    setup.send_and_await((0, &nics[0]), (1, &nics[1]), "there");
    setup.send_and_await((1, &nics[1]), (0, &nics[0]), "back");
}

/// A program whose owner lives is never removed; once it is detached, the port is opened.
#[test]
fn a_program_with_an_owner_is_kept() {
    let Some((spaces, mut vifs)) = guests(&["a", "b"], &[DeviceKind::Tap, DeviceKind::Xdp], 1500) else { return };
    vifs[1].device = ", replace_xdp_program = true".into();
    let program = passes_everything();
    let link = spaces[2].link(&vifs[1].name).unwrap().index;
    let held = spaces[2].run_in(|| Link::attach(&program, link, Attach::Native)).unwrap();
    let daemon = Daemon::over(&vifs);
    let down = daemon.await_down(&vifs[1]);
    assert!(down.status_reason.contains("is attached already"), "{}", down.status_reason);
    let theirs = spaces[2].link(&vifs[1].name).unwrap().xdp.unwrap();
    assert_eq!(theirs.program, program.id().unwrap());
    drop(held);
    assert_eq!(daemon.await_active(&vifs[1]).status, Status::Active);
    assert_ne!(spaces[2].link(&vifs[1].name).unwrap().xdp.unwrap().program, theirs.program);
}
