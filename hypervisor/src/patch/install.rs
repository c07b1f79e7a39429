//! Installs patches at sites that trap, takes them back when their code changes, and turns the state of a guest that is
//! in a stub into the guest's own.
//!
//! A domain's patches are few, and made once: what is allocated here is bounded by the arena's frames, and nothing is
//! allocated on an exit that installs nothing.

use std::ops::Range;

use super::arena::{Arena, Growing};
use super::kernel::{Kernel, is_free};
use super::record::{Frame, Hidden, Installed, Offsets, Site};
use super::site::{NEAR, Patch, Plan, Tactic, View, gaps_around, plan_among};
use super::stub::Stub;
use crate::codegen::emitter::{Emitter, Environment};
use crate::codegen::recipe::{Point, Recipe, Then, restore};
use crate::codegen::state_page::StatePage;
use crate::exec::virtual_cpu::TableRegister;
use crate::ledger::Work;
use crate::machine::memory::{Maddr, Mfn, PAGE_SIZE};

mod ahead;
mod upkeep;

/// How often a place is patched anew after its patch was taken back, before it is left alone.
const RETRIES: u8 = 8;
/// How many stores to a frame of patched code, none of them to patched code itself, are emulated before the frame is
/// taken for data: its patches are taken back.
const IDLE_STORES: u32 = 64;
/// How often everything is moved out of the guest's way, before patching is given up.
const MOVES: u32 = 16;
/// How many targets of jumps are learned from the jumps, in the whole life of a domain.
const TARGETS: u32 = 1024;

/// All patches of a domain.
#[derive(Debug)]
pub(crate) struct Patcher {
    state_frame: Mfn,
    frames: Range<u64>,
    hypercall: [u8; 32],
    arena: Option<Arena>,
    env: Option<Environment>,
    sites: Vec<Site>,
    /// The guest's state at each instruction of every stub, in order.
    points: Vec<Point>,
    /// Targets of jumps: those of direct ones, and instructions that were jumped to although a jump hid them.
    targets: Vec<u64>,
    /// How many of the latter.
    learned: u32,
    /// The kernel's functions, from its symbols, in order.
    functions: Vec<Range<u64>>,
    /// They are where the symbols say, and have been patched.
    prepared: bool,
    /// The table whose handlers have been patched, and how many tables there were.
    handlers: (TableRegister, u32),
    /// What jumps hide: the guest's instructions that began there, in order.
    hidden: Vec<Hidden>,
    /// Where in their pages these are, and where the stubs are that jumps lead to.
    hidden_at: Offsets,
    stubs_at: Offsets,
    /// The arena may have pages that the shadow does not know.
    grown: bool,
    /// How many of `points` are in order.
    sorted: usize,
    /// The number of devices' writes when the code was last compared.
    foreign: u64,
    /// `hidden` is not what `sites` say.
    changed: bool,
    /// How often a place was patched or tried.
    tried: Vec<(Maddr, u8)>,
    code: Vec<Frame>,
    moves: u32,
    /// The kernel single-steps: all code is as it was.
    suspended: bool,
}

impl Patcher {
    /// Without any patches yet. `frames` are for stubs, `state` is the frame that they share with the monitor,
    /// `hypercall` is the machine's way to call the host, and `functions` are where the kernel's symbols say.
    pub fn new(frames: Range<u64>, state: Mfn, hypercall: [u8; 32], functions: Vec<Range<u64>>) -> Self {
        Self {
            state_frame: state,
            frames,
            hypercall,
            arena: None,
            env: None,
            sites: Vec::new(),
            points: Vec::new(),
            targets: Vec::new(),
            learned: 0,
            functions,
            prepared: false,
            handlers: (TableRegister::default(), 0),
            hidden: Vec::new(),
            hidden_at: Offsets::none(),
            stubs_at: Offsets::none(),
            grown: false,
            sorted: 0,
            foreign: 0,
            changed: false,
            tried: Vec::new(),
            code: Vec::new(),
            moves: 0,
            suspended: false,
        }
    }

