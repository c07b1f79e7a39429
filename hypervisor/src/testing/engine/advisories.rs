//! What code at CPL 3 must not be able to do to an engine, or to what it runs next: holes that Xen once had, by
//! advisory, as small guests and the exits that they must bring about.
//!
//! Facts: the advisories' titles and texts (xenbits.xen.org/xsa).

use paravane_abi::pte;
use paravane_abi::segment::FLAT_RING3_CS32;

use super::{CODE_VA, DATA, DATA_VA, HYPERCALL_VA, STACK_TOP, TEXT, World, code, fault, gp};
use crate::engine::Exit;
use crate::host::host_cpuid::query;
use crate::machine::memory::{Maddr, Mfn, PAGE_SIZE};
use crate::mmu::space::Flush;
use crate::testing::skip::skip;
use crate::x86::exception::Fault;
use crate::x86::registers::Regs;
use crate::x86::rflags::TF;

/// Where the second part of a snippet is put.
const SECOND: u64 = CODE_VA + 0x200;

impl World {
    /// Puts a second snippet at [`SECOND`], beside the one that is loaded.
    fn load_second(&mut self, code: &[u8]) {
        let page = self.mfn_of(CODE_VA).maddr();
        self.memory.write(Maddr(page.0 + SECOND - CODE_VA), code).unwrap();
    }
    /// Asserts that the guest is entered in 64-bit mode, has a stack, and executes what it is given.
    fn is_well(&mut self) {
        self.regs = Regs { rsp: STACK_TOP, rflags: 0x202, ..self.regs };
        assert_eq!(self.exec(&code!("movabs rbx, 0x600d600d600d600d", "push rbx", "pop rdx", "cli")), gp(0));
        assert_eq!((self.regs.rbx, self.regs.rdx), (0x600d_600d_600d_600d, 0x600d_600d_600d_600d));
    }
    /// A second address space with the pages of this one.
    fn second_root(&mut self) -> Mfn {
        let root = self.new_root();
        for va in [CODE_VA, DATA_VA, STACK_TOP - PAGE_SIZE, HYPERCALL_VA] {
            let leaf = self.get(va);
            let entry = self.entry_in(root, va, 1);
            self.write(entry, 1, leaf);
        }
        root
    }
}

/// A guest can go to 32-bit code by the engine's own selector. Whatever stops it there, the next entry is in 64-bit
/// mode: an upcall to a kernel that has one root with its programs must not begin as 32-bit code.
pub(crate) fn entries_are_in_64_bit_mode(w: &mut World) {
    if w.engine.info().detail.starts_with("software KVM") {
        return skip("hardware-kvm", "no compatibility mode on a software KVM: a guest that tries it dies");
    }
    let kicker = w.cpu.kicker();
    let to_32_bit = code!("push rcx", "push rax", "retfq");
    w.regs.rcx = if w.engine.info().native_selectors { FLAT_RING3_CS32.into() } else { 0x23 };
    // A kick finds it in a loop.
    w.load(&to_32_bit);
    w.load_second(&code!("4:", "jmp 4b"));
    w.regs.rax = SECOND;
    loop {
        kicker.arm(1_000_000);
        assert_eq!(w.enter(), Exit::Kick);
        if w.regs.rip == SECOND {
            break;
        }
    }
    kicker.arm(0);
    w.is_well();
    // Then what it may execute there: the hypercall page's port, a privileged instruction, an undefined one.
    for stop in [&[0xe6, 0x7e][..], &[0xfa], &[0x0f, 0x0b], &[0xcc]] {
        w.load(&to_32_bit);
        w.load_second(stop);
        (w.regs.rax, w.regs.rsp) = (SECOND, STACK_TOP);
        let exit = w.run();
        assert!(matches!(exit, Exit::Fault(_) | Exit::Hypercall), "{stop:02x?}: {exit:?}");
        w.is_well();
    }
}

