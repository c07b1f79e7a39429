//! Translates what is about to run, and turns the guest's state into the cache's and back.

mod ahead;
mod guilty;
mod make;

use std::collections::VecDeque;
use std::ops::Range;

use super::adapt::{ALIASES, Adaptation};
use super::block::Product;
use super::cache::Cache;
use super::code::{frame_of, is_mapped, is_sensitive, marked_frame, word};
use super::lookup::{Shared, emit_shared};
use super::pages::{Pages, Reader};
use super::place::Place;
use super::targets::{self, Targets};
use crate::codegen::emitter::{Emitter, Environment};
use crate::codegen::recipe::{Recipe, Then, restore};
use crate::codegen::state_page::{self, StatePage};
use crate::exec::virtual_cpu::{TableRegister, VirtualCpu};
use crate::host::host_cpuid;
use crate::machine::memory::{MachineMemory, Mfn, PAGE_SIZE};
use crate::mmu::log::TableLog;
use crate::mmu::shadow::Shadow;
use crate::mmu::space::{Flush, VcpuSpace};
use crate::x86::control::efer;
use crate::x86::registers::Regs;
use crate::x86::rflags;
use crate::x86::walk::Access;

/// How many blocks are translated at once, most of them because they are likely to be needed.
const AT_ONCE: usize = 48;
/// How many pages of the cache are mapped at once, before they are used: neighbours are mapped by one call of the
/// host's.
const SHOWN_AT_ONCE: u64 = 64;
/// Bytes of code that one block is made from at the most.
const READ_AHEAD: usize = 768;

/// What the translator works on.
pub(crate) struct Surroundings<'a> {
    pub cpu: &'a mut VirtualCpu,
    pub regs: &'a mut Regs,
    pub shadow: &'a mut Shadow,
    pub memory: &'a MachineMemory,
    pub log: &'a mut TableLog,
    pub space: &'a mut VcpuSpace,
    /// Whether an interrupt waits for the kernel to turn interrupts on.
    pub pending: bool,
}

/// How much was done since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub blocks: u64,
    pub bytes: u64,
    pub flushes: u64,
    pub log_entries: u64,
    pub adapted: u64,
}

/// What an exit from the cache is about. The guest's state is whole in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// An exit of the guest's own.
    Guest,
    /// If it is the fault of a trapping byte: the instruction at RIP is to be executed.
    Callout,
    /// If it is that: there is no translation of what is at RIP.
    Miss,
    /// If it is that: the target of an indirect transfer was not in the table.
    TargetMiss,
    /// If it is a single step: it was for the translator, and one instruction ran where it is.
    Stepped,
}

/// A block that is to be made.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    va: u64,
    /// Whether lookups are likely to come to it.
    is_target: bool,
    /// Where the function that it belongs to is likely to return to.
    returns_to: Option<u64>,
}

/// The translator of one virtual CPU.
#[derive(Debug)]
pub(crate) struct Translator {
    place: Place,
    placed: bool,
    state: StatePage,
    env: Environment,
    shared: Shared,
    stub: Option<[u8; 32]>,
    /// Whether LOOP is no slower than a conditional jump: so on AMD's processors.
    fast_loop: bool,
    cache: Cache,
    pages: Pages,
    targets: Targets,
    product: Product,
    queue: VecDeque<Wanted>,
    /// The page of code that was looked up last, while it cannot change, and its frame.
    page: Option<(u64, u64)>,
    /// How much of the cache has been mapped ahead of use.
    shown: u64,
    /// The block that the last exit was from.
    last: Option<u32>,
    /// Whether the guest runs in the cache.
    inside: bool,
    /// Whether the instruction at this address is to run where it is, for one step.
    native: Option<u64>,
    /// Whether TF is ours, for such a step.
    stepping: bool,
    /// The instruction for which a trapping byte was entered, because the kernel steps itself.
    called_out: Option<u64>,
    done: Done,
    /// How often devices had written when frames with code were last compared.
    foreign_writes: u64,
    /// Of stores to page tables, if they are to be logged.
    adaptation: Option<Adaptation>,
    /// What is to be translated before it runs.
    functions: Vec<Range<u64>>,
    /// The table whose handlers have been.
    idt: TableRegister,
}

