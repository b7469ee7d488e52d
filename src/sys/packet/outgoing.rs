//! Transmits many frames with one system call (sendmmsg), each with an optional `virtio_net_hdr` and several fragments.

use std::ffi::c_uint;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

use super::{HEADER, Socket, no_message};

/// Arguments of `sendmmsg`, allocated once and filled in per burst.
pub struct Outgoing {
    messages: Box<[libc::mmsghdr]>,
    headers: Box<[[u8; HEADER]]>,
    pieces: Box<[libc::iovec]>,
}

// SAFETY: the pointers in it are valid, and used, within a burst only.
unsafe impl Send for Outgoing {}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing").field("messages", &self.messages.len()).finish_non_exhaustive()
    }
}

/// Frames to send together. Borrows their bytes.
#[derive(Debug)]
pub struct Burst<'a, 'b> {
    outgoing: &'a mut Outgoing,
    messages: usize,
    pieces: usize,
    bytes: PhantomData<&'b [u8]>,
}

impl Outgoing {
    /// Capacity in frames and in fragments per burst; a header is a fragment, too.
    pub fn new(frames: usize, iovecs: usize) -> Outgoing {
        let message = libc::mmsghdr { msg_hdr: no_message(), msg_len: 0 };
        let piece = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Outgoing {
            messages: vec![message; frames].into(),
            headers: vec![[0; HEADER]; frames].into(),
            pieces: vec![piece; iovecs].into(),
        }
    }

    /// An empty burst.
    #[inline]
    pub fn burst<'b>(&mut self) -> Burst<'_, 'b> {
        Burst { outgoing: self, messages: 0, pieces: 0, bytes: PhantomData }
    }
}

impl<'b> Burst<'_, 'b> {
    /// Number of frames.
    #[inline]
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Whether the burst is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Appends a frame. `false`: no capacity left.
    #[inline]
    pub fn push(&mut self, header: Option<[u8; HEADER]>, parts: impl Iterator<Item = &'b [u8]>) -> bool {
        let Outgoing { messages, headers, pieces: iovecs } = &mut *self.outgoing;
        let (Some(message), Some(place)) = (messages.get_mut(self.messages), headers.get_mut(self.messages)) else {
            return false;
        };
        let mut used = self.pieces;
        let mut put = |base: *mut u8, len: usize| match iovecs.get_mut(used) {
            Some(piece) => {
                *piece = libc::iovec { iov_base: base.cast(), iov_len: len };
                used += 1;
                true
            }
            None => false,
        };
        if let Some(header) = header {
            *place = header;
            if !put(place.as_mut_ptr(), HEADER) {
                return false;
            }
        }
        for part in parts {
            if !put(part.as_ptr().cast_mut(), part.len()) {
                return false;
            }
        }
        message.msg_hdr.msg_iovlen = used - self.pieces;
        (self.messages, self.pieces) = (self.messages + 1, used);
        true
    }

    /// Sends the frames in order. Returns the number sent. After a partial send the error is not reported; an error
    /// means that the first frame failed.
    #[inline]
    pub fn send(self, socket: &Socket) -> io::Result<usize> {
        let Outgoing { messages, pieces: iovecs, .. } = self.outgoing;
        let mut first = iovecs.as_mut_ptr();
        for message in &mut messages[..self.messages] {
            message.msg_hdr.msg_iov = first;
            first = first.wrapping_add(message.msg_hdr.msg_iovlen);
        }
        let (fd, first, count) = (socket.fd.as_raw_fd(), messages.as_mut_ptr(), self.messages as c_uint);
        loop {
            // SAFETY: the first `count` messages are ours, and point to as many fragments as they state, filled in by
            // `push`. These point to our headers and to bytes that outlive the burst ('b); the kernel only reads them.
            let sent = unsafe { libc::sendmmsg(fd, first, count, libc::MSG_DONTWAIT as _) };
            if let Ok(sent) = usize::try_from(sent) {
                return Ok(sent);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_takes_whole_frames_up_to_its_capacity() {
        let mut outgoing = Outgoing::new(2, 5);
        for _ in 0..2 {
            let mut burst = outgoing.burst();
            assert!(burst.is_empty());
            assert!(burst.push(Some([1; HEADER]), [&[1; 60][..], &[2; 60]].into_iter()));
            assert!(!burst.push(Some([1; HEADER]), [&[1; 60][..], &[2; 60]].into_iter()), "a piece too many");
            assert!(burst.push(Some([1; HEADER]), [&[1; 60][..]].into_iter()));
            assert!(!burst.push(None, std::iter::empty()), "a frame too many");
            assert_eq!((burst.len(), burst.pieces), (2, 5));
        }
    }

    #[test]
    fn an_unbound_socket_sends_nothing() {
        let Ok(socket) = Socket::new() else { return eprintln!("skipped: needs CAP_NET_RAW") };
        let mut outgoing = Outgoing::new(1, 1);
        let mut burst = outgoing.burst();
        assert!(burst.push(None, [&[0; 60][..]].into_iter()));
        assert_eq!(burst.send(&socket).unwrap_err().raw_os_error(), Some(libc::ENXIO));
    }
}
