//! A vCPU's context: control registers, segments, the shared page's registers, the gate's stack.
//!
//! Translation between our form and KVM's, and what the hardware leaves or expects on the gate's stack. No
//! KVM call is made here.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::gate;
use super::gdt::Gdt;
use super::host::{self, HostKind};
use super::tables::{self, GateTables};
use crate::engine::Exit;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr};
use crate::mmu::space::{Allowed, GdtFrames};
use crate::x86::control::{cr0, cr4, efer};
use crate::x86::descriptor::{LOCAL, bits};
use crate::x86::exception::{Exception, Fault};
use crate::x86::registers::{Regs, Selectors};
use crate::x86::{exception, msr, rflags};

/// Flags that a guest may have as it likes: the arithmetic flags, TF, DF, AC and ID (SDM vol. 1, 3.4.3).
pub(super) const GUEST_FLAGS: u64 = rflags::LOADED_AT_CPL3 & !(rflags::NT | rflags::RF);

/// PE, MP, ET, NE, WP, PG (SDM vol. 3, 2.5).
pub const CR0: u64 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
/// PAE, OSFXSR, OSXMMEXCPT.
pub const CR4: u64 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;

/// CR0 for a guest that has TS set, or not.
pub fn cr0(task_switched: bool) -> u64 {
    CR0 | if task_switched { cr0::TS } else { 0 }
}

/// CR4 for a guest that wants these bits, as far as the processor has them.
pub fn cr4(wanted: u64, features: Features) -> u64 {
    let optional = |have: bool, bit: u64| if have { bit } else { 0 };
    let possible =
        cr4::TSD | optional(features.xcr0 != 0, cr4::OSXSAVE) | optional(features.fsgsbase, cr4::FSGSBASE);
    CR4 | wanted & possible
}

pub fn segment(selector: u16, kind: u8, dpl: u8, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        dpl,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    }
}

/// Accessed code, readable; accessed data, writable (SDM vol. 3, table 3-1).
pub const CODE: u8 = 11;
pub const DATA: u8 = 3;

/// Loads the segments of ring 0 or 3: the flat ones, or those of `selectors` where the GDT also holds the guest's.
///
/// A segment register that holds its selector already stays as it is: what the guest loaded into it natively counts.
pub fn set_segments(sregs: &mut kvm_sregs, gdt: Gdt, selectors: &Selectors, ring: u8) {
    if ring == 0 {
        sregs.cs = segment(gdt.kernel_cs(), CODE, 0, true);
        sregs.ss = segment(gdt.kernel_ss(), DATA, 0, false);
    } else {
        let (cs, ss) = user_selectors(gdt, selectors);
        if (sregs.cs.selector, sregs.cs.dpl, sregs.cs.l) != (cs, ring, 1) {
            sregs.cs = segment(cs, CODE, ring, true);
        }
        if (sregs.ss.selector, sregs.ss.dpl) != (ss, ring) {
            sregs.ss = segment(ss, DATA, ring, false);
        }
    }
    if gdt.is_guests() {
        for (register, selector) in data_segments(sregs, selectors) {
            if register.selector != selector {
                *register = kvm_segment { base: register.base, ..segment(selector, DATA, 3, false) };
            }
        }
    }
}

/// CS and SS for CPL 3.
fn user_selectors(gdt: Gdt, selectors: &Selectors) -> (u16, u16) {
    if gdt.is_guests() { (selectors.cs, selectors.ss) } else { (gdt.user_cs(), gdt.user_ss()) }
}

