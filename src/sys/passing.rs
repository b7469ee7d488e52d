//! Descriptors that are passed over a unix socket together with bytes (SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// Maximum descriptors received or sent together; the kernel closes further ones.
pub const MAX_PASSED: usize = 8;

/// Receives bytes, and appends descriptors that were passed with them. They are closed on exec.
pub fn receive(socket: impl AsFd, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    Ok(received.bytes)
}

/// Sends bytes, at least one, with copies of descriptors, at most [`MAX_PASSED`]. They are passed if any byte is sent.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    // Aligned, the buffer may have room for more.
    if descriptors.len() > MAX_PASSED || !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("more than {MAX_PASSED} descriptors")));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use rustix::fs::fstat;

    #[test]
    fn descriptors_arrive_with_the_bytes() {
        let (from, to) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let null = File::open("/dev/null").unwrap();
        assert_eq!(send(&from, b"hello", &[file.as_fd(), null.as_fd()]).unwrap(), 5);
        assert_eq!(send(&from, b"more", &[]).unwrap(), 4);
        let (mut bytes, mut passed) = ([0; 64], Vec::new());
        let first = receive(&to, &mut bytes, &mut passed).unwrap();
        assert_eq!(&bytes[..5], b"hello");
        let inodes: Vec<u64> = passed.iter().map(|fd| fstat(fd).unwrap().st_ino).collect();
        assert_eq!(inodes, [fstat(&file).unwrap().st_ino, fstat(&null).unwrap().st_ino]);
        // Bytes without descriptors may arrive together with them, or later.
        let rest = if first == 5 { receive(&to, &mut bytes, &mut passed).unwrap() } else { first - 5 };
        assert_eq!((rest, passed.len()), (4, 2));
    }

    #[test]
    fn too_many_are_not_sent() {
        let (from, _to) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let many = vec![file.as_fd(); MAX_PASSED + 1];
        assert_eq!(send(&from, b"x", &many).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
