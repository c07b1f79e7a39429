//! The machine code that every random kernel has, and how instructions are encoded.

use paravane_abi::grant::{GNTTABOP_SETUP_TABLE, GnttabSetupTable};
use paravane_abi::hypercall as nr;
use paravane_abi::mmu::{MMUEXT_NEW_USER_BASEPTR, MmuextOp, UVMF_INVLPG};
use paravane_abi::start_info::StartInfo;
use paravane_abi::{domid, pte, sched, segment, trap};
use zerocopy::IntoBytes;

use super::*;

/// `mov REG, value`, by the register's number in the encoding.
pub(super) fn load(register: u8, value: u64) -> Vec<u8> {
    let prefix = if register < 8 { 0x48 } else { 0x49 };
    [&[prefix, 0xb8 | register & 7][..], &value.to_le_bytes()].concat()
}

/// An address in the image as instructions encode it: 32 bits, sign-extended.
pub(super) fn short(offset: u64) -> [u8; 4] {
    u32::try_from(ENTRY + offset).expect("the image is below 2 GiB").to_le_bytes()
}

// Register numbers in instruction encodings (SDM vol. 2, table 2-2).
pub(super) const RAX: u8 = 0;
pub(super) const RCX: u8 = 1;
pub(super) const RDX: u8 = 2;
pub(super) const RBX: u8 = 3;
pub(super) const RSP: u8 = 4;
pub(super) const RSI: u8 = 6;
pub(super) const RDI: u8 = 7;
pub(super) const R8: u8 = 8;
pub(super) const R9: u8 = 9;
pub(super) const R10: u8 = 10;
pub(super) const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// The argument of `GNTTABOP_setup_table`: one frame, whose number is stored right behind the structure.
pub(super) fn setup_table() -> Vec<u8> {
    let setup = GnttabSetupTable {
        dom: domid::DOMID_SELF,
        nr_frames: 1,
        frame_list: ENTRY + SETUP + 0x40,
        ..GnttabSetupTable::default()
    };
    setup.as_bytes().to_vec()
}

/// Registers the handlers, makes the kernel's root table the user root too, grants a few pages, and jumps to the first
/// step.
pub(super) fn prologue(frame_base: u64, grant_table: u64) -> Vec<u8> {
    let [pt_base] =
        [std::mem::offset_of!(StartInfo, pt_base)].map(|at| u8::try_from(at).expect("a short way"));
    let [argument] = [std::mem::offset_of!(MmuextOp, arg1)].map(|at| u8::try_from(at).expect("a short way"));
    let start = [
        load(RSP, ENTRY + STACK),
        // mov rax, [rsi + pt_base]; shr rax, 12; add rax, rbx: the root's frame
        vec![0x48, 0x8b, 0x46, pt_base],
        load(RBX, frame_base.wrapping_sub(VIRT_BASE >> 12)),
        vec![0x48, 0xc1, 0xe8, 12, 0x48, 0x01, 0xd8],
        // mov rdi, ROOT; mov [rdi + arg1], rax; mov dword ptr [rdi], NEW_USER_BASEPTR
        load(RDI, ENTRY + ROOT),
        vec![0x48, 0x89, 0x47, argument, 0xc7, 0x07, MMUEXT_NEW_USER_BASEPTR as u8, 0, 0, 0],
        load(RSI, 1),
        load(RDX, 0),
        load(R10, domid::DOMID_SELF.into()),
        load(RAX, nr::MMUEXT_OP),
        SYSCALL.to_vec(),
        load(RAX, nr::SET_TRAP_TABLE),
        load(RDI, ENTRY + TRAPS),
        SYSCALL.to_vec(),
        load(RAX, nr::SET_CALLBACKS),
        load(RDI, ENTRY + PLAIN),
        load(RSI, ENTRY + FAILSAFE),
        load(RDX, ENTRY + PLAIN),
        SYSCALL.to_vec(),
        load(RAX, nr::STACK_SWITCH),
        load(RSI, ENTRY + STACK),
        SYSCALL.to_vec(),
        load(RAX, nr::GRANT_TABLE_OP),
        load(RDI, GNTTABOP_SETUP_TABLE.into()),
        load(RSI, ENTRY + SETUP),
        load(RDX, 1),
        SYSCALL.to_vec(),
        load(RAX, nr::UPDATE_VA_MAPPING),
        load(RDI, GRANT_TABLE),
        load(RSI, pte::make(grant_table, 0x67)),
        load(RDX, UVMF_INVLPG),
        SYSCALL.to_vec(),
        load(RDI, GRANT_TABLE),
        load(RSI, ENTRY + GRANTS),
        load(RCX, GRANT_ENTRIES),
        // rep movsq
        vec![0xf3, 0x48, 0xa5],
    ]
    .concat();
    let jump = u32::try_from(FIRST as usize - start.len() - 5).expect("forwards").to_le_bytes();
    [&start[..], &[0xe9], &jump].concat()
}

/// A handler whose frame has `words` words between r11 and rip. It returns to the next step, in kernel mode and on the
/// kernel's stack.
pub(super) fn handler(words: u8) -> Vec<u8> {
    [
        // pop rcx; pop r11; add rsp, 8 * words; mov rax, [NEXT]
        &[0x59, 0x41, 0x5b, 0x48, 0x83, 0xc4, 8 * words, 0x48, 0x8b, 0x04, 0x25][..],
        &short(NEXT),
        // mov [rsp], rax; mov qword ptr [rsp + 24], STACK
        &[0x48, 0x89, 0x04, 0x24, 0x48, 0xc7, 0x44, 0x24, 0x18],
        &short(STACK),
        // mov word ptr [rsp + 8], 0xe030; mov word ptr [rsp + 32], 0xe02b: the kernel's selectors, in either mode
        &[0x66, 0xc7, 0x44, 0x24, 0x08, 0x30, 0xe0, 0x66, 0xc7, 0x44, 0x24, 0x20, 0x2b, 0xe0],
        // mov qword ptr [rsp + 16], 2: events stay masked, or a pending one would be delivered for ever
        &[0x48, 0xc7, 0x44, 0x24, 0x10, 0x02, 0x00, 0x00, 0x00],
        // push 0; push rcx; push r11; push rax; mov eax, iret
        &[0x6a, 0x00, 0x51, 0x41, 0x53, 0x50, 0xb8, nr::IRET as u8, 0, 0, 0],
        &SYSCALL,
    ]
    .concat()
}

pub(super) fn trap_table() -> Vec<u8> {
    let entry = |vector: u8| {
        let with_error = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
        let at = ENTRY + if with_error { WITH_ERROR } else { PLAIN };
        let [low, high] = segment::FLAT_KERNEL_CS.to_le_bytes();
        [&[vector, 3 | trap::TI_IF, low, high, 0, 0, 0, 0][..], &at.to_le_bytes()].concat()
    };
    let end = vec![0; 16];
    (0..32).chain(0x80..0x82).map(entry).chain([end]).flatten().collect()
}

/// `SCHEDOP_shutdown` with reason 0.
pub(super) fn power_off() -> Vec<u8> {
    let stack = load(RSP, ENTRY + STACK);
    // push 0; mov rsi, rsp
    let reason = vec![0x6a, sched::SHUTDOWN_POWEROFF as u8, 0x48, 0x89, 0xe6];
    let call =
        [load(RAX, nr::SCHED_OP), load(RDI, sched::SCHEDOP_SHUTDOWN.into()), SYSCALL.to_vec()].concat();
    [stack, reason, call, vec![0x0f, 0x0b]].concat()
}
