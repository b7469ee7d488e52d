//! The XDP program: redirects every frame to the socket of its receive queue.
//!
//! It makes no forwarding decisions. Frames that are not forwarded (PAUSE, runts) are dropped by the switch, with a
//! reason and a counter.
//!
//! Some drivers store the outer VLAN tag beside the frame ([`tags`](super::tags)). If the driver reports it, the
//! program restores the tag in the frame first.
//!
//! Early drop is the exception: while a port exceeds a storm limit, the worker sets a time in a [`DropTable`], until
//! which the program drops frames to groups and counts them. For unicast frames this costs the test of one byte.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys::bpf::{Instruction, KernelFunction, LoadError, Program, XDP_DROP, XDP_PASS, XskMap};

use super::assembler::{AssembleError, Assembler, If, Register::*};
use super::drop_table::DropTable;
use crate::wire::{Mac, Probe};

// Offsets in `struct xdp_md`: start of the frame, end of its first fragment, receive queue.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
const RX_QUEUE_INDEX: i16 = 16;

// enum bpf_func_id
const MAP_LOOKUP_ELEM: i32 = 1;
const XDP_ADJUST_HEAD: i32 = 44;
const REDIRECT_MAP: i32 = 51;
const KTIME_GET_BOOT_NS: i32 = 125;
const XDP_GET_BUFF_LEN: i32 = 188;

/// Stack offset of the map key, a queue number.
const KEY: i16 = -4;

/// Stack offsets of the driver's tag metadata: TPID in network byte order, TCI in host byte order.
const TAG_TYPE: i16 = -8;
const TAG: i16 = -6;

/// Length of an Ethernet header.
const HEADER: i32 = 14;

/// -ENODATA: the frame has no tag in its metadata.
const NO_TAG: i32 = -61;

/// Groups that early drop excepts: loop probes, which matter most during a storm, and BPDUs of spanning tree and PVST+.
pub const NEVER_DROP: [Mac; 3] = [Probe::DESTINATION, Mac::BRIDGE_GROUP, Mac::PVST];

/// Action for a frame whose queue has no socket.
///
/// All queues have a socket before the program is attached. This concerns queues added later, and a process being
/// killed, whose sockets and link close one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NoSocketAction {
    /// Drop (a tap in native mode counts it as dropped). The default: the guest chooses the number of active queues of
    /// its tap, and one more queue must not bypass the switch into the host's network stack.
    #[default]
    Drop,
    /// Pass to the network stack.
    PassToStack,
}

/// A driver that reports the tag beside a frame to programs.
#[derive(Debug, Clone, Copy)]
pub struct TagSource {
    /// The kfunc to read it.
    pub function: KernelFunction,
    /// Its netdev, by index in the calling thread's namespace. The program can be attached to this one only.
    pub ifindex: u32,
}

/// Loads the program: redirects frames, fragmented ones included, to `sockets`, and drops early by `drop_table`. With
/// `tags` it restores the tag that the driver stores beside the frame.
pub fn load(
    sockets: &XskMap,
    drop_table: &DropTable,
    no_socket: NoSocketAction,
    tags: Option<TagSource>,
) -> Result<Program, LoadError> {
    let code = redirect(sockets.as_fd(), drop_table.as_fd(), no_socket, tags.map(|tags| tags.function))
        .map_err(|e| LoadError { source: io::Error::new(io::ErrorKind::InvalidInput, e), log: String::new() })?;
    match tags {
        Some(TagSource { ifindex, .. }) => Program::load_for(&code, true, ifindex),
        None => Program::load(&code, true),
    }
}

