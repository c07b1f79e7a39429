//! What the gate needs around it: descriptor tables, a stack, and page tables for the reserved slots.
//!
//! Everything lies in the linear range that Xen reserves for itself (L4 slots 256..=271):
//!
//! | slot | what | guest may |
//! | --- | --- | --- |
//! | 256 | machine-to-physical table, on hardware KVM | read |
//! | 257 | machine-to-physical table | read |
//! | 260 | gate: SYSCALL entry of the `pio` transport | execute |
//! | 260 | gate: text, the guest's descriptors, its own descriptor tables, stack, work list | nothing |
//! | 262 | all machine memory, for the gate's page-table stores | nothing |
//!
//! Each virtual CPU has a gate of its own: its descriptor tables, stack and work list, at a distance of [`STRIDE`] from
//! those of the one before. The text is one frame, mapped in each, and finds the data around it relative to itself. Two
//! exceptions at once would otherwise overwrite one another's frames.
//!
//! Slot 256, where Xen has its M2P, does not work for guests of software KVM: loads from there fault, and are emulated.

use std::ops::Range;

use paravane_abi::segment::GDT_FRAMES;
use paravane_abi::{addr, pte};

use super::gdt::{Gdt, offset};
use super::host::{self, HostKind};
use super::transport::Transport;
use super::{fast, gate};
use crate::machine::layout::{HypervisorLayout, VCPU_FRAMES};
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr, Mfn, PAGE_SIZE};
use crate::mmu::space::GdtFrames;
use crate::x86::descriptor::{Gate, bits, flat, tss};
use crate::x86::exception::vector;

/// Frames that machine memory may have: what one L4 slot maps of it, and of the machine-to-physical table one L2 table.
pub const MAX_FRAMES: u64 = 1 << 27;

/// Whether the tables here can map all of it: see [`MAX_FRAMES`].
pub fn can_map(layout: &HypervisorLayout) -> bool {
    layout.total <= MAX_FRAMES && layout.m2p.end - layout.m2p.start <= MAX_FRAMES / 512
}

/// The largest guest in GiB that has as much shadow for its size as the one of `layout` and can be mapped.
pub fn largest_guest_gib(layout: &HypervisorLayout) -> u64 {
    let guest = u128::from((layout.total - layout.hypervisor_frames()).max(1));
    let shadow = u128::from(layout.shadow.end - layout.shadow.start);
    let fits = |gib: &u64| {
        let frames = gib << 18;
        let shadow = u64::try_from(u128::from(frames) * shadow / guest).unwrap_or(u64::MAX);
        can_map(&HypervisorLayout::new(frames, shadow))
    };
    (0..=MAX_FRAMES >> 18).rev().find(fits).unwrap_or(0)
}

pub(super) const fn slot_va(slot: u64) -> u64 {
    0xffff_0000_0000_0000 | slot << 39
}

/// Linear address of the machine-to-physical table.
pub const M2P_VA: u64 = slot_va(257);
/// Linear address of the gate's first page.
pub const GATE_VA: u64 = slot_va(260);
/// Linear address at which the gate sees machine address 0.
pub const PHYSMAP_VA: u64 = slot_va(262);

/// From the gate of one virtual CPU to that of the next: what one L1 table maps.
pub const STRIDE: u64 = 2 << 20;

/// SYSCALL's target on the `pio` transport, the same for all virtual CPUs.
pub const SYSCALL_VA: u64 = GATE_VA;
// Of the first virtual CPU's gate:
/// The supervisor text.
pub const TEXT_VA: u64 = GATE_VA + PAGE_SIZE;
/// The pages of the guest's GDT, right below the descriptors of our own.
const GUEST_GDT_PAGE: u64 = 2;
/// The gate's own part of the GDT, the TSS and the IDT.
pub const DESCRIPTORS_VA: u64 = GATE_VA + DESCRIPTORS_PAGE * PAGE_SIZE;
const DESCRIPTORS_PAGE: u64 = GUEST_GDT_PAGE + GDT_FRAMES as u64;
/// The gate's one-page stack; at its bottom the scratch words of the `vmcall` transport.
pub const STACK_VA: u64 = DESCRIPTORS_VA + PAGE_SIZE;
const _: () = assert!(STACK_VA - TEXT_VA == gate::SCRATCH_OFFSET);
/// Where the CPU starts to push an exception's frame.
pub const STACK_TOP_VA: u64 = STACK_VA + PAGE_SIZE;
/// The work list of `apply`.
pub const WORK_VA: u64 = STACK_VA + PAGE_SIZE;
/// Pages of the work list.
pub const WORK_PAGES: u64 = 2;

