//! Groups of the process at the other end of a unix socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Groups for which there is room at once; most processes have fewer.
const FEW: usize = 64;

/// `NGROUPS_MAX` of the kernel.
const MOST: usize = 65_536;

/// The supplementary groups that the process had when it connected.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let socket = socket.as_fd().as_raw_fd();
    let mut groups = vec![0u32; FEW];
    loop {
        let mut length = libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        let to = groups.as_mut_ptr().cast();
        // SAFETY: `to` points to `length` bytes of `groups`, which lives and is not used elsewhere during the call; any bits
        // are a valid u32.
        let done = unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERGROUPS, to, &raw mut length) };
        let number = length as usize / size_of::<u32>();
        if done == 0 {
            groups.truncate(number);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || !(groups.len() + 1..=MOST).contains(&number) {
            return Err(error);
        }
        groups.resize(number, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_groups_of_this_process_are_those_of_its_socket() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut groups = peer_groups(&ours).unwrap();
        let mut own: Vec<u32> = rustix::process::getgroups().unwrap().into_iter().map(|group| group.as_raw()).collect();
        groups.sort_unstable();
        own.sort_unstable();
        assert_eq!(groups, own);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(peer_groups(&file).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
    }
}
