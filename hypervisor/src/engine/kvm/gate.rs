//! The ring-0 gate: all the code that ever runs at CPL 0 inside the VM.
//!
//! It turns every exception and SYSCALL into an exit to the host and, on the way back, stores page-table entries again
//! that the host changed. It decides nothing: the host chooses every branch. It is position independent, uses no SSE,
//! and stays short: on a KVM without hardware support each of its instructions is interpreted (about 350 ns).
//!
//! Why it stores at all: a KVM with shadow paging does not notice that *host userspace* wrote a page table.
//! It does notice a store by the guest, even of the value that is already there (see docs/coherence.md).

use std::arch::global_asm;

/// The I/O port whose OUT leaves the guest.
///
/// KVM advances RIP past an `OUT` to port 0x7e *before* it exits (KVM_X86_QUIRK_OUT_7E_INC_RIP, on by
/// default), and past one to any other port when the vCPU is entered again, where it would race with a RIP
/// that we have set.
pub const EXIT_PORT: u8 = 0x7e;
/// Bytes of an `OUT imm8, AL`.
pub const OUT_LEN: u64 = 2;
/// Distance between two vector stubs.
pub const VECTOR_STRIDE: u64 = 4;
/// KVM_HC_MAP_GPA_RANGE: the one hypercall that KVM may leave to user space.
pub const MAP_GPA_RANGE: u32 = 12;
/// From the supervisor text to where the entry of the `vmcall` transport leaves rax, rbx and rcx (see `tables`).
pub const SCRATCH_OFFSET: u64 = 0x1_0000;

/// What the host answers a VMCALL with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Answer {
    /// Go back to the guest.
    Return = 0,
    /// Apply the work list first.
    Apply = 1,
    /// Apply it beside others first.
    ApplyShared = 2,
}

global_asm!(
    r#"
    .pushsection .rodata.paravane_gate, "a", @progbits
    .balign 16
    .globl paravane_gate_syscall
    .hidden paravane_gate_syscall
paravane_gate_syscall:
    out {port}, al
    hlt
    .globl paravane_gate_syscall_end
    .hidden paravane_gate_syscall_end
paravane_gate_syscall_end:

    .balign 16
    .globl paravane_gate_text
    .hidden paravane_gate_text
paravane_gate_text:
.Lparavane_gate_text:
    /* One stub for each exception vector: the host reads the frame that the CPU pushed. */
    .rept 32
    .balign {stride}
    out {port}, al
    hlt
    .endr

    /*
     * Where SYSCALL arrives on the `vmcall` transport, at CPL 0 with the guest's stack. The host finds rax, rbx and
     * rcx where they are left here; the call always has the form that KVM hands to user space. Two forms of
     * one instruction: KVM would patch the wrong one, in text that nobody may write.
     */
    .macro paravane_call_host name, instruction
    .balign 16
    .globl paravane_gate_\name
    .hidden paravane_gate_\name
paravane_gate_\name:
    mov [rip + .Lparavane_gate_text + {scratch}], rax
    mov [rip + .Lparavane_gate_text + {scratch} + 8], rbx
    mov [rip + .Lparavane_gate_text + {scratch} + 16], rcx
    mov eax, {map_gpa_range}
    xor ebx, ebx
    mov ecx, 1
    .globl paravane_gate_\name\()_call
    .hidden paravane_gate_\name\()_call
paravane_gate_\name\()_call:
    \instruction
    jmp .Lparavane_answered
    .endm
    paravane_call_host vmcall, vmcall
    paravane_call_host vmmcall, vmmcall

    /* Answered: 0, 1 and 2 are the host's own; anything else is a refusal by KVM, and the end. */
.Lparavane_answered:
    cmp rax, 1
    jb .Lparavane_return
    je paravane_gate_apply
    cmp rax, 2
    je paravane_gate_apply_shared
    out {port}, al
    hlt

    /*
     * The same two lists for tables that other processors and the host's threads use meanwhile: what is stored again is
     * what is there, in one access, so that no accessed or dirty bit and no change of the host's is undone.
     */
    .macro paravane_apply_shared
    lodsq
    xchg rcx, rax
    jrcxz 2f
1:  lodsq
    lock or byte ptr [rax], 0
    loop 1b
2:  lodsq
    xchg rcx, rax
    jrcxz 4f
3:  lodsq
    lock or qword ptr [rax], 0
    loop 3b
4:  mov rax, cr3
    mov cr3, rax
    .endm

    /* An errand: apply, and back to the host. */
    .balign 16
    .globl paravane_gate_errand
    .hidden paravane_gate_errand
paravane_gate_errand:
    paravane_apply_shared
    .globl paravane_gate_errand_out
    .hidden paravane_gate_errand_out
paravane_gate_errand_out:
    out {port}, al
    hlt

    /* Apply beside others, and on to the guest. */
    .balign 16
    .globl paravane_gate_apply_shared
    .hidden paravane_gate_apply_shared
paravane_gate_apply_shared:
    paravane_apply_shared
    jmp .Lparavane_return

    /*
     * Apply: rsi = work list. First the tables whose every cached translation must go: a one-byte store to
     * the address in the list, which the host puts inside an entry. Then single entries. Then what the TLB
     * may hold. Then the guest's registers and context, from the stack.
     */
    .balign 16
    .globl paravane_gate_apply
    .hidden paravane_gate_apply
paravane_gate_apply:
    lodsq
    xchg rcx, rax
    jrcxz 2f
1:  lodsq
    mov dl, [rax]
    mov [rax], dl
    loop 1b
2:  lodsq
    xchg rcx, rax
    jrcxz 4f
3:  lodsq
    mov rdx, [rax]
    mov [rax], rdx
    loop 3b
4:  mov rax, cr3
    mov cr3, rax
.Lparavane_return:
    pop rax
    pop rdx
    pop rcx
    pop rsi
    .globl paravane_gate_iretq
    .hidden paravane_gate_iretq
paravane_gate_iretq:
    iretq
    .globl paravane_gate_text_end
    .hidden paravane_gate_text_end
paravane_gate_text_end:
    .popsection
    "#,
    port = const EXIT_PORT,
    stride = const VECTOR_STRIDE,
    scratch = const SCRATCH_OFFSET,
    map_gpa_range = const MAP_GPA_RANGE,
);

