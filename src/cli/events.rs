//! `vifswitch events`: prints events, one per line.
//!
//! With `--follow` the command reconnects after a connection ends, requests the events after the last one printed, and
//! prints each event once. It warns where events may be missing.

use std::collections::{BTreeSet, HashMap};
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

/// Maximum number of printed event ids after a missing id. Events can arrive out of order, because ids are reserved
/// before events are written.
const MAX_OUT_OF_ORDER: usize = 1024;

/// The arguments of the command.
#[derive(Debug, Args)]
pub struct Events {
    /// Print events as they happen, also after a restart of the switch
    #[arg(long)]
    follow: bool,
    /// Only events since TIME: a time such as 2025-11-03T09:00:00Z, or an age such as 10m
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<String>,
    #[command(flatten)]
    at: Connection,
}

/// Printed fields of an event. `kind` is a string, because a switch of another version may have other kinds.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(default)]
    id: u64,
    #[serde(default)]
    start: String,
    time: String,
    kind: String,
    vm: Option<String>,
    #[serde(default)]
    ports: Vec<String>,
    network: Option<String>,
    text: String,
}

/// Ids of the printed events of one start of the switch.
#[derive(Debug)]
struct OfStart {
    /// First id printed.
    first: u64,
    /// All ids from `first` to this one are printed.
    last: u64,
    /// Printed ids after `last`.
    out_of_order: BTreeSet<u64>,
}

/// Ids of the printed events.
#[derive(Debug, Default)]
struct Printed {
    starts: HashMap<String, OfStart>,
    /// Start of the last event.
    latest: Option<String>,
}

impl Printed {
    /// Records an event. `false` if it was recorded before.
    fn note(&mut self, id: u64, start: &str) -> bool {
        // Events of earlier versions have no id.
        if id == 0 {
            return true;
        }
        let Some(of) = self.starts.get_mut(start) else {
            self.starts.insert(start.to_owned(), OfStart { first: id, last: id, out_of_order: BTreeSet::new() });
            self.latest = Some(start.to_owned());
            return true;
        };
        if id < of.first {
            return true;
        }
        if id <= of.last || !of.out_of_order.insert(id) {
            return false;
        }
        // An id that is missing for long does not arrive any more.
        let is_over = of.out_of_order.len() > MAX_OUT_OF_ORDER;
        while let Some(next) = of.out_of_order.first().copied().filter(|&next| next == of.last + 1 || is_over) {
            of.out_of_order.remove(&next);
            of.last = next;
        }
        true
    }

    /// Last id without a gap before it, and its start.
    fn last(&self) -> Option<(u64, &str)> {
        let start = self.latest.as_deref()?;
        Some((self.starts.get(start)?.last, start))
    }
}

/// Why a stream of events ended.
enum End {
    /// The switch has sent all events.
    Finished,
    /// The connection failed.
    Broken(client::Error),
    /// The switch has skipped events, because they were not read in time.
    Lagged,
    /// Standard output is closed.
    Unread,
}

impl Events {
    /// Prints events. Returns an empty text.
    pub fn run(&self) -> Result<String, CliError> {
        let client = Client::new(&self.at.socket);
        let mut end = Ok(());
        block_on(&client, async {
            end = self.print_all(&client).await;
            Ok(())
        })?;
        end.map(|()| String::new())
    }

