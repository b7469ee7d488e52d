//! Injects failures and delays into system calls of a thread of the switch, by strace.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::NamedTempFile;

use super::await_that;
use super::daemon::Daemon;

/// While held, system calls fail or are delayed.
pub struct Injected {
    strace: Child,
    /// strace's log.
    calls: NamedTempFile,
}

impl Injected {
    /// Applies `so`, in the notation of strace (`error=EIO`, `delay_enter=500ms`), to `calls` of the named thread.
    /// Prints the reason and returns `None` without strace.
    pub fn new(daemon: &Daemon, thread: &str, calls: &str, so: &str) -> Option<Injected> {
        let thread = threads(daemon)
            .into_iter()
            .find(|path| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == thread));
        Injected::into(&[], &[thread.unwrap()], calls, so)
    }

    /// The same, for all threads of the switch, and those that it starts from now on.
    pub fn everywhere(daemon: &Daemon, calls: &str, so: &str) -> Option<Injected> {
        Injected::into(&["-f"], &threads(daemon), calls, so)
    }

    fn into(options: &[&str], threads: &[PathBuf], calls: &str, so: &str) -> Option<Injected> {
        let log = NamedTempFile::new().unwrap();
        let strace = Command::new("strace")
            .args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{so}")])
            .args(options)
            .args([Path::new("-o"), log.path()])
            .args(threads.iter().flat_map(|thread| [OsStr::new("-p"), thread.file_name().unwrap()]))
            .stderr(Stdio::null())
            .spawn();
        let strace = strace.map_err(|e| eprintln!("skipped: needs strace: {e}")).ok()?;
        let tracer = format!("TracerPid:\t{}", strace.id());
        let injected = Injected { strace, calls: log };
        let is_traced = |thread: &PathBuf| {
            // a thread may have ended
            fs::read_to_string(thread.join("status")).map_or(true, |status| status.lines().any(|line| line == tracer))
        };
        await_that("strace to attach", || threads.iter().all(is_traced).then_some(()));
        Some(injected)
    }

    /// Number of calls that it has changed so far.
    pub fn count(&self) -> usize {
        let log = self.log();
        log.matches("(INJECTED)").count() + log.matches("(DELAYED)").count()
    }

    /// Waits until it has changed a call. strace writes a call when it ends, which others may notice before that.
    pub fn await_call(&self, what: &str) {
        await_that(&format!("{what}: a call that is changed"), || (self.count() > 0).then_some(()));
    }

    /// Its log so far: the calls as strace writes them.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.calls.path()).unwrap()).into_owned()
    }
}

fn threads(daemon: &Daemon) -> Vec<PathBuf> {
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    threads.map(|thread| thread.unwrap().path()).collect()
}

impl Drop for Injected {
    fn drop(&mut self) {
        // By a signal on which strace detaches; the thread continues.
        let _ = kill_process(Pid::from_child(&self.strace), Signal::INT);
        let _ = self.strace.wait();
    }
}

/// A thread of another process that is stopped while this is held.
pub struct Stopped(nix::unistd::Pid);

impl Stopped {
    pub fn new(thread: nix::unistd::Pid) -> Stopped {
        ptrace::seize(thread, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        Stopped(thread)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = ptrace::detach(self.0, None);
    }
}

/// A thread of a process, by its name.
pub fn thread_of(pid: u32, name: &str) -> Option<nix::unistd::Pid> {
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|thread| thread.unwrap());
    let found = threads.find(|thread| fs::read_to_string(thread.path().join("comm")).unwrap().trim() == name)?;
    found.file_name().to_str().unwrap().parse().ok().map(nix::unistd::Pid::from_raw)
}