    /// The page of state, if stubs may be using it.
    fn page(&self) -> Option<StatePage> {
        self.arena.as_ref().map(|_| StatePage::new(self.state_frame.maddr()))
    }

    /// Publishes the virtual CPU's state to stubs.
    pub fn publish(&self, k: &Kernel<'_>, pending: bool) {
        if let Some(page) = self.page() {
            page.publish(k.memory, k.cpu, pending);
        }
    }

    /// The guest's state after an exit of its kernel: what stubs changed, and the registers if it was in a stub.
    /// Returns the recipe that applied.
    pub fn make_whole(&mut self, k: &mut Kernel<'_>) -> Option<Recipe> {
        let (arena, page) = (self.arena.as_ref()?, self.page()?);
        page.read_back(k.memory, k.cpu);
        let rip = k.regs.rip;
        if arena.contains(rip) {
            return restore(|_| &self.points, arena.origin, k.memory, page, k.cpu, k.regs);
        }
        let seen = arena.seen_from(rip).filter(|_| k.code_at(rip).is_none())?;
        k.regs.rip = seen;
        let recipe = restore(|_| &self.points, arena.origin, k.memory, page, k.cpu, k.regs);
        let beside = k.regs.rip.wrapping_add(rip.wrapping_sub(seen));
        k.regs.rip = if recipe.is_some() && k.code_at(beside).is_some() { beside } else { rip };
        if recipe.is_some() {
            self.withdraw(k, beside);
        }
        recipe
    }

    /// Whether an address is in a page of stubs.
    pub fn is_stub(&self, va: u64) -> bool {
        self.arena.as_ref().is_some_and(|arena| arena.contains(va))
    }

    /// Where the stub goes on with the instruction at `rip`, if a jump hides it in the address space in use.
    pub fn entry(&self, k: &Kernel<'_>, rip: u64) -> Option<u64> {
        if !self.hidden_at.may_have(rip) {
            return None;
        }
        let place = self.hidden.binary_search_by_key(&rip, |hidden| hidden.rip).ok()?;
        let Hidden { maddr, stub, .. } = *self.hidden.get(place)?;
        (k.code_at(rip)? == maddr).then_some(stub)
    }

    fn hide(&mut self) {
        self.hidden.clear();
        (self.hidden_at, self.stubs_at) = (Offsets::none(), Offsets::none());
        for jump in self.sites.iter().flat_map(|site| &site.jumps) {
            self.stubs_at.insert(jump.patch.stub);
            for &(rip, _) in &jump.entries {
                if let Some(stub) = jump.entry(rip) {
                    let maddr = Maddr(jump.maddr.0.wrapping_add(rip.wrapping_sub(jump.patch.at)));
                    self.hidden_at.insert(rip);
                    self.hidden.push(Hidden { rip, maddr, stub });
                }
            }
        }
        self.hidden.sort_unstable_by_key(|hidden| hidden.rip);
    }

    /// Notes a jump to the instruction at `rip`, which a jump of ours hid: the patch is taken back, and what comes in
    /// its place spares that instruction.
    pub fn jumped_into(&mut self, k: &mut Kernel<'_>, rip: u64) {
        k.ledger.work(Work::PatchEntries, 1);
        if self.learn(rip) {
            self.undo(k, |site| site.jumps.iter().any(|j| j.entry(rip).is_some()));
        }
    }

    /// Notes that the instruction at `rip` was jumped to; whether that is new.
    fn learn(&mut self, rip: u64) -> bool {
        let Err(place) = self.targets.binary_search(&rip) else { return false };
        let has_room = self.learned < TARGETS;
        if has_room {
            self.learned += 1;
            self.targets.insert(place, rip);
        }
        has_room
    }

    /// The instruction at RIP traps, and is one of those that stubs are for: patches it, if that can be done.
    pub fn trapped(&mut self, k: &mut Kernel<'_>) {
        let site = k.regs.rip;
        if !self.prepared && !self.functions.is_empty() {
            self.prepare(k);
            if self.covers(site) {
                return;
            }
        }
        let Some(maddr) = k.code_at(site) else { return };
        let Some(pfn) = k.memory.mfn_to_pfn(maddr.mfn()) else { return };
        if self.suspended || self.moves >= MOVES || !self.may_try(maddr) || self.is_closed(pfn) {
            return;
        }
        // Overwritten by the guest without our knowledge, such as by a device.
        self.undo(k, |s| s.jumps.iter().any(|j| j.patch.at == site));
        if self.covers(site) {
            // What is jumped to behind a jump is not in the stub.
            self.learn(site);
        }
        let known = self.known_around(k, site);
        self.patch(k, site, maddr, &known);
    }

