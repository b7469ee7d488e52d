//! Descriptors of devices that the service manager keeps over a restart, so that netdevs keep their carrier and frames
//! wait in their queues, also after a kill.
//!
//! The service manager passes all of them at each start. A port takes its own by name; a newly opened device is stored,
//! one that is closed is removed. What no port takes is removed once the configuration is known.
//!
//! **Names.** At a start all names are passed in one environment variable, which the kernel limits to 128 KiB: with
//! more, the process could not be started at all. Names are therefore short, of fixed length (a hash of the port's id),
//! and the number of descriptors is bounded. A name begins with the version of this protocol; descriptors with other
//! names are those of another version, and are not used.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;

use tracing::{info, warn};

use crate::control::compile::endpoints::Kind;
use crate::device::{Keep, KeptDescriptors};

/// Version of names and of what descriptors mean.
pub const VERSION: &str = "v1";

/// Maximum number of stored descriptors of devices.
pub const MAX_DESCRIPTORS: usize = 6000;

/// Length of a name of a device's descriptors.
const NAME: usize = VERSION.len() + 1 + 16;

/// MAX_ARG_STRLEN of the kernel: maximum length of an environment variable.
const MAX_VARIABLE: usize = 128 << 10;

const _: () = assert!(MAX_DESCRIPTORS * (NAME + 1) < MAX_VARIABLE - 4096, "names of sockets and the variable's own");

/// A service manager that keeps descriptors.
pub trait DescriptorStore: Send {
    /// Keeps descriptors under a name. Does not block. False if they cannot be kept.
    fn store(&self, name: &str, descriptors: Vec<OwnedFd>) -> bool;

    /// Closes the kept descriptors of this name. Does not block.
    fn remove(&self, name: &str);
}

/// The kept descriptors of all ports.
#[derive(Default)]
pub struct Descriptors {
    /// `None`: nothing is kept.
    store: Option<Box<dyn DescriptorStore>>,
    /// Passed by the service manager and not taken yet, by name.
    inherited: HashMap<String, Vec<OwnedFd>>,
    /// Name and number of those of each port, by its key.
    stored: HashMap<u64, (String, usize)>,
    /// Whether the bound has been reported.
    is_full: bool,
}

impl fmt::Debug for Descriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Descriptors").field("inherited", &self.inherited).field("stored", &self.stored).finish()
    }
}

impl Descriptors {
    /// Descriptors kept by `store`, which has passed `inherited`.
    pub fn new(store: Box<dyn DescriptorStore>, inherited: HashMap<String, Vec<OwnedFd>>) -> Descriptors {
        Descriptors { store: Some(store), inherited, ..Descriptors::default() }
    }

    /// Takes the descriptors of a port that is to be opened, with its key in this run.
    pub fn take(&mut self, key: u64, endpoint: (Kind, &str)) -> KeptDescriptors {
        if self.store.is_none() {
            return KeptDescriptors::default();
        }
        let name = name(endpoint);
        let inherited = self.inherited.remove(&name).unwrap_or_default();
        if !inherited.is_empty() {
            self.stored.insert(key, (name, inherited.len()));
        }
        KeptDescriptors { inherited, is_wanted: true }
    }

    /// Whether the service manager has passed descriptors that no port has taken yet.
    pub fn are_passed(&self) -> bool {
        !self.inherited.is_empty()
    }

    /// Whether a port, by its key, has descriptors in the store.
    pub fn is_stored(&self, key: u64) -> bool {
        self.stored.contains_key(&key)
    }

    /// Copies of the descriptors of a port that may not be configured any more.
    pub fn copies(&self, port_id: &str) -> Vec<OwnedFd> {
        let inherited = self.inherited.get(&name((Kind::Port, port_id)));
        inherited.into_iter().flatten().filter_map(|descriptor| descriptor.try_clone().ok()).collect()
    }

    /// The device of a port has been opened.
    pub fn record_opened(&mut self, key: u64, endpoint: (Kind, &str), keep: Keep) {
        let descriptors = match keep {
            Keep::Same => return,
            Keep::Nothing => return self.release(key),
            Keep::New(descriptors) => descriptors,
        };
        self.release(key);
        let (stored, new) = (self.len(), descriptors.len());
        if new == 0 || self.store.is_none() {
            return;
        }
        if stored + new > MAX_DESCRIPTORS {
            if !std::mem::replace(&mut self.is_full, true) {
                warn!(
                    "the service manager keeps at most {MAX_DESCRIPTORS} descriptors of devices: further ports lose their \
                     carrier at a restart"
                );
            }
            return;
        }
        let name = name(endpoint);
        if self.store.as_ref().is_some_and(|store| store.store(&name, descriptors)) {
            self.stored.insert(key, (name, new));
        }
    }

    /// The device of a port is closed, or could not be opened with its descriptors.
    pub fn release(&mut self, key: u64) {
        if let Some((name, _)) = self.stored.remove(&key) {
            self.remove(&name);
        }
    }

    /// Removes the descriptors that no port has taken. Call it when the configuration is known.
    pub fn release_others(&mut self) {
        let others = std::mem::take(&mut self.inherited);
        if !others.is_empty() {
            info!("closing devices of the last run that no port has now: {}", others.len());
        }
        others.keys().for_each(|name| self.remove(name));
    }

