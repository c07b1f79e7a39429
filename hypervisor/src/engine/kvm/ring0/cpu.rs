//! A virtual CPU whose kernel runs at CPL 0.
//!
//! Registers travel in the shared page, one way or both: an exit costs one system call. What may not be done here:
//! allocating, logging or waiting on the way in or out.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd, VmFd};

use super::super::context::{general_from_kvm, general_to_kvm};
use super::super::kick::KvmKick;
use super::super::{state, stats};
use super::boot_sregs;
use crate::engine::state::{BadState, Breakpoints, NoBreakpoints, VectorState};
use crate::engine::{Cpu, Exit, Ring0};
use crate::host::host_cpuid;
use crate::machine::kick::Kick;
use crate::machine::memory::MachineMemory;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::x86::registers::Regs;

/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`.
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;

/// Where a processor begins (SDM vol. 3, 9.1.4), without the base of CS.
const RESET_RIP: u64 = 0xfff0;

/// The virtual CPU, bound to the thread that it is run on.
pub(super) struct Ring0Cpu {
    // Dropped in this order: the vCPU before its VM.
    kick: Arc<KvmKick>,
    vcpu: VcpuFd,
    vm: Arc<VmFd>,
    /// The registers as KVM has them.
    loaded: Regs,
    access: Access,
}

/// Where the shared area has the bytes of the access that was the last exit.
#[derive(Clone, Copy)]
enum Access {
    None,
    Written(*const u8, usize),
    Read(*mut u8, usize),
}

// SAFETY: the pointers are to the shared area of the vCPU that they are kept with, and are used by its thread alone.
unsafe impl Send for Access {}

impl Ring0Cpu {
    pub(super) fn new(vcpu: VcpuFd, kick: KvmKick, vm: Arc<VmFd>) -> Self {
        Self { kick: Arc::new(kick), vcpu, vm, loaded: Regs::default(), access: Access::None }
    }

    fn run(&mut self) -> Exit {
        let mut access = Access::None;
        let exit = match self.vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                access = Access::Written(data.as_ptr(), data.len());
                Exit::Port { port, size: 1, bytes: data.len(), write: true }
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                access = Access::Read(data.as_mut_ptr(), data.len());
                Exit::Port { port, size: 1, bytes: data.len(), write: false }
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                access = Access::Written(data.as_ptr(), data.len());
                Exit::Mmio { address, bytes: data.len(), write: true }
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                access = Access::Read(data.as_mut_ptr(), data.len());
                Exit::Mmio { address, bytes: data.len(), write: false }
            }
            Ok(VcpuExit::Hlt) => Exit::Halt,
            Ok(VcpuExit::IrqWindowOpen) => Exit::Window,
            Ok(VcpuExit::SetTpr) => Exit::Priority,
            Ok(VcpuExit::Shutdown) => Exit::Shutdown,
            Ok(VcpuExit::Intr) => Exit::Kick,
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => Exit::Kick,
            Ok(VcpuExit::InternalError) => Exit::Dead("KVM could not go on (KVM_EXIT_INTERNAL_ERROR)"),
            Ok(VcpuExit::FailEntry(..)) => Exit::Dead("KVM could not enter the guest (KVM_EXIT_FAIL_ENTRY)"),
            Ok(_) => Exit::Dead("KVM stopped for a reason that Paravane does not know"),
            Err(_) => Exit::Dead("KVM_RUN failed"),
        };
        self.access = access;
        match exit {
            Exit::Port { port, bytes, write, .. } => {
                Exit::Port { port, size: self.port_size(), bytes, write }
            }
            other => other,
        }
    }

    /// Bytes of each element of the port access that was the last exit.
    fn port_size(&mut self) -> u8 {
        // SAFETY: KVM fills `io` where the exit is KVM_EXIT_IO, as this one is.
        unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.io }.size.clamp(1, 4)
    }
}

impl Cpu for Ring0Cpu {
    fn catch_up(
        &mut self,
        space: &mut VcpuSpace,
        log: &TableLog,
        _: &MachineMemory,
    ) -> Result<(), &'static str> {
        space.caught_up(log);
        Ok(())
    }

    fn enter(&mut self, regs: &mut Regs, _: &VcpuSpace, _: &MachineMemory) -> Exit {
        if *regs != self.loaded {
            self.vcpu.sync_regs_mut().regs = general_to_kvm(regs, regs.rflags);
            self.vcpu.set_sync_dirty_reg(SyncReg::Register);
        }
        let exit = self.run();
        self.vcpu.get_kvm_run().kvm_dirty_regs = 0;
        if exit == Exit::Kick {
            self.vcpu.set_kvm_immediate_exit(0);
            self.kick.answered();
        }
        if exit == Exit::Shutdown && self.vcpu.sync_regs().regs.rip == RESET_RIP {
            // SVM leaves no state, and KVM puts that after a reset in its place (APM vol. 2, 15.14.3): what the guest
            // was entered with says more.
            return exit;
        }
        general_from_kvm(&self.vcpu.sync_regs().regs, regs);
        self.loaded = *regs;
        exit
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }

    fn take_kick(&mut self) -> bool {
        let waits = self.vcpu.get_kvm_run().immediate_exit != 0;
        if waits {
            self.vcpu.set_kvm_immediate_exit(0);
            self.kick.answered();
        }
        waits
    }

    fn save(&mut self) -> Result<VectorState, BadState> {
        state::save(&self.vcpu)
    }

    fn load(&mut self, state: &VectorState) -> Result<(), BadState> {
        state::load(&self.vcpu, host_cpuid::xcr0(), state)
    }

    fn debug(&mut self, breakpoints: &Breakpoints) -> Result<(), NoBreakpoints> {
        state::set_breakpoints(&self.vcpu, breakpoints)
    }

    fn kernel_statistics(&self) -> Vec<(String, u64)> {
        stats::read(&self.vcpu)
    }

    fn ring0(&mut self) -> Option<&mut dyn Ring0> {
        Some(self)
    }
}

impl Ring0 for Ring0Cpu {
    fn start(&mut self, cr3: u64) -> Result<(), &'static str> {
        let reset = self.vcpu.get_sregs().map_err(|_| "KVM_GET_SREGS failed")?;
        self.vcpu
            .set_sregs(&boot_sregs(reset, cr3))
            .map_err(|_| "KVM_SET_SREGS refused the boot protocol's state")
    }

    fn written(&self) -> &[u8] {
        match self.access {
            // SAFETY: the bytes lie in the area that KVM shares, which is mapped as long as the vCPU; KVM changes them
            // in KVM_RUN only, which needs `&mut self`.
            Access::Written(at, len) => unsafe { std::slice::from_raw_parts(at, len) },
            Access::None | Access::Read(..) => &[],
        }
    }

    fn answer(&mut self, bytes: &[u8]) {
        if let Access::Read(at, len) = self.access {
            // SAFETY: as in `written`; `run` had them from a `&mut [u8]`.
            let room = unsafe { std::slice::from_raw_parts_mut(at, len) };
            for (to, from) in room.iter_mut().zip(bytes) {
                *to = *from;
            }
        }
    }

    /// KVM does not say it in so many words, but this is when a guest with IF set takes none: or if it is in the middle
    /// of taking one, and then goes on elsewhere.
    fn in_shadow(&mut self) -> bool {
        let run = self.vcpu.get_kvm_run();
        run.if_flag != 0 && run.ready_for_interrupt_injection == 0
    }

    fn takes_interrupts(&mut self) -> bool {
        self.vcpu.get_kvm_run().ready_for_interrupt_injection != 0
    }

    fn interrupt(&mut self, vector: u8) -> Result<(), &'static str> {
        let number = u32::from(vector);
        // SAFETY: the request reads the four bytes of a live `kvm_interrupt`, which is one u32.
        let done = unsafe { libc::ioctl(self.vcpu.as_raw_fd(), KVM_INTERRUPT, &raw const number) };
        if done == 0 { Ok(()) } else { Err("KVM_INTERRUPT failed") }
    }

    fn request_window(&mut self, wanted: bool) {
        self.vcpu.get_kvm_run().request_interrupt_window = wanted.into();
    }

    fn set_line(&mut self, line: u8, high: bool) -> Result<(), &'static str> {
        self.vm.set_irq_line(line.into(), high).map_err(|_| "KVM_IRQ_LINE failed")
    }
}

impl Drop for Ring0Cpu {
    fn drop(&mut self) {
        self.kick.detach();
    }
}