    fn patch(&mut self, k: &mut Kernel<'_>, site: u64, maddr: Maddr, known: &[u64]) {
        let done = self.install(k, site, maddr, known);
        let work = match done {
            Some(Tactic::Followers) => Work::PatchedFollowers,
            Some(Tactic::Before) => Work::PatchedBefore,
            Some(Tactic::Short) => Work::PatchedShort,
            Some(Tactic::Punned) => Work::PatchedPunned,
            None => {
                self.give_up(maddr);
                Work::Unpatched
            }
        };
        k.ledger.work(work, 1);
    }

    /// Whether a stub has the instruction at `site`.
    fn covers(&self, site: u64) -> bool {
        self.sites.iter().flat_map(|s| &s.jumps).any(|j| j.patch.moved.contains(&site))
    }

    fn may_try(&mut self, maddr: Maddr) -> bool {
        match self.tried.binary_search_by_key(&maddr, |(at, _)| *at) {
            Ok(place) => self.tried.get_mut(place).is_some_and(|(_, times)| {
                *times = times.saturating_add(1);
                *times <= RETRIES
            }),
            Err(place) => {
                self.tried.insert(place, (maddr, 1));
                true
            }
        }
    }

    fn give_up(&mut self, maddr: Maddr) {
        if let Ok(place) = self.tried.binary_search_by_key(&maddr, |(at, _)| *at)
            && let Some((_, times)) = self.tried.get_mut(place)
        {
            *times = RETRIES;
        }
    }

    fn is_closed(&self, pfn: u64) -> bool {
        self.code.iter().any(|frame| frame.pfn == pfn && frame.closed)
    }

    fn install(&mut self, k: &mut Kernel<'_>, site: u64, maddr: Maddr, known: &[u64]) -> Option<Tactic> {
        let mut code = [0; PAGE_SIZE as usize];
        k.shadow.read(k.memory, maddr.mfn().maddr(), &mut code).ok()?;
        self.install_in(k, site, maddr, &code, known)
    }

    /// Installs a patch in a page whose bytes were `code` when they were read: a device may have stored there since.
    fn install_in(
        &mut self,
        k: &mut Kernel<'_>,
        site: u64,
        maddr: Maddr,
        code: &[u8],
        known: &[u64],
    ) -> Option<Tactic> {
        let page = site & !(PAGE_SIZE - 1);
        if self.arena.is_none() {
            self.open(k, site)?;
        }
        let is_free = |va: u64| is_free(k, site, va);
        let gaps = if self.prepared { gaps_around(&self.functions, site) } else { Vec::new() };
        let Self { arena: Some(arena), sites, targets, .. } = self else { return None };
        let is_target = |at: u64| targets.binary_search(&at).is_ok();
        let is_taken = |range: &Range<u64>| sites.iter().any(|s| s.touches(range));
        let (is_target, is_taken) = (&is_target, &is_taken);
        let view = View { base: page, code, is_target, is_taken, known, gaps: &gaps, spares: true };
        let Plan { tactic, patches } = plan_among(&view, site, &mut Growing { arena, is_free: &is_free })?;
        self.undo(k, |s| patches.iter().any(|p| s.jumps.iter().any(|j| j.patch.overlaps(p))));
        let mut stubs = Vec::new();
        for patch in &patches {
            if patch.moved.is_empty() {
                stubs.push(Vec::new());
                continue;
            }
            let from = usize::try_from(patch.moved.start - page).ok()?;
            let to = usize::try_from(patch.moved.end - page).ok()?;
            stubs.push(self.emit(k, site, code.get(from..to)?, patch)?);
        }
        // From here on nothing fails.
        self.grown = true;
        let pfn = k.memory.mfn_to_pfn(maddr.mfn())?;
        k.shadow.protect_code(k.memory, k.log, pfn);
        if let Some(frame) = self.code.iter_mut().find(|frame| frame.pfn == pfn) {
            frame.stores = 0;
        } else {
            self.code.push(Frame { pfn, stores: 0, closed: false });
        }
        let mut jumps = Vec::new();
        for (patch, entries) in patches.into_iter().zip(stubs) {
            let at = Maddr(maddr.mfn().maddr().0 | (patch.at % PAGE_SIZE));
            k.shadow.replace_code(k.memory, at, &patch.bytes).ok()?;
            jumps.push(Installed::new(patch, at, entries, code)?);
        }
        let (is_made_of_it, first) =
            (jumps.iter().all(|jump| jump.is_made_of(code, k)), jumps.first().map(|jump| jump.maddr));
        self.sites.push(Site { jumps });
        self.changed = true;
        if !is_made_of_it {
            self.undo(k, |site| site.jumps.first().map(|jump| jump.maddr) == first);
            return None;
        }
        Some(tactic)
    }

