//! A hung worker blocks neither control nor other workers. Needs root; makes its own namespaces.

use std::io::Write;
use std::os::unix::net::UnixStream;

use rustix::process::Signal;
use vifswitch::control::api::responses::NetworkView;

use support::host::await_that;
use support::host::daemon::Daemon;
use support::host::inject::{Stopped, thread_of};
use support::host::nic::Nic;
use support::host::setup::{DeviceKind, guests, pass};

/// Requests filled its mailbox, and the next one blocked control permanently.
#[test]
fn control_does_not_wait_for_a_hung_worker() {
    let Some((spaces, vifs)) = guests(&["a", "b", "c"], &[DeviceKind::Tap], 1500) else { return };
    let mut daemon = Daemon::over(&vifs[..2]);
    vifs[..2].iter().for_each(|vif| drop(daemon.await_active(vif)));
    let hang = |daemon: &Daemon| Stopped::new(thread_of(daemon.pid(), "vifswitch-w0").unwrap());
    let stopped = hang(&daemon);
    // More requests than its mailbox holds, by clients that do not wait for the reply.
    for _ in 0..80 {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.write_all(b"GET /v1/fdb HTTP/1.1\r\nhost: vifswitch\r\n\r\n").unwrap();
    }
    assert_eq!(daemon.ports().len(), 2, "control answers");
    // Pages that need a worker's reply are answered without it.
    assert_eq!(daemon.get::<Vec<NetworkView>>("/v1/networks").len(), 1);
    // Changes are made, and reach the worker when it runs again.
    daemon.attach(&vifs[2]);
    daemon.detach(&vifs[1]);
    for _ in 0..40 {
        daemon.done(&["set", "port-3", "port_security=off"], "");
        daemon.done(&["set", "port-3", "port_security=mac"], "");
    }
    assert!(daemon.log().contains("the worker has not answered for"), "{}", daemon.log());
    drop(stopped);
    await_that("the worker to reply again", || daemon.log().contains("the worker answers again").then_some(()));
    await_that("its devices are opened again", || daemon.log().contains("its worker hung").then_some(()));
    let left = [&vifs[0], &vifs[2]];
    left.iter().for_each(|vif| drop(daemon.await_active(vif)));
    let nics = [0, 2].map(|index: usize| Nic::new(&spaces[index], &vifs[index].name));
    pass((&nics[0], left[0]), (&nics[1], left[1]), "hello");
    pass((&nics[1], left[1]), (&nics[0], left[0]), "hello");
    assert!(spaces[1].link(&vifs[1].name).is_none(), "the detached port is gone");
    drop(nics);
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
}