fn data_segments<'a>(sregs: &'a mut kvm_sregs, s: &Selectors) -> [(&'a mut kvm_segment, u16); 4] {
    [(&mut sregs.ds, s.ds), (&mut sregs.es, s.es), (&mut sregs.fs, s.fs), (&mut sregs.gs, s.gs)]
}

/// Whether the segment registers hold what [`set_segments`] loads. Not the privilege level of CS alone: a guest can
/// go to 32-bit code by itself, and is entered in 64-bit mode all the same.
pub fn is_in_ring(sregs: &kvm_sregs, gdt: Gdt, selectors: &Selectors, ring: u8) -> bool {
    let (cs, _) = if ring == 0 { (gdt.kernel_cs(), 0) } else { user_selectors(gdt, selectors) };
    sregs.cs.dpl == ring
        && sregs.cs.l == 1
        && sregs.cs.selector == cs
        && (!gdt.is_guests() || of_guest(sregs, selectors) == *selectors)
}

/// The selectors that the guest finds; CS and SS as in `before` where ring 0 runs. 32-bit code is not supported: it
/// is run as if it were 64-bit code.
fn of_guest(sregs: &kvm_sregs, before: &Selectors) -> Selectors {
    let cs = if sregs.cs.l == 1 { sregs.cs.selector } else { Selectors::FLAT.cs };
    let (cs, ss) = if sregs.cs.dpl == 3 { (cs, sregs.ss.selector) } else { (before.cs, before.ss) };
    let (ds, es) = (sregs.ds.selector, sregs.es.selector);
    Selectors { cs, ss, ds, es, fs: sregs.fs.selector, gs: sregs.gs.selector }
}

/// The type of the TSS's descriptor: 64-bit, busy.
pub const BUSY_TSS: u8 = 11;
/// The same without the busy bit.
const AVAILABLE_TSS: u8 = 9;

/// The type of the task register's segment. SVM keeps it without the busy bit, which KVM adds for everybody to see
/// (`svm_get_segment`) and does not take out again; QEMU's SVM then denies every port.
pub fn tss_type() -> u8 {
    let svm = host::usable_kind() == HostKind::Hardware && crate::host::host_cpuid::is_amd();
    if svm { AVAILABLE_TSS } else { BUSY_TSS }
}

/// What differs between processors.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// The state components that XCR0 can have; 0: CR4.OSXSAVE is not allowed.
    pub xcr0: u64,
    /// CR4.FSGSBASE is allowed.
    pub fsgsbase: bool,
    /// See [`tss_type`].
    pub tss_type: u8,
    /// Whose the GDT is.
    pub gdt: Gdt,
}

/// A vCPU in long mode on its gate's tables.
pub fn initial_sregs(features: Features, gate: &GateTables) -> kvm_sregs {
    let gdt = features.gdt;
    let null = segment(0, DATA, 3, false);
    let mut sregs = kvm_sregs {
        ds: null,
        es: null,
        fs: null,
        gs: null,
        cr0: CR0,
        cr4: cr4(Allowed::ALL.cr4, features),
        efer: efer::LONG_MODE,
        apic_base: msr::APIC_BASE_ADDRESS | msr::APIC_BASE_ENABLED | msr::APIC_BASE_BSP,
        ..Default::default()
    };
    sregs.gdt.base = gdt.base(gate.va(tables::DESCRIPTORS_VA));
    sregs.gdt.limit = gdt.limit();
    sregs.idt.base = gate.va(tables::IDT_VA);
    sregs.idt.limit = tables::IDT_LIMIT;
    sregs.tr = kvm_segment {
        base: gate.va(tables::TSS_VA),
        limit: u32::from(tables::TSS_LIMIT),
        selector: gdt.tss(),
        type_: features.tss_type,
        present: 1,
        ..Default::default()
    };
    sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
    // Not a ring that `load` compares equal to: the first entry sets segments and root.
    sregs.cs = segment(gdt.kernel_cs(), CODE, 1, true);
    sregs
}

/// Registers that a guest at CPL 3 may have.
pub fn to_kvm(regs: &Regs, k: &mut kvm_regs) {
    *k = general_to_kvm(regs, regs.rflags & GUEST_FLAGS | rflags::ALWAYS_AT_CPL3);
}

/// The general registers, with these flags.
pub fn general_to_kvm(regs: &Regs, rflags: u64) -> kvm_regs {
    kvm_regs {
        rax: regs.rax,
        rbx: regs.rbx,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        rsp: regs.rsp,
        rbp: regs.rbp,
        r8: regs.r8,
        r9: regs.r9,
        r10: regs.r10,
        r11: regs.r11,
        r12: regs.r12,
        r13: regs.r13,
        r14: regs.r14,
        r15: regs.r15,
        rip: regs.rip,
        rflags,
    }
}

