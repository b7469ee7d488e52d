//! `vifswitch bugreport`: one archive with what a fault report needs, of a running switch, a hanging one or none.
//!
//! Each part is read by a thread of its own, within limits of size and time: one that hangs is left out. What is left out,
//! and why, stands in the archive and is printed. Values of secret keys are left out of all parts.

mod archive;
mod parts;
mod secrets;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::Args;

use self::archive::{Part, compress};
use self::secrets::Secrets;
use super::{CliError, SOCKET};
use crate::time::{self, MonoTime};

/// Time for all parts.
const ALL: Duration = Duration::from_secs(30);

/// Time for one part.
const EACH: Duration = Duration::from_secs(6);

/// Maximum bytes of one part.
const MAX_PART: usize = 16 << 20;

/// Maximum bytes of all parts, before they are compressed.
const MAX_ALL: usize = 64 << 20;

/// Configuration file as the packages install it.
const CONFIG: &str = "/etc/vifswitch/vifswitch.toml";

/// The arguments of `bugreport`.
#[derive(Debug, Args)]
pub struct Bugreport {
    /// Archive to create, which must not exist; `-` for standard output; default: vifswitch-report-TIME.tar.gz
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Configuration file of the switch
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Path of the switch's API socket
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
}

/// What one part has, or why it is left out.
type Content = Result<Vec<u8>, String>;

impl Bugreport {
    /// Writes the archive; returns what it has.
    pub fn run(&self) -> Result<String, CliError> {
        let now = time::wall();
        let stamp = time::rfc3339(now).replace([':', '-'], "");
        let stamp = stamp.split('.').next().unwrap_or_default().trim_end_matches('Z');
        let default = PathBuf::from(format!("vifswitch-report-{stamp}Z.tar.gz"));
        let path = self.output.as_ref().unwrap_or(&default);
        let failed = |e: io::Error| {
            let text = match e.kind() {
                io::ErrorKind::AlreadyExists => format!("{}: exists already; name another file", path.display()),
                _ => format!("{}: {e}", path.display()),
            };
            CliError::Output(io::Error::new(e.kind(), text))
        };
        // Before the parts are read: an error is reported at once.
        let mut output: Box<dyn Write> = if path == Path::new("-") {
            Box::new(io::stdout().lock())
        } else {
            Box::new(OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?)
        };
        let (parts, omitted) = self.parts();
        let packed = compress(&parts, &omitted, now).and_then(|bytes| {
            output.write_all(&bytes)?;
            output.flush()?;
            Ok(bytes.len())
        });
        let length = match packed {
            Ok(length) => length,
            Err(e) => {
                if path != Path::new("-") {
                    // An incomplete archive helps nobody.
                    let _ = fs::remove_file(path);
                }
                return Err(failed(e));
            }
        };
        let omitted: String = omitted.iter().map(|(name, why)| format!("  left out: {name}: {why}\n")).collect();
        let kib = length.div_ceil(1024);
        let said = format!(
            "{}: {} parts, {kib} KiB\n{omitted}  it has names and addresses of ports and netdevs: read it before you pass it on\n",
            path.display(),
            parts.len()
        );
        // Standard output has the archive.
        if path == Path::new("-") {
            super::warn_plainly(said.trim_end());
            return Ok(String::new());
        }
        Ok(said)
    }

    /// All parts, and what is left out.
    fn parts(&self) -> (Vec<Part>, Vec<(String, String)>) {
        let mut all = Collected::new(time::now() + ALL);
        let socket = self.socket.clone();
        let config = self.config.clone();
        all.read("version.txt", parts::version);
        // The configurations come first: they say what is secret.
        all.read("configuration-file.json", move || parts::configuration_file(&config));
        for (name, path) in parts::REQUESTS {
            let socket = socket.clone();
            all.read(name, move || parts::request(&socket, path));
        }
        let config = self.config.clone();
        all.read("state-file.txt", move || parts::state_file(&config));
        all.read("process.txt", move || parts::process(&socket));
        all.read("kernel.txt", parts::kernel);
        all.read("links.txt", parts::links);
        all.read("namespaces.txt", parts::namespaces);
        all.read("doctor.txt", parts::doctor);
        all.finish()
    }
}

/// Parts that have been read, within limits.
struct Collected {
    parts: Vec<Part>,
    omitted: Vec<(String, String)>,
    secrets: Secrets,
    size: usize,
    until: MonoTime,
}

impl Collected {
    fn new(until: MonoTime) -> Collected {
        Collected { parts: Vec::new(), omitted: Vec::new(), secrets: Secrets::default(), size: 0, until }
    }

