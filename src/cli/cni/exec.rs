//! Runs another program with bounds on its time and output.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::time;

/// Time to read what is left in the pipe after the program has ended.
const REST: Duration = Duration::from_secs(1);

/// What a program has printed.
#[derive(Debug)]
pub struct Printed {
    /// Its exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub output: Vec<u8>,
}

/// Runs `program` with these variables beside its own and this standard input. Its standard error is that of this process. A
/// program that takes longer than `patience` is killed with all that it has started.
pub fn run(
    program: &Path,
    variables: &[(&str, String)],
    input: &[u8],
    (patience, max_output): (Duration, usize),
) -> io::Result<Printed> {
    let mut command = Command::new(program);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let ended = supervise(&mut child, input, patience, max_output);
    if ended.is_err() {
        // Its process group: it may have started others, which would keep the pipe open.
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        let _ = child.wait();
    }
    ended
}

fn supervise(child: &mut Child, input: &[u8], patience: Duration, max_output: usize) -> io::Result<Printed> {
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (Some(mut stdin), Some(stdout)) = (stdin, stdout) else { return Err(io::Error::other("no pipe")) };
    let input = input.to_vec();
    // Both end with the pipes. A program that reads nothing is no error.
    thread::Builder::new().name("input".into()).spawn(move || {
        let _ = stdin.write_all(&input);
    })?;
    let (done, output) = mpsc::channel();
    thread::Builder::new().name("output".into()).spawn(move || {
        let mut bytes = Vec::new();
        let limit = u64::try_from(max_output).unwrap_or(u64::MAX).saturating_add(1);
        let read = stdout.take(limit).read_to_end(&mut bytes);
        let _ = done.send(read.map(|_| bytes));
    })?;
    await_end(child, patience)?;
    let status = child.wait()?;
    let output = output.recv_timeout(REST).unwrap_or_else(|_| Err(io::Error::other("its output does not end")))?;
    if output.len() > max_output {
        return Err(io::Error::other(format!("it printed more than {} KiB", max_output >> 10)));
    }
    Ok(Printed { status, output })
}

/// Waits until the program ends, which may be later than its output.
fn await_end(child: &Child, patience: Duration) -> io::Result<()> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let until = time::now() + patience;
    loop {
        let left = until.since(time::now());
        let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
            Ok(0) if left.is_zero() => {
                let message = format!("it did not end within {} seconds and was killed", patience.as_secs_f32());
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use tempfile::TempDir;

    const LIMITS: (Duration, usize) = (Duration::from_secs(20), 1 << 16);

    fn script(text: &str) -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("program");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        (directory, path)
    }

    /// Another test's fork may hold the script open for writing.
    fn run_script(text: &str, input: &[u8], limits: (Duration, usize)) -> io::Result<Printed> {
        let (_directory, path) = script(text);
        loop {
            match run(&path, &[("WORD", "a b".into())], input, limits) {
                Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy => {}
                done => return done,
            }
        }
    }

    #[test]
    fn input_variables_output_and_status_pass() {
        let printed = run_script("cat; echo \"$WORD\"; exit 3", b"in ", LIMITS).unwrap();
        assert_eq!((printed.status.code(), printed.output.as_slice()), (Some(3), &b"in a b\n"[..]));
        // One that does not read its input, which is longer than a pipe.
        let printed = run_script("echo done", &vec![0; 1 << 20], LIMITS).unwrap();
        assert_eq!(printed.output, b"done\n");
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_what_it_has_started() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        let text = format!("sleep 100 >{} & sleep 100", fifo.display());
        let reader = thread::spawn(move || fs::read(fifo));
        let error = run_script(&text, b"", (Duration::from_millis(300), 100)).unwrap_err();
        assert!(error.kind() == io::ErrorKind::TimedOut && error.to_string().contains("killed"), "{error}");
        // The end of the last writer.
        assert_eq!(reader.join().unwrap().unwrap(), b"");
    }

    #[test]
    fn output_is_bounded_and_waited_for() {
        let error = run_script("head -c 200000 /dev/zero", b"", LIMITS).unwrap_err();
        assert!(error.to_string().contains("more than 64 KiB"), "{error}");
        let error = run_script("sleep 100 &", b"", (Duration::from_secs(20), 100)).unwrap_err();
        assert!(error.to_string().contains("does not end"), "{error}");
        assert_eq!(run(Path::new("/nowhere"), &[], b"", LIMITS).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
