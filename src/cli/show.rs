//! `vifswitch show`: prints the state of a running switch as tables or JSON.

use std::collections::HashMap;

use clap::{Args, ValueEnum};

use super::table::Column::{self, Number, Text};
use super::table::{bytes, count, draw, duration, empty_cell};
use super::{CliError, Connection, audit, block_on, contained};
use crate::control::api::client::{Client, Error};
use crate::control::api::responses::{
    AuditView, CountsView, DeviceView, Direction, DropView, NetworkView, PortView, StationKind, StationView, Status,
    UplinkNetworkView, UplinkView, VmView, WorkerView,
};
use crate::control::config::{Named, UnknownUnicast};

/// The arguments of the command.
#[derive(Debug, Args)]
pub struct Show {
    /// What to show
    #[arg(value_enum, default_value_t = What::Ports)]
    what: What,
    /// With `drops`: check that every frame is accounted for; exit code 1 if not
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    at: Connection,
}

/// Text to print, and whether the command succeeded.
#[derive(Debug)]
pub struct Output {
    /// The text.
    pub text: String,
    /// `false`: the counter audit failed.
    pub success: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Ports, with status and traffic
    Ports,
    /// Uplinks, with their networks
    Uplinks,
    /// VMs, with sums over their ports
    Vms,
    /// Networks
    Networks,
    /// Forwarding database: the port of each station
    Fdb,
    /// Worker threads
    Workers,
    /// Dropped frames by port, direction and reason
    Drops,
    /// Active and recent storms
    Storms,
    /// Active and recent loops, and their mitigation
    Loops,
}

impl What {
    fn path(self) -> &'static str {
        match self {
            What::Ports => "/v1/ports",
            What::Uplinks => "/v1/uplinks",
            What::Vms => "/v1/vms",
            What::Networks => "/v1/networks",
            What::Fdb => "/v1/fdb",
            What::Workers => "/v1/workers",
            What::Drops => "/v1/drops",
            What::Storms => "/v1/storms",
            What::Loops => "/v1/loops",
        }
    }
}

impl Show {
    /// Sends the request; returns the text to print.
    pub fn run(self) -> Result<Output, CliError> {
        if self.verify && self.what != What::Drops {
            return Err(CliError::Usage("--verify is valid for `show drops` only".into()));
        }
        let client = Client::new(&self.at.socket);
        Ok(block_on(&client, async {
            if self.verify {
                return self.audit(&client).await;
            }
            Ok(Output { text: self.request(&client).await?, success: true })
        })?)
    }

    async fn audit(&self, client: &Client) -> Result<Output, Error> {
        let json = client.get_json("/v1/audit").await?;
        let view: AuditView = serde_json::from_str(&json).map_err(|e| client.broken(e))?;
        let text = if self.at.json { json + "\n" } else { audit::text(&view) };
        Ok(Output { text, success: view.balanced })
    }

    async fn request(&self, client: &Client) -> Result<String, Error> {
        let path = self.what.path();
        if self.at.json {
            return client.get_json(path).await.map(|json| json + "\n");
        }
        Ok(match self.what {
            What::Ports => ports(&client.get::<Vec<_>>(path).await?),
            What::Uplinks => uplinks(&client.get::<Vec<_>>(path).await?),
            What::Vms => vms(&client.get::<Vec<_>>(path).await?),
            What::Networks => networks(&client.get::<Vec<_>>(path).await?),
            What::Fdb => fdb(&client.get::<Vec<_>>(path).await?, &client.get::<Vec<_>>(What::Ports.path()).await?),
            What::Workers => workers(&client.get::<Vec<_>>(path).await?),
            What::Drops => drops(&client.get::<Vec<_>>(path).await?),
            What::Storms => contained::storms(&client.get::<Vec<_>>(path).await?),
            What::Loops => contained::loops(&client.get::<Vec<_>>(path).await?),
        })
    }
}

