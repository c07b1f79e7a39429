//! `run --gdb`, driven by the real gdb from a script.
//!
//! gdb gets the kernel's file over the connection, so that no test needs to know where it is. Tests are skipped where
//! there is no gdb, or where a guest cannot run.

#[path = "../src/testing/skip.rs"]
mod skip;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use skip::skip;

/// A guest that waits for gdb.
struct Waiting {
    program: Child,
    said: BufReader<ChildStderr>,
    address: String,
}

/// What came of a session.
struct Ended {
    /// What gdb printed.
    gdb: String,
    /// The status of the program, and what it said on standard error, and the guest on standard output.
    status: Option<i32>,
    said: String,
    printed: String,
}

fn has_gdb() -> bool {
    match Command::new("gdb").arg("--version").output() {
        Ok(Output { status, .. }) if status.success() => true,
        other => {
            skip("gdb", format_args!("gdb cannot be run: {other:?}"));
            false
        }
    }
}

/// Starts a guest on an engine; `None` if there is none here.
fn start(engine: &str, args: &[&str]) -> Option<Waiting> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
    command.args(["run", "--engine", engine, "--gdb", "127.0.0.1:0", "--timeout", "100s"]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut program = command.spawn().unwrap();
    let said = BufReader::new(program.stderr.take().unwrap());
    let mut waiting = Waiting { program, said, address: String::new() };
    let mut lines = String::new();
    loop {
        let mut line = String::new();
        if waiting.said.read_line(&mut line).unwrap() == 0 {
            assert_eq!(waiting.program.wait().unwrap().code(), Some(1), "{lines}");
            skip(engine, lines);
            return None;
        }
        if let Some((_, address)) = line.split_once("target remote ") {
            address.trim_end().trim_end_matches('"').clone_into(&mut waiting.address);
            return Some(waiting);
        }
        lines += &line;
    }
}

impl Waiting {
    /// Has gdb connect and do what `script` says, a command a line.
    fn session(&mut self, script: &str) -> String {
        let mut gdb = Command::new("gdb");
        gdb.args(["-nx", "-batch", "-ex", "set width 0", "-ex", "set confirm off"]);
        gdb.args(["-ex", "set tcp connect-timeout 20", "-ex", "set remotetimeout 60"]);
        gdb.args(["-ex", &format!("target remote {}", self.address)]);
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            gdb.args(["-ex", line]);
        }
        let Output { stdout, stderr, .. } = gdb.stdin(Stdio::null()).output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr))
    }

    fn end(mut self, gdb: String) -> Ended {
        let (mut said, mut printed) = (String::new(), String::new());
        self.program.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        self.said.read_to_string(&mut said).unwrap();
        Ended { gdb, status: self.program.wait().unwrap().code(), said, printed }
    }
}

/// One session; `None` where there can be none.
fn run(engine: &str, args: &[&str], script: &str) -> Option<Ended> {
    if !has_gdb() {
        return None;
    }
    let mut guest = start(engine, args)?;
    let said = guest.session(script);
    Some(guest.end(said))
}

impl Ended {
    /// Checks that gdb printed these, in this order. Answers of `monitor` are on its standard error, and come last.
    #[track_caller]
    fn told(&self, pieces: &[&str]) {
        let mut rest = self.gdb.as_str();
        for piece in pieces {
            match rest.split_once(piece) {
                Some((_, after)) => rest = after,
                None => {
                    panic!("{piece:?} is missing after what came before it, in\n{}\n{}", self.gdb, self.said)
                }
            }
        }
    }

    /// Checks that the guest did all of its work, undisturbed.
    #[track_caller]
    fn went_on(&self) {
        assert_eq!(self.status, Some(0), "{}\n{}", self.gdb, self.said);
        assert!(self.printed.contains("bench: name=timer-1000 ops=1000 ok=true"), "{}", self.printed);
    }
}

