//! Keys of uplinks, and constraints of groups.

use std::collections::HashMap;

use super::diagnostics::{Diagnostics, Path};
use super::error::kind;
use super::lowering::{Lowering, lower_each};
use super::model::{Config, Uplink, UplinkNetwork};
use super::raw;
use super::storm::{Of, Storm};
use crate::wire::Vid;

impl Lowering<'_, '_> {
    /// Lowers an `[[uplinks]]` item.
    pub fn uplink(&mut self, raw: &raw::Uplink) -> Uplink {
        let id = self.port_id("id", raw.id.as_deref());
        Uplink {
            group: self.label("group", raw.group.as_deref()),
            networks: self.uplink_networks(raw.networks.as_deref()),
            storm: self.storm(raw.storm.as_ref(), Of::Uplink).over(Storm::OFF),
            admin_state_up: raw.admin_state_up.unwrap_or(true),
            device: self.device(raw.device.as_ref(), &id),
            owner: self.label("owner", raw.owner.as_deref()),
            id,
        }
    }

    fn uplink_networks(&mut self, raw: Option<&[raw::UplinkNetwork]>) -> Vec<UplinkNetwork> {
        let remedy =
            r#"use networks such as { network_id = "net1", vlan = 120 }; without vlan its frames are untagged"#;
        if raw.is_none() && self.is_missing("networks") {
            self.report("networks", kind::MISSING, format!("required: the networks of the uplink; {remedy}"));
        }
        if raw.is_some_and(<[_]>::is_empty) {
            let message = format!("an uplink without a network forwards nothing; {remedy}");
            self.report("networks", kind::BAD_VALUE, message);
        }
        let path = self.path.key("networks");
        let tagged = lower_each(&path, raw, self.diagnostics, |mut at, table| {
            let number = at.number("vlan", table.vlan, 1..=4094, 0);
            // an invalid number is neither a tag nor its absence
            let is_judged = table.vlan.is_none() == (number == 0);
            (
                UplinkNetwork { network_id: at.id("network_id", table.network_id.as_deref()), vlan: Vid::new(number) },
                is_judged,
            )
        });
        let (mut networks, mut tags) = (HashMap::new(), HashMap::new());
        let mut all = Vec::new();
        for (index, (UplinkNetwork { network_id, vlan }, is_number)) in tagged.into_iter().enumerate() {
            let at = path.item(index);
            // a vlan of a wrong type is already reported, and looks absent
            let mut is_right = is_number && (vlan.is_some() || self.diagnostics.is_missing(&at.key("vlan")));
            if is_right && let Some(first) = tags.insert(vlan, index) {
                let first = self.diagnostics.location(&path.item(first));
                let message = match vlan {
                    Some(vlan) => format!(
                        "{first} has VLAN id {vlan} already; each network on an uplink needs \
                         its own"
                    ),
                    None => {
                        format!("required, because {first} has none: at most one network of an uplink is untagged")
                    }
                };
                self.diagnostics.push(&at.key("vlan"), kind::CONTRADICTION, message);
                is_right = false;
            }
            if !network_id.is_empty()
                && let Some(first) = networks.insert(network_id.clone(), index)
            {
                let first = self.diagnostics.location(&path.item(first));
                let message = format!("{first} is the same network; list each network of an uplink once");
                self.diagnostics.push(&at.key("network_id"), kind::CONTRADICTION, message);
                is_right = false;
            }
            all.push(UplinkNetwork { network_id: if is_right { network_id } else { String::new() }, vlan });
        }
        all
    }
}

/// Reports invalid groups: a group has two uplinks with the same networks.
pub(super) fn check_groups(config: &Config, diagnostics: &mut Diagnostics<'_>) {
    let path = |index: usize| Path::default().key("uplinks").item(index);
    let mut groups: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, uplink) in config.uplinks.iter().enumerate() {
        if let Some(group) = uplink.group.as_deref().filter(|group| !group.is_empty()) {
            groups.entry(group).or_default().push(index);
        }
    }
    for members in groups.values() {
        let first = members[0];
        for &more in members.iter().skip(2) {
            let message = format!(
                "{} and {} are in this group already, and a group is two uplinks; use another group",
                diagnostics.location(&path(first)),
                diagnostics.location(&path(members[1]))
            );
            diagnostics.push(&path(more).key("group"), kind::CONTRADICTION, message);
        }
        let is_judged =
            |uplink: &Uplink| !uplink.networks.is_empty() && uplink.networks.iter().all(|of| !of.network_id.is_empty());
        if let &[_, second, ..] = members.as_slice()
            && let (first_of, second_of) = (&config.uplinks[first], &config.uplinks[second])
            && is_judged(first_of)
            && is_judged(second_of)
            && !first_of.carries_same_as(second_of)
        {
            let message = format!(
                "differs from {}, the other uplink of the group; give both the same networks with the same VLAN ids",
                diagnostics.location(&path(first))
            );
            diagnostics.push(&path(second).key("networks"), kind::CONTRADICTION, message);
        }
    }
}
