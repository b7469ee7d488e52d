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
//! | [`wire`] | bytes → meaning: addresses, tags, the offload header. Never panics |
//! | [`frame`] | the right to bytes: [`Frame`](frame::Frame), [`Batch`](frame::Batch), [`TxBatch`](frame::TxBatch), [`Pool`](frame::Pool), [`Magazine`](frame::Magazine) |
//! | [`device`] | how frames enter and leave: the trait [`Device`](device::Device), taps, packet sockets, cables |
//! | [`sys`] | the operating system, thin, safe outside |
//! | [`switch`] | what to do with a frame: rules, table of stations, verdicts. Pure |
//! | [`worker`] | one thread: breath, gates, outbox, peers, mail, pace |
//! | [`control`] | desired state: configuration, admission, changes and plans, controller, store, API and its client |
//! | [`telemetry`] | counters with one writer, the drop ledger and its audit, metrics |
//! | [`cli`], [`daemon`], [`time`] | the command line; the running switch, and `check`; the one place that reads the clock |
//!
//! `sys → frame → device`; `wire, frame → switch`; `device, switch → worker → control → cli, daemon`:
//! what is left of an arrow is used by what is right of it. `switch` and `device` never meet.
//! `unsafe` lives in `sys` and `frame`; the other rooms forbid it.

#![cfg_attr(test, allow(clippy::cast_possible_truncation))] // tests count in whatever is handy

pub mod cli;
pub mod control;
pub mod daemon;
pub mod device;
pub mod frame;
pub mod switch;
pub mod sys;
pub mod telemetry;
pub mod time;
pub mod wire;
pub mod worker;