const TICKS: &[&str] = &["--cmdline", "bench=timer-1000"];

/// Breaks, steps, locals, a backtrace from an upcall's handler to what it interrupted, and on.
const PARAVIRTUAL: &str = "
    break guest_kernel::workload::timer::ticks
    continue
    next
    info locals
    stepi
    x/i $rip
    break paravane_guest::trap::handlers::dispatch
    continue
    print frame.vector
    backtrace
    print $mxcsr
    print $ymm0
    print/x $cr3
    set var $xmm3.v4_int32[1] = 77
    print $xmm3.v4_int32[1]
    monitor vcpus
    monitor events
    monitor exits 2
    monitor frame 0
    info threads
    delete
    x/2i guest_kernel::workload::timer::ticks
    detach
";

fn paravirtual(engine: &str) {
    let Some(ended) = run(engine, TICKS, PARAVIRTUAL) else { return };
    ended.told(&[
        "in _start ()",
        "Breakpoint 1, guest_kernel::workload::timer::ticks",
        "before = 0",
        "latency = guest_kernel::workload::timer::Latency {min: 18446744073709551615, max: 0, sum: 0}",
        "=> 0x",
        "Breakpoint 2, paravane_guest::trap::handlers::dispatch",
        // The SDK's number of an event.
        "= 256",
        "#0  paravane_guest::trap::handlers::dispatch",
        "<signal handler called>",
        "guest_kernel::workload::timer::run",
        "__paravane_main",
        "[ IM DM ZM OM UM PM ]",
        "v4_int64",
        "= 0x",
        "= 77",
        "* 1    Thread 1.1 (vcpu0 is in its kernel)",
        "detached",
        "vcpu0 is in its kernel",
        "VIRQ_TIMER; for vcpu0",
        "hypercall set_timer_op",
        "mfn 0x0: the hypervisor's",
    ]);
    assert!(!ended.gdb.contains("\tint3"), "a breakpoint shows: {}", ended.gdb);
    assert!(ended.said.contains("gdb has gone; the guest goes on"), "{}", ended.said);
    ended.went_on();
}

#[test]
fn a_paravirtual_kernel_on_processes() {
    paravirtual("process");
}

#[test]
fn a_paravirtual_kernel_on_kvm() {
    paravirtual("kvm");
}

/// The same kernel on its own PC: its exceptions are emulated, and so is what it is stepped through.
const BARE: &str = "
    stepi 20
    break guest_kernel::machine::bare::traps::dispatch
    continue
    print frame.vector
    backtrace
    monitor vcpus
    delete
    stepi 50
    detach
";

fn bare(engine: &str) {
    let Some(ended) = run(engine, &[&["--bare"], TICKS].concat(), BARE) else { return };
    ended.told(&[
        "in _start ()",
        "Breakpoint 1, guest_kernel::machine::bare::traps::dispatch",
        // The timer's interrupt.
        "= 32",
        "<signal handler called>",
        "guest_kernel::boot::start",
        "detached",
        "vcpu0 runs with interrupts off",
    ]);
    ended.went_on();
}

#[test]
fn a_bare_kernel_on_processes() {
    bare("process");
}

#[test]
fn a_bare_kernel_on_kvm() {
    bare("kvm");
}

/// What the engine has no debug registers for is refused with a word about what to do; gdb then steps instead.
#[test]
fn a_watchpoint_without_debug_registers() {
    let script = "
        watch -l *(long*)($rsp-8)
        stepi
        delete
        set can-use-hw-watchpoints 0
        tbreak guest_kernel::workload::timer::ticks
        continue
        watch $rbx
        continue
        kill
    ";
    let Some(ended) = run("process", TICKS, script) else { return };
    ended.told(&["Watchpoint 3: $rbx", "New value", "killed"]);
    assert!(ended.gdb.contains("Could not insert hardware watchpoint"), "{}", ended.gdb);
    assert!(ended.said.contains("set can-use-hw-watchpoints 0"), "{}", ended.said);
}

