//! `vifswitch doctor`: reports which device kinds netdevs support. Binds and changes nothing.

use std::process::ExitCode;

use clap::Args;

use super::table::printable;
use super::{CliError, complain, say, warn};
use crate::device::DeviceLocation;
use crate::device::doctor::{Report, inspect};
use crate::sys::link;
use crate::sys::netns::{Netns, within};
use crate::sys::tun;

#[derive(Debug, Args)]
pub struct Doctor {
    /// NAME or NETNS:NAME, where NETNS is a name or a path; default: all Ethernet netdevs of the host's namespace
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Exit code: 0 if each device is usable, 1 if not, 2 if an argument is no valid device name.
    pub fn run(self) -> ExitCode {
        let devices = match self.devices.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>() {
            Ok(devices) if !devices.is_empty() => devices,
            Ok(_) => match all() {
                Ok(devices) => devices,
                Err(e) => {
                    warn(format_args!("cannot list netdevs: {e}"));
                    return ExitCode::FAILURE;
                }
            },
            Err(error) => return complain(&error),
        };
        let reports: Vec<Report> = devices.iter().map(inspect).collect();
        let text = if self.json {
            format!("{:#}\n", serde_json::json!(reports))
        } else {
            let lines = |report: &Report| -> String {
                report.to_string().lines().map(|line| printable(line.to_owned()) + "\n").collect()
            };
            reports.iter().map(lines).collect::<Vec<_>>().join("\n")
        };
        let said = say(&text);
        if reports.iter().all(Report::is_usable) { said } else { ExitCode::FAILURE }
    }
}

fn parse(text: &str) -> Result<DeviceLocation, CliError> {
    let (netns, device) = match text.rsplit_once(':') {
        None => (Netns::Host, text),
        Some((netns, device)) if !matches!(netns, "" | "." | "..") => (Netns::written(netns), device),
        Some(_) => {
            return Err(CliError::Usage(format!("DEVICE {text:?}: namespace missing before ':'; write NETNS:NAME")));
        }
    };
    if !tun::is_name(device) {
        return Err(CliError::Usage(format!(
            "DEVICE {text:?}: {device:?} is no valid device name; use 1 to 15 bytes without spaces, '/', ':' and '%'"
        )));
    }
    Ok(DeviceLocation { device: device.to_owned(), netns })
}

fn all() -> std::io::Result<Vec<DeviceLocation>> {
    let found = within(&Netns::Host, link::all)??;
    let ethernet = found.into_iter().filter(|(_, link)| link.ethernet);
    Ok(ethernet.map(|(device, _)| DeviceLocation { device, netns: Netns::Host }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_a_name_with_or_without_a_namespace() {
        let parsed = |text| parse(text).map(|at| (at.netns, at.device)).ok();
        assert_eq!(parsed("eth0"), Some((Netns::Host, "eth0".into())));
        assert_eq!(parsed("blue:eth0"), Some((Netns::Named("blue".into()), "eth0".into())));
        assert_eq!(parsed("/proc/1/ns/net:eth0"), Some((Netns::At("/proc/1/ns/net".into()), "eth0".into())));
        for wrong in ["", ":eth0", "blue:", "..:eth0", "sixteen-bytes-16", "a b"] {
            assert_eq!(parsed(wrong), None, "{wrong:?}");
        }
    }
}
