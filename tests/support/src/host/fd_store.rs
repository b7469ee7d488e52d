//! A service manager that keeps descriptors (`FDSTORE=1`), as systemd does: it receives them with notifications, and passes
//! all of them at each start.

use std::fmt::Write as _;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// Maximum descriptors per message (SCM_MAX_FD).
const AT_ONCE: usize = 253;

/// First descriptor to be passed on: above those that the started shell opens.
const FIRST: i32 = 200;

/// Kept descriptors, in the order of their arrival.
#[derive(Debug, Default)]
pub struct FdStore {
    pub kept: Vec<(String, OwnedFd)>,
    /// The environment tells the switch that descriptors are kept.
    pub is_open: bool,
}

impl FdStore {
    /// Receives a notification, and keeps or removes descriptors. `None`: there is none.
    pub fn receive(&mut self, socket: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let len = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?.bytes;
        let descriptors: Vec<OwnedFd> = control
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
                _ => Vec::new(),
            })
            .collect();
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        let has = |line: &str| text.lines().any(|said| said == line);
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored").to_owned();
        if has("FDSTORE=1") && self.is_open {
            assert!(has("FDPOLL=0") && name.len() < 64 && !name.contains(':'), "{text}");
            self.kept.extend(descriptors.into_iter().map(|descriptor| (name.clone(), descriptor)));
        } else if has("FDSTOREREMOVE=1") {
            self.kept.retain(|(kept, _)| *kept != name);
        }
        Some(text)
    }

    /// The command of a switch to which these descriptors are passed, and `others` before them, as those of socket units.
    pub fn passing(&self, command: &Command, others: &[(String, OwnedFd)]) -> (Command, Vec<OwnedFd>) {
        let passed: Vec<_> = others.iter().chain(&self.kept).collect();
        // The shell moves each to its place; it inherits them without the flag to close them.
        let copies = passed.iter().map(|(_, descriptor)| {
            let copy = fcntl_dupfd_cloexec(descriptor.as_fd(), FIRST).unwrap();
            fcntl_setfd(&copy, FdFlags::empty()).unwrap();
            copy
        });
        let copies: Vec<OwnedFd> = copies.collect();
        let mut script = String::new();
        for (place, copy) in (3..).zip(&copies) {
            let copy = copy.as_raw_fd();
            write!(script, "exec {place}<&{copy} {copy}<&-; ").unwrap();
        }
        script.push_str("export LISTEN_PID=$$; exec \"$0\" \"$@\"");
        let names: Vec<&str> = passed.iter().map(|(name, _)| name.as_str()).collect();
        // dash has descriptors of one digit only.
        let mut through = Command::new("bash");
        through.arg("-c").arg(script).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => through.env(key, value),
                None => through.env_remove(key),
            };
        }
        if !passed.is_empty() {
            through.env("LISTEN_FDS", passed.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        if self.is_open {
            through.env("FDSTORE", "6000");
        }
        (through, copies)
    }
}
