//! The audit finds the planted instructions, and no others.

use object::elf::{SHT_NOBITS, SHT_PROGBITS, STT_FUNC, STT_NOTYPE};
use proptest::prelude::*;

use super::{Audit, AuditError, Class, DECLARATIONS, Effect, Finding, Policy, Subject, audit, text};
use crate::image::error::ImageError;
use crate::testing::elf::{Elf, Symbol};

const TEXT: u64 = 0x4010_0000;

/// An image whose text section is `code`, at [`TEXT`].
fn image(code: &[u8], symbols: &[(&'static str, u64, u64, u8)]) -> Elf {
    let mut elf = Elf::bare(0x4000_0000, 0x10_0000);
    elf.phdrs[0].data = code.to_vec();
    elf.sections = vec![(".text", SHT_PROGBITS, code.to_vec())];
    let symbol = |&(name, value, size, kind)| Symbol { name, value: TEXT + value, size, kind };
    elf.symbols = symbols.iter().map(symbol).collect();
    elf.code_sections.push((".text", TEXT));
    elf
}

fn run(elf: &Elf) -> Audit {
    audit(&elf.bytes()).unwrap()
}

/// Function (with offset), class and certainty of each finding.
fn found(audit: &Audit) -> Vec<(String, Class, bool)> {
    let place = |f: &Finding| format!("{}+{:#x}", f.function.as_deref().unwrap_or("?"), f.offset);
    audit.findings.iter().map(|f| (place(f), f.class, f.certain)).collect()
}

#[test]
fn planted_instructions_are_found_by_symbol() {
    // first: nop; cli; ret. then padding. second: pushfq; pop rax; mov cr3, rax; ret.
    let code = [0x90, 0xfa, 0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0x9c, 0x58, 0x0f, 0x22, 0xd8, 0xc3];
    let elf = image(&code, &[("first", 0, 3, STT_FUNC), ("second", 8, 6, STT_FUNC)]);
    let audit = run(&elf);
    assert_eq!(audit.subject, Subject::Bare);
    assert_eq!(
        found(&audit),
        [
            ("first+0x1".into(), Class::InterruptFlag, true),
            ("second+0x0".into(), Class::Flags, true),
            ("second+0x2".into(), Class::ControlRegister, true),
        ]
    );
    assert_eq!(audit.findings[2].instruction, "mov cr3,rax");
    assert_eq!((audit.count(Effect::Silent), audit.count(Effect::Traps), audit.total), (1, 2, 3));
    assert_eq!(audit.classes[0].class, Class::Flags, "what goes wrong silently comes first");
    assert_eq!((audit.coverage.code_bytes, audit.coverage.named_bytes, audit.coverage.functions), (14, 9, 2));
}

#[test]
fn a_new_symbol_ends_confusion() {
    // data: a byte that begins a long instruction, which would swallow the CLI behind it.
    let code = [0x48, 0xb8, 0xfa, 0xfa, 0x06, 0x06];
    let elf = image(&code, &[("data", 0, 2, STT_FUNC), ("code", 2, 4, STT_FUNC)]);
    let expected = [
        ("code+0x0".to_owned(), Class::InterruptFlag, true),
        ("code+0x1".to_owned(), Class::InterruptFlag, true),
    ];
    assert_eq!(found(&run(&elf)), expected);
    assert_eq!(run(&elf).coverage.undecodable_bytes, 4);
    // After bytes that do not decode, nothing is certain until the next symbol.
    let elf = image(&[0x06, 0xfa, 0xfb], &[("a", 0, 2, STT_FUNC), ("b", 2, 1, STT_FUNC)]);
    let certain: Vec<bool> = run(&elf).findings.iter().map(|f| f.certain).collect();
    assert_eq!(certain, [false, true]);
    assert_eq!(run(&elf).classes[0].uncertain, 1);
}

#[test]
fn labels_and_gaps() {
    let labels = [
        ("outer", 0, 4, STT_FUNC),
        ("inside", 2, 0, STT_NOTYPE),
        ("alias", 0, 0, STT_NOTYPE),
        ("asm", 6, 0, STT_NOTYPE),
    ];
    let elf = image(&[0xfa; 8], &labels);
    let places: Vec<String> = found(&run(&elf)).into_iter().map(|(place, ..)| place).collect();
    assert_eq!(
        places,
        ["outer+0x0", "outer+0x1", "outer+0x2", "outer+0x3", "?+0x0", "?+0x1", "asm+0x0", "asm+0x1"]
    );
    assert_eq!(run(&elf).classes[0].functions, 3);
}

#[test]
fn without_sections_or_symbols_the_segments_are_swept() {
    let mut elf = Elf::plain();
    elf.phdrs[0].data = vec![0xf4, 0xc3];
    elf.phdrs[1].data = vec![0xf4; 16];
    let audit = run(&elf);
    assert_eq!(audit.subject, Subject::Other);
    assert_eq!(found(&audit), [("?+0x0".into(), Class::Halt, false)]);
    assert_eq!(audit.coverage.code_bytes, 2, "the data segment is no code");
}

#[test]
fn a_file_without_code_is_refused() {
    let mut elf = image(&[0xfa], &[]);
    // A file made by `objcopy --only-keep-debug`: its sections have sizes and no bytes.
    elf.sections = vec![(".text", SHT_NOBITS, vec![0; 16])];
    elf.phdrs.clear();
    assert_eq!(audit(&elf.bytes()), Err(AuditError::DebugOnly));
    let mut elf = Elf::plain();
    elf.phdrs.retain(|p| p.flags & object::elf::PF_X == 0);
    let error = audit(&elf.bytes()).unwrap_err();
    assert!(error.to_string().contains("an executable without an executable section"), "{error}");
}

#[test]
fn code_that_was_cut_off_is_refused() {
    let file = Elf::plain().bytes();
    let error = audit(&file[..0x1000]).unwrap_err();
    assert!(error.to_string().starts_with("segment 0 holds code and lies outside the file"), "{error}");
    let mut elf = image(&[0xfa; 64], &[]);
    elf.phdrs.clear();
    let mut file = elf.bytes();
    // The section's size, in the second section header: as if the file had been longer.
    let at = u64::from_le_bytes(file[40..48].try_into().unwrap()) as usize + 64 + 32;
    file[at..at + 8].copy_from_slice(&0x10_0000u64.to_le_bytes());
    let error = audit(&file).unwrap_err();
    assert!(error.to_string().starts_with("section .text holds code and lies outside the file"), "{error}");
}

#[test]
fn what_is_not_swept_is_listed() {
    let mut elf = image(&[0xfa, 0xc3], &[]);
    elf.sections.push((".none", SHT_NOBITS, vec![0; 16]));
    elf.sections.push((".wraps", SHT_PROGBITS, vec![0xf4; 16]));
    elf.code_sections.extend([(".none", 0), (".wraps", u64::MAX)]);
    elf.phdrs[0].data = vec![0xfa; 5];
    let audit = run(&elf);
    assert_eq!((audit.total, audit.coverage.code_bytes), (1, 2));
    let skipped: Vec<_> = audit.skipped.iter().map(|s| format!("{}: {}", s.what, s.why)).collect();
    let expected =
        ["section .none: it has no bytes in the file", "section .wraps: it ends beyond the address space"];
    assert_eq!(skipped, expected);
    elf.sections.truncate(1);
    let audit = run(&elf);
    assert_eq!(audit.skipped[0].what, "3 executable bytes of segments");
    let shown = text(&audit, "k", &Policy::default(), 9);
    assert!(shown.contains("not audited: 3 executable bytes of segments: they are in no"), "{shown}");
}

#[test]
fn a_symbol_names_code_of_its_own_section_only() {
    let mut elf = image(&[0xfa, 0xc3], &[("a", 0, 2, STT_FUNC), ("end", 2, 0, STT_NOTYPE)]);
    elf.sections.push((".more", SHT_PROGBITS, vec![0xf4]));
    elf.code_sections.push((".more", TEXT + 2));
    // Both symbols are the first section's; `end` lies where the second begins.
    assert_eq!(
        found(&run(&elf)),
        [("a+0x0".into(), Class::InterruptFlag, true), ("?+0x0".into(), Class::Halt, false)]
    );
}

#[test]
fn the_hypercall_page_does_not_count() {
    let mut elf = Elf::pv(0x4000_0000, 0x4000_0000, 0x10_0000, &[]);
    elf.phdrs[0].data = vec![0xf4; 0x3000];
    let audit = run(&elf);
    assert_eq!((audit.subject, audit.total), (Subject::Paravirtual, 0x2000));
}

#[test]
fn what_is_declared_deliberate_does_not_matter() {
    let mut elf = image(&[0x9c, 0x9c, 0xfa], &[("f", 0, 3, STT_FUNC)]);
    let declaration = [&(TEXT + 1).to_le_bytes()[..], b"I know\0"].concat();
    elf.sections.push((DECLARATIONS, SHT_PROGBITS, declaration));
    let audit = run(&elf);
    let reasons: Vec<_> = audit.findings.iter().map(|f| f.deliberate.as_deref()).collect();
    assert_eq!(reasons, [None, Some("I know"), None]);
    assert_eq!((audit.classes[0].count, audit.classes[0].deliberate), (2, 1));
    assert_eq!(Policy::default().total(&audit), 1);
}

#[test]
fn the_text_says_where_what_and_what_else() {
    let code = [0x9c, 0x9c, 0x9c, 0xfa];
    let text = text(&run(&image(&code, &[("f", 0, 4, STT_FUNC)])), "k.elf", &Policy::default(), 2);
    for part in [
        "k.elf: a bare-PC kernel",
        "4 instructions in 1 function; 4 bytes of code, 0 of them in no function, 0 undecodable",
        "At CPL 3 this goes wrong silently:",
        "flags: flags register (PUSHF, POPF): 3 in 1 function",
        "instead: event::is_enabled",
        "0x40100001  pushf  f+0x1",
        "and 1 more",
        "interrupt-flag: interrupt flag (CLI, STI): 1 in",
    ] {
        assert!(text.contains(part), "{part:?} missing in:\n{text}");
    }
    assert!(!text.contains("0x40100002"), "only two of a class were asked for");
    let sums = |line: &str| text.lines().rev().find(|l| l.ends_with(line)).map(str::split_whitespace);
    assert!(sums("goes wrong silently").unwrap().take(3).eq(["3", "0", "3"]));
    assert!(sums(" traps").unwrap().take(3).eq(["1", "0", "0"]));
}

#[test]
fn it_can_be_written_as_json() {
    let json = serde_json::to_value(run(&image(&[0x9c], &[("f", 0, 1, STT_FUNC)]))).unwrap();
    assert_eq!(json["subject"], "bare");
    assert_eq!(json["classes"][0]["effect"], "silent");
    assert_eq!(json["findings"][0]["class"], "flags");
    assert_eq!(json["findings"][0]["function"], "f");
}

#[test]
fn what_is_no_elf_file_is_refused() {
    assert_eq!(audit(b""), Err(AuditError::Image(ImageError::Empty)));
    assert!(matches!(audit(b"#!/bin/sh"), Err(AuditError::Image(ImageError::NotElf { .. }))));
}

#[test]
fn the_reference_guests() {
    let pv = audit(crate::image::builtin::PV).unwrap();
    let bare = audit(crate::image::builtin::BARE).unwrap();
    assert_eq!((pv.subject, bare.subject), (Subject::Paravirtual, Subject::Bare));
    let classes = |a: &Audit| a.classes.iter().map(|c| c.class).collect::<Vec<_>>();
    // Both images mark a measured region by a port.
    let unexpected = |f: &&Finding| f.deliberate.is_none() && f.class != Class::PortIo;
    let unexpected: Vec<_> = pv.findings.iter().filter(unexpected).collect();
    assert!(unexpected.is_empty(), "the paravirtual kernel only asks: {unexpected:#?}");
    let strict = Policy::new(vec![Effect::Silent, Effect::Mixed], vec![], vec![]);
    assert_eq!(strict.total(&pv), 0);
    assert!(strict.total(&bare) > 0);
    for class in [
        Class::InterruptFlag,
        Class::Halt,
        Class::ControlRegister,
        Class::LoadTables,
        Class::TranslationCache,
        Class::PortIo,
    ] {
        assert!(classes(&bare).contains(&class), "the bare kernel trips: {class:?}");
    }
    assert!(bare.findings.iter().all(|f| f.certain && f.function.is_some()));
    // Functions of assembly alone have no lines.
    let written_in_rust = |f: &&Finding| f.line.as_deref().is_some_and(|line| line.contains(".rs:"));
    assert!(bare.findings.iter().filter(written_in_rust).any(|f| f.class == Class::InterruptFlag));
    assert_eq!(bare.coverage.undecodable_bytes, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_file_makes_it_panic(
        code in prop::collection::vec(any::<u8>(), 1..200),
        symbols in prop::collection::vec((0u64..256, any::<u64>(), any::<bool>()), 0..8),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let symbols: Vec<_> = symbols
            .into_iter()
            .map(|(value, size, function)| ("s", value, size % 512, if function { STT_FUNC } else { STT_NOTYPE }))
            .collect();
        let mut file = image(&code, &symbols).bytes();
        let whole = audit(&file).unwrap();
        // Every byte is swept once, whatever the symbols say.
        prop_assert_eq!(whole.coverage.code_bytes, code.len() as u64);
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Ok(audit) = audit(&file) {
            prop_assert!(audit.coverage.code_bytes <= file.len() as u64);
        }
    }
}

/// Nearly all of the reference kernel's privileged instructions can be replaced by jumps that trap nobody.
#[test]
fn the_reference_kernel_is_patchable() {
    let image = crate::image::builtin::BARE;
    let found = crate::audit::patchable(image, &audit(image).unwrap()).unwrap();
    let total = found.sites.len() as u64;
    assert_eq!(found.tactics.iter().map(|sum| sum.sites).sum::<u64>() + found.left, total);
    // Some layouts leave no room: an OUT before a RET, a CLI between an HLT and a jump's target (decision 23).
    assert!(total > 100 && found.left * 50 <= total, "{} of {total} left", found.left);
    assert!(found.sites.iter().all(|site| site.tactic.is_some() == site.jump.is_some()));
    let text = crate::audit::patchable_text(&found, "it", usize::MAX);
    assert_eq!(text.lines().filter(|line| line.contains("  0x")).count() as u64, total, "{text}");
    assert!(crate::audit::patchable_text(&found, "it", 0).contains("--all"));
}
