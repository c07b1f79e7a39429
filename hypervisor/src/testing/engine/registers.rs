//! The contract of engines as to CR4, XCR0 and the vector registers.

use super::{CODE_VA, DATA_VA, HYPERCALL_VA, STACK_TOP, World, code, gp};
use crate::engine::Exit;
use crate::host::host_cpuid;
use crate::machine::memory::PAGE_SIZE;
use crate::mmu::space::Allowed;
use crate::x86::control::cr4;
use crate::x86::guest_cpuid::available;

/// CR4 says whether RDFSBASE, XGETBV and RDTSC can be executed, and XCR0 what XGETBV reads, where the engine can have
/// that.
pub(crate) fn allowed_instructions(w: &mut World) {
    let cases = [
        (cr4::FSGSBASE, false, code!("rdfsbase rax", "cli"), 5),
        (cr4::OSXSAVE, false, code!("xor ecx, ecx", "xgetbv", "cli"), 5),
        (cr4::TSD, true, code!("rdtsc", "cli"), 2),
    ];
    for (bit, forbids, code, length) in cases {
        for set in [false, true, false] {
            w.space.set_allowed(Allowed { cr4: if set { bit } else { 0 }, xcr0: 0b11 });
            let exit = w.exec(&code);
            let executed = (exit, w.regs.rip) == (gp(0), CODE_VA + length);
            if set == forbids && executed {
                println!("note: this engine cannot forbid what CR4 bit {bit:#x} is about");
            } else {
                assert_eq!(executed, set != forbids, "CR4 bit {bit:#x} {set}: {exit:?}");
            }
        }
    }
    w.space.set_allowed(Allowed { cr4: cr4::OSXSAVE, xcr0: 0b11 });
    assert_eq!(w.exec(&code!("xor ecx, ecx", "xgetbv", "cli")), gp(0));
    if w.regs.rax != 0b11 {
        println!("note: this engine cannot change XCR0, which is {:#x}", w.regs.rax);
    }
    w.space.set_allowed(Allowed::ALL);
    assert_eq!(w.exec(&code!("xor ecx, ecx", "xgetbv", "cli")), gp(0));
    let all = available(host_cpuid::xcr0());
    assert_eq!(w.regs.rax & all, all, "all that the host has comes back");
}

/// Every vector and mask register that a guest can have lives through each way out and in: a fault, a hypercall, a kick
/// and a change of roots.
pub(crate) fn widest_vector_state(w: &mut World) {
    const WORDS: u64 = 32 * 8;
    const MASKS: u64 = 8;
    let wide = available(host_cpuid::xcr0()) & 0xe0 != 0 && is_x86_feature_detected!("avx512bw");
    if !wide {
        println!("note: this host has no AVX-512");
        return;
    }
    let first = w.space.root();
    let second = w.new_root();
    for va in [CODE_VA, DATA_VA, STACK_TOP - PAGE_SIZE, HYPERCALL_VA] {
        let leaf = w.get(va);
        let entry = w.entry_in(second, va, 1);
        w.write(entry, 1, leaf);
    }
    let code = code!(
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vmovdqu64 zmm\\n, [rax + \\n * 64]",
        ".endr",
        ".irp n,0,1,2,3,4,5,6,7",
        "kmovq k\\n, [rax + 2048 + \\n * 8]",
        ".endr",
        "cli",
        "call rbx",
        "4: test edi, edi",
        "jnz 4b",
        ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vmovdqu64 [rax + \\n * 64], zmm\\n",
        ".endr",
        ".irp n,0,1,2,3,4,5,6,7",
        "kmovq [rax + 2048 + \\n * 8], k\\n",
        ".endr",
        "cli",
    );
    let value = |n: u64| (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    w.load(&code);
    for roots in [[first; 4], [first, second, first, second], [second, second, first, first]] {
        (0..WORDS + MASKS).for_each(|n| w.poke(DATA_VA + n * 8, value(n)));
        (w.regs.rax, w.regs.rbx, w.regs.rdi) = (DATA_VA, HYPERCALL_VA + 32, 1);
        w.regs.rip = CODE_VA;
        w.space.set_root(roots[0]);
        assert_eq!(w.run(), gp(0));
        w.regs.rip += 1;
        (0..WORDS + MASKS).for_each(|n| w.poke(DATA_VA + n * 8, 0));
        w.space.set_root(roots[1]);
        assert_eq!(w.run(), w.by_page);
        w.space.set_root(roots[2]);
        // A kick may come before the page has popped rcx, where it has that on the stack.
        w.regs.rdi = 1;
        w.cpu.kicker().arm(1_000_000);
        assert_eq!(w.enter(), Exit::Kick);
        (w.regs.rax, w.regs.rdi) = (DATA_VA, 0);
        w.space.set_root(roots[3]);
        assert_eq!(w.run(), gp(0));
        (0..WORDS + MASKS).for_each(|n| assert_eq!(w.peek(DATA_VA + n * 8), value(n), "word {n}"));
    }
}
