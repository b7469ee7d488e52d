//! `vifswitch events`: what happened, one line each.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::SystemTime;

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::table::printable;
use super::{Failure, Where, block_on};
use crate::control::client::{Client, escaped};
use crate::time;

/// The arguments of the command.
#[derive(Debug, Args)]
pub struct Events {
    /// Stay, and tell what happens
    #[arg(long)]
    follow: bool,
    /// Only what happened since then: a time as 2025-11-03T09:00:00Z, or how long ago, as 10m
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<String>,
    #[command(flatten)]
    at: Where,
}

/// An event as this program shows it; a switch of another version may have other kinds.
#[derive(Debug, Deserialize)]
struct Line {
    time: String,
    kind: String,
    vm: Option<String>,
    #[serde(default)]
    ports: Vec<String>,
    network: Option<String>,
    text: String,
}

impl Events {
    /// Prints events as they come. There is nothing left to be printed then.
    pub fn run(&self) -> Result<String, Failure> {
        let client = Client::new(&self.at.socket);
        let mut path = format!("/v1/events?follow={}", self.follow);
        if let Some(since) = &self.since {
            path = format!("{path}&since={}", escaped(since));
        }
        let mut out = io::stdout().lock();
        let mut end: Result<bool, Failure> = Ok(false);
        let each = |line: &[u8]| {
            let text = if self.at.json {
                Ok(String::from_utf8_lossy(line).into_owned())
            } else {
                client.parse::<Line>(line).map(|line| line.to_string())
            };
            let written = match text {
                Ok(text) => writeln!(out, "{text}").and_then(|()| out.flush()),
                Err(e) => {
                    end = Err(e.into());
                    return ControlFlow::Break(());
                }
            };
            match written {
                Ok(()) => return ControlFlow::Continue(()),
                // A reader who has read enough and gone is no error.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => end = Ok(true),
                Err(e) => end = Err(Failure::Output(e)),
            }
            ControlFlow::Break(())
        };
        block_on(&client, client.lines(&path, each))?;
        match end? {
            false if self.follow => Err(Failure::Left(self.at.socket.clone())),
            _ => Ok(String::new()),
        }
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let or_nothing = |text: Option<&str>| printable(text.unwrap_or("-").to_owned());
        let ports = self.ports.join(",");
        write!(
            f,
            "{}  {:<10}  {}  {}  {}  {}",
            printable(self.time.clone()),
            printable(self.kind.clone()),
            or_nothing(self.vm.as_deref()),
            or_nothing(Some(ports.as_str()).filter(|ports| !ports.is_empty())),
            or_nothing(self.network.as_deref()),
            printable(self.text.clone()),
        )
    }
}

/// A time as the API wants it.
fn since(text: &str) -> Result<String, String> {
    since_at(text, time::wall())
}

fn since_at(text: &str, now: SystemTime) -> Result<String, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time.to_string());
    }
    let wrong = || "a time belongs here, as 2025-11-03T09:00:00Z, or how long ago, as 10m or 2h 30m".to_owned();
    let ago = text.parse::<SignedDuration>().map_err(|_| wrong())?;
    // `10m` and `10m ago` are the same to us.
    let then = Timestamp::try_from(now).and_then(|now| now.checked_sub(ago.unsigned_abs())).map_err(|_| wrong())?;
    Ok(time::rfc3339(then.into()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_points_or_ages() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_762_160_400);
        for (text, time) in [
            ("2025-11-03T09:00:00Z", "2025-11-03T09:00:00Z"),
            ("2025-11-03T10:00:00.5+01:00", "2025-11-03T09:00:00.5Z"),
            ("10m", "2025-11-03T08:50:00.000Z"),
            ("10m ago", "2025-11-03T08:50:00.000Z"),
            ("2h 30m", "2025-11-03T06:30:00.000Z"),
            ("0s", "2025-11-03T09:00:00.000Z"),
        ] {
            assert_eq!(since_at(text, now).as_deref(), Ok(time), "{text}");
        }
        for text in ["", "10", "yesterday", "2025-11-03", "10m x", "9999999999999h"] {
            assert!(since_at(text, now).is_err(), "{text}");
        }
    }
}
