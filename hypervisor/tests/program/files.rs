//! Contents of a disk: the host's file has what the guest writes, and the guest reads files that the host put into a
//! file system.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::disk::{BLOCKS, SEED, Scratch, holds};
use super::{everywhere, run, skip};

#[test]
fn written_data_is_read_back_and_is_in_the_file() {
    let cmdline = format!("test=block-verify seed={SEED} rounds=2 blocks={BLOCKS}");
    for options in everywhere() {
        let disk = Scratch::new("verify");
        let args = [&options[..], &["--disk", disk.path(), "--cmdline", &cmdline]].concat();
        let ran = run(&args, b"");
        ran.must_end(0).must_print("test: name=block-verify ok=true");
        let bytes = std::fs::read(&disk.0).unwrap_or_else(|e| panic!("broken test: {e}"));
        let wrong = (0..BLOCKS).find(|block| !holds(&bytes, *block, SEED + 1));
        ran.must(wrong.is_none(), format_args!("wrote something else into block {wrong:?}"));
    }
}

/// A folder that is deleted on drop.
struct Folder(PathBuf);

impl Folder {
    /// Makes the folder, with a longer file, and one in a subfolder.
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("paravane-program-{}-folder", std::process::id()));
        // More than the blocks that an inode of ext2 can address directly.
        let numbers: String = (0..3500).map(|n| format!("{n}\n")).collect();
        let made = std::fs::create_dir_all(path.join("sub"))
            .and_then(|()| std::fs::write(path.join("sub/greeting"), "hello from a file\n"))
            .and_then(|()| std::fs::write(path.join("numbers"), numbers));
        made.unwrap_or_else(|e| panic!("broken test: {}: {e}", path.display()));
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Makes a file system with these files; false if the tool is missing.
fn make_file_system(kind: &str, files: &Path, disk: &Scratch) -> bool {
    let paths = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let made = Command::new("mke2fs")
        .env("PATH", paths)
        .args(["-q", "-F", "-t", kind, "-d"])
        .args([files, &disk.0])
        .output();
    let made = made.is_ok_and(|output| output.status.success());
    if !made {
        skip("mke2fs", "mke2fs makes no file system here: e2fsprogs is missing or too old for -d");
    }
    made
}

#[test]
fn the_files_of_a_disk_are_read() {
    let folder = Folder::new();
    for (kind, more) in [("ext2", ",readonly"), ("ext4", "")] {
        let disk = Scratch::new("files");
        if !make_file_system(kind, &folder.0, &disk) {
            return;
        }
        let before = std::fs::read(&disk.0).unwrap_or_else(|e| panic!("broken test: {e}"));
        for options in everywhere() {
            let typed = b"ls\ncat /sub/greeting\ncat /numbers\ncat /missing\nhalt\n";
            let path = format!("{}{more}", disk.path());
            let ran = run(&[&options[..], &["--disk", &path]].concat(), typed);
            ran.must_end(0);
            let text = ran.out.replace('\r', "");
            for part in [
                " sub/\n",
                "> cat /sub/greeting\nhello from a file\n",
                "\n2499\n2500\n2501\n",
                "\n3499\n",
                "not found",
            ] {
                ran.must(text.contains(part), format_args!("should have printed {part:?} of {kind}"));
            }
        }
        let after = std::fs::read(&disk.0).unwrap_or_else(|e| panic!("broken test: {e}"));
        assert!(after == before, "broken product: looking at an {kind} changed it");
    }
}
