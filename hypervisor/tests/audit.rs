//! `paravane audit` from outside, on the built-in guests and on this test program itself. It contains one instruction
//! of each kind, compiled and linked with symbols and line tables like a kernel.

#[path = "../src/testing/skip.rs"]
mod skip;

use std::arch::asm;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

fn audit(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_paravane")).arg("audit").args(args).output().unwrap()
}

fn json(args: &[&str]) -> (Value, Option<i32>) {
    let output = audit(&[args, &["--json"]].concat());
    (serde_json::from_slice(&output.stdout).unwrap(), output.status.code())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

macro_rules! planted {
    ($($name:ident: $class:literal $effect:literal [$($code:literal),+])*) => {
        $(
            #[inline(never)]
            extern "C" fn $name() {
                // SAFETY: this function is never called; the audit finds it.
                unsafe { asm!($($code),+) }
            }
        )*
        /// Name, class and effect of each; the addresses keep the linker from removing the functions.
        const PLANTED: &[(&str, extern "C" fn(), &str, &str)] = &[
            $((stringify!($name), $name, $class, $effect)),*
        ];
    };
}

planted! {
    planted_pushf: "flags" "silent" ["pushfq"]
    planted_popf: "flags" "silent" ["popfq"]
    planted_sgdt: "store-tables" "silent" ["sgdt [rax]"]
    planted_sidt: "store-tables" "silent" ["sidt [rax]"]
    planted_sldt: "store-tables" "silent" ["sldt ax"]
    planted_str: "store-tables" "silent" ["str ax"]
    planted_smsw: "store-tables" "silent" ["smsw ax"]
    planted_lar: "read-segment" "silent" ["lar eax, ecx"]
    planted_lsl: "read-segment" "silent" ["lsl eax, ecx"]
    planted_verr: "read-segment" "silent" ["verr ax"]
    planted_verw: "read-segment" "silent" ["verw ax"]
    planted_mov_from_cs: "read-segment" "silent" ["mov eax, cs"]
    planted_cpuid: "identify" "silent" [".byte 0x0f, 0xa2"]
    planted_mov_to_ds: "load-segment" "mixed" ["mov ds, eax"]
    planted_far_return: "far-transfer" "mixed" ["retfq"]
    planted_iret: "interrupt-return" "mixed" ["iretq"]
    planted_vmcall: "virtualization" "mixed" ["vmcall"]
    planted_cli: "interrupt-flag" "traps" ["cli"]
    planted_hlt: "halt" "traps" ["hlt"]
    planted_mov_to_cr3: "control-register" "traps" ["mov cr3, rax"]
    planted_mov_from_dr7: "debug-register" "traps" ["mov rax, dr7"]
    planted_lgdt: "load-tables" "traps" ["lgdt [rax]"]
    planted_invlpg: "translation-cache" "traps" ["invlpg [rax]"]
    planted_wbinvd: "data-cache" "traps" ["wbinvd"]
    planted_wrmsr: "model-specific" "traps" ["wrmsr"]
    planted_out: "port-io" "traps" ["out dx, al"]
    planted_sysret: "system-return" "traps" ["sysretq"]
    planted_swapgs: "swap-gs" "traps" ["swapgs"]
    planted_int: "software-interrupt" "traps" ["int 0x80"]
    planted_stac: "access-flag" "traps" ["stac"]
    planted_xrstors: "other" "traps" ["xrstors [rax]"]
}

/// A declared instruction, as the author of a kernel writes it.
#[inline(never)]
extern "C" fn planted_declared() {
    // SAFETY: this function is never called; the audit finds it.
    unsafe {
        asm!(
            "22: pushfq",
            ".pushsection .paravane.audit, \"\", @progbits",
            ".quad 22b",
            ".asciz \"planted with a reason\"",
            ".popsection",
        );
    }
}

fn this_program() -> String {
    black_box((PLANTED, planted_declared as extern "C" fn()));
    std::env::current_exe().unwrap().to_str().unwrap().to_owned()
}

/// The findings in the function of this name.
fn found_in<'a>(audit: &'a Value, function: &str) -> Vec<&'a Value> {
    let findings = audit["findings"].as_array().unwrap().iter();
    findings.filter(|f| f["function"].as_str().is_some_and(|name| name.ends_with(function))).collect()
}

#[test]
fn every_planted_instruction_is_found_by_function_and_line() {
    let (audit, status) = json(&[&this_program()]);
    assert_eq!(status, Some(1));
    for (name, _, class, effect) in PLANTED {
        let found = found_in(&audit, &format!("::{name}"));
        let [finding] = found[..] else { panic!("{name}: {found:#?}") };
        assert_eq!((&finding["class"], &finding["effect"]), (&(*class).into(), &(*effect).into()), "{name}");
        assert_eq!(finding["certain"], true, "{name}");
        let line = finding["line"].as_str().unwrap();
        assert!(line.contains("tests/audit.rs:"), "{name}: {line}");
    }
}

