//! Which jump fits at a site: from bytes and jump targets to a plan. Pure functions.
//!
//! A site is an instruction to be replaced by a jump to a stub. Most are shorter than the 5 bytes of a jump, so that
//! neighbours have to give way. In order of preference:
//!
//! 1. [`Tactic::Followers`]: a jump over the site and what follows it; all of that moves to the stub.
//! 2. [`Tactic::Before`]: the same from one to five instructions before the site.
//! 3. [`Tactic::Short`]: a 2-byte jump to a second jump nearby: in the INT3s behind a function, where control never
//!    comes, or where other code moves out of the way.
//! 4. [`Tactic::Punned`]: a jump whose displacement is, in part, the code that follows the site and stays.
//!
//! **Jumps into the range.** Where an instruction began, there is afterwards the same instruction, the jump that
//! replaces it, or a byte that traps at CPL 3 ([`TRAPPING`]): the displacement is chosen so. Whoever goes there traps,
//! and goes on in the stub's copy. No proof is needed that all jumps were found. The displacement's bytes so restrict
//! where a stub may begin ([`Pattern`], [`Room`]).
//!
//! What is known of the code must be certain: it begins at an instruction that is executed, or at a function's first.
//!
//! The ideas: padded and punned jumps and evicted neighbours from e9patch (Duck, Gao, Roychoudhury, PLDI 2020),
//! displacements of illegal instructions from LiteInst (Chamith et al., PLDI 2017).

use std::ops::Range;

use iced_x86::{FlowControl, Instruction, Mnemonic};

use crate::x86::decode::decoder;
use crate::x86::sensitive::Class;

/// Bytes of `jmp rel32`.
pub(crate) const NEAR: u64 = 5;
/// What fills the space between functions.
const INT3: u8 = 0xcc;
/// Bytes of `jmp rel8`.
const SHORT: u64 = 2;
/// HLT, CLI, and two bytes that are no instruction in 64-bit mode: each traps at CPL 3, whatever follows it.
pub(crate) const TRAPPING: [u8; 4] = [0xf4, 0xfa, 0x06, 0x07];
/// How far a short jump leads, forwards.
const REACH: u64 = 128;
/// How far behind the beginning of a run that gives way the jump may lie for which it does.
const LONGEST: u64 = 16;
/// How many instructions before a site a jump may begin.
const BEFORE: usize = 5;
/// How many instructions before a site are looked at for one to give way to a short jump.
const NEARBY: usize = 40;
/// The most instructions that one jump moves.
const MOST: usize = 12;

/// How a site is patched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tactic {
    /// By a jump over the site and what follows it.
    Followers,
    /// By a jump from before the site.
    Before,
    /// By a short jump to a longer one.
    Short,
    /// By a jump whose displacement is, in part, the code that was there.
    Punned,
}

impl Tactic {
    /// All, in order of preference.
    pub const ALL: [Self; 4] = [Self::Followers, Self::Before, Self::Short, Self::Punned];

    /// Its name in tables and exports.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Followers => "followers",
            Self::Before => "before",
            Self::Short => "short",
            Self::Punned => "punned",
        }
    }

    /// A description for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Followers => "a jump over the site and what follows it",
            Self::Before => "a jump from before the site",
            Self::Short => "a short jump to a longer one",
            Self::Punned => "a jump whose displacement is code",
        }
    }
}

/// What a byte of a displacement must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// Anything.
    Any,
    /// One of [`TRAPPING`].
    Trap,
    /// What is there already.
    Is(u8),
}

/// What the bytes of a displacement must be, the lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(pub [Want; 4]);

impl Pattern {
    /// Whether a displacement is allowed.
    pub fn allows(&self, displacement: i32) -> bool {
        self.0.iter().zip(displacement.to_le_bytes()).all(|(want, byte)| want.allows(byte))
    }
}

impl Want {
    /// Whether a byte is allowed.
    pub fn allows(self, byte: u8) -> bool {
        match self {
            Self::Any => true,
            Self::Trap => TRAPPING.contains(&byte),
            Self::Is(only) => byte == only,
        }
    }
}