    async fn print_all(&self, client: &Client) -> Result<(), CliError> {
        let mut printed = Printed::default();
        let mut path = self.path(None);
        let (mut pause, mut is_first) = (FIRST_PAUSE, true);
        loop {
            let mut has_come = false;
            let end = self.print(client, &path, &mut printed, &mut has_come).await?;
            match end {
                End::Unread => return Ok(()),
                End::Finished if !self.follow => return Ok(()),
                End::Broken(why) if is_first && !has_come || !self.follow || !may_come_back(&why) => {
                    return Err(why.into());
                }
                _ => {}
            }
            if has_come {
                pause = FIRST_PAUSE;
            }
            let mut is_told = matches!(end, End::Lagged) || !(is_first || has_come);
            is_first = false;
            path = loop {
                if !matches!(end, End::Lagged) {
                    if !std::mem::replace(&mut is_told, true) {
                        let socket = self.at.socket.display();
                        warn(format_args!("the switch at {socket} has stopped; reconnecting"));
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                match self.resume(client, &printed).await {
                    Ok(path) => break path,
                    Err(why) if may_come_back(&why) => {}
                    Err(why) => return Err(why.into()),
                }
            };
        }
    }

    /// Request path of the events after an id.
    fn path(&self, after: Option<u64>) -> String {
        let path = format!("/v1/events?follow={}", self.follow);
        match (after, &self.since) {
            (Some(after), _) => format!("{path}&after={after}"),
            (None, Some(since)) => format!("{path}&since={}", escaped(since)),
            (None, None) => path,
        }
    }

    /// Request path of the events after the last one printed. Warns if some are missing.
    async fn resume(&self, client: &Client, printed: &Printed) -> Result<String, client::Error> {
        let Some((last, start)) = printed.last() else { return Ok(self.path(None)) };
        // Includes the last printed event: if the switch does not return it, the event log is another one.
        let (mut next, mut wrong) = (None, None);
        let each = |line: &[u8]| {
            match client.parse::<Line>(line) {
                // A message without an id says that the switch cannot read stored events.
                Ok(line) if line.id == 0 => return ControlFlow::Continue(()),
                Ok(line) => next = Some((line.id, line.start)),
                Err(e) => wrong = Some(e),
            }
            ControlFlow::Break(())
        };
        client.lines(&format!("/v1/events?after={}", last - 1), each).await?;
        match (wrong, next) {
            (Some(wrong), _) => Err(wrong),
            (None, Some((id, of))) if of == start => {
                if id > last + 1 {
                    warn(format_args!("{} events are missing here: the switch no longer stores them", id - last - 1));
                }
                Ok(self.path(Some(last)))
            }
            _ => {
                warn("events may be missing or repeated here: the switch does not have the event printed last");
                Ok(self.path(None))
            }
        }
    }

    /// Prints the events at `path` that are not printed yet. Sets `has_come` once an event arrives.
    async fn print(
        &self,
        client: &Client,
        path: &str,
        printed: &mut Printed,
        has_come: &mut bool,
    ) -> Result<End, CliError> {
        let mut out = io::stdout().lock();
        let mut end: Result<End, CliError> = Ok(End::Finished);
        let each = |text: &[u8]| {
            *has_come = true;
            let line = match client.parse::<Line>(text) {
                Ok(line) => line,
                Err(e) => {
                    end = Err(e.into());
                    return ControlFlow::Break(());
                }
            };
            // Requests the skipped events, if there is an id to continue from.
            if line.kind == "lagged" && printed.last().is_some() {
                end = Ok(End::Lagged);
                return ControlFlow::Break(());
            }
            if !printed.note(line.id, &line.start) {
                return ControlFlow::Continue(());
            }
            let text = if self.at.json { String::from_utf8_lossy(text).into_owned() } else { line.to_string() };
            match writeln!(out, "{text}").and_then(|()| out.flush()) {
                Ok(()) => return ControlFlow::Continue(()),
                // A closed pipe is not an error.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => end = Ok(End::Unread),
                Err(e) => end = Err(CliError::Output(e)),
            }
            ControlFlow::Break(())
        };
        match client.lines(path, each).await {
            Ok(()) => end,
            Err(why) => Ok(End::Broken(why)),
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
    fn each_event_is_printed_once() {
        let mut printed = Printed::default();
        assert!(printed.last().is_none());
        for (id, start, is_new, last) in [
            (0, "", true, None),
            (7, "a", true, Some(7)),
            (9, "a", true, Some(7)),
            (9, "a", false, Some(7)),
            (8, "a", true, Some(9)),
            (8, "a", false, Some(9)),
            (6, "a", true, Some(9)),
            // A start that continues after the one before, and one with event numbers of its own.
            (10, "b", true, Some(10)),
            (9, "a", false, Some(10)),
            (1, "c", true, Some(1)),
            (1, "c", false, Some(1)),
        ] {
            assert_eq!((printed.note(id, start), printed.last().map(|(id, _)| id)), (is_new, last), "{id} of {start}");
        }
        // A number that never arrives is not waited for.
        assert!((3..2000).all(|id| printed.note(id, "c")));
        assert_eq!(printed.last(), Some((1999, "c")));
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
