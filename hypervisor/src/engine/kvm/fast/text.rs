//! The instructions of the fast paths, and where in them what is.
//!
//! Two pieces. The *ways* run at CPL 3, in a page that both modes can execute; the *gate* runs at CPL 0, in the frame
//! of the gate's other text. Only addresses are taken of either: they are copied into the machine's memory.

use std::arch::global_asm;
use std::ops::Range;

use paravane_abi::segment::{FLAT_RING3_CS64, FLAT_RING3_SS64};

use super::super::context::GUEST_FLAGS;
use super::super::gate::{EXIT_PORT, SCRATCH_OFFSET, VECTOR_STRIDE};
use super::{ARMED, DESK_OFFSET, GATE_OFFSET, STATE_OFFSET, WAYS_VA};
use crate::x86::exception::vector;
use crate::x86::rflags::{AC, IF, IOPL, NT, RF, TF, VM};

/// Words of the page that the ways share with the monitor: offsets in it, in the order of [`super::State`].
mod word {
    pub const FRAME: u64 = 0;
    pub const USER_RSP: u64 = 8;
    pub const USER_RAX: u64 = 16;
    pub const KERNEL_GS: u64 = 24;
    pub const USER_GS: u64 = 32;
    pub const KERNEL_SP: u64 = 40;
    pub const ENTRY: u64 = 48;
    pub const INFO: u64 = 56;
    pub const MASKS: u64 = 64;
    pub const IN_USER: u64 = 72;
    pub const CS: u64 = 80;
    pub const SS: u64 = 88;
    pub const OWN_CS: u64 = 96;
    pub const OWN_SS: u64 = 104;
    pub const CROSSINGS: u64 = 112;
}

/// Words of the gate's own, which no guest sees: offsets from the scratch words of the other text.
pub(super) mod own {
    /// What CR3 is while the kernel runs.
    pub const KERNEL_ROOT: u64 = 0x40;
    /// The same for user programs.
    pub const USER_ROOT: u64 = 0x48;
    /// Not 0: SYSCALL goes to the kernel.
    pub const ARMED: u64 = 0x50;
    /// The caller's rax.
    pub const RAX: u64 = 0x58;
    /// A frame for IRETQ: rip, cs, rflags, rsp, ss.
    pub const FRAME: u64 = 0x60;
    /// Its rsp.
    pub const RSP: u64 = FRAME + 24;
}

/// What an entry to the kernel keeps of the program's flags: see `pv::entry`. POPFQ at CPL 3 leaves IF alone.
const KEPT: u64 = GUEST_FLAGS & !(TF | IOPL | NT | RF | VM | AC);
const _: () = assert!(KEPT >> 31 == 0 && GUEST_FLAGS >> 31 == 0);

