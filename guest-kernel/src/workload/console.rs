//! Print a page of text in one write: on the machine's own console, and on a virtio console.
//!
//! The host verifies the output on the machine's own console, which the guest cannot read. The virtio console of a
//! comparison types its output back.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use crate::device::console::Console;
use crate::device::{self, DeviceError};
use crate::kernel::Kernel;
use crate::machine::{Current, Machine};

use super::measure::{Failure, Outcome, Workload, measure};

const BYTES: usize = 4096;
const LINE: usize = 64;

pub const WORKLOAD: Workload =
    Workload { name: "console-4k", what: "print 4096 bytes in one write", unit: "byte", run };

pub const VIRTIO: Workload = Workload {
    name: "console-virtio-4k",
    what: "print 4096 bytes in one write on a virtio console that types them back",
    unit: "byte",
    run: run_virtio,
};

fn run(kernel: &mut Kernel) -> Result<Outcome, Failure> {
    let text: Vec<u8> = (0..BYTES).map(byte).collect();
    let ((), measured) = measure(&mut kernel.memory, |_| Current::console_write(&text));
    Ok(Outcome::new(BYTES as u64, measured))
}

/// As `run`, on the virtio console, until the device has taken all of the text.
fn run_virtio(kernel: &mut Kernel) -> Result<Outcome, Failure> {
    let text: Vec<u8> = (0..BYTES).map(byte).collect();
    let transport = device::find(kernel, Console::KIND)?;
    device::without_interrupts(|| {
        let mut console = Console::new(transport)?;
        console.check()?;
        let (printed, measured) = measure(&mut kernel.memory, |_| {
            console.write(&text)?;
            console.drain()
        });
        printed?;
        console.listen()?;
        let typed = read_all(&mut console)?;
        Failure::unless(typed == text, "another-text-arrived")?;
        Ok(Outcome::new(BYTES as u64, measured))
    })
}

fn read_all(console: &mut Console) -> Result<Vec<u8>, DeviceError> {
    let mut typed = Vec::new();
    while typed.len() < BYTES {
        match console.read()? {
            Some(byte) => typed.push(byte),
            None if console.is_idle()? => Current::wait(),
            None => {}
        }
    }
    Ok(typed)
}

/// The text: lines of their number and a part of the alphabet.
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
