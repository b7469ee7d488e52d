//! Capabilities: keeps those that the switch needs and drops all others.
//!
//! Capabilities belong to a thread and are inherited by threads that it starts. Drop them before a second thread
//! exists.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities, set_no_new_privs,
};

/// A capability and its purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Privilege {
    /// Name.
    pub name: &'static str,
    /// Consequence if it is missing, completing "without it, …".
    pub without: &'static str,
    capability: CapabilitySet,
}

/// Creates, opens and configures taps; sets MAC addresses and MTUs.
pub const NET_ADMIN: Privilege =
    Privilege::new("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN, "taps cannot be created, opened or configured");

/// Enters network namespaces.
pub const SYS_ADMIN: Privilege =
    Privilege::new("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN, "no other network namespace can be entered");

/// Opens packet sockets and AF_XDP sockets.
pub const NET_RAW: Privilege =
    Privilege::new("CAP_NET_RAW", CapabilitySet::NET_RAW, "packet and xdp devices cannot be opened");

/// Loads XDP programs. CAP_SYS_ADMIN includes it.
pub const BPF: Privilege =
    Privilege::new("CAP_BPF", CapabilitySet::BPF, "XDP programs cannot be loaded (CAP_SYS_ADMIN suffices as well)");

/// Loads XDP programs without barriers against speculative execution. CAP_SYS_ADMIN includes it.
pub const PERFMON: Privilege = Privilege::new(
    "CAP_PERFMON",
    CapabilitySet::PERFMON,
    "XDP programs have barriers against speculative execution and take longer per frame",
);

/// Locks the pool in memory beyond the locked-memory limit.
pub const IPC_LOCK: Privilege = Privilege::new(
    "CAP_IPC_LOCK",
    CapabilitySet::IPC_LOCK,
    "AF_XDP works only within the limit on locked memory (LimitMEMLOCK=infinity suffices as well)",
);

/// Opens namespaces of other users' processes by /proc/PID/ns/net.
pub const SYS_PTRACE: Privilege = Privilege::new(
    "CAP_SYS_PTRACE",
    CapabilitySet::SYS_PTRACE,
    "a namespace given as /proc/PID/ns/net can be opened only if that process has no further capabilities",
);

/// Binds TCP ports below 1024.
pub const NET_BIND_SERVICE: Privilege =
    Privilege::new("CAP_NET_BIND_SERVICE", CapabilitySet::NET_BIND_SERVICE, "TCP ports below 1024 cannot be bound");

impl Privilege {
    const fn new(name: &'static str, capability: CapabilitySet, without: &'static str) -> Privilege {
        Privilege { name, without, capability }
    }

    /// Whether it is in this thread's effective set.
    pub fn is_held(&self) -> bool {
        capabilities(None).is_ok_and(|sets| sets.effective.contains(self.capability))
    }
}

/// Drops all other capabilities permanently, in this thread and in threads that it starts later. Adds none.
pub fn keep_only(privileges: &[Privilege]) -> io::Result<()> {
    let wanted = privileges.iter().fold(CapabilitySet::empty(), |all, one| all | one.capability);
    let stored = capabilities(None)?.permitted & wanted;
    // The switch executes no programs; if it did, they would get no further capabilities.
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
    fn dropped_capabilities_are_gone_for_the_thread_and_its_children() {
        let before = NET_ADMIN.is_held();
        std::thread::spawn(move || {
            let had = SYS_ADMIN.is_held();
            keep_only(&[SYS_ADMIN]).unwrap();
            assert_eq!((SYS_ADMIN.is_held(), NET_ADMIN.is_held()), (had, false));
            keep_only(&[SYS_ADMIN, NET_ADMIN]).unwrap();
            assert!(!NET_ADMIN.is_held(), "permanently");
            std::thread::spawn(|| assert!(!NET_ADMIN.is_held())).join().unwrap();
        })
        .join()
        .unwrap();
        assert_eq!(NET_ADMIN.is_held(), before, "other threads keep their capabilities");
    }
}
