//! A paravirtual domain to test on, without an image and without an engine.
//!
//! 96 frames, all mapped at [`BASE`] in order: four boot tables (read-only), and the rest writable. More, if a test
//! asks for them, are mapped nowhere.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use paravane_abi::errno::Errno;
use paravane_abi::hypercall as nr;
use paravane_abi::{addr, pte};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::machine::console::{CaptureSink, ConsoleInput};
use crate::machine::kick::Kick;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{Backing, MachineMemory, Maddr, Mfn, PAGE_SIZE};
use crate::machine::time::Clock;
use crate::mmu::direct::DirectPaging;
use crate::mmu::log::TableLog;
use crate::mmu::space::VcpuSpace;
use crate::pv::access::GuestMemory;
use crate::pv::context::PvContext;
use crate::pv::domain::{CONSOLE_PORT, DOMID, Facts, PvConsole, PvDomain, PvParts, PvStore, STORE_PORT};
use crate::pv::event::upcall::Upcall;
use crate::pv::guest_pointer::GuestPtr;
use crate::pv::hypercall::{HypercallResult, Outcome, dispatch};
use crate::pv::store::About;
use crate::pv::vcpu::{PvVcpu, VcpuId};
use crate::testing::engine::CountKicks;
use crate::x86::registers::Regs;

/// Frames that the guest has.
pub const FRAMES: u64 = 96;
/// Linear address of PFN 0.
pub const BASE: u64 = 0x4000_0000;
/// PFNs of the boot tables.
pub const L4: u64 = 0;
/// As above.
pub const L3: u64 = 1;
/// As above.
pub const L2: u64 = 2;
/// As above.
pub const L1: u64 = 3;
/// PFN of the xenstore ring.
pub const STORE: u64 = 7;
/// PFN of the console ring.
pub const CONSOLE: u64 = 4;
/// PFN of the page whose end is the boot stack's top.
pub const STACK: u64 = 5;
/// PFN where arguments of hypercalls are put.
pub const SCRATCH: u64 = 6;
/// First PFN that nothing uses.
pub const FREE: u64 = 8;
/// Linear address at which nothing is mapped.
pub const NOWHERE: u64 = 0x7fff_ffff_f000;

/// What an L1 entry of ordinary memory has.
pub const RW: u64 = pte::PRESENT | pte::RW | pte::USER | pte::ACCESSED | pte::DIRTY;
/// What an L1 entry of read-only memory has.
pub const RO: u64 = RW & !pte::RW;

/// The domain, its vCPU, and its console's output.
pub struct TestDomain {
    /// The domain.
    pub domain: PvDomain,
    /// Its vCPU.
    pub vcpu: PvVcpu,
    /// What it printed.
    pub output: CaptureSink,
    /// What is typed for it.
    pub input: ConsoleInput,
}

impl Deref for TestDomain {
    type Target = PvDomain;
    fn deref(&self) -> &PvDomain {
        &self.domain
    }
}

impl DerefMut for TestDomain {
    fn deref_mut(&mut self) -> &mut PvDomain {
        &mut self.domain
    }
}

/// Linear address of a page.
pub const fn va(pfn: u64) -> u64 {
    BASE + pfn * PAGE_SIZE
}

