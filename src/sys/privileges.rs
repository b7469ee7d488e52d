//! Capabilities: keeps those that the switch needs and drops all others.
//!
//! Capabilities belong to a thread and are inherited by threads that it starts. Drop them before a second
//! thread exists.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities, set_no_new_privs,
};

/// A capability, and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Privilege {
    /// Its name.
    pub name: &'static str,
    /// What cannot be done without it, as in "without it, …".
    pub without: &'static str,
    capability: CapabilitySet,
}

/// To make taps, to attach to those that others made, and to set addresses and MTUs.
pub const NET_ADMIN: Privilege = Privilege {
    name: "CAP_NET_ADMIN",
    without: "no tap can be made, attached to, or set up",
    capability: CapabilitySet::NET_ADMIN,
};

/// To enter network namespaces.
pub const SYS_ADMIN: Privilege = Privilege {
    name: "CAP_SYS_ADMIN",
    without: "no other network namespace can be entered",
    capability: CapabilitySet::SYS_ADMIN,
};

/// To open packet sockets and AF_XDP sockets.
pub const NET_RAW: Privilege = Privilege {
    name: "CAP_NET_RAW",
    without: "no netdev that others own can be opened",
    capability: CapabilitySet::NET_RAW,
};

/// To load XDP programs. CAP_SYS_ADMIN includes it.
pub const BPF: Privilege = Privilege {
    name: "CAP_BPF",
    without: "no XDP program can be loaded (CAP_SYS_ADMIN does as well)",
    capability: CapabilitySet::BPF,
};

/// To load XDP programs without barriers against speculative execution. CAP_SYS_ADMIN includes it.
pub const PERFMON: Privilege = Privilege {
    name: "CAP_PERFMON",
    without: "XDP programs have barriers against speculative execution, and take longer for each frame",
    capability: CapabilitySet::PERFMON,
};

/// To pin the pool in memory, beyond what the limit on locked memory allows.
pub const IPC_LOCK: Privilege = Privilege {
    name: "CAP_IPC_LOCK",
    without: "AF_XDP is to be had only within the limit on locked memory (LimitMEMLOCK=infinity does as well)",
    capability: CapabilitySet::IPC_LOCK,
};

/// To reach namespaces by the processes of others that live in them.
pub const SYS_PTRACE: Privilege = Privilege {
    name: "CAP_SYS_PTRACE",
    without: "a namespace named as /proc/PID/ns/net cannot be opened, unless the process has no more rights than this one",
    capability: CapabilitySet::SYS_PTRACE,
};

/// To listen at TCP ports below 1024.
pub const NET_BIND_SERVICE: Privilege = Privilege {
    name: "CAP_NET_BIND_SERVICE",
    without: "no TCP port below 1024 can be listened at",
    capability: CapabilitySet::NET_BIND_SERVICE,
};

impl Privilege {
    /// Whether this thread has it in force.
    pub fn is_held(&self) -> bool {
        capabilities(None).is_ok_and(|sets| sets.effective.contains(self.capability))
    }
}

/// Gives up everything but these, in this thread and in those that it will start, for good. What
/// was not there before is not there afterwards.
pub fn keep_only(privileges: &[Privilege]) -> io::Result<()> {
    let wanted = privileges.iter().fold(CapabilitySet::empty(), |all, one| all | one.capability);
    let stored = capabilities(None)?.permitted & wanted;
    // Nothing is ever executed; if something were, it should get no more than we have.
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    set_capabilities(
        None,
        CapabilitySets { effective: stored, permitted: stored, inheritable: CapabilitySet::empty() },
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_up_is_gone_for_this_thread_and_its_children() {
        let before = NET_ADMIN.is_held();
        std::thread::spawn(move || {
            let had = SYS_ADMIN.is_held();
            keep_only(&[SYS_ADMIN]).unwrap();
            assert_eq!((SYS_ADMIN.is_held(), NET_ADMIN.is_held()), (had, false));
            keep_only(&[SYS_ADMIN, NET_ADMIN]).unwrap();
            assert!(!NET_ADMIN.is_held(), "for good");
            std::thread::spawn(|| assert!(!NET_ADMIN.is_held())).join().unwrap();
        })
        .join()
        .unwrap();
        assert_eq!(NET_ADMIN.is_held(), before, "other threads keep what they have");
    }
}
