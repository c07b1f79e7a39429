//! A vCPU's context: control registers, segments, the shared page's registers, the gate's stack.
//!
//! Translation between our form and KVM's, and what the hardware leaves or expects on the gate's stack. No
//! KVM call is made here.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::host::{self, HostKind};
use super::tables::{self, GateTables, selector};
use crate::engine::{Allowed, CR4_FSGSBASE, CR4_OSXSAVE, CR4_TSD, Exit, Fault, Regs};
use crate::memory::{BadMachineAddress, MachineMemory, Maddr};

/// Flags that a guest may have as it likes: the arithmetic flags, TF, DF, AC and ID (SDM vol. 1, 3.4.3).
const GUEST_FLAGS: u64 = 0x24_0dd5;
/// Always on at CPL 3: bit 1, and IF, so that the host's own interrupts arrive.
const FIXED_FLAGS: u64 = 0x202;

/// PE, MP, ET, NE, WP, PG (SDM vol. 3, 2.5).
const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
const CR0_TS: u64 = 1 << 3;
/// PAE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10;
/// SCE, LME, LMA, NXE.
const EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;

/// CR0 for a guest that has TS set, or not.
pub fn cr0(task_switched: bool) -> u64 {
    CR0 | if task_switched { CR0_TS } else { 0 }
}

/// CR4 for a guest that wants these bits, as far as the processor has them.
pub fn cr4(wanted: u64, features: Features) -> u64 {
    let optional = |have: bool, bit: u64| if have { bit } else { 0 };
    let possible =
        CR4_TSD | optional(features.xcr0 != 0, CR4_OSXSAVE) | optional(features.fsgsbase, CR4_FSGSBASE);
    CR4 | wanted & possible
}

