//! The log: standard error behind a limit per source, a bounded queue and a separate thread.
//!
//! ```text
//!   event ─► record ─► limit ─► format ─► queue ─► thread ─► standard error
//! ```
//!
//! The reader of standard error may hang or close it, and a disk may be full. Threads therefore only queue a line; the
//! log thread alone writes to standard error. A line that finds the queue full, or whose write fails, is lost and
//! counted. The count is logged in place of the lost lines, and is the metric `vifswitch_log_lines_lost_total`.
//!
//! `tracing-appender` is not used: it ignores write errors without counting them, bounds its queue in lines and not in
//! bytes, and reports a hanging reader at exit by `eprintln!`, which hangs as well.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber, warn};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, reload};

use self::format::Style;
use self::limit::Limiter;
use self::record::Record;
use crate::control::log_settings::{LogFormat, LogLevel, LogSettings};
use crate::telemetry::LOG_LINES_LOST;
use crate::time;

mod format;
mod limit;
mod record;

/// Environment variable with the levels.
const LEVEL_VARIABLE: &str = "VIFSWITCH_LOG";

/// Environment variable with the format.
const FORMAT_VARIABLE: &str = "VIFSWITCH_LOG_FORMAT";

/// Capacity of the queue in bytes; further lines are lost.
const QUEUE: usize = 512 * 1024;

/// Maximum wait for the log to be written, at exit or in a panic.
const LAST: Duration = Duration::from_secs(1);

/// Handle of the log. Clones share one queue.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    style: Style,
    /// Locked also while `queue` is, which is not locked while this is.
    limiter: Mutex<Limiter>,
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
    /// Installs this as the log of the process, for `tracing` and panics, in this format or that of the environment. Lines
    /// are queued and not written before [`start`](Log::start) or [`finish`](Log::finish).
    ///
    /// A panic in any thread ends the process by `SIGABRT`, in every build: without one of its threads the switch would
    /// look alive to the supervisor, which would not restart it.
    pub fn install(format: Option<LogFormat>) -> (Log, LogSettings) {
        let (level, wrong_level) = variable::<LogLevel>(LEVEL_VARIABLE);
        let (of_environment, wrong_format) = variable::<LogFormat>(FORMAT_VARIABLE);
        let style = Style { format: format.unwrap_or(of_environment), has_colours: io::stderr().is_terminal() };
        let log = Log(Arc::new(Shared { style, ..Shared::default() }));
        let (filter, handle) = reload::Layer::new(level.targets());
        tracing_subscriber::registry().with(filter).with(log.clone()).init();
        // A wrong environment does not keep the switch from starting.
        for wrong in [wrong_level, wrong_format.filter(|_| format.is_none())].into_iter().flatten() {
            warn!("{wrong}");
        }
        let settings = LogSettings::new(style.format, level, handle);
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
        (log, settings)
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

    /// Queues a message without time and level, where the format allows that.
    pub fn say(&self, text: &str) {
        self.push(self.0.style.plain(text));
    }

    /// Queues a message, unless its source has too many.
    fn log(&self, place: Identifier, record: Record) {
        let admitted = self.limiter().admit(place, record, time::now());
        match admitted {
            Ok(record) => self.push(self.0.style.line(&record)),
            Err(is_first) if is_first => {
                // Locked, so that the log thread is not between computing how long to sleep and sleeping.
                drop(self.lock());
                self.0.filled.notify_one();
            }
            Err(_) => {}
        }
    }

    /// Queues messages that were held back and are due.
    fn push_due(&self, all: bool) {
        let due = match self.0.limiter.try_lock() {
            Ok(mut limiter) => limiter.due(time::now(), all),
            Err(TryLockError::Poisoned(limiter)) => limiter.into_inner().due(time::now(), all),
            // Not waited for: the holder may have panicked.
            Err(TryLockError::WouldBlock) => return,
        };
        due.iter().for_each(|record| self.push(self.0.style.line(record)));
    }

    /// Waits until all lines are written, at most a second.
    pub fn finish(&self) {
        self.start();
        self.finish_within(LAST);
    }

    fn finish_within(&self, most: Duration) {
        let deadline = time::now() + most;
        self.push_due(true);
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

    fn limiter(&self) -> MutexGuard<'_, Limiter> {
        self.0.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, text: Vec<u8>) {
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
        let mut output = Output { to, style: self.0.style, lost: 0, why: None, is_cut: false };
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
            let due = self.limiter().next_due().map(|due| due.since(time::now()));
            queue = match due {
                None => self.0.filled.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    drop(queue);
                    self.push_due(false);
                    self.lock()
                }
                Some(left) => self.0.filled.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0,
            };
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
    style: Style,
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
        let why = match self.why {
            Some(errno) => format!("writing to standard error failed: {}", io::Error::from(errno)),
            None => "standard error was not read in time".to_owned(),
        };
        let mut text = Vec::new();
        let was_cut = std::mem::replace(&mut self.is_cut, false);
        if was_cut {
            text.push(b'\n');
        }
        if self.lost > 0 {
            let message = format!("{} log lines lost here: {why}", self.lost);
            text.extend(self.style.line(&Record::new(Level::WARN, module_path!(), message)));
        }
        if self.write_bytes(&text) {
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

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.log(event.metadata().callsite(), Record::of(event));
    }
}