// SAFETY: labels of the assembly above, of which only the addresses are taken.
unsafe extern "C" {
    static paravane_gate_syscall: u8;
    static paravane_gate_syscall_end: u8;
    static paravane_gate_text: u8;
    static paravane_gate_vmcall: u8;
    static paravane_gate_vmcall_call: u8;
    static paravane_gate_vmmcall: u8;
    static paravane_gate_vmmcall_call: u8;
    static paravane_gate_errand: u8;
    static paravane_gate_errand_out: u8;
    static paravane_gate_apply_shared: u8;
    static paravane_gate_apply: u8;
    static paravane_gate_iretq: u8;
    static paravane_gate_text_end: u8;
}

/// The code behind SYSCALL on the `pio` transport: readable and executable at CPL 3, because a software KVM does not
/// raise the privilege level on SYSCALL. A guest that jumps here has, in effect, executed SYSCALL.
pub fn syscall_text() -> &'static [u8] {
    between(&raw const paravane_gate_syscall, &raw const paravane_gate_syscall_end)
}

/// The supervisor-only code: vector stubs, the entries of the `vmcall` transport, `apply`.
pub fn supervisor_text() -> &'static [u8] {
    between(&raw const paravane_gate_text, &raw const paravane_gate_text_end)
}

/// Offset of `apply` in [`supervisor_text`].
pub fn apply_offset() -> u64 {
    offset_of(&raw const paravane_gate_apply)
}

/// Offset of `apply` for tables that others use at the same time.
pub fn apply_shared_offset() -> u64 {
    offset_of(&raw const paravane_gate_apply_shared)
}

/// Offset of the errand, which applies a list and leaves for the host.
pub fn errand_offset() -> u64 {
    offset_of(&raw const paravane_gate_errand)
}

/// Offset of the instruction by which the errand leaves.
pub fn errand_out_offset() -> u64 {
    offset_of(&raw const paravane_gate_errand_out)
}

/// Offset in [`supervisor_text`] of the IRETQ that goes back to the guest.
pub fn iretq_offset() -> u64 {
    offset_of(&raw const paravane_gate_iretq)
}

/// Offsets in [`supervisor_text`] of where SYSCALL arrives on the `vmcall` transport, and of the instruction
/// that leaves: VMMCALL on AMD's processors and their kin, VMCALL on all others.
pub fn call_offsets(amd: bool) -> (u64, u64) {
    if amd {
        (offset_of(&raw const paravane_gate_vmmcall), offset_of(&raw const paravane_gate_vmmcall_call))
    } else {
        (offset_of(&raw const paravane_gate_vmcall), offset_of(&raw const paravane_gate_vmcall_call))
    }
}

fn offset_of(label: *const u8) -> u64 {
    (label as usize - &raw const paravane_gate_text as usize) as u64
}

fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: both are labels of the one block above, `start` first; .rodata is never written or unmapped.
    unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_is_as_small_as_promised() {
        assert_eq!(syscall_text()[..2], [0xe6, EXIT_PORT]);
        assert!(supervisor_text().len() < 512, "{} bytes", supervisor_text().len());
        for vector in 0..32 {
            let at = vector * VECTOR_STRIDE as usize;
            assert_eq!(supervisor_text()[at..at + 2], [0xe6, EXIT_PORT], "vector {vector}");
        }
        assert!(apply_offset() >= 32 * VECTOR_STRIDE);
    }

    #[test]
    fn each_vendor_has_its_instruction() {
        for (amd, instruction) in [(false, [0x0f, 0x01, 0xc1]), (true, [0x0f, 0x01, 0xd9])] {
            let (entry, call) = call_offsets(amd);
            assert!(entry < call && entry >= 32 * VECTOR_STRIDE);
            assert_eq!(supervisor_text()[call as usize..][..3], instruction);
        }
    }

    /// The first stores of the entry go to the scratch words and nowhere else.
    #[test]
    fn the_entry_saves_where_the_host_reads() {
        for amd in [false, true] {
            let (entry, _) = call_offsets(amd);
            for n in 0..3 {
                // mov [rip + disp32], r64: three bytes, then the displacement from the next instruction.
                let at = entry + n * 7;
                let bytes = &supervisor_text()[at as usize + 3..][..4];
                let displacement = i32::from_le_bytes(bytes.try_into().unwrap());
                assert_eq!((at + 7).wrapping_add_signed(displacement.into()), SCRATCH_OFFSET + n * 8);
            }
        }
    }
}
