//! The fast paths in a machine's memory: where they lie, how they are mapped, and what the host tells them.

use paravane_abi::segment::{FLAT_USER_CS, FLAT_USER_SS};
use paravane_abi::{addr, pte};

use super::text::{self, own};
use super::{ARMED, GATE_OFFSET, STATE_SLOT, STATE_VA, State, WAYS_VA};
use crate::engine::kvm::gdt::Gdt;
use crate::engine::kvm::tables::{self as gate_tables, GateTables};
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr, Mfn, PAGE_SIZE};
use crate::mmu::crossing::Crossing;
use crate::x86::rflags;

/// Frames, counted from the first of those that the gate's tables leave for this.
const WAYS: u64 = 0;
const L2_WAYS: u64 = 1;
const L1_WAYS: u64 = 2;
const L3_STATE: u64 = 3;
const L2_STATE: u64 = 4;
const L1_STATE: u64 = 5;
const STATE: u64 = 6;
const DESK: u64 = 7;
/// How many.
pub(in crate::engine::kvm) const FRAMES: u64 = 8;

/// Rights of tables, and of pages that the guest may write to.
const TABLE: u64 = pte::PRESENT | pte::RW | pte::USER | pte::ACCESSED;
const SHARED: u64 = TABLE | pte::DIRTY | pte::NX;

/// The fast paths of a machine with one virtual CPU.
#[derive(Clone, Debug)]
pub struct FastPaths {
    /// The first frame.
    base: u64,
    /// The gate's own words.
    own: Maddr,
    gdt: Gdt,
    /// Whether SYSCALL arrives at CPL 0.
    raises: bool,
    /// The roots in the gate's words.
    roots: (Mfn, Mfn),
    /// They are those of a [`Crossing`].
    armed: bool,
    /// The frame that is mapped behind the shared page.
    info: Option<Mfn>,
    /// A root has had the shared page, so that others must be looked at.
    was_armed: bool,
}

impl FastPaths {
    /// Writes them beside the gate of the first virtual CPU, whose #BP they take over.
    pub fn install(
        memory: &MachineMemory,
        gate: &GateTables,
        (gdt, raises): (Gdt, bool),
    ) -> Result<Self, BadMachineAddress> {
        let base = gate.fast_frames();
        let frame = |n: u64| Mfn(base + n).maddr();
        let put =
            |table: u64, index: u64, entry: u64| memory.store_u64(Maddr(frame(table).0 + index * 8), entry);
        let last = addr::PT_ENTRIES as u64 - 1;
        memory.write(frame(WAYS), text::ways_text())?;
        gate.write_text(memory, GATE_OFFSET, text::gate_text())?;
        gate.set_breakpoint_handler(
            memory,
            gate_tables::TEXT_VA + GATE_OFFSET + text::gate::breakpoint(),
            gdt,
        )?;
        put(L1_WAYS, last, frame(WAYS).0 | pte::PRESENT | pte::USER | pte::ACCESSED)?;
        put(L1_WAYS, last - 1, frame(DESK).0 | SHARED)?;
        put(L2_WAYS, last, frame(L1_WAYS).0 | TABLE)?;
        gate.map_last(memory, frame(L2_WAYS).0 | TABLE)?;
        put(L3_STATE, 0, frame(L2_STATE).0 | TABLE)?;
        put(L2_STATE, 0, frame(L1_STATE).0 | TABLE)?;
        put(L1_STATE, 0, frame(STATE).0 | SHARED)?;
        let own = gate.scratch();
        let iretq: [u64; 5] = [
            WAYS_VA + text::ways::entry(),
            gdt.user_cs().into(),
            rflags::ALWAYS_AT_CPL3,
            0,
            gdt.user_ss().into(),
        ];
        memory.write_obj(Maddr(own.0 + own::FRAME), &iretq)?;
        Ok(Self {
            base,
            own,
            gdt,
            raises,
            roots: (Mfn(0), Mfn(0)),
            armed: false,
            info: None,
            was_armed: false,
        })
    }

    /// Where SYSCALL goes.
    pub fn syscall_target(&self) -> u64 {
        if self.raises { gate_tables::TEXT_VA + GATE_OFFSET + text::gate::raised() } else { WAYS_VA }
    }

