//! The log: standard error behind a bounded queue and a separate thread.
//!
//! The reader of standard error may hang or close it, and a disk may be full. Threads therefore only queue a line; the
//! log thread alone writes to standard error. A line that finds the queue full, or whose write fails, is lost and
//! counted. The count is logged in place of the lost lines, and is the metric `vifswitch_log_lines_lost_total`.
//!
//! `tracing-appender` is not used: it ignores write errors without counting them, bounds its queue in lines and not in
//! bytes, and reports a hanging reader at exit by `eprintln!`, which hangs as well.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry::LOG_LINES_LOST;
use crate::time;

/// Capacity of the queue in bytes; further lines are lost.
const QUEUE: usize = 512 * 1024;

/// Maximum length of a line in bytes; longer ones are truncated.
const LINE: usize = 16 * 1024;

/// Maximum wait for the log to be written, at exit or in a panic.
const LAST: Duration = Duration::from_secs(1);

/// Handle of the log. Clones share one queue.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Signalled when a line is queued.
    filled: Condvar,
    /// Signalled when the queue is empty and written.
    drained: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Lines lost to the full queue since the last one queued.
    refused: u64,
    /// The log thread is writing a line that is no longer queued.
    writing: bool,
    started: bool,
}

#[derive(Debug)]
enum Line {
    Text(Vec<u8>),
    /// Number of lines lost here.
    Gap(u64),
}

