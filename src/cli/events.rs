//! `vifswitch events`: prints events, one per line.
//!
//! With `--follow` the command reads an event stream, reconnects after a connection ends, and continues behind the last
//! complete message: it prints each event once. Where events are missing, the switch sends a message in place of them.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime};

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::table::printable;
use super::{CliError, Connection, block_on, warn};
use crate::control::api::client::{self, Client, escaped};
use crate::time;

/// Pause before the first attempt to reconnect. Doubles with each further attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Maximum pause before an attempt to reconnect.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The arguments of the command.
#[derive(Debug, Args)]
pub struct Events {
    /// Print events as they happen, also after a restart of the switch; begins now without `--since` and `--after`
    #[arg(long)]
    follow: bool,
    /// Only events since TIME: a time such as 2025-11-03T09:00:00Z, or an age such as 10m
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<String>,
    /// Only events with a greater id
    #[arg(long, value_name = "ID")]
    after: Option<u64>,
    /// Only events of this kind; may be repeated, or a list with commas
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// Only events of this VM; may be repeated
    #[arg(long, value_name = "VM")]
    vm: Vec<String>,
    /// Only events of this port or uplink; may be repeated
    #[arg(long, value_name = "PORT")]
    port: Vec<String>,
    /// Only events of this network; may be repeated
    #[arg(long, value_name = "NETWORK")]
    network: Vec<String>,
    #[command(flatten)]
    at: Connection,
}

/// Printed fields of an event. `kind` is a string, because a switch of another version may have other kinds.
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

/// Reads the lines of an event stream.
#[derive(Debug, Default)]
struct Follower {
    /// Id of the last complete message.
    position: Option<u64>,
    /// Id and data of the message that is being read.
    id: Option<u64>,
    data: Option<Vec<u8>>,
}

impl Follower {
    /// Takes a line. Returns the event that it completes.
    fn line(&mut self, line: &[u8]) -> Option<Vec<u8>> {
        if let Some(data) = line.strip_prefix(b"data: ") {
            self.data = Some(data.to_owned());
        } else if let Some(id) = line.strip_prefix(b"id: ") {
            self.id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
        } else if line.is_empty() {
            self.position = self.id.take().or(self.position);
            return self.data.take();
        }
        None
    }

    /// Forgets an incomplete message.
    fn reconnect(&mut self) {
        (self.id, self.data) = (None, None);
    }
}

/// Why the printing of events ended.
enum End {
    /// The switch has sent all events.
    Finished,
    /// Standard output is closed.
    Unread,
}

impl Events {
    /// Prints events. Returns an empty text.
    pub fn run(&self) -> Result<String, CliError> {
        let client = Client::new(&self.at.socket);
        let mut end = Ok(());
        block_on(&client, async {
            end = if self.follow { self.follow(&client).await } else { self.print_stored(&client).await };
            Ok(())
        })?;
        end.map(|()| String::new())
    }

    async fn print_stored(&self, client: &Client) -> Result<(), CliError> {
        let mut end = Ok(End::Finished);
        let each = |line: &[u8]| {
            end = self.print(client, line);
            if matches!(end, Ok(End::Finished)) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        client.lines(&self.path(None), each).await?;
        end.map(drop)
    }

    async fn follow(&self, client: &Client) -> Result<(), CliError> {
        let mut follower = Follower::default();
        let (mut pause, mut was_connected, mut is_told) = (FIRST_PAUSE, false, false);
        loop {
            let (path, mut end, mut has_come) = (self.path(follower.position), Ok(End::Finished), false);
            let each = |line: &[u8]| {
                has_come = true;
                if let Some(event) = follower.line(line) {
                    end = self.print(client, &event);
                }
                if matches!(end, Ok(End::Finished)) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            let stream = client.event_stream(&path, each).await;
            match (end?, stream) {
                (End::Unread, _) => return Ok(()),
                (_, Err(why)) if !(was_connected || has_come) || !may_come_back(&why) => return Err(why.into()),
                _ => {}
            }
            follower.reconnect();
            if has_come {
                (was_connected, pause, is_told) = (true, FIRST_PAUSE, false);
            }
            if !std::mem::replace(&mut is_told, true) {
                let socket = self.at.socket.display();
                warn(format_args!("the switch at {socket} has stopped; reconnecting"));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Request path of the events behind a position, if there is one.
    fn path(&self, position: Option<u64>) -> String {
        let mut path = format!("/v1/events?follow={}", self.follow);
        if let Some(after) = position.or(self.after) {
            path.push_str(&format!("&after={after}"));
        }
        let filters = [("kind", &self.kind), ("vm", &self.vm), ("port", &self.port), ("network", &self.network)];
        let filters = filters.into_iter().flat_map(|(key, values)| values.iter().map(move |value| (key, value)));
        for (key, value) in self.since.iter().map(|since| ("since", since)).chain(filters) {
            path.push_str(&format!("&{key}={}", escaped(value)));
        }
        path
    }

    /// Prints an event.
    fn print(&self, client: &Client, event: &[u8]) -> Result<End, CliError> {
        let text = match self.at.json {
            true => String::from_utf8_lossy(event).into_owned(),
            false => client.parse::<Line>(event)?.to_string(),
        };
        let mut out = io::stdout().lock();
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Ok(()) => Ok(End::Finished),
            // A closed pipe is not an error.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(End::Unread),
            Err(e) => Err(CliError::Output(e)),
        }
    }
}

/// Whether the error can be temporary.
fn may_come_back(why: &client::Error) -> bool {
    match why {
        client::Error::NoSwitch { .. } | client::Error::Broken { .. } => true,
        client::Error::Refused { status, .. } => matches!(status, 429 | 503),
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

/// Parses a time or an age to RFC 3339.
fn since(text: &str) -> Result<String, String> {
    since_at(text, time::wall())
}

fn since_at(text: &str, now: SystemTime) -> Result<String, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time.to_string());
    }
    let wrong = || "expected a time such as 2025-11-03T09:00:00Z, or an age such as 10m or 2h 30m".to_owned();
    let ago = text.parse::<SignedDuration>().map_err(|_| wrong())?;
    // `10m` and `10m ago` are equal.
    let then = Timestamp::try_from(now).and_then(|now| now.checked_sub(ago.unsigned_abs())).map_err(|_| wrong())?;
    Ok(time::rfc3339(then.into()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_message_counts_when_it_is_complete() {
        let mut follower = Follower::default();
        let mut take = |line: &str| (follower.line(line.as_bytes()), follower.position);
        assert_eq!(take("id: 7"), (None, None));
        assert_eq!(take(""), (None, Some(7)));
        assert_eq!(take("id: 8"), (None, Some(7)));
        assert_eq!(take("data: {\"id\":8}"), (None, Some(7)));
        assert_eq!(take(""), (Some(b"{\"id\":8}".to_vec()), Some(8)));
        // The connection ends between the lines of a message.
        assert_eq!(take("id: 9"), (None, Some(8)));
        follower.reconnect();
        let mut take = |line: &str| (follower.line(line.as_bytes()), follower.position);
        assert_eq!(take(": nothing has happened"), (None, Some(8)));
        assert_eq!(take(""), (None, Some(8)));
    }

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