/// The value of an environment variable, and what is wrong with it.
fn variable<T: FromStr<Err = String> + Default>(name: &str) -> (T, Option<String>) {
    let Some(text) = std::env::var_os(name).filter(|text| !text.is_empty()) else { return (T::default(), None) };
    match text.to_string_lossy().parse() {
        Ok(value) => (value, None),
        Err(why) => (T::default(), Some(format!("environment variable {name} = {text:?} is not used: {why}"))),
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

    /// A place in the program.
    struct Place;

    impl tracing::callsite::Callsite for Place {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}

        fn metadata(&self) -> &tracing::Metadata<'_> {
            unreachable!("not asked for")
        }
    }

    fn place() -> Identifier {
        Identifier(&Place)
    }

    fn message(text: &str) -> Record {
        Record::new(Level::INFO, "vifswitch", text.to_owned())
    }

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
            let _log = Log::install(None);
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
        let mut output = Output { to: &write, style: Style::default(), lost: 0, why: None, is_cut: false };
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
    fn a_reader_that_comes_back_is_told_how_many_lines_it_missed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        // Opened for both, so that neither end waits for the other.
        let reader = File::options().read(true).write(true).open(&path).unwrap();
        let log = Log::default();
        log.start_at(File::options().write(true).open(&path).unwrap());
        log.say("read");
        log.finish_within(Duration::from_secs(60));
        drop(reader);
        (0..5).for_each(|number| log.say(&line(number)));
        log.finish_within(Duration::from_secs(60));
        let mut reader = File::options().read(true).write(true).open(&path).unwrap();
        log.say("read again");
        let lines = read_until(&mut reader, "read again");
        // What it had not read is still in the pipe.
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(
            lines[1].contains(" WARN 5 log lines lost here: writing to standard error failed: Broken pipe"),
            "{lines:?}"
        );
    }

    #[test]
    fn messages_left_out_are_counted_where_the_last_of_them_is_logged() {
        let (mut read, write) = pipe().map(|(read, write)| (File::from(read), write)).unwrap();
        fcntl_setpipe_size(&write, 1 << 20).unwrap();
        let limiter = Mutex::new(Limiter::with_window(Duration::from_millis(300)));
        let log = Log(Arc::new(Shared { limiter, ..Shared::default() }));
        log.start_at(write);
        (0..1000).for_each(|number| log.log(place(), message(&number.to_string())));
        // The log thread logs the last one, when its time has come.
        let reader = thread::spawn(move || {
            let mut lines = read_until(&mut read, "");
            while !lines.iter().any(|line| line.contains(" 999 left_out=")) {
                lines.extend(read_until(&mut read, ""));
            }
            lines
        });
        let lines = reader.join().unwrap();
        let left_out = |line: &String| line.split_once(" left_out=").map_or(0, |(_, lines)| lines.parse().unwrap());
        assert_eq!(lines.len() + lines.iter().map(left_out).sum::<usize>(), 1000, "{lines:?}");
        assert!(lines.len() < 200, "{}", lines.len());
        // What is held back at the end is logged then.
        (0..1000).for_each(|number| log.log(place(), message(&number.to_string())));
        log.finish();
        assert_eq!(log.limiter().next_due(), None);
    }

    #[test]
    fn a_wrong_environment_is_reported_and_not_used() {
        assert_eq!(variable::<LogLevel>("VIFSWITCH_TEST_UNSET"), (LogLevel::default(), None));
        let (format, why) = variable::<LogFormat>("PATH");
        assert_eq!(format, LogFormat::Text);
        assert!(why.unwrap().contains("is not used: unknown format; use text"));
    }

    #[test]
    fn a_very_long_line_is_truncated() {
        let (mut read, write) = pipe().map(|(read, write)| (File::from(read), write)).unwrap();
        let log = Log::default();
        log.start_at(write);
        log.log(place(), message(&"x".repeat(2 * record::MESSAGE)));
        log.say("the end");
        let lines = read_until(&mut read, "the end");
        assert_eq!(lines.len(), 2);
        assert!(lines[0].len() < record::MESSAGE + 100 && lines[0].ends_with("xx…"), "{}", lines[0].len());
    }
}
