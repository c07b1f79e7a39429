//! Writes instructions for a fixed address, and notes the guest's state at each of them.

use super::recipe::{Point, Recipe, Saved};
use super::state_page;
use crate::host::host_cpuid;

/// Numbers of the general registers that templates use.
pub(crate) const RAX: u8 = 0;
#[allow(missing_docs)]
pub(crate) const RCX: u8 = 1;
#[allow(missing_docs)]
pub(crate) const RDX: u8 = 2;
#[allow(missing_docs)]
pub(super) const RSP: u8 = 4;

/// HLT: traps at CPL 3 on every engine.
pub(crate) const TRAP: u8 = 0xf4;

/// Why an instruction has no code here that does the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsuitable {
    /// An operand cannot be reached from here.
    #[error("it refers to memory that is out of reach")]
    OutOfReach,
    /// It is of a form that is not implemented.
    #[error("it has a form that is not implemented")]
    Form,
}

/// What emitted code relies on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Environment {
    /// Linear address of the state page.
    pub state: u64,
    /// Linear address of the code that calls the host, if calls are to be used rather than traps.
    pub gate: Option<u64>,
    /// Whether the host's processor has BMI2, which computes without changing flags.
    pub bmi2: bool,
    /// Whether it has the instructions that read and write FS.base and GS.base.
    pub fsgsbase: bool,
}

impl Environment {
    /// On this host.
    pub fn here(state: u64, gate: Option<u64>) -> Self {
        // Structured extended features (SDM vol. 2, CPUID).
        let features = host_cpuid::query(7, 0).ebx;
        Self { state, gate, bmi2: features >> 8 & 1 != 0, fsgsbase: features & 1 != 0 }
    }
}

/// What the guest does not need any more, because it sets it before anything could see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dead {
    /// The status flags.
    pub flags: bool,
}

/// A place in emitted code whose jump is completed later.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(crate) struct Forward {
    /// Offset of the displacement.
    at: usize,
    /// Its size in bytes.
    size: usize,
}

impl Forward {
    /// The offset of its displacement.
    pub fn offset(self) -> usize {
        self.at
    }
}

/// Emits code.
#[derive(Debug)]
pub(crate) struct Emitter<'a> {
    bytes: &'a mut Vec<u8>,
    points: &'a mut Vec<Point>,
    /// Linear address of the first byte of `bytes`.
    base: u64,
    /// What [`Point::at`] is for the first byte of `bytes`.
    origin: u32,
    pub(crate) env: Environment,
}