impl Log {
    /// Installs this as the log of the process, for `tracing` and panics. Lines are queued and not written before
    /// [`start`](Log::start) or [`finish`](Log::finish).
    ///
    /// A panic in any thread ends the process by `SIGABRT`, in every build: without one of its threads the switch would
    /// look alive to the supervisor, which would not restart it.
    pub fn install() -> Log {
        let log = Log::default();
        let filter = EnvFilter::try_from_env("VIFSWITCH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_target(false)
            .with_ansi(io::stderr().is_terminal())
            .log_internal_errors(false)
            .with_writer(log.clone())
            .init();
        let panics = log.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = thread::current();
            let mut text = format!("thread {:?} {panic}", thread.name().unwrap_or("without a name"));
            let backtrace = std::backtrace::Backtrace::capture();
            if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
                text = format!("{text}\n{backtrace}");
            }
            panics.say(&text);
            panics.finish();
            std::process::abort();
        }));
        log
    }

    /// Starts the log thread, unless it runs.
    pub fn start(&self) {
        self.start_at(io::stderr());
    }

    fn start_at(&self, to: impl AsFd + Send + 'static) {
        if std::mem::replace(&mut self.lock().started, true) {
            return;
        }
        let log = self.clone();
        // Without the thread the process continues without a log.
        let _ = thread::Builder::new().name("vifswitch-log".into()).spawn(move || log.write_all_to(&to));
    }

    /// Queues a line unmodified.
    pub fn say(&self, text: &str) {
        self.push(format!("{text}\n").into_bytes());
    }

    /// Waits until all lines are written, at most a second.
    pub fn finish(&self) {
        self.start();
        self.finish_within(LAST);
    }

    fn finish_within(&self, most: Duration) {
        let deadline = time::now() + most;
        let mut queue = self.lock();
        while queue.is_pending() {
            let left = deadline.since(time::now());
            if left.is_zero() {
                return;
            }
            queue = self.0.drained.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Also locked while panicking, to log the panic.
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, mut text: Vec<u8>) {
        if text.len() > LINE {
            text.truncate(LINE);
            text.extend_from_slice("…\n".as_bytes());
        }
        let mut queue = self.lock();
        if queue.bytes + text.len() > QUEUE {
            queue.refused += 1;
            LOG_LINES_LOST.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return;
        }
        queue.close_gap();
        queue.bytes += text.len();
        queue.lines.push_back(Line::Text(text));
        drop(queue);
        self.0.filled.notify_one();
    }

    /// The log thread.
    fn write_all_to(&self, to: &impl AsFd) {
        let mut output = Output { to, lost: 0, why: None, is_cut: false };
        let mut queue = self.lock();
        loop {
            if queue.lines.is_empty() {
                queue.close_gap();
            }
            if let Some(line) = queue.lines.pop_front() {
                queue.writing = true;
                drop(queue);
                output.write(&line);
                queue = self.lock();
                // Counts until written, so that the bound covers it.
                queue.bytes -= line.len();
                queue.writing = false;
                continue;
            }
            self.0.drained.notify_all();
            queue = self.0.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Queue {
    fn is_pending(&self) -> bool {
        self.writing || self.refused > 0 || !self.lines.is_empty()
    }

    /// Queues the number of lost lines at their position.
    fn close_gap(&mut self) {
        if self.refused > 0 {
            self.lines.push_back(Line::Gap(std::mem::take(&mut self.refused)));
        }
    }
}

impl Line {
    fn len(&self) -> usize {
        match self {
            Line::Text(text) => text.len(),
            Line::Gap(_) => 0,
        }
    }
}

/// Standard error, and the lines lost at it.
struct Output<'a, F> {
    to: &'a F,
    /// Lines lost since the last complete one.
    lost: u64,
    /// Error of the last lost line; `None`: the queue was full.
    why: Option<Errno>,
    /// The last line is written in part.
    is_cut: bool,
}

impl<F: AsFd> Output<'_, F> {
    fn write(&mut self, line: &Line) {
        match line {
            Line::Gap(lines) => {
                self.lost += lines;
                // If this fails, the loss is logged with the next line.
                self.write_loss();
            }
            Line::Text(text) => {
                if !self.write_loss() || !self.write_bytes(text) {
                    self.lost += 1;
                    LOG_LINES_LOST.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            }
        }
    }

    /// Logs the number of lost lines. Whether nothing is left to log.
    fn write_loss(&mut self) -> bool {
        if self.lost == 0 && !self.is_cut {
            return true;
        }
        let time = time::rfc3339(time::wall());
        let why = match self.why {
            Some(errno) => format!("writing to standard error failed: {}", io::Error::from(errno)),
            None => "standard error was not read in time".to_owned(),
        };
        let text = match self.lost {
            0 => String::from("\n"),
            lost => {
                let end = if self.is_cut { "\n" } else { "" };
                format!("{end}{time}  WARN {lost} log lines lost here: {why}\n")
            }
        };
        let was_cut = std::mem::replace(&mut self.is_cut, false);
        if self.write_bytes(text.as_bytes()) {
            (self.lost, self.why) = (0, None);
            return true;
        }
        self.is_cut |= was_cut;
        false
    }

    /// Writes all bytes; blocks until done.
    fn write_bytes(&mut self, mut bytes: &[u8]) -> bool {
        let whole = bytes.len();
        while !bytes.is_empty() {
            // Not through std, which holds a lock of standard error while it blocks.
            match rustix::io::write(self.to, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::INTR) => {}
                // Another process that shares the open file has set O_NONBLOCK.
                Err(Errno::AGAIN) => drop(poll(&mut [PollFd::new(self.to, PollFlags::OUT)], None)),
                Err(why) => {
                    self.why = Some(why);
                    self.is_cut |= bytes.len() < whole;
                    return false;
                }
            }
        }
        true
    }
}

/// Writer for `tracing`: one call of `write` is one line.
#[derive(Debug)]
pub struct Entry<'a>(&'a Log);

