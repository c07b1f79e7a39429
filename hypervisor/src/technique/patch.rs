//! Patching: trap-and-emulate, but for the instructions that have trapped once. Each is replaced by a jump to a stub,
//! which does what it does without leaving the guest, or calls the host. The patches are in [`crate::patch`].

use super::bare::BareDomain;
use super::method::{Guest, Left, Method};
use super::{Domain, EngineNeed, MakeError, Parts, Technique, on_any_host};
use crate::bare::platform::virtio_mmio::VirtioMmio;
use crate::engine::Exit;
use crate::image::{GuestKind, symbols};
use crate::ledger::{Cause, Work};
use crate::machine::layout::OwnCode;
use crate::machine::memory::Mfn;
use crate::mmu::shadow;
use crate::patch::install::{Patcher, is_callout};
use crate::patch::kernel::Kernel;
use crate::x86::exception::{Fault, vector};
use crate::x86::rflags;
use crate::x86::sensitive::Class;

/// Frames for stubs: the reference kernel's take some 40. What is not used is never touched.
const CODE_FRAMES: u64 = 512;

/// The row of the table.
pub(super) const TECHNIQUE: Technique = Technique {
    name: "patch",
    about: "patching: an instruction that trapped once is replaced by a jump to a stub",
    runs: GuestKind::Bare,
    engine: EngineNeed::Deprivileged,
    max_vcpus: 1,
    available: on_any_host,
    shadow_frames: shadow::frames_for,
    own_code: OwnCode { state: 1, code: CODE_FRAMES },
    own_frames: |layout| (layout.m2p.end - layout.m2p.start).div_ceil(512),
    device_parameters: |count| (count != 0).then(|| VirtioMmio::parameters(count)),
    undebuggable: Some("it replaces the kernel's instructions by jumps to code of its own"),
    make,
    restore: None,
};

fn make(parts: Parts<'_>) -> Result<Box<dyn Domain>, MakeError> {
    let hypercall = parts.machine.hypercall_stub(0);
    let functions = symbols::functions(parts.image.elf());
    let patcher =
        Patcher::new(parts.layout.code.clone(), Mfn(parts.layout.state.start), hypercall, functions);
    BareDomain::make(parts, Patched { patcher })
}

/// The method.
struct Patched {
    patcher: Patcher,
}

/// The guest, and whether an interrupt waits for it.
fn kernel<'a>(guest: &'a mut Guest<'_>) -> (Kernel<'a>, bool) {
    let (cpu, shadow, waits) = guest.machine.hot_parts();
    let Guest { regs, memory, log, space, ledger, .. } = guest;
    (Kernel { cpu, shadow, regs, memory, log, space, ledger }, waits)
}

impl Method for Patched {
    const NOTICES_STI: bool = false;

    fn before_entry(&mut self, guest: &mut Guest<'_>) {
        let (mut k, waits) = kernel(guest);
        self.patcher.refresh(&mut k);
        if k.cpu.user {
            return;
        }
        let steps = k.regs.rflags & rflags::TF != 0;
        self.patcher.suspend(&mut k, steps);
        if !steps && let Some(stub) = self.patcher.entry(&k, k.regs.rip) {
            k.regs.rip = stub;
        }
        self.patcher.publish(&k, waits);
    }

    fn after_exit(&mut self, exit: Exit, guest: &mut Guest<'_>) -> Left {
        let (mut k, _) = kernel(guest);
        if k.cpu.user {
            return self.of_program(exit, &mut k);
        }
        if let Some(recipe) = self.patcher.make_whole(&mut k) {
            return match exit {
                Exit::Fault(fault) if fault.vector == vector::PAGE => Left::Exit(exit),
                // The kernel single-steps: it must not see our instructions. They go, and it tries again.
                Exit::Fault(fault) if fault.vector == vector::DEBUG => {
                    self.patcher.suspend(&mut k, true);
                    Left::Own(Cause::PatchEntry)
                }
                Exit::Fault(_) | Exit::Hypercall | Exit::Syscall if is_callout(&recipe) => {
                    k.ledger.work(Work::Callouts, 1);
                    Left::Callout
                }
                exit => Left::Exit(exit),
            };
        }
        match exit {
            Exit::Fault(fault) if fault.vector == vector::PAGE => self.fetch(exit, fault, &mut k),
            Exit::Fault(fault) => self.trap(exit, fault, &mut k),
            exit => Left::Exit(exit),
        }
    }
}

impl Patched {
    /// An exit of the kernel's own code by an exception.
    fn trap(&mut self, exit: Exit, fault: Fault, k: &mut Kernel<'_>) -> Left {
        if self.patcher.is_suspended() || !may_be_privileged(fault) {
            return Left::Exit(exit);
        }
        if self.patcher.entry(k, k.regs.rip).is_some() {
            self.patcher.jumped_into(k, k.regs.rip);
            return Left::Own(Cause::PatchEntry);
        }
        if k.instruction(k.regs.rip).is_some_and(|insn| Class::of(&insn).is_some()) {
            self.patcher.trapped(k);
        }
        Left::Exit(exit)
    }

    /// A page fault of the kernel's own code: perhaps a jump of ours that was executed where it does not lead to a
    /// stub.
    fn fetch(&mut self, exit: Exit, fault: Fault, k: &mut Kernel<'_>) -> Left {
        if fault.address != k.regs.rip {
            return Left::Exit(exit);
        }
        match self.patcher.strayed(k, k.regs.rip) {
            Some(jump) if self.patcher.withdraw(k, jump) => {
                k.regs.rip = jump;
                Left::Own(Cause::PatchEntry)
            }
            _ => Left::Exit(exit),
        }
    }

    /// An exit of a user program. It may execute the kernel's pages, but it cannot see stubs.
    fn of_program(&mut self, exit: Exit, k: &mut Kernel<'_>) -> Left {
        let Exit::Fault(fault) = exit else { return Left::Exit(exit) };
        let rip = k.regs.rip;
        let jump = match fault.vector {
            vector::PAGE if fault.address == rip && self.patcher.is_stub(rip) => self.patcher.jump_to(rip),
            vector::PAGE if fault.address == rip => self.patcher.strayed(k, rip),
            _ if may_be_privileged(fault) && self.patcher.entry(k, rip).is_some() => Some(rip),
            _ => None,
        };
        match jump {
            Some(jump) if self.patcher.withdraw(k, jump) => {
                k.regs.rip = jump;
                Left::Own(Cause::PatchEntry)
            }
            _ => Left::Exit(exit),
        }
    }
}

const fn may_be_privileged(fault: Fault) -> bool {
    matches!(fault.vector, vector::UNDEFINED | vector::NOT_PRESENT..=vector::PROTECTION)
}
