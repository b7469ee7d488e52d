//! Sends notifications to the supervisor (sd_notify) on separate threads: the supervisor's socket holds few
//! messages, and sending blocks while it does not read them.
//!
//! Descriptors to keep (`FDSTORE=1`) have a thread of their own, so that thousands of them delay no watchdog message.

use std::env;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use sd_notify::NotifyState;
use tracing::warn;

use crate::control::descriptors::{DescriptorStore, MAX_DESCRIPTORS};

/// Capacity of the queue in messages; further ones are dropped. A late watchdog message is worthless.
const WAITING: usize = 8;

/// Maximum descriptors per message. The kernel's limit is 253.
const AT_ONCE: usize = 64;

static MESSAGES: OnceLock<Option<SyncSender<String>>> = OnceLock::new();

static DESCRIPTORS: OnceLock<Option<SyncSender<Message>>> = OnceLock::new();

/// Descriptors to keep, or none to remove those of this name.
struct Message {
    name: String,
    descriptors: Vec<OwnedFd>,
}

/// Queues the states as one message; returns whether there was space. Does not block. Messages keep the order of the calls.
pub(super) fn notify_all(states: &[NotifyState<'_>]) -> bool {
    let message = states.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let messages = MESSAGES.get_or_init(start);
    let is_queued = messages.as_ref().is_some_and(|messages| messages.try_send(message).is_ok());
    // These come again within seconds.
    if !is_queued && !matches!(states, [NotifyState::Watchdog | NotifyState::Status(_)]) {
        warn!("cannot notify the supervisor: it does not read its socket");
    }
    is_queued
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

/// Whether the supervisor keeps descriptors: systemd sets `FDSTORE` to their maximum number, from version 254 on, and the
/// unit sets it for earlier ones.
pub(super) fn keeps_descriptors() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some()
        && env::var("FDSTORE").is_ok_and(|most| most.trim().parse::<u32>().is_ok_and(|most| most > 0))
}

/// The supervisor as a store of descriptors.
pub(super) struct Supervisor;

impl DescriptorStore for Supervisor {
    fn store(&self, name: &str, descriptors: Vec<OwnedFd>) -> bool {
        send(Message { name: name.to_owned(), descriptors })
    }

    fn remove(&self, name: &str) {
        send(Message { name: name.to_owned(), descriptors: Vec::new() });
    }
}

fn send(message: Message) -> bool {
    let messages = DESCRIPTORS.get_or_init(start_keeping);
    let is_sent = messages.as_ref().is_some_and(|messages| messages.try_send(message).is_ok());
    if !is_sent {
        warn!("cannot hand descriptors to the supervisor: it does not read its socket");
    }
    is_sent
}

fn start_keeping() -> Option<SyncSender<Message>> {
    // Each port's are removed and stored.
    let (send, messages) = sync_channel::<Message>(2 * MAX_DESCRIPTORS);
    let deliver = move || {
        let mut is_failing = false;
        for message in messages {
            let result = deliver(&message);
            if let (Err(why), false) = (&result, is_failing) {
                warn!("cannot hand descriptors to the supervisor: {why}; devices lose their carrier at a restart");
            }
            is_failing = result.is_err();
        }
    };
    thread::Builder::new().name("vifswitch-keep".into()).spawn(deliver).ok().map(|_| send)
}

/// Sends a message. Blocks while the supervisor does not read its socket.
fn deliver(Message { name, descriptors }: &Message) -> io::Result<()> {
    let path = env::var_os("NOTIFY_SOCKET").ok_or(io::ErrorKind::NotFound)?;
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    if descriptors.is_empty() {
        return socket.send(format!("FDSTOREREMOVE=1\nFDNAME={name}\n").as_bytes()).map(drop);
    }
    // Not polled: each frame in a tap's queue would wake the supervisor's poll entry.
    let text = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n");
    for part in descriptors.chunks(AT_ONCE) {
        let descriptors: Vec<_> = part.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        rustix::net::sendmsg(&socket, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::empty())?;
    }
    Ok(())
}
