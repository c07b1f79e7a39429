//! Code that leads an indirect transfer to the translation of its target, without changing a flag.

use super::targets::{ADDRESSES, MASKS};
use crate::codegen::emitter::{Emitter, RAX, RCX, RDX, TRAP, Unsuitable};
use crate::codegen::recipe::{Recipe, Saved, Then};
use crate::codegen::state_page::TARGET;

/// The registers that a lookup uses.
const USED: Saved = Saved::RAX.and(Saved::RCX).and(Saved::RDX);
const JRCXZ: u8 = 0xe3;

/// Addresses that all lookups share.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shared {
    /// The table of targets.
    pub table: u64,
    /// The words that select the bits of a target.
    pub masks: u64,
    /// Where a lookup goes on that has not found its target in its first place.
    pub second: u64,
    /// Where one ends that has not found it at all.
    pub miss: u64,
    /// The code that calls the host.
    pub gate: u64,
}

/// The state during a lookup: the guest is at the target already.
fn looking() -> Recipe {
    Recipe::at(0).then(Then::Target).saved(USED)
}

/// A 32-bit address, as `[rax * 8 + disp32]` has it.
fn absolute(address: u64) -> Result<[u8; 4], Unsuitable> {
    let low = address as u32;
    let reached = i64::from(low.cast_signed()).cast_unsigned() == address;
    reached.then_some(low.to_le_bytes()).ok_or(Unsuitable::OutOfReach)
}

/// Looks in one of a target's two places. RCX is the target, which is on the state page as well; RAX, RCX and RDX are in
/// their slots.
pub(super) fn probe(
    e: &mut Emitter<'_>,
    shared: &Shared,
    which: usize,
    miss: Option<u64>,
) -> Result<(), Unsuitable> {
    let state = looking();
    if e.env.bmi2 {
        // pext rax, rcx, [mask]
        e.relative(state, &[0xc4, 0xe2, 0xf2, 0xf5, 0x05], shared.masks + 8 * which as u64, &[])?;
    } else {
        // movzx eax, cl; or ch
        e.op(state, &[0x0f, 0xb6, if which == 0 { 0xc1 } else { 0xc5 }]);
    }
    // mov rdx, [keys + rax * 8]; lea rcx, [rcx + rdx]
    e.op(state, &[0x48, 0x8b, 0x14, 0xc5]);
    e.raw(&absolute(shared.table)?);
    e.op(state, &[0x48, 0x8d, 0x0c, 0x11]);
    let hit = e.short(state, JRCXZ);
    match miss {
        Some(miss) => {
            e.jump(state, miss)?;
        }
        None => e.op(state.then(Then::TargetMiss), &[TRAP]),
    }
    e.land(hit)?;
    let state = e.reload(state, RDX)?;
    let state = e.reload(state, RCX)?;
    // jmp [addresses + rax * 8]: what is there restores RAX.
    e.op(state, &[0xff, 0x24, 0xc5]);
    e.raw(&absolute(shared.table + ADDRESSES)?);
    Ok(())
}

/// A lookup from a place where all of [`USED`] are in their slots, RCX is the target and [`TARGET`] has it.
pub(super) fn lookup(e: &mut Emitter<'_>, shared: &Shared) -> Result<(), Unsuitable> {
    probe(e, shared, 0, Some(shared.second))
}

/// Spills what a lookup uses besides RCX; `state` says how the guest's state is restored meanwhile.
pub(super) fn spill_rest(e: &mut Emitter<'_>, state: Recipe) -> Result<(), Unsuitable> {
    e.spill(state, RAX)?;
    e.spill(state, RDX)
}

/// What all lookups share, once for a cache: returns where it is.
pub(super) fn emit_shared(
    e: &mut Emitter<'_>,
    table: u64,
    stub: Option<&[u8; 32]>,
) -> Result<Shared, Unsuitable> {
    let mut shared = Shared { table, masks: e.here(), ..Shared::default() };
    for mask in MASKS {
        e.raw(&mask.to_le_bytes());
    }
    shared.second = e.here();
    e.load(looking(), RCX, TARGET)?;
    probe(e, &shared, 1, None)?;
    shared.miss = e.here();
    // From a free place of the table, whose target does not exist.
    e.op(Recipe::at(0).then(Then::TargetMiss).saved(Saved::RAX), &[TRAP]);
    shared.gate = e.here();
    if let Some(stub) = stub {
        e.gate(stub)?;
    }
    Ok(shared)
}
