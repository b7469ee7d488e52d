//! `vifswitch show drops --verify`: prints the counter audit: received, transmitted and dropped frames, and whether
//! they add up.

use super::table::Column::{Number, Text};
use super::table::draw;
use crate::control::api::responses::{AuditView, BetweenView, Direction};

/// The audit as text.
pub fn text(audit: &AuditView) -> String {
    let (came_in, went_out, dropped) = (came_in(audit), went_out(audit), dropped(audit));
    format!("{came_in}\n{went_out}\n{dropped}\n{}", verdict(audit))
}

fn came_in(audit: &AuditView) -> String {
    let columns = [
        Text("PORT"),
        Text("VM"),
        Number("RX"),
        Number("= FORWARDED"),
        Number("+ FLOODED"),
        Number("+ DROPS IN"),
        Number("DELTA"),
    ];
    let ports = audit.ports.iter().map(|p| {
        let counts = [p.rx_frames, p.forwarded, p.flooded, p.drops_in].map(|frames| frames.to_string());
        let [rx, forwarded, flooded, drops] = counts;
        [p.port_id.clone(), p.device_id.clone(), rx, forwarded, flooded, drops, off(p.delta)]
    });
    draw(columns, ports, "no ports")
}

fn went_out(audit: &AuditView) -> String {
    let columns = [
        Text("WORKER"),
        Number("FORWARDED"),
        Number("+ COPIES"),
        Number("+ PROBES"),
        Number("+ ANNOUNCED"),
        Number("+ PEER RX"),
        Number("= TX"),
        Number("+ DROPS OUT"),
        Number("+ PEER TX"),
        Number("DELTA"),
    ];
    let workers = audit.workers.iter().map(|w| {
        let own = [w.forwarded, w.copies, w.probes, w.announcements].map(|frames| frames.to_string());
        let other = [w.peer_rx_frames, w.tx_frames, w.drops_out, w.peer_tx_frames].map(|frames| frames.to_string());
        let ([forwarded, copies, probes, announced], [received, tx, drops, sent]) = (own, other);
        [w.worker.to_string(), forwarded, copies, probes, announced, received, tx, drops, sent, off(w.delta)]
    });
    draw(columns, workers, "no workers")
}

fn dropped(audit: &AuditView) -> String {
    let columns = [Text("DIRECTION"), Text("REASON"), Number("FRAMES"), Text("DESCRIPTION")];
    let drops = audit.drops.iter().map(|d| {
        let direction = match d.direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        [direction.into(), d.reason.clone(), d.frames.to_string(), d.description.clone()]
    });
    draw(columns, drops, "no drops")
}

/// The result in one line, followed by one line per error.
fn verdict(audit: &AuditView) -> String {
    if audit.balanced {
        return format!("adds up: every frame is accounted for{}\n", on_the_way(audit));
    }
    let mut text = String::from("DOES NOT ADD UP\n");
    for port in audit.ports.iter().filter(|port| port.delta != 0) {
        text += &format!(
            "port {:?}: {} received frames {}\n",
            port.port_id,
            port.delta.unsigned_abs(),
            missing(port.delta)
        );
    }
    for worker in audit.workers.iter().filter(|worker| worker.delta != 0) {
        text += &format!(
            "worker {}: {} egress frames {}\n",
            worker.worker,
            worker.delta.unsigned_abs(),
            missing(worker.delta)
        );
    }
    for (what, BetweenView { min, max }) in [("frames", audit.frames_between), ("floods", audit.floods_between)] {
        if max < min {
            text += &format!("between workers: {} more {what} received than sent\n", min - max);
        } else if audit.idle && max != 0 {
            text += &format!("between workers: {max} {what} sent and never received\n");
        }
    }
    text
}

fn missing(delta: i64) -> &'static str {
    if delta > 0 { "unaccounted for" } else { "accounted for twice" }
}

fn on_the_way(audit: &AuditView) -> String {
    let most = audit.frames_between.max + audit.floods_between.max;
    match most {
        0 => String::new(),
        1 => ", at most 1 in flight between workers".into(),
        _ => format!(", at most {most} in flight between workers"),
    }
}

fn off(off: i64) -> String {
    if off == 0 { "0".into() } else { format!("{off:+}") }
}
