//! The line that `systemctl status` shows: ports, generation, and what is wrong.

use std::fmt::Write;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use crate::control::health::{Health, StoreHealth};

/// Interval at which the line may change.
const EVERY: Duration = Duration::from_secs(1);

/// Sends the line, and again whenever it changes.
pub(super) async fn keep_current(health: Health) {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent = String::new();
    loop {
        tick.tick().await;
        let line = line(&health);
        // A line that a full queue dropped is sent again.
        if line != sent && super::notify_all(&[NotifyState::Status(&line)]) {
            sent = line;
        }
    }
}

/// What an operator wants to know first, in one line.
fn line(health: &Health) -> String {
    let (status, measures) = (health.status(), health.measures());
    let (all, well, troubles) = (measures.ports.get(), measures.ports_well.get(), measures.troubles.get());
    let mut line = format!("{well} of {all} ports and uplinks up, generation {}", status.desired_generation);
    // Writing to a string does not fail.
    if status.applied_generation != status.desired_generation {
        let _ = write!(line, " (applied: {})", status.applied_generation);
    }
    if troubles > 0 {
        let _ = write!(line, "; {troubles} loops and storms");
    }
    if status.state == StoreHealth::StoreFailed {
        let why = status.state_reason.unwrap_or_default().replace('\n', " ");
        let _ = write!(line, "; changes are refused, because they cannot be stored: {why}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_what_is_wrong() {
        let health = Health::default();
        health.update(|status| (status.desired_generation, status.applied_generation) = (7, 7));
        health.measures().ports.set(3);
        health.measures().ports_well.set(3);
        assert_eq!(line(&health), "3 of 3 ports and uplinks up, generation 7");
        health.update(|status| {
            (status.desired_generation, status.state) = (8, StoreHealth::StoreFailed);
            status.state_reason = Some("disk\nfull".into());
        });
        health.measures().ports_well.set(2);
        health.measures().troubles.set(1);
        let expected = "2 of 3 ports and uplinks up, generation 8 (applied: 7); 1 loops and storms; changes are \
                        refused, because they cannot be stored: disk full";
        assert_eq!(line(&health), expected);
    }
}
