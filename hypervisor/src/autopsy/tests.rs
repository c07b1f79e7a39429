use super::text::Style;
use super::*;

fn memory(words: &'static [(u64, u64)]) -> impl FnMut(u32, u64) -> Option<u64> {
    move |_, address| words.iter().find(|(at, _)| *at == address).map(|(_, word)| *word)
}

/// An image without symbols: addresses are all that there is.
#[test]
fn a_place_without_a_name_is_an_address_and_an_instruction_has_its_remedy() {
    let regs = Regs { rip: 0x40, rsp: 0x1000, rbp: 0x1000, ..Regs::default() };
    let testimony = Testimony {
        vcpu: 3,
        regs,
        doing: "runs its kernel",
        notes: vec!["events are masked".to_owned()],
        exception: Some(("#GP, general protection".to_owned(), 0x80)),
    };
    // HLT.
    let mut read = memory(&[(0x1000, 0), (0x1008, 0x99), (0x80, 0xf4)]);
    let found = of(b"no ELF", vec![testimony], &mut read);
    let text = found.text(Style::PLAIN);
    assert_eq!(
        text,
        "  its kernel's last exception: #GP, general protection\n    0x80\n  vCPU 3 runs its kernel:\n    0x40\n    \
         0x99\n  events are masked\n  `hlt` traps in a kernel that runs deprivileged; instead: event::block\n"
    );
    assert_eq!(found.to_string(), text);
    assert!(found.text(Style::TERMINAL).contains("\x1b[2m0x40\x1b[0m\n"));
}

#[test]
fn no_memory_is_no_reason_to_say_nothing() {
    let testimony = Testimony { exception: Some(("#PF".to_owned(), u64::MAX)), ..Testimony::default() };
    let found = of(&[], vec![testimony], &mut |_, _| None);
    assert_eq!(found.vcpus[0].backtrace.len(), 1);
    assert!(found.vcpus[0].notes.is_empty(), "what cannot be read has no remedy");
}

#[test]
fn vcpus_that_do_the_same_are_told_once() {
    let waits = |vcpu| Testimony { vcpu, doing: "waits", ..Testimony::default() };
    let runs = Testimony { vcpu: 1, doing: "runs", ..Testimony::default() };
    let told = |vcpus| of(&[], vcpus, &mut |_, _| None).to_string();
    assert_eq!(
        told(vec![runs.clone(), waits(0), waits(2), waits(3)]),
        "  vCPU 1 runs:\n    0x0\n  vCPU 0 waits:\n    0x0\n  the same: 2 more, from vCPU 2 to vCPU 3\n"
    );
    assert!(told(vec![waits(0), waits(2)]).ends_with("  the same: vCPU 2\n"));
    assert!(!told(vec![waits(0), runs]).contains("the same"));
}

#[test]
fn an_address_is_looked_up_once() {
    let mut lookups = 0;
    let mut names = Once::new(|at| {
        lookups += 1;
        at + 1
    });
    assert_eq!([5, 7, 5, 5, 7].map(|at| names.of(at)), [6, 8, 6, 6, 8]);
    assert_eq!(lookups, 2);
}
