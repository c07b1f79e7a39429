//! An exception of a guest's kernel, kept for people: what its author is told when the guest comes to a bad end.

use std::fmt;

use paravane_abi::trap::{PFEC_FETCH, PFEC_PRESENT, PFEC_WRITE, TRAP_PAGE_FAULT};

use super::entry::vector_name;
use crate::machine::memory::PAGE_SIZE;
use crate::x86::exception::Fault;

/// An exception, where it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// What it was.
    pub fault: Fault,
    /// RIP, as the handler is told.
    pub rip: u64,
    /// RSP at that place.
    pub rsp: u64,
}

/// How near to the stack pointer a page fault is taken for the stack's: the frame of a handler, the red zone, and what
/// a function probes at once.
const OF_THE_STACK: u64 = 4096;

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault: Fault { vector, error_code, address }, rsp, .. } = *self;
        f.write_str(vector_name(vector))?;
        if vector != TRAP_PAGE_FAULT {
            return if error_code == 0 { Ok(()) } else { write!(f, " (error code {error_code:#x})") };
        }
        let access = match error_code {
            code if code & PFEC_FETCH != 0 => "fetched from",
            code if code & PFEC_WRITE != 0 => "written to",
            _ => "read",
        };
        let page = if error_code & PFEC_PRESENT != 0 { "does not allow it" } else { "is not mapped" };
        write!(f, " at {address:#x}, {access}: the page {page}")?;
        if address.abs_diff(rsp) <= OF_THE_STACK && error_code & PFEC_PRESENT == 0 {
            write!(f, "; the stack pointer is {rsp:#x}: the stack has overflowed")?;
        } else if address < PAGE_SIZE {
            f.write_str("; a null pointer")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use paravane_abi::trap::TRAP_GP_FAULT;

    use super::*;

    fn told(vector: u8, error_code: u32, address: u64, rsp: u64) -> String {
        Exception { fault: Fault { vector, error_code, address }, rip: 0, rsp }.to_string()
    }

    #[test]
    fn a_page_fault_says_what_it_probably_was() {
        let overflow = told(TRAP_PAGE_FAULT, PFEC_WRITE, 0x8ff8, 0x9000);
        assert_eq!(
            overflow,
            "#PF, page fault at 0x8ff8, written to: the page is not mapped; the stack pointer is 0x9000: the stack has \
             overflowed"
        );
        assert!(
            told(TRAP_PAGE_FAULT, 0, 8, 0x9000)
                .ends_with("at 0x8, read: the page is not mapped; a null pointer")
        );
        let readonly = told(TRAP_PAGE_FAULT, PFEC_WRITE | PFEC_PRESENT, 0x8ff8, 0x9000);
        assert!(readonly.ends_with("written to: the page does not allow it"), "{readonly}");
        assert_eq!(told(TRAP_GP_FAULT, 0, 0, 0), "#GP, general protection");
        assert_eq!(told(TRAP_GP_FAULT, 24, 0, 0), "#GP, general protection (error code 0x18)");
    }
}
