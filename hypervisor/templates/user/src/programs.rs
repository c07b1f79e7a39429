//! Running programs, each in an address space of its own.

use core::fmt;

use paravane_guest::paging::PageFlags;
use paravane_guest::user::elf::Elf;
use paravane_guest::user::{Left, LoadError, UserContext, UserSpace, load};
use paravane_guest::{abi::addr::PAGE_SIZE, time};

use crate::Kernel;

/// The file of a program, which `build.rs` has built.
macro_rules! built {
    ($name:literal) => {
        ($name, include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".elf")))
    };
}

/// The programs by their names.
const FILES: [(&str, &[u8]); 3] = [built!("hello"), built!("spy"), built!("endless")];

/// The end of a program's stack, and its size. Below it nothing is mapped.
const STACK_TOP: u64 = 0x7000_0000_0000;
const STACK_SIZE: u64 = 64 << 10;
/// Nanoseconds after which a program that does not end is ended.
const PATIENCE: u64 = 100_000_000;

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It asked to, with a status.
    Exit(u64),
    /// It raised an exception.
    Fault {
        /// The exception's vector: 14 is a page fault.
        vector: u8,
        /// The address that a page fault is about.
        address: u64,
        /// The instruction that raised it.
        rip: u64,
    },
    /// It took too long.
    TimedOut,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(status) => write!(f, "ended with status {status}"),
            Self::Fault { vector: 14, address, rip } => {
                write!(f, "has no such access to {address:#x}, which the instruction at {rip:#x} wanted")
            }
            Self::Fault { vector, rip, .. } => write!(f, "raised exception {vector} at {rip:#x}"),
            Self::TimedOut => f.write_str("took too long"),
        }
    }
}

impl Kernel {
    /// Runs a program to its end, with `argument` in RDI.
    pub fn run(&mut self, name: &str, argument: u64) -> Result<End, LoadError> {
        let (_, file) =
            FILES.iter().find(|(known, _)| *known == name).expect("there is a program of that name");
        let elf = Elf::parse(file).expect("`build.rs` links programs as the SDK loads them");
        let space = UserSpace::new(&mut self.mmu, &mut self.free)?;
        let end = self.run_in(&space, &elf, argument);
        // Whatever came of it: the program's memory is free again.
        space.destroy(&mut self.user, &mut self.mmu, &mut self.free, true)?;
        end
    }

    fn run_in(&mut self, space: &UserSpace, elf: &Elf<'_>, argument: u64) -> Result<End, LoadError> {
        let program = load(elf, space, &mut self.mmu, &mut self.free, 0)?;
        for page in (STACK_TOP - STACK_SIZE..STACK_TOP).step_by(PAGE_SIZE as usize) {
            space.map_new(&mut self.mmu, &mut self.free, page, PageFlags::DATA)?;
        }
        // As after a call: a function expects its stack so (psABI for x86-64, 3.2.2).
        let mut context = UserContext::new(program.entry, STACK_TOP - 8);
        context.registers.rdi = argument;
        let end = time::now() + PATIENCE;
        time::set_timer(end).expect("a timer can be set");
        loop {
            match self.user.run(&mut self.mmu, space, &mut context)? {
                Left::Syscall => {
                    if let Some(status) = self.system_call(space, &mut context) {
                        return Ok(End::Exit(status));
                    }
                }
                Left::Fault { vector, address, .. } => {
                    return Ok(End::Fault { vector, address, rip: context.registers.rip });
                }
                _ if time::now() >= end => return Ok(End::TimedOut),
                // Another event was handled. Another program could have its turn here.
                _ => time::set_timer(end).expect("a timer can be set"),
            }
        }
    }
}