/// Emits code that restores the tag from the driver's metadata. R6 is the context.
///
/// ```c
/// error = bpf_xdp_metadata_rx_vlan_tag(context, &type, &tag);
/// if (error == -ENODATA) goto whole;
/// if (error || bpf_xdp_adjust_head(context, -4) || data + 18 > data_end) goto lost;
/// memmove(data, data + 4, 12);
/// data[12..14] = type;
/// data[14..16] = htons(tag);
/// goto whole;
/// lost:                                               // untagged it would belong to another network
/// entry = bpf_map_lookup_elem(shedding, &context->rx_queue_index);
/// if (entry) entry->lost += 1;
/// return XDP_DROP;
/// whole:
/// ```
fn put_tag_back(code: &mut Assembler, function: KernelFunction, drop_table: BorrowedFd<'_>) {
    // The verifier requires the targets of pointers to be initialised.
    code.set(R1, 0).store_word(R10, TAG_TYPE, R1);
    code.copy(R1, R6).copy(R2, R10).add(R2, TAG_TYPE.into()).copy(R3, R10).add(R3, TAG.into());
    code.call_kernel(function).jump_if_word_equals(R0, NO_TAG.cast_unsigned(), "whole");
    code.jump_if(R0, If::Different, 0, "lost");
    code.copy(R1, R6).set(R2, -4).call(XDP_ADJUST_HEAD).jump_if(R0, If::Different, 0, "lost");
    code.load_word(R2, R6, DATA).load_word(R3, R6, DATA_END);
    code.copy(R4, R2).add(R4, HEADER + 4).jump_if_above(R4, R3, "lost");
    for location in [0, 4, 8] {
        code.load_word(R5, R2, location + 4).store_word(R2, location, R5);
    }
    code.load_half(R5, R10, TAG_TYPE).store_half(R2, 12, R5);
    code.load_half(R5, R10, TAG).to_network_order_16(R5).store_half(R2, 14, R5).jump("whole");
    code.place("lost").load_word(R4, R6, RX_QUEUE_INDEX).store_word(R10, KEY, R4);
    code.load_map(R1, drop_table).copy(R2, R10).add(R2, KEY.into()).call(MAP_LOOKUP_ELEM);
    code.jump_if(R0, If::Equal, 0, "gone").set(R1, 1).add_at_once(R0, DropTable::LOST, R1);
    code.place("gone").set(R0, XDP_DROP.cast_signed()).exit().place("whole");
}

/// Emits the program; it begins with [`put_tag_back`] if there are `tags`.
///
/// ```c
/// if (data + 14 > data_end || !(data[0] & 1) || is_spared(data)) goto redirect;
/// entry = bpf_map_lookup_elem(shedding, &context->rx_queue_index);
/// if (!entry) goto redirect;
/// part = is_broadcast(data) ? &entry->broadcast : &entry->multicast;
/// if (!part->until || bpf_ktime_get_boot_ns() >= part->until) goto redirect;
/// part->frames += 1;                                  // atomically
/// part->bytes += bpf_xdp_get_buff_len(context);
/// return XDP_DROP;
/// redirect:
/// return bpf_redirect_map(sockets, context->rx_queue_index, no_socket);
/// ```
fn redirect(
    sockets: BorrowedFd<'_>,
    drop_table: BorrowedFd<'_>,
    no_socket: NoSocketAction,
    tags: Option<KernelFunction>,
) -> Result<Vec<Instruction>, AssembleError> {
    // The helper returns the lower two bits of the flags if there is no socket.
    let flags = match no_socket {
        NoSocketAction::Drop => XDP_DROP,
        NoSocketAction::PassToStack => XDP_PASS,
    };
    let mut code = Assembler::new();
    code.copy(R6, R1);
    if let Some(function) = tags {
        put_tag_back(&mut code, function, drop_table);
    }
    code.load_word(R2, R6, DATA).load_word(R3, R6, DATA_END);
    code.copy(R4, R2).add(R4, HEADER).jump_if_above(R4, R3, "redirect");
    code.load_byte(R5, R2, 0).and(R5, 1).jump_if(R5, If::Equal, 0, "redirect");
    code.load_word(R7, R2, 0).load_half(R8, R2, 4);
    for (group, next) in NEVER_DROP.into_iter().zip(["second", "third", "look up"]) {
        let (word, half) = parts(group);
        code.jump_if_word_differs(R7, word, next).jump_if(R8, If::Equal, half, "redirect").place(next);
    }
    code.load_word(R4, R6, RX_QUEUE_INDEX).store_word(R10, KEY, R4);
    code.load_map(R1, drop_table).copy(R2, R10).add(R2, KEY.into()).call(MAP_LOOKUP_ELEM);
    code.jump_if(R0, If::Equal, 0, "redirect").copy(R9, R0);
    let (word, half) = parts(Mac::BROADCAST);
    code.jump_if_word_differs(R7, word, "multicast").jump_if(R8, If::Equal, half, "is it time");
    code.place("multicast").add(R9, DropTable::TO_MULTICAST.into());
    code.place("is it time").load_long(R7, R9, DropTable::UNTIL).jump_if(R7, If::Equal, 0, "redirect");
    code.call(KTIME_GET_BOOT_NS).jump_if_above(R7, R0, "shed").jump("redirect");
    code.place("shed").set(R1, 1).add_at_once(R9, DropTable::FRAMES, R1);
    code.copy(R1, R6).call(XDP_GET_BUFF_LEN).add_at_once(R9, DropTable::BYTES, R0);
    code.set(R0, XDP_DROP.cast_signed()).exit();
    code.place("redirect").load_word(R2, R6, RX_QUEUE_INDEX);
    code.load_map(R1, sockets).set(R3, flags.cast_signed()).call(REDIRECT_MAP).exit();
    code.finish()
}

