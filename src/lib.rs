//! vifswitch
#![allow(missing_docs)]
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
