//! Accesses to the exit port that are not hypercalls: each becomes a #GP in the guest.
//!
//! The `pio` transport opens one port to code at CPL 3, in both directions and for string instructions as well. Only
//! the hypercall page's `OUT`, and the one at which SYSCALL arrives, mean anything. Everything else must look as if
//! the port were closed. KVM stops in the middle of an input, which it completes when the vCPU is entered again, and
//! behind an output: here the one is completed where it does no harm, and the other is taken back.
//!
//! On a KVM in hardware the port is closed to user programs, so that none of this is needed for them. A software KVM
//! does not raise the privilege level on SYSCALL: its port is open to user programs too.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, Register};
use kvm_bindings::kvm_vcpu_events;
use kvm_ioctls::SyncReg;

use super::cpu::KvmCpu;
use super::gate;
use crate::engine::Exit;
use crate::machine::memory::{MachineMemory, Mfn};
use crate::x86::decode::MAX_LENGTH;
use crate::x86::exception::{Fault, vector};
use crate::x86::registers::Regs;
use crate::x86::rflags::DF;
use crate::x86::walk::{Access, MachineTables, walk_for};

/// The fault that the guest gets for an access that it may not make.
pub(super) const REFUSED: Exit = Exit::Fault(Fault { vector: vector::PROTECTION, error_code: 0, address: 0 });

/// `OUT imm8, AL` to the exit port.
const OUT: [u8; 2] = [0xe6, gate::EXIT_PORT];

/// Whether an `OUT` that ended at `rip` may be taken for the hypercall page's without a look: it lies where the entry
/// of the number in rax has it (see `transport::hypercall_stub`).
pub(super) fn is_by_the_page(regs: &Regs) -> bool {
    const PLAIN: u64 = 5 + gate::OUT_LEN;
    const IRET: u64 = 4 + PLAIN;
    let (entry, offset) = (regs.rip >> 5 & 127, regs.rip & 31);
    regs.rax == entry && (offset == PLAIN || offset == IRET)
}

/// Code of a guest, by its own page tables.
struct Code<'a> {
    memory: &'a MachineMemory,
    root: Mfn,
    /// 64, or 32 in compatibility mode.
    bits: u32,
}

impl Code<'_> {
    fn byte(&self, va: u64) -> Option<u8> {
        let access = Access { write: false, user: true, fetch: true };
        let found = walk_for(self.memory, &MachineTables, self.root.maddr().0, va, access).ok()?;
        self.memory.read_obj(found.maddr?).ok()
    }

    /// The instruction of exactly `length` bytes at `va`, if it is an output to the exit port.
    fn output(&self, va: u64, length: u64, regs: &Regs) -> Option<Instruction> {
        let mut bytes = [0; MAX_LENGTH];
        let mut have = 0;
        for (slot, at) in bytes.iter_mut().take(length as usize).zip(va..) {
            *slot = self.byte(at)?;
            have += 1;
        }
        let insn = Decoder::with_ip(self.bits, bytes.get(..have)?, va, DecoderOptions::NONE).decode();
        let port = match insn.mnemonic() {
            Mnemonic::Out if insn.op0_register() == Register::DX => regs.rdx as u16,
            Mnemonic::Out => u16::from(insn.immediate8()),
            Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => regs.rdx as u16,
            _ => return None,
        };
        (insn.len() as u64 == length && port == u16::from(gate::EXIT_PORT)).then_some(insn)
    }

    /// The repeated output at RIP: KVM stops for each element, and goes on behind the last one only when it finds that
    /// there is none left.
    fn repeated(&self, regs: &Regs) -> Option<Instruction> {
        (1..=MAX_LENGTH as u64).find_map(|length| self.output(regs.rip, length, regs)).filter(repeats)
    }

    /// The output that ends at RIP, without prefixes: they may as well be the end of what comes before.
    fn single(&self, regs: &Regs) -> Option<Instruction> {
        (1..=MAX_LENGTH as u64).find_map(|length| self.output(regs.rip.wrapping_sub(length), length, regs))
    }
}

