//! MAC limits: checks the number of stations in each worker's FDB behind limited ports. Reads only the FDB of the
//! switch.

use std::collections::HashMap;

use vifswitch::switch::{FdbEntry, PortId, Station};

use crate::topology::{PortModel, SecurityMode, Topology};
use support::lab::Lab;

/// FDB contents when the current policies were set: they may exceed the limits.
pub struct Tables {
    /// By worker: number of stations behind each port.
    began: Vec<HashMap<PortId, usize>>,
    /// With one worker, which receives no MAC updates: stations behind each port at the last check.
    last: Option<HashMap<PortId, Vec<Station>>>,
}

impl Tables {
    pub fn begin(lab: &Lab) -> Tables {
        let counts =
            |worker| subport_of(lab, worker).into_iter().map(|(port, stations)| (port, stations.len())).collect();
        let last = (lab.workers.len() == 1).then(|| subport_of(lab, 0));
        Tables { began: (0..lab.workers.len()).map(counts).collect(), last }
    }

    /// Checks that no worker has learned more behind a port than its limit or its earlier number, and that new
    /// stations were refused rather than old ones evicted.
    pub fn check(&mut self, topology: &Topology, lab: &Lab) -> Result<(), String> {
        if !topology.places.iter().any(|place| place.limit.is_some()) {
            return Ok(());
        }
        for (worker, began) in self.began.iter().enumerate() {
            let tables = subport_of(lab, worker);
            for (at, place) in topology.places.iter().enumerate() {
                let Some(stations) = tables.get(&place.id) else { continue };
                let Some(limit) = most(place, stations) else { continue };
                let most = limit.max(began.get(&place.id).copied().unwrap_or_default());
                if stations.len() > most {
                    let count = stations.len();
                    return Err(format!("worker {worker}: {count} stations behind port {at}, of at most {most}"));
                }
            }
        }
        self.check_displaced(topology, lab)
    }

    /// Checks that stations learned behind a limited port are still there or have moved. No world lasts until they
    /// age.
    fn check_displaced(&mut self, topology: &Topology, lab: &Lab) -> Result<(), String> {
        let Some(last) = &mut self.last else { return Ok(()) };
        let fdb = lab.workers[0].switch().fdb();
        let is_known = |station: Station| fdb.find(station, fdb.hash(station), 0).is_some();
        for (at, place) in topology.places.iter().enumerate().filter(|(_, place)| place.limit.is_some()) {
            let mut stations = last.get(&place.id).into_iter().flatten();
            let own = |station: &Station| station.mac().octets() == place.mac;
            // A full table evicts entries of every port; the port's own address has an entry only while not pinned.
            if fdb.len() < fdb.capacity()
                && let Some(lost) = stations.find(|&&station| !own(&station) && !is_known(station))
            {
                return Err(format!("station {} behind limited port {at} was evicted", lost.mac()));
            }
        }
        *last = subport_of(lab, 0);
        Ok(())
    }
}

/// Maximum number of stations behind a port with these stations, if it is limited.
fn most(place: &PortModel, stations: &[Station]) -> Option<usize> {
    let (limit, _) = place.limit.filter(|_| place.guarding == SecurityMode::Off)?;
    // The port's own address does not count.
    Some(limit + usize::from(stations.iter().any(|station| station.mac().octets() == place.mac)))
}

/// Stations known to a worker, by port.
fn subport_of(lab: &Lab, worker: usize) -> HashMap<PortId, Vec<Station>> {
    let fdb = lab.workers[worker].switch().fdb();
    let mut page: Vec<FdbEntry> = Vec::with_capacity(fdb.capacity());
    assert_eq!(fdb.page(0, &mut page), None, "the whole table is one page");
    let mut after: HashMap<PortId, Vec<Station>> = HashMap::new();
    for learned in page {
        after.entry(learned.port).or_default().push(learned.station);
    }
    after
}