/// XSA-7: a return to an address that is not canonical, which SYSCALL leaves at the end of the lower half. It is the
/// guest's #GP; so is one that the layers above ask for, with whatever stack.
pub(crate) fn xsa_7_returns_to_addresses_that_are_not_canonical(w: &mut World) {
    for rip in [1 << 47, 1 << 63, 0xffff_7fff_ffff_ffff] {
        for rsp in [STACK_TOP, 0, 1 << 47, u64::MAX] {
            w.load(&code!("cli"));
            (w.regs.rip, w.regs.rsp) = (rip, rsp);
            assert_eq!(w.run(), gp(0), "{rip:#x}");
            assert_eq!(w.regs.rip, rip, "not at an instruction of the engine's");
        }
        w.is_well();
        w.regs.rax = rip;
        assert_eq!(w.exec(&code!("jmp rax")), gp(0));
        w.is_well();
    }
    if w.engine.info().lower_half_end < 1 << 47 {
        // No guest of this engine has a page there.
        return;
    }
    const LAST: u64 = (1 << 47) - PAGE_SIZE;
    let frame = w.frame();
    w.map(LAST, frame, TEXT);
    w.memory.write(Maddr(frame.maddr().0 + PAGE_SIZE - 2), &code!("syscall")).unwrap();
    for rsp in [STACK_TOP, 1 << 47] {
        (w.regs.rip, w.regs.rsp) = (LAST + PAGE_SIZE - 2, rsp);
        assert_eq!(w.run(), Exit::Syscall);
        assert_eq!((w.regs.rip, w.regs.rcx), (1 << 47, 1 << 47));
        assert_eq!(w.run(), gp(0));
        w.is_well();
    }
}

/// XSA-52 and XSA-220: state of one context was still there in the next. A guest begins with the architecture's initial
/// vector state, and with nothing in its registers that it was not given.
pub(crate) fn xsa_52_a_guest_begins_with_no_ones_state(w: &mut World) {
    // The host's own thread has used its registers meanwhile, and says something in them that is easily found.
    let mark = std::hint::black_box([0x5ec2_e700_5ec2_e700_u64; 64]);
    assert_eq!(std::hint::black_box(mark.iter().fold(0_u64, |sum, word| sum.wrapping_add(*word))) & 1, 0);
    w.regs.rdi = DATA_VA;
    let code = code!(
        "fxsave64 [rdi]",
        "vextractf128 xmm0, ymm0, 1",
        "vextractf128 xmm1, ymm1, 1",
        "vorps xmm0, xmm0, xmm1",
        "vextractf128 xmm1, ymm15, 1",
        "vorps xmm0, xmm0, xmm1",
        "movups [rdi + 512], xmm0",
        "cli"
    );
    let before = Regs { rip: CODE_VA + code.len() as u64 - 1, ..w.regs };
    assert_eq!(w.exec(&code), gp(0));
    assert_eq!(Regs { rflags: before.rflags, ..w.regs }, before, "registers are as they were given");
    let image: Vec<u64> = (0..66).map(|n| w.peek(DATA_VA + n * 8)).collect();
    // FCW, FSW, tags, FOP; FIP; FDP; MXCSR (its mask is the processor's own).
    assert_eq!((image[0], image[1], image[2], image[3] & 0xffff_ffff), (0x37f, 0, 0, 0x1f80));
    assert_eq!(image[4..52], [0; 48], "x87 and SSE registers");
    assert_eq!(image[64..], [0; 2], "upper halves");
}

