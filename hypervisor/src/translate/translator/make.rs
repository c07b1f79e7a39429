//! Which blocks are made together, and what one is made from.

use iced_x86::Instruction;

use super::{AT_ONCE, READ_AHEAD, SHOWN_AT_ONCE, Surroundings, Translator, Wanted};
use crate::machine::memory::PAGE_SIZE;
use crate::translate::block::{Source, translate};
use crate::translate::code::{frame_of, next_page, pointer, read_frame, room_in_page};
use crate::x86::decode::MAX_LENGTH;

impl Translator {
    /// Translates what is wanted, and some that it is likely to lead to.
    pub(super) fn translate_from(&mut self, s: &mut Surroundings<'_>, first: Wanted) {
        // The guest may have changed its tables since.
        self.page = None;
        self.queue.clear();
        self.queue.push_back(first);
        let mut made = 0;
        while let Some(wanted) = self.queue.pop_front() {
            let is_new = self.cache.find(wanted.va).is_none();
            if is_new && made == AT_ONCE {
                continue;
            }
            if self.translate_wanted(s, wanted, made == 0) {
                made += usize::from(is_new);
            } else if made == 0 {
                return;
            }
        }
        self.show_used(s);
    }

    /// Translates one block, unless there is one, and has lookups find it if they are likely to look for it; whether
    /// it is there now.
    pub(super) fn translate_wanted(
        &mut self,
        s: &mut Surroundings<'_>,
        wanted: Wanted,
        needed: bool,
    ) -> bool {
        let Wanted { va, is_target, .. } = wanted;
        if self.cache.find(va).is_none() && !self.translate_one(s, wanted, needed) {
            return false;
        }
        if is_target && let Some(entry) = self.entry_of(s.memory, va) {
            self.targets.offer(s.memory, va, entry);
        }
        true
    }

    /// Maps the pages of the cache that are in use, and some more.
    pub(super) fn show_used(&mut self, s: &mut Surroundings<'_>) {
        let (va, _, size) = self.place.cache();
        while self.shown < u64::from(self.cache.next()) {
            let end = (self.shown + SHOWN_AT_ONCE * PAGE_SIZE).min(size.into());
            for offset in (self.shown..end).step_by(PAGE_SIZE as usize) {
                self.show(s, va + offset, false);
            }
            self.shown = end;
        }
    }

    /// Translates one block, for which everything else may go if it is `needed`; whether it is there now.
    fn translate_one(&mut self, s: &mut Surroundings<'_>, wanted: Wanted, needed: bool) -> bool {
        let Wanted { va, returns_to, .. } = wanted;
        for attempt in 0..2 {
            let Some([pfn, second]) = self.make(s, wanted) else { return false };
            if !self.cache.has_room(&self.product) || !self.pages.has_room() {
                if !needed || attempt == 1 {
                    return false;
                }
                self.forget(s);
                self.done.flushes += 1;
                continue;
            }
            let block = self.cache.add(s.memory, va, &self.product);
            self.done.blocks += 1;
            self.done.bytes += self.product.bytes.len() as u64;
            self.pages.add(va, pfn, block);
            s.shadow.protect_code(s.memory, s.log, pfn);
            if self.product.crosses {
                self.pages.add(next_page(va), second, block);
                s.shadow.protect_code(s.memory, s.log, second);
            }
            let product = &self.product;
            let room = self.queue.capacity() - self.queue.len();
            let likely = product.links.iter().map(|(_, va)| Wanted { va: *va, is_target: false, returns_to });
            let returns = product.returns.iter().map(|va| Wanted { va: *va, is_target: true, returns_to });
            let called =
                product.called.iter().map(|va| Wanted { va: *va, is_target: true, returns_to: None });
            self.queue.extend(returns.chain(called).chain(likely).take(room));
            return true;
        }
        false
    }

    /// Makes the product for what is wanted; returns its frame, and that of the next page.
    fn make(&mut self, s: &mut Surroundings<'_>, wanted: Wanted) -> Option<[u64; 2]> {
        let Wanted { va, is_target, returns_to } = wanted;
        let (shadow, memory) = (&*s.shadow, s.memory);
        let mut code = [0u8; READ_AHEAD + MAX_LENGTH];
        let in_page = ((PAGE_SIZE - va % PAGE_SIZE) as usize).min(READ_AHEAD);
        let page = va & !(PAGE_SIZE - 1);
        let pfn = match self.page {
            Some((known, pfn)) if known == page => pfn,
            _ => frame_of(shadow, memory, va)?,
        };
        self.page = Some((page, pfn));
        self.pages.begin(memory, pfn);
        let mut second = pfn;
        let (head, tail) = code.split_at_mut_checked(in_page)?;
        if !read_frame(memory, pfn, va, head) {
            return None;
        }
        let mut len = in_page;
        let tail = tail.get_mut(..MAX_LENGTH)?;
        let next = va.wrapping_add(in_page as u64);
        if next.is_multiple_of(PAGE_SIZE) {
            if let Some(frame) = frame_of(shadow, memory, next) {
                self.pages.begin(memory, frame);
                if read_frame(memory, frame, next, tail) {
                    second = frame;
                    len += MAX_LENGTH;
                }
            }
        } else if read_frame(memory, pfn, next, tail.get_mut(..room_in_page(next))?) {
            len += room_in_page(next);
        }
        let source = Source { va, code: code.get(..len)?, in_page, is_target, returns_to };
        let origin = self.cache.next();
        let base = self.place.cache().0 + u64::from(origin);
        let guess = |insn: &Instruction| pointer(insn, shadow, memory);
        let adaptation = self.adaptation.as_ref();
        let is_logged = |rip| adaptation.is_some_and(|adaptation| adaptation.is_adapted(rip));
        translate(source, (base, origin), self.env, &self.shared, &mut self.product, is_logged, guess)?;
        Some([pfn, second])
    }
}
