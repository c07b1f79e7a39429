//! Running programs.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use paravane_abi::Errno;
use paravane_abi::callback::{CALLBACKF_MASK_EVENTS, CALLBACKTYPE_SYSCALL};
use paravane_abi::domid::DOMID_SELF;
use paravane_abi::hypercall::{MMUEXT_OP, MULTICALL, SET_SEGMENT_BASE};
use paravane_abi::mmu::{MMUEXT_NEW_USER_BASEPTR, MmuextOp};
use paravane_abi::multicall::MulticallEntry;
use paravane_abi::segment::{FLAT_KERNEL_SS, FLAT_USER_CS, FLAT_USER_SS, SEGBASE_FS, SEGBASE_GS_USER};
use paravane_abi::trap::{TRAP_GP_FAULT, TRAP_PAGE_FAULT};

use super::context::{Left, Registers, UserContext};
use super::entry::{self, EntryArea, PROGRAMS, SYSCALL_VECTOR};
use super::space::UserSpace;
use crate::hypercall::trap::{register_callback, stack_switch};
use crate::hypercall::{Hypervisor, call};
use crate::memory::Mfn;
use crate::paging::{Mmu, PagingError};
use crate::queue::QueueError;
use crate::trap::{EVENT_VECTOR, FAILSAFE_VECTOR, syscall_entry};
use crate::{event, trap};

/// CPUID leaf 1, ECX: XSAVE and XGETBV can be used.
const OSXSAVE: u32 = 1 << 27;
/// CPUID leaf 7, EBX: RDGSBASE and its kin; and the bit of CR4 that allows them.
const FSGSBASE: u32 = 1;
const CR4_FSGSBASE: u64 = 1 << 16;
/// Components of the state that a [`UserContext`] has room for: x87, SSE, AVX and AVX-512 (SDM vol. 1, 13.1).
const COMPONENTS: u64 = 0xe7;

/// The boot vCPU's area.
static BOOT: Area = Area(UnsafeCell::new(EntryArea::new()), AtomicBool::new(false));

struct Area(UnsafeCell<EntryArea>, AtomicBool);

// SAFETY: the area is handed out once, as an exclusive reference.
unsafe impl Sync for Area {}

/// What the vCPU has loaded for the program that ran last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Loaded {
    root: Mfn,
    fs_base: u64,
    gs_base: u64,
    /// Where the program's state was: another one may have left other bases by instructions of its own.
    context: usize,
}

/// A vCPU's user mode.
#[derive(Debug)]
pub struct UserMode {
    area: &'static mut EntryArea,
    loaded: Option<Loaded>,
}

impl UserMode {
    /// Registers the entry points of programs with the boot vCPU. Once; [`trap::install`] comes before.
    ///
    /// # Errors
    /// `EBUSY` the second time, or what the hypervisor answers.
    pub fn install() -> Result<Self, Errno> {
        if BOOT.1.swap(true, Ordering::Relaxed) {
            return Err(Errno::EBUSY);
        }
        // SAFETY: the flag lets only one caller ever pass.
        let area = unsafe { &mut *BOOT.0.get() };
        area.components = vector_components();
        let stack = (&raw const area.return_sp).addr() as u64;
        // SAFETY: the stack is used by entries from user mode only, whose code is made for these kinds.
        unsafe {
            stack_switch(FLAT_KERNEL_SS, stack)?;
            register_callback(CALLBACKTYPE_SYSCALL, CALLBACKF_MASK_EVENTS, syscall_entry())?;
        }
        PROGRAMS.store(1, Ordering::Relaxed);
        allow_base_instructions();
        Ok(Self { area, loaded: None })
    }

    /// Makes queued changes of page tables, and runs a program until it leaves user mode.
    ///
    /// # Errors
    /// When the hypervisor refuses the changes, the space or the bases.
    pub fn run(
        &mut self,
        mmu: &mut Mmu<'_, Hypervisor>,
        space: &UserSpace,
        context: &mut UserContext,
    ) -> Result<Left, PagingError> {
        mmu.flush()?;
        let root = mmu.mfn(space.root())?;
        // SAFETY: a space has only what was mapped for its program.
        unsafe { self.run_under(root, context) }.map_err(PagingError::from)
    }

    /// Runs a program in the tables under `root`. For kernels with page tables of their own.
    ///
    /// # Errors
    /// When the hypervisor refuses `root` or the bases.
    ///
    /// # Safety
    /// No kernel memory that matters is mapped there.
    pub unsafe fn run_under(&mut self, root: Mfn, context: &mut UserContext) -> Result<Left, QueueError> {
        let enabled = event::is_enabled();
        event::disable();
        let outcome = self.load(root, context).map(|()| {
            if event::is_upcall_pending() {
                event::dispatch();
                return Left::Interrupted;
            }
            self.enter(context)
        });
        if enabled {
            event::enable();
        }
        outcome
    }

    /// The next run loads the program's tables and bases, whatever was loaded last. For kernels that change user mode's
    /// tables by calls of their own.
    pub fn loads_anew(&mut self) {
        self.loaded = None;
    }

    /// Makes user mode have no tables, so that those it had can be freed.
    ///
    /// # Errors
    /// Never for a PV domain.
    pub fn forget(&mut self) -> Result<(), QueueError> {
        self.loaded = None;
        make(&mut [new_root(&mut MmuextOp::default(), 0)])
    }