    /// Number of descriptors in the store.
    fn len(&self) -> usize {
        self.stored.values().map(|(_, count)| count).sum::<usize>()
            + self.inherited.values().map(Vec::len).sum::<usize>()
    }

    fn remove(&self, name: &str) {
        if let Some(store) = &self.store {
            store.remove(name);
        }
    }
}

/// Name of the descriptors of an endpoint.
fn name((kind, id): (Kind, &str)) -> String {
    let kind = match kind {
        Kind::Port => 'p',
        Kind::Subport => 's',
        Kind::Uplink => 'u',
    };
    format!("{VERSION}{kind}{:016x}", fnv1a(id.as_bytes()))
}

/// Whether this is the name of a device's descriptors, in this version.
pub fn is_of_a_device(name: &str) -> bool {
    name.len() == NAME && name.strip_prefix(VERSION).is_some_and(|rest| rest.starts_with(['p', 'u']))
}

/// FNV-1a with 64 bits, the same in each version. If two ids collide, the device is checked, and not used.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Calls of the store, in order: name, and number of stored descriptors; 0 for a removal.
    #[derive(Clone, Default)]
    struct Calls(Arc<Mutex<Vec<(String, usize)>>>);

    /// A store that cannot keep anything.
    struct Full(Calls);

    impl DescriptorStore for Full {
        fn store(&self, _: &str, _: Vec<OwnedFd>) -> bool {
            false
        }

        fn remove(&self, name: &str) {
            self.0.remove(name);
        }
    }

    impl DescriptorStore for Calls {
        fn store(&self, name: &str, descriptors: Vec<OwnedFd>) -> bool {
            self.0.lock().unwrap().push((name.to_owned(), descriptors.len()));
            true
        }

        fn remove(&self, name: &str) {
            self.0.lock().unwrap().push((name.to_owned(), 0));
        }
    }

    impl Calls {
        fn take(&self) -> Vec<(String, usize)> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    fn files(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| File::open("/dev/null").unwrap().into()).collect()
    }

    const A: (Kind, &str) = (Kind::Port, "a");
    const B: (Kind, &str) = (Kind::Port, "b");

    fn with(inherited: &[(Kind, &str)]) -> (Descriptors, Calls) {
        let calls = Calls::default();
        let inherited = inherited.iter().map(|&endpoint| (name(endpoint), files(1))).collect();
        (Descriptors::new(Box::new(calls.clone()), inherited), calls)
    }

    #[test]
    fn names_are_short_distinct_and_the_same_in_each_version() {
        assert_eq!(name(A), "v1paf63dc4c8601ec8c");
        assert_ne!(name(A), name((Kind::Uplink, "a")));
        assert!(is_of_a_device(&name(A)) && is_of_a_device(&name((Kind::Uplink, &"x".repeat(300)))));
        for other in ["", "v1", "v1tcp-127.0.0.1_9100", "v2p0000000000000000", "vifswitch.socket"] {
            assert!(!is_of_a_device(other), "{other}");
        }
    }

    #[test]
    fn a_port_takes_its_own_and_the_rest_is_removed() {
        let (mut descriptors, calls) = with(&[A, B]);
        assert_eq!(descriptors.take(1, A).inherited.len(), 1);
        assert_eq!(descriptors.take(2, A).inherited.len(), 0, "taken once");
        descriptors.record_opened(1, A, Keep::Same);
        assert_eq!(calls.take(), []);
        descriptors.release_others();
        assert_eq!(calls.take(), [(name(B), 0)]);
        descriptors.release(1);
        descriptors.release(1);
        assert_eq!(calls.take(), [(name(A), 0)], "removed once");
    }

    #[test]
    fn a_newly_opened_device_replaces_its_descriptors() {
        let (mut descriptors, calls) = with(&[A]);
        let _ = descriptors.take(1, A);
        descriptors.record_opened(1, A, Keep::New(files(2)));
        assert_eq!(calls.take(), [(name(A), 0), (name(A), 2)], "in this order");
        descriptors.record_opened(1, A, Keep::Nothing);
        assert_eq!(calls.take(), [(name(A), 0)]);
    }

    #[test]
    fn without_a_store_nothing_is_kept() {
        let mut descriptors = Descriptors::default();
        assert!(!descriptors.take(1, A).is_wanted);
        descriptors.record_opened(1, A, Keep::New(files(1)));
        assert_eq!(descriptors.len(), 0);
    }

    #[test]
    fn the_number_is_bounded() {
        let (mut descriptors, calls) = with(&[]);
        descriptors.stored.insert(0, (name(B), MAX_DESCRIPTORS - 1));
        descriptors.record_opened(1, A, Keep::New(files(2)));
        assert_eq!(calls.take(), []);
        descriptors.record_opened(1, A, Keep::New(files(1)));
        assert_eq!(calls.take(), [(name(A), 1)]);
    }

    #[test]
    fn what_the_store_refuses_is_not_kept() {
        let calls = Calls::default();
        let inherited = HashMap::from([(name(A), files(1))]);
        let mut descriptors = Descriptors::new(Box::new(Full(calls.clone())), inherited);
        let _ = descriptors.take(1, A);
        descriptors.record_opened(1, A, Keep::New(files(1)));
        assert_eq!(calls.take(), [(name(A), 0)], "those before are of another device");
        assert!(!descriptors.is_stored(1));
        descriptors.release(1);
        assert_eq!((calls.take(), descriptors.len()), (vec![], 0));
    }
}
