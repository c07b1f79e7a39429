//! Translates the kernel's functions before they run, where symbols say what is code.
//!
//! A first visit that leaves for the host costs as much as dozens of instructions that trap, and what it was about may
//! run once. What direct control flow reaches from a function's first instruction is certain to be code, whenever it
//! is looked at; what it misses, or what changes later, is translated when it is reached, as without symbols.

use std::ops::Range;

use super::{Surroundings, Translator, Wanted};
use crate::translate::code::{case, word};
use crate::x86::descriptor::Gate;

/// Functions of one instruction or two that nothing but pointers leads to are left until they are called: their
/// returns, which are much of what they do, are fast only where the host has seen who calls (decision 24).
const SHORT: u64 = 8;

/// Gates of an IDT.
const VECTORS: u64 = 256;
/// The most cases of a choice that are looked at.
const MAX_CASES: u64 = 256;

impl Translator {
    /// Translates functions, until most of the cache is full: the rest is for what cannot be known now.
    pub(super) fn translate_ahead(&mut self, s: &mut Surroundings<'_>) {
        let functions = std::mem::take(&mut self.functions);
        self.page = None;
        let is_short = |function: &&Range<u64>| function.end.saturating_sub(function.start) <= SHORT;
        for function in functions.iter().filter(|function| !is_short(function)) {
            self.translate_function(s, function);
        }
        for function in functions.iter().filter(is_short) {
            if self.cache.is_awaited(function.start) {
                self.translate_function(s, function);
            }
        }
        self.show_used(s);
    }

    /// Translates what the gates of the kernel's IDT lead to, once for each table that it loads: handlers are often
    /// assembly, with labels that are no functions.
    pub(super) fn translate_handlers(&mut self, s: &mut Surroundings<'_>) {
        let idt = s.cpu.idt;
        if std::mem::replace(&mut self.idt, idt) == idt {
            return;
        }
        let gates = ((u64::from(idt.limit) + 1) / Gate::SIZE).min(VECTORS);
        for vector in 0..gates {
            let at = idt.base.wrapping_add(vector * Gate::SIZE);
            let low = word(s.shadow, s.memory, at);
            let Some((low, high)) = low.zip(word(s.shadow, s.memory, at.wrapping_add(8))) else { continue };
            let gate = Gate::from_words(low, high);
            let is_handler = gate.present && matches!(gate.kind, Gate::INTERRUPT | Gate::TRAP);
            if is_handler && !self.is_mostly_full() && self.cache.find(gate.handler).is_none() {
                self.translate_from(s, Wanted { va: gate.handler, is_target: false, returns_to: None });
            }
        }
    }

    fn is_mostly_full(&self) -> bool {
        self.cache.next() > self.place.cache().2 / 4 * 3
    }

    fn translate_function(&mut self, s: &mut Surroundings<'_>, function: &Range<u64>) {
        self.queue.clear();
        self.queue.push_back(Wanted { va: function.start, is_target: true, returns_to: None });
        while let Some(wanted) = self.queue.pop_front() {
            if self.is_mostly_full() {
                return;
            }
            if function.contains(&wanted.va) && self.translate_wanted(s, wanted, false) {
                self.want_cases(s, function);
            }
        }
    }

    /// Wants the cases to which the block that was made last may jump, as far as they are in the function.
    fn want_cases(&mut self, s: &Surroundings<'_>, function: &Range<u64>) {
        let Some(table) = self.product.cases.take() else { return };
        let cases = (0..MAX_CASES).map_while(|n| case(s.shadow, s.memory, table, n));
        let room = self.queue.capacity() - self.queue.len();
        for va in cases.take_while(|va| function.contains(va)).take(room) {
            self.queue.push_back(Wanted { va, is_target: true, returns_to: None });
        }
    }
}
