//! The program that runs on a netdev for us: every frame to the socket of the queue it came from.
//!
//! It judges nothing. What is not forwarded (PAUSE, runts, whatever else) is for the switch to drop,
//! which has a reason and a counter for each; a frame that died here would have neither.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys::bpf::{Instruction, LoadError, Program, XDP_DROP, XDP_PASS, XskMap};

use super::assembler::{AssembleError, Assembler, Register::*};

/// Where `struct xdp_md` has the receive queue of a frame.
const RX_QUEUE_INDEX: i16 = 16;

/// BPF_FUNC_redirect_map, of `enum bpf_func_id`
const REDIRECT_MAP: i32 = 51;

/// What becomes of a frame whose queue has no socket.
///
/// All queues have theirs before the program is attached, so that this is about queues that are added
/// later and about a process that is being killed, whose sockets and link go one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NoSocket {
    /// It dies (and a tap in native mode counts it among its dropped frames). The default: it is the
    /// guest that decides how many queues of its tap are in use, and one more of them must not lead
    /// around the switch into the host's network stack.
    #[default]
    Drop,
    /// It goes on to the network stack, as without us.
    Pass,
}

/// Loads the program that sends frames to the sockets in `sockets`, also frames in several pieces.
pub fn load(sockets: &XskMap, no_socket: NoSocket) -> Result<Program, LoadError> {
    let code = redirect(sockets.as_fd(), no_socket)
        .map_err(|e| LoadError { source: io::Error::new(io::ErrorKind::InvalidInput, e), log: String::new() })?;
    Program::load(&code, true)
}

