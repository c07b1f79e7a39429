//! What a guest flushed is on the host's disk, whatever happens to the hypervisor.
//!
//! What needs an engine is skipped where this machine lacks it.

#[path = "../src/skip.rs"]
mod skip;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use skip::skip;

/// Bytes of a block, as the guest's test writes them.
const BLOCK: usize = 4096;
const BLOCKS: usize = 2048;
const SEED: u64 = 77;

/// A disk of zeroes, which goes when this does.
struct Image(PathBuf);

impl Image {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        File::create(&path).unwrap().set_len((BLOCKS * BLOCK) as u64).unwrap();
        Self(path)
    }

    fn block(&self, bytes: &[u8], number: usize, seed: u64) -> bool {
        let words = bytes[number * BLOCK..][..BLOCK]
            .chunks_exact(8)
            .map(|w| u64::from_le_bytes(w.try_into().unwrap()));
        words.zip((number * BLOCK / 8) as u64..).all(|(found, index)| found == word(seed, index))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// As the guest's `pattern` has it.
fn word(seed: u64, index: u64) -> u64 {
    (index ^ seed.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (index >> 7)
}

fn start(image: &Image, build: &[&str], rounds: u64) -> Child {
    Command::new(env!("CARGO_BIN_EXE_paravane"))
        .args(["run", "--timeout", "120s", "--disk", image.0.to_str().unwrap()])
        .args(["--cmdline", &format!("test=block-verify seed={SEED} rounds={rounds}")])
        .args(build)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// `round` and `flushed` of a line of the test's.
fn flushed(line: &str) -> Option<(u64, usize)> {
    let rest = line.trim().strip_prefix("block-verify: round=")?;
    let (round, count) = rest.split_once(" flushed=")?;
    Some((round.parse().ok()?, count.parse().ok()?))
}

#[test]
fn what_was_written_is_read_back_and_is_in_the_file() {
    for (build, options) in [("pv", &[][..]), ("bare", &["--bare"])] {
        let image = Image::new(&format!("verify-{build}.raw"));
        let output = start(&image, options, 1).wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        if output.status.code() == Some(1) && text.is_empty() {
            return skip("engine", "no guest runs here");
        }
        assert!(text.contains("test: name=block-verify ok=true"), "{build}: {text}");
        let bytes = std::fs::read(&image.0).unwrap();
        assert!(
            (0..BLOCKS).all(|number| image.block(&bytes, number, SEED)),
            "{build}: the file has something else"
        );
    }
}

/// The hypervisor is killed in the middle of the second round of writing, several times, each a little later.
#[test]
fn what_was_flushed_survives_sigkill() {
    for batches in [1, 7, 20] {
        let image = Image::new(&format!("killed-{batches}.raw"));
        let mut child = start(&image, &[], 1_000_000);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut seen = lines.by_ref().filter_map(|line| flushed(&line)).filter(|(round, _)| *round == 1);
        let Some((_, last)) = seen.nth(batches - 1) else {
            assert_eq!(child.wait().unwrap().code(), Some(1));
            return skip("engine", "no guest runs here");
        };
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still said before it died holds as well.
        let (round, last) = lines.filter_map(|line| flushed(&line)).last().unwrap_or((1, last));
        let mut bytes = Vec::new();
        File::open(&image.0).unwrap().read_to_end(&mut bytes).unwrap();
        for number in 0..BLOCKS {
            // Blocks that were being written belong to either round; no block is torn between them by more than that.
            let right = image.block(&bytes, number, SEED + round)
                || number >= last && (image.block(&bytes, number, SEED + round - 1) || number < last + 32);
            assert!(right, "block {number} of {last} that were flushed in round {round}");
        }
    }
}

/// A file system of this host's making, read by the guest: the path of its image.
fn file_system() -> Option<Image> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("files");
    std::fs::create_dir_all(directory.join("sub")).unwrap();
    std::fs::write(directory.join("sub/greeting"), "hello from a file\n").unwrap();
    let numbers: Vec<String> = (0..5000).map(|n| format!("{n}\n")).collect();
    std::fs::write(directory.join("numbers"), numbers.concat()).unwrap();
    let image = Image::new("files.ext4");
    let paths = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let made = Command::new("mke2fs")
        .env("PATH", paths)
        .args(["-q", "-F", "-t", "ext4", "-d", directory.to_str().unwrap(), image.0.to_str().unwrap()])
        .status();
    made.is_ok_and(|status| status.success()).then_some(image)
}

#[test]
fn files_are_read_from_a_disk() {
    let Some(image) = file_system() else {
        return skip("mke2fs", "mke2fs makes no file system here: e2fsprogs is missing or too old for -d");
    };
    for (build, options) in [("pv", &[][..]), ("bare", &["--bare"])] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_paravane"))
            .args(["run", "--timeout", "60s", "--disk", &format!("{},readonly", image.0.display())])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let typed = b"ls\ncat /sub/greeting\ncat /numbers\ncat /missing\nhalt\n";
        // A program that could not start a guest has closed it.
        let _ = child.stdin.take().unwrap().write_all(typed);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        if output.status.code() == Some(1) && text.is_empty() {
            return skip("engine", "no guest runs here");
        }
        for part in [
            " sub/\n",
            "> cat /sub/greeting\nhello from a file\n",
            "\n2499\n2500\n2501\n",
            "\n4999\n",
            "not found",
        ] {
            assert!(text.contains(part), "{build}: {part:?} is missing in:\n{text}");
        }
    }
}
