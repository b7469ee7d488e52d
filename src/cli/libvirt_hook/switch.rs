//! The switch: reads what has the hook's label, and replaces it in one request, all or nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::time::sleep;

use super::LibvirtHook;
use super::edit::{Edit, Stale, edited};
use super::error::HookError;
use super::records::Locked;
use crate::control::api::client::{Client, Error, escaped};
use crate::control::health::SwitchStatus;
use crate::control::reason::ReasonCode;
use crate::time;

/// Time for which a domain that starts waits for a switch that is being restarted.
const PATIENCE: Duration = Duration::from_secs(2);

/// Pause before a request is repeated.
const PAUSE: Duration = Duration::from_millis(50);

/// Attempts at a change while others change the switch too.
const ATTEMPTS: usize = 20;

/// The switch at a socket.
pub struct Switch<'a> {
    client: Client,
    label: &'a str,
    runtime: Runtime,
}

impl<'a> Switch<'a> {
    /// The one that the hook's arguments name.
    pub fn of(hook: &'a LibvirtHook) -> Result<Switch<'a>, HookError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(HookError::file("create a runtime for", Path::new("the API")))?;
        Ok(Switch { client: Client::new(&hook.socket), label: &hook.owner, runtime })
    }

    /// Makes an edit, and deletes the ports of domains that stopped while the switch was down. A switch that is being restarted
    /// is waited for, if the domain cannot start without it.
    pub fn edit(&self, records: &Locked, edit: &Edit) -> Result<(), HookError> {
        let gone: Vec<(String, super::records::Record)> =
            records.all().into_iter().filter(|(_, record)| record.gone).collect();
        let vms: BTreeSet<String> = gone.iter().map(|(_, record)| record.vm.clone()).collect();
        let until = match edit {
            Edit::Put { is_running: false, .. } | Edit::Add { .. } => time::now() + PATIENCE,
            _ => time::now(),
        };
        self.runtime.block_on(async {
            for attempt in 1.. {
                match self.attempt(edit, &vms).await {
                    Ok(()) => break,
                    Err(Error::Refused { status: 412, .. }) if attempt < ATTEMPTS => {}
                    Err(Error::NoSwitch { .. } | Error::Refused { status: 503, .. }) if time::now() < until => {
                        sleep(PAUSE).await;
                    }
                    Err(e) => return Err(e),
                }
            }
            Ok(())
        })?;
        for (uuid, record) in gone {
            if record.incoming || record.starting {
                records.write(&uuid, &super::records::Record { gone: false, ..record })?;
            } else {
                records.remove(&uuid)?;
            }
        }
        Ok(())
    }

    async fn attempt(&self, edit: &Edit, gone: &BTreeSet<String>) -> Result<(), Error> {
        let label = escaped(self.label);
        // Read before the configuration: a change between the two is refused below.
        let status: SwitchStatus = self.client.get("/v1/status").await?;
        let config: Value = self.client.get("/v1/config").await?;
        let down: Vec<PortStatus> =
            self.client.get(&format!("/v1/ports?owner={label}&status=DOWN&fields=port_id,status_code")).await?;
        let is_gone = |port: &PortStatus| port.status_code == ReasonCode::NoDevice.name();
        let ports = down.into_iter().filter(is_gone).map(|port| port.port_id).collect();
        let stale = Stale { vms: gone.clone(), ports };
        let Some(body) = edited(&config, self.label, edit, &stale).body else { return Ok(()) };
        let path = format!("/v1/config?owner={label}");
        self.client.request_at(status.desired_generation, Method::PUT, &path, Some(&body)).await.map(drop)
    }
}

/// Status of a port, as far as it is asked for.
#[derive(Debug, serde::Deserialize)]
struct PortStatus {
    port_id: String,
    status_code: String,
}