/// The guest's end is one to gdb, and gdb's kill is the guest's end.
#[test]
fn both_ends() {
    let Some(ended) = run("process", TICKS, "continue") else { return };
    ended.told(&["exited normally"]);
    ended.went_on();
    let Some(ended) = run("process", TICKS, "kill") else { return };
    ended.told(&["killed"]);
    assert_eq!((ended.status, ended.printed.as_str()), (Some(0), ""), "{}", ended.said);
}

/// A guest that crashes can be looked at before it is gone.
#[test]
fn a_crash_is_a_stop() {
    let script = "
        continue
        backtrace
        continue
    ";
    let Some(ended) = run("process", &["--cmdline", "bench=nothing-of-that-name"], script) else { return };
    ended.told(&[
        "received signal SIGABRT",
        "paravane_guest::power::crash",
        "terminated with signal SIGABRT",
    ]);
    assert_eq!(ended.status, Some(3), "{}", ended.said);
}

/// gdb comes, goes, and comes again while the guest waits for its shell's input.
#[test]
fn gdb_may_come_again() {
    if !has_gdb() {
        return;
    }
    let Some(mut guest) = start("process", &[]) else { return };
    let first = guest.session("detach");
    assert!(first.contains("detached"), "{first}");
    let again = guest.session("info threads\nkill");
    let ended = guest.end(again);
    ended.told(&["* 1    Thread 1.1 (vcpu0", "killed"]);
    assert_eq!(ended.status, Some(0), "{}", ended.said);
}

/// Saves the reference guest at its prompt; false if there is no engine for it here.
fn save(to: &str) -> bool {
    let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
    command.args(["run", "--engine", "process", "--timeout", "100s", "--snapshot-to", to]);
    let mut program =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut seen, mut byte) = (Vec::new(), [0]);
    while !seen.ends_with(b"> ") && program.stdout.as_mut().unwrap().read(&mut byte).unwrap() != 0 {
        seen.push(byte[0]);
    }
    let mut said = String::new();
    if seen.ends_with(b"> ") {
        let pid = libc::pid_t::try_from(program.id()).unwrap();
        // SAFETY: kill takes no pointers; the child `pid` has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGUSR2) }, 0);
        BufReader::new(program.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("saved to"), "{said}");
        program.kill().unwrap();
    } else {
        program.stderr.as_mut().unwrap().read_to_string(&mut said).unwrap();
        skip("process", said);
    }
    program.wait().unwrap();
    seen.ends_with(b"> ")
}

/// A guest that goes on from a file waits for gdb where it was, and its kernel's symbols are the file's.
#[test]
fn a_restored_guest_is_debugged_where_it_was() {
    let file = std::env::temp_dir().join(format!("paravane-gdb-{}.snap", std::process::id()));
    let file = file.to_str().unwrap();
    if !has_gdb() || !save(file) {
        return;
    }
    for engine in ["process", "kvm"] {
        if let Some(ended) = run(engine, &["--restore", file], "info threads\nbacktrace\nkill") {
            ended.told(&["* 1    Thread 1.1 (vcpu0 ", " in paravane_guest::", "killed"]);
        }
    }
    std::fs::remove_file(file).unwrap();
}

/// What cannot be debugged says why, and what can.
#[test]
fn a_technique_without_a_debugger_says_so() {
    for technique in ["patch", "translate", "interpret"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
        command.args(["run", "--technique", technique, "--gdb", "127.0.0.1:0"]).stdin(Stdio::null());
        let Output { status, stderr, .. } = command.output().unwrap();
        let said = String::from_utf8_lossy(&stderr);
        if said.contains("engine") && !said.contains("--gdb") {
            skip("process", said);
            continue;
        }
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("technique {technique} has no debugger (--gdb)")), "{said}");
        assert!(said.contains("use --technique trap"), "{said}");
    }
}
