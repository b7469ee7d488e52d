//! BPF programs: load, test run, id.

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use thiserror::Error;

use super::{LICENSE, LoadAttributes, NAME, PROG_LOAD, address, call, number, open};

/// XDP_DROP, of `enum xdp_action`: drop the frame.
pub const XDP_DROP: u32 = 1;
/// XDP_PASS: pass the frame to the network stack.
pub const XDP_PASS: u32 = 2;
/// XDP_REDIRECT: redirect the frame, as a helper has set it up.
pub const XDP_REDIRECT: u32 = 4;

// enum bpf_cmd
const PROG_TEST_RUN: c_long = 10;
const OBJ_GET_INFO_BY_FD: c_long = 15;

/// BPF_PROG_TYPE_XDP
const TYPE_XDP: u32 = 6;
/// BPF_F_XDP_HAS_FRAGS
const HAS_FRAGS: u32 = 1 << 5;
/// BPF_F_XDP_DEV_BOUND_ONLY
const DEVICE_BOUND: u32 = 1 << 6;

/// Size of the verifier log in bytes. The kernel truncates the beginning of a longer log (before Linux 6.4, the end).
const LOG: usize = 4096;

/// Retries of a load that a signal has interrupted.
const INTERRUPTIONS: u32 = 5;

/// Headroom for a test run: XDP_PACKET_HEADROOM.
const HEADROOM: usize = 256;

/// An instruction: `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Instruction {
    /// Opcode: class, source and operation.
    pub code: u8,
    /// Two nibbles; their order depends on the machine's byte order.
    registers: u8,
    /// Of a jump, in instructions from the next one; of a load or store, in bytes.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}
const _: () = assert!(size_of::<Instruction>() == 8);

impl Instruction {
    /// Builds an instruction. Only the lower four bits of the registers `target` and `source` count.
    pub const fn new(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
        let registers =
            if cfg!(target_endian = "little") { source << 4 | target & 0xf } else { target << 4 | source & 0xf };
        Instruction { code, registers, offset, immediate }
    }

    /// Destination register.
    pub const fn target(self) -> u8 {
        if cfg!(target_endian = "little") { self.registers & 0xf } else { self.registers >> 4 }
    }

    /// Source register.
    pub const fn source(self) -> u8 {
        if cfg!(target_endian = "little") { self.registers >> 4 } else { self.registers & 0xf }
    }
}

/// Error of loading a program.
#[derive(Debug, Error)]
#[error("the kernel rejects the XDP program: {source}{}", in_its_words(.log))]
pub struct LoadError {
    /// The error. EPERM: a missing capability. EACCES, EINVAL and E2BIG are the verifier's.
    pub source: io::Error,
    /// Verifier log; empty if the verifier did not run.
    pub log: String,
}

fn in_its_words(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; verifier log:\n{log}") }
}

/// A loaded XDP program.
#[derive(Debug)]
pub struct Program(OwnedFd);

/// Netdev and queue of a frame in a [test run](Program::test_run).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Interface index in the calling thread's namespace. Its driver must support XDP and have a native program.
    pub ifindex: u32,
    /// Receive queue.
    pub queue: u32,
}

/// Result of a [test run](Program::test_run).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Verdict of the program, such as [`XDP_PASS`].
    pub verdict: u32,
    /// The frame as modified by the program.
    pub frame: Vec<u8>,
}

/// Attributes of PROG_TEST_RUN, as far as used.
#[repr(C)]
#[derive(Default)]
struct RunAttributes {
    program: u32,
    verdict: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
}
const _: () = assert!(size_of::<RunAttributes>() == 64);

/// `struct xdp_md`, the program's context.
#[repr(C)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

const CONTEXT: u32 = 24;
const _: () = assert!(size_of::<Context>() == CONTEXT as usize);

/// The beginning of `struct bpf_prog_info`; the kernel fills in as much as the given size.
#[repr(C)]
struct Info {
    kind: u32,
    id: u32,
}
const INFO: u32 = 8;
const _: () = assert!(size_of::<Info>() == INFO as usize);

/// Attributes of OBJ_GET_INFO_BY_FD.
#[repr(C)]
pub(super) struct InfoAttributes {
    pub(super) fd: u32,
    pub(super) size: u32,
    pub(super) info: u64,
}
const _: () = assert!(size_of::<InfoAttributes>() == 16);

impl Program {
    /// Loads a program. `frags`: the program supports frames in several fragments; else it cannot be attached to a
    /// netdev with frames longer than a page.
    ///
    /// Needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN.
    pub fn load(code: &[Instruction], frags: bool) -> Result<Program, LoadError> {
        Program::load_with(code, frags, None)
    }

