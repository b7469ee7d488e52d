//! BPF programs: load, test run, program id.

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use thiserror::Error;

use super::{LICENSE, LoadAttributes, NAME, PROG_LOAD, address, call, number, open};

/// XDP_DROP, of `enum xdp_action`: the frame dies here.
pub const XDP_DROP: u32 = 1;
/// XDP_PASS: the frame goes on to the network stack.
pub const XDP_PASS: u32 = 2;
/// XDP_REDIRECT: the frame goes where the program has said.
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

/// Bytes for what the verifier has to say. Of what is longer it keeps the end (until Linux 6.4, the
/// beginning).
const LOG: usize = 4096;

/// How often a load is tried again that a signal has come into.
const INTERRUPTIONS: u32 = 5;

/// Room for what a program puts in front of a frame in a test run: XDP_PACKET_HEADROOM.
const HEADROOM: usize = 256;

/// One instruction of a program: `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Instruction {
    /// What to do: class, source and operation.
    pub code: u8,
    /// Two nibbles, of which the byte order of the machine says which is which.
    registers: u8,
    /// Of a jump, counted in instructions from the next one; of a load or store, in bytes.
    pub offset: i16,
    /// A constant.
    pub immediate: i32,
}
const _: () = assert!(size_of::<Instruction>() == 8);

impl Instruction {
    /// An instruction over the registers `target` and `source`, of which only the lower four bits
    /// count.
    pub const fn new(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
        let registers =
            if cfg!(target_endian = "little") { source << 4 | target & 0xf } else { target << 4 | source & 0xf };
        Instruction { code, registers, offset, immediate }
    }

    /// The register that is changed or compared.
    pub const fn target(self) -> u8 {
        if cfg!(target_endian = "little") { self.registers & 0xf } else { self.registers >> 4 }
    }

    /// The other register.
    pub const fn source(self) -> u8 {
        if cfg!(target_endian = "little") { self.registers >> 4 } else { self.registers & 0xf }
    }
}

/// Why a program was not loaded.
#[derive(Debug, Error)]
#[error("the kernel does not take the XDP program: {source}{}", in_its_words(.log))]
pub struct LoadError {
    /// How it failed. EPERM is a missing capability; EACCES, EINVAL and E2BIG are the verifier's.
    pub source: io::Error,
    /// What the verifier said; empty if it was not asked.
    pub log: String,
}

fn in_its_words(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; its verifier says:\n{log}") }
}

/// A loaded XDP program.
#[derive(Debug)]
pub struct Program(OwnedFd);

/// Where and how a frame of a [test run](Program::test_run) arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The index of a netdev in the namespace of the calling thread. Its driver must know XDP, and a
    /// program be attached natively.
    pub ifindex: u32,
    /// One of its receive queues.
    pub queue: u32,
}

/// What a [test run](Program::test_run) came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// What shall become of the frame, such as [`XDP_PASS`].
    pub verdict: u32,
    /// The frame as the program has left it.
    pub frame: Vec<u8>,
}

/// The attributes of PROG_TEST_RUN, as far as we have any.
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

/// `struct xdp_md`, what a program is told of a frame.
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

/// The beginning of `struct bpf_prog_info`, of which the kernel fills in as much as there is room for.
#[repr(C)]
struct Info {
    kind: u32,
    id: u32,
}
const INFO: u32 = 8;
const _: () = assert!(size_of::<Info>() == INFO as usize);

/// The attributes of OBJ_GET_INFO_BY_FD.
#[repr(C)]
pub(super) struct InfoAttributes {
    pub(super) fd: u32,
    pub(super) size: u32,
    pub(super) info: u64,
}
const _: () = assert!(size_of::<InfoAttributes>() == 16);

impl Program {
    /// Loads a program. `frags` says that it knows frames in more than one piece; without, it cannot
    /// be attached where frames are longer than a page.
    ///
    /// Needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN.
    pub fn load(code: &[Instruction], frags: bool) -> Result<Program, LoadError> {
        Program::load_with(code, frags, None)
    }

    /// The same for one netdev of the calling thread's namespace, by index. Such a program may call the driver's
    /// functions that read metadata of a frame, and attaches natively to this netdev only. EINVAL: the kernel is
    /// older than Linux 6.3.
    pub fn load_for(code: &[Instruction], frags: bool, ifindex: u32) -> Result<Program, LoadError> {
        Program::load_with(code, frags, Some(ifindex))
    }

    fn load_with(code: &[Instruction], frags: bool, ifindex: Option<u32>) -> Result<Program, LoadError> {
        let source = match load(code, frags, ifindex, &mut []) {
            Ok(program) => return Ok(Program(program)),
            Err(source) => source,
        };
        // The log is asked for separately: with one, not having had the room for it is an error, too,
        // and takes the place of the one that is looked for.
        let mut log = vec![0; LOG];
        match load(code, frags, ifindex, &mut log) {
            Ok(program) => Ok(Program(program)),
            Err(_) => {
                let text = log.split(|&byte| byte == 0).next().unwrap_or_default();
                Err(LoadError { source, log: String::from_utf8_lossy(text).trim_end().to_owned() })
            }
        }
    }

    /// Its number among all programs of the host, by which the kernel tells what is attached.
    pub fn id(&self) -> io::Result<u32> {
        let mut info = Info { kind: 0, id: 0 };
        let mut attributes = InfoAttributes { fd: number(&self.0), size: INFO, info: address(&raw mut info) };
        // SAFETY: the kernel reads and writes as many bytes of `info` as it has, which outlives the call.
        unsafe { call(OBJ_GET_INFO_BY_FD, &mut attributes) }?;
        Ok(info.id)
    }

    /// Runs the program once over a frame, which goes nowhere. Without an `arrival` it comes from
    /// queue 0 of the loopback.
    ///
    /// The frame needs the 14 bytes of its header and must fit into a page with its surroundings.
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
        // SAFETY: the kernel reads `frame` and `context` and writes to `out`, all of the sizes that it
        // is told; they outlive the call.
        unsafe { call(PROG_TEST_RUN, &mut attributes) }?;
        out.truncate(attributes.size_out as usize);
        Ok(Ran { verdict: attributes.verdict, frame: out })
    }
}

/// PROG_LOAD, with the words of the verifier in `log` if that has room for any.
fn load(code: &[Instruction], frags: bool, ifindex: Option<u32>, log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attributes = LoadAttributes {
        kind: TYPE_XDP,
        count: u32::try_from(code.len()).unwrap_or(u32::MAX), // far more than it takes
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
        // SAFETY: the kernel reads `count` instructions and a text that ends with a zero, and writes at
        // most `log_size` bytes to `log`; they all outlive the call.
        match unsafe { open(PROG_LOAD, &mut attributes) } {
            // The verifier stops at once for any signal.
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