global_asm!(
    r#"
    .pushsection .rodata.paravane_fast, "a", @progbits
    .macro paravane_at name
    .globl paravane_fast_\name
    .hidden paravane_fast_\name
paravane_fast_\name:
    .endm

    .balign 16
    paravane_at ways
.Lparavane_ways:
    /*
     * Where SYSCALL arrives if it leaves the privilege level alone. r11 has the flags. One that KVM interprets, because
     * of where it is, does raise it: the stack is still the program's, and INT3 would push on it.
     */
    paravane_at start
    cmp byte ptr [rip + .Lparavane_ways + {armed}], 0
    je 1f
    mov word ptr [rip + .Lparavane_ways - {desk}], cs
    test byte ptr [rip + .Lparavane_ways - {desk}], 3
    jnz 2f
1:  out {port}, al
    hlt
2:  int3

    /* In the kernel's view, with the caller's registers. Who was in the kernel makes a hypercall. */
    paravane_at entry
    cmp byte ptr [rip + .Lparavane_ways + {state} + {in_user}], 0
    je paravane_fast_kernel_call
    mov [rip + .Lparavane_ways + {state} + {user_rsp}], rsp
    paravane_at entry_rsp
    mov [rip + .Lparavane_ways + {state} + {user_rax}], rax
    paravane_at entry_rax
    mov rax, [rip + .Lparavane_ways + {state} + {info}]
    cmp byte ptr [rax + 1], 0
    jne paravane_fast_masked_call
    rdgsbase rax
    mov [rip + .Lparavane_ways + {state} + {user_gs}], rax
    paravane_at entry_gs
    mov rax, [rip + .Lparavane_ways + {state} + {kernel_gs}]
    wrgsbase rax
    mov rsp, [rip + .Lparavane_ways + {state} + {kernel_sp}]
    push {ss}
    push qword ptr [rip + .Lparavane_ways + {state} + {user_rsp}]
    push r11
    and qword ptr [rsp], ~{iopl}
    or qword ptr [rsp], {iflag}
    push {cs}
    push rcx
    push r11
    push rcx
    mov rax, r11
    and eax, {kept}
    push rax
    inc qword ptr [rip + .Lparavane_ways + {state} + {crossings}]
    mov byte ptr [rip + .Lparavane_ways + {state} + {in_user}], 0
    cmp byte ptr [rip + .Lparavane_ways + {state} + {masks}], 0
    je 1f
    mov rax, [rip + .Lparavane_ways + {state} + {info}]
    mov byte ptr [rax + 1], 1
    paravane_at entry_masked
1:  popfq
    mov rax, [rip + .Lparavane_ways + {state} + {user_rax}]
    jmp qword ptr [rip + .Lparavane_ways + {state} + {entry}]
    paravane_at entry_end

    /* iret: rax, r11, rcx, flags, rip, cs, rflags, rsp, ss are on the stack, and nothing of it is written to. */
    paravane_at iret
    cmp byte ptr [rip + .Lparavane_ways + {armed}], 0
    je paravane_fast_slow_iret
    mov [rip + .Lparavane_ways + {state} + {frame}], rsp
    paravane_at iret_frame
    cmp qword ptr [rsp + 24], 0
    jne paravane_fast_slow_iret
    movzx ecx, word ptr [rsp + 40]
    cmp ecx, [rip + .Lparavane_ways + {state} + {want_cs}]
    jne paravane_fast_slow_iret
    movzx ecx, word ptr [rsp + 64]
    cmp ecx, [rip + .Lparavane_ways + {state} + {want_ss}]
    jne paravane_fast_slow_iret
    mov ecx, cs
    cmp ecx, [rip + .Lparavane_ways + {state} + {own_cs}]
    jne paravane_fast_slow_iret
    mov ecx, ss
    cmp ecx, [rip + .Lparavane_ways + {state} + {own_ss}]
    jne paravane_fast_slow_iret
    /* The leap is by rcx, to an address that no jump faults on in this page. */
    mov rcx, [rsp + 32]
    cmp rcx, [rsp + 16]
    jne paravane_fast_slow_iret
    mov rax, rcx
    shl rax, 16
    sar rax, 16
    cmp rax, rcx
    jne paravane_fast_slow_iret
    mov rcx, [rsp + 56]
    mov rax, rcx
    shl rax, 16
    sar rax, 16
    cmp rax, rcx
    jne paravane_fast_slow_iret
    mov r11, [rsp + 48]
    test r11d, {iflag}
    jz paravane_fast_slow_iret
    test r11d, {tf}
    jnz paravane_fast_slow_iret
    /* In this order: who makes an upcall pending later kicks. */
    mov rax, [rip + .Lparavane_ways + {state} + {info}]
    mov byte ptr [rax + 1], 0
    cmp byte ptr [rax], 0
    jne paravane_fast_slow_iret
    rdgsbase rax
    mov [rip + .Lparavane_ways + {state} + {kernel_gs}], rax
    paravane_at iret_gs
    mov rax, [rip + .Lparavane_ways + {state} + {user_gs}]
    wrgsbase rax
    inc qword ptr [rip + .Lparavane_ways + {state} + {crossings}]
    mov byte ptr [rip + .Lparavane_ways + {state} + {in_user}], 1
    and r11d, {guest_flags}
    push r11
    popfq
    mov rax, [rsp]
    mov r11, [rsp + 8]
    mov rcx, [rsp + 16]
    mov rsp, [rsp + 56]
    paravane_at return
    int3
    /* In the user's view. */
    paravane_at leap
    jmp rcx

    paravane_at slow_iret
    out {port}, al
    hlt
    paravane_at kernel_call
    out {port}, al
    hlt
    paravane_at masked_call
    out {port}, al
    hlt
    paravane_at ways_end

    .balign 16
    paravane_at gate
.Lparavane_fast_gate:
    /* Where SYSCALL arrives if it raises the privilege level, on the caller's stack, which is not used. */
    paravane_at raised
    cmp byte ptr [rip + .Lparavane_fast_gate + {own} + {own_armed}], 0
    je paravane_fast_raised_out
    mov [rip + .Lparavane_fast_gate + {own} + {own_rsp}], rsp
    mov [rip + .Lparavane_fast_gate + {own} + {own_rax}], rax
    paravane_at raised_saved
    mov rax, [rip + .Lparavane_fast_gate + {own} + {kernel_root}]
    mov cr3, rax
    mov rax, [rip + .Lparavane_fast_gate + {own} + {own_rax}]
    lea rsp, [rip + .Lparavane_fast_gate + {own} + {own_frame}]
    iretq
    paravane_at raised_out
    out {port}, al
    hlt

    /* INT3: of the ways, then the other root; of anybody else, then out. */
    .balign 16
    paravane_at breakpoint
    push rax
    paravane_at breakpoint_saved
    .byte 0x48, 0xb8 /* movabs rax, imm64 */
    .quad {ways_va} + (paravane_fast_entry - .Lparavane_ways)
    cmp [rsp + 8], rax
    jne 1f
    mov rax, [rip + .Lparavane_fast_gate + {own} + {kernel_root}]
    jmp 2f
1:  .byte 0x48, 0x05 /* add rax, imm32 */
    .long paravane_fast_leap - paravane_fast_entry
    cmp [rsp + 8], rax
    jne 3f
    mov rax, [rip + .Lparavane_fast_gate + {own} + {user_root}]
2:  mov cr3, rax
    pop rax
    paravane_at breakpoint_restored
    iretq
3:  pop rax
    jmp .Lparavane_fast_gate - {back_to_vector}
    paravane_at gate_end
    .purgem paravane_at
    .popsection
    "#,
    port = const EXIT_PORT,
    armed = const ARMED,
    state = const STATE_OFFSET,
    desk = const DESK_OFFSET,
    frame = const word::FRAME,
    user_rsp = const word::USER_RSP,
    user_rax = const word::USER_RAX,
    kernel_gs = const word::KERNEL_GS,
    user_gs = const word::USER_GS,
    kernel_sp = const word::KERNEL_SP,
    entry = const word::ENTRY,
    info = const word::INFO,
    masks = const word::MASKS,
    in_user = const word::IN_USER,
    want_cs = const word::CS,
    want_ss = const word::SS,
    own_cs = const word::OWN_CS,
    own_ss = const word::OWN_SS,
    crossings = const word::CROSSINGS,
    cs = const FLAT_RING3_CS64,
    ss = const FLAT_RING3_SS64,
    iopl = const IOPL,
    iflag = const IF,
    tf = const TF,
    kept = const KEPT,
    guest_flags = const GUEST_FLAGS,
    own = const SCRATCH_OFFSET - GATE_OFFSET,
    own_armed = const own::ARMED,
    own_rsp = const own::RSP,
    own_rax = const own::RAX,
    own_frame = const own::FRAME,
    kernel_root = const own::KERNEL_ROOT,
    user_root = const own::USER_ROOT,
    ways_va = const WAYS_VA,
    back_to_vector = const GATE_OFFSET - vector::BREAKPOINT as u64 * VECTOR_STRIDE,
);

