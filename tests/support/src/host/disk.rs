//! A file system in memory for the state, which can be full, out of inodes or read-only. Needs root.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A file system in memory, unmounted when the test ends.
pub struct Disk(TempDir);

impl Disk {
    /// Prints the reason and returns `None` if the host cannot mount it.
    pub fn new(options: &str) -> Option<Disk> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root, to mount a file system");
            return None;
        }
        let disk = Disk(tempfile::tempdir().unwrap());
        disk.mount(&["-t", "tmpfs", "-o", options, "tmpfs"]);
        Some(disk)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn state(&self) -> PathBuf {
        self.path().join("state.db")
    }

    fn mount(&self, how: &[&str]) {
        let done = Command::new("mount").args(how).arg(self.path()).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    pub fn remount(&self, how: &str) {
        self.mount(&["-o", &format!("remount,{how}")]);
    }

    /// Uses up all space.
    pub fn fill(&self) {
        let mut file = File::options().append(true).create(true).open(self.path().join("filler")).unwrap();
        for size in [65536, 4096, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    /// Uses up all inodes.
    pub fn take_inodes(&self) {
        let mut number = 0;
        while File::create_new(self.path().join(format!("inode-{number}"))).is_ok() {
            number += 1;
        }
        assert!(number < 10_000, "the inodes are unlimited");
    }

    /// Frees both.
    pub fn make_room(&self) {
        for file in fs::read_dir(self.path()).unwrap().map(Result::unwrap) {
            let name = file.file_name().into_string().unwrap();
            if name == "filler" || name.starts_with("inode-") {
                fs::remove_file(file.path()).unwrap();
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a failed test has the state still open.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}
