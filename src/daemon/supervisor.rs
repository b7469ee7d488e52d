//! Sends notifications to the supervisor (sd_notify) on a separate thread: the supervisor's socket holds few
//! messages, and sending blocks while it does not read them.

use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use sd_notify::NotifyState;
use tracing::warn;

/// Capacity of the queue in messages; further ones are dropped. A late watchdog message is worthless.
const WAITING: usize = 8;

static MESSAGES: OnceLock<Option<SyncSender<String>>> = OnceLock::new();

/// Queues the states as one message. Does not block. Messages keep the order of the calls.
pub(super) fn notify_all(states: &[NotifyState<'_>]) {
    let message = states.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let messages = MESSAGES.get_or_init(start);
    if messages.as_ref().is_none_or(|messages| messages.try_send(message).is_err())
        && !matches!(states, [NotifyState::Watchdog])
    {
        warn!("cannot notify the supervisor: it does not read its socket");
    }
}

fn start() -> Option<SyncSender<String>> {
    let (send, messages) = sync_channel::<String>(WAITING);
    let deliver = move || {
        for message in messages {
            // A failed notification is no reason to stop.
            if let Err(why) = sd_notify::notify(&[NotifyState::Custom(&message)]) {
                warn!("cannot notify the supervisor: {why}");
            }
        }
    };
    thread::Builder::new().name("vifswitch-notify".into()).spawn(deliver).ok().map(|_| send)
}