/// `return bpf_redirect_map(sockets, context->rx_queue_index, no_socket);`
fn redirect(sockets: BorrowedFd<'_>, no_socket: NoSocket) -> Result<Vec<Instruction>, AssembleError> {
    // The lower two bits of the flags are what the helper returns if there is no socket.
    let flags = match no_socket {
        NoSocket::Drop => XDP_DROP,
        NoSocket::Pass => XDP_PASS,
    };
    Assembler::new()
        .load_word(R2, R1, RX_QUEUE_INDEX)
        .load_map(R1, sockets)
        .set(R3, flags.cast_signed())
        .call(REDIRECT_MAP)
        .exit()
        .finish()
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

    use super::*;
    use crate::device::xdp::assembler::If;
    use crate::sys::bpf::{Ran, XDP_REDIRECT};

    /// Whether programs can be loaded; a word about it if not.
    fn may_load() -> bool {
        let may = rustix::process::geteuid().is_root();
        if !may {
            eprintln!("skipped: needs root, to load programs");
        }
        may
    }

    fn socket() -> OwnedFd {
        socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn frame(len: usize) -> Vec<u8> {
        (0..len).map(|i| i as u8).collect()
    }

    #[test]
    fn the_program_reads_like_this() {
        let map = tempfile::tempfile().unwrap();
        for (no_socket, verdict) in [(NoSocket::Drop, 1), (NoSocket::Pass, 2)] {
            let code = redirect(map.as_fd(), no_socket).unwrap();
            let listing: Vec<String> = code
                .iter()
                .map(|i| format!("{:02x} r{} r{} {:+} {}", i.code, i.target(), i.source(), i.offset, i.immediate))
                .collect();
            let expected = [
                "61 r2 r1 +16 0".to_owned(),                // r2 = context->rx_queue_index
                format!("18 r1 r1 +0 {}", map.as_raw_fd()), // r1 = sockets
                "00 r0 r0 +0 0".to_owned(),
                format!("b7 r3 r0 +0 {verdict}"), // r3 = no_socket
                "85 r0 r0 +0 51".to_owned(),      // r0 = bpf_redirect_map(r1, r2, r3)
                "95 r0 r0 +0 0".to_owned(),       // return r0
            ];
            assert_eq!(listing, expected);
        }
    }

    #[test]
    fn frames_of_any_length_go_to_the_socket_and_stay_as_they_are() {
        if !may_load() {
            return;
        }
        for (no_socket, verdict) in [(NoSocket::Drop, XDP_DROP), (NoSocket::Pass, XDP_PASS)] {
            let sockets = XskMap::new(2).unwrap();
            let program = load(&sockets, no_socket).unwrap();
            let run = |len: usize| {
                let Ran { verdict, frame: left } = program.test_run(&frame(len), None).unwrap();
                assert_eq!(left, frame(len));
                verdict
            };
            assert!((14..=1514).all(|len| run(len) == verdict), "no socket");
            let socket = socket();
            sockets.set(1, socket.as_fd()).unwrap();
            assert_eq!(run(60), verdict, "the socket of another queue");
            sockets.set(0, socket.as_fd()).unwrap();
            assert!((14..=1514).all(|len| run(len) == XDP_REDIRECT), "a socket");
            sockets.clear(0).unwrap();
            assert_eq!(run(60), verdict, "the entry was cleared");
            sockets.set(0, socket.as_fd()).unwrap();
            drop(sockets);
            assert_eq!(run(60), XDP_REDIRECT, "the program has the map");
            drop(socket);
            assert_eq!(run(60), verdict, "the entry goes with the socket");
        }
    }

    #[test]
    fn what_a_map_cannot_hold_is_refused() {
        if !may_load() {
            return;
        }
        let errno = |done: io::Result<()>| done.unwrap_err().raw_os_error();
        let (sockets, socket) = (XskMap::new(2).unwrap(), socket());
        assert_eq!(errno(sockets.set(2, socket.as_fd())), Some(libc::E2BIG));
        assert_eq!(errno(sockets.set(0, sockets.as_fd())), Some(libc::ENOTSOCK));
        assert_eq!(errno(sockets.clear(2)), Some(libc::EINVAL));
        sockets.clear(1).unwrap();
        assert_eq!(errno(XskMap::new(0).map(drop)), Some(libc::EINVAL));
    }

    #[test]
    fn the_verifier_is_quoted() {
        if !may_load() {
            return;
        }
        let code = Assembler::new().load_word(R0, R5, 0).exit().finish().unwrap();
        let e = Program::load(&code, true).unwrap_err();
        assert_eq!(e.source.raw_os_error(), Some(libc::EACCES));
        assert!(e.log.contains("R5 !read_ok"), "{e}");
        assert!(e.to_string().contains(&e.log) && e.to_string().contains("os error 13"), "{e}");
        // More is said than there is room for, which is an error of its own.
        let mut code = Assembler::new();
        code.load_word(R2, R1, RX_QUEUE_INDEX);
        for _ in 0..500 {
            code.add(R2, 1);
        }
        let e = Program::load(&code.load_word(R0, R5, 0).exit().finish().unwrap(), true).unwrap_err();
        assert_eq!(e.source.raw_os_error(), Some(libc::EACCES), "that of the program, and not that of the log");
        assert!((1000..4096).contains(&e.log.len()), "{e}");
        let e = Program::load(&[], true).unwrap_err();
        assert_eq!((e.source.raw_os_error(), e.log.as_str()), (Some(libc::E2BIG), ""));
    }

    #[test]
    fn the_kernel_jumps_where_the_assembler_says() {
        if !may_load() {
            return;
        }
        // ahead, back, ahead; each way but this one ends without the sum
        let mut code = Assembler::new();
        code.set(R0, 1).set(R1, 4).jump("on").place("back").add(R0, 10).jump_if(R1, If::Greater, 3, "end").exit();
        code.place("on").jump_if(R1, If::Different, 4, "end").jump_if(R1, If::Equal, 4, "back").exit();
        code.place("end").add(R0, 100).exit();
        let program = Program::load(&code.finish().unwrap(), false).unwrap();
        assert_eq!(program.test_run(&frame(60), None).unwrap().verdict, 111);
        assert_eq!(program.test_run(&frame(13), None).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let other = Program::load(&[Instruction::new(0xb7, 0, 0, 0, 2), Instruction::new(0x95, 0, 0, 0, 0)], false);
        assert_ne!(other.unwrap().id().unwrap(), program.id().unwrap());
    }
}
