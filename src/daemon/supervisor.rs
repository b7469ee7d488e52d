//! Messages to the supervisor, by a thread of its own: its socket holds few of them, and sending waits while a
//! supervisor that hangs does not read.

use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use sd_notify::NotifyState;
use tracing::warn;

/// Messages that may wait; more are dropped. Late beats of the watchdog are worth nothing.
const WAITING: usize = 8;

static MESSAGES: OnceLock<Option<SyncSender<String>>> = OnceLock::new();

/// Sends these states in one message, in the order of the calls. Does not wait.
pub(super) fn notify_all(states: &[NotifyState<'_>]) {
    let message = states.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let messages = MESSAGES.get_or_init(start);
    if messages.as_ref().is_none_or(|messages| messages.try_send(message).is_err())
        && !matches!(states, [NotifyState::Watchdog])
    {
        warn!("the supervisor has not been notified: it does not read what it is sent");
    }
}

fn start() -> Option<SyncSender<String>> {
    let (send, messages) = sync_channel::<String>(WAITING);
    let deliver = move || {
        for message in messages {
            // A supervisor that has gone is no reason not to go on.
            if let Err(why) = sd_notify::notify(&[NotifyState::Custom(&message)]) {
                warn!("the supervisor has not been notified: {why}");
            }
        }
    };
    thread::Builder::new().name("vifswitch-notify".into()).spawn(deliver).ok().map(|_| send)
}
