//! VLAN interfaces of a guest. Without kernel support for VLANs they are veths, and a thread tags and untags frames.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use rustix::event::Timespec;
use rustix::thread::nanosleep;
use vifswitch::wire::Mac;

use super::Namespace;
use super::nic::{Nic, tagged};
use super::setup::offloads;

/// Interfaces `v` and a VLAN id, up. Emulated ones are disconnected when dropped.
pub struct VlanInterfaces {
    done: Arc<AtomicBool>,
    tagging: Vec<JoinHandle<()>>,
}

impl VlanInterfaces {
    /// Over the netdev `base`: an interface for each VLAN id, with this address.
    pub fn new(namespace: &Namespace, base: &str, vlans: &[(u16, Mac)]) -> VlanInterfaces {
        let mut interfaces = VlanInterfaces { done: Arc::default(), tagging: Vec::new() };
        for &(vlan, mac) in vlans {
            let kernel =
                format!("-n {} link add link {base} name v{vlan} address {mac} type vlan id {vlan}", namespace.0);
            let made = Command::new("ip").args(kernel.split(' ')).output().unwrap();
            if !made.status.success() {
                namespace.ip(&format!("link add v{vlan} address {mac} type veth peer name w{vlan}"));
                namespace.ip(&format!("link set dev w{vlan} up"));
                // GSO packets and partial checksums would need shifted offsets, which only the kernel does.
                offloads(namespace, &format!("v{vlan}"), false);
                interfaces.tag(Nic::new(namespace, base), Nic::new(namespace, &format!("w{vlan}")), vlan);
            }
            namespace.ip(&format!("link set dev v{vlan} up"));
        }
        interfaces
    }

    /// Whether frames with offloads to be completed would lose them on the way.
    pub fn is_emulated(&self) -> bool {
        !self.tagging.is_empty()
    }

    fn tag(&mut self, trunk: Nic, inside: Nic, vlan: u16) {
        let done = self.done.clone();
        self.tagging.push(thread::spawn(move || {
            let [high, low] = vlan.to_be_bytes();
            while !done.load(Ordering::Relaxed) {
                while let Some(frame) = trunk.try_take_any() {
                    if frame
                        .get(12..16)
                        .is_some_and(|tag| tag[..2] == [0x81, 0] && tag[2] & 15 == high && tag[3] == low)
                    {
                        // Frames that do not fit are lost, as on a network card.
                        let _ = inside.try_send(&[&frame[..12], &frame[16..]].concat());
                    }
                }
                while let Some(frame) = inside.try_take_any() {
                    let _ = trunk.try_send(&tagged(&frame, vlan));
                }
                let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec: 50_000 });
            }
        }));
    }
}

impl Drop for VlanInterfaces {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        for tagging in self.tagging.drain(..) {
            assert!(tagging.join().is_ok() || thread::panicking());
        }
    }
}
