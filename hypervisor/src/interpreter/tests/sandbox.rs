//! A machine for the interpreter to execute in: three pages at the addresses of [`crate::testing::engine`].

use std::arch::x86_64::CpuidResult;
use std::sync::Arc;

use crate::exec::virtual_cpu::VirtualCpu;
use crate::interpreter::{Interpreter, Machine, Place};
use crate::machine::memory::{Backing, MachineMemory, Maddr, PAGE_SIZE};
use crate::machine::words::Words;
use crate::testing::engine::{CODE_VA, DATA_VA, STACK_TOP};
use crate::x86::exception::Exception;
use crate::x86::exception::page_error::{FETCH, PRESENT, USER, WRITE};
use crate::x86::registers::Regs;
use crate::x86::walk::Access;

/// The pages, and whether they can be written.
const PAGES: [(u64, bool); 3] = [(CODE_VA, false), (DATA_VA, true), (STACK_TOP - PAGE_SIZE, true)];

/// The machine around the processor.
#[derive(Default)]
pub(in crate::interpreter) struct Sandbox {
    /// A device interrupts, always.
    pub interrupts: bool,
    pub foreign_writes: u64,
}

impl Machine for Sandbox {
    type Failure = ();
    type Event = ();

    fn translate(&mut self, va: u64, access: Access) -> Result<Place, Exception> {
        if !paravane_abi::addr::is_canonical(va) {
            return Err(Exception::protection(0));
        }
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        let code = bit(access.write, WRITE) | bit(access.user, USER) | bit(access.fetch, FETCH);
        let page = (0u64..).zip(PAGES).find(|(_, (page, _))| *page == va & !(PAGE_SIZE - 1));
        let Some((frame, (_, writable))) = page else { return Err(Exception::page(code, va)) };
        if access.write && !writable {
            return Err(Exception::page(code | PRESENT, va));
        }
        Ok(Place::Memory { at: Maddr(frame * PAGE_SIZE + va % PAGE_SIZE), level: 1 })
    }
    fn activate(&mut self, _: &VirtualCpu) -> Result<(), ()> {
        Ok(())
    }
    fn bus_in(&mut self, _: u64, buf: &mut [u8]) {
        buf.fill(0xff);
    }
    fn bus_out(&mut self, _: u64, _: &[u8]) {}
    fn port_in(&mut self, _: u16, _: u8) -> u32 {
        u32::MAX
    }
    fn port_out(&mut self, _: u16, _: u8, _: u32) -> Option<()> {
        None
    }
    fn interrupts(&mut self) -> bool {
        self.interrupts
    }
    fn acknowledge(&mut self) -> u8 {
        0
    }
    fn is_due(&mut self) -> bool {
        false
    }
    fn time_stamp(&self) -> u64 {
        0
    }
    fn cpuid(&self, _: u32, _: u32, _: bool) -> CpuidResult {
        CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 }
    }
    fn foreign_writes(&self) -> u64 {
        self.foreign_writes
    }
}

/// A processor at CPL 3 in it, and its memory.
pub(in crate::interpreter) fn processor(keeps: bool) -> (Interpreter<Sandbox>, Arc<MachineMemory>) {
    let memory = Arc::new(MachineMemory::new(PAGES.len() as u64, 0, Backing::Anonymous).unwrap());
    let words = Words::new(&memory).unwrap();
    let mut cpu = VirtualCpu::new(0);
    cpu.user = true;
    let regs = Regs { rip: CODE_VA, rflags: 0x202, ..Regs::default() };
    (Interpreter::new(&regs, cpu, Sandbox::default(), words, keeps), memory)
}