impl Translator {
    /// A translator with the frames `state`, to which the kernel may write, and `code`. `stub` is the machine's way to
    /// make a hypercall; `adaptive` says whether stores to page tables that trap often are to be logged; `functions`
    /// are the kernel's, as far as they are known, in order and apart from each other.
    pub fn new(
        state: Range<u64>,
        code: Range<u64>,
        stub: Option<[u8; 32]>,
        adaptive: bool,
        functions: Vec<Range<u64>>,
    ) -> Self {
        let (page, log) = (Mfn(state.start).maddr(), Mfn(state.start + 1).maddr());
        let place = Place::new(state, code, if adaptive { ALIASES } else { 0 });
        let (_, at, size) = place.cache();
        let env = Environment::here(0, None);
        let blocks = size as usize / 32;
        Self {
            state: StatePage::new(page),
            env,
            shared: Shared::default(),
            stub,
            fast_loop: host_cpuid::is_amd(),
            cache: Cache::new(at, size),
            pages: Pages::new(blocks),
            targets: Targets::new(place.table().1, env.bmi2),
            place,
            placed: false,
            product: Product::default(),
            page: None,
            queue: VecDeque::with_capacity(AT_ONCE * 8),
            shown: 0,
            last: None,
            inside: false,
            native: None,
            stepping: false,
            called_out: None,
            done: Done::default(),
            foreign_writes: 0,
            adaptation: adaptive.then(|| Adaptation::new(log)),
            functions,
            idt: TableRegister::default(),
        }
    }

    /// What was done since the last call.
    pub fn take_done(&mut self) -> Done {
        std::mem::take(&mut self.done)
    }

    /// Turns the guest's state into what the engine is to run. Where that is the kernel's own code, it stays as it is.
    pub fn enter(&mut self, s: &mut Surroundings<'_>) {
        self.follow_changes(s);
        self.inside = false;
        if s.cpu.user {
            return;
        }
        if self.native.take() == Some(s.regs.rip) {
            self.stepping = s.regs.rflags & rflags::TF == 0;
            s.regs.rflags |= rflags::TF;
            return;
        }
        if !self.is_placed(s) {
            return;
        }
        if s.regs.rflags & rflags::TF != 0 {
            // The kernel steps itself: through its own code, but for what would do something else there.
            if is_sensitive(s.regs.rip, s.shadow, s.memory) {
                self.called_out = Some(s.regs.rip);
                s.regs.rip = self.shared.miss;
            }
            return;
        }
        self.translate_handlers(s);
        let Some(offset) = self.entry(s) else { return };
        self.state.publish(s.memory, s.cpu, s.pending);
        if let Some(adaptation) = &mut self.adaptation {
            adaptation.publish(s.memory, self.state, self.place.first_alias());
        }
        s.regs.rip = self.place.cache().0 + u64::from(offset);
        self.inside = true;
    }

    /// Where in the cache the guest goes on.
    fn entry(&mut self, s: &mut Surroundings<'_>) -> Option<u32> {
        let rip = s.regs.rip;
        let again = self.last.and_then(|block| self.cache.resume(block, rip));
        if again.is_some() {
            return again;
        }
        if self.cache.find(rip).is_none() {
            self.translate_from(s, Wanted { va: rip, is_target: false, returns_to: None });
        }
        self.cache.find(rip).map(|block| block.body)
    }