impl<'a> Emitter<'a> {
    /// Appends to `bytes`, whose first byte will lie at `base`, and to `points`, which counts from `origin` there.
    pub fn new(
        bytes: &'a mut Vec<u8>,
        points: &'a mut Vec<Point>,
        base: u64,
        origin: u32,
        env: Environment,
    ) -> Self {
        Self { bytes, points, base, origin, env }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The linear address of the next instruction.
    pub fn here(&self) -> u64 {
        self.base.wrapping_add(self.bytes.len() as u64)
    }

    /// Notes what the guest's state is at the next instruction.
    pub fn point(&mut self, recipe: Recipe) {
        let at = self.origin.wrapping_add(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
        match self.points.last_mut() {
            Some(last) if last.at == at => last.recipe = recipe,
            _ => self.points.push(Point { at, recipe }),
        }
    }

    /// The same for an instruction at an offset, after all that have been noted.
    pub(super) fn point_at(&mut self, offset: usize, recipe: Recipe) {
        let at = self.origin.wrapping_add(u32::try_from(offset).unwrap_or(u32::MAX));
        self.points.push(Point { at, recipe });
    }

    /// Emits bytes.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Emits an instruction of which the guest's state before it is `recipe`.
    pub fn op(&mut self, recipe: Recipe, bytes: &[u8]) {
        self.point(recipe);
        self.raw(bytes);
    }

    /// The displacement from the end of the instruction that is `more` bytes from here.
    fn displacement(&self, target: u64, more: usize) -> Result<[u8; 4], Unsuitable> {
        let end = self.here().wrapping_add(more as u64);
        let distance = target.wrapping_sub(end).cast_signed();
        i32::try_from(distance).map(i32::to_le_bytes).map_err(|_| Unsuitable::OutOfReach)
    }

    /// Emits `opcode`, whose last byte is a ModRM byte for a RIP-relative operand, for the memory at `target`, and
    /// `immediate`.
    pub fn relative(
        &mut self,
        recipe: Recipe,
        opcode: &[u8],
        target: u64,
        immediate: &[u8],
    ) -> Result<(), Unsuitable> {
        let displacement = self.displacement(target, opcode.len() + 4 + immediate.len())?;
        self.op(recipe, opcode);
        self.raw(&displacement);
        self.raw(immediate);
        Ok(())
    }

    /// The same for a word of the state page.
    pub fn on_state(
        &mut self,
        recipe: Recipe,
        opcode: &[u8],
        word: u64,
        immediate: &[u8],
    ) -> Result<(), Unsuitable> {
        self.relative(recipe, opcode, self.env.state.wrapping_add(word), immediate)
    }

    /// `mov [word], register`
    pub fn store(&mut self, recipe: Recipe, word: u64, register: u8) -> Result<(), Unsuitable> {
        self.on_state(recipe, &[rex_w(register), 0x89, rip_relative(register)], word, &[])
    }

    /// `mov register, [word]`
    pub fn load(&mut self, recipe: Recipe, register: u8, word: u64) -> Result<(), Unsuitable> {
        self.on_state(recipe, &[rex_w(register), 0x8b, rip_relative(register)], word, &[])
    }

    /// `mov [word], value`, sign-extended.
    pub fn store_value(&mut self, recipe: Recipe, word: u64, value: i32) -> Result<(), Unsuitable> {
        self.on_state(recipe, &[0x48, 0xc7, 0x05], word, &value.to_le_bytes())
    }

    /// Leaves a register's value in its slot.
    pub fn spill(&mut self, recipe: Recipe, register: u8) -> Result<(), Unsuitable> {
        self.store(recipe, state_page::slot(register), register)
    }

    /// Restores a register from its slot; returns the recipe of what follows.
    pub fn reload(&mut self, recipe: Recipe, register: u8) -> Result<Recipe, Unsuitable> {
        self.load(recipe, register, state_page::slot(register))?;
        Ok(recipe.saved(recipe.saved.without(Saved::of(register))))
    }

    /// Emits a jump with an 8-bit displacement to be completed by [`Emitter::land`].
    pub fn short(&mut self, recipe: Recipe, opcode: u8) -> Forward {
        self.op(recipe, &[opcode, 0]);
        Forward { at: self.bytes.len() - 1, size: 1 }
    }

    /// The same with an opcode of any length and a 32-bit displacement.
    pub fn near(&mut self, recipe: Recipe, opcode: &[u8]) -> Forward {
        self.op(recipe, opcode);
        self.raw(&[0; 4]);
        Forward { at: self.bytes.len() - 4, size: 4 }
    }

    /// Has a jump go to the next instruction.
    pub fn land(&mut self, from: Forward) -> Result<(), Unsuitable> {
        let distance = self.bytes.len() - (from.at + from.size);
        match from.size {
            1 => {
                let distance = i8::try_from(distance).map_err(|_| Unsuitable::OutOfReach)?;
                if let Some(byte) = self.bytes.get_mut(from.at) {
                    *byte = distance.to_le_bytes()[0];
                }
            }
            _ => {
                let distance = i32::try_from(distance).map_err(|_| Unsuitable::OutOfReach)?;
                if let Some(place) = self.bytes.get_mut(from.at..from.at + 4) {
                    place.copy_from_slice(&distance.to_le_bytes());
                }
            }
        }
        Ok(())
    }

    /// `jmp target`; returns the offset of its displacement, which may be changed later.
    pub fn jump(&mut self, recipe: Recipe, target: u64) -> Result<usize, Unsuitable> {
        let displacement = self.displacement(target, 5)?;
        self.op(recipe, &[0xe9]);
        self.raw(&displacement);
        Ok(self.bytes.len() - 4)
    }

    /// Pushes a value as a CALL or PUSH does. `recipe` is the state before it; what is left to do about RSP between
    /// two stores is noted.
    pub fn push_value(&mut self, recipe: Recipe, value: u64) {
        let low = value as u32;
        self.op(recipe, &[0x68]);
        self.raw(&low.to_le_bytes());
        if i64::from(low.cast_signed()).cast_unsigned() != value {
            self.op(recipe.rsp(recipe.rsp.wrapping_add(8)), &[0xc7, 0x44, 0x24, 0x04]);
            self.raw(&((value >> 32) as u32).to_le_bytes());
        }
    }

    /// Takes back everything from an offset on.
    pub fn cut(&mut self, len: usize) {
        let at = self.origin.wrapping_add(u32::try_from(len).unwrap_or(u32::MAX));
        self.bytes.truncate(len);
        while self.points.last().is_some_and(|point| point.at >= at) {
            self.points.pop();
        }
    }
}

/// REX with W, for a register in ModRM.reg.
pub(super) const fn rex_w(register: u8) -> u8 {
    0x48 | (register >> 3 & 1) << 2
}

/// ModRM of a RIP-relative operand.
pub(super) const fn rip_relative(register: u8) -> u8 {
    (register & 7) << 3 | 5
}
