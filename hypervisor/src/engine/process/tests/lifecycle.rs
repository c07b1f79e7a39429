//! Births and deaths of guest processes: what they have, and that none is left behind.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

use super::super::area::{CODE, GUEST_END, M2P_VA};
use super::super::{ProcessMachine, probe};
use super::world;
use crate::engine::{Cpu, Exit, Machine};
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{Backing, MachineMemory};
use crate::testing::engine::{DATA_VA, HYPERCALL_VA, code, gp};
use crate::testing::skip::skip;

fn engine() -> Option<(Box<dyn Cpu>, ProcessMachine, MachineMemory)> {
    if let Err(missing) = probe() {
        skip("process", missing);
        return None;
    }
    let layout = HypervisorLayout::new(64, 0);
    let memory = MachineMemory::new(layout.hypervisor_frames(), 64, Backing::Memfd).unwrap();
    let mut machine = ProcessMachine::new(&memory, &layout).unwrap();
    Some((machine.cpu(0).unwrap(), machine, memory))
}

fn proc_file(pid: u32, name: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/{name}")).unwrap()).into_owned()
}

/// The first word of a field of a task's status.
fn status(task: u32, name: &str) -> String {
    let status = proc_file(task, "status");
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).unwrap_or_default().to_owned()
}

fn tasks(pid: u32) -> Vec<u32> {
    let dir = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    dir.map(|e| e.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect()
}

/// A descriptor of a process that may end at any time.
fn pidfd(pid: u32) -> OwnedFd {
    // SAFETY: has no memory arguments.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: just opened, and ours alone.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn ends(process: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live entry. Ten seconds are for a machine under load; the end itself takes microseconds.
    unsafe { libc::poll(&raw mut poll, 1, 10_000) == 1 }
}

#[test]
fn a_guest_process_has_nothing_of_ours() {
    let Some((cpu, _machine, _memory)) = engine() else { return };
    let pid = cpu.processes()[0];
    for line in proc_file(pid, "maps").lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let start = u64::from_str_radix(range.split_once('-').unwrap().0, 16).unwrap();
        let ours = (CODE..CODE + 0x20_0000).contains(&start)
            && (rest.contains("memfd:paravane-room") || rest.contains("memfd:paravane-guest"));
        let m2p = start == M2P_VA && rest.starts_with("r--s") && rest.contains("memfd:paravane-memory");
        assert!(ours || m2p || rest.ends_with("[vsyscall]"), "{line}");
        assert!(!rest.starts_with("rwx"), "{line}");
    }
    assert_eq!(proc_file(pid, "environ") + &proc_file(pid, "cmdline"), "");
    assert_eq!(tasks(pid).len(), 2);
    // In a container we have some ourselves.
    let inherited: u32 = status(std::process::id(), "Seccomp_filters:").parse().unwrap();
    for task in tasks(pid) {
        let fds = std::fs::read_dir(format!("/proc/{task}/fd")).map(Iterator::count).unwrap();
        let guest = task != pid;
        assert_eq!(fds, if guest { 0 } else { 2 }, "the mapper has machine memory and the listener only");
        let field = |name| status(task, name);
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));
        assert_eq!(field("Seccomp_filters:").parse(), Ok(inherited + 2));
    }
    let limits = proc_file(pid, "limits");
    // With a hard limit of 0 it is undumpable: /proc is then root's.
    let core = if super::sys::hard_core_limit() == 0 { "0" } else { "1" };
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{pid}/maps")).unwrap());
    // SAFETY: has no precondition.
    let ours = unsafe { libc::geteuid() };
    assert_eq!(owner, if core == "0" { 0 } else { ours });
    let limited = [("core file size", core), ("processes", "0"), ("open files", "0"), ("file size", "0")];
    for (limit, value) in limited {
        let limit = format!("Max {limit}");
        let line = limits.lines().find(|l| l.starts_with(&limit)).unwrap();
        let values: Vec<_> = line[limit.len()..].split_whitespace().take(2).collect();
        assert_eq!(values, [value, value], "{line}");
    }
    let session = |pid: u32| {
        // SAFETY: has no memory arguments.
        unsafe { libc::getsid(pid as i32) }
    };
    assert_ne!(session(pid), session(0), "a terminal's signals do not reach it");
}

