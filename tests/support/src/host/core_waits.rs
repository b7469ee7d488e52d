//! How long a switch's workers were ready to run while threads of other processes had their cores. Other tests run beside
//! the one that measures, and that time is not the switch's.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use vifswitch::time::{self, MonoTime};

/// Interval between two samples.
const INTERVAL: Duration = Duration::from_millis(5);

/// Number of samples that are kept: those of two seconds.
const KEPT: usize = 400;

/// Since the process started.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: MonoTime,
    /// How long workers were ready to run, summed: a frame may need each of them, one after the other.
    waited: Duration,
    /// How long the other threads of the process ran, on any core. If a worker waits for these, it is the switch's fault.
    others_ran: Duration,
}

/// The workers of one process.
pub struct CoreWaits {
    process: File,
    workers: Vec<File>,
    /// The oldest first.
    samples: Vec<Sample>,
}

impl CoreWaits {
    /// Of the switch that is this process.
    pub fn of(pid: u32) -> CoreWaits {
        let is_worker =
            |thread: &Path| fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.starts_with("vifswitch-w"));
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|thread| thread.unwrap().path());
        let workers = threads.filter(|thread| is_worker(thread)).map(|it| File::open(it.join("schedstat")).unwrap());
        let process = File::open(format!("/proc/{pid}/stat")).unwrap();
        let mut waits = CoreWaits { process, workers: workers.collect(), samples: Vec::new() };
        assert!(!waits.workers.is_empty(), "process {pid} has no workers");
        waits.samples.push(waits.now());
        waits
    }

    fn now(&self) -> Sample {
        // nanoseconds on a core, nanoseconds ready without one, times on a core (Documentation/scheduler/sched-stats.rst)
        let workers = self.workers.iter().map(|worker| numbers(worker, 0));
        let [ran, waited] = workers.fold([0, 0], |sum, now| [0, 1].map(|at| sum[at] + now[at]));
        // ticks in user mode and in the kernel, the 14th and 15th field (proc_pid_stat(5)); the 2nd, a name, holds no space
        let ticks = numbers(&self.process, 13);
        let ticks = (ticks[0] + ticks[1]) * 1_000_000_000 / rustix::param::clock_ticks_per_second();
        let others_ran = Duration::from_nanos(ticks.saturating_sub(ran));
        Sample { at: time::now(), waited: Duration::from_nanos(waited), others_ran }
    }

    /// Takes a sample if the last one is old enough. To be called often.
    pub fn sample(&mut self) {
        if self.samples.last().is_some_and(|last| time::now().since(last.at) < INTERVAL) {
            return;
        }
        if self.samples.len() == KEPT {
            self.samples.remove(0);
        }
        self.samples.push(self.now());
    }

    /// How long workers have waited since `begin`.
    pub fn waited(&self, begin: MonoTime) -> Duration {
        let now = self.now();
        let before = self.samples.iter().rev().find(|sample| sample.at <= begin).unwrap_or(&self.samples[0]);
        (now.waited - before.waited).saturating_sub(now.others_ran.saturating_sub(before.others_ran))
    }

    /// The part of the time since `begin` in which workers had a core or did not want one.
    pub fn without(&self, begin: MonoTime) -> Duration {
        let waited = self.waited(begin);
        time::now().since(begin).saturating_sub(waited)
    }
}

/// The longer one of `longest` and the gap from `last` to `now`, which is now, without what the workers behind it waited.
pub fn longer(longest: Duration, (last, now): (MonoTime, MonoTime), waits: Option<&CoreWaits>) -> Duration {
    let gap = now.since(last);
    if gap <= longest { longest } else { longest.max(waits.map_or(gap, |waits| waits.without(last))) }
}

/// Two numbers of a line, from this field on.
fn numbers(file: &File, first: usize) -> [u64; 2] {
    let mut text = [0; 512];
    let len = file.read_at(&mut text, 0).unwrap_or_else(|e| panic!("has the switch ended? {e}"));
    let text = str::from_utf8(&text[..len]).unwrap();
    let mut fields = text.split(' ').skip(first).map(|field| field.trim_end().parse().unwrap());
    [(); 2].map(|()| fields.next().unwrap())
}