// Frames, counted from the engine's first.
const SYSCALL_FRAME: u64 = 0;
const TEXT_FRAME: u64 = 1;
const DESCRIPTORS_FRAME: u64 = 2;
const STACK_FRAME: u64 = 3;
const WORK_FRAME: u64 = 4;
/// All zeroes: what a guest's GDT is where it has set none.
const EMPTY_FRAME: u64 = WORK_FRAME + WORK_PAGES;
const L3_M2P: u64 = EMPTY_FRAME + 1;
const L2_M2P: u64 = L3_M2P + 1;
const L3_GATE: u64 = L2_M2P + 1;
const L2_GATE: u64 = L3_GATE + 1;
const L1_GATE: u64 = L2_GATE + 1;
const L3_PHYSMAP: u64 = L1_GATE + 1;
/// What the fast paths have.
const FIRST_FAST: u64 = L3_PHYSMAP + 1;
const FIRST_L2_PHYSMAP: u64 = FIRST_FAST + fast::FRAMES;

// Frames of the gate of a virtual CPU past the first, counted from its own first, which are laid out like the first's.
const OWN_DESCRIPTORS: u64 = 0;
const OWN_L1: u64 = VCPU_FRAMES - 1;
const _: () = assert!(OWN_L1 == WORK_FRAME + WORK_PAGES - DESCRIPTORS_FRAME);

/// Offset of the IDT in the descriptor page.
const IDT_OFFSET: u64 = 0x800;
/// Offset of the TSS in the descriptor page.
const TSS_OFFSET: u64 = 0x100;

/// Last valid offset of the IDT: 32 vectors.
pub const IDT_LIMIT: u16 = 32 * 16 - 1;
/// Linear address of the IDT.
pub const IDT_VA: u64 = DESCRIPTORS_VA + IDT_OFFSET;
/// Linear address of the TSS.
pub const TSS_VA: u64 = DESCRIPTORS_VA + TSS_OFFSET;
/// Where the I/O bitmap begins in the TSS.
const IO_BITMAP: u64 = 104;
/// Bytes of the I/O bitmap: enough for ports up to the exit port; ports past the limit are denied
/// (SDM vol. 1, 19.5.2), and the byte after the bitmap must be all ones.
const IO_BITMAP_BYTES: u64 = gate::EXIT_PORT as u64 / 8 + 2;
/// Last valid offset of the TSS.
pub const TSS_LIMIT: u16 = (IO_BITMAP + IO_BITMAP_BYTES - 1) as u16;

/// The gate of a virtual CPU, as it lies in machine memory.
#[derive(Clone, Debug)]
pub struct GateTables {
    base: u64,
    /// The first frame of its own: its descriptors'.
    own: u64,
    /// The L1 table that maps it.
    l1: u64,
    /// How far it is from the first one.
    distance: u64,
    syscall: Range<u64>,
    reserved: [u64; 16],
}

impl GateTables {
    /// Writes the gate, its tables and the page tables of the reserved slots into the engine's frames.
    pub fn install(
        memory: &MachineMemory,
        layout: &HypervisorLayout,
        transport: Transport,
        gdt: Gdt,
    ) -> Result<Self, BadMachineAddress> {
        let base = layout.engine.start;
        let frame = |n: u64| Mfn(base + n).maddr();
        memory.write(frame(SYSCALL_FRAME), gate::syscall_text())?;
        memory.write(frame(TEXT_FRAME), gate::supervisor_text())?;
        let table = |n: u64, flags: u64| frame(n).0 | flags;
        let user = pte::PRESENT | pte::RW | pte::USER | pte::ACCESSED;
        let supervisor = pte::PRESENT | pte::RW | pte::ACCESSED;
        let put =
            |table: u64, index: u64, entry: u64| memory.store_u64(Maddr(frame(table).0 + index * 8), entry);

        put(L3_GATE, 0, table(L2_GATE, user))?;
        let to_see = if transport == Transport::Pio { pte::PRESENT | pte::USER | pte::ACCESSED } else { 0 };
        put(L1_GATE, 0, table(SYSCALL_FRAME, to_see))?;

        let gib = layout.total.div_ceil(1 << 18);
        for n in 0..gib {
            put(L3_PHYSMAP, n, table(FIRST_L2_PHYSMAP + n, supervisor))?;
        }
        for n in 0..layout.total.div_ceil(512) {
            let entry = n << 21 | supervisor | pte::DIRTY | pte::PSE | pte::NX;
            put(FIRST_L2_PHYSMAP + n / 512, n % 512, entry)?;
        }

        map_m2p(memory, layout, base, FIRST_L2_PHYSMAP + gib)?;

        let mut reserved = [0; 16];
        reserved[257 - 256] = table(L3_M2P, pte::PRESENT | pte::USER | pte::ACCESSED);
        if host::usable_kind() == HostKind::Hardware {
            reserved[0] = reserved[257 - 256];
        }
        reserved[260 - 256] = table(L3_GATE, user);
        reserved[262 - 256] = table(L3_PHYSMAP, supervisor);
        let tables = Self {
            base,
            own: base + DESCRIPTORS_FRAME,
            l1: base + L1_GATE,
            distance: 0,
            syscall: syscall_range(transport),
            reserved,
        };
        tables.install_own(memory, transport, gdt)?;
        Ok(tables)
    }

