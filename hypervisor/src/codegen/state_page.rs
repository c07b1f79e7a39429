//! The page that code of ours in the guest shares with the monitor: the virtual CPU's hot state, and scratch words.
//!
//! [`VirtualCpu`] is the truth while the monitor works. Before an entry it is published here, after an exit read back:
//! nowhere else. The guest's kernel can write this page, so that what is read back is a claim: each value is reduced to
//! what the kernel could have brought about by instructions.

use crate::exec::virtual_cpu::VirtualCpu;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr, PAGE_SIZE};
use crate::x86::rflags;

/// RFLAGS.IF as the kernel has set it: 0 or 0x200.
pub const INTERRUPTS: u64 = 0x00;
/// RFLAGS.IOPL in its place, less IF: what PUSHF adds to the hardware's flags, in which IF is set and IOPL is 0.
pub const IO_PRIVILEGE: u64 = 0x08;
/// IF's bit if an interrupt waits for the kernel to turn interrupts on, else 0.
pub const PENDING: u64 = 0x10;
/// CR0, CR2, CR3, CR4, CR8.
pub const CR0: u64 = 0x18;
#[allow(missing_docs)]
pub const CR2: u64 = 0x20;
#[allow(missing_docs)]
pub const CR3: u64 = 0x28;
#[allow(missing_docs)]
pub const CR4: u64 = 0x30;
#[allow(missing_docs)]
pub const CR8: u64 = 0x38;
/// The base that SWAPGS exchanges with GS.base.
pub const KERNEL_GS_BASE: u64 = 0x40;
/// GDTR and IDTR as SGDT and SIDT store them, each in 16 bytes.
pub const GDTR: u64 = 0x48;
#[allow(missing_docs)]
pub const IDTR: u64 = 0x58;
/// Selectors, each as a word of 8 bytes.
pub const LDT: u64 = 0x68;
#[allow(missing_docs)]
pub const TASK: u64 = 0x70;
/// ES, CS, SS, DS, FS, GS, as instructions number them.
pub const SELECTORS: u64 = 0x78;
/// A constant: the bits that no value for CR8 has.
pub const NOT_PRIORITY: u64 = 0xa8;
/// Bytes that are published before an entry.
const PUBLISHED: usize = 0xb0;

/// A slot for each general register, by its number: where a template leaves the guest's value.
pub const SLOTS: u64 = 0x100;
/// The target of an indirect transfer that is under way.
pub const TARGET: u64 = 0x180;
/// RFLAGS that POPF or IRETQ is about to load.
pub const FLAGS: u64 = 0x188;
/// RSP that IRETQ is about to load.
pub const NEW_RSP: u64 = 0x190;
/// The top of a stack for a call to the host. The word below it is the return address of that call.
pub const STACK_TOP: u64 = 0x240;
// From 0x280 on the page is the technique's own.

/// The slot of a register.
pub const fn slot(register: u8) -> u64 {
    SLOTS + 8 * (register & 15) as u64
}

/// A state page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatePage {
    at: Maddr,
}

impl StatePage {
    /// The one in the frame at `at`.
    pub fn new(at: Maddr) -> Self {
        Self { at }
    }

    fn address(self, offset: u64) -> Maddr {
        Maddr(self.at.0.saturating_add(offset % PAGE_SIZE))
    }

    /// A word of it.
    pub fn word(self, memory: &MachineMemory, offset: u64) -> u64 {
        // The frame exists: the layout has it.
        memory.load_u64(self.address(offset)).unwrap_or(0)
    }

    /// Sets a word of it.
    pub fn set_word(self, memory: &MachineMemory, offset: u64, value: u64) {
        let _: Result<(), BadMachineAddress> = memory.store_u64(self.address(offset), value);
    }

    /// Publishes the virtual CPU's state; `pending` says whether an interrupt waits for IF.
    pub fn publish(self, memory: &MachineMemory, cpu: &VirtualCpu, pending: bool) {
        let mut bytes = [0u8; PUBLISHED];
        let mut put = |offset: u64, value: u64| {
            let at = offset as usize;
            if let Some(word) = bytes.get_mut(at..at + 8) {
                word.copy_from_slice(&value.to_le_bytes());
            }
        };
        put(INTERRUPTS, if cpu.interrupts { rflags::IF } else { 0 });
        let io_privilege = u64::from(cpu.io_privilege) << rflags::IOPL_SHIFT;
        put(IO_PRIVILEGE, io_privilege.wrapping_sub(rflags::IF));
        put(PENDING, if pending { rflags::IF } else { 0 });
        for (offset, value) in
            [(CR0, cpu.cr0), (CR2, cpu.cr2), (CR3, cpu.cr3), (CR4, cpu.cr4), (CR8, cpu.cr8)]
        {
            put(offset, value);
        }
        put(KERNEL_GS_BASE, cpu.kernel_gs_base);
        for (offset, table) in [(GDTR, cpu.gdt), (IDTR, cpu.idt)] {
            put(offset, table.base << 16 | u64::from(table.limit));
            put(offset + 8, table.base >> 48);
        }
        put(LDT, cpu.ldt.selector.into());
        put(TASK, cpu.task.selector.into());
        let s = cpu.selectors;
        for (number, selector) in (0..).zip([s.es, s.cs, s.ss, s.ds, s.fs, s.gs]) {
            put(SELECTORS + 8 * number, selector.into());
        }
        put(NOT_PRIORITY, !0xf);
        let _: Result<(), BadMachineAddress> = memory.write(self.at, &bytes);
    }

    /// Takes over what templates may have changed.
    pub fn read_back(self, memory: &MachineMemory, cpu: &mut VirtualCpu) {
        cpu.interrupts = self.word(memory, INTERRUPTS) & rflags::IF != 0;
        let io_privilege = self.word(memory, IO_PRIVILEGE).wrapping_add(rflags::IF);
        cpu.io_privilege = (io_privilege >> rflags::IOPL_SHIFT & 3) as u8;
        cpu.cr8 = self.word(memory, CR8) & 0xf;
        cpu.kernel_gs_base = canonical(self.word(memory, KERNEL_GS_BASE));
    }
}

/// The address with bits 63:48 as bit 47 has them.
pub(crate) fn canonical(address: u64) -> u64 {
    (address.cast_signed() << 16 >> 16).cast_unsigned()
}
