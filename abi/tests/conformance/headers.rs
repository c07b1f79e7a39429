//! Evaluates C expressions over Xen's headers by a C compiler.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use crate::fact::Fact;

/// The directory of the public headers in Debian's `libxen-dev`.
const INCLUDE: &str = "/usr/include/xen";

/// Headers that the facts need. The C library's come first: Xen's use its types without including them.
const HEADERS: [&str; 21] = [
    "xen.h",
    "errno.h",
    "physdev.h",
    "memory.h",
    "event_channel.h",
    "sched.h",
    "vcpu.h",
    "callback.h",
    "features.h",
    "version.h",
    "elfnote.h",
    "grant_table.h",
    "nmi.h",
    "io/console.h",
    "io/xs_wire.h",
    "arch-x86/cpuid.h",
    "arch-x86/hvm/start_info.h",
    "platform.h",
    "pmu.h",
    "arch-x86/xen.h",
    "arch-x86/xen-x86_64.h",
];

/// Why there are no values.
pub enum Error {
    /// Something is not installed.
    Missing(String),
    /// Everything is installed, but the compiler or the program failed.
    Failed(String),
}

/// The value of each fact's expression, in order.
pub fn evaluate(facts: &[Fact]) -> Result<Vec<i128>, Error> {
    if !Path::new(INCLUDE).join("xen.h").is_file() {
        return Err(Error::Missing(format!("Xen's headers are not under {INCLUDE}; install libxen-dev")));
    }
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    if Command::new(&compiler).arg("--version").output().is_err() {
        return Err(Error::Missing(format!(
            "there is no C compiler `{compiler}`; install gcc, or name one in CC"
        )));
    }
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let name = format!("conformance-{}", std::process::id());
    let (source, program) = (directory.join(&name).with_extension("c"), directory.join(name));
    std::fs::write(&source, program_text(facts))
        .map_err(|error| Error::Failed(format!("cannot write {}: {error}", source.display())))?;
    // `__XEN_TOOLS__` adds operations to memory.h; the newest interface version has the current names of fields.
    let mut compile = Command::new(&compiler);
    compile
        .args([
            "-std=gnu11",
            "-w",
            "-D__XEN_TOOLS__",
            "-D__XEN_INTERFACE_VERSION__=__XEN_LATEST_INTERFACE_VERSION__",
        ])
        .arg("-o")
        .args([&program, &source]);
    run(&mut compile)?;
    let output = run(&mut Command::new(&program))?;
    for file in [source, program] {
        let _ = std::fs::remove_file(file);
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| {
            line.parse().map_err(|error| Error::Failed(format!("the C program printed `{line}`: {error}")))
        })
        .collect()
}

/// The C program: one line of output per fact.
fn program_text(facts: &[Fact]) -> String {
    let mut text = String::from("#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n");
    for header in HEADERS {
        let _ = writeln!(text, "#include <xen/{header}>");
    }
    text.push_str("#define FACT(e) ((e) < 0 ? printf(\"%lld\\n\", (long long)(e)) ");
    text.push_str(": printf(\"%llu\\n\", (unsigned long long)(e)))\nint main(void)\n{\n");
    for fact in facts {
        let _ = writeln!(text, "    FACT({}); /* {} */", fact.c, fact.claim);
    }
    text.push_str("    return 0;\n}\n");
    text
}

fn run(command: &mut Command) -> Result<Output, Error> {
    let output =
        command.output().map_err(|error| Error::Failed(format!("cannot run {command:?}: {error}")))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Error::Failed(format!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr))))
}