/// XSA-52 (and CVE-2006-1056): x87 pointers of another context. What a guest has in its x87 when it changes roots is
/// what it finds after, pointers included, however often other roots had other things there.
pub(crate) fn xsa_52_x87_state_is_the_guests_in_every_root(w: &mut World) {
    let roots = [w.space.root(), w.second_root()];
    let divide = code!("fninit", "fldcw [rdi]", "fldz", "fld1", "fdivrp st(1), st", "cli");
    let store = code!("fxsave64 [rdi + 64]", "cli");
    w.poke(DATA_VA, 0x37f & !4);
    w.regs.rdi = DATA_VA;
    for round in 0..4 {
        w.space.set_root(roots[round % 2]);
        // An exception that is pending, so that every processor saves the pointers that it has.
        assert_eq!(w.exec(&divide), gp(0));
        let mut stored = [(0, 0); 2];
        for (root, stored) in [roots[round % 2], roots[(round + 1) % 2]].into_iter().zip(&mut stored) {
            w.space.set_root(root);
            assert_eq!(w.exec(&store), gp(0));
            *stored = (w.peek(DATA_VA + 64), w.peek(DATA_VA + 72));
        }
        assert_eq!(stored[0], stored[1], "status and instruction pointer");
        assert_eq!(stored[0].0 >> 16 & 0x84, 0x84, "a division by zero is pending");
        // In the other root, something else.
        assert_eq!(w.exec(&code!("fninit", "cli")), gp(0));
        w.space.set_root(roots[round % 2]);
        assert_eq!(w.exec(&store), gp(0));
        assert_eq!((w.peek(DATA_VA + 64), w.peek(DATA_VA + 72)), (0x37f, 0), "and nothing of it is left");
    }
    w.is_well();
}

/// XSA-220: protection keys' rights are a register that anybody can write, where the host has them on. They take
/// nothing from what the guest runs next, nor from the engine.
pub(crate) fn xsa_220_protection_keys_are_not_kept(w: &mut World) {
    let on = query(7, 0).ecx & 1 << 4 != 0;
    if !on {
        println!("SKIP: this host has no protection keys: WRPKRU is undefined");
    }
    let undefined = fault(6);
    for rights in [u64::from(u32::MAX), 0xaaaa_aaaa, 0x5555_5555] {
        (w.regs.rax, w.regs.rcx, w.regs.rdx) = (rights, 0, 0);
        let exit = w.exec(&code!("wrpkru", "push rbx", "cli"));
        assert!(exit == undefined || on, "{exit:?}");
        w.is_well();
        // By the hypercall page, where nothing but the guest's own instructions comes between.
        (w.regs.rax, w.regs.rcx, w.regs.rdx, w.regs.rbx) = (rights, 0, 0, HYPERCALL_VA);
        let exit = w.exec(&code!("wrpkru", "call rbx"));
        assert!(on || exit == undefined, "{exit:?}");
        w.is_well();
    }
}

/// XSA-260: a debug exception that MOV SS holds back until after the next instruction came in the hypervisor, when that
/// instruction entered it. It comes before the guest's next instruction, or not at all.
pub(crate) fn xsa_260_mov_ss_before_every_way_out(w: &mut World) {
    let ways: [(&str, Vec<u8>); 5] = [
        ("syscall", code!("mov ss, [rdi]", "syscall", "cli")),
        ("int3", code!("mov ss, [rdi]", "int3", "cli")),
        ("int1", code!("mov ss, [rdi]", ".byte 0xf1", "cli")),
        ("page", code!("mov ss, [rdi]", "call rbx", "cli")),
        ("cli", code!("mov ss, [rdi]", "cli")),
    ];
    w.load(&code!("mov eax, ss", "cli"));
    assert_eq!(w.run(), gp(0));
    let ss = w.regs.rax & 0xffff;
    for (name, snippet) in &ways {
        for flags in [0x202, 0x202 | TF] {
            w.load(snippet);
            w.poke(DATA_VA, ss);
            (w.regs.rdi, w.regs.rbx, w.regs.rsp, w.regs.rflags) =
                (DATA_VA, HYPERCALL_VA + 32, STACK_TOP, flags);
            // Every stop is one of guest code, and it ends at the CLI.
            let (mut stops, mut last) = (0, None);
            loop {
                let exit = w.run();
                stops += 1;
                let again = last.replace(w.regs.rip) == Some(w.regs.rip);
                let own = matches!(
                    exit,
                    Exit::Syscall | Exit::Hypercall | Exit::Fault(Fault { vector: 1 | 3, .. })
                );
                if exit == gp(0) {
                    break;
                }
                if *name == "int1" && (exit == fault(6) || exit == fault(1) && again) {
                    // QEMU's emulated processors do not have it. Some hosts of virtual machines report it with RIP at
                    // it, to a plain program of Linux, too: it would be met for ever.
                    w.regs.rip += 1;
                    continue;
                }
                assert!(own && stops < 40, "{name}, flags {flags:#x}: {exit:?} at {:#x}", w.regs.rip);
                let page = w.regs.rip & !(PAGE_SIZE - 1);
                assert!(
                    [CODE_VA, HYPERCALL_VA].contains(&page) || flags & TF != 0,
                    "{name}: {:#x}",
                    w.regs.rip
                );
            }
            assert_eq!(w.regs.rip, CODE_VA + snippet.len() as u64 - 1, "{name}");
            w.is_well();
        }
    }
}

