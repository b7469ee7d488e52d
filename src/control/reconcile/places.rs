//! Where the ports of a new configuration come from. Those of VMs that have not changed are kept as they are, so that a change
//! does not make the endpoints of all ports again.

use std::collections::HashMap;

use super::{Controller, Port};
use crate::control::compile::endpoints::{self, Endpoint, Kind, Layout};
use crate::control::compile::settings;
use crate::control::config::{Config, Vm};

/// Where a port of a new configuration comes from.
pub(super) enum Place {
    /// From the port with this index: its VM has not changed, has this index now, and the first of its ports these indexes before
    /// and now.
    Unchanged { before: usize, vm: usize, firsts: (usize, usize) },
    /// It is new, or may have changed.
    Made(Box<Endpoint>),
}

impl Controller {
    /// Where each port of the configuration comes from. `old`: those of the configuration before, in its order.
    pub(super) fn places(&self, before: &Config, old: &[Option<Port>]) -> Vec<Place> {
        let layout = Layout::new(&self.config, &self.ids);
        let (firsts_before, firsts) = (endpoints::firsts(before), endpoints::firsts(&self.config));
        // What else the endpoints of a VM depend on.
        let may_keep = before.networks == self.config.networks
            && settings::fill(before) == settings::fill(&self.config)
            && old.len() == before.ports().count() + before.uplinks.len();
        let vms_before: HashMap<*const Vm, usize> = match may_keep {
            true => before.vms.iter().enumerate().map(|(index, vm)| (vm.address(), index)).collect(),
            false => HashMap::new(),
        };
        let made = |endpoint: Endpoint| Place::Made(endpoint.into());
        let mut places = Vec::with_capacity(old.len());
        for (index, vm) in self.config.vms.iter().enumerate() {
            match vms_before.get(&vm.address()) {
                Some(&was) => {
                    let firsts = (firsts_before[was], firsts[index]);
                    let unchanged = |position| Place::Unchanged { before: firsts.0 + position, vm: index, firsts };
                    places.extend((0..vm.ports.len()).map(unchanged));
                }
                None => places.extend(layout.of_vm(index).map(made)),
            }
        }
        places.extend(layout.uplinks().map(made));
        places
    }
}

/// Indexes of the ports before that are not kept, by key.
pub(super) fn places_before(places: &[Place], old: &[Option<Port>]) -> HashMap<(Kind, String), usize> {
    let mut is_kept = vec![false; old.len()];
    for place in places {
        if let Place::Unchanged { before, .. } = place {
            is_kept[*before] = true;
        }
    }
    let others = old.iter().enumerate().filter(|(index, _)| !is_kept[*index]);
    let key = |port: &Port| {
        let (kind, name) = port.endpoint.key();
        (kind, name.to_owned())
    };
    others.filter_map(|(index, port)| Some((key(port.as_ref()?), index))).collect()
}