    /// Makes the guest's state whole after an exit.
    pub fn leave(&mut self, s: &mut Surroundings<'_>) -> Found {
        let (memory, cpu, regs) = (s.memory, &mut *s.cpu, &mut *s.regs);
        if std::mem::take(&mut self.stepping) {
            regs.rflags &= !rflags::TF;
            return Found::Stepped;
        }
        if let Some(rip) = self.called_out.take() {
            regs.rip = rip;
            return Found::Callout;
        }
        if !std::mem::take(&mut self.inside) {
            return Found::Guest;
        }
        self.state.read_back(memory, cpu);
        if let Some(adaptation) = &self.adaptation {
            let (shadow, log) = (&mut *s.shadow, &mut *s.log);
            let follow = |pfn, slot| {
                shadow.drain(memory, log, pfn, slot);
            };
            self.done.log_entries += adaptation.drain(memory, self.state, self.place.first_alias(), follow);
        }
        let va = self.place.cache().0;
        let offset = u32::try_from(regs.rip.wrapping_sub(va)).unwrap_or(u32::MAX);
        // Behind the code that calls the host, on whose stack the return address is, another block may go on.
        let caller = || self.state.word(memory, state_page::STACK_TOP - 8).wrapping_sub(va);
        let from = if self.cache.is_shared(offset) { u32::try_from(caller()).ok() } else { Some(offset) };
        if let Some((block, _)) = from.and_then(|from| self.cache.at(from)) {
            self.last = Some(block);
        }
        let points = |at| self.cache.points_around(at);
        let Some(Recipe { then, .. }) = restore(points, va, memory, self.state, cpu, regs) else {
            return Found::Guest;
        };
        if matches!(then, Then::Miss | Then::TargetMiss | Then::Native) {
            // A jump that led here would lead here again.
            self.last = None;
        }
        match then {
            Then::Callout => Found::Callout,
            Then::Miss => Found::Miss,
            Then::TargetMiss => Found::TargetMiss,
            Then::Native => {
                self.native = Some(regs.rip);
                Found::Miss
            }
            _ if self.cache.is_grave(offset) => Found::Miss,
            _ => Found::Guest,
        }
    }

    /// Enters the target of an indirect transfer, which was not in the table, into it.
    pub fn learn(&mut self, s: &mut Surroundings<'_>) {
        let rip = s.regs.rip;
        if self.cache.find(rip).is_none() && self.is_placed(s) {
            // A function that was called through a pointer is likely to be called from the same place again.
            let returns_to = word(s.shadow, s.memory, s.regs.rsp);
            let returns_to =
                returns_to.filter(|to| self.cache.find(*to).is_some_and(|to| to.entry.is_some()));
            self.translate_from(s, Wanted { va: rip, is_target: true, returns_to });
        }
        if let Some(entry) = self.entry_of(s.memory, rip) {
            self.targets.insert(s.memory, rip, entry);
        }
    }

    /// The address at which lookups enter the block of `va`, which gets an entry if it has none.
    fn entry_of(&mut self, memory: &MachineMemory, va: u64) -> Option<u64> {
        let block = self.cache.find(va)?;
        let base = self.place.cache().0;
        if let Some(entry) = block.entry {
            return Some(base + u64::from(entry));
        }
        let (origin, body) = (self.cache.next(), base + u64::from(block.body));
        let (env, shared) = (self.env, &self.shared);
        if !self.product.make_entry(va, body, base + u64::from(origin), origin, env, shared)
            || !self.cache.has_room(&self.product)
        {
            return None;
        }
        self.cache.add_entry(memory, va, &self.product).map(|entry| base + u64::from(entry))
    }

