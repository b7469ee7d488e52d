//! Sends keep-alive messages to a supervisor with a watchdog.

use sd_notify::NotifyState;

use crate::control::handle::Handle;
use crate::control::watchdog::Watchdog;
use crate::worker::Mailbox;

/// Beats in the time in which the supervisor expects one: so that one that is late does no harm.
const BEATS: u32 = 3;

/// Starts telling it, if it asked for that (`WatchdogSec=`).
pub(super) fn start(mailboxes: Vec<Mailbox>, handle: Handle) {
    if let Some(period) = sd_notify::watchdog_enabled() {
        let watchdog = Watchdog::new(mailboxes, handle);
        tokio::spawn(watchdog.run(period / BEATS, || super::notify(NotifyState::Watchdog)));
    }
}