impl TestDomain {
    /// A domain in kernel mode with no handlers, upcalls masked.
    pub fn new() -> Self {
        Self::with_frames(FRAMES)
    }
    /// One that has `frames` frames, of which those past [`FRAMES`] are mapped nowhere.
    pub fn with_frames(frames: u64) -> Self {
        let kicks = Arc::new(CountKicks::default());
        Self::with_kicks(frames, vec![kicks])
    }
    /// One with as many vCPUs as there are `kicks`.
    pub fn with_kicks(frames: u64, kicks: Vec<Arc<dyn Kick>>) -> Self {
        let vcpus = kicks.len();
        let layout = HypervisorLayout::new(frames, 0);
        let memory = MachineMemory::new(layout.hypervisor_frames(), frames, Backing::Anonymous).unwrap();
        let base = layout.hypervisor_frames();
        let link = |table: u64, level: u32, to: u64| {
            let index = addr::table_index(BASE, level) as u64;
            let at = Maddr(Mfn(base + table).maddr().0 + index * 8);
            memory.store_u64(at, pte::make(base + to, RW)).unwrap();
        };
        link(L4, 4, L3);
        link(L3, 3, L2);
        link(L2, 2, L1);
        for pfn in 0..FRAMES {
            let flags = if pfn <= L1 { RO } else { RW };
            let at = Maddr(Mfn(base + L1).maddr().0 + pfn * 8);
            memory.store_u64(at, pte::make(base + pfn, flags)).unwrap();
        }
        for pfn in 0..frames {
            let at = Maddr(Mfn(layout.m2p.start).maddr().0 + (base + pfn) * 8);
            memory.store_u64(at, pfn).unwrap();
        }
        let mut mmu = DirectPaging::new(&layout, [0; 16]).unwrap();
        let mut log = TableLog::default();
        let space = VcpuSpace::new(Mfn(base + L4), &log);
        let tables = mmu.pin_initial(&memory, &mut log, Mfn(base + L4)).unwrap();
        let (output, input) = (CaptureSink::default(), ConsoleInput::default());
        let ring = Mfn(base + CONSOLE).maddr();
        let console = PvConsole { ring, sink: Box::new(output.clone()), input: input.clone() };
        let about = About {
            domain: DOMID,
            name: "test".into(),
            vcpus,
            memory_kib: frames * (PAGE_SIZE >> 10),
            store: (base + STORE, STORE_PORT),
            console: (base + CONSOLE, CONSOLE_PORT),
        };
        let store = PvStore::new(Mfn(base + STORE).maddr(), about);
        let facts = Facts {
            m2p_told: None,
            hypercall_page: None,
            m2p_va: 0xffff_8080_0000_0000,
            m2p: layout.m2p.clone(),
            grants: layout.grants.clone(),
            tsc_khz: 2_000_000,
            call_length: 2,
            marks: false,
        };
        let regs = Regs { rip: va(FREE), rsp: va(STACK + 1), rflags: 0x202, ..Regs::default() };
        let (mut domain, vcpu) = PvDomain::new(PvParts {
            memory,
            mmu,
            tables,
            log,
            space,
            regs,
            shared_info: layout.shared_info.maddr(),
            clock: Clock::new(2_000_000, 0),
            console,
            store,
            facts,
            kicks,
        })
        .unwrap();
        domain.bells.of(vcpu.id).set_mask(&domain.memory, true).unwrap();
        domain.connect_services();
        Self { domain, vcpu, output, input }
    }

