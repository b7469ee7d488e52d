//! Requests to the switch. Each is idempotent, and is repeated while the switch starts again.

use std::path::Path;
use std::time::Duration;

use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

use super::error::{CniError, code};
use crate::control::api::client::{self, Client, escaped};
use crate::control::api::responses::{NetworkView, PortView};
use crate::control::health::{StoreHealth, SwitchStatus};
use crate::time::{self, MonoTime};

/// Pause before a request is repeated.
const PAUSE: Duration = Duration::from_millis(50);

/// Seconds to wait for a port to become ACTIVE.
pub const WAIT: u64 = 10;

/// MTU of a network that is made without one.
const DEFAULT_MTU: u16 = 1500;

/// A port that is not ACTIVE, and why.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NotActive {
    /// Reason, for programs.
    pub status_code: String,
    /// Reason, for people.
    pub status_reason: String,
}

/// The part of the answer to a change that the plugin reads.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    not_active: Vec<NotActive>,
}

/// A connection to the switch at a socket.
pub struct Switch {
    client: Client,
    runtime: Runtime,
    /// Until when requests are repeated.
    until: MonoTime,
}

impl Switch {
    /// The switch at `socket`. Requests that it does not answer are repeated for `patience`, all together.
    pub fn at(socket: &Path, patience: Duration) -> Result<Switch, CniError> {
        Ok(Switch { client: Client::new(socket), runtime: runtime()?, until: time::now() + patience })
    }

    /// Makes a request, and repeats it while nobody answers. What takes longer than the time that is left, and `more`, is given
    /// up.
    fn request<T>(
        &self,
        more: Duration,
        request: impl AsyncFn(&Client) -> Result<T, client::Error>,
    ) -> Result<T, client::Error> {
        let patience = self.until.since(time::now()) + more;
        let all = async {
            loop {
                match request(&self.client).await {
                    Err(error) if is_temporary(&error) && time::now() < self.until => sleep(PAUSE).await,
                    done => return done,
                }
            }
        };
        let late = || self.client.broken(format!("no answer within {} seconds", patience.as_secs()));
        self.runtime.block_on(async { timeout(patience, all).await }).map_err(|_| late())?
    }

    /// Time for a request that is answered at once.
    const SOON: Duration = Duration::from_secs(5);

    fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, client::Error> {
        self.request(Switch::SOON, async |client| client.get(path).await)
    }

    /// The status of the switch as a whole.
    pub fn status(&self) -> Result<SwitchStatus, client::Error> {
        self.get("/v1/status")
    }

    /// A port; `None` if there is none.
    pub fn port(&self, id: &str) -> Result<Option<PortView>, client::Error> {
        unless_missing(self.get(&format!("/v1/ports/{}", escaped(id))))
    }

    /// Ids of all ports with this owner.
    pub fn ports_of(&self, owner: &str) -> Result<Vec<String>, client::Error> {
        #[derive(Deserialize)]
        struct Id {
            port_id: String,
        }
        let ports: Vec<Id> = self.get(&format!("/v1/ports?owner={}&fields=port_id", escaped(owner)))?;
        Ok(ports.into_iter().map(|port| port.port_id).collect())
    }