/// Declares labels of a piece of text, and their offsets in it as functions.
macro_rules! labels {
    ($base:ident: $($(#[$doc:meta])* $name:ident = $label:ident;)*) => {
        $(
            $(#[$doc])*
            pub(in crate::engine::kvm) fn $name() -> u64 {
                // SAFETY: a label of the assembly above, of which only the address is taken.
                unsafe extern "C" {
                    static $label: u8;
                }
                (&raw const $label as usize - $base() as usize) as u64
            }
        )*
    };
}

fn ways_start() -> *const u8 {
    // SAFETY: as in `labels`.
    unsafe extern "C" {
        static paravane_fast_ways: u8;
    }
    &raw const paravane_fast_ways
}

fn gate_start() -> *const u8 {
    // SAFETY: as in `labels`.
    unsafe extern "C" {
        static paravane_fast_gate: u8;
    }
    &raw const paravane_fast_gate
}

/// Offsets in the page of the ways: of instructions, unless something else is said.
pub(super) mod ways {
    use super::ways_start;
    labels! { ways_start:
        /// The kernel's side of a SYSCALL.
        entry = paravane_fast_entry;
        /// From here on rsp is saved.
        entry_rsp = paravane_fast_entry_rsp;
        /// From here on rax is saved.
        entry_rax = paravane_fast_entry_rax;
        /// From here on the program's base of GS is saved.
        entry_gs = paravane_fast_entry_gs;
        /// From here on upcalls may be masked.
        entry_masked = paravane_fast_entry_masked;
        /// Its end.
        entry_end = paravane_fast_entry_end;
        /// The kernel's side of a return.
        iret = paravane_fast_iret;
        /// From here on the frame's place is saved.
        iret_frame = paravane_fast_iret_frame;
        /// From here on the kernel's base of GS is saved.
        iret_gs = paravane_fast_iret_gs;
        /// The INT3 of a return, on whose other side is `leap`.
        return_ = paravane_fast_return;
        /// The program's side of a return.
        leap = paravane_fast_leap;
        /// Leaves for the host, which does the return.
        slow_iret = paravane_fast_slow_iret;
        /// Leaves for the host: a SYSCALL of the kernel's.
        kernel_call = paravane_fast_kernel_call;
        /// Leaves for the host, which does the SYSCALL.
        masked_call = paravane_fast_masked_call;
        /// Bytes of it.
        end = paravane_fast_ways_end;
    }
}

/// Offsets in the gate's text.
pub(super) mod gate {
    use super::gate_start;
    labels! { gate_start:
        /// Where SYSCALL arrives at CPL 0.
        raised = paravane_fast_raised;
        /// From here on rsp and rax are saved.
        raised_saved = paravane_fast_raised_saved;
        /// Leaves for the host, which does the SYSCALL.
        raised_out = paravane_fast_raised_out;
        /// The handler of #BP.
        breakpoint = paravane_fast_breakpoint;
        /// From here on rax is saved.
        breakpoint_saved = paravane_fast_breakpoint_saved;
        /// Rax is back: the IRETQ.
        breakpoint_restored = paravane_fast_breakpoint_restored;
        /// Bytes of it.
        end = paravane_fast_gate_end;
    }
}

/// The code at CPL 3.
pub(super) fn ways_text() -> &'static [u8] {
    bytes(ways_start(), ways::end())
}

/// The code at CPL 0.
pub(super) fn gate_text() -> &'static [u8] {
    bytes(gate_start(), gate::end())
}

/// Where in the gate SYSCALL has arrived and has not reached the host or the kernel.
pub(super) fn raised() -> Range<u64> {
    gate::raised()..gate::breakpoint()
}

fn bytes(start: *const u8, len: u64) -> &'static [u8] {
    // SAFETY: both pieces are of the one block above and `len` bytes long; .rodata is never written or unmapped.
    unsafe { std::slice::from_raw_parts(start, len as usize) }
}