fn ports(ports: &[PortView]) -> String {
    let own = [Text("VM"), Number("#"), Text("PORT"), Text("NETWORK"), Text("MAC"), Text("SECURITY")];
    let has_reasons = ports.iter().any(|p| !p.status_reason.is_empty());
    let row = |p: &PortView| {
        let own = [
            p.device_id.clone(),
            p.position.to_string(),
            p.port_id.clone(),
            p.network_id.clone(),
            p.mac_address.clone(),
            security(p),
        ];
        let way = match (&p.parent, p.vlan) {
            (Some(parent), Some(vlan)) => format!("vlan {vlan} of {parent}"),
            _ => device(&p.device),
        };
        joined(own, shared(way, p.status, p.worker, &p.counts, &p.status_reason))
    };
    draw::<13>(joined(own, shared_columns(has_reasons)), ports.iter().map(row), "no ports")
}

/// Port security, and settings that differ from their defaults.
fn security(port: &PortView) -> String {
    let mut all = vec![port.port_security.clone()];
    all.extend((port.unknown_unicast == UnknownUnicast::Suppress.name()).then(|| port.unknown_unicast.clone()));
    all.extend(port.promiscuous.then(|| "promiscuous".into()));
    all.extend(port.mac_limit.map(|limit| format!("limit={limit}")));
    // A switch of an earlier version sends no `activation`.
    all.extend((port.admin_state_up && !port.pinned && !port.activation.is_empty()).then(|| "not pinned".into()));
    all.join(",")
}

/// Columns that ports and uplinks have in common; they follow the specific ones.
fn shared_columns(has_reasons: bool) -> [Column; 7] {
    let reason = if has_reasons { "REASON" } else { "" };
    [Text("DEVICE"), Text("STATUS"), Number("WORKER"), Number("RX"), Number("TX"), Number("DROPS"), Text(reason)]
}

fn shared(device: String, status: Status, worker: Option<u16>, counts: &CountsView, reason: &str) -> [String; 7] {
    [
        device,
        status.name().into(),
        worker.map_or_else(empty_cell, |worker| worker.to_string()),
        bytes(counts.rx_bytes),
        bytes(counts.tx_bytes),
        counts.drops.values().sum::<u64>().to_string(),
        reason.into(),
    ]
}

fn joined<T, const OWN: usize, const ALL: usize>(own: [T; OWN], shared: [T; 7]) -> [T; ALL] {
    const { assert!(ALL == OWN + 7) };
    let mut all = own.into_iter().chain(shared);
    std::array::from_fn(|_| all.next().expect("it is as long as both"))
}

fn device(device: &DeviceView) -> String {
    match &device.netns {
        Some(netns) => format!("{}@{netns}", device.name),
        None => device.name.clone(),
    }
}

fn uplinks(uplinks: &[UplinkView]) -> String {
    let own = [Text("UPLINK"), Text("GROUP"), Text("ACTIVE"), Text("NETWORKS"), Text("KIND")];
    let has_reasons = uplinks.iter().any(|u| !u.status_reason.is_empty());
    let tagged = |of: &UplinkNetworkView| match of.vlan {
        Some(vlan) => format!("{}:{vlan}", of.network_id),
        None => of.network_id.clone(),
    };
    let row = |u: &UplinkView| {
        let own = [
            u.uplink_id.clone(),
            u.group.clone().unwrap_or_else(empty_cell),
            if u.active { "yes".into() } else { "no".into() },
            u.networks.iter().map(tagged).collect::<Vec<_>>().join(","),
            u.device.mode.as_ref().map_or_else(|| u.device.kind.clone(), |mode| format!("{} ({mode})", u.device.kind)),
        ];
        joined(own, shared(device(&u.device), u.status, u.worker, &u.counts, &u.status_reason))
    };
    draw::<12>(joined(own, shared_columns(has_reasons)), uplinks.iter().map(row), "no uplinks")
}

