//! Which exits of a trace are looked at.

use super::Exit;
use super::format::Header;
use super::places::Places;
use crate::ledger::{MARK_BEGIN, MARK_END};
use crate::text::printable::printable;

/// A cause that no trace has.
#[derive(Debug, thiserror::Error)]
#[error(
    "no cause, group or device has {} in its name; without --cause the trace shows those that there are",
    printable(.0)
)]
pub struct NoSuchCause(String);

/// What is wanted. Each exit must be shown to it, in order: marks have a memory.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Causes that are wanted, by number; `None`: all.
    causes: Option<Vec<bool>>,
    /// Parts of names of symbols, one of which must be found; empty: any place is.
    pub symbols: Vec<String>,
    /// The vCPU that is wanted; `None`: all.
    pub vcpu: Option<u32>,
    /// The first system time that is wanted.
    pub from: u64,
    /// The last one.
    pub to: u64,
    /// Whether only what is between marks is wanted.
    pub marked: bool,
    inside: bool,
}

impl Default for Filter {
    fn default() -> Self {
        let (causes, symbols, vcpu) = (None, Vec::new(), None);
        Self { causes, symbols, vcpu, from: 0, to: u64::MAX, marked: false, inside: false }
    }
}

impl Filter {
    /// Restricts it to causes that are called `wanted`, are of that group or device, or have it in their name. Upper
    /// and lower case are the same. An empty list restricts nothing.
    ///
    /// # Errors
    /// When one of them is nowhere in the header.
    pub fn only_causes(&mut self, header: &Header, wanted: &[String]) -> Result<(), NoSuchCause> {
        if wanted.is_empty() {
            return Ok(());
        }
        let mut causes = vec![false; header.causes.len()];
        for word in wanted {
            let lower = word.to_lowercase();
            let mut found = false;
            for (cause, is_wanted) in header.causes.iter().zip(&mut causes) {
                let exact = [Some(&cause.group), cause.device.as_ref()];
                if exact.into_iter().flatten().any(|name| name.to_lowercase() == lower)
                    || cause.name.to_lowercase().contains(&lower)
                {
                    (*is_wanted, found) = (true, true);
                }
            }
            if !found {
                return Err(NoSuchCause(word.clone()));
            }
        }
        self.causes = Some(causes);
        Ok(())
    }

    /// Whether the next exit is wanted.
    pub fn wants(&mut self, exit: &Exit, places: &Places) -> bool {
        self.is_between_marks(exit)
            && self.vcpu.is_none_or(|vcpu| vcpu == exit.vcpu)
            && (self.from..=self.to).contains(&exit.left)
            && self.has_cause(exit.cause)
            && self.is_in_symbols(exit.place, places)
    }

    /// As the ledger has it: the exits of marks belong to no region.
    fn is_between_marks(&mut self, exit: &Exit) -> bool {
        match exit.mark {
            Some(MARK_BEGIN) => self.inside = true,
            Some(MARK_END) => self.inside = false,
            _ => {}
        }
        !self.marked || (self.inside && exit.mark.is_none())
    }

    fn has_cause(&self, cause: u16) -> bool {
        self.causes.as_ref().is_none_or(|causes| causes.get(usize::from(cause)).copied().unwrap_or(false))
    }

    fn is_in_symbols(&self, place: u64, places: &Places) -> bool {
        if self.symbols.is_empty() {
            return true;
        }
        let Some((name, _)) = places.named(place).symbol else { return false };
        self.symbols.iter().any(|part| name.contains(part.as_str()))
    }
}
