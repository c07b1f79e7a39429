//! What a stop of a virtual CPU meant: which way out the guest took, and with which registers.
//!
//! Runs on the vCPU's thread, on the way out of the guest: see `cpu`.

use super::context::{from_kvm, read_frame};
use super::cpu::{KvmCpu, Stop};
use super::{gate, port, tables};
use crate::engine::Exit;
use crate::machine::memory::{MachineMemory, Maddr};
use crate::mmu::space::VcpuSpace;
use crate::x86::registers::Regs;

impl KvmCpu {
    /// What a stop means, which is none of the fast paths'.
    pub(super) fn exit_of(
        &mut self,
        stop: Stop,
        regs: &mut Regs,
        space: &VcpuSpace,
        memory: &MachineMemory,
    ) -> Exit {
        match stop {
            Stop::Gate => {
                self.to_apply = false;
                self.decode(regs, space, memory)
            }
            Stop::Input => {
                self.to_apply = false;
                let shared = self.vcpu.sync_regs();
                from_kvm(&shared.regs, &shared.sregs, self.features.gdt, regs);
                self.swallow_input(memory).map_or_else(Exit::Dead, |()| port::REFUSED)
            }
            Stop::Call => {
                self.to_apply = false;
                self.decode_call(regs, memory)
            }
            Stop::Interrupted | Stop::Halfway => {
                let shared = self.vcpu.sync_regs();
                // On the gate's way back the guest has not moved: its registers and the work list stand, and the
                // next entry stores the same values again.
                if shared.sregs.cs.dpl == 3 {
                    self.to_apply = false;
                    from_kvm(&shared.regs, &shared.sregs, self.features.gdt, regs);
                } else if !self.gate.goes_back(shared.regs.rip) {
                    return Exit::Dead("interrupted at an unknown place in ring 0");
                }
                Exit::Kick
            }
            Stop::Dead(why) => Exit::Dead(why),
        }
    }

    /// What an `OUT` to the exit port meant, which follows from its address.
    fn decode(&mut self, regs: &mut Regs, space: &VcpuSpace, memory: &MachineMemory) -> Exit {
        let shared = self.vcpu.sync_regs();
        let rip = shared.regs.rip;
        from_kvm(&shared.regs, &shared.sregs, self.features.gdt, regs);
        if let Some(exit) = self.undo_out(regs, space, memory) {
            return exit;
        }
        let user = self.is_in_user(space);
        let shared = self.vcpu.sync_regs();
        if rip == tables::SYSCALL_VA + gate::OUT_LEN {
            regs.rip = regs.rcx;
            regs.rflags = regs.r11;
            regs.selectors.flatten();
            return Exit::Syscall;
        }
        if shared.sregs.cs.dpl == 3 {
            if !user && port::is_by_the_page(regs) {
                return Exit::Hypercall;
            }
            let root = Maddr(shared.sregs.cr3).mfn();
            return self.other_output(regs, root, user, memory);
        }
        let stub = rip.wrapping_sub(self.gate.va(tables::TEXT_VA) + gate::OUT_LEN);
        match u8::try_from(stub / gate::VECTOR_STRIDE) {
            Ok(vector @ 0..32) if stub.is_multiple_of(gate::VECTOR_STRIDE) => {
                let (rsp, cr2) = (shared.regs.rsp, shared.sregs.cr2);
                let exit = read_frame((vector, rsp), (cr2, self.features.gdt), regs, memory, &self.gate);
                self.undo_fault(regs, space, memory).unwrap_or(exit)
            }
            _ => Exit::Dead("an exit from an unknown place in ring 0"),
        }
    }

    /// The gate's VMCALL: a SYSCALL, whose rax, rbx and rcx are where the gate put them.
    fn decode_call(&mut self, regs: &mut Regs, memory: &MachineMemory) -> Exit {
        let shared = self.vcpu.sync_regs();
        self.call = Some(shared.regs.rip);
        from_kvm(&shared.regs, &shared.sregs, self.features.gdt, regs);
        regs.selectors.flatten();
        let Ok([rax, rbx, rcx]) = memory.read_obj::<[u64; 3]>(self.gate.scratch()) else {
            return Exit::Dead("the gate's scratch words are not in memory");
        };
        *regs = Regs { rax, rbx, rcx, rip: rcx, rflags: regs.r11, ..*regs };
        Exit::Syscall
    }
}