    /// Finds a place for stubs near `site`, with the code that calls the host in front.
    fn open(&mut self, k: &mut Kernel<'_>, site: u64) -> Option<()> {
        let is_free = |va: u64| is_free(k, site, va);
        let mut arena = Arena::open(site, self.state_frame, self.frames.clone(), &is_free)?;
        let env = Environment::here(arena.state, None);
        let (mut bytes, mut points) = (Vec::new(), Vec::new());
        let at = arena.allocate(96, &is_free)?;
        let from = u32::try_from(at.wrapping_sub(arena.origin)).ok()?;
        Emitter::new(&mut bytes, &mut points, at, from, env).gate(&self.hypercall).ok()?;
        k.memory.write(arena.maddr(at)?, bytes.get(..bytes.len().min(96))?).ok()?;
        self.env = Some(Environment { gate: Some(at), ..env });
        (self.points, self.arena, self.sorted) = (points, Some(arena), 0);
        Some(())
    }

    /// Writes the stub of a patch; returns where it can be entered.
    fn emit(&mut self, k: &Kernel<'_>, site: u64, code: &[u8], patch: &Patch) -> Option<Vec<(u64, u64)>> {
        let env = self.env?;
        let arena = self.arena.as_mut()?;
        let (moved, origin) = (&patch.moved, arena.origin);
        let mut stub = Stub::new(code, moved, patch.stub, origin, env).ok()?;
        let mut at = patch.stub;
        if !arena.extend(patch.stub, NEAR, stub.bytes.len() as u64) {
            // There is room for a jump only.
            at = arena.allocate(stub.bytes.len() as u64 + 32, &|va| is_free(k, site, va))?;
            stub = Stub::new(code, moved, at, origin, env).ok()?;
            let jump = Stub::jump(patch.at, patch.stub, origin, at, env).ok()?;
            k.memory.write(arena.maddr(patch.stub)?, &jump.bytes).ok()?;
            self.points.extend(jump.points);
        }
        let arena = self.arena.as_ref()?;
        k.memory.write(arena.maddr(at)?, &stub.bytes).ok()?;
        self.points.extend(stub.points);
        Some(stub.entries)
    }

    /// Takes back the patches of the sites that `which` says.
    fn undo(&mut self, k: &mut Kernel<'_>, which: impl Fn(&Site) -> bool) {
        let Kernel { shadow, memory, ledger, .. } = k;
        let changed = &mut self.changed;
        self.sites.retain(|site| {
            if !which(site) {
                return true;
            }
            *changed = true;
            for jump in &site.jumps {
                // The frame is there: it was written when the patch was made.
                let _ = shadow.restore_code(memory, jump.maddr, jump.patch.bytes.len());
            }
            ledger.work(Work::PatchesUndone, 1);
            false
        });
    }
}

/// Whether a recipe is that of a callout.
pub(crate) fn is_callout(recipe: &Recipe) -> bool {
    recipe.then == Then::Callout
}

#[cfg(test)]
mod tests;
