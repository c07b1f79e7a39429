//! Why a guest ended where it did, and what one that runs on is doing: what a kernel's author wants to know.
//!
//! A technique testifies for each virtual CPU ([`Testimony`]); here that becomes words, with the image's symbols and
//! lines, a [`backtrace`] by frame pointers, and for an instruction that does not work at CPL 3 what to use instead.
//! All of it happens after the end, or while the guest stands still: the guest's memory is read, never written, and
//! whatever it holds is doubted.
//!
//! What may not be done here: changing anything, or deciding how a run ended.

#![forbid(unsafe_code)]

pub mod backtrace;
pub mod text;

use std::collections::BTreeMap;

use backtrace::{Stack, Walked};
use serde::Serialize;

use crate::audit;
use crate::image::lines::Lines;
use crate::image::symbol_map::SymbolMap;
use crate::x86::registers::Regs;

/// What a technique knows of a virtual CPU.
#[derive(Clone, Debug, Default)]
pub struct Testimony {
    /// Its number.
    pub vcpu: u32,
    /// Its registers.
    pub regs: Regs,
    /// What it was doing, as the rest of a sentence: "runs its kernel".
    pub doing: &'static str,
    /// What else its kernel's author should know, a sentence each.
    pub notes: Vec<String>,
    /// An exception of its kernel's, where that is what it came to grief by: what, and at which address.
    pub exception: Option<(String, u64)>,
}

/// Reads eight bytes of a guest's linear memory, for one of its virtual CPUs; `None` where nothing is mapped.
pub type Read<'a> = dyn FnMut(u32, u64) -> Option<u64> + 'a;

/// A testimony with all that it takes of the guest's memory to understand it, so that the guest may run on meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Witness {
    testimony: Testimony,
    walked: Walked,
    /// The instruction of the exception.
    code: Option<[u8; 16]>,
}

impl Witness {
    /// Looks at the stack. `word` reads eight bytes of the virtual CPU's linear memory.
    pub fn new(testimony: Testimony, word: &mut dyn FnMut(u64) -> Option<u64>) -> Self {
        let walked = backtrace::walk(&testimony.regs, word);
        let code = testimony.exception.as_ref().and_then(|(_, rip)| code_at(*rip, word));
        Self { testimony, walked, code }
    }

    /// The number of its virtual CPU.
    pub fn vcpu(&self) -> u32 {
        self.testimony.vcpu
    }
}

/// What is known of a guest that came to a bad end, or of one that runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Autopsy {
    /// Of each of its virtual CPUs.
    pub vcpus: Vec<Account>,
}

/// What is known of one virtual CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Its number.
    pub vcpu: u32,
    /// What it was doing.
    pub doing: &'static str,
    /// Where it was, the innermost function first.
    pub backtrace: Vec<Place>,
    /// How many more places there are after the first [`backtrace::KEPT`].
    pub skipped: usize,
    /// The kernel's last exception, if it had to do with the end: what, and where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exception: Option<(String, Place)>,
    /// What else there is to say, a sentence each.
    pub notes: Vec<String>,
}

/// A place in a guest's code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Linear address.
    pub address: u64,
    /// The function and the offset in it, if the image has symbols.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// File and line, if it has line tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
}

/// What an allocator without memory ends in, whatever allocator it is.
const EXHAUSTED_HEAP: &str = "its heap is exhausted: give the allocator more memory, and the guest, if it has no more (--mem); or \
                              allocate with try_reserve, which returns an error";

impl Place {
    /// Whether it is where the crate `alloc` of Rust goes when there is no memory.
    fn is_an_exhausted_heap(&self) -> bool {
        let functions = ["alloc::alloc::handle_alloc_error", "alloc::raw_vec::handle_error"];
        self.function.as_ref().is_some_and(|name| functions.iter().any(|function| name.starts_with(function)))
    }
}

/// Turns what a technique says into what people want to know. `elf` is the guest's image.
pub fn of(elf: &[u8], testimonies: Vec<Testimony>, read: &mut Read<'_>) -> Autopsy {
    let witness = |testimony: Testimony| {
        let vcpu = testimony.vcpu;
        Witness::new(testimony, &mut |address| read(vcpu, address))
    };
    told(elf, testimonies.into_iter().map(witness).collect())
}

/// The same of what was seen of a guest before.
pub fn told(elf: &[u8], witnesses: Vec<Witness>) -> Autopsy {
    let (symbols, lines) = (SymbolMap::new(elf), Lines::new(elf));
    // 64 virtual CPUs may stand at the same places, and an image may make a lookup as slow as it likes.
    let mut names = Once::new(|at| {
        let line = lines.as_ref().and_then(|lines| lines.at(at)).map(|line| line.to_string());
        (symbols.symbolize(at), line)
    });
    let mut place = |address: u64, returns: bool| {
        // A return address may be the first of another function or line.
        let (function, line) = names.of(address.saturating_sub(u64::from(returns)));
        Place { address, function, line }
    };
    let vcpus = witnesses.into_iter().map(|Witness { testimony, walked, code }| {
        let Testimony { vcpu, doing, mut notes, exception, .. } = testimony;
        let page = |rip| symbols.symbolize(rip).is_some_and(|name| name.starts_with("hypercall_page"));
        let Stack { places, skipped } = walked.stack(page);
        let backtrace: Vec<Place> =
            places.into_iter().enumerate().map(|(depth, address)| place(address, depth > 0)).collect();
        if let (Some((_, rip)), Some(code)) = (&exception, &code) {
            notes.extend(remedy(*rip, code));
        }
        let exception = exception.map(|(what, rip)| (what, place(rip, false)));
        if backtrace.iter().any(Place::is_an_exhausted_heap) {
            notes.push(EXHAUSTED_HEAP.to_owned());
        }
        Account { vcpu, doing, backtrace, skipped, exception, notes }
    });
    Autopsy { vcpus: vcpus.collect() }
}

/// Answers that are found once for each address.
struct Once<A, F> {
    find: F,
    found: BTreeMap<u64, A>,
}

impl<A: Clone, F: FnMut(u64) -> A> Once<A, F> {
    const fn new(find: F) -> Self {
        Self { find, found: BTreeMap::new() }
    }

    fn of(&mut self, address: u64) -> A {
        self.found.entry(address).or_insert_with(|| (self.find)(address)).clone()
    }
}

/// The bytes of an instruction; zeroes where nothing can be read.
fn code_at(rip: u64, word: &mut dyn FnMut(u64) -> Option<u64>) -> Option<[u8; 16]> {
    let mut code = [0; 16];
    for (at, bytes) in code.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&word(rip.checked_add(at as u64 * 8)?).unwrap_or(0).to_le_bytes());
    }
    Some(code)
}

/// What to use instead of an instruction, if it is one that needs a replacement.
fn remedy(rip: u64, code: &[u8]) -> Option<String> {
    let (instruction, effect, instead) = audit::remedy(code, rip)?;
    Some(format!("`{instruction}` {effect} in a kernel that runs deprivileged; instead: {instead}"))
}

#[cfg(test)]
mod tests;