/// And back.
pub fn from_kvm(k: &kvm_regs, sregs: &kvm_sregs, gdt: Gdt, regs: &mut Regs) {
    let selectors = if gdt.is_guests() { of_guest(sregs, &regs.selectors) } else { regs.selectors };
    general_from_kvm(k, regs);
    (regs.fs_base, regs.gs_base) = (sregs.fs.base, sregs.gs.base);
    regs.selectors = selectors;
}

/// The general registers and flags.
pub fn general_from_kvm(k: &kvm_regs, regs: &mut Regs) {
    *regs = Regs {
        rax: k.rax,
        rbx: k.rbx,
        rcx: k.rcx,
        rdx: k.rdx,
        rsi: k.rsi,
        rdi: k.rdi,
        rsp: k.rsp,
        rbp: k.rbp,
        r8: k.r8,
        r9: k.r9,
        r10: k.r10,
        r11: k.r11,
        r12: k.r12,
        r13: k.r13,
        r14: k.r14,
        r15: k.r15,
        rip: k.rip,
        rflags: k.rflags,
        ..*regs
    };
}

/// Stores words in machine memory.
pub fn write_words(memory: &MachineMemory, at: Maddr, words: &[u64]) -> Result<(), BadMachineAddress> {
    memory.write(at, zerocopy::IntoBytes::as_bytes(words))
}

/// CS and SS for the gate's IRETQ: the guest's, but flat for those that it would not take as 64-bit code at CPL 3.
/// One that names nothing any more is left to fail.
pub fn gate_selectors(
    gdt: Gdt,
    selectors: &Selectors,
    frames: &GdtFrames,
    memory: &MachineMemory,
) -> (u16, u16) {
    let (cs, ss) = user_selectors(gdt, selectors);
    // The local table is for the layers above to look up: the processor has none.
    let flat_cs = cs & LOCAL != 0 || cs != gdt.user_cs() && is_32_bit_code(gdt, cs, frames, memory);
    (if flat_cs { gdt.user_cs() } else { cs }, if ss & LOCAL != 0 { gdt.user_ss() } else { ss })
}

fn is_32_bit_code(gdt: Gdt, selector: u16, frames: &GdtFrames, memory: &MachineMemory) -> bool {
    const CODE: u64 = bits::NOT_SYSTEM | bits::CODE;
    let frame = frames.get(usize::from(selector >> 12)).copied().flatten();
    let at = frame.map(|frame| Maddr(frame.maddr().0 + u64::from(selector & 0xff8)));
    let descriptor = at.and_then(|at| memory.load_u64(at).ok());
    selector == gdt.user32_cs() || descriptor.is_some_and(|d| d & CODE == CODE && d & bits::LONG == 0)
}

/// Goes on at `rip` in the gate: leaves on its stack what it pops at the end (rax, rdx, rcx, rsi) and IRETQ takes.
pub fn enter_gate(
    regs: &Regs,
    (cs, ss): (u16, u16),
    k: &mut kvm_regs,
    rip: u64,
    memory: &MachineMemory,
    gate: &GateTables,
) -> Result<(), BadMachineAddress> {
    let frame = [regs.rax, regs.rdx, regs.rcx, regs.rsi, k.rip, cs.into(), k.rflags, k.rsp, ss.into()];
    let size = std::mem::size_of_val(&frame) as u64;
    write_words(memory, Maddr(gate.stack_top().0 - size), &frame)?;
    k.rsp = gate.va(tables::STACK_TOP_VA) - size;
    k.rip = rip;
    k.rsi = gate.va(tables::WORK_VA);
    // No interrupt may use the gate's stack meanwhile; none is ever injected, but say so.
    k.rflags = 2;
    Ok(())
}

