//! Sends a line to the host's log, for calls whose output nobody keeps.

use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// Socket of the host's log (syslog(3)).
pub const SOCKET: &str = "/dev/log";

/// Facility daemon, severity warning (RFC 3164, 4.1.1).
const PRIORITY: u8 = 3 * 8 + 4;

/// Maximum bytes of a line; logs cut longer ones.
const MAX_LEN: usize = 2000;

/// Logs a warning. A host without a log, or whose log is full, loses it.
pub fn warn(socket: &Path, text: &str) {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_LEN).collect();
    if let Ok(log) = UnixDatagram::unbound()
        && log.set_nonblocking(true).is_ok()
    {
        // The same text is on standard error.
        let _ = log.send_to(format!("<{PRIORITY}>vifswitch: {text}").as_bytes(), socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        // nobody listens: nothing happens
        warn(&path, "lost");
        let log = UnixDatagram::bind(&path).unwrap();
        warn(&path, "port \"p1\"\nstays");
        let mut bytes = [0; 100];
        let length = log.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"<28>vifswitch: port \"p1\" stays");
    }
}
