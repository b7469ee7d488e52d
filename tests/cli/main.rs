//! The program from outside: its commands, its configuration file, and what `check` and `doctor` report.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // the helpers of a test fail as the test does

mod check;
mod commands;
mod config;
mod doctor;
mod operator;