/// Where stubs may begin.
pub(crate) trait Room {
    /// Takes an address for a stub to begin at, whose distance from `end`, the end of a jump, `pattern` allows.
    fn take(&mut self, end: u64, pattern: &Pattern) -> Option<u64>;
}

/// Code, and what is known of it.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    /// Linear address of the first byte.
    pub base: u64,
    /// The bytes. Nothing beyond them is touched: they do not go beyond a page's end.
    pub code: &'a [u8],
    /// Whether an instruction is the target of some jump.
    pub is_target: &'a dyn Fn(u64) -> bool,
    /// Whether some of these bytes belong to another patch, and so are not what they seem.
    pub is_taken: &'a dyn Fn(&Range<u64>) -> bool,
    /// Where instructions are known to begin, in order: in the code around, whatever function it is of.
    pub known: &'a [u64],
    /// What lies between functions: from the end of one to the next one's first instruction.
    pub gaps: &'a [Range<u64>],
    /// What belongs to another patch does not move; without this, that patch goes.
    pub spares: bool,
}

/// Bytes to be written over code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    /// Where the jump begins.
    pub at: u64,
    /// The new bytes.
    pub bytes: Vec<u8>,
    /// The instructions that move to the stub: whole ones, the jump's first. None where the jump is only a short one's
    /// second half.
    pub moved: Range<u64>,
    /// Where the stub begins.
    pub stub: u64,
}

impl Patch {
    /// The bytes that the jump consists of, whether they were written or were there already.
    pub fn jump(&self) -> Range<u64> {
        let near = self.bytes.first() == Some(&0xe9);
        let len = self.bytes.len() as u64;
        self.at..self.at.saturating_add(if near { len.max(NEAR) } else { len })
    }

    /// Whether some of these bytes are the jump's, or of what it moves.
    pub fn touches(&self, range: &Range<u64>) -> bool {
        let overlaps = |part: &Range<u64>| part.start < range.end && range.start < part.end;
        overlaps(&self.moved) || overlaps(&self.jump())
    }

    /// Whether two patches cannot be at the same time.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.touches(&other.moved) || self.touches(&other.jump())
    }
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// How.
    pub tactic: Tactic,
    /// What is to be written: with [`Tactic::Short`] in two places.
    pub patches: Vec<Patch>,
}

/// Whether an instruction may be executed at another address, as it is or as code of ours that does the same.
pub(crate) fn is_movable(insn: &Instruction) -> bool {
    if insn.is_invalid() || insn.len() == 0 {
        return false;
    }
    match Class::of(insn) {
        // In a guest of ours they reach another hypervisor.
        Some(Class::Virtualization) => return false,
        Some(_) => return true,
        None => {}
    }
    match insn.flow_control() {
        FlowControl::Next => true,
        FlowControl::UnconditionalBranch | FlowControl::Call => {
            insn.is_jmp_short_or_near() || insn.is_call_near()
        }
        FlowControl::ConditionalBranch => insn.is_jcc_short_or_near(),
        FlowControl::IndirectBranch => insn.is_jmp_near_indirect(),
        // What the operand's address is computed from must not be what the call changes.
        FlowControl::IndirectCall => insn.is_call_near_indirect() && !uses_stack_pointer(insn),
        FlowControl::Return => insn.mnemonic() == Mnemonic::Ret,
        FlowControl::Interrupt => insn.mnemonic() == Mnemonic::Int3,
        FlowControl::Exception => true,
        FlowControl::XbeginXabortXend => false,
    }
}

fn uses_stack_pointer(insn: &Instruction) -> bool {
    use iced_x86::Register::RSP;
    insn.op0_register() == RSP || insn.memory_base() == RSP || insn.memory_index() == RSP
}

/// Whether control never goes on behind an instruction.
pub(crate) fn ends_flow(insn: &Instruction) -> bool {
    matches!(
        insn.flow_control(),
        FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::Return
            | FlowControl::Exception
    )
}

