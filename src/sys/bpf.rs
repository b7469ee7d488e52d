//! XDP programs, and what they are attached to netdevs with: bpf(2), of which `rustix` has nothing.
//!
//! A [`Program`] is loaded from instructions, finds its sockets in an [`XskMap`], and runs wherever a
//! [`Link`] attaches it. Each of these is a file descriptor: a program and a map live as long as
//! something uses them, a link as long as its descriptor. So a process that dies, however it dies,
//! leaves nothing attached.
//!
//! Errors carry the errno of the kernel (`raw_os_error`): what it means depends on the netdev, and is
//! for those to say who know it.

use std::ffi::{CStr, c_int, c_long};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use thiserror::Error;

/// XDP_DROP, of `enum xdp_action`: the frame dies here.
pub const XDP_DROP: u32 = 1;
/// XDP_PASS: the frame goes on to the network stack.
pub const XDP_PASS: u32 = 2;
/// XDP_REDIRECT: the frame goes where the program has said.
pub const XDP_REDIRECT: u32 = 4;

// enum bpf_cmd
const MAP_CREATE: c_long = 0;
const MAP_UPDATE_ELEM: c_long = 2;
const MAP_DELETE_ELEM: c_long = 3;
const PROG_LOAD: c_long = 5;
const PROG_TEST_RUN: c_long = 10;
const OBJ_GET_INFO_BY_FD: c_long = 15;
const LINK_CREATE: c_long = 28;
const LINK_UPDATE: c_long = 29;

/// BPF_PROG_TYPE_XDP
const TYPE_XDP: u32 = 6;
/// BPF_MAP_TYPE_XSKMAP
const TYPE_XSKMAP: u32 = 17;
/// BPF_XDP, of `enum bpf_attach_type`
const ATTACH_XDP: u32 = 37;
/// BPF_F_XDP_HAS_FRAGS
const HAS_FRAGS: u32 = 1 << 5;
// linux/if_link.h
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// The project's own licence in the words of the kernel, for which it is one of those that may call
/// every helper.
const LICENSE: &CStr = c"Dual MIT/GPL";

/// What programs and maps are called where people list them, as `bpftool` does.
const NAME: [u8; 16] = *b"vifswitch\0\0\0\0\0\0\0";

/// Bytes for what the verifier has to say. It keeps the end of what is longer.
const LOG: usize = 64 << 10;

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
    /// How it failed. EACCES and EINVAL are the verifier's, EPERM is a missing capability.
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

/// The attributes of PROG_LOAD, as far as we have any.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    count: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}
const _: () = assert!(size_of::<LoadAttributes>() == 64);

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

/// The attributes of OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct InfoAttributes {
    fd: u32,
    size: u32,
    info: u64,
}

impl Program {
    /// Loads a program. `frags` says that it knows frames in more than one piece; without, it cannot
    /// be attached where frames are longer than a page.
    ///
    /// Needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN.
    pub fn load(code: &[Instruction], frags: bool) -> Result<Program, LoadError> {
        // A log is asked for only when there is something to tell: it has to fit and takes its time.
        if let Ok(fd) = load(code, frags, &mut []) {
            return Ok(Program(fd));
        }
        let mut log = vec![0; LOG];
        load(code, frags, &mut log).map(Program).map_err(|source| {
            let text = log.split(|&byte| byte == 0).next().unwrap_or_default();
            LoadError { source, log: String::from_utf8_lossy(text).trim_end().to_owned() }
        })
    }

    /// Its number among all programs of the host, by which the kernel tells what is attached.
    pub fn id(&self) -> io::Result<u32> {
        // struct bpf_prog_info begins with the type and the id; the kernel fills in as much as fits.
        let mut info = [0u32; 2];
        let info_address = address(&raw mut info);
        let mut attributes =
            InfoAttributes { fd: number(&self.0), size: size_of_val(&info) as u32, info: info_address };
        // SAFETY: the kernel writes as many bytes as `size` says to `info`, which outlives the call.
        unsafe { call(OBJ_GET_INFO_BY_FD, &mut attributes) }?;
        Ok(info[1])
    }