#[test]
fn a_declared_one_is_listed_with_its_reason() {
    let (audit, _) = json(&[&this_program()]);
    let found = found_in(&audit, "::planted_declared");
    assert_eq!(found[0]["deliberate"], "planted with a reason");
    let class = audit["classes"].as_array().unwrap().iter().find(|c| c["class"] == "flags").unwrap();
    assert_eq!(class["deliberate"], 1);
}

#[test]
fn the_paravirtual_guest_has_no_finding_that_matters() {
    for args in [&[][..], &["--deny", "silent,mixed"]] {
        let (audit, status) = json(args);
        assert_eq!((&audit["matter"], status), (&0.into(), Some(0)), "{audit:#}");
    }
    let output = audit(&[]);
    assert!(text(&output.stdout).contains("deliberate, the image says: "));
}

#[test]
fn instructions_that_trap_are_findings_if_denied() {
    let (audit, status) = json(&["--bare", "--deny", "traps"]);
    assert_eq!(status, Some(1));
    assert!(audit["matter"].as_u64() > Some(10));
    let output = self::audit(&["--bare"]);
    assert!(text(&output.stdout).contains("instead: event::disable and event::enable"));
}

#[test]
fn deny_and_allow_decide_which_findings_matter() {
    let program = this_program();
    let matter = |args: &[&str]| json(&[&[program.as_str()], args].concat()).0["matter"].as_u64().unwrap();
    let silent = matter(&[]);
    assert!(matter(&["--deny", "silent", "mixed"]) > silent);
    assert!(matter(&["--allow", "flags"]) < silent);
    assert_eq!(matter(&["--deny", "swap-gs"]), 1);
    assert_eq!(matter(&["--deny", "swap-gs", "--allow", "swap-gs"]), 0);
}

/// Assembles an object file. Without a C compiler, reports a skip and returns `None`.
fn assemble(name: &str, source: &str) -> Option<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (from, to) = (dir.join(format!("{name}.s")), dir.join(format!("{name}.o")));
    std::fs::write(&from, source).unwrap();
    match Command::new("cc").arg("-c").arg(&from).arg("-o").arg(&to).output() {
        Ok(output) => {
            assert!(output.status.success(), "broken test: {}", text(&output.stderr));
            Some(to)
        }
        Err(error) => {
            skip::skip("cc", format!("cannot run cc: {error}"));
            None
        }
    }
}

/// Two sections, each at address 0, with a call, a table and a constant that the linker must fill in.
const OBJECT: &str = r#"
    .section .text.a,"ax",@progbits
    .type f,@function
f:  popfq
    lgdt table(%rip)
    ret
    .size f,.-f
    .section .text.b,"ax",@progbits
    .type g,@function
g:  ret
    nop
    lidt other+8(%rip)
22: pushfq
    .size g,.-g
    .section .paravane.audit,"",@progbits
    .quad 22b
    .asciz "known"
"#;

#[test]
fn an_object_files_findings_are_of_the_right_section_function_and_operand() {
    let Some(object) = assemble("two-sections", OBJECT) else { return };
    let (audit, status) = json(&[object.to_str().unwrap()]);
    assert_eq!((&audit["subject"], status), (&"object".into(), Some(1)));
    let found = audit["findings"].as_array().unwrap().iter().map(|f| {
        let part = |key: &str| f[key].as_str().unwrap_or("none").to_owned();
        [part("section"), part("function"), part("instruction"), part("deliberate")]
    });
    let found: Vec<_> = found.map(|parts| parts.join(" | ")).collect();
    assert_eq!(
        found,
        [
            ".text.a | f | popf | none",
            ".text.a | f | lgdt [rel table] | none",
            ".text.b | g | lidt [rel other+0x8] | none",
            ".text.b | g | pushf | known",
        ]
    );
    let shown = text(&self::audit(&[object.to_str().unwrap()]).stdout);
    assert!(shown.contains("    .text.b+0x2  lidt [rel other+0x8]  g+0x2\n"), "{shown}");
}

#[test]
fn a_file_without_code_cannot_be_audited() {
    let Some(object) = assemble("no-code", ".data\n.quad 1\n") else { return };
    let output = audit(&[object.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("the file has no code: an object file without an executable"));
    assert!(output.stdout.is_empty());
}

#[test]
fn an_audit_that_fails_has_status_2() {
    for file in ["/nonexistent/kernel", "/etc/passwd"] {
        let output = audit(&[file]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(file) && output.stdout.is_empty());
    }
}
