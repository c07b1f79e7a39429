//! Several vCPUs under gdb. Sessions with one are in the program's own tests, `hypervisor/tests/gdb.rs`.

use std::process::{Command, Output, Stdio};
use std::thread;

use paravane::engine::NoCpu;
use paravane::gdb::{Address, Debugger};
use paravane::launch::RunError;
use paravane::machine::end::DomainEnd;
use paravane_tests::boot::Guest;
use paravane_tests::guests::SMP;
use paravane_tests::machine::engines;
use paravane_tests::verdict::{broken_product, broken_test, skip};

/// Has gdb connect and do what `script` says.
fn session(address: String, script: &'static [&'static str]) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut gdb = Command::new("gdb");
        gdb.args(["-nx", "-batch", "-ex", "set width 0", "-ex", "set confirm off", "-ex"]);
        gdb.arg(format!("target remote {address}")).args(script.iter().flat_map(|line| ["-ex", *line]));
        let Output { stdout, stderr, .. } = gdb.stdin(Stdio::null()).output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr))
    })
}

/// A vCPU that starts meets the breakpoint, whichever it is; the others stand meanwhile, while it is stepped, and go
/// on.
#[test]
fn each_vcpu_is_a_thread() {
    if !Command::new("gdb").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return skip("gdb", "gdb cannot be run");
    }
    let guest = Guest { name: "smp", cmdline: "vcpus=3", vcpus: 3, ..Guest::new(SMP) };
    for &engine in engines() {
        let address: Address = "127.0.0.1:0".parse().unwrap();
        let debugger = match Debugger::listen(&address, Box::new(|| {})) {
            Ok(debugger) => debugger,
            Err(error) => broken_test(error),
        };
        let script = &[
            "break other",
            "continue",
            "backtrace 1",
            // The others stay where they are.
            "set scheduler-locking on",
            "stepi",
            "stepi",
            "set scheduler-locking off",
            "continue",
            "info threads",
            "delete",
            "continue",
        ];
        let gdb = session(debugger.address().to_string(), script);
        let outcome = match guest.debug_on(engine, debugger) {
            Ok(outcome) => outcome,
            Err(RunError::Cpu(NoCpu::Absent { .. })) => {
                skip("several-vcpus", format_args!("the {} engine has one vCPU", engine.name()));
                continue;
            }
            Err(error) => broken_product(format_args!("3 vCPUs under gdb on {engine:?}: {error}")),
        };
        let said = gdb.join().unwrap();
        outcome.must_end(&DomainEnd::PowerOff).must_print("test: name=smp ok=true");
        for what in
            ["Thread 2 hit Breakpoint 1", "Thread 3 hit Breakpoint 1", "Thread 1.1", "exited normally"]
        {
            outcome.must(said.contains(what), format_args!("gdb should have said {what:?}, and said {said}"));
        }
    }
}
