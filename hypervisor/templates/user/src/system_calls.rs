//! What programs may ask for.

use paravane_guest::console;
use paravane_guest::user::{BadAddress, UserContext, UserSpace};

use crate::{Kernel, calls};

impl Kernel {
    /// Answers a system call; the program's status if it asked to end.
    pub(crate) fn system_call(&self, space: &UserSpace, context: &mut UserContext) -> Option<u64> {
        let registers = &mut context.registers;
        registers.rax = match registers.rax {
            calls::WRITE => match self.write(space, registers.rdi, registers.rsi) {
                Ok(written) => written,
                Err(BadAddress(_)) => calls::BAD_ADDRESS,
            },
            calls::EXIT => return Some(registers.rdi),
            _ => calls::NO_SUCH_CALL,
        };
        None
    }

    /// Prints bytes of a program, as many as one call may print. They are copied from the program's own space: a
    /// pointer to the kernel's memory is as bad there as one to nothing.
    fn write(&self, space: &UserSpace, address: u64, len: u64) -> Result<u64, BadAddress> {
        let mut bytes = [0; 256];
        let len = len.min(bytes.len() as u64);
        let bytes = &mut bytes[..len as usize];
        space.copy_from_user(&self.mmu, address, bytes)?;
        console::write(bytes);
        Ok(len)
    }
}
