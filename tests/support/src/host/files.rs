//! Open files of a running switch.

use std::{fs, thread};

use super::await_that;
use super::daemon::Daemon;

/// Open files of the switch, by kind.
fn files(daemon: &Daemon) -> Vec<String> {
    let files = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let target = |file: std::io::Result<fs::DirEntry>| fs::read_link(file.unwrap().path()).ok();
    let kind = |target: std::path::PathBuf| target.to_string_lossy().split(":[").next().unwrap().to_owned();
    let mut kinds: Vec<String> = files.filter_map(target).map(kind).collect();
    kinds.sort();
    kinds
}

/// Files of the switch at rest: what it opens in the background is open.
pub fn files_at_rest(daemon: &Daemon) -> Vec<String> {
    let (mut last, mut looks) = (Vec::new(), 0);
    await_that("no more files to be opened", || {
        let now = files(daemon);
        looks = if now == last { looks + 1 } else { 0 };
        last = now;
        (looks == 50).then(|| last.clone())
    })
}

/// Files that are open now and were open before, which a failed test prints.
struct Compared<'a> {
    now: Vec<String>,
    before: &'a [String],
}

impl Drop for Compared<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("open are {:?}, and before were {:?}", self.now, self.before);
        }
    }
}

/// Waits until no more files are open than `before`.
pub fn await_closed(daemon: &Daemon, before: &[String]) {
    let mut files_of = Compared { now: Vec::new(), before };
    await_that("all files are closed", || {
        daemon.read_notes();
        files_of.now = files(daemon);
        (files_of.now.len() <= before.len()).then_some(())
    });
}