/// An address as two loads: its first four bytes, and its last two.
fn parts(mac: Mac) -> (u32, i32) {
    let [a, b, c, d, e, f] = mac.octets();
    (u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]).into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::time::Duration;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

    use super::*;
    use crate::device::{DropCount, GroupClass, XdpDropped};
    use crate::sys::bpf::{Ran, XDP_REDIRECT};
    use crate::time::{self, MonoTime};

    /// Whether programs can be loaded; prints a message if not.
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
    fn the_listing_is_as_documented() {
        let (sockets, drop_table) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        for (no_socket, verdict) in [(NoSocketAction::Drop, 1), (NoSocketAction::PassToStack, 2)] {
            let code = redirect(sockets.as_fd(), drop_table.as_fd(), no_socket, None).unwrap();
            let listing: Vec<String> = code
                .iter()
                .map(|i| format!("{:02x} r{} r{} {:+} {}", i.code, i.target(), i.source(), i.offset, i.immediate))
                .collect();
            let word = |bytes: [u8; 4]| u32::from_ne_bytes(bytes).cast_signed();
            let half = |bytes: [u8; 2]| u16::from_ne_bytes(bytes);
            let expected = [
                "bf r6 r1 +0 0".to_owned(),  // r6 = context
                "61 r2 r6 +0 0".to_owned(),  // r2 = data
                "61 r3 r6 +4 0".to_owned(),  // r3 = data_end
                "bf r4 r2 +0 0".to_owned(),  //
                "07 r4 r0 +0 14".to_owned(), //
                "2d r4 r3 +35 0".to_owned(), // too short: redirect
                "71 r5 r2 +0 0".to_owned(),  // r5 = data[0]
                "57 r5 r0 +0 1".to_owned(),  //
                "15 r5 r0 +32 0".to_owned(), // to a station: redirect
                "61 r7 r2 +0 0".to_owned(),  // r7 = data[0..4]
                "69 r8 r2 +4 0".to_owned(),  // r8 = data[4..6]
                format!("56 r7 r0 +1 {}", word([0x03, 0x76, 0x69, 0x66])),
                format!("15 r8 r0 +28 {}", half([0x73, 0x77])), // a probe: redirect
                format!("56 r7 r0 +1 {}", word([0x01, 0x80, 0xc2, 0x00])),
                "15 r8 r0 +26 0".to_owned(), // spanning tree: redirect
                format!("56 r7 r0 +1 {}", word([0x01, 0x00, 0x0c, 0xcc])),
                format!("15 r8 r0 +24 {}", half([0xcc, 0xcd])), // PVST: redirect
                "61 r4 r6 +16 0".to_owned(),                    // the receive queue is the key
                "63 r10 r4 -4 0".to_owned(),                    //
                format!("18 r1 r1 +0 {}", drop_table.as_raw_fd()), // r1 = drop table
                "00 r0 r0 +0 0".to_owned(),                     //
                "bf r2 r10 +0 0".to_owned(),                    // r2 = &key
                "07 r2 r0 +0 -4".to_owned(),                    //
                "85 r0 r0 +0 1".to_owned(),                     // r0 = bpf_map_lookup_elem(r1, r2)
                "15 r0 r0 +16 0".to_owned(),                    // no such queue: redirect
                "bf r9 r0 +0 0".to_owned(),                     // r9 = entry
                "56 r7 r0 +1 -1".to_owned(),                    //
                "15 r8 r0 +1 65535".to_owned(),                 // a broadcast
                "07 r9 r0 +0 24".to_owned(),                    // the entry of multicasts
                "79 r7 r9 +0 0".to_owned(),                     // r7 = until
                "15 r7 r0 +10 0".to_owned(),                    // never: redirect
                "85 r0 r0 +0 125".to_owned(),                   // r0 = bpf_ktime_get_boot_ns()
                "2d r7 r0 +1 0".to_owned(),                     // until > now: drop
                "05 r0 r0 +7 0".to_owned(),                     // redirect
                "b7 r1 r0 +0 1".to_owned(),                     //
                "db r9 r1 +8 0".to_owned(),                     // frames += 1
                "bf r1 r6 +0 0".to_owned(),                     //
                "85 r0 r0 +0 188".to_owned(),                   // r0 = bpf_xdp_get_buff_len(context)
                "db r9 r0 +16 0".to_owned(),                    // bytes += r0
                "b7 r0 r0 +0 1".to_owned(),                     // return XDP_DROP
                "95 r0 r0 +0 0".to_owned(),                     //
                "61 r2 r6 +16 0".to_owned(),                    // r2 = context->rx_queue_index
                format!("18 r1 r1 +0 {}", sockets.as_raw_fd()), // r1 = sockets
                "00 r0 r0 +0 0".to_owned(),                     //
                format!("b7 r3 r0 +0 {verdict}"),               // r3 = no_socket
                "85 r0 r0 +0 51".to_owned(),                    // r0 = bpf_redirect_map(r1, r2, r3)
                "95 r0 r0 +0 0".to_owned(),                     // return r0
            ];
            assert_eq!(listing, expected);
        }
    }

    /// A frame of this length to `mac`.
    fn to(mac: Mac, len: usize) -> Vec<u8> {
        [&mac.octets()[..], &[2, 0, 0, 0, 0, 1, 0x88, 0xb5], &vec![7; len - 14]].concat()
    }

    /// A time that never comes.
    const NEVER_OVER: MonoTime = MonoTime::from_nanos(u64::MAX);

    /// While the time is not over, frames to groups of one class are dropped and counted, to the byte, and all others
    /// are redirected.
    #[test]
    fn blocked_groups_are_dropped_and_counted_and_nothing_else() {
        if !may_load() {
            return;
        }
        let (sockets, drop_table, socket) = (XskMap::new(1).unwrap(), DropTable::new(1).unwrap(), socket());
        sockets.set(0, socket.as_fd()).unwrap();
        let program = load(&sockets, &drop_table, NoSocketAction::Drop, None).unwrap();
        // Addresses next to the excepted ones and to broadcast are not excepted.
        let near = NEVER_DROP
            .into_iter()
            .chain([Mac::BROADCAST])
            .flat_map(|mac| (0..48).map(move |bit| Mac::from_bits(mac.bits() ^ 1 << bit)).chain([mac]));
        let any = (0u64..200).map(|n| Mac::from_bits(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16));
        let all: Vec<Mac> = near.chain(any).collect();
        let over = MonoTime::from_nanos(1);
        let mut expected = XdpDropped::default();
        for (broadcast, multicast) in [
            (MonoTime::default(), MonoTime::default()),
            (NEVER_OVER, over),
            (over, NEVER_OVER),
            (NEVER_OVER, NEVER_OVER),
        ] {
            drop_table.set_blocked_until(0, GroupClass::Broadcast, broadcast);
            drop_table.set_blocked_until(0, GroupClass::Multicast, multicast);
            for (len, &mac) in (14..1514).cycle().step_by(37).zip(&all) {
                let group = if mac == Mac::BROADCAST { GroupClass::Broadcast } else { GroupClass::Multicast };
                let until = if mac == Mac::BROADCAST { broadcast } else { multicast };
                let dies = mac.is_group() && !NEVER_DROP.contains(&mac) && until == NEVER_OVER;
                if dies {
                    expected[group].frames += 1;
                    expected[group].bytes += len as u64;
                }
                let ran = program.test_run(&to(mac, len), None).unwrap();
                assert_eq!(ran.verdict, if dies { XDP_DROP } else { XDP_REDIRECT }, "{mac}");
                assert_eq!(ran.frame, to(mac, len), "{mac}");
            }
            for group in GroupClass::ALL {
                assert_eq!(drop_table.total(0, group), expected[group], "{group:?}");
            }
        }
        assert!(GroupClass::ALL.iter().all(|&group| expected[group].frames > 1));
    }

    /// The program's clock is the switch's clock.
    #[test]
    fn the_clocks_of_program_and_switch_agree() {
        if !may_load() {
            return;
        }
        let (sockets, drop_table) = (XskMap::new(1).unwrap(), DropTable::new(1).unwrap());
        let program = load(&sockets, &drop_table, NoSocketAction::PassToStack, None).unwrap();
        let verdict = || program.test_run(&to(Mac::BROADCAST, 60), None).unwrap().verdict;
        let mut dropped = 0;
        for micros in [0, 10, 1_000, 30_000] {
            let until = time::now() + Duration::from_micros(micros);
            drop_table.set_blocked_until(0, GroupClass::Broadcast, until);
            loop {
                let before = time::now();
                let verdict = verdict();
                let after = time::now();
                dropped += u64::from(verdict == XDP_DROP);
                match verdict {
                    XDP_DROP => assert!(before < until),
                    _ => assert!(after >= until),
                }
                if after >= until {
                    break;
                }
            }
        }
        assert_eq!(drop_table.total(0, GroupClass::Broadcast), DropCount { frames: dropped, bytes: dropped * 60 });
        assert!(dropped > 0, "30 ms are enough for one run");
        // Clearing takes effect at once.
        drop_table.set_blocked_until(0, GroupClass::Broadcast, NEVER_OVER);
        assert_eq!(verdict(), XDP_DROP);
        drop_table.set_blocked_until(0, GroupClass::Broadcast, MonoTime::default());
        assert_eq!(verdict(), XDP_PASS);
    }

    #[test]
    fn frames_of_any_length_reach_the_socket_unmodified() {
        if !may_load() {
            return;
        }
        for (no_socket, verdict) in [(NoSocketAction::Drop, XDP_DROP), (NoSocketAction::PassToStack, XDP_PASS)] {
            let sockets = XskMap::new(2).unwrap();
            let program = load(&sockets, &DropTable::new(2).unwrap(), no_socket, None).unwrap();
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
    fn an_index_beyond_a_map_is_refused() {
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
    fn verifier_errors_are_quoted() {
        if !may_load() {
            return;
        }
        let code = Assembler::new().load_word(R0, R5, 0).exit().finish().unwrap();
        let e = Program::load(&code, true).unwrap_err();
        assert_eq!(e.source.raw_os_error(), Some(libc::EACCES));
        assert!(e.log.contains("R5 !read_ok"), "{e}");
        assert!(e.to_string().contains(&e.log) && e.to_string().contains("os error 13"), "{e}");
        // The verifier log exceeds its buffer, which is an error of its own.
        let mut code = Assembler::new();
        code.load_word(R2, R1, RX_QUEUE_INDEX);
        for _ in 0..500 {
            code.add(R2, 1);
        }
        let e = Program::load(&code.load_word(R0, R5, 0).exit().finish().unwrap(), true).unwrap_err();
        assert_eq!(e.source.raw_os_error(), Some(libc::EACCES), "the error of the program, not of the log");
        assert!((1000..4096).contains(&e.log.len()), "{e}");
        let e = Program::load(&[], true).unwrap_err();
        assert_eq!((e.source.raw_os_error(), e.log.as_str()), (Some(libc::E2BIG), ""));
    }

    #[test]
    fn the_kernel_jumps_where_the_assembler_says() {
        if !may_load() {
            return;
        }
        // forward, backward, forward; each other path ends without the sum
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
