//! Who may change the switch: users and groups of `api_writers`, by the credentials of the process that connects.
//! Needs root for other users.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use support::host::daemon::{Daemon, config};
use support::host::{Namespace, program};

/// Runs a command of the program as this user, with this group and supplementary group.
fn run_as(user: u32, group: u32, supplementary: u32, arguments: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={user}"), format!("--regid={group}"), format!("--groups={supplementary}")]);
    command.arg("--").arg(program()).args(arguments).output().unwrap()
}

#[test]
fn listed_users_and_groups_change_the_switch_and_others_read() {
    // Skipped without root.
    let Some(_namespace) = Namespace::new() else { return };
    let mut daemon = Daemon::new();
    let read = daemon.file().with_file_name("read.sock");
    let keys = format!("api_writers = {{ uids = [4001], gids = [4002] }}\napi_read = {read:?}");
    daemon.configure(&config(&daemon.socket(), &keys, &[("net1", 1500)], &[]));
    // Readable for all: the program, and the directory of the sockets.
    fs::set_permissions(daemon.file().parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    daemon.start();
    fs::set_permissions(daemon.socket(), Permissions::from_mode(0o666)).unwrap();
    let socket = daemon.socket();
    let change = ["log", "debug", "--socket", socket.to_str().unwrap()];
    for (user, group, supplementary) in [(0, 0, 0), (4001, 1, 1), (5, 4002, 1), (5, 1, 4002)] {
        let ran = run_as(user, group, supplementary, &change);
        assert!(ran.status.success(), "{user} {group} {supplementary}: {ran:?}");
    }
    for (user, group, supplementary) in [(5, 1, 1), (4002, 4001, 4001), (5, 0, 0)] {
        let ran = run_as(user, group, supplementary, &change);
        let why = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(1), "{user} {group} {supplementary}: {why}");
        let said = [&*format!("uid {user} may not change the switch"), "uids", "gids", "api_writers in [switch]"];
        said.iter().for_each(|said| assert!(why.contains(said), "no {said:?} in {why}"));
        let ran = run_as(user, group, supplementary, &["show", "--socket", socket.to_str().unwrap()]);
        assert!(ran.status.success(), "{ran:?}");
    }
    // Nobody writes at the socket for reads, whatever its mode lets connect.
    for user in [0, 4001] {
        let ran = run_as(user, 1, 1, &["log", "debug", "--socket", read.to_str().unwrap()]);
        let why = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.code() == Some(1) && why.contains("this listener is for reads"), "{why}");
        let ran = run_as(user, 1, 1, &["show", "--socket", read.to_str().unwrap()]);
        assert!(ran.status.success(), "{ran:?}");
    }
    // Who asked is logged, with what was answered.
    let log = daemon.log();
    let logged = |user: u32, status: u16| {
        log.lines().any(|line| {
            let by = line.contains(" PUT /v1/log ") && line.contains(&format!(" uid={user} pid="));
            by && line.contains(" request_id=\"") && line.contains(&format!(" status={status}"))
        })
    };
    assert!(logged(4001, 200) && logged(0, 200) && logged(4002, 403), "{log}");
}