    /// The gate of another virtual CPU of the same machine, number `id` from 1.
    pub fn another(
        &self,
        (memory, layout): (&MachineMemory, &HypervisorLayout),
        id: u32,
        transport: Transport,
        gdt: Gdt,
    ) -> Result<Self, BadMachineAddress> {
        let own = layout.engine.end.saturating_sub(u64::from(id) * VCPU_FRAMES);
        let distance = u64::from(id) * STRIDE;
        let syscall = match transport {
            Transport::Pio => self.syscall.clone(),
            Transport::Vmcall => self.syscall.start + distance..self.syscall.end + distance,
        };
        let tables = Self { own, l1: own + OWN_L1, distance, syscall, ..self.clone() };
        tables.install_own(memory, transport, gdt)?;
        Ok(tables)
    }

    /// Writes what this virtual CPU has for itself, and maps it.
    fn install_own(
        &self,
        memory: &MachineMemory,
        transport: Transport,
        gdt: Gdt,
    ) -> Result<(), BadMachineAddress> {
        let at = |frame: u64, index: u64| Maddr(Mfn(frame).maddr().0 + index * 8);
        let user = pte::PRESENT | pte::RW | pte::USER | pte::ACCESSED;
        let supervisor = pte::PRESENT | pte::RW | pte::ACCESSED;
        let text = Mfn(self.base + TEXT_FRAME).maddr().0 | pte::PRESENT | pte::ACCESSED;
        write_descriptors(memory, Mfn(self.own + OWN_DESCRIPTORS).maddr(), (transport, gdt), self.distance)?;
        memory.store_u64(at(self.l1, 1), text)?;
        for n in 0..2 + WORK_PAGES {
            let entry = Mfn(self.own + n).maddr().0 | supervisor | pte::DIRTY | pte::NX;
            memory.store_u64(at(self.l1, DESCRIPTORS_PAGE + n), entry)?;
        }
        if gdt.is_guests() {
            self.map_gdt(memory, &[None; GDT_FRAMES])?;
        }
        memory.store_u64(at(self.base + L2_GATE, self.distance / STRIDE), Mfn(self.l1).maddr().0 | user)
    }

    /// Where this gate has what the first one has at `va`.
    pub fn va(&self, va: u64) -> u64 {
        va + self.distance
    }

    /// Makes these frames the guest's part of the GDT. Returns the page table that maps them: all that is cached of
    /// it must go.
    ///
    /// The processor sets accessed bits in the guest's descriptors, as it does on Xen.
    pub fn map_gdt(&self, memory: &MachineMemory, frames: &GdtFrames) -> Result<Mfn, BadMachineAddress> {
        let table = Mfn(self.l1);
        let empty = Mfn(self.base + EMPTY_FRAME).maddr().0 | pte::PRESENT | pte::ACCESSED | pte::NX;
        let writable = pte::PRESENT | pte::RW | pte::ACCESSED | pte::DIRTY | pte::NX;
        for (page, frame) in (GUEST_GDT_PAGE..).zip(frames) {
            let entry = frame.map_or(empty, |frame| frame.maddr().0 | writable);
            memory.store_u64(Maddr(table.maddr().0 + page * 8), entry)?;
        }
        Ok(table)
    }