fn vms(vms: &[VmView]) -> String {
    let columns =
        [Text("VM"), Number("PORTS"), Number("UP"), Text("NETWORKS"), Number("RX"), Number("TX"), Number("DROPS")];
    let row = |vm: &VmView| {
        [
            vm.device_id.clone(),
            vm.ports.len().to_string(),
            vm.active.to_string(),
            vm.networks.join(","),
            bytes(vm.rx_bytes),
            bytes(vm.tx_bytes),
            vm.drops.to_string(),
        ]
    };
    draw(columns, vms.iter().map(row), "no VMs")
}

fn networks(networks: &[NetworkView]) -> String {
    let columns = [
        Text("NETWORK"),
        Number("MTU"),
        Number("PORTS"),
        Number("UP"),
        Number("STATIONS"),
        Number("LIMIT"),
        Number("AGEING"),
    ];
    let row = |n: &NetworkView| {
        [
            n.network_id.clone(),
            n.mtu.to_string(),
            n.ports.to_string(),
            n.active.to_string(),
            n.stations.to_string(),
            n.fdb_limit.to_string(),
            duration(n.ageing_seconds.into()),
        ]
    };
    draw(columns, networks.iter().map(row), "no networks")
}

fn fdb(stations: &[StationView], ports: &[PortView]) -> String {
    let vms: HashMap<_, _> = ports.iter().map(|p| (&p.port_id, &p.device_id)).collect();
    let columns = [Text("NETWORK"), Text("MAC"), Text("PORT"), Text("VM"), Text("KIND"), Number("AGE")];
    let row = |s: &StationView| {
        let (kind, age) = match s.kind {
            StationKind::Learned => ("learned", duration(s.age_seconds.into())),
            StationKind::Dampened => ("dampened", empty_cell()),
            StationKind::Pinned => ("pinned", empty_cell()),
        };
        [
            s.network_id.clone(),
            s.mac_address.clone(),
            s.port_id.clone(),
            match s.uplink_id {
                Some(_) => "(uplink)".into(),
                None => vms.get(&s.port_id).map_or_else(empty_cell, |&vm| vm.clone()),
            },
            kind.into(),
            age,
        ]
    };
    draw(columns, stations.iter().map(row), "no stations")
}

fn workers(workers: &[WorkerView]) -> String {
    let columns = [
        Number("WORKER"),
        Number("CORE"),
        Text("POLL"),
        Number("QUEUES"),
        Number("STATIONS"),
        Number("LIMIT"),
        Number("REFUSED"),
        Number("POLLS"),
        Number("BUSY"),
        Number("BUSY TIME"),
        Number("SLEEPS"),
        Number("UPDATES LOST"),
    ];
    let row = |w: &WorkerView| {
        [
            w.worker.to_string(),
            w.core.to_string(),
            w.poll.clone(),
            w.queues.to_string(),
            w.stations.to_string(),
            w.stations_limit.to_string(),
            w.stations_refused.to_string(),
            count(w.polls),
            count(w.busy_polls),
            format!("{:.1}s", w.busy_seconds),
            count(w.sleeps),
            w.updates_lost.to_string(),
        ]
    };
    draw(columns, workers.iter().map(row), "no workers")
}

fn drops(drops: &[DropView]) -> String {
    let columns = [Text("PORT"), Text("VM"), Text("DIRECTION"), Text("REASON"), Number("FRAMES"), Text("DESCRIPTION")];
    let row = |d: &DropView| {
        [
            d.port_id.clone(),
            if d.uplink_id.is_some() { "(uplink)".into() } else { d.device_id.clone() },
            match d.direction {
                Direction::In => "in".into(),
                Direction::Out => "out".into(),
            },
            d.reason.clone(),
            d.frames.to_string(),
            d.description.clone(),
        ]
    };
    draw(columns, drops.iter().map(row), "no drops")
}
