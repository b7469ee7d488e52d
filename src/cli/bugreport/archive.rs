//! The archive: parts as files of a compressed tar, behind a list of contents.

use std::fmt::Write;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, Header};

/// Directory that the files are in.
const DIRECTORY: &str = "vifswitch-report";

/// One file.
#[derive(Debug)]
pub(super) struct Part {
    pub name: String,
    pub content: Vec<u8>,
}

/// The archive's bytes.
pub(super) fn compress(parts: &[Part], omitted: &[(String, String)], now: SystemTime) -> io::Result<Vec<u8>> {
    let mut archive = Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut add = |name: &str, content: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(seconds);
        archive.append_data(&mut header, format!("{DIRECTORY}/{name}"), content)
    };
    add("contents.txt", contents(parts, omitted, now).as_bytes())?;
    for part in parts {
        add(&part.name, &part.content)?;
    }
    archive.into_inner()?.finish()
}

fn contents(parts: &[Part], omitted: &[(String, String)], now: SystemTime) -> String {
    let mut text = format!("vifswitch {}, {}\n\n", env!("CARGO_PKG_VERSION"), crate::time::rfc3339(now));
    for Part { name, content } in parts {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name}: {} bytes", content.len());
    }
    for (name, why) in omitted {
        let _ = writeln!(text, "left out: {name}: {why}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn the_archive_has_all_parts_behind_their_list() {
        let part = |name: &str, content: &str| Part { name: name.into(), content: content.into() };
        let omitted = [("events.jsonl".to_owned(), "no switch".to_owned())];
        let packed = compress(&[part("a.txt", "one"), part("b.json", "{}")], &omitted, UNIX_EPOCH).unwrap();
        let mut archive = tar::Archive::new(GzDecoder::new(packed.as_slice()));
        let files: Vec<(String, String)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (entry.path().unwrap().display().to_string(), text)
            })
            .collect();
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["vifswitch-report/contents.txt", "vifswitch-report/a.txt", "vifswitch-report/b.json"]);
        assert_eq!(files[1].1, "one");
        assert!(files[0].1.contains("a.txt: 3 bytes") && files[0].1.contains("events.jsonl: no switch"), "{files:?}");
    }
}