/// XSA-279: a flush of an address that is not canonical, or not a guest's at all, faults nowhere.
pub(crate) fn xsa_279_flushes_of_any_address(w: &mut World) {
    let addresses = [
        0,
        DATA_VA,
        1 << 47,
        1 << 63,
        u64::MAX,
        0xffff_7fff_ffff_ffff,
        0xffff_8000_0000_0000,
        0x7e80_0000_0000,
    ];
    for va in addresses {
        w.space.flush(Flush::Page(va));
        w.is_well();
        // Along with work that takes the engine through its gate.
        let frame = w.frame();
        w.map(0x2000_0000, frame, DATA & !pte::NX);
        w.space.flush(Flush::Page(va));
        w.regs.rax = 0x2000_0000;
        assert_eq!(w.exec(&code!("mov [rax], rax", "cli")), gp(0));
        assert_eq!(w.memory.load_u64(frame.maddr()), Ok(0x2000_0000), "{va:#x}");
        w.set(0x2000_0000, 0);
    }
}

/// XSA-293: bases that the guest wrote natively, or by loading a selector, were taken for those that the hypervisor had
/// set. What an exit tells is what the guest had, and what an entry is given is what it gets, also in another root.
pub(crate) fn xsa_293_bases_are_what_was_told(w: &mut World) {
    if query(7, 0).ebx & 1 == 0 {
        return skip("fsgsbase", "this processor cannot write FS and GS bases at CPL 3");
    }
    let roots = [w.space.root(), w.second_root()];
    let write = code!("wrfsbase rax", "wrgsbase rbx", "syscall", "rdfsbase rcx", "rdgsbase rdx", "cli");
    let null = code!("xor eax, eax", "mov fs, eax", "mov gs, eax", "cli");
    for round in 0..6u64 {
        let (user, kernel) = ([DATA_VA + round, round << 20], [u64::MAX << 20, 0x7000 + round]);
        w.space.set_root(roots[round as usize % 2]);
        (w.regs.rax, w.regs.rbx) = (user[0], user[1]);
        assert_eq!(w.exec(&write), Exit::Syscall);
        assert_eq!([w.regs.fs_base, w.regs.gs_base], user, "what the program wrote");
        // The kernel's turn, in the same root or another, with bases of its own.
        w.space.set_root(roots[(round as usize + usize::from(round > 2)) % 2]);
        [w.regs.fs_base, w.regs.gs_base] = kernel;
        assert_eq!(w.run(), gp(0));
        assert_eq!([w.regs.rcx, w.regs.rdx], kernel, "what the kernel was given");
        assert_eq!([w.regs.fs_base, w.regs.gs_base], kernel);
        // A null selector clears the base on some processors; what comes next is given its own all the same.
        assert_eq!(w.exec(&null), gp(0));
        [w.regs.fs_base, w.regs.gs_base] = user;
        assert_eq!(w.exec(&code!("rdfsbase rcx", "rdgsbase rdx", "cli")), gp(0));
        assert_eq!([w.regs.rcx, w.regs.rdx], user, "round {round}");
    }
}