/// What lies between those of `functions`, which are in order, that a short jump at `site` may reach.
pub(crate) fn gaps_around(functions: &[Range<u64>], site: u64) -> Vec<Range<u64>> {
    let from = functions.partition_point(|function| function.end < site.saturating_sub(REACH));
    let pairs = functions.get(from..).unwrap_or_default().windows(2);
    let gaps = pairs.filter_map(|two| match two {
        [one, next] => Some(one.end..next.start),
        _ => None,
    });
    let near = gaps.take_while(|gap| gap.start <= site.saturating_add(SHORT + REACH));
    near.filter(|gap| gap.start < gap.end).collect()
}

/// Whether an instruction is what fills the space between functions.
fn is_filler(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Nop | Mnemonic::Int3)
        || insn.mnemonic() == Mnemonic::Xchg && insn.len() == 2 && insn.op0_register() == insn.op1_register()
}

/// A run of whole instructions.
struct Run {
    /// Where they are.
    range: Range<u64>,
    /// Where each but the first begins.
    inner: Vec<u64>,
    /// Control goes on behind it.
    goes_on: bool,
}

impl View<'_> {
    fn byte(&self, at: u64) -> Option<u8> {
        self.code.get(usize::try_from(at.checked_sub(self.base)?).ok()?).copied()
    }

    fn end(&self) -> u64 {
        self.base.saturating_add(self.code.len() as u64)
    }

    fn insn(&self, at: u64) -> Option<Instruction> {
        let from = usize::try_from(at.checked_sub(self.base)?).ok()?;
        let insn = decoder(self.code.get(from..)?, at).decode();
        (!insn.is_invalid()).then_some(insn)
    }

    /// The instructions from `from` on that reach `end` at least, all of which can move.
    fn run(&self, from: u64, end: u64) -> Option<Run> {
        let (mut at, mut inner, mut ended) = (from, Vec::new(), false);
        while at < end {
            let insn = self.insn(at)?;
            if !is_movable(&insn) || ended && !is_filler(&insn) || inner.len() >= MOST {
                return None;
            }
            if at != from {
                inner.push(at);
            }
            ended |= ends_flow(&insn);
            at = insn.next_ip();
        }
        if self.spares && (self.is_taken)(&(from..at)) {
            return None;
        }
        Some(Run { range: from..at, inner, goes_on: !ended })
    }

    /// The instructions right before `site`, the last first, as far as they are known.
    fn before(&self, site: u64) -> Vec<u64> {
        let known = self.known.get(..self.known.partition_point(|at| *at < site)).unwrap_or_default();
        let (mut next, mut all) = (site, Vec::new());
        for at in known.iter().rev().take(NEARBY) {
            match self.insn(*at) {
                Some(insn) if insn.next_ip() == next => all.push(*at),
                _ => break,
            }
            next = *at;
        }
        all
    }

    /// What the bytes `from..from + 4` must be as a displacement, when the instructions at `inner` move away.
    fn displacement(&self, from: u64, inner: &[u64]) -> Pattern {
        let mut wants = [Want::Any; 4];
        for (want, at) in wants.iter_mut().zip(from..) {
            if inner.contains(&at) {
                *want = Want::Trap;
            }
        }
        Pattern(wants)
    }

    /// A jump at the beginning of a run over it.
    fn jump_over(&self, run: &Run, room: &mut dyn Room) -> Option<Patch> {
        let at = run.range.start;
        let end = at.checked_add(NEAR)?;
        if end > self.end() || run.inner.iter().any(|inner| *inner < end && (self.is_target)(*inner)) {
            return None;
        }
        let stub = room.take(end, &self.displacement(at + 1, &run.inner))?;
        Some(Patch { at, bytes: near(at, stub)?.to_vec(), moved: run.range.clone(), stub })
    }

    fn with_followers(&self, site: u64, room: &mut dyn Room) -> Option<Vec<Patch>> {
        let run = self.run(site, site.checked_add(NEAR)?)?;
        Some(vec![self.jump_over(&run, room)?])
    }

    fn jump_before(&self, site: &Instruction, room: &mut dyn Room) -> Option<Vec<Patch>> {
        let before = self.before(site.ip());
        before.iter().take(BEFORE).find_map(|&from| {
            let run = self.run(from, site.next_ip().max(from + NEAR))?;
            self.reaches(&run, site).then_some(())?;
            Some(vec![self.jump_over(&run, room)?])
        })
    }

    /// A jump that begins at the site, or else before it.
    fn by_short_jump(&self, site: &Instruction, room: &mut dyn Room) -> Option<Vec<Patch>> {
        let before = self.before(site.ip());
        std::iter::once(site.ip()).chain(before.into_iter().take(BEFORE)).find_map(|at| {
            let run = self.run(at, site.next_ip().max(at.checked_add(SHORT)?))?;
            self.reaches(&run, site).then_some(())?;
            self.short_over(&run, room)
        })
    }

    /// Whether all who come to a site come by the beginning of a run: who jumps to the middle does not come to the
    /// stub.
    fn reaches(&self, run: &Run, site: &Instruction) -> bool {
        let mut until = run.inner.iter().take_while(|inner| **inner <= site.ip());
        let is_in = run.range.start == site.ip() || run.inner.contains(&site.ip());
        is_in && !until.any(|inner| (self.is_target)(*inner))
    }

    fn short_over(&self, run: &Run, room: &mut dyn Room) -> Option<Vec<Patch>> {
        let site = run.range.start;
        if run.inner.first().is_some_and(|inner| *inner == site + 1 && (self.is_target)(*inner)) {
            return None;
        }
        let want = if run.inner.contains(&(site + 1)) { Want::Trap } else { Want::Any };
        let end = site + SHORT;
        if let Some(patches) = self.gaps.iter().find_map(|gap| self.through_gap(run, want, gap, room)) {
            return Some(patches);
        }
        let mut boundaries = self.before(site);
        if run.goes_on {
            boundaries.extend(self.after(run.range.end, end + REACH));
        }
        boundaries.extend(self.around(site, end));
        boundaries.iter().find_map(|&from| {
            (from + NEAR..from + LONGEST).find_map(|relay| {
                let byte = distance(end, relay).filter(|byte| want.allows(*byte))?;
                let evicted = self.run(from, relay + NEAR)?;
                let apart = evicted.range.end <= site || run.range.end <= evicted.range.start;
                if !apart || evicted.inner.contains(&relay) {
                    return None;
                }
                self.relayed(run, byte, &evicted, relay, room)
            })
        })
    }

    /// A short jump over `run` to one in the INT3s that fill a gap from its beginning: nothing has to give way.
    fn through_gap(
        &self,
        run: &Run,
        want: Want,
        gap: &Range<u64>,
        room: &mut dyn Room,
    ) -> Option<Vec<Patch>> {
        let (at, end) = (run.range.start, run.range.start.checked_add(SHORT)?);
        let filled = gap.clone().take_while(|at| self.byte(*at) == Some(INT3)).count() as u64;
        gap.clone().take(filled.saturating_sub(NEAR - 1) as usize).find_map(|relay| {
            let byte = distance(end, relay).filter(|byte| want.allows(*byte))?;
            let jump = relay..relay + NEAR;
            if (self.is_taken)(&jump) || jump.clone().any(self.is_target) {
                return None;
            }
            let stub = room.take(jump.end, &Pattern([Want::Any; 4]))?;
            let short = Patch { at, bytes: vec![0xeb, byte], moved: run.range.clone(), stub };
            let near = near(relay, stub)?.to_vec();
            Some(vec![short, Patch { at: relay, bytes: near, moved: relay..relay, stub }])
        })
    }

    /// The known instructions from which a run may reach to where a short jump goes that ends at `end`: other
    /// functions' as well.
    fn around(&self, site: u64, end: u64) -> &[u64] {
        let from = self.known.partition_point(|at| *at < site.saturating_sub(REACH + LONGEST));
        let to = self.known.partition_point(|at| *at < end.saturating_add(REACH));
        self.known.get(from..to).unwrap_or_default()
    }

    /// The instructions that are certain to follow from `at` on, as far as `end`.
    fn after(&self, at: u64, end: u64) -> Vec<u64> {
        let (mut at, mut all) = (at, Vec::new());
        while at < end.min(self.end()) {
            let Some(insn) = self.insn(at) else { break };
            all.push(at);
            if ends_flow(&insn) {
                break;
            }
            at = insn.next_ip();
        }
        all
    }

    fn relayed(
        &self,
        run: &Run,
        byte: u8,
        evicted: &Run,
        relay: u64,
        room: &mut dyn Room,
    ) -> Option<Vec<Patch>> {
        let (from, end) = (evicted.range.start, relay + NEAR);
        if end > self.end() || evicted.inner.iter().any(|inner| *inner < end && (self.is_target)(*inner)) {
            return None;
        }
        let stub = room.take(end, &self.displacement(relay + 1, &evicted.inner))?;
        let other = room.take(from + NEAR, &self.displacement(from + 1, &evicted.inner))?;
        let mut bytes = near(from, other)?.to_vec();
        for at in from + NEAR..relay {
            let kept = self.byte(at)?;
            bytes.push(if evicted.inner.contains(&at) { TRAPPING[0] } else { kept });
        }
        bytes.extend(near(relay, stub)?);
        let first = Patch { at: run.range.start, bytes: vec![0xeb, byte], moved: run.range.clone(), stub };
        Some(vec![first, Patch { at: from, bytes, moved: evicted.range.clone(), stub: other }])
    }

    fn punned(&self, site: &Instruction, room: &mut dyn Room) -> Option<Vec<Patch>> {
        let at = site.ip();
        let own = site.len() as u64;
        if !is_movable(site) || own >= NEAR || (self.is_taken)(&(at..at.saturating_add(NEAR))) {
            return None;
        }
        let mut wants = [Want::Any; 4];
        for (want, n) in wants.iter_mut().zip(1..) {
            if n >= own {
                *want = Want::Is(self.byte(at + n)?);
            }
        }
        let stub = room.take(at.checked_add(NEAR)?, &Pattern(wants))?;
        let jump = near(at, stub)?;
        let bytes = jump.get(..site.len())?.to_vec();
        Some(vec![Patch { at, bytes, moved: at..site.next_ip(), stub }])
    }
}