    /// Reads a part in a thread of its own, which is abandoned if it takes too long.
    fn read(&mut self, name: &str, work: impl FnOnce() -> Content + Send + 'static) {
        let left = self.until.since(time::now());
        if left.is_zero() {
            return self.omit(name, format!("the {} s for all parts were over", ALL.as_secs()));
        }
        let patience = EACH.min(left);
        let (done, result) = mpsc::channel();
        let began = thread::Builder::new().name("bugreport".into()).spawn(move || {
            // Nobody receives it if it took too long.
            let _ = done.send(work());
        });
        let content = match began {
            Ok(_) => result.recv_timeout(patience).unwrap_or_else(|e| match e {
                mpsc::RecvTimeoutError::Timeout => Err(format!("no answer within {} s", patience.as_secs_f32().ceil())),
                mpsc::RecvTimeoutError::Disconnected => Err("reading it failed unexpectedly".into()),
            }),
            Err(e) => Err(format!("no thread: {e}")),
        };
        match content {
            Ok(content) => self.add(name, content),
            Err(why) => self.omit(name, why),
        }
    }

    fn add(&mut self, name: &str, content: Vec<u8>) {
        let content = match name.ends_with(".json") {
            true => match self.secrets.remove_from_json(&content) {
                Ok(content) => content,
                Err(why) => return self.omit(name, why),
            },
            false => content,
        };
        if content.len() > MAX_PART || self.size + content.len() > MAX_ALL {
            let mib = content.len() >> 20;
            return self.omit(name, format!("{mib} MiB are more than the archive takes"));
        }
        self.size += content.len();
        self.parts.push(Part { name: name.to_owned(), content });
    }

    fn omit(&mut self, name: &str, why: String) {
        self.omitted.push((name.to_owned(), why));
    }

    /// All parts; values that are secret by one of them are in none.
    fn finish(mut self) -> (Vec<Part>, Vec<(String, String)>) {
        for part in &mut self.parts {
            self.secrets.remove_from_text(&mut part.content);
        }
        for (_, why) in &mut self.omitted {
            *why = self.secrets.without(why);
        }
        self.omitted.extend(self.secrets.keys().map(|key| ("secret".to_owned(), format!("the value of {key}"))));
        (self.parts, self.omitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_hangs_is_left_out_and_so_is_what_comes_after_the_time_for_all() {
        let mut all = Collected::new(time::now() + Duration::from_millis(50));
        let (_hold, hang) = mpsc::channel::<()>();
        all.read("first.txt", || Ok(b"first".to_vec()));
        all.read("hangs.txt", move || {
            let _ = hang.recv();
            Ok(Vec::new())
        });
        all.read("late.txt", || panic!("there is no time left"));
        let (parts, omitted) = all.finish();
        assert_eq!(parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>(), ["first.txt"]);
        assert_eq!(omitted.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["hangs.txt", "late.txt"]);
        // Not the time for one part, of which less was left.
        assert!(omitted[0].1.contains("no answer within 1 s") && omitted[1].1.contains("for all parts"), "{omitted:?}");
    }

    #[test]
    fn sizes_are_bounded() {
        let mut all = Collected::new(time::now() + ALL);
        all.read("too-large.txt", || Ok(vec![0; MAX_PART + 1]));
        for _ in 0..5 {
            all.read("large.txt", || Ok(vec![0; MAX_PART]));
        }
        let (parts, omitted) = all.finish();
        assert_eq!((parts.len(), omitted.len()), (MAX_ALL / MAX_PART, 2), "{omitted:?}");
    }

    #[test]
    fn a_secret_of_one_part_is_in_none() {
        let mut all = Collected::new(time::now() + ALL);
        all.read("before.txt", || Ok(b"it said hunter2hunter2 before".to_vec()));
        all.read("config.json", || Ok(br#"{"switch": {"probe_key": "hunter2hunter2", "frames": 2048}}"#.to_vec()));
        all.read("broken.json", || Ok(br#"{"probe_key": "hunter2hunter2"#.to_vec()));
        all.read("after.txt", || Ok(b"and hunter2hunter2 after".to_vec()));
        all.read("fails.txt", || Err("for hunter2hunter2".into()));
        let (parts, omitted) = all.finish();
        let text: String = parts.iter().map(|part| String::from_utf8_lossy(&part.content)).collect();
        let omissions: String = omitted.iter().map(|(name, why)| format!("{name} {why}\n")).collect();
        assert!(!text.contains("hunter2") && !omissions.contains("hunter2"), "{text}{omissions}");
        assert!(
            text.contains("2048") && omissions.contains("switch.probe_key") && omissions.contains("broken.json"),
            "{omissions}"
        );
    }
}
