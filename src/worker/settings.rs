//! Settings of workers.

use crate::frame::Pool;
use crate::switch::HashKey;
use crate::wire::ProbeKeys;

/// Settings that all workers of a switch share.
#[derive(Debug, Clone, Copy)]
pub struct WorkerSetSettings {
    /// Number of workers, 1 to `MAX_WORKERS`.
    pub workers: u16,
    /// Frame pool.
    pub pool: &'static Pool,
    /// FDB capacity of each worker, in stations.
    pub fdb_capacity: u32,
    /// Hash key of the FDB.
    pub hash_key: HashKey,
    /// Keys that authenticate loop probes.
    pub probe_keys: ProbeKeys,
}
