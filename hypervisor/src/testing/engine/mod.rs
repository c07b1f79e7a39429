//! A world for engines to be tested in: machine memory, hand-made page tables, snippets of machine code.
//!
//! The cases in [`cases`] are about the contract of [`Machine`] and [`Cpu`] and so are the same for every engine; an
//! engine's own tests call them with a world made for it.

pub(crate) mod advisories;
pub(crate) mod cases;
pub(crate) mod kicked;
pub(crate) mod measure;
pub(crate) mod own_code;
pub(crate) mod ports;
pub(crate) mod registers;
mod selectors;
pub(crate) mod several;
pub(crate) mod state;

use std::sync::atomic::{AtomicU64, Ordering};

use paravane_abi::{addr, pte};

use crate::engine::{Cpu, Exit, Machine};
use crate::machine::kick::Kick;
use crate::machine::layout::{HypervisorLayout, OwnCode};
use crate::machine::memory::{Backing, MachineMemory, Maddr, Mfn, PAGE_SIZE};
use crate::mmu::log::{PteWrite, TableLog};
use crate::mmu::space::VcpuSpace;
use crate::x86::exception::Fault;
use crate::x86::registers::Regs;

/// In an engine's place where nothing but kicks matters: how many there were.
#[derive(Debug, Default)]
pub(crate) struct CountKicks(AtomicU64);

impl CountKicks {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Kick for CountKicks {
    fn kick(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
    fn arm(&self, _: u64) {}
}

/// Where snippets are put.
pub(crate) const CODE_VA: u64 = 0x40_0000;
/// A page of data that snippets may use.
pub(crate) const DATA_VA: u64 = 0x50_0000;
/// The top of a page of stack.
pub(crate) const STACK_TOP: u64 = 0x60_1000;
/// The hypercall page.
pub(crate) const HYPERCALL_VA: u64 = 0x70_0000;

/// Rights of a page of code, and of one of data, as a kernel at CPL 3 has them.
pub(crate) const TEXT: u64 = pte::PRESENT | pte::USER | pte::ACCESSED;
pub(crate) const DATA: u64 = TEXT | pte::RW | pte::DIRTY | pte::NX;
pub(crate) const TABLE: u64 = pte::PRESENT | pte::USER | pte::RW | pte::ACCESSED;

const GUEST_FRAMES: u64 = 8192;

/// Machine code from assembly text (position-independent; local labels from 4 up).
macro_rules! code {
    ($($line:literal),* $(,)?) => {{
        let (start, end): (*const u8, *const u8);
        // SAFETY: only takes the addresses of the bytes between the labels, which are jumped over.
        unsafe {
            core::arch::asm!(
                "lea {s}, [rip + 2f]", "lea {e}, [rip + 3f]", "jmp 3f", "2:", $($line,)* "3:",
                s = out(reg) start, e = out(reg) end,
            );
            std::slice::from_raw_parts(start, end.addr() - start.addr()).to_vec()
        }
    }};
}
pub(crate) use code;

/// One test for each case of the contract, in a world made by `$world`, which says SKIP where it has none.
macro_rules! contract {
    ($world:ident) => {
        $crate::testing::engine::contract!(@ $world:
            hypercall_by_the_page, iret_by_the_page, bare_syscall, privileged_instructions, exceptions,
            task_switched, single_step, page_faults, remapping, aliases, shared_tables, accessed_and_dirty,
            switching_roots, vector_state, kick_before_entry, kicks_while_running, deadline,
            unloadable_registers, machine_to_physical, time_stamp_counter, scattered_batch, large_pages,
            selectors, guests_descriptors);
        $crate::testing::engine::contract!(@ own_code $world: code_and_state_of_ours, code_written_by_the_host);
        $crate::testing::engine::contract!(@ registers $world: allowed_instructions, widest_vector_state);
        $crate::testing::engine::contract!(@ advisories $world:
            entries_are_in_64_bit_mode, xsa_7_returns_to_addresses_that_are_not_canonical,
            xsa_52_a_guest_begins_with_no_ones_state, xsa_52_x87_state_is_the_guests_in_every_root,
            xsa_220_protection_keys_are_not_kept, xsa_260_mov_ss_before_every_way_out,
            xsa_279_flushes_of_any_address, xsa_293_bases_are_what_was_told);
        $crate::testing::engine::contract!(@ state $world: state_is_restored, damaged_state_is_refused, breakpoints);
        /// One after the other: two machines on one thread would share what belongs to it.
        #[test]
        fn state_goes_on_in_another_machine() {
            let saved = $world().map(|mut w| $crate::testing::engine::state::of_a_guest(&mut w));
            if let (Some(saved), Some(mut w)) = (saved, $world()) {
                $crate::testing::engine::state::state_goes_on(&mut w, &saved);
            }
        }
        $crate::testing::engine::contract!(@ ports $world: port_accesses, no_hypercall_in_user_mode);
    };
    (@ $world:ident: $($case:ident),*) => {
        $crate::testing::engine::contract!(@ cases $world: $($case),*);
    };
    (@ $module:ident $world:ident: $($case:ident),*) => {$(
        #[test]
        fn $case() {
            if let Some(mut w) = $world() {
                $crate::testing::engine::$module::$case(&mut w);
            }
        }
    )*};
}
pub(crate) use contract;

/// A guest: memory, an address space, registers and the engine that runs it.
pub(crate) struct World {
    pub memory: MachineMemory,
    pub layout: HypervisorLayout,
    /// Dropped before its machine.
    pub cpu: Box<dyn Cpu>,
    pub engine: Box<dyn Machine>,
    pub space: VcpuSpace,
    pub log: TableLog,
    pub regs: Regs,
    /// The exit of a call through the hypercall page.
    pub by_page: Exit,
    next: u64,
    reserved: [u64; 16],
}

impl World {
    /// A world with a page each of code, data, stack and hypercalls, and rsp at the top of the stack.
    pub fn new<E>(
        backing: Backing,
        make: impl FnOnce(&MachineMemory, &HypervisorLayout) -> Result<Box<dyn Machine>, E>,
    ) -> Result<Self, E> {
        Self::with_vcpus(backing, 1, make)
    }

