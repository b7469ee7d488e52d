//! A switch started without CAP_SYS_ADMIN serves ports that do not need it. Needs root; makes its own namespaces.

use std::process::Command;

use rustix::process::Signal;

use support::host::daemon::{Daemon, config};
use support::host::nic::Nic;
use support::host::setup::{DeviceKind, guests, pass};

/// Effective capabilities of a process.
fn in_force(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

/// XDP programs were refused because CAP_BPF was dropped.
#[test]
fn xdp_ports_work_without_cap_sys_admin() {
    const NET_ADMIN: u64 = 1 << 12;
    const NET_RAW: u64 = 1 << 13;
    const IPC_LOCK: u64 = 1 << 14;
    const BPF: u64 = 1 << 39;
    let Some((spaces, vifs)) = guests(&["a", "b", "c"], &[DeviceKind::Xdp, DeviceKind::Xdp, DeviceKind::Packet], 1500)
    else {
        return;
    };
    // The switch runs in the namespace of its netdevs: entering another one needs CAP_SYS_ADMIN.
    let host = &spaces[3];
    let isolated = vifs.iter().cloned().map(|vif| match vif.kind {
        "packet" => vif.device(", isolate = true"),
        _ => vif,
    });
    let mut daemon = Daemon::new();
    let text = config(&daemon.socket(), "", &[("net1", 1500)], &isolated.collect::<Vec<_>>());
    daemon.configure(&text.replace(&format!(", netns = \"{}\"", host.0), ""));
    let program = daemon.command().get_program().to_owned();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &host.0, "setpriv", "--bounding-set", "-all,+net_admin,+net_raw,+ipc_lock,+bpf"]);
    command.arg(program);
    let file = daemon.file();
    daemon.start_as(command, "--config", &file);
    vifs.iter().for_each(|vif| drop(daemon.await_active(vif)));
    assert_eq!(in_force(daemon.pid()), NET_ADMIN | NET_RAW | IPC_LOCK | BPF);
    let nics: Vec<Nic> = vifs.iter().zip(&spaces).map(|(vif, namespace)| Nic::new(namespace, &vif.name)).collect();
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        pass((&nics[from], &vifs[from]), (&nics[to], &vifs[to]), "hello");
    }
    assert_eq!(daemon.stop(Signal::TERM).code(), Some(0));
}
