//! The kernels of this repository on Xen itself: the ABI is Xen's, so they must not depend on Paravane.
//!
//! Needs `qemu-system-x86_64` (its software emulation is enough) and Xen: the file that `PARAVANE_XEN` names, or the
//! first `/boot/xen-*.gz` (from Debian's package `xen-hypervisor-common`, for example). Each image is booted as Xen's
//! first domain, which needs no other software.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use paravane::image::builtin::PV;
use paravane_tests::guests::{CONFORMANCE, HELLO, HELLO_HIGH};
use paravane_tests::verdict::skip;

/// A time limit for the whole emulated machine, far above what it needs.
const PATIENCE: Duration = Duration::from_secs(300);

/// An emulated machine, which is killed when this is dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It may already have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Xen as an uncompressed ELF file, which QEMU can load, or why there is none.
fn xen(directory: &Path) -> Result<PathBuf, String> {
    let named = std::env::var_os("PARAVANE_XEN").map(PathBuf::from);
    let installed = || {
        let entries = fs::read_dir("/boot").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        entries.filter(|path| is_xen(path)).min()
    };
    let found = named.or_else(installed).ok_or("there is no Xen: set PARAVANE_XEN to its image")?;
    let plain = directory.join("xen.elf");
    let compressed = found.extension().is_some_and(|extension| extension == "gz");
    let bytes = if compressed {
        let output =
            Command::new("gzip").arg("-dc").arg(&found).output().map_err(|e| format!("gzip: {e}"))?;
        output.stdout
    } else {
        fs::read(&found).map_err(|e| format!("{}: {e}", found.display()))?
    };
    fs::write(&plain, bytes).map_err(|e| format!("{}: {e}", plain.display()))?;
    Ok(plain)
}

fn is_xen(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|n| n.starts_with("xen-") && n.ends_with(".gz"))
}

/// Boots `image` under Xen and returns the first line of its console that begins with `wanted`, and all lines before
/// it. Where Xen or QEMU is missing, reports a skip and returns `None`.
fn boot(name: &str, image: &[u8], cmdline: &str, wanted: &str) -> Option<Vec<String>> {
    // Tests of other packages share the parent directory.
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("real-xen").join(name);
    fs::create_dir_all(&directory).expect("the target directory is ours to write");
    let xen = match xen(&directory) {
        Ok(xen) => xen,
        Err(why) => {
            skip("real-xen", why);
            return None;
        }
    };
    let kernel = directory.join("kernel.elf");
    fs::write(&kernel, image).expect("the target directory is ours to write");
    let mut command = Command::new("qemu-system-x86_64");
    // QEMU's emulation of IRETQ reads the stack with supervisor rights even at CPL 3, which SMAP would forbid.
    command.args(["-accel", "tcg", "-cpu", "max,-smap", "-m", "512", "-display", "none", "-no-reboot"]);
    command.args(["-monitor", "none", "-serial", "stdio", "-kernel"]).arg(xen);
    command.args(["-append", "console=com1 com1=115200,8n1 dom0=pv dom0_mem=64M"]);
    command.arg("-initrd").arg(format!("{} {cmdline}", kernel.display()));
    let machine = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut machine = match machine {
        Ok(machine) => Machine(machine),
        Err(error) => {
            skip("qemu-system-x86_64", error);
            return None;
        }
    };
    let console = machine.0.stdout.take().expect("it was piped");
    Some(read_until(console, wanted))
}

fn read_until(console: impl std::io::Read + Send + 'static, wanted: &str) -> Vec<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let lines = BufReader::new(console).split(b'\n').map_while(Result::ok);
        // The receiver is dropped once it has seen the line.
        lines
            .map(|line| String::from_utf8_lossy(&line).trim_end().to_owned())
            .try_for_each(|l| sender.send(l))
    });
    let mut seen = Vec::new();
    loop {
        match receiver.recv_timeout(PATIENCE) {
            Ok(line) if line.starts_with(wanted) => {
                seen.push(line);
                return seen;
            }
            Ok(line) => seen.push(line),
            Err(error) => panic!("no line begins with {wanted:?} ({error}): {seen:#?}"),
        }
    }
}

#[test]
fn kernels_of_either_half_boot_on_xen() {
    for (name, image) in [("hello", HELLO), ("hello-high", HELLO_HIGH)] {
        if let Some(lines) = boot(name, image, "as a guest", "hello from ") {
            assert!(lines.last().is_some_and(|line| line.ends_with(": as a guest")), "{lines:#?}");
        }
    }
}

#[test]
fn xen_answers_every_hypercall_as_our_conformance_guest_expects() {
    if let Some(lines) = boot("conformance", CONFORMANCE, "", "test: name=conformance ") {
        let failed: Vec<_> = lines.iter().filter(|line| line.contains(" ok=false")).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }
}

#[test]
fn the_reference_guest_does_its_work_on_xen() {
    for name in ["null-call", "console-4k", "map-512", "map-4096", "address-space"] {
        let cmdline = format!("bench={name}");
        if let Some(lines) = boot(&format!("bench-{name}"), PV, &cmdline, "bench: ") {
            let last = lines.last().map(String::as_str).unwrap_or_default();
            assert!(last.contains(&format!("name={name} ")) && last.contains(" ok=true"), "{lines:#?}");
        }
    }
}