    /// Loads what differs between programs, in one transition.
    fn load(&mut self, root: Mfn, context: &UserContext) -> Result<(), QueueError> {
        let UserContext { fs_base, gs_base, .. } = *context;
        let wanted = Loaded { root, fs_base, gs_base, context: (&raw const *context).addr() };
        if self.loaded == Some(wanted) {
            return Ok(());
        }
        self.loaded = None;
        let mut op = MmuextOp::default();
        let base = |which: u32, base| MulticallEntry {
            op: SET_SEGMENT_BASE,
            args: [which.into(), base, 0, 0, 0, 0],
            ..MulticallEntry::default()
        };
        make(&mut [new_root(&mut op, root.0), base(SEGBASE_FS, fs_base), base(SEGBASE_GS_USER, gs_base)])?;
        self.loaded = Some(wanted);
        Ok(())
    }

    fn enter(&mut self, context: &mut UserContext) -> Left {
        let area = &raw mut *self.area;
        // SAFETY: the area is this vCPU's, events are masked, the selectors are user mode's, and the vector registers
        // are in an area that was made by `VectorState::new` and by the instruction that `components` says.
        let frame = unsafe {
            (*area).frame = context.registers.frame((FLAT_USER_CS, FLAT_USER_SS));
            (*area).vectors = context.vectors.as_mut_ptr();
            entry::enter(area);
            (&raw const (*area).frame).read_volatile()
        };
        context.registers = Registers::of(&frame);
        match frame.vector {
            SYSCALL_VECTOR => Left::Syscall,
            EVENT_VECTOR => {
                event::dispatch();
                Left::Interrupted
            }
            // Selectors that cannot be loaded, which `run` never puts there.
            FAILSAFE_VECTOR => Left::Fault { vector: TRAP_GP_FAULT, error: 0, address: 0 },
            vector => {
                let vector = vector as u8;
                let address = if vector == TRAP_PAGE_FAULT { trap::fault_address() } else { 0 };
                Left::Fault { vector, error: frame.error_code, address }
            }
        }
    }
}

fn new_root(op: &mut MmuextOp, root: u64) -> MulticallEntry {
    *op = MmuextOp { cmd: MMUEXT_NEW_USER_BASEPTR, arg1: root, ..MmuextOp::default() };
    let op = (&raw const *op).addr() as u64;
    MulticallEntry { op: MMUEXT_OP, args: [op, 1, 0, DOMID_SELF.into(), 0, 0], ..MulticallEntry::default() }
}

/// Makes calls that affect user mode only.
fn make(calls: &mut [MulticallEntry]) -> Result<(), QueueError> {
    let failed = |number, errno| QueueError { number, errno, done: 0, update: None };
    // SAFETY: the entries, and what they point to, live in the caller; nothing that the kernel uses is changed.
    unsafe { call(MULTICALL, [calls.as_mut_ptr().addr() as u64, calls.len() as u64]) }
        .map_err(|errno| failed(MULTICALL, errno))?;
    calls.iter().try_for_each(|made| {
        // SAFETY: a reference to an initialised entry, which the hypervisor has written to.
        let result = unsafe { (&raw const made.result).read_volatile() };
        Errno::from_rax(result).map(drop).map_err(|errno| failed(made.op, errno))
    })
}

/// Allows RDGSBASE and its kin, as far as the processor has them: a hypervisor that finds them allowed can let programs
/// call this kernel without its help.
fn allow_base_instructions() {
    let features: u32;
    // SAFETY: as in `vector_components`.
    unsafe {
        core::arch::asm!(
            "mov rsi, rbx",
            "22: cpuid",
            "xchg rsi, rbx",
            ".pushsection .paravane.audit, \"\", @progbits",
            ".quad 22b",
            ".asciz \"the question is what the processor does natively, and that it answers natively\"",
            ".popsection",
            inlateout("eax") 7 => _,
            inlateout("ecx") 0 => _,
            lateout("edx") _,
            out("rsi") features,
            options(nostack),
        );
    }
    if features & FSGSBASE == 0 {
        return;
    }
    // SAFETY: the hypervisor takes the value for the kernel, or ignores it; nothing else changes.
    unsafe {
        core::arch::asm!(
            "22: mov {value}, cr4",
            "or {value}, {bit}",
            "23: mov cr4, {value}",
            ".pushsection .paravane.audit, \"\", @progbits",
            ".quad 22b",
            ".asciz \"read once, when user mode is installed\"",
            ".quad 23b",
            ".asciz \"written once, when user mode is installed\"",
            ".popsection",
            value = out(reg) _,
            bit = const CR4_FSGSBASE,
            options(nostack),
        );
    }
}

/// Which vector state the processor has, and has allowed; 0 if FXSAVE saves all of it.
fn vector_components() -> u64 {
    let features: u32;
    // SAFETY: CPUID changes no memory, and RBX, which the compiler keeps for itself, is restored.
    unsafe {
        core::arch::asm!(
            "mov rsi, rbx",
            "22: cpuid",
            "mov rbx, rsi",
            ".pushsection .paravane.audit, \"\", @progbits",
            ".quad 22b",
            ".asciz \"the question is what the processor does natively, and that it answers natively\"",
            ".popsection",
            inlateout("eax") 1 => _,
            lateout("ecx") features,
            lateout("edx") _,
            out("rsi") _,
            options(nostack),
        );
    }
    if features & OSXSAVE == 0 {
        return 0;
    }
    let (low, high): (u32, u32);
    // SAFETY: CPUID says that the instruction exists; it reads XCR0.
    unsafe {
        core::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    (u64::from(high) << 32 | u64::from(low)) & COMPONENTS
}
