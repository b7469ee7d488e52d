//! `vifswitch show loops` and `show storms`: tables of loops and storms. The last column describes each in a
//! sentence.

use super::table::Column::{Number, Text};
use super::table::{count, draw, empty_cell};
use crate::control::loops::status::{LoopStatus, StormStatus};

pub(super) fn loops(loops: &[LoopStatus]) -> String {
    let columns =
        [Text("VM"), Text("NETWORK"), Text("KIND"), Text("STATE"), Number("LEVEL"), Number("DROPPED"), Text("WHAT")];
    let row = |of: &LoopStatus| {
        [
            of.device_ids.join(","),
            of.network_ids.join(","),
            of.kind.name().into(),
            if of.active { "active".into() } else { "ended".into() },
            of.level.to_string(),
            count(of.dropped_frames),
            of.text.clone(),
        ]
    };
    draw(columns, loops.iter().map(row), "no loops")
}

pub(super) fn storms(storms: &[StormStatus]) -> String {
    let columns = [
        Text("VM"),
        Text("NETWORK"),
        Text("PORT"),
        Text("CLASS"),
        Text("STATE"),
        Number("DROPPED"),
        Number("HIGHEST"),
        Text("WHAT"),
    ];
    let row = |of: &StormStatus| {
        [
            of.device_id.clone(),
            of.network_id.clone(),
            of.port_id.clone().unwrap_or_else(empty_cell),
            of.class.clone(),
            if of.active { "active".into() } else { "ended".into() },
            count(of.dropped_frames),
            format!("{}/s", count(of.highest_rate)),
            of.text.clone(),
        ]
    };
    draw(columns, storms.iter().map(row), "no storms")
}