    /// The vCPU in its domain.
    pub fn cx(&mut self) -> PvContext<'_> {
        PvContext { domain: &mut self.domain, vcpu: &mut self.vcpu }
    }
    /// The guest's memory in the address space that runs.
    pub fn guest(&self) -> GuestMemory<'_> {
        GuestMemory::new(&self.domain.memory, self.vcpu.space.root())
    }
    /// Reads a structure of the guest's at a linear address.
    pub fn read_at<T: FromBytes + IntoBytes>(&self, va: u64) -> Result<T, Errno> {
        self.guest().read(GuestPtr::new(va))
    }
    /// Writes a structure at a linear address.
    pub fn write_at<T: IntoBytes + Immutable>(&self, va: u64, value: &T) -> Result<(), Errno> {
        self.guest().write(GuestPtr::new(va), value)
    }
    /// Where the vCPU's event bits are.
    pub fn upcall(&self) -> Upcall {
        self.domain.bells.of(self.vcpu.id)
    }
    /// Performs a hypercall, as far as one entry may.
    pub fn dispatch(&mut self, number: u64, args: [u64; 6]) -> HypercallResult {
        dispatch(self.cx(), number, args)
    }

    /// The machine frame of a page.
    pub fn mfn(&self, pfn: u64) -> u64 {
        self.memory.pfn_to_mfn(pfn).unwrap().0
    }
    /// An L1 entry for a page.
    pub fn entry(&self, pfn: u64, flags: u64) -> u64 {
        pte::make(self.mfn(pfn), flags)
    }
    fn word(&self, pfn: u64, index: u64) -> Maddr {
        Maddr(Mfn(self.mfn(pfn)).maddr().0 + index * 8)
    }
    /// Stores a word of a page, whatever maps it.
    pub fn poke(&self, pfn: u64, index: u64, value: u64) {
        self.memory.store_u64(self.word(pfn, index), value).unwrap();
    }
    /// Loads a word of a page.
    pub fn peek(&self, pfn: u64, index: u64) -> u64 {
        self.memory.load_u64(self.word(pfn, index)).unwrap()
    }
    /// What the machine-to-physical table says of a page's first frame.
    pub fn m2p(&self, mfn: u64) -> u64 {
        self.memory.load_u64(Maddr(Mfn(self.facts.m2p.start).maddr().0 + mfn * 8)).unwrap()
    }

    /// From now on several vCPUs use its tables.
    pub fn share(&mut self) {
        self.domain.mmu.expect_several_vcpus(&mut self.domain.log).unwrap();
    }
    /// What the host does before an interrupted call is issued again: it enters the guest.
    pub fn everyone_catches_up(&mut self) {
        self.domain.log.applied_for_everyone();
    }
    /// Another vCPU of its kernel's, with the same tables.
    pub fn another_vcpu(&mut self, number: u32) -> PvVcpu {
        let root = self.vcpu.space.root();
        let tables = self.domain.mmu.attach(&self.domain.memory, &mut self.domain.log, root).unwrap();
        let space = VcpuSpace::new(root, &self.domain.log);
        PvVcpu::new(VcpuId::new(number).unwrap(), self.vcpu.regs, space, tables)
    }

    /// Makes a hypercall, to its end however often it is interrupted.
    pub fn call<const N: usize>(&mut self, number: u64, args: [u64; N]) -> Result<u64, Errno> {
        let mut all = [0; 6];
        all[..N].copy_from_slice(&args);
        for _ in 0..10_000 {
            match self.dispatch(number, all)? {
                Outcome::Done(value) => return Ok(value),
                Outcome::Jumped => return Ok(self.vcpu.regs.rax),
                Outcome::Again(rest) => {
                    self.everyone_catches_up();
                    all = rest;
                }
            }
        }
        panic!("hypercall {number} never ends");
    }
    /// Makes a call of the form (operation, structure), and returns the structure as it was left.
    pub fn op<T>(&mut self, number: u64, op: u32, argument: T) -> Result<(u64, T), Errno>
    where
        T: IntoBytes + FromBytes + Immutable,
    {
        self.write_at(va(SCRATCH), &argument).unwrap();
        let result = self.call(number, [u64::from(op), va(SCRATCH)])?;
        Ok((result, self.read_at(va(SCRATCH)).unwrap()))
    }
    /// Sets the L1 entry of a page's address.
    pub fn map(&mut self, pfn: u64, entry: u64) -> Result<u64, Errno> {
        self.call(nr::UPDATE_VA_MAPPING, [va(pfn), entry, 0])
    }
    /// Takes a page's mapping away.
    pub fn unmap(&mut self, pfn: u64) {
        self.map(pfn, 0).unwrap();
    }
    /// Uses pages, which must not be mapped writable, as the GDT.
    pub fn set_gdt(&mut self, pfns: &[u64], entries: u64) {
        for (i, pfn) in pfns.iter().enumerate() {
            self.poke(SCRATCH, i as u64, self.mfn(*pfn));
        }
        self.call(nr::SET_GDT, [va(SCRATCH), entries]).unwrap();
    }
    /// Makes pages `l4` and `l3` a second address space, which has the first's tables below, and the user's.
    pub fn set_user_root(&mut self, l4: u64, l3: u64) {
        let (l3_entry, l2_entry) = (self.entry(l3, RW), self.entry(L2, RW));
        for (pfn, level, entry) in [(l4, 4, l3_entry), (l3, 3, l2_entry)] {
            self.poke(pfn, addr::table_index(BASE, level) as u64, entry);
            let read_only = self.entry(pfn, RO);
            self.map(pfn, read_only).unwrap();
        }
        let op = paravane_abi::mmu::MmuextOp {
            cmd: paravane_abi::mmu::MMUEXT_NEW_USER_BASEPTR,
            arg1: self.mfn(l4),
            ..Default::default()
        };
        self.write_at(va(SCRATCH), &op).unwrap();
        let this = u64::from(paravane_abi::domid::DOMID_SELF);
        self.call(nr::MMUEXT_OP, [va(SCRATCH), 1, 0, this]).unwrap();
    }
    /// Sets a handler for a vector.
    pub fn handle(&mut self, vector: u8, address: u64, flags: u8) {
        let trap = paravane_abi::trap::TrapInfo { vector, flags, address, ..Default::default() };
        self.write_at(va(SCRATCH), &[trap, Default::default()]).unwrap();
        self.call(nr::SET_TRAP_TABLE, [va(SCRATCH)]).unwrap();
    }
    /// Why the domain was killed.
    pub fn death(&self) -> Option<String> {
        match &self.end {
            Some(crate::machine::end::DomainEnd::Killed(why)) => Some(why.clone()),
            _ => None,
        }
    }
}