    /// The same on a machine that has this many virtual CPUs, of which the world takes the first.
    pub fn with_vcpus<E>(
        backing: Backing,
        vcpus: u32,
        make: impl FnOnce(&MachineMemory, &HypervisorLayout) -> Result<Box<dyn Machine>, E>,
    ) -> Result<Self, E> {
        let layout = HypervisorLayout::with_vcpus(GUEST_FRAMES, 0, OwnCode { state: 1, code: 1 }, vcpus);
        let memory = MachineMemory::new(layout.hypervisor_frames(), GUEST_FRAMES, backing).unwrap();
        let mut engine = make(&memory, &layout)?;
        let cpu = engine.cpu(0).unwrap();
        let reserved = engine.reserved_l4_entries();
        let next = memory.guest_base().0;
        let by_syscall = ["vmcall", "syscall"].contains(&engine.info().transport);
        let by_page = if by_syscall { Exit::Syscall } else { Exit::Hypercall };
        let log = TableLog::default();
        let mut world = Self {
            memory,
            layout,
            cpu,
            engine,
            space: VcpuSpace::new(Mfn(0), &log),
            log,
            regs: Regs { rsp: STACK_TOP, rflags: 0x202, ..Regs::default() },
            by_page,
            next,
            reserved,
        };
        let root = world.new_root();
        world.space.set_root(root);
        for (va, flags) in
            [(CODE_VA, TEXT), (DATA_VA, DATA), (STACK_TOP - PAGE_SIZE, DATA), (HYPERCALL_VA, TEXT)]
        {
            let frame = world.frame();
            world.map(va, frame, flags);
        }
        let page = world.mfn_of(HYPERCALL_VA).maddr();
        for number in 0..128 {
            let entry = world.engine.hypercall_stub(number);
            world.memory.write(Maddr(page.0 + u64::from(number) * 32), &entry).unwrap();
        }
        Ok(world)
    }

