//! vifswitch
#![allow(missing_docs)]
pub mod control;
pub mod device;
pub mod frame;
pub mod sys;
pub mod time;
pub mod wire;
