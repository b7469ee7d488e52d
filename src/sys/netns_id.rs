//! Lasting ids of network namespaces: a namespace is recognised after a restart of this process, and the kernel tells
//! whether it still exists, while nothing here keeps it alive.
//!
//! Device and inode of a namespace's file say which one it is only while something keeps it alive: the kernel gives the
//! inode of a namespace that has ended to the next one. rtnetlink has ids of namespaces (`ip netns list-id`): each
//! namespace may give one to any other and to itself. They keep nothing alive, end with the namespace, and can be asked for.
//! A lasting id consists of two, which are random where the namespace had none: the one by which the namespace knows
//! itself tells whether it is the same one, and the one by which the switch's namespace knows it tells whether it exists.
//!
//! All functions block: call them from a thread that may, in the switch's own namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use futures_util::StreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use serde::{Deserialize, Serialize};

use super::link::{connected, error_of, to_io_error};
use super::netns::{Netns, within_file};

/// Attempts at giving a namespace an id, which others may do at the same time.
const ATTEMPTS: usize = 4;

/// Ids that are given here lie above this one. The kernel counts up from 0.
const FIRST: u32 = 1 << 30;

/// Lasting id of a network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LastingId {
    /// Boot of the host: no namespace outlives it.
    boot: String,
    /// Id by which the namespace knows itself.
    own: i32,
    /// Id by which the switch's namespace knows it.
    nsid: i32,
    /// Id by which the switch's namespace knows itself: `nsid` means nothing in another one.
    observer: i32,
}

impl LastingId {
    /// Gives the namespace to which `netns` leads now a lasting id, or returns the one that it has. `None`: there is no
    /// such namespace.
    pub fn assign(netns: &Netns) -> io::Result<Option<LastingId>> {
        let Some(file) = namespace_file(netns)? else { return Ok(None) };
        let own = within_file(netns, Some(&file), || assign_id(&file))??;
        Ok(Some(LastingId { boot: boot()?, own, nsid: assign_id(&file)?, observer: assign_id(&own_namespace()?)? }))
    }

    /// The lasting id of the namespace to which `netns` leads now, if it is this one. It has another `nsid` if the
    /// switch runs in another namespace now.
    pub fn recognise(&self, netns: &Netns) -> io::Result<Option<LastingId>> {
        let Some(file) = namespace_file(netns)? else { return Ok(None) };
        let own = within_file(netns, Some(&file), || connected(async |mut handle| id_of(&mut handle, &file).await))??;
        if own != Some(self.own) || boot()? != self.boot {
            return Ok(None);
        }
        let now = LastingId { nsid: assign_id(&file)?, observer: assign_id(&own_namespace()?)?, ..self.clone() };
        Ok(now.is_same(self).then_some(now))
    }

    /// Whether both are ids of one namespace.
    fn is_same(&self, other: &LastingId) -> bool {
        (&self.boot, self.own) == (&other.boot, other.own)
            && (self.observer != other.observer || self.nsid == other.nsid)
    }

    /// Whether the namespace still exists: a process, file or socket holds it.
    ///
    /// # Errors
    /// That cannot be told.
    pub fn exists(&self) -> io::Result<bool> {
        if boot()? != self.boot {
            return Ok(false);
        }
        let here = own_namespace()?;
        connected(async |mut handle| {
            if id_of(&mut handle, &here).await? != Some(self.observer) {
                let why = "the switch has been started in another network namespace, in which it cannot tell";
                return Err(io::Error::other(why));
            }
            // By which id does the namespace with this id know itself? Another one may have the id by now.
            let which = vec![NsidAttribute::Id(self.nsid), NsidAttribute::TargetNsid(self.nsid)];
            match get(&mut handle, which).await {
                Err(why) if why.raw_os_error() == Some(libc::ENOENT) => Ok(false),
                own => Ok(own? == Some(self.own)),
            }
        })
    }
}

/// File of the namespace to which `netns` leads; `None` if there is none.
fn namespace_file(netns: &Netns) -> io::Result<Option<File>> {
    match netns.file() {
        Err(why) if matches!(why.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Ok(None) => own_namespace().map(Some),
        file => file,
    }
}

fn own_namespace() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

fn boot() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|boot| boot.trim().to_owned())
}