fn is_string(insn: &Instruction) -> bool {
    insn.mnemonic() != Mnemonic::Out
}

fn repeats(insn: &Instruction) -> bool {
    insn.has_rep_prefix() || insn.has_repne_prefix()
}

/// Takes back an output of `count` elements, of `bytes` bytes in all.
fn take_back(regs: &mut Regs, insn: &Instruction, count: u64, bytes: u64) {
    regs.rip = insn.ip();
    if !is_string(insn) {
        return;
    }
    let forwards = regs.rflags & DF == 0;
    regs.rsi = if forwards { regs.rsi.wrapping_sub(bytes) } else { regs.rsi.wrapping_add(bytes) };
    if repeats(insn) {
        regs.rcx = regs.rcx.wrapping_add(count);
    }
}

impl KvmCpu {
    /// What an `OUT` to the exit port was, at CPL 3 and elsewhere than where SYSCALL arrives: a hypercall, or nothing
    /// that the guest may do. `regs` are as KVM left them, behind it.
    ///
    /// Which instruction it was is found by looking backwards. Code that goes out of its way to mislead that gets its
    /// fault at another instruction of its own.
    #[cold]
    pub(super) fn other_output(
        &mut self,
        regs: &mut Regs,
        root: Mfn,
        user: bool,
        memory: &MachineMemory,
    ) -> Exit {
        let bits = if self.vcpu.sync_regs().sregs.cs.l == 1 { 64 } else { 32 };
        let code = Code { memory, root, bits };
        let last = [2, 1].map(|back| code.byte(regs.rip.wrapping_sub(back)));
        if !user && last == OUT.map(Some) {
            return Exit::Hypercall;
        }
        // SAFETY: KVM fills `io` where the exit is KVM_EXIT_IO, as this one is.
        let io = unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.io };
        let (count, size) = (u64::from(io.count), u64::from(io.size));
        if let Some(insn) = code.repeated(regs).or_else(|| code.single(regs)) {
            take_back(regs, &insn, count, count * size);
        }
        REFUSED
    }

    /// Has KVM complete an input from the exit port, without effect: what it does to the registers is not looked at,
    /// and what it would store it finds no place for, in an address space without a page of the guest's.
    #[cold]
    pub(super) fn swallow_input(&mut self, memory: &MachineMemory) -> Result<(), &'static str> {
        const LOST: &str = "KVM did not complete an input from a port";
        let root = self.gate.empty_root(memory).map_err(|_| LOST)?;
        self.vcpu.sync_regs_mut().sregs.cr3 = root.maddr().0;
        self.vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
        // "Pending operations are completed" before that is looked at (KVM API documentation, 5, "immediate_exit").
        self.vcpu.set_kvm_immediate_exit(1);
        let completed = match self.vcpu.run() {
            Err(error) => error.errno() == libc::EINTR,
            Ok(exit) => matches!(exit, kvm_ioctls::VcpuExit::Intr),
        };
        self.clear_dirty();
        // A kick that came meanwhile is not told from our own.
        self.vcpu.set_kvm_immediate_exit(0);
        self.kick.answered();
        self.kick_owed = true;
        // The page fault of a store, which nobody is to see. What is loaded next is loaded with this.
        self.vcpu.sync_regs_mut().events.exception = kvm_vcpu_events::default().exception;
        self.vcpu.set_sync_dirty_reg(SyncReg::VcpuEvents);
        if completed { Ok(()) } else { Err(LOST) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_s_own_outputs_are_known_by_where_they_are() {
        let at = |rip, rax| is_by_the_page(&Regs { rip, rax, ..Regs::default() });
        assert!(at(0x1000 + 17 * 32 + 7, 17) && at(0x1000 + 23 * 32 + 11, 23));
        assert!(!at(0x1000 + 17 * 32 + 7, 18) && !at(0x1000 + 17 * 32 + 8, 17));
    }
}
