//! CHECK and STATUS: whether a container is attached as ADD has said, and whether one can be attached.

use super::config::{Mode, NetworkConfig};
use super::error::{CniError, code};
use super::interface::Place;
use super::ipam::Ipam;
use super::record::Records;
use super::result::AddResult;
use super::switch::Switch;
use super::version::Command;
use super::{Call, SHORT};
use crate::control::api::responses::{PortView, Status};
use crate::wire::Mac;

impl Call {
    /// Compares the attachment with the result of ADD.
    pub(super) fn check(&self) -> Result<(), CniError> {
        let Some(result) = self.prev_result()? else {
            return Err(CniError::new(code::INVALID_CONFIG, "CHECK needs prevResult, the result of ADD"));
        };
        let Some(netns) = self.environment.netns.as_deref() else {
            return Err(CniError::new(code::INVALID_ENVIRONMENT, "CHECK needs CNI_NETNS"));
        };
        self.carry_out(&Records::of(&self.config.state));
        let port = self.port_id();
        let name = self.environment.interface.as_str();
        let sandbox = netns.display().to_string();
        let is_ours = |of: &super::result::Interface| of.name == name && of.sandbox.as_ref() == Some(&sandbox);
        let Some(index) = result.interfaces.iter().position(is_ours) else {
            let message = format!("prevResult has no interface {name:?} in {sandbox}");
            return Err(CniError::new(code::INVALID_CONFIG, message));
        };
        let mac: Option<Mac> = result.interfaces[index].mac.as_ref().and_then(|text| text.parse().ok());
        let mut all = self.differences_of_port(&port, mac)?;
        let ours = AddResult {
            ips: result.ips.iter().filter(|ip| ip.interface == Some(index)).cloned().collect(),
            routes: result.routes.clone(),
            ..AddResult::default()
        };
        let place = Place { netns, name, port: &port };
        all.extend(place.differences(mac, &ours, self.config.mode == Mode::Container)?);
        if !all.is_empty() {
            let message = format!("{name} of container {:?}: {}", self.environment.container, all.join("; "));
            return Err(CniError::new(code::DIFFERS, message));
        }
        self.ipam()?.as_ref().map_or(Ok(()), Ipam::check)
    }

    fn differences_of_port(&self, port: &str, mac: Option<Mac>) -> Result<Vec<String>, CniError> {
        let NetworkConfig { socket, network, mode, .. } = &self.config;
        let found = Switch::at(socket, SHORT)?.port(port).map_err(|e| CniError::of_switch(&e))?;
        let Some(PortView { network_id, mac_address, status, status_code, status_reason, .. }) = found else {
            return Ok(vec![format!("the switch has no port {port:?}")]);
        };
        let mut all = Vec::new();
        if network_id != *network {
            all.push(format!("its port is on network {network_id:?}, not {network:?}"));
        }
        if let Some(mac) = mac.filter(|mac| mac.to_string() != mac_address) {
            all.push(format!("its port has MAC address {mac_address}, not {mac}"));
        }
        let may_wait = *mode != Mode::Container && status_code == "no_carrier";
        if status != Status::Active && status_code != "admin_down" && !may_wait {
            all.push(format!("its port is not ACTIVE ({status_code}): {status_reason}"));
        }
        Ok(all)
    }

    /// Whether containers can be attached: the switch answers and accepts changes, and the IPAM plugin is ready.
    pub(super) fn status(&self) -> Result<(), CniError> {
        let not_available = |why: String| CniError::new(code::NOT_AVAILABLE, why);
        Switch::at(&self.config.socket, SHORT)?.is_available().map_err(not_available)?;
        self.carry_out(&Records::of(&self.config.state));
        let ipam = self.ipam().map_err(|e| not_available(e.to_string()))?;
        ipam.map_or(Ok(()), |ipam| ipam.call_if_known(Command::Status))
    }
}
