//! A paravirtual CPU: what Xen keeps of one, as far as a guest can tell, and what its engine needs. Plain data.
//!
//! Owned by the thread that runs the vCPU. What other threads must reach of a vCPU is in its domain, by [`VcpuId`].

use paravane_abi::Errno;
use paravane_abi::debugreg::{DEBUGREG_CONTROL_DEFAULT, DEBUGREG_STATUS_DEFAULT};
use paravane_abi::segment::{FLAT_USER_CS, FLAT_USER_SS};
use paravane_abi::trap::{TRAP_VECTORS, TrapInfo};
use serde::{Deserialize, Serialize};

use super::exception::Exception;
use super::runstate::Runstate;
use crate::ledger::Ledger;
use crate::machine::memory::Mfn;
use crate::machine::time::Timers;
use crate::mmu::direct::{Obstacle, VcpuTables};
use crate::mmu::log::TableLog;
use crate::mmu::space::{Allowed, VcpuSpace};
use crate::x86::control::cr4;
use crate::x86::guest_cpuid::XCR0_FIRST;
use crate::x86::registers::Regs;

/// vCPUs that a domain has at most.
pub const MAX_VCPUS: u32 = 64;

/// The number of a vCPU that its domain can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuId(u8);

impl VcpuId {
    /// The vCPU that a domain starts with.
    pub const BOOT: Self = Self(0);

    /// The vCPU of that number; `None` if no domain has one.
    pub fn new(number: u32) -> Option<Self> {
        u8::try_from(number).ok().filter(|n| u32::from(*n) < MAX_VCPUS).map(Self)
    }
    /// Its number, as guests name it.
    pub fn number(self) -> u32 {
        self.0.into()
    }
    /// The same, for what is kept in order of it.
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// A registered entry point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callback {
    /// Linear address; 0: none.
    pub address: u64,
    /// Whether events are masked on entry (CALLBACKF_mask_events).
    pub mask_events: bool,
}

/// Whether the vCPU wants to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// It does.
    #[default]
    Running,
    /// It waits for any upcall (SCHEDOP_block).
    Blocked,
    /// It waits for one of [`PvVcpu::polled`] or a time-out (SCHEDOP_poll).
    Polling,
    /// It waits for another one to bring it up (VCPUOP_up).
    Offline,
}

/// Ports in one poll at most: Xen's limit.
pub const MAX_POLL_PORTS: usize = 128;

/// The ports that a poll waits for.
#[derive(Clone, Copy, Debug)]
pub struct Polled {
    ports: [u32; MAX_POLL_PORTS],
    count: usize,
}

impl Polled {
    const NONE: Self = Self { ports: [0; MAX_POLL_PORTS], count: 0 };

    /// Forgets all ports.
    pub fn clear(&mut self) {
        self.count = 0;
    }
    /// Adds a port; one beyond [`MAX_POLL_PORTS`] is dropped.
    pub fn push(&mut self, port: u32) {
        if let Some(slot) = self.ports.get_mut(self.count) {
            *slot = port;
            self.count += 1;
        }
    }
    /// The ports.
    pub fn ports(&self) -> &[u32] {
        self.ports.get(..self.count).unwrap_or_default()
    }
}

/// Control registers and their like, as the guest has set them.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// CR0.TS: the next use of the FPU is to raise #NM.
    pub task_switched: bool,
    /// CR2: the address of the last page fault, or what was written to it.
    pub cr2: u64,
    /// CR4, as the guest reads it.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
    /// The kernel has used XSAVE or its kin without CR4.OSXSAVE, as it may on Xen.
    pub xsave_in_use: bool,
    /// IA32_TSC_AUX.
    pub tsc_aux: u32,
}

/// Debug registers. They are kept, and breakpoints do not fire: no engine loads them.
#[derive(Clone, Copy, Debug)]
pub struct DebugRegisters {
    /// DR0 to DR3.
    pub addresses: [u64; 4],
    /// DR6.
    pub status: u64,
    /// DR7.
    pub control: u64,
}

/// Which I/O ports a vCPU may use, beyond the none that its domain owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoPrivilege {
    /// The virtual IOPL, 0 to 3 (PHYSDEVOP_set_iopl).
    pub level: u8,
    /// Linear address of a bitmap of ports; a set bit refuses (PHYSDEVOP_set_iobitmap).
    pub bitmap: u64,
    /// Ports that it covers.
    pub ports: u32,
}

/// Non-maskable interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nmi {
    /// One waits for delivery.
    pub pending: bool,
    /// One was delivered and `iret` has not come yet.
    pub masked: bool,
}