/// Nothing of the engine that the guest can read reveals an address of the host.
#[test]
fn no_host_address_is_readable() {
    let Some(mut w) = world() else { return };
    // Exits of every kind, so that frames of every kind are left in the room.
    w.regs.rbx = HYPERCALL_VA;
    w.regs.rax = DATA_VA;
    w.load(&code!("mov rdx, [rax]", "call rbx", "syscall", "cli"));
    assert_eq!((w.run(), w.run(), w.run()), (Exit::Hypercall, Exit::Syscall, gp(0)));
    let host: Vec<(u64, u64)> = proc_file(std::process::id(), "maps")
        .lines()
        .filter_map(|line| {
            let (from, to) = line.split_once(' ')?.0.split_once('-')?;
            Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?))
        })
        .collect();
    // The guest copies all of ours to its own memory, page by page, where we look at it.
    let regions = [(super::area::room_va(0), 0x2_0000), (super::area::board_va(0), 0x4_0000)];
    let kernel = 0xffff_8000_0000_0000..0xffff_ffff_ff60_0000u64;
    for va in regions.into_iter().flat_map(|(va, len)| (va..va + len).step_by(4096)) {
        (w.regs.rsi, w.regs.rdi, w.regs.rcx) = (va, DATA_VA, 512);
        assert_eq!(w.exec(&code!("cld", "rep movsq", "cli")), gp(0));
        for offset in (0..4096).step_by(8) {
            let word = w.peek(DATA_VA + offset);
            // The board holds filters, whose masks look like kernel addresses.
            let kernel = va < super::area::board_va(0) && kernel.contains(&word);
            let leaks = kernel || host.iter().any(|(from, to)| (*from..*to).contains(&word));
            assert!(!leaks, "{word:#x} at {:#x}", va + offset);
        }
    }
}

#[test]
fn dropping_the_engine_ends_its_processes() {
    let Some((cpu, _machine, _memory)) = engine() else { return };
    let pid = cpu.processes()[0];
    let process = pidfd(pid);
    drop(cpu);
    assert!(ends(&process));
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "reaped, too");
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: has no memory arguments.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

#[test]
fn a_killed_child_is_a_clear_end() {
    for (signal, text) in [(libc::SIGKILL, "killed from outside"), (libc::SIGTERM, "from outside")] {
        let Some(mut w) = world() else { return };
        let pid = w.cpu.processes()[0];
        w.load(&code!("4:", "jmp 4b"));
        w.cpu.kicker().arm(1_000_000);
        assert_eq!(w.enter(), Exit::Kick, "it runs");
        let thread = std::thread::spawn(move || kill(pid, signal));
        let exit = w.enter();
        assert!(matches!(exit, Exit::Dead(m) if m.contains(text)), "{exit:?}");
        thread.join().unwrap();
        assert_eq!(w.enter(), exit, "and stays so");
    }
}

/// Signals that someone sends are not exceptions.
#[test]
fn a_signal_from_outside_is_no_exception() {
    let Some(mut w) = world() else { return };
    let pid = w.cpu.processes()[0];
    w.load(&code!("mov rcx, 3000000", "4:", "dec rcx", "jnz 4b", "cli"));
    for signal in [libc::SIGSEGV, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS, libc::SIGUSR1] {
        kill(pid, signal);
    }
    assert_eq!(w.run(), gp(0));
    assert_eq!(w.regs.rcx, 0);
}

const HELPER: &str = "PARAVANE_TEST_LIFECYCLE_HELPER";

/// Not a test: what [`no_process_outlives_a_killed_hypervisor`] kills.
#[test]
fn helper_that_waits_to_be_killed() {
    if std::env::var_os(HELPER).is_none() {
        return;
    }
    let (cpu, _machine, _memory) = engine().unwrap();
    println!("child {}", cpu.processes()[0]);
    loop {
        std::thread::park();
    }
}

#[test]
fn no_process_outlives_a_killed_hypervisor() {
    if let Err(missing) = probe() {
        return skip("process", missing);
    }
    let name = "engine::process::tests::lifecycle::helper_that_waits_to_be_killed";
    let mut helper = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(HELPER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(helper.stdout.take().unwrap()).lines();
    let child = lines.map_while(Result::ok).find_map(|l| l.split_once("child ")?.1.trim().parse().ok());
    let process = pidfd(child.unwrap());
    helper.kill().unwrap();
    helper.wait().unwrap();
    assert!(ends(&process), "the guest's process outlived its hypervisor");
}

#[test]
fn addresses_of_ours_lie_above_the_guest_s() {
    let Some((_, engine, _memory)) = engine() else { return };
    assert_eq!(engine.info().lower_half_end, GUEST_END);
    assert!(engine.info().m2p_va >= GUEST_END);
    assert_eq!(engine.reserved_l4_entries(), [0; 16]);
}
