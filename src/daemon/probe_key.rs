//! Reads the file of `probe_key`: the key that authenticates loop probes to other hosts.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Digits of the key: 16 bytes in hexadecimal.
const DIGITS: usize = 32;

/// Maximum length of the file in bytes.
const LONGEST: u64 = 256;

/// Permissions of others.
const OTHERS: u32 = 0o007;

/// Command that makes a key.
const MAKE: &str = "(umask 077; openssl rand -hex 16 > FILE)";

/// Reads the key. The error names cause and remedy, and nothing of the contents.
pub(super) fn read(path: &Path) -> Result<[u8; 16], String> {
    let wrong = |why: &str| format!("switch.probe_key = \"file:{}\": {why}", path.display());
    let unreadable = |why: io::Error| {
        let remedy = match why.kind() {
            io::ErrorKind::NotFound => format!("; make one with `{MAKE}`, and copy it to all hosts"),
            _ => String::new(),
        };
        wrong(&format!("{why}{remedy}"))
    };
    // A FIFO would block.
    #[allow(clippy::cast_possible_wrap)] // a flag
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let found = file.metadata().map_err(unreadable)?;
    if !found.is_file() {
        return Err(wrong("not a file; use one with the key"));
    }
    if found.mode() & OTHERS != 0 {
        return Err(wrong("every user may read or change it; `chmod o= FILE`, and make another key on all hosts"));
    }
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).map_err(unreadable)?;
    parse(text.trim_end()).ok_or_else(|| {
        wrong(&format!("does not have {DIGITS} hexadecimal digits and nothing else; make one with `{MAKE}`"))
    })
}

fn parse(text: &str) -> Option<[u8; 16]> {
    let is_key = text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_key.then(|| u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f";

    #[test]
    fn a_key_is_read_and_anything_else_is_refused_without_being_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let with = |text: &str, mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            read(&path)
        };
        for (text, mode) in [(KEY.to_owned(), 0o600), (format!("{KEY}\n"), 0o640), (KEY.to_uppercase(), 0o400)] {
            assert_eq!(with(&text, mode), Ok(std::array::from_fn(|at| u8::try_from(at).unwrap())), "{text} {mode:o}");
        }
        for text in ["", "secret", &format!("{KEY}0"), &KEY[1..], &format!("+{}", &KEY[1..]), &format!("{KEY}\n{KEY}")]
        {
            let why = with(text, 0o600).unwrap_err();
            assert!(why.contains("32 hexadecimal digits") && why.contains("rand -hex 16"), "{why}");
            assert!(text.is_empty() || !why.contains(text), "{why}");
        }
        let why = with(KEY, 0o644).unwrap_err();
        assert!(why.contains("chmod o=") && !why.contains(KEY), "{why}");
        assert!(read(dir.path()).unwrap_err().contains("not a file"));
        let why = read(&dir.path().join("absent")).unwrap_err();
        assert!(why.contains("absent") && why.contains("make one with"), "{why}");
    }

    /// Opening it does not block, though nobody writes to it.
    #[test]
    fn a_fifo_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(read(&path).unwrap_err().contains("not a file"));
    }
}