    /// The entries of slots 256..=271 of every L4 table.
    pub fn reserved_l4_entries(&self) -> [u64; 16] {
        self.reserved
    }
    /// An L4 table with the reserved slots and nothing else. It lies where the work list is, which is not needed before
    /// the next one is written.
    pub fn empty_root(&self, memory: &MachineMemory) -> Result<Mfn, BadMachineAddress> {
        let root = self.work().mfn();
        memory.write(root.maddr(), &[0; PAGE_SIZE as usize])?;
        let slots = root.maddr().0 + addr::RESERVED_L4_FIRST as u64 * 8;
        memory.write(Maddr(slots), zerocopy::IntoBytes::as_bytes(&self.reserved))?;
        Ok(root)
    }
    /// Machine address of the stack page's end: exception frames lie just below.
    pub fn stack_top(&self) -> Maddr {
        Maddr(self.own_frame(STACK_FRAME).0 + PAGE_SIZE)
    }
    /// From where SYSCALL arrives to where it leaves for the host (exclusive): RIP is there as long as the host has
    /// not heard of it.
    pub fn syscall(&self) -> Range<u64> {
        self.syscall.clone()
    }
    /// Linear address of `apply`; of the one for tables that other virtual CPUs and their threads use at the same time,
    /// if they are `shared`.
    pub fn apply(&self, shared: bool) -> u64 {
        self.va(TEXT_VA) + if shared { gate::apply_shared_offset() } else { gate::apply_offset() }
    }
    /// Whether the gate is on its way back to the guest at this address, and the guest has not moved since it was left:
    /// in what follows an answered VMCALL, or applies a work list. Elsewhere in ring 0 an exit is coming.
    pub fn goes_back(&self, rip: u64) -> bool {
        let text = self.va(TEXT_VA);
        let answered = self.syscall.end.max(text + 32 * gate::VECTOR_STRIDE)..self.errand();
        let applies = text + gate::apply_shared_offset()..=text + gate::iretq_offset();
        answered.contains(&rip) || applies.contains(&rip)
    }
    /// Linear address of what applies a work list and leaves for the host.
    pub fn errand(&self) -> u64 {
        self.va(TEXT_VA) + gate::errand_offset()
    }
    /// Machine address of a frame of its own, by the number of the first gate's.
    fn own_frame(&self, frame: u64) -> Maddr {
        Mfn(self.own + frame - DESCRIPTORS_FRAME).maddr()
    }
    /// Machine address of the words in which the `vmcall` transport keeps registers.
    pub fn scratch(&self) -> Maddr {
        self.own_frame(STACK_FRAME)
    }
    /// Closes the port of the `pio` transport to CPL 3, or opens it.
    pub fn close_port(&self, memory: &MachineMemory, close: bool) -> Result<(), BadMachineAddress> {
        let byte =
            self.own_frame(DESCRIPTORS_FRAME).0 + TSS_OFFSET + IO_BITMAP + u64::from(gate::EXIT_PORT / 8);
        let closed = 0xffu8;
        memory.write_obj(Maddr(byte), &if close { closed } else { closed & !(1 << (gate::EXIT_PORT % 8)) })
    }
    /// The first of the frames that are left for the fast paths.
    pub fn fast_frames(&self) -> u64 {
        self.base + FIRST_FAST
    }
    /// Adds to the supervisor text, at an offset in its frame.
    pub fn write_text(&self, memory: &MachineMemory, at: u64, text: &[u8]) -> Result<(), BadMachineAddress> {
        memory.write(Maddr(Mfn(self.base + TEXT_FRAME).maddr().0 + at), text)
    }
    /// Makes #BP go to `handler`.
    pub fn set_breakpoint_handler(
        &self,
        memory: &MachineMemory,
        handler: u64,
        gdt: Gdt,
    ) -> Result<(), BadMachineAddress> {
        let at =
            self.own_frame(DESCRIPTORS_FRAME).0 + IDT_OFFSET + u64::from(vector::BREAKPOINT) * Gate::SIZE;
        memory.write_obj(Maddr(at), &idt_entry(vector::BREAKPOINT, handler, gdt).words())
    }
    /// Maps the last GiB of the gate's slot by an L2 table.
    pub fn map_last(&self, memory: &MachineMemory, entry: u64) -> Result<(), BadMachineAddress> {
        memory.store_u64(Maddr(Mfn(self.base + L3_GATE).maddr().0 + 511 * 8), entry)
    }
    /// Machine address of the work list.
    pub fn work(&self) -> Maddr {
        self.own_frame(WORK_FRAME)
    }
}