fn segment(selector: u16, kind: u8, dpl: u8, code: bool) -> kvm_segment {
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
const CODE: u8 = 11;
const DATA: u8 = 3;

/// Loads the flat segments of ring 0 or 3.
pub fn set_ring(sregs: &mut kvm_sregs, ring: u8) {
    let (cs, ss) = if ring == 0 {
        (selector::KERNEL_CS, selector::KERNEL_SS)
    } else {
        (selector::USER_CS, selector::USER_SS)
    };
    sregs.cs = segment(cs, CODE, ring, true);
    sregs.ss = segment(ss, DATA, ring, false);
}

/// Whether the code segment is the one that [`set_ring`] loads for `ring`. Not the privilege level alone: a guest can
/// go to 32-bit code by itself, and is entered in 64-bit mode all the same.
pub fn is_in_ring(sregs: &kvm_sregs, ring: u8) -> bool {
    let selector = if ring == 0 { selector::KERNEL_CS } else { selector::USER_CS };
    sregs.cs.dpl == ring && sregs.cs.l == 1 && sregs.cs.selector == selector
}

/// The type of the TSS's descriptor: 64-bit, busy.
const BUSY_TSS: u8 = 11;
/// The same without the busy bit.
const AVAILABLE_TSS: u8 = 9;

/// The type of the task register's segment. SVM keeps it without the busy bit, which KVM adds for everybody to see
/// (`svm_get_segment`) and does not take out again; QEMU's SVM then denies every port.
pub fn tss_type() -> u8 {
    let svm = host::usable_kind() == HostKind::Hardware && host::is_amd();
    if svm { AVAILABLE_TSS } else { BUSY_TSS }
}

/// The address with bits 63:48 as bit 47 has them: itself if it is canonical.
pub fn canonical(address: u64) -> u64 {
    (address.cast_signed() << 16 >> 16).cast_unsigned()
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
}

/// A vCPU in long mode on the gate's tables.
pub fn initial_sregs(features: Features) -> kvm_sregs {
    let data = segment(selector::USER_SS, DATA, 3, false);
    let null_based = kvm_segment { selector: 0, ..data };
    let mut sregs = kvm_sregs {
        ds: data,
        es: data,
        fs: null_based,
        gs: null_based,
        cr0: CR0,
        cr4: cr4(Allowed::ALL.cr4, features),
        efer: EFER,
        apic_base: 0xfee0_0900,
        ..Default::default()
    };
    sregs.gdt.base = tables::DESCRIPTORS_VA;
    sregs.gdt.limit = tables::GDT_LIMIT;
    sregs.idt.base = tables::IDT_VA;
    sregs.idt.limit = tables::IDT_LIMIT;
    sregs.tr = kvm_segment {
        base: tables::TSS_VA,
        limit: u32::from(tables::TSS_LIMIT),
        selector: selector::TSS,
        type_: features.tss_type,
        present: 1,
        ..Default::default()
    };
    sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
    // Not a ring that `load` compares equal to: the first entry sets segments and root.
    sregs.cs = segment(selector::KERNEL_CS, CODE, 1, true);
    sregs
}

/// From our form of the registers to KVM's.
pub fn to_kvm(regs: &Regs, k: &mut kvm_regs) {
    *k = kvm_regs {
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
        rflags: regs.rflags & GUEST_FLAGS | FIXED_FLAGS,
    };
}

/// And back.
pub fn from_kvm(k: &kvm_regs, sregs: &kvm_sregs, regs: &mut Regs) {
    *regs = Regs {
        rax: k.rax,
        rbx: k.rbx,
        rcx: k.rcx,
        rdx: k.rdx,
        rsi: k.rsi,
        rdi: k.rdi,
        rbp: k.rbp,
        rsp: k.rsp,
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
        fs_base: sregs.fs.base,
        gs_base: sregs.gs.base,
    };
}

/// Stores words in machine memory.
pub fn write_words(memory: &MachineMemory, at: Maddr, words: &[u64]) -> Result<(), BadMachineAddress> {
    memory.write(at, zerocopy::IntoBytes::as_bytes(words))
}

/// Goes on at `rip` in the gate: leaves on its stack what it pops at the end (rax, rdx, rcx, rsi) and IRETQ takes.
pub fn enter_gate(
    regs: &Regs,
    k: &mut kvm_regs,
    rip: u64,
    memory: &MachineMemory,
    gate: &GateTables,
) -> Result<(), BadMachineAddress> {
    let frame = [
        regs.rax,
        regs.rdx,
        regs.rcx,
        regs.rsi,
        k.rip,
        u64::from(selector::USER_CS),
        k.rflags,
        k.rsp,
        u64::from(selector::USER_SS),
    ];
    let size = std::mem::size_of_val(&frame) as u64;
    write_words(memory, Maddr(gate.stack_top().0 - size), &frame)?;
    k.rsp = tables::STACK_TOP_VA - size;
    k.rip = rip;
    k.rsi = tables::WORK_VA;
    // No interrupt may use the gate's stack meanwhile; none is ever injected, but say so.
    k.rflags = 2;
    Ok(())
}

/// Vectors with an error code (SDM vol. 3, table 6-1).
const fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// Takes an exception's frame off the gate's stack.
pub fn read_frame(vector: u8, cr2: u64, regs: &mut Regs, memory: &MachineMemory, gate: &GateTables) -> Exit {
    let mut frame = [0u64; 6];
    let size = std::mem::size_of_val(&frame) as u64;
    let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut frame);
    if memory.read(Maddr(gate.stack_top().0 - size), bytes).is_err() {
        return Exit::Dead("the gate's stack is not in memory");
    }
    let [error, rip, cs, rflags, rsp, _ss] = frame;
    if cs & 3 != 3 {
        return Exit::Dead("an exception in the gate");
    }
    const RF: u64 = 1 << 16;
    regs.rip = rip;
    regs.rflags = rflags & !RF;
    regs.rsp = rsp;
    let error_code = if has_error_code(vector) { error as u32 } else { 0 };
    const PAGE_FAULT: u8 = 14;
    let address = if vector == PAGE_FAULT { cr2 } else { 0 };
    Exit::Fault(Fault { vector, error_code, address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_flags_never_include_privileged_ones() {
        let privileged = 1 << 9 | 3 << 12 | 1 << 14 | 1 << 16 | 1 << 17 | 1 << 19 | 1 << 20;
        assert_eq!(GUEST_FLAGS & privileged, 0);
    }

    #[test]
    fn compatibility_mode_is_no_ring_that_a_guest_is_entered_in() {
        let mut sregs = kvm_sregs::default();
        for ring in [0, 3] {
            set_ring(&mut sregs, ring);
            assert!(is_in_ring(&sregs, ring) && !is_in_ring(&sregs, 3 - ring));
        }
        sregs.cs = segment(selector::USER32_CS, CODE, 3, false);
        assert!(!is_in_ring(&sregs, 3));
    }

    #[test]
    fn canonical_addresses_are_their_own() {
        for address in [0, 0x7fff_ffff_ffff, 0xffff_8000_0000_0000, u64::MAX] {
            assert_eq!(canonical(address), address);
        }
        assert_eq!(canonical(1 << 63), 0);
        assert_eq!(canonical(1 << 47), 0xffff_8000_0000_0000);
    }
}