    /// Makes a network unless it exists, and returns its MTU. One that exists is not changed: it may be of others, who may have
    /// created it a moment ago.
    pub fn ensure_network(&self, id: &str, mtu: Option<u16>, owner: &str) -> Result<u16, CniError> {
        let path = format!("/v1/networks/{}", escaped(id));
        let failed = |error: client::Error| CniError::of_switch(&error);
        loop {
            // The generation first: whoever creates the network afterwards moves it.
            let generation = self.status().map_err(failed)?.desired_generation;
            let found: Option<NetworkView> = unless_missing(self.get(&path)).map_err(failed)?;
            if let Some(NetworkView { mtu: found, .. }) = found {
                return match mtu.filter(|mtu| *mtu != found) {
                    Some(mtu) => {
                        let message = format!(
                            "network {id:?} has MTU {found}, and the network configuration says mtu = {mtu}; change one of them"
                        );
                        Err(CniError::new(code::INVALID_CONFIG, message))
                    }
                    None => Ok(found),
                };
            }
            let mut body = json!({ "owner": owner });
            if let Some(mtu) = mtu {
                body["mtu"] = mtu.into();
            }
            let put = async |client: &Client| client.request_at(generation, Method::PUT, &path, Some(&body)).await;
            match self.request(Switch::SOON, put) {
                Ok(_) => return Ok(mtu.unwrap_or(DEFAULT_MTU)),
                Err(client::Error::Refused { status: 412, .. }) if time::now() < self.until => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Makes a port as `body` says. Waits up to `wait` seconds for it to become ACTIVE; returns why it is not.
    pub fn put_port(&self, id: &str, body: &Value, wait: u64) -> Result<Option<NotActive>, client::Error> {
        let query = if wait > 0 { format!("?wait={wait}") } else { String::new() };
        let path = format!("/v1/ports/{}{query}", escaped(id));
        let put = async |client: &Client| client.request(Method::PUT, &path, Some(body)).await;
        let answer = self.request(Switch::SOON + Duration::from_secs(wait), put)?;
        let Answer { not_active } = self.client.parse(answer.as_bytes())?;
        Ok(not_active.into_iter().next())
    }

    /// Waits until the device of a port has been tried, and returns why it is not ACTIVE; `None` if there is no such port.
    pub fn await_tried(&self, id: &str) -> Result<Option<Option<NotActive>>, client::Error> {
        let until = time::now() + Switch::SOON;
        loop {
            let Some(port) = self.port(id)? else { return Ok(None) };
            let is_tried = !matches!(port.status_code.as_str(), "opening" | "reopening");
            if is_tried || until <= time::now() {
                let PortView { status, status_code, status_reason, .. } = port;
                let is_active = status == crate::control::api::responses::Status::Active;
                return Ok(Some((!is_active).then_some(NotActive { status_code, status_reason })));
            }
            self.sleep();
        }
    }

    /// Pauses before requests are repeated. Returns false if the time for that is over.
    pub fn pause(&self) -> bool {
        let is_over = self.until <= time::now();
        if !is_over {
            self.sleep();
        }
        !is_over
    }

    fn sleep(&self) {
        // A timer can only be made inside of the runtime.
        self.runtime.block_on(async { sleep(PAUSE).await });
    }

    /// Deletes a port with this owner; one that is gone is deleted. That of another owner stays.
    pub fn delete_port(&self, id: &str, owner: &str) -> Result<(), client::Error> {
        if self.port(id)?.is_none_or(|port| port.owner.as_deref() != Some(owner)) {
            return Ok(());
        }
        let path = format!("/v1/ports/{}", escaped(id));
        let delete = async |client: &Client| client.request(Method::DELETE, &path, None).await;
        unless_missing(self.request(Switch::SOON, delete)).map(drop)
    }

    /// Whether a container can be attached now; if not, why.
    pub fn is_available(&self) -> Result<(), String> {
        let status = self.status().map_err(|e| e.to_string())?;
        match (status.ready, status.state) {
            (false, _) if status.starting => Err("the switch is starting".into()),
            (false, _) => Err("the switch is stopping".into()),
            (true, StoreHealth::StoreFailed) => {
                let why = status.state_reason.unwrap_or_default();
                Err(format!("the switch cannot store changes and refuses them: {why}"))
            }
            (true, StoreHealth::Ok | StoreHealth::None) => Ok(()),
        }
    }
}

/// A runtime. The first one of the process also makes sockets that live as long as the process and hold the network namespace
/// in which it is made.
pub fn runtime() -> Result<Runtime, CniError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| CniError::new(code::IO, format!("cannot create a runtime: {e}")))
}

/// Whether the switch may answer a moment later: it is started again, or still starts.
fn is_temporary(error: &client::Error) -> bool {
    match error {
        client::Error::NoSwitch { .. } => true,
        client::Error::Broken { .. } => true,
        client::Error::Refused { status, .. } => *status == 503,
    }
}

/// `None` for what the switch does not have.
fn unless_missing<T>(answer: Result<T, client::Error>) -> Result<Option<T>, client::Error> {
    match answer {
        Err(client::Error::Refused { status: 404, .. }) => Ok(None),
        answer => answer.map(Some),
    }
}
