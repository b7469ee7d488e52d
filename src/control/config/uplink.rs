//! The keys of uplinks, and what two of one group have to have in common.

use std::collections::HashMap;

use super::meaning::{Table, each};
use super::meant::{Carried, Config, Uplink};
use super::notes::{Notes, Path};
use super::problem::kind;
use super::storm::{Of, Storm};
use super::written;
use crate::wire::Vid;

impl Table<'_, '_> {
    /// What one of `[[uplinks]]` means.
    pub fn uplink(&mut self, written: &written::Uplink) -> Uplink {
        let id = self.port_id("id", written.id.as_deref());
        Uplink {
            group: written.group.as_deref().map(|group| self.id("group", Some(group))),
            networks: self.carried(written.networks.as_deref()),
            storm: self.storm(written.storm.as_ref(), Of::Uplink).over(Storm::OFF),
            admin_state_up: written.admin_state_up.unwrap_or(true),
            device: self.device(written.device.as_ref(), &id),
            id,
        }
    }

    fn carried(&mut self, written: Option<&[written::Carried]>) -> Vec<Carried> {
        let remedy = r#"one looks like { network_id = "net1", vlan = 120 }, without vlan its frames are untagged"#;
        if written.is_none() && self.misses("networks") {
            self.note("networks", kind::MISSING, format!("must be given: the networks that it carries; {remedy}"));
        }
        if written.is_some_and(<[_]>::is_empty) {
            let message = format!("an uplink without a network carries nothing; give it one, {remedy}");
            self.note("networks", kind::BAD_VALUE, message);
        }
        let path = self.path.key("networks");
        let carried = each(&path, written, self.notes, |mut at, table| {
            let number = at.number("vlan", table.vlan, 1..=4094, 0);
            // a number that is wrong is no tag, and not the lack of one either
            let is_judged = table.vlan.is_none() == (number == 0);
            (
                Carried { network_id: at.id("network_id", table.network_id.as_deref()), vlan: Vid::new(number) },
                is_judged,
            )
        });
        let (mut networks, mut tags) = (HashMap::new(), HashMap::new());
        let mut all = Vec::new();
        for (index, (Carried { network_id, vlan }, is_number)) in carried.into_iter().enumerate() {
            let at = path.item(index);
            // a vlan that was of a wrong type has been noted, and looks as if it were not there
            let mut is_right = is_number && (vlan.is_some() || self.notes.misses(&at.key("vlan")));
            if is_right && let Some(first) = tags.insert(vlan, index) {
                let first = self.notes.place(&path.item(first));
                let message = match vlan {
                    Some(vlan) => format!("{first} has the vlan {vlan} already; each network on an uplink has its own"),
                    None => {
                        format!("must be given, because {first} has none: one network of an uplink can be untagged")
                    }
                };
                self.notes.add(&at.key("vlan"), kind::CONTRADICTION, message);
                is_right = false;
            }
            if !network_id.is_empty()
                && let Some(first) = networks.insert(network_id.clone(), index)
            {
                let first = self.notes.place(&path.item(first));
                let message = format!("{first} is this network; an uplink carries each once, under one tag or none");
                self.notes.add(&at.key("network_id"), kind::CONTRADICTION, message);
                is_right = false;
            }
            all.push(Carried { network_id: if is_right { network_id } else { String::new() }, vlan });
        }
        all
    }
}

/// Notes what is wrong with groups: they are two uplinks that carry the same.
pub(super) fn check_groups(config: &Config, notes: &mut Notes<'_>) {
    let path = |index: usize| Path::default().key("uplinks").item(index);
    let mut groups: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, uplink) in config.uplinks.iter().enumerate() {
        if let Some(group) = uplink.group.as_deref().filter(|group| !group.is_empty()) {
            groups.entry(group).or_default().push(index);
        }
    }
    for members in groups.values() {
        let first = members[0];
        if let [alone] = members[..] {
            let message = "it is alone in its group, and a group is two uplinks, one of which stands by for the other; \
                           give a second one the same, or leave the key out";
            notes.add(&path(alone).key("group"), kind::CONTRADICTION, message);
        }
        for &more in members.iter().skip(2) {
            let message = format!(
                "{} and {} are this group already, and a group is two uplinks; name another group",
                notes.place(&path(first)),
                notes.place(&path(members[1]))
            );
            notes.add(&path(more).key("group"), kind::CONTRADICTION, message);
        }
        let is_judged =
            |uplink: &Uplink| !uplink.networks.is_empty() && uplink.networks.iter().all(|of| !of.network_id.is_empty());
        if let &[_, second, ..] = members.as_slice()
            && let (first_of, second_of) = (&config.uplinks[first], &config.uplinks[second])
            && is_judged(first_of)
            && is_judged(second_of)
            && !first_of.carries_what(second_of)
        {
            let message = format!(
                "not what {} carries, which stands in for it; the uplinks of one group carry the same networks, each \
                 with the same vlan",
                notes.place(&path(first))
            );
            notes.add(&path(second).key("networks"), kind::CONTRADICTION, message);
        }
    }
}