/// Takes an exception's frame off the gate's stack, whose top was at `rsp` when its handler began.
///
/// An exception of the gate's IRETQ is the guest's: a selector that it left with is one no more (it changed its
/// table). The frame that IRETQ could not take is then at the top of the stack, where the guest's own would be.
pub fn read_frame(
    (vector, rsp): (u8, u64),
    (cr2, gdt): (u64, Gdt),
    regs: &mut Regs,
    memory: &MachineMemory,
    gate: &GateTables,
) -> Exit {
    const LOST: Exit = Exit::Dead("the gate's stack is not in memory");
    let has_code = Exception::has_error(vector);
    let top = gate.va(tables::STACK_TOP_VA);
    let at = |va: u64| Maddr(gate.stack_top().0.wrapping_sub(top.wrapping_sub(va)));
    let Ok([mut error, rip, cs, flags, rsp_there, ss]) = memory.read_obj::<[u64; 6]>(at(top - 48)) else {
        return LOST;
    };
    if cs & 3 != 3 {
        return Exit::Dead("an exception in the gate");
    }
    let from_guest = rsp == top - if has_code { 48 } else { 40 };
    if gdt.is_guests() && !from_guest {
        let inner = if has_code { rsp } else { rsp.wrapping_sub(8) };
        let Ok([code, inner_rip]) = memory.read_obj::<[u64; 2]>(at(inner)) else { return LOST };
        if inner_rip != gate.va(tables::TEXT_VA) + gate::iretq_offset() {
            return Exit::Dead("an exception in the gate");
        }
        error = code;
    }
    regs.rip = rip;
    regs.rflags = flags & !rflags::RF;
    regs.rsp = rsp_there;
    if gdt.is_guests() {
        (regs.selectors.cs, regs.selectors.ss) = (cs as u16, ss as u16);
    }
    let error_code = if has_code { error as u32 } else { 0 };
    let address = if vector == exception::vector::PAGE { cr2 } else { 0 };
    Exit::Fault(Fault { vector, error_code, address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_flags_never_include_privileged_ones() {
        let privileged = rflags::IF | rflags::IOPL | rflags::NT | rflags::RF | rflags::VM | 1 << 19 | 1 << 20;
        assert_eq!(GUEST_FLAGS & privileged, 0);
    }

    #[test]
    fn compatibility_mode_is_no_ring_that_a_guest_is_entered_in() {
        for gdt in [Gdt::Gates, Gdt::Guests] {
            let (mut sregs, flat) = (kvm_sregs::default(), Selectors::FLAT);
            for ring in [0, 3] {
                set_segments(&mut sregs, gdt, &flat, ring);
                assert!(is_in_ring(&sregs, gdt, &flat, ring) && !is_in_ring(&sregs, gdt, &flat, 3 - ring));
            }
            sregs.cs = segment(gdt.user32_cs(), CODE, 3, false);
            assert!(!is_in_ring(&sregs, gdt, &flat, 3));
            set_segments(&mut sregs, gdt, &flat, 3);
            assert!(is_in_ring(&sregs, gdt, &flat, 3));
        }
    }

    /// Segments that the guest loaded itself are kept, hidden parts included, until the layers above set others.
    #[test]
    fn a_segment_that_the_guest_loaded_stays() {
        let (mut sregs, mut selectors) = (kvm_sregs::default(), Selectors::FLAT);
        set_segments(&mut sregs, Gdt::Guests, &selectors, 3);
        let own = kvm_segment { base: 0x1000, limit: 0xfff, ..segment(0x4b, DATA, 3, false) };
        sregs.ds = own;
        assert!(!is_in_ring(&sregs, Gdt::Guests, &selectors, 3));
        selectors = of_guest(&sregs, &selectors);
        assert_eq!(selectors.ds, 0x4b);
        assert!(is_in_ring(&sregs, Gdt::Guests, &selectors, 3));
        set_segments(&mut sregs, Gdt::Guests, &selectors, 3);
        assert_eq!(sregs.ds, own);
        selectors.ds = 0;
        set_segments(&mut sregs, Gdt::Guests, &selectors, 3);
        assert_eq!((sregs.ds.selector, sregs.ds.base), (0, 0x1000));
    }
}