    /// Where the hypercall page's `iret` goes on.
    pub fn iret_target() -> u64 {
        WAYS_VA + text::ways::iret()
    }

    /// Whether there are fast paths in the entry that has been made.
    pub fn armed(&self) -> bool {
        self.armed
    }

    /// The user's root, while armed.
    pub(super) fn user_root(&self) -> Mfn {
        self.roots.1
    }

    /// Shows the shared page to the kernel, and to no program. Returns tables of which all that is cached must go.
    pub fn show(
        &mut self,
        crossing: Option<&Crossing>,
        program: Option<Mfn>,
        memory: &MachineMemory,
    ) -> Result<[Option<Mfn>; 2], BadMachineAddress> {
        let mut changed = [None; 2];
        if let Some(crossing) = crossing {
            self.was_armed = true;
            let entry = Mfn(self.base + L3_STATE).maddr().0 | TABLE;
            let slot = slot_of(crossing.kernel_root);
            if memory.load_u64(slot)? != entry {
                // There was none: nothing is cached of it.
                memory.store_u64(slot, entry)?;
            }
            let info = crossing.vcpu_info.mfn();
            if self.info != Some(info) {
                let table = Mfn(self.base + L1_STATE);
                memory.store_u64(Maddr(table.maddr().0 + 8), info.maddr().0 | SHARED)?;
                changed[0] = self.info.replace(info).map(|_| table);
            }
        }
        if let Some(root) = program.filter(|_| self.was_armed) {
            let slot = slot_of(root);
            if memory.load_u64(slot)? != 0 {
                memory.store_u64(slot, 0)?;
                changed[1] = Some(root);
            }
        }
        Ok(changed)
    }

    /// Tells gate and ways what they are to do in the entry to come. Without a `crossing` they change nothing, on the
    /// `root` that runs.
    pub fn arm(
        &mut self,
        crossing: Option<&Crossing>,
        (root, user): (Mfn, bool),
        memory: &MachineMemory,
    ) -> Result<(), BadMachineAddress> {
        let roots = crossing.map_or((root, root), |crossing| (crossing.kernel_root, crossing.user_root));
        let armed = crossing.is_some();
        if roots != self.roots || armed != self.armed {
            (self.roots, self.armed) = (roots, armed);
            let words = [roots.0.maddr().0, roots.1.maddr().0, armed.into()];
            memory.write_obj(Maddr(self.own.0 + own::KERNEL_ROOT), &words)?;
            memory.write_obj(Maddr(self.frame(WAYS).0 + ARMED), &u64::from(armed))?;
        }
        let Some(crossing) = crossing else { return Ok(()) };
        // Where the processor has the guest's selectors, the way back loads none but the flat ones.
        let flat = (FLAT_USER_CS, FLAT_USER_SS);
        let (cs, ss) = if self.gdt.is_guests() { flat } else { crossing.user_selectors };
        let state = State {
            kernel_gs: crossing.other_gs_base,
            user_gs: crossing.other_gs_base,
            kernel_sp: crossing.kernel_sp & !15,
            entry: crossing.entry,
            info: STATE_VA + PAGE_SIZE + crossing.vcpu_info.0 % PAGE_SIZE,
            masks: crossing.masks_upcalls.into(),
            in_user: user.into(),
            cs: cs.into(),
            ss: ss.into(),
            own_cs: self.gdt.user_cs().into(),
            own_ss: self.gdt.user_ss().into(),
            ..State::default()
        };
        memory.write_obj(self.frame(STATE), &state)
    }

    /// What the guest has left in the shared page.
    pub(super) fn state(&self, memory: &MachineMemory) -> Result<State, BadMachineAddress> {
        memory.read_obj(self.frame(STATE))
    }

    /// The gate's own word at an offset.
    pub(super) fn own(&self, memory: &MachineMemory, offset: u64) -> Result<u64, BadMachineAddress> {
        memory.load_u64(Maddr(self.own.0 + offset))
    }

    fn frame(&self, n: u64) -> Maddr {
        Mfn(self.base + n).maddr()
    }
}

/// The entry of an L4 table that maps the shared page, or does not.
fn slot_of(root: Mfn) -> Maddr {
    Maddr(root.maddr().0 + STATE_SLOT * 8)
}