    /// A fresh, zeroed frame.
    pub fn frame(&mut self) -> Mfn {
        self.next += 1;
        assert!(self.memory.is_frame(Mfn(self.next - 1)), "the world is out of frames");
        Mfn(self.next - 1)
    }
    /// An L4 table with nothing but what the engine wants in it.
    pub fn new_root(&mut self) -> Mfn {
        let root = self.frame();
        for (slot, entry) in (addr::RESERVED_L4_FIRST as u64..).zip(self.reserved) {
            self.memory.store_u64(Maddr(root.maddr().0 + slot * 8), entry).unwrap();
        }
        root
    }
    /// Where the entry of `va` at `level` is, tables made as needed.
    pub fn entry(&mut self, va: u64, level: u8) -> Maddr {
        self.entry_in(self.space.root(), va, level)
    }
    /// The same in the tables of another root.
    pub fn entry_in(&mut self, root: Mfn, va: u64, level: u8) -> Maddr {
        let mut table = root;
        for l in (level + 1..=4).rev() {
            let at = Maddr(table.maddr().0 + addr::table_index(va, l.into()) as u64 * 8);
            let mut value = self.memory.load_u64(at).unwrap();
            if value & pte::PRESENT == 0 {
                value = pte::make(self.frame().0, TABLE);
                self.write(at, l, value);
            }
            table = Mfn(pte::mfn(value));
        }
        Maddr(table.maddr().0 + addr::table_index(va, level.into()) as u64 * 8)
    }
    /// Writes an entry as the MMU code does: to memory first, then to `paging`.
    pub fn write(&mut self, entry: Maddr, level: u8, new: u64) {
        let old = self.memory.load_u64(entry).unwrap();
        self.memory.store_u64(entry, new).unwrap();
        self.log.wrote(PteWrite { entry, old, new, level });
    }
    /// Sets the L1 entry of `va`.
    pub fn set(&mut self, va: u64, value: u64) {
        let entry = self.entry(va, 1);
        self.write(entry, 1, value);
    }
    /// Maps `frame` at `va`.
    pub fn map(&mut self, va: u64, frame: Mfn, flags: u64) {
        self.set(va, pte::make(frame.0, flags));
    }
    /// The L1 entry of `va`.
    pub fn get(&mut self, va: u64) -> u64 {
        let entry = self.entry(va, 1);
        self.memory.load_u64(entry).unwrap()
    }
    /// The frame mapped at `va`.
    pub fn mfn_of(&mut self, va: u64) -> Mfn {
        Mfn(pte::mfn(self.get(va)))
    }
    /// A word of memory at `va`.
    pub fn peek(&mut self, va: u64) -> u64 {
        let page = self.mfn_of(va).maddr().0;
        self.memory.load_u64(Maddr(page + va % PAGE_SIZE)).unwrap()
    }
    /// Sets a word of memory at `va`.
    pub fn poke(&mut self, va: u64, value: u64) {
        let page = self.mfn_of(va).maddr().0;
        self.memory.store_u64(Maddr(page + va % PAGE_SIZE), value).unwrap();
    }
    /// Puts a snippet at [`CODE_VA`] and rip before it.
    pub fn load(&mut self, code: &[u8]) {
        let page = self.mfn_of(CODE_VA).maddr();
        self.memory.write(page, &[0xcc; PAGE_SIZE as usize]).unwrap();
        self.memory.write(page, code).unwrap();
        self.regs.rip = CODE_VA;
    }
    /// Enters once.
    pub fn enter(&mut self) -> Exit {
        self.cpu.catch_up_and_enter(&mut self.regs, &mut self.space, &self.log, &self.memory)
    }
    /// Enters until there is something other than a kick.
    pub fn run(&mut self) -> Exit {
        loop {
            let exit = self.enter();
            if exit != Exit::Kick {
                return exit;
            }
        }
    }
    /// Loads a snippet and runs it.
    pub fn exec(&mut self, code: &[u8]) -> Exit {
        self.load(code);
        self.run()
    }
}

/// A #GP with this error code.
pub(crate) fn gp(error_code: u32) -> Exit {
    Exit::Fault(Fault { vector: 13, error_code, address: 0 })
}

/// A #PF.
pub(crate) fn pf(error_code: u32, address: u64) -> Exit {
    Exit::Fault(Fault { vector: 14, error_code, address })
}

/// Another exception without an error code.
pub(crate) fn fault(vector: u8) -> Exit {
    Exit::Fault(Fault { vector, error_code: 0, address: 0 })
}
