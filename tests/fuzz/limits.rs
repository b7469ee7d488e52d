//! How many stations each worker has learned behind the ports at which that is limited. The switch is asked for no
//! more than its table.

use std::collections::HashMap;

use vifswitch::switch::{FdbEntry, PortId, Station};

use crate::topology::{PortModel, SecurityMode, Topology};
use support::lab::Lab;

/// The tables as they were when the present policies began: what is in them may be more than these allow.
pub struct Tables {
    /// By worker: how many stations behind each port.
    began: Vec<HashMap<PortId, usize>>,
    /// Where there is only one worker, and so nobody hears of stations: those behind each port when last looked at.
    last: Option<HashMap<PortId, Vec<Station>>>,
}

impl Tables {
    pub fn begin(lab: &Lab) -> Tables {
        let counts =
            |worker| subport_of(lab, worker).into_iter().map(|(port, stations)| (port, stations.len())).collect();
        let last = (lab.workers.len() == 1).then(|| subport_of(lab, 0));
        Tables { began: (0..lab.workers.len()).map(counts).collect(), last }
    }

    /// Whether no worker has learned more behind a port than its limit, or than it had; and whether it was the new
    /// ones that were refused.
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

    /// What was learned behind a port with a limit is there, or has moved. No world lasts until it has aged.
    fn check_displaced(&mut self, topology: &Topology, lab: &Lab) -> Result<(), String> {
        let Some(last) = &mut self.last else { return Ok(()) };
        let fdb = lab.workers[0].switch().fdb();
        let is_known = |station: Station| fdb.find(station, fdb.hash(station), 0).is_some();
        for (at, place) in topology.places.iter().enumerate().filter(|(_, place)| place.limit.is_some()) {
            let mut stations = last.get(&place.id).into_iter().flatten();
            let own = |station: &Station| station.mac().octets() == place.mac;
            // A full table takes from every port, and its own address has a place only as long as it is not pinned.
            if fdb.len() < fdb.capacity()
                && let Some(lost) = stations.find(|&&station| !own(&station) && !is_known(station))
            {
                return Err(format!("station {} is known behind port {at} no more, which has a limit", lost.mac()));
            }
        }
        *last = subport_of(lab, 0);
        Ok(())
    }
}

/// How many stations may have been learned behind a port that has these, if there is a limit.
fn most(place: &PortModel, stations: &[Station]) -> Option<usize> {
    let (limit, _) = place.limit.filter(|_| place.guarding == SecurityMode::Off)?;
    // Its own address does not count.
    Some(limit + usize::from(stations.iter().any(|station| station.mac().octets() == place.mac)))
}

/// The stations that a worker knows, by port.
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
