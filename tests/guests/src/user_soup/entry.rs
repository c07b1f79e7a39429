//! The way to a user program and back: by `iret`, and by every entry point that a kernel has.

use core::arch::naked_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::AtomicU64;

use paravane_guest::abi::Errno;
use paravane_guest::hypercall::call;

use super::*;

/// Which entry point was used, besides the vectors.
pub const BY_SYSCALL: u64 = 1000;
pub const BY_EVENT: u64 = 1001;
pub const BY_FAILSAFE: u64 = 1002;

/// What an entry into the kernel finds.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The frame, from the stack pointer upwards.
    pub words: [u64; 9],
    pub sp: u64,
    pub rax: u64,
    /// The word at GS:0.
    pub gs: u64,
    /// The vector, or `BY_*`.
    pub by: u64,
}

static mut ENTRY: Entry = Entry { words: [0; 9], sp: 0, rax: 0, gs: 0, by: 0 };
/// The stack of whoever entered user mode.
static mut RETURN_SP: u64 = 0;

/// The kernel's FPU state, which no program's may replace: an exception that it unmasked would be the kernel's.
#[repr(C, align(16))]
struct Fpu(UnsafeCell<[u8; 512]>);
// SAFETY: written and read by one vCPU, in `leave` and `enter` alone.
unsafe impl Sync for Fpu {}
static FPU: Fpu = Fpu(UnsafeCell::new([0; 512]));

/// The stack that programs' traps arrive on.
#[repr(align(16))]
pub struct Stack([AtomicU64; 1024]);
pub static KERNEL: Stack = Stack([const { AtomicU64::new(0) }; 1024]);

impl Stack {
    /// Its top, with room above for what the entry points copy.
    pub fn top(&self) -> u64 {
        self.0.as_ptr() as u64 + 1000 * 8
    }
}

// SAFETY: a page of the image, of which only the address is taken.
unsafe extern "C" {
    /// The page that the hypervisor fills.
    static hypercall_page: u8;
}

/// Enters user mode as the frame says; comes back through [`enter`].
#[unsafe(naked)]
unsafe extern "C" fn leave(frame: *const IretContext) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rip + {sp}], rsp",
        "fxsave64 [rip + {fpu}]",
        "push qword ptr [rdi + 64]",
        "push qword ptr [rdi + 56]",
        "push qword ptr [rdi + 48]",
        "push qword ptr [rdi + 40]",
        "push qword ptr [rdi + 32]",
        "push qword ptr [rdi + 24]",
        // The page's entry pushes the rest.
        "mov rax, [rdi]",
        "mov r11, [rdi + 8]",
        "mov rcx, [rdi + 16]",
        "jmp {page} + {iret}",
        sp = sym RETURN_SP,
        fpu = sym FPU,
        page = sym hypercall_page,
        iret = const IRET as usize * HYPERCALL_ENTRY_SIZE,
    )
}

/// An entry point. Events are masked at each of them.
#[unsafe(naked)]
unsafe extern "C" fn enter<const BY: u64>() -> ! {
    naked_asm!(
        "mov [rip + {entry} + 72], rsp",
        "mov [rip + {entry} + 80], rax",
        "mov rax, gs:[0]",
        "mov [rip + {entry} + 88], rax",
        "mov qword ptr [rip + {entry} + 96], {by}",
        "lea rdi, [rip + {entry}]",
        "mov rsi, rsp",
        "mov ecx, 9",
        "cld",
        "rep movsq",
        "mov rsp, [rip + {sp}]",
        // A program may have set AC, and unmasked exceptions of its arithmetic.
        "push 2",
        "popfq",
        "fxrstor64 [rip + {fpu}]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        entry = sym ENTRY,
        sp = sym RETURN_SP,
        fpu = sym FPU,
        by = const BY,
    )
}

/// Runs a program to its first way into the kernel.
pub fn go(frame: &IretContext) -> Entry {
    // SAFETY: `leave` saves what is its caller's, and every way back leads through `enter`, which writes `ENTRY`.
    unsafe {
        leave(frame);
        (&raw const ENTRY).read_volatile()
    }
}

type EntryPoint = unsafe extern "C" fn() -> !;

/// Vectors with their entry points. A program may raise 3, 4 and 0x80 by INT.
macro_rules! vectors {
    ($($vector:literal)*) => { [$(($vector, enter::<$vector> as EntryPoint)),*] };
}
const VECTORS: [(u8, EntryPoint); 33] = vectors!(
    0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 0x80
);

/// Registers all entry points, the kernel's stack and its base.
pub fn install(word: &'static AtomicU64) -> Result<(), Errno> {
    let by_int = |vector| if [3, 4, 0x80].contains(&vector) { 3 } else { 0 };
    let mut table = [TrapInfo::default(); VECTORS.len() + 1];
    for (slot, (vector, point)) in table.iter_mut().zip(VECTORS) {
        let address = point as *const () as u64;
        let flags = by_int(vector) | TI_IF;
        *slot = TrapInfo { vector, flags, cs: FLAT_KERNEL_CS, address, ..TrapInfo::default() };
    }
    let points: [(u16, EntryPoint); 3] = [
        (CALLBACKTYPE_EVENT, enter::<BY_EVENT>),
        (CALLBACKTYPE_SYSCALL, enter::<BY_SYSCALL>),
        (CALLBACKTYPE_FAILSAFE, enter::<BY_FAILSAFE>),
    ];
    // SAFETY: the entry points, the stack and the word are this module's, for ever.
    unsafe {
        call(SET_TRAP_TABLE, [table.as_ptr() as u64])?;
        for (kind, point) in points {
            let address = point as *const () as u64;
            let op = CallbackRegister { kind, flags: CALLBACKF_MASK_EVENTS, address, _pad: 0 };
            call(CALLBACK_OP, [CALLBACKOP_REGISTER.into(), &raw const op as u64])?;
        }
        call(STACK_SWITCH, [FLAT_KERNEL_SS.into(), KERNEL.top()])?;
        call(SET_SEGMENT_BASE, [SEGBASE_GS_KERNEL.into(), word.as_ptr() as u64])?;
    }
    Ok(())
}
