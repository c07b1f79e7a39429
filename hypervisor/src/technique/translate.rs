//! Dynamic binary translation: a bare kernel's code as [`crate::translate`] makes it.

use super::bare::BareDomain;
use super::method::{Guest, Left, Method};
use super::{Domain, EngineNeed, MakeError, Parts, Technique, on_any_host};
use crate::bare::platform::virtio_mmio::VirtioMmio;
use crate::engine::Exit;
use crate::image::{GuestKind, symbols};
use crate::ledger::{Cause, Work};
use crate::machine::layout::OwnCode;
use crate::mmu::shadow;
use crate::translate::{self, Found, Surroundings, Translator};
use crate::x86::exception::{Fault, vector};

/// The rows of the table.
pub(super) const TRANSLATE: Technique = Technique {
    name: "translate",
    about: "binary translation: the kernel runs as code that was made from it",
    runs: GuestKind::Bare,
    engine: EngineNeed::Deprivileged,
    max_vcpus: 1,
    available: on_any_host,
    shadow_frames: shadow::frames_for,
    own_code: OwnCode { state: translate::STATE_FRAMES[0], code: CODE_FRAMES },
    own_frames: |layout| (layout.m2p.end - layout.m2p.start).div_ceil(512),
    device_parameters: |count| (count != 0).then(|| VirtioMmio::parameters(count)),
    undebuggable: Some("what runs is code that was made from the kernel's, at other addresses"),
    make: |parts| make(parts, false),
    restore: None,
};
#[allow(missing_docs)]
pub(super) const ADAPTIVE: Technique = Technique {
    name: "translate-adaptive",
    about: "the same, with stores to page tables logged instead of trapped",
    own_code: OwnCode { state: translate::STATE_FRAMES[1], code: CODE_FRAMES },
    make: |parts| make(parts, true),
    ..TRANSLATE
};

/// The adaptive one with 64 KiB of translations, which any kernel fills again and again: for tests.
pub const SMALL: Technique =
    Technique { own_code: OwnCode { code: translate::OWN_FRAMES + 16, ..ADAPTIVE.own_code }, ..ADAPTIVE };

/// Frames for the table of targets and for 2 MiB of translations: all of the reference kernel takes half of them.
const CODE_FRAMES: u64 = translate::OWN_FRAMES + 512;

fn make(parts: Parts<'_>, adaptive: bool) -> Result<Box<dyn Domain>, MakeError> {
    let layout = &parts.layout;
    let stub = parts.machine.hypercall_stub(0);
    let functions = symbols::functions(parts.image.elf());
    let translator =
        Translator::new(layout.state.clone(), layout.code.clone(), Some(stub), adaptive, functions);
    BareDomain::make(parts, Translation(translator))
}

/// The method.
struct Translation(Translator);

impl Translation {
    /// Counts what was done.
    fn account(&mut self, guest: &mut Guest<'_>) {
        let done = self.0.take_done();
        for (kind, n) in [
            (Work::Blocks, done.blocks),
            (Work::TranslatedBytes, done.bytes),
            (Work::CacheFlushes, done.flushes),
            (Work::LogEntries, done.log_entries),
            (Work::SitesAdapted, done.adapted),
        ] {
            if n != 0 {
                guest.ledger.work(kind, n);
            }
        }
    }
}

/// What the translator works on.
fn surroundings<'a>(guest: &'a mut Guest<'_>) -> Surroundings<'a> {
    let (cpu, shadow, pending) = guest.machine.hot_parts();
    Surroundings {
        cpu,
        shadow,
        pending,
        regs: guest.regs,
        memory: guest.memory,
        log: guest.log,
        space: guest.space,
    }
}

impl Method for Translation {
    const NOTICES_STI: bool = false;

    fn before_entry(&mut self, guest: &mut Guest<'_>) {
        self.0.enter(&mut surroundings(guest));
        self.account(guest);
    }

    fn after_exit(&mut self, exit: Exit, guest: &mut Guest<'_>) -> Left {
        let found = self.0.leave(&mut surroundings(guest));
        let by_trap = matches!(exit, Exit::Fault(Fault { vector: vector::PROTECTION, .. }));
        let by_call = matches!(exit, Exit::Hypercall | Exit::Syscall);
        match found {
            Found::Callout if by_trap || by_call => {
                guest.ledger.work(Work::Callouts, 1);
                Left::Callout
            }
            Found::Miss if by_trap => Left::Own(Cause::TranslateMiss),
            Found::TargetMiss if by_trap => {
                self.0.learn(&mut surroundings(guest));
                Left::Own(Cause::LookupMiss)
            }
            Found::Stepped if is_debug(exit) => Left::Own(Cause::TranslateMiss),
            _ => Left::Exit(exit),
        }
    }

    fn handled(&mut self, rip: u64, exit: Exit, cause: Cause, guest: &mut Guest<'_>) {
        if let (Cause::PageTableStore, Exit::Fault(fault)) = (cause, exit) {
            self.0.store_trapped(&mut surroundings(guest), rip, fault.address);
        }
    }
}

fn is_debug(exit: Exit) -> bool {
    matches!(exit, Exit::Fault(Fault { vector: vector::DEBUG, .. }))
}
