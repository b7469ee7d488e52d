//! How many stations each worker has learned behind the ports at which that is limited. The switch is asked for no
//! more than its table.

use std::collections::HashMap;

use vifswitch::switch::{Learned, PortId};

use crate::common::Lab;
use crate::town::{Address, Guarding, Place, Town};

/// The tables as they were when the present policies began: what is in them may be more than these allow.
pub struct Tables {
    /// By worker: how many stations behind each port.
    began: Vec<HashMap<PortId, usize>>,
}

impl Tables {
    pub fn begin(lab: &Lab) -> Tables {
        let counts = |worker| behind(lab, worker).into_iter().map(|(port, stations)| (port, stations.len())).collect();
        Tables { began: (0..lab.workers.len()).map(counts).collect() }
    }

    /// Whether no worker has learned more behind a port than its limit, or than it had.
    pub fn check(&self, town: &Town, lab: &Lab) -> Result<(), String> {
        if !town.places.iter().any(|place| place.limit.is_some()) {
            return Ok(());
        }
        for (worker, began) in self.began.iter().enumerate() {
            let tables = behind(lab, worker);
            for (at, place) in town.places.iter().enumerate() {
                let Some(stations) = tables.get(&place.id) else { continue };
                let Some(limit) = most(place, stations) else { continue };
                let most = limit.max(began.get(&place.id).copied().unwrap_or_default());
                if stations.len() > most {
                    let count = stations.len();
                    return Err(format!("worker {worker}: {count} stations behind port {at}, of at most {most}"));
                }
            }
        }
        Ok(())
    }
}

/// How many stations may have been learned behind a port that has these, if there is a limit.
fn most(place: &Place, stations: &[Address]) -> Option<usize> {
    let (limit, _) = place.limit.filter(|_| place.guarding == Guarding::Off)?;
    // Its own address does not count.
    Some(limit + usize::from(stations.contains(&place.mac)))
}

/// The stations that a worker knows, by port.
fn behind(lab: &Lab, worker: usize) -> HashMap<PortId, Vec<Address>> {
    let fdb = lab.workers[worker].switch().fdb();
    let mut page: Vec<Learned> = Vec::with_capacity(fdb.capacity());
    assert_eq!(fdb.page(0, &mut page), None, "the whole table is one page");
    let mut behind: HashMap<PortId, Vec<Address>> = HashMap::new();
    for learned in page {
        behind.entry(learned.port).or_default().push(learned.station.mac().octets());
    }
    behind
}
