//! Checks that every number of the crate is compared: each constant and field in its source is in the list of facts,
//! or in the lists of exceptions here.

use std::collections::BTreeSet;
use std::path::Path;

use crate::all;

/// Constants that Xen's headers do not state as numbers: a module and its names.
const NOT_IN_HEADERS: [(&str, &str); 11] = [
    // Defined by the processor: see the SDM.
    (
        "pte",
        "PRESENT RW USER PWT PCD ACCESSED DIRTY PSE PAT GLOBAL AVAIL0 AVAIL1 AVAIL2 ADDR_MASK AVAIL_HIGH_MASK NX",
    ),
    (
        "trap",
        "TRAP_DIVIDE_ERROR TRAP_DEBUG TRAP_NMI TRAP_INT3 TRAP_OVERFLOW TRAP_INVALID_OP TRAP_NO_DEVICE \
         TRAP_DOUBLE_FAULT TRAP_INVALID_TSS TRAP_NO_SEGMENT TRAP_STACK_ERROR TRAP_GP_FAULT TRAP_PAGE_FAULT \
         TRAP_COPRO_ERROR TRAP_ALIGNMENT_CHECK TRAP_MACHINE_CHECK TRAP_SIMD_ERROR \
         PFEC_PRESENT PFEC_WRITE PFEC_USER PFEC_RESERVED PFEC_FETCH",
    ),
    (
        "debugreg",
        "NR_DEBUGREGS DEBUGREG_ADDRESS_FIRST DEBUGREG_ADDRESS_LAST DEBUGREG_STATUS DEBUGREG_CONTROL \
         DEBUGREG_STATUS_DEFAULT DEBUGREG_CONTROL_DEFAULT",
    ),
    ("segment", "MAX_LDT_ENTRIES"),
    ("addr", "PAGE_SHIFT PAGE_SIZE PAGE_OFFSET_MASK PT_ENTRIES INVALID_M2P_ENTRY INVALID_P2M_ENTRY"),
    // In the headers as prose or text only.
    (
        "cpuid",
        "XEN_CPUID_LEAF_STRIDE XEN_CPUID_LEAF_VERSION XEN_CPUID_LEAF_HYPERCALL XEN_CPUID_LEAF_TSC \
         XEN_CPUID_LEAF_HVM XEN_CPUID_LEAF_PV XEN_EMULATE_PREFIX",
    ),
    ("hypercall", "HYPERCALL_ENTRY_SIZE HYPERCALL_ENTRIES"),
    ("mmu", "MMU_COMMAND_MASK FOREIGNDOM_PFD_SHIFT"),
    ("elfnote", "XEN_ELFNOTE_OWNER"),
    ("hvm_start", "HVM_START_INFO_VERSION"),
    ("start_info", "START_INFO_MAGIC"),
];

/// Structures that Xen's headers do not define.
const STRUCTURES_NOT_IN_HEADERS: [(&str, &str); 1] = [("memory", "E820Entry")];

/// The numbers of one source file of the crate, in the form of [`crate::fact::Fact::claim`].
fn claims(module: &str, source: &str) -> Vec<String> {
    let mut claims = Vec::new();
    let mut structure = None;
    for line in source.lines() {
        if let Some((name, _)) = line.strip_prefix("pub const ").and_then(|rest| rest.split_once(':')) {
            if !name.starts_with("fn ") {
                claims.push(format!("{module}::{name}"));
            }
        } else if let Some(name) = line.strip_prefix("pub struct ").and_then(|rest| rest.strip_suffix(" {")) {
            structure = Some(name);
            claims.push(format!("size of {module}::{name}"));
        } else if line == "}" {
            structure = None;
        } else if let Some(name) = structure
            && let Some((field, _)) = line.strip_prefix("    pub ").and_then(|rest| rest.split_once(':'))
            && !field.starts_with('_')
        {
            claims.push(format!("offset of {module}::{name}::{field}"));
        }
    }
    claims
}

fn is_exempt(claim: &str) -> bool {
    let constant = NOT_IN_HEADERS
        .iter()
        .flat_map(|(module, names)| names.split_whitespace().map(move |name| (module, name)))
        .any(|(module, name)| claim == format!("{module}::{name}"));
    let structure = STRUCTURES_NOT_IN_HEADERS.iter().any(|(module, name)| {
        claim == format!("size of {module}::{name}")
            || claim.starts_with(&format!("offset of {module}::{name}::"))
    });
    constant || structure
}

#[test]
fn nothing_escapes_the_comparison() {
    let compared: BTreeSet<String> = all().into_iter().map(|fact| fact.claim).collect();
    let mut escaped = Vec::new();
    let mut seen = 0;
    // Xen's headers do not have Paravane's extension.
    let ours = |module: &str| module == "virtio";
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
        let path = entry.unwrap().path();
        let module = path.file_stem().unwrap().to_string_lossy().into_owned();
        if ours(&module) {
            continue;
        }
        for claim in claims(&module, &std::fs::read_to_string(&path).unwrap()) {
            seen += 1;
            match (compared.contains(&claim), is_exempt(&claim)) {
                (false, false) => escaped.push(format!("{claim} is not compared")),
                (true, true) => escaped.push(format!("{claim} is compared, and exempt from it")),
                _ => {}
            }
        }
    }
    assert!(seen > 500, "only {seen} claims found: the source is not being read as it should");
    assert!(escaped.is_empty(), "{}", escaped.join("\n"));
}
