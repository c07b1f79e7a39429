//! Code that leads an indirect transfer to the translation of its target, without changing a flag.
//!
//! A lookup jumps to what is in the target's first place. There the block's *entry* compares the target with its own
//! address, and goes on with the second place if it is another's. As often as not the comparison is by LOOP: where the
//! target is the right one, no branch is taken, and the processor's branch history stays short.

use super::targets::{ADDRESSES, KEYS, MASKS};
use crate::codegen::emitter::{Emitter, Forward, RAX, RCX, RDX, TRAP, Unsuitable};
use crate::codegen::recipe::{Recipe, Saved, Then};
use crate::codegen::state_page::TARGET;

/// The registers that a lookup uses.
const USED: Saved = Saved::RAX.and(Saved::RCX);
const JRCXZ: u8 = 0xe3;
const LOOP: u8 = 0xe2;

/// Addresses that all lookups share.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shared {
    /// The table of targets.
    pub table: u64,
    /// The words that select the bits of a target.
    pub masks: u64,
    /// The words of [`super::adapt::MASKS`].
    pub store_masks: u64,
    /// Where a lookup goes on that has not found its target in its first place.
    pub second: u64,
    /// Where one ends that has found a free place.
    pub miss: u64,
    /// The code that calls the host.
    pub gate: u64,
    /// Whether LOOP is no slower than a conditional jump.
    pub fast_loop: bool,
}

/// The state during a lookup: the guest is at the target already.
fn looking() -> Recipe {
    Recipe::at(0).then(Then::Target).saved(USED)
}

/// A 32-bit address, as `[rax * 8 + disp32]` has it.
pub(super) fn absolute(address: u64) -> Result<[u8; 4], Unsuitable> {
    let low = address as u32;
    let reached = i64::from(low.cast_signed()).cast_unsigned() == address;
    reached.then_some(low.to_le_bytes()).ok_or(Unsuitable::OutOfReach)
}

/// Takes the bits of RCX that select a place into RAX.
fn select(e: &mut Emitter<'_>, state: Recipe, shared: &Shared, which: usize) -> Result<(), Unsuitable> {
    if e.env.bmi2 {
        // pext rax, rcx, [mask]
        e.relative(state, &[0xc4, 0xe2, 0xf2, 0xf5, 0x05], shared.masks + 8 * which as u64, &[])
    } else {
        // movzx eax, cl; or ch
        e.op(state, &[0x0f, 0xb6, if which == 0 { 0xc1 } else { 0xc5 }]);
        Ok(())
    }
}

/// A lookup from a place where RAX and RCX are in their slots, RCX is the target and [`TARGET`] has it.
pub(super) fn lookup(e: &mut Emitter<'_>, shared: &Shared) -> Result<(), Unsuitable> {
    select(e, looking(), shared, 0)?;
    // jmp [first + rax * 8]
    e.op(looking(), &[0xff, 0x24, 0xc5]);
    e.raw(&absolute(shared.table)?);
    Ok(())
}

/// Adds to RCX what makes it 0 if it is `value`, or 1 if `one`.
fn subtract(e: &mut Emitter<'_>, state: Recipe, value: u64, one: bool) {
    let negative = value.wrapping_neg().wrapping_add(one.into());
    if let Ok(low) = i32::try_from(negative.cast_signed()) {
        // lea rcx, [rcx + negative]
        e.op(state, &[0x48, 0x8d, 0x89]);
        e.raw(&low.to_le_bytes());
    } else {
        // mov rax, negative; lea rcx, [rcx + rax]
        e.op(state, &[0x48, 0xb8]);
        e.raw(&negative.to_le_bytes());
        e.op(state, &[0x48, 0x8d, 0x0c, 0x01]);
    }
}

/// Whether an entry that is emitted from `here` on begins where the processor likes to jump to.
pub(super) fn is_aligned(here: u64, shared: &Shared) -> bool {
    // The jump away comes first.
    let start = here + if shared.fast_loop { 5 } else { 0 };
    start.is_multiple_of(16)
}

/// The entry of the block of `va`, which lookups come to; what follows it is the block. Returns its address.
pub(super) fn entry(e: &mut Emitter<'_>, shared: &Shared, va: u64) -> Result<u64, Unsuitable> {
    let state = looking();
    let start;
    if shared.fast_loop {
        // The jump away lies before, where LOOP reaches it.
        let away = e.here();
        e.jump(state, shared.second)?;
        start = e.here();
        subtract(e, state, va, true);
        let distance = away.wrapping_sub(e.here() + 2).cast_signed();
        let distance = i8::try_from(distance).map_err(|_| Unsuitable::OutOfReach)?;
        e.op(state, &[LOOP, distance.to_le_bytes()[0]]);
    } else {
        start = e.here();
        subtract(e, state, va, false);
        let equal = e.short(state, JRCXZ);
        e.jump(state, shared.second)?;
        e.land(equal)?;
    }
    let found = e.reload(Recipe::at(va).saved(USED), RCX)?;
    e.reload(found, RAX)?;
    Ok(start)
}

/// Compares RCX, which changes, with where a call through memory is expected to go: what follows is for when it does,
/// and what is returned leads to where it does not. `None` for an address of more than 32 bits.
pub(super) fn guess(
    e: &mut Emitter<'_>,
    state: Recipe,
    guess: u64,
    shared: &Shared,
) -> Result<Option<Forward>, Unsuitable> {
    // Beyond, RAX would be needed, which is the guest's here.
    if i32::try_from(guess.wrapping_neg().wrapping_add(1).cast_signed()).is_err() {
        return Ok(None);
    }
    subtract(e, state, guess, shared.fast_loop);
    if shared.fast_loop {
        return Ok(Some(e.short(state, LOOP)));
    }
    let equal = e.short(state, JRCXZ);
    let other = e.near(state, &[0xe9]);
    e.land(equal)?;
    Ok(Some(other))
}

/// What all lookups share, once for a cache: returns where it is.
pub(super) fn emit_shared(
    e: &mut Emitter<'_>,
    table: u64,
    stub: Option<&[u8; 32]>,
    fast_loop: bool,
) -> Result<Shared, Unsuitable> {
    let mut shared = Shared { table, masks: e.here(), fast_loop, ..Shared::default() };
    for mask in MASKS {
        e.raw(&mask.to_le_bytes());
    }
    shared.store_masks = e.here();
    for mask in super::adapt::MASKS {
        e.raw(&mask.to_le_bytes());
    }
    shared.second = e.here();
    let state = looking();
    e.spill(state, RDX)?;
    e.load(state, RCX, TARGET)?;
    select(e, state, &shared, 1)?;
    // mov rdx, [keys + rax * 8]; lea rcx, [rcx + rdx]
    e.op(state, &[0x48, 0x8b, 0x14, 0xc5]);
    e.raw(&absolute(table + KEYS)?);
    let with_rdx = state.saved(USED.and(Saved::RDX));
    e.op(with_rdx, &[0x48, 0x8d, 0x0c, 0x11]);
    let hit = e.short(with_rdx, JRCXZ);
    e.op(with_rdx.then(Then::TargetMiss), &[TRAP]);
    e.land(hit)?;
    e.reload(with_rdx, RDX)?;
    e.load(state, RCX, TARGET)?;
    // jmp [addresses + rax * 8]
    e.op(state, &[0xff, 0x24, 0xc5]);
    e.raw(&absolute(table + ADDRESSES)?);
    shared.miss = e.here();
    e.op(looking().then(Then::TargetMiss), &[TRAP]);
    shared.gate = e.here();
    if let Some(stub) = stub {
        e.gate(stub)?;
    }
    Ok(shared)
}
