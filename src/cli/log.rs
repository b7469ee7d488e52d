//! `vifswitch log`: levels of the log of a running switch.

use clap::Args;
use hyper::Method;
use serde_json::json;

use super::{CliError, Connection, block_on};
use crate::control::api::LogView;
use crate::control::api::client::Client;
use crate::control::log_settings::LogLevel;

/// The arguments of `log`.
#[derive(Debug, Args)]
pub struct Log {
    /// New level: off, error, warn, info, debug or trace; for single modules as in `info,vifswitch::control::api=debug`
    #[arg(value_name = "LEVEL")]
    level: Option<String>,
    #[command(flatten)]
    at: Connection,
}

impl Log {
    /// Sends the request; returns the text to print.
    pub fn run(&self) -> Result<String, CliError> {
        let client = Client::new(&self.at.socket);
        let answer = match &self.level {
            Some(level) => {
                level.parse::<LogLevel>().map_err(CliError::Usage)?;
                block_on(&client, client.request(Method::PUT, "/v1/log", Some(&json!({ "level": level }))))?
            }
            None => block_on(&client, client.get_json("/v1/log"))?,
        };
        if self.at.json {
            return Ok(answer + "\n");
        }
        let LogView { level, format, lines_lost, lines_left_out } = client.parse(answer.as_bytes())?;
        let format = serde_json::to_value(format).unwrap_or_default();
        let format = format.as_str().unwrap_or_default();
        Ok(format!("level {level}\nformat {format}\n{lines_lost} lines lost, {lines_left_out} left out\n"))
    }
}
