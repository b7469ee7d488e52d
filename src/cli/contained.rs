//! `vifswitch show loops` and `show storms`, as tables for people. The sentence is the last column: it
//! says all.

use super::show::nothing;
use super::table::Column::{Number, Text};
use super::table::{count, draw};
use crate::control::loops::view::{LoopView, StormView};

pub(super) fn loops(loops: &[LoopView]) -> String {
    let columns =
        [Text("VM"), Text("NETWORK"), Text("KIND"), Text("STATE"), Number("LEVEL"), Number("SUPPRESSED"), Text("WHAT")];
    let row = |of: &LoopView| {
        [
            of.device_ids.join(","),
            of.network_ids.join(","),
            of.kind.name().into(),
            if of.active { "there".into() } else { "over".into() },
            of.level.to_string(),
            count(of.copies_suppressed),
            of.text.clone(),
        ]
    };
    draw(columns, loops.iter().map(row), "no loops")
}

pub(super) fn storms(storms: &[StormView]) -> String {
    let columns = [
        Text("VM"),
        Text("NETWORK"),
        Text("PORT"),
        Text("CLASS"),
        Text("STATE"),
        Number("SUPPRESSED"),
        Number("HIGHEST"),
        Text("WHAT"),
    ];
    let row = |of: &StormView| {
        [
            of.device_id.clone(),
            of.network_id.clone(),
            of.port_id.clone().unwrap_or_else(nothing),
            of.class.clone(),
            if of.active { "there".into() } else { "over".into() },
            count(of.suppressed),
            format!("{}/s", count(of.highest_rate)),
            of.text.clone(),
        ]
    };
    draw(columns, storms.iter().map(row), "no storms")
}