/// The id by which the calling thread's namespace knows the one of `file`; gives it one if it has none.
fn assign_id(file: &File) -> io::Result<i32> {
    connected(async |mut handle| {
        for _ in 0..ATTEMPTS {
            if let Some(id) = id_of(&mut handle, file).await? {
                return Ok(id);
            }
            match give(&mut handle, vec![fd(file), NsidAttribute::Id(random()?)]).await {
                // Another process has just given it one, or another namespace has this one.
                Err(why) if matches!(why.raw_os_error(), Some(libc::EEXIST | libc::ENOSPC)) => {}
                given => given?,
            }
        }
        Err(io::Error::other("the kernel gives the namespace no id"))
    })
}

/// The id by which the socket's namespace knows the one of `file`, if any.
async fn id_of(handle: &mut Handle, file: &File) -> io::Result<Option<i32>> {
    get(handle, vec![fd(file)]).await
}

fn fd(file: &File) -> NsidAttribute {
    NsidAttribute::Fd(file.as_fd().as_raw_fd().cast_unsigned())
}

fn random() -> io::Result<i32> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    // Less than i32::MAX, behind which the kernel would look for a free one.
    Ok((FIRST + u32::from_ne_bytes(bytes) % (FIRST - 1)).cast_signed())
}

/// RTM_GETNSID.
async fn get(handle: &mut Handle, which: Vec<NsidAttribute>) -> io::Result<Option<i32>> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(message(which)));
    request.header.flags = NLM_F_REQUEST;
    let mut answers = handle.request(request).map_err(to_io_error)?;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::Error(why) => return Err(error_of(&why)),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) => {
                let id = answer.attributes.iter().find_map(|attribute| match attribute {
                    NsidAttribute::Id(id) => Some(*id),
                    _ => None,
                });
                // -1: none
                return Ok(id.filter(|id| *id >= 0));
            }
            _ => {}
        }
    }
    Err(io::Error::other("the kernel has not answered which id a namespace has"))
}

/// RTM_NEWNSID.
async fn give(handle: &mut Handle, what: Vec<NsidAttribute>) -> io::Result<()> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNsId(message(what)));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut answers = handle.request(request).map_err(to_io_error)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(answer) = answer.payload
            && answer.code.is_some()
        {
            return Err(error_of(&answer));
        }
    }
    // The acknowledgement only ends the answers. Whether the namespace has the id is asked next.
    Ok(())
}

fn message(attributes: Vec<NsidAttribute>) -> NsidMessage {
    let mut message = NsidMessage::default();
    message.attributes = attributes;
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(boot: &str, own: i32, nsid: i32, observer: i32) -> LastingId {
        LastingId { boot: boot.into(), own, nsid, observer }
    }

    #[test]
    fn a_namespace_is_the_same_by_its_own_id_whatever_others_call_it() {
        let known = id("b", 7, 3, 1);
        assert!(known.is_same(&known));
        assert!(known.is_same(&id("b", 7, 4, 2)), "seen from another namespace");
        assert!(!known.is_same(&id("b", 7, 4, 1)), "two namespaces for one observer");
        assert!(!known.is_same(&id("b", 8, 3, 1)));
        assert!(!known.is_same(&id("c", 7, 3, 1)), "no namespace outlives the host");
    }

    #[test]
    fn nothing_outlives_the_boot() {
        assert!(!id("another boot", 1, 1, 1).exists().unwrap());
    }

    #[test]
    fn given_ids_are_far_from_those_that_the_kernel_counts() {
        for _ in 0..1000 {
            assert!((1 << 30..i32::MAX).contains(&random().unwrap()));
        }
    }

    #[test]
    fn no_namespace_has_no_id() {
        for netns in ["vift-nowhere", "/proc/self/ns/nothing", "/proc/version/x"] {
            assert_eq!(LastingId::assign(&Netns::written(netns)).unwrap(), None, "{netns}");
            assert_eq!(id("b", 1, 1, 1).recognise(&Netns::written(netns)).unwrap(), None, "{netns}");
        }
    }
}
