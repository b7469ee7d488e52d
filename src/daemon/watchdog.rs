//! Sends watchdog messages to a supervisor that requests them (`WatchdogSec=`).

use sd_notify::NotifyState;

use crate::control::api::handle::Handle;
use crate::control::watchdog::Watchdog;
use crate::worker::Mailbox;

/// Messages per watchdog period, so that one late message does no harm.
const BEATS: u32 = 3;

/// Starts sending watchdog messages, if `WatchdogSec=` is set.
pub(super) fn start(mailboxes: Vec<Mailbox>, handle: Handle) {
    if let Some(period) = sd_notify::watchdog_enabled() {
        let watchdog = Watchdog::new(mailboxes, handle);
        tokio::spawn(watchdog.run(period / BEATS, || super::notify(NotifyState::Watchdog)));
    }
}
