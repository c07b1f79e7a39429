//! System calls of a user program.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use paravane_guest::abi::callback::CALLBACKTYPE_SYSCALL;
use paravane_guest::abi::domid::DOMID_SELF;
use paravane_guest::abi::hypercall::{HYPERCALL_ENTRY_SIZE, IRET, MMUEXT_OP};
use paravane_guest::abi::mmu::{MMUEXT_NEW_USER_BASEPTR, MmuextOp};
use paravane_guest::abi::pte;
use paravane_guest::abi::segment::{FLAT_KERNEL_SS, FLAT_USER_CS, FLAT_USER_SS};
use paravane_guest::abi::trap::VGCF_IN_SYSCALL;
use paravane_guest::hypercall::{self, trap};

use super::done;
use crate::machine::primitive::Primitive;
use crate::machine::pv::PvMmu;
use crate::memory::frames::Frame;
use crate::memory::paging::{Access, AddressSpace, MapError, Mmu, Span};
use crate::memory::{Memory, PRIVATE, direct_map};
use crate::single::Single;

/// The program's address space.
static SPACE: Single<Option<AddressSpace>> = Single::new(None);
/// System calls that the kernel answered.
static CALLS: AtomicU64 = AtomicU64::new(0);
/// The stack of whoever started the program.
static STACK: AtomicU64 = AtomicU64::new(0);
/// The stack that system calls arrive on.
static ENTRY_STACK: Single<[u128; 64]> = Single::new([0; 64]);

// SAFETY: a page of the image, of which only the address is taken.
unsafe extern "C" {
    /// The page that the hypervisor fills.
    static hypercall_page: u8;
}

/// A system call and the return from it.
pub const SYSCALL: Primitive<PvMmu> = Primitive {
    prepare,
    finish,
    ..Primitive::new("syscall", "a system call of a user program, and the return from it", start, |_, did| {
        CALLS.load(Ordering::Relaxed) == did.all
    })
};

fn prepare(memory: &mut Memory<PvMmu>) -> Result<[u64; 3], MapError> {
    CALLS.store(0, Ordering::Relaxed);
    let Memory { mmu, frames, space: kernel, .. } = memory;
    let frame = frames.allocate().ok_or(MapError::OutOfFrames)?;
    let mut space = AddressSpace::new(mmu, frames, kernel)?;
    space.map_run(mmu, frames, Span::pages(PRIVATE, 1), frame, Access::User)?;
    // SAFETY: the program, which is shorter, and code after it go to a frame that was just allocated.
    unsafe { (program as *const u8).copy_to(direct_map(frame) as *mut u8, 64) };
    // The hypervisor accepts its tables, and the kernel goes on in its own.
    space.activate(mmu);
    kernel.activate(mmu);
    use_for_programs(pte::mfn(mmu.entry(space.root(), 0)));
    let top = ENTRY_STACK.as_ptr() as u64 + size_of_val(&ENTRY_STACK) as u64;
    // SAFETY: there is no other reference; the stack is used by system calls only, which arrive at `enter`.
    unsafe {
        *SPACE.get() = Some(space);
        done(trap::stack_switch(FLAT_KERNEL_SS, top));
        done(trap::register_callback(CALLBACKTYPE_SYSCALL, 0, enter as *const () as u64));
    }
    Ok([PRIVATE, frame.0, 0])
}

fn finish(memory: &mut Memory<PvMmu>, [_, frame, _]: [u64; 3]) {
    let Memory { mmu, frames, .. } = memory;
    use_for_programs(0);
    // SAFETY: there is no other reference.
    if let Some(space) = unsafe { SPACE.get() }.take() {
        space.destroy(mmu, frames);
    }
    if let Err(error) = frames.free(Frame(frame)) {
        panic!("a nanobenchmark's frame was freed by someone else: {error:?}");
    }
}

/// Makes `root` the root of user mode's tables; 0 for none.
fn use_for_programs(root: u64) {
    let op = MmuextOp { cmd: MMUEXT_NEW_USER_BASEPTR, arg1: root, ..MmuextOp::default() };
    // SAFETY: user mode runs only between `prepare` and `finish`.
    done(unsafe { hypercall::call(MMUEXT_OP, [(&raw const op).addr() as u64, 1, 0, DOMID_SELF.into()]) });
}

/// Starts the program; returns when it says that it has ended. It changes no register that a caller relies on.
#[unsafe(naked)]
unsafe extern "C" fn start(n: u64, program: u64, _: u64, _: u64) -> u64 {
    naked_asm!(
        "mov [rip + {stack}], rsp",
        "push {ss}",
        "push rsp", // the program uses no stack
        "push 2",   // upcalls masked
        "push {cs}",
        "push rsi",
        "push 0",
        "xor eax, eax",
        "jmp {page} + {iret}",
        stack = sym STACK,
        ss = const FLAT_USER_SS,
        cs = const FLAT_USER_CS,
        page = sym hypercall_page,
        iret = const IRET as usize * HYPERCALL_ENTRY_SIZE,
    )
}

/// Where system calls arrive: EAX is 0, or the program has ended.
#[unsafe(naked)]
unsafe extern "C" fn enter() -> ! {
    naked_asm!(
        "test eax, eax",
        "jnz 2f",
        "inc qword ptr [rip + {calls}]",
        "pop rcx",
        "pop r11",
        "push {in_syscall}",
        "jmp {page} + {iret}",
        "2:",
        "mov rsp, [rip + {stack}]",
        "ret",
        calls = sym CALLS,
        stack = sym STACK,
        in_syscall = const VGCF_IN_SYSCALL,
        page = sym hypercall_page,
        iret = const IRET as usize * HYPERCALL_ENTRY_SIZE,
    )
}

/// The program, position-independent.
#[unsafe(naked)]
unsafe extern "C" fn program() -> ! {
    naked_asm!("2:", ".rept 4", "syscall", ".endr", "sub rdi, 4", "jnz 2b", "mov eax, 1", "syscall", "ud2")
}
