//! vifswitch: a poll-mode userspace Ethernet switch for compute hosts.
//!
//! Pipeline of a frame: **device → switch → outbox → device**. A *worker* is one thread pinned to
//! one core; it runs this pipeline once per loop iteration and owns all state it accesses. Control is
//! another thread, and sends commands to workers over channels.
//!
//! # Modules
//!
//! | module | contents |
//! |---|---|
//! | [`wire`] | parses and writes headers: addresses, tags, `virtio_net_hdr`. Never panics |
//! | [`frame`] | ownership of frame memory: [`Frame`](frame::Frame), [`Batch`](frame::Batch), [`TxBatch`](frame::TxBatch), [`Pool`](frame::Pool), [`Magazine`](frame::Magazine) |
//! | [`device`] | receive and transmit: the trait [`Device`](device::Device), taps, packet sockets, AF_XDP, loopback |
//! | [`sys`] | safe wrappers of kernel interfaces |
//! | [`switch`] | decides per frame: forwarding configuration, FDB, verdicts. No I/O |
//! | [`worker`] | one thread: poll loop, queues, outbox, peers, commands, idle policy |
//! | [`control`] | desired state: configuration, validation, changes and plans, controller, state store, API and its client |
//! | [`telemetry`] | counters with one writer, counter audit, metrics; what limits logs and events per source |
//! | [`cli`], [`daemon`], [`time`] | the command line; the running switch, and `check`; the only module that reads the clock |
//! | `sync` | atomics, by a name that `tests/loom` can exchange |
//!
//! Dependencies: `sys → frame → device`; `wire, frame → switch`; `device, switch → worker → control → cli, daemon`.
//! A module uses those left of it. `switch` and `device` do not use each other.
//! `unsafe` is allowed in `sys` and `frame`; the other modules forbid it.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))] // tests count in whatever is handy

pub mod cli;
pub mod control;
pub mod daemon;
pub mod device;
pub mod frame;
pub mod switch;
mod sync;
pub mod sys;
pub mod telemetry;
pub mod time;
pub mod wire;
pub mod worker;