fn syscall_range(transport: Transport) -> Range<u64> {
    match transport {
        Transport::Pio => SYSCALL_VA..SYSCALL_VA + gate::OUT_LEN,
        Transport::Vmcall => {
            let (entry, call) = gate::call_offsets(crate::host::host_cpuid::is_amd());
            TEXT_VA + entry..TEXT_VA + call + 1
        }
    }
}

/// Maps the M2P's frames, read-only at CPL 3; its L1 tables start at engine frame `first_l1`.
fn map_m2p(
    memory: &MachineMemory,
    layout: &HypervisorLayout,
    base: u64,
    first_l1: u64,
) -> Result<(), BadMachineAddress> {
    let frame = |n: u64| Mfn(base + n).maddr().0;
    let read_only = pte::PRESENT | pte::USER | pte::ACCESSED;
    memory.store_u64(Maddr(frame(L3_M2P)), frame(L2_M2P) | read_only)?;
    for (n, mfn) in layout.m2p.clone().enumerate() {
        let (l1, index) = (first_l1 + n as u64 / 512, n as u64 % 512);
        if index == 0 {
            memory.store_u64(Maddr(frame(L2_M2P) + n as u64 / 512 * 8), frame(l1) | read_only)?;
        }
        memory.store_u64(Maddr(frame(l1) + index * 8), Mfn(mfn).maddr().0 | read_only | pte::NX)?;
    }
    Ok(())
}

/// GDT (SDM vol. 3, 3.4.5), TSS with I/O bitmap (8.7) and IDT (6.14.1).
fn write_descriptors(
    memory: &MachineMemory,
    page: Maddr,
    (transport, gdt): (Transport, Gdt),
    distance: u64,
) -> Result<(), BadMachineAddress> {
    let tss_va = TSS_VA + distance;
    let put = |offset: u64, value: u64| memory.store_u64(Maddr(page.0 + offset), value);
    put(u64::from(offset::KERNEL_CS), flat::CODE_64)?;
    put(u64::from(offset::KERNEL_SS), flat::DATA)?;
    put(u64::from(offset::USER32_CS & !3), flat::CODE_32 | bits::DPL)?;
    put(u64::from(offset::USER_SS & !3), flat::DATA | bits::DPL)?;
    put(u64::from(offset::USER_CS & !3), flat::CODE_64 | bits::DPL)?;
    const BUSY_TSS: u64 = 0x8b << 40;
    let limit = u64::from(TSS_LIMIT);
    let low = limit | (tss_va & 0xff_ffff) << 16 | BUSY_TSS | (tss_va >> 24 & 0xff) << 56;
    put(u64::from(offset::TSS), low)?;
    put(u64::from(offset::TSS) + 8, tss_va >> 32)?;

    let tss = page.0 + TSS_OFFSET;
    memory.write_obj(Maddr(tss + tss::RSP0), &(STACK_TOP_VA + distance))?;
    memory.write_obj(Maddr(tss + tss::IO_BITMAP), &(IO_BITMAP as u16))?;
    let mut bitmap = [0xffu8; IO_BITMAP_BYTES as usize];
    if transport == Transport::Pio {
        bitmap[usize::from(gate::EXIT_PORT / 8)] &= !(1 << (gate::EXIT_PORT % 8));
    }
    memory.write(Maddr(tss + IO_BITMAP), &bitmap)?;

    for number in 0..32u8 {
        let handler = TEXT_VA + distance + u64::from(number) * gate::VECTOR_STRIDE;
        let [low, high] = idt_entry(number, handler, gdt).words();
        put(IDT_OFFSET + u64::from(number) * Gate::SIZE, low)?;
        put(IDT_OFFSET + u64::from(number) * Gate::SIZE + 8, high)?;
    }
    Ok(())
}

fn idt_entry(number: u8, handler: u64, gdt: Gdt) -> Gate {
    // INT3 and INTO are the two that software may raise without privilege (SDM vol. 3, 6.12.1.2).
    let raised_by_software = [vector::BREAKPOINT, vector::OVERFLOW].contains(&number);
    Gate {
        handler,
        selector: gdt.kernel_cs(),
        stack: 0,
        kind: Gate::INTERRUPT,
        dpl: if raised_by_software { 3 } else { 0 },
        present: true,
    }
}

#[cfg(test)]
mod tests;