/// A paravirtual CPU.
pub struct PvVcpu {
    /// Its number.
    pub id: VcpuId,
    /// What the engine loads and saves.
    pub regs: Regs,
    /// Its address space, for the engine.
    pub space: VcpuSpace,
    /// The page tables and descriptor tables that it uses.
    pub tables: VcpuTables,
    /// Its timers, in system time.
    pub timers: Timers,
    /// Elementary operations that a hypercall may still perform before it is interrupted: see `hypercall`.
    pub budget: u64,
    /// Whether the guest's kernel, not its user program, runs.
    pub kernel_mode: bool,
    /// The stack that entries from user mode switch to (stack_switch).
    pub kernel_sp: u64,
    /// Exception handlers, by vector.
    pub traps: [TrapInfo; TRAP_VECTORS],
    /// Where upcalls go.
    pub event: Callback,
    /// Where a failed return to the guest goes.
    pub failsafe: Callback,
    /// Where SYSCALL from user mode goes.
    pub syscall: Callback,
    /// Where SYSCALL from 32-bit user mode would go.
    pub syscall32: Callback,
    /// Where SYSENTER from 32-bit user mode would go.
    pub sysenter: Callback,
    /// The GS base that is not in use: the user's while the kernel runs and the reverse.
    pub other_gs_base: u64,
    /// CS and SS with which the kernel last returned to user mode.
    pub user_selectors: (u16, u16),
    /// Control registers.
    pub control: Control,
    /// Debug registers.
    pub debug: DebugRegisters,
    /// I/O ports.
    pub io: IoPrivilege,
    /// Non-maskable interrupts.
    pub nmi: Nmi,
    /// Whether it runs or waits.
    pub state: RunState,
    /// What a poll waits for.
    pub polled: Polled,
    /// Where its time went.
    pub runstate: Runstate,
    /// Its exits and batches.
    pub ledger: Ledger,
    /// It would let others run (SCHEDOP_yield).
    pub yields: bool,
    /// It issues the call again that it has just made, which was interrupted.
    pub calls_again: bool,
    /// The last exception of its kernel, for people.
    pub last_exception: Option<Exception>,
    /// The last change of page tables that it asked for in vain, for people.
    pub last_refusal: Option<Refusal>,
}

/// A change of page tables that was refused.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// What the kernel was told.
    pub errno: Errno,
    /// What stood in the way.
    pub obstacle: Obstacle,
    /// How many exits the vCPU had made by then.
    pub exits: u64,
}

/// What every guest finds set in CR4: PAE, MCE, OSFXSR, OSXMMEXCPT.
pub const CR4_FIXED: u64 = cr4::PAE | cr4::MCE | cr4::OSFXSR | cr4::OSXMMEXCPT;

impl PvVcpu {
    /// A vCPU in kernel mode with no handlers, about to run with `regs`.
    pub fn new(id: VcpuId, regs: Regs, space: VcpuSpace, tables: VcpuTables) -> Self {
        Self {
            id,
            regs,
            space,
            tables,
            timers: Timers::default(),
            budget: 0,
            kernel_mode: true,
            kernel_sp: 0,
            traps: [TrapInfo::default(); TRAP_VECTORS],
            event: Callback::default(),
            failsafe: Callback::default(),
            syscall: Callback::default(),
            syscall32: Callback::default(),
            sysenter: Callback::default(),
            other_gs_base: 0,
            user_selectors: (FLAT_USER_CS, FLAT_USER_SS),
            control: Control {
                task_switched: false,
                cr2: 0,
                cr4: CR4_FIXED,
                xcr0: XCR0_FIRST,
                xsave_in_use: false,
                tsc_aux: 0,
            },
            debug: DebugRegisters {
                addresses: [0; 4],
                status: DEBUGREG_STATUS_DEFAULT,
                control: DEBUGREG_CONTROL_DEFAULT,
            },
            io: IoPrivilege::default(),
            nmi: Nmi::default(),
            state: RunState::Running,
            polled: Polled::NONE,
            runstate: Runstate::default(),
            ledger: Ledger::new(),
            yields: false,
            calls_again: false,
            last_exception: None,
            last_refusal: None,
        }
    }

    /// One that the guest has not initialised: it has no tables, and is not to run.
    pub fn absent(id: VcpuId, log: &TableLog) -> Self {
        let space = VcpuSpace::new(Mfn(0), log);
        let mut vcpu = Self::new(id, Regs::default(), space, VcpuTables::none());
        vcpu.state = RunState::Offline;
        vcpu.runstate = Runstate::offline();
        vcpu
    }

    /// Becomes what the guest initialised. Its own account goes on, and so does what others have left for it meanwhile:
    /// timers and an NMI.
    pub fn begin_as(&mut self, context: Self) {
        let (ledger, timers) = (std::mem::take(&mut self.ledger), std::mem::take(&mut self.timers));
        let (runstate, nmi, state) = (self.runstate, self.nmi, self.state);
        *self = Self { ledger, timers, runstate, nmi, state, ..context };
    }

    /// Sets or clears CR0.TS, as the guest sees it and for the engine.
    pub fn set_task_switched(&mut self, set: bool) {
        self.control.task_switched = set;
        self.space.set_task_switched(set);
    }

    /// Tells the engine which instructions the guest's CR4 and XCR0 allow.
    pub fn allow_instructions(&mut self) {
        let control = &self.control;
        let by_use = if control.xsave_in_use { cr4::OSXSAVE } else { 0 };
        self.space.set_allowed(Allowed {
            cr4: control.cr4 & (cr4::TSD | cr4::FSGSBASE | cr4::OSXSAVE) | by_use,
            xcr0: control.xcr0,
        });
    }
}