    /// Loads a program for one netdev of the calling thread's namespace, by index. It may call the driver's functions
    /// for receive metadata, and can be attached to this netdev only, natively. EINVAL: before Linux 6.3.
    pub fn load_for(code: &[Instruction], frags: bool, ifindex: u32) -> Result<Program, LoadError> {
        Program::load_with(code, frags, Some(ifindex))
    }

    fn load_with(code: &[Instruction], frags: bool, ifindex: Option<u32>) -> Result<Program, LoadError> {
        let source = match load(code, frags, ifindex, &mut []) {
            Ok(program) => return Ok(Program(program)),
            Err(source) => source,
        };
        // A separate load fetches the log: with a log, the kernel may report a full log instead of the actual error.
        let mut log = vec![0; LOG];
        match load(code, frags, ifindex, &mut log) {
            Ok(program) => Ok(Program(program)),
            Err(_) => {
                let text = log.split(|&byte| byte == 0).next().unwrap_or_default();
                Err(LoadError { source, log: String::from_utf8_lossy(text).trim_end().to_owned() })
            }
        }
    }

    /// Program id, unique on the host; the kernel reports it for attached programs.
    pub fn id(&self) -> io::Result<u32> {
        let mut info = Info { kind: 0, id: 0 };
        let mut attributes = InfoAttributes { fd: number(&self.0), size: INFO, info: address(&raw mut info) };
        // SAFETY: the kernel reads and writes `size` bytes of `info`, which outlives the call.
        unsafe { call(OBJ_GET_INFO_BY_FD, &mut attributes) }?;
        Ok(info.id)
    }

    /// Runs the program once with a frame, and sends it nowhere. Default `arrival`: queue 0 of the loopback.
    ///
    /// The frame must have its 14-byte header and fit into a page with headroom and tailroom.
    pub fn test_run(&self, frame: &[u8], arrival: Option<Arrival>) -> io::Result<Ran> {
        let mut out = vec![0; frame.len() + HEADROOM];
        let size = |bytes: usize| u32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput);
        let (size_in, size_out) = (size(frame.len())?, size(out.len())?);
        let mut attributes = RunAttributes {
            program: number(&self.0),
            size_in,
            size_out,
            data_in: address(frame.as_ptr()),
            data_out: address(out.as_mut_ptr()),
            repeat: 1,
            ..RunAttributes::default()
        };
        let context = arrival.map(|Arrival { ifindex, queue }| Context {
            data: 0,
            data_end: size_in,
            data_meta: 0,
            ingress_ifindex: ifindex,
            rx_queue_index: queue,
            egress_ifindex: 0,
        });
        if let Some(context) = &context {
            attributes.context_in = address(context);
            attributes.context_size_in = CONTEXT;
        }
        // SAFETY: the kernel reads `frame` and `context` and writes `out`, within the given sizes; they outlive the
        // call.
        unsafe { call(PROG_TEST_RUN, &mut attributes) }?;
        out.truncate(attributes.size_out as usize);
        Ok(Ran { verdict: attributes.verdict, frame: out })
    }
}

/// Calls PROG_LOAD, with the verifier log in `log` unless it is empty.
fn load(code: &[Instruction], frags: bool, ifindex: Option<u32>, log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attributes = LoadAttributes {
        kind: TYPE_XDP,
        count: u32::try_from(code.len()).unwrap_or(u32::MAX), // far beyond the kernel's limit
        code: address(code.as_ptr()),
        license: address(LICENSE.as_ptr()),
        log_level: u32::from(!log.is_empty()),
        log_size: u32::try_from(log.len()).unwrap_or(u32::MAX),
        log: if log.is_empty() { 0 } else { address(log.as_mut_ptr()) },
        flags: if frags { HAS_FRAGS } else { 0 } | if ifindex.is_some() { DEVICE_BOUND } else { 0 },
        name: NAME,
        ifindex: ifindex.unwrap_or_default(),
        ..LoadAttributes::default()
    };
    let mut interruptions = 0;
    loop {
        // SAFETY: the kernel reads `count` instructions and a zero-terminated string, and writes at most `log_size`
        // bytes to `log`; all outlive the call.
        match unsafe { open(PROG_LOAD, &mut attributes) } {
            // A pending signal aborts the verifier.
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && interruptions < INTERRUPTIONS => interruptions += 1,
            done => return done,
        }
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