    /// Runs the program once over a frame, which goes nowhere. Without an `arrival` it comes from
    /// queue 0 of the loopback.
    ///
    /// The frame needs the 14 bytes of its header and must fit into a page with its surroundings.
    pub fn test_run(&self, frame: &[u8], arrival: Option<Arrival>) -> io::Result<Ran> {
        let size_in = u32::try_from(frame.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut out = vec![0; frame.len() + HEADROOM];
        let mut attributes = RunAttributes {
            program: number(&self.0),
            size_in,
            size_out: size_in + HEADROOM as u32,
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
            attributes.context_size_in = size_of::<Context>() as u32;
        }
        // SAFETY: the kernel reads `frame` and `context` and writes to `out`, all of the sizes that it
        // is told; they outlive the call.
        unsafe { call(PROG_TEST_RUN, &mut attributes) }?;
        out.truncate(attributes.size_out as usize);
        Ok(Ran { verdict: attributes.verdict, frame: out })
    }
}

/// PROG_LOAD, with the words of the verifier in `log` if that has room for any.
fn load(code: &[Instruction], frags: bool, log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attributes = LoadAttributes {
        kind: TYPE_XDP,
        count: u32::try_from(code.len()).unwrap_or(u32::MAX), // far more than it takes
        code: address(code.as_ptr()),
        license: address(LICENSE.as_ptr()),
        log_level: u32::from(!log.is_empty()),
        log_size: u32::try_from(log.len()).unwrap_or(u32::MAX),
        log: if log.is_empty() { 0 } else { address(log.as_mut_ptr()) },
        kernel_version: 0,
        flags: if frags { HAS_FRAGS } else { 0 },
        name: NAME,
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

/// Which socket the frames of which queue go to.
#[derive(Debug)]
pub struct XskMap(OwnedFd);

/// The attributes of MAP_CREATE, as far as we have any.
#[repr(C)]
struct MapAttributes {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    node: u32,
    name: [u8; 16],
}
const _: () = assert!(size_of::<MapAttributes>() == 44);

/// The attributes of MAP_UPDATE_ELEM and MAP_DELETE_ELEM.
#[repr(C)]
struct EntryAttributes {
    map: u32,
    unused: u32,
    key: u64,
    value: u64,
    flags: u64,
}
const _: () = assert!(size_of::<EntryAttributes>() == 32);

impl XskMap {
    /// A map for the queues 0 to `queues` - 1, none of which has a socket yet.
    pub fn new(queues: u32) -> io::Result<XskMap> {
        let (kind, key_size, value_size) = (TYPE_XSKMAP, size_of::<u32>() as u32, size_of::<RawFd>() as u32);
        let mut attributes =
            MapAttributes { kind, key_size, value_size, entries: queues, flags: 0, inner: 0, node: 0, name: NAME };
        // SAFETY: there are no addresses in these attributes.
        unsafe { open(MAP_CREATE, &mut attributes) }.map(XskMap)
    }

    /// From now on the frames of `queue` go to `socket`, an AF_XDP socket that is bound to that queue.
    /// The entry goes with the socket.
    pub fn set(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let socket = number(&socket);
        self.entry(MAP_UPDATE_ELEM, queue, Some(&socket))
    }

    /// From now on `queue` has no socket.
    pub fn clear(&self, queue: u32) -> io::Result<()> {
        self.entry(MAP_DELETE_ELEM, queue, None)
    }

    fn entry(&self, command: c_long, queue: u32, value: Option<&u32>) -> io::Result<()> {
        let (key, value) = (address(&queue), value.map_or(0, |value| address(value)));
        let mut attributes = EntryAttributes { map: number(&self.0), unused: 0, key, value, flags: 0 };
        // SAFETY: the kernel reads a key of four bytes and, where the command sets an entry, a value of
        // four bytes, with which `set` comes; both outlive the call.
        unsafe { call(command, &mut attributes) }.map(drop)
    }
}

impl AsFd for XskMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Where in the way of a frame a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Attach {
    /// In the driver, before there is anything but bytes.
    Native,
    /// In the network stack, which any netdev has. Each frame costs more by far.
    Generic,
}

/// A program on a netdev, for as long as this is held.
///
/// Nobody can put another in its place meanwhile. When the netdev is deleted the link stays, and is
/// attached to nothing.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// The attributes of LINK_CREATE, as far as we have any.
#[repr(C)]
struct LinkAttributes {
    program: u32,
    ifindex: u32,
    kind: u32,
    flags: u32,
}

/// The attributes of LINK_UPDATE.
#[repr(C)]
struct UpdateAttributes {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

impl Link {
    /// Attaches a program to the netdev with this index in the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// EBUSY: a program is there already, in the same mode; EEXIST: in the other one. EOPNOTSUPP: the
    /// driver has no native mode. ERANGE: frames may be longer than the program is ready for; on a
    /// veth it is the MTU of the peer that counts. EINVAL: no netdev has this index, or it is one of
    /// those that cannot have a program now. EPERM: CAP_NET_ADMIN is missing.
    pub fn attach(program: &Program, ifindex: u32, attach: Attach) -> io::Result<Link> {
        let flags = match attach {
            Attach::Native => XDP_FLAGS_DRV_MODE,
            Attach::Generic => XDP_FLAGS_SKB_MODE,
        };
        let mut attributes = LinkAttributes { program: number(&program.0), ifindex, kind: ATTACH_XDP, flags };
        // SAFETY: there are no addresses in these attributes.
        unsafe { open(LINK_CREATE, &mut attributes) }.map(Link)
    }

    /// Puts another program in the place of the one that is attached. Each frame meets one or the
    /// other. ENOLINK: the netdev is gone.
    pub fn update(&self, program: &Program) -> io::Result<()> {
        let (link, program) = (number(&self.0), number(&program.0));
        let mut attributes = UpdateAttributes { link, program, flags: 0, old_program: 0 };
        // SAFETY: there are no addresses in these attributes.
        unsafe { call(LINK_UPDATE, &mut attributes) }.map(drop)
    }
}

fn number(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Where something is, as attributes say it.
fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// Has the kernel carry out a command. Its answer is never negative.
///
/// # Safety
///
/// `A` is the beginning of what `union bpf_attr` is for the command, without gaps. Every address in it
/// leads to as much memory as the command reads or writes there.
unsafe fn call<A>(command: c_long, attributes: &mut A) -> io::Result<c_int> {
    // SAFETY: bpf(2) reads and writes so many bytes of `attributes`; the rest is the caller's promise.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<A>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { c_int::try_from(answer).map_err(io::Error::other) }
}

/// Carries out a command that opens a descriptor. Like all that bpf(2) opens, it is closed on exec.
///
/// # Safety
///
/// As for [`call`]; and the command is one that answers with a new descriptor.
unsafe fn open<A>(command: c_long, attributes: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: as the caller promises.
    let fd = unsafe { call(command, attributes) }?;
    // SAFETY: the kernel has just opened it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
