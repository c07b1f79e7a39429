//! Vulnerabilities that Xen's emulator had, by advisory, as an emulated guest would try them.
//!
//! Facts: the advisories' titles and texts (xenbits.xen.org/xsa).

use super::*;
use crate::mmu::space::Flush;

const WRITE: u32 = 0b110;
const TF: u64 = rflags::TF;
/// DR6.BS.
const SINGLE_STEP: u64 = 1 << 14;

fn dr6(g: &Guest) -> u64 {
    let [.., dr6, _] = g.machine.cpu.debug;
    dr6
}

/// XSA-200: CMPXCHG8B with an operand size prefix, which the processor ignores, was emulated with another width than
/// that of its memory access. Here it is not emulated: the guest may then write the frame, which is no table any more.
#[test]
fn xsa_200_the_wide_compare_and_exchange_is_not_emulated() {
    let cmpxchg8b: &[u8] = &[0x0f, 0xc7, 0x0f];
    let cmpxchg16b: &[u8] = &[0x48, 0x0f, 0xc7, 0x0f];
    for code in [cmpxchg8b, cmpxchg16b] {
        for prefixes in [&[][..], &[0x66], &[0xf0], &[0x66, 0xf0], &[0xf2, 0x66]] {
            let mut g = Guest::booted();
            // The second half's L1 table, which this instruction does not need itself.
            let table = L1 + 0x1000;
            g.page_faults(&[0x90], 0b100, BASE + USER_CODE);
            g.page_faults(&[0x90], 0b100, BASE + 0x20_0000);
            assert!(g.machine.shadow.is_table(table >> 12));
            let before = g.peek(table);
            g.regs.rdi = BASE + table;
            let handled = g.page_faults(&[prefixes, code].concat(), WRITE, BASE + table);
            assert_eq!(handled.outcome, BareOutcome::Resume);
            assert_eq!(
                (g.regs.rip, g.peek(table)),
                (BASE + CODE, before),
                "left for the processor to execute"
            );
            assert!(!g.machine.shadow.is_table(table >> 12));
        }
    }
}

/// XSA-204: the single step over an emulated SYSCALL was decided by the flags before it, so that a program could step
/// into its kernel although the kernel masks TF. The flags after it decide; other emulated instructions are stepped.
#[test]
fn xsa_204_a_single_step_over_a_syscall_is_the_masks_to_allow() {
    for masked in [true, false] {
        let mut g = Guest::in_user_mode();
        g.machine.cpu.lstar = BASE + CODE;
        g.machine.cpu.syscall_mask = if masked { TF } else { 0 };
        g.regs.rip = BASE + USER_CODE + 2;
        g.regs.rflags |= TF;
        g.exit(Exit::Syscall);
        assert_eq!(
            (g.regs.rip, g.handling()),
            (BASE + CODE, None),
            "no #DB before the kernel's first instruction"
        );
        assert_eq!(g.regs.rflags & TF, if masked { 0 } else { TF });
        assert_eq!((g.regs.r11 & TF, dr6(&g) & SINGLE_STEP), (TF, 0));
    }
    // INT n enters through a gate, which clears TF.
    let mut g = Guest::in_user_mode();
    g.set_gate(0x80, 0xe, 3, 0);
    g.regs.rflags |= TF;
    g.traps_with(&[0xcd, 0x80], 13, 0x80 << 3 | 2);
    assert_eq!((g.handling(), g.regs.rflags & TF), (Some(0x80), 0));
    // Other instructions are stepped: a privileged one, and a store that is emulated.
    let mut g = Guest::booted();
    g.regs.rflags |= TF;
    g.traps(&[0xfa]); // cli
    assert_eq!(
        (g.handling(), g.stack::<1>(), dr6(&g) & SINGLE_STEP),
        (Some(1), [BASE + CODE + 1], SINGLE_STEP)
    );
    let mut g = Guest::booted();
    g.page_faults(&[0x90], 0b100, BASE + 200 * 4096);
    (g.regs.rdi, g.regs.rax) = (BASE + L1 + 200 * 8, 0);
    g.regs.rflags |= TF;
    g.page_faults(&[0x48, 0x89, 0x07], WRITE, BASE + L1 + 200 * 8); // mov [rdi], rax
    assert_eq!(g.peek(L1 + 200 * 8), 0);
    assert_eq!(
        (g.handling(), g.stack::<1>(), dr6(&g) & SINGLE_STEP),
        (Some(1), [BASE + CODE + 3], SINGLE_STEP)
    );
}

/// XSA-279: INVPCID and INVLPG with an address that is not canonical. INVLPG does nothing then (SDM vol. 2).
#[test]
fn xsa_279_invlpg_of_an_address_that_is_not_canonical_does_nothing() {
    for address in [1 << 47, 1 << 63, 0xffff_7fff_ffff_ffff] {
        let mut g = Guest::booted();
        g.space.caught_up(&g.log);
        g.regs.rax = address;
        resumed(&g.traps(&[0x0f, 0x01, 0x38]), PrivOp::Invlpg); // invlpg [rax]
        assert_eq!(
            (g.regs.rip, g.space.pending(&g.log).flush),
            (BASE + CODE + 3, Flush::None),
            "{address:#x}"
        );
    }
}

/// On the process engine a program can forge faults on a page that is present. In user mode they end nothing; in the
/// kernel they mean that it makes no progress.
#[test]
fn forged_page_faults_in_user_mode_do_not_end_the_guest() {
    let mut g = Guest::in_user_mode();
    for _ in 0..1000 {
        let handled = g.page_faults(&[0x90], 0b100, BASE + USER_CODE);
        assert_eq!(handled, BareExit { cause: Cause::ShadowFill, outcome: BareOutcome::Resume });
    }
    let mut g = Guest::booted();
    let mut faults = (0..1000).map(|_| g.page_faults(&[0x90], 0b100, BASE + CODE));
    assert!(faults.any(|handled| matches!(handled.outcome, BareOutcome::Ended(DomainEnd::Killed(_)))));
}