/// The displacement of a short jump that ends at `end`, to `target`.
fn distance(end: u64, target: u64) -> Option<u8> {
    let distance = i8::try_from(target.wrapping_sub(end).cast_signed()).ok()?;
    Some(distance.cast_unsigned())
}

/// `jmp rel32` at `at`.
fn near(at: u64, target: u64) -> Option<[u8; 5]> {
    let distance = i32::try_from(target.wrapping_sub(at.wrapping_add(NEAR)).cast_signed()).ok()?;
    let [a, b, c, d] = distance.to_le_bytes();
    Some([0xe9, a, b, c, d])
}

/// One tactic at one site: the patches that it makes, if it fits.
type Way<'a> = &'a dyn Fn(&mut dyn Room) -> Option<Vec<Patch>>;

/// Plans how to patch the instruction at `site`; `None` if nothing fits, and it goes on trapping.
pub(crate) fn plan(view: &View<'_>, site: u64, room: &mut dyn Room) -> Option<Plan> {
    let insn = view.insn(site)?;
    let ways: [Way<'_>; 4] = [
        &|room| view.with_followers(site, room),
        &|room| view.jump_before(&insn, room),
        &|room| view.by_short_jump(&insn, room),
        &|room| view.punned(&insn, room),
    ];
    let mut tried = Tactic::ALL.into_iter().zip(ways);
    tried.find_map(|(tactic, way)| way(room).map(|patches| Plan { tactic, patches }))
}

/// The same, at no other patch's expense if that is possible.
pub(crate) fn plan_among(view: &View<'_>, site: u64, room: &mut dyn Room) -> Option<Plan> {
    let insn = view.insn(site)?;
    let sparing = View { spares: true, ..*view };
    let found = sparing.with_followers(site, room).map(|patches| Plan { tactic: Tactic::Followers, patches });
    let found = found
        .or_else(|| sparing.jump_before(&insn, room).map(|patches| Plan { tactic: Tactic::Before, patches }));
    let found = found.or_else(|| {
        sparing.by_short_jump(&insn, room).map(|patches| Plan { tactic: Tactic::Short, patches })
    });
    found.or_else(|| plan(&View { spares: false, ..*view }, site, room))
}

#[cfg(test)]
mod tests;