    /// Lets go of blocks whose code has changed, or whose address leads elsewhere, and of a place that the guest wants.
    fn follow_changes(&mut self, s: &mut Surroundings<'_>) {
        let Self { pages, cache, .. } = self;
        let memory = s.memory;
        let mut written = [None; 16];
        let mut places = written.iter_mut();
        let foreign_writes = memory.foreign_writes();
        if std::mem::replace(&mut self.foreign_writes, foreign_writes) != foreign_writes {
            while let Some(pfn) = pages.changed_by_device(memory) {
                pages.written(pfn, memory, cache);
                s.shadow.unprotect_code(pfn);
            }
        }
        let overflow = s.shadow.take_code_writes(|write| {
            if pages.written(write.pfn, memory, cache)
                && let Some(place) = places.next()
            {
                *place = Some(write.pfn);
            }
        });
        if overflow {
            self.forget(s);
            self.done.flushes += 1;
        }
        for pfn in written.into_iter().flatten() {
            s.shadow.unprotect_code(pfn);
        }
        let only = match s.space.requested_flush() {
            Flush::None => None,
            Flush::Page(va) => Some(Some(va)),
            Flush::All => Some(None),
        };
        if let Some(adaptation) = &mut self.adaptation {
            let flushed = |va: u64| match only {
                Some(Some(of)) => of >> 12 == va >> 12,
                Some(None) => true,
                None => false,
            };
            let (shadow, cr3) = (&*s.shadow, s.cpu.cr3);
            let stays = |va, pfn| {
                shadow.is_table(pfn)
                    && !shadow.is_code(pfn)
                    && (!flushed(va) || marked_frame(memory, cr3, va) == Some(pfn))
            };
            adaptation.release(|va, pfn| !stays(va, pfn));
        }
        if let Some(only) = only {
            let shadow = &*s.shadow;
            let mut reader = Reader::new(memory, s.cpu.cr3, s.cpu.efer & efer::NXE != 0);
            let frame = |va| reader.frame(va).or_else(|| frame_of(shadow, memory, va));
            self.pages.check(only, memory, &mut self.cache, frame);
        }
        if self.placed && s.shadow.overlay_collides(memory) {
            self.placed = false;
        }
    }

    /// Finds a place for our pages near the code, unless they have one.
    fn is_placed(&mut self, s: &mut Surroundings<'_>) -> bool {
        if self.placed {
            return true;
        }
        let near = s.regs.rip;
        let shadow = &*s.shadow;
        let mapped = |va: u64| is_mapped(shadow, s.memory, va);
        let Some(base) = self.place.candidates(near).take(64).find(|base| self.place.is_free(*base, mapped))
        else {
            return false;
        };
        self.place.set_base(base);
        self.env.state = base;
        if let Some(adaptation) = &mut self.adaptation {
            adaptation.release(|_, _| true);
            adaptation.forget_page();
        }
        let pages = self.place.pages();
        s.shadow.set_overlay(s.memory, s.log, &pages);
        self.placed = self.start_anew(s).is_some();
        self.shown = 0;
        for n in 0..self.place.states() {
            self.show(s, base + n * PAGE_SIZE, true);
        }
        for n in 0..targets::FRAMES {
            self.show(s, self.place.table().0 + n * PAGE_SIZE, false);
        }
        self.translate_ahead(s);
        self.placed
    }

    /// Maps a page of ours now, rather than when it is missed.
    fn show(&self, s: &mut Surroundings<'_>, va: u64, write: bool) {
        let access = Access { write, user: false, fetch: false };
        s.shadow.fill_overlay(s.memory, s.log, s.space, va, access);
    }

    /// Empties the cache, and emits what all blocks share.
    fn start_anew(&mut self, s: &mut Surroundings<'_>) -> Option<()> {
        let (va, _, _) = self.place.cache();
        let (mut bytes, mut points) = (Vec::new(), Vec::new());
        let env = Environment { gate: None, ..self.env };
        let mut emitter = Emitter::new(&mut bytes, &mut points, va, 0, env);
        self.shared =
            emit_shared(&mut emitter, self.place.table().0, self.stub.as_ref(), self.fast_loop).ok()?;
        self.env.gate = self.stub.is_some().then_some(self.shared.gate);
        self.cache.begin(s.memory, &bytes, &points);
        self.forget(s);
        Some(())
    }

    /// Drops all blocks.
    fn forget(&mut self, s: &mut Surroundings<'_>) {
        for pfn in self.pages.frames() {
            s.shadow.unprotect_code(pfn);
        }
        self.pages.clear();
        self.cache.clear();
        self.targets.clear(s.memory, self.shared.miss);
        if let Some(adaptation) = &mut self.adaptation {
            adaptation.blocks_gone();
        }
        self.last = None;
    }
}
