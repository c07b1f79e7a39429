//! Print a page of text in one write.
//!
//! Whether all of it arrived is for the host to see: the guest cannot read its own console.

use alloc::vec::Vec;

use crate::kernel::Kernel;
use crate::machine::{Current, Machine};

use super::{Failure, Outcome, Workload, measure};

const BYTES: usize = 4096;
const LINE: usize = 64;

pub const WORKLOAD: Workload =
    Workload { name: "console-4k", what: "print 4096 bytes in one write", unit: "byte", run };

fn run(kernel: &mut Kernel) -> Result<Outcome, Failure> {
    let text: Vec<u8> = (0..BYTES).map(byte).collect();
    let ((), measured) = measure(&mut kernel.memory, |_| Current::console_write(&text));
    Ok(Outcome::new(BYTES as u64, measured))
}

/// The text: lines that begin with their number and go on with the alphabet.
fn byte(position: usize) -> u8 {
    let (line, column) = (position / LINE, position % LINE);
    match column {
        0 => b'0' + (line / 10) as u8,
        1 => b'0' + (line % 10) as u8,
        2 => b' ',
        _ if column == LINE - 1 => b'\n',
        _ => b'a' + ((line + column) % 26) as u8,
    }
}