impl Write for Entry<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.push(text.to_vec());
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Entry<'a>;

    fn make_writer(&'a self) -> Entry<'a> {
        Entry(self)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use rustix::pipe::{fcntl_setpipe_size, pipe};
    use rustix::process::Signal;

    use super::*;

    /// A pipe with a capacity of one page.
    fn small_pipe() -> (File, OwnedFd) {
        let (read, write) = pipe().unwrap();
        fcntl_setpipe_size(&write, 4096).unwrap();
        (read.into(), write)
    }

    fn line(number: usize) -> String {
        format!("{number:06} {}", "x".repeat(93))
    }

    /// Reads up to a line `end`.
    fn read_until(from: &mut File, end: &str) -> Vec<String> {
        let (mut text, mut some) = (String::new(), [0; 4096]);
        while !text.ends_with(&format!("{end}\n")) {
            let len = from.read(&mut some).unwrap();
            text.push_str(std::str::from_utf8(&some[..len]).unwrap());
        }
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn lines_are_in_order_and_lost_ones_counted_in_place() {
        let (mut read, write) = small_pipe();
        let log = Log::default();
        log.start_at(write);
        let total = 3 * QUEUE / 100;
        (0..total).for_each(|number| log.say(&line(number)));
        log.finish_within(Duration::from_millis(10));
        assert!(log.lock().is_pending(), "writers do not wait for the reader");
        // Later lines are written once there is room, after the gap.
        let reader = thread::spawn(move || read_until(&mut read, "the end"));
        log.finish_within(Duration::from_secs(60));
        log.say("the end");
        let lines = reader.join().unwrap();
        let (mut next, mut gaps) = (0, 0);
        for text in &lines[..lines.len() - 1] {
            if let Some((_, gap)) = text.split_once(" WARN ") {
                let (lost, why) = gap.split_once(' ').unwrap();
                assert_eq!(why, "log lines lost here: standard error was not read in time");
                next += lost.parse::<usize>().unwrap();
                gaps += 1;
            } else {
                assert_eq!(*text, line(next));
                next += 1;
            }
        }
        assert!(gaps > 0 && next == total, "{gaps} {next}");
    }

    /// Runs itself again, as the process that panics.
    #[test]
    fn a_panic_in_any_thread_is_logged_and_aborts_the_process() {
        const CHILD: &str = "VIFSWITCH_TEST_PANICS";
        if std::env::var_os(CHILD).is_some() {
            let _log = Log::install();
            thread::spawn(|| panic!("on purpose")).join().unwrap_err();
            std::process::exit(0);
        }
        let (_, module) = module_path!().split_once("::").unwrap();
        let name = format!("{module}::a_panic_in_any_thread_is_logged_and_aborts_the_process");
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", &name, "--nocapture"]).env(CHILD, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.signal(), Some(Signal::ABORT.as_raw()), "{text}");
        assert!(text.contains("on purpose") && text.contains("log.rs"), "{text}");
    }

    #[test]
    fn write_errors_are_counted_and_not_fatal() {
        let log = Log::default();
        log.start_at(File::options().write(true).open("/dev/full").unwrap());
        (0..10).for_each(|number| log.say(&line(number)));
        log.finish_within(Duration::from_secs(60));
        assert!(!log.lock().is_pending());
        let (read, write) = small_pipe();
        drop(read);
        let mut output = Output { to: &write, lost: 0, why: None, is_cut: false };
        output.write(&Line::Text(b"lost\n".to_vec()));
        output.write(&Line::Gap(2));
        assert_eq!((output.lost, output.why), (3, Some(Errno::PIPE)));
        let (mut read, write) = small_pipe();
        let mut output = Output { to: &write, is_cut: true, ..output };
        output.write(&Line::Text(b"back\n".to_vec()));
        drop(write);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert!(text.starts_with('\n') && text.contains(" 3 log lines lost here: writing"), "{text}");
        assert!(text.ends_with("\nback\n") && text.contains("Broken pipe"), "{text}");
    }

    #[test]
    fn a_very_long_line_is_truncated() {
        let (mut read, write) = pipe().map(|(read, write)| (File::from(read), write)).unwrap();
        let log = Log::default();
        log.start_at(write);
        log.say(&"x".repeat(2 * LINE));
        log.say("the end");
        let lines = read_until(&mut read, "the end");
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), LINE + "…".len());
    }
}
