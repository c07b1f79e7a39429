//! Work that is no exit: what a technique does inside the guest's context, or beside it, to make exits fewer.
//!
//! Only amounts: nothing here is timed, because nothing here leaves the guest's context.

use serde::Serialize;

/// What is counted beside exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// Instructions interpreted.
    Interpreted,
    /// Those of them that are privileged or sensitive: each would be an exit where instructions trap.
    InterpretedPrivileged,
    /// Instructions that had to be decoded because no decoded form of them was kept.
    Decoded,
    /// Basic blocks translated.
    Blocks,
    /// Bytes of code that translations took.
    TranslatedBytes,
    /// Times that all translations were dropped because their space was full.
    CacheFlushes,
    /// Sensitive instructions that reached the host by a call out of translated or patched code.
    Callouts,
    /// Sites that were translated anew because they trap often, or no longer do.
    SitesAdapted,
    /// Entries of a log of page-table stores that were followed.
    LogEntries,
    /// Sites patched by a jump over the site and what follows it.
    PatchedFollowers,
    /// Sites patched by a jump from before the site.
    PatchedBefore,
    /// Sites patched by a short jump to a longer one.
    PatchedShort,
    /// Sites patched by a jump whose displacement is, in part, the code that was there.
    PatchedPunned,
    /// Sites that no patch fits, and that go on trapping.
    Unpatched,
    /// Jumps into a patched range, caught by a trapping byte.
    PatchEntries,
    /// Patches taken back because their code was written to.
    PatchesUndone,
}

impl Work {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Interpreted,
        Self::InterpretedPrivileged,
        Self::Decoded,
        Self::Blocks,
        Self::TranslatedBytes,
        Self::CacheFlushes,
        Self::Callouts,
        Self::SitesAdapted,
        Self::LogEntries,
        Self::PatchedFollowers,
        Self::PatchedBefore,
        Self::PatchedShort,
        Self::PatchedPunned,
        Self::Unpatched,
        Self::PatchEntries,
        Self::PatchesUndone,
    ];

    /// What tables and exports call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interpreted => "instructions interpreted",
            Self::InterpretedPrivileged => "privileged instructions interpreted",
            Self::Decoded => "instructions decoded",
            Self::Blocks => "blocks translated",
            Self::TranslatedBytes => "bytes of translations",
            Self::CacheFlushes => "translation cache flushes",
            Self::Callouts => "callouts",
            Self::SitesAdapted => "sites adapted",
            Self::LogEntries => "page-table log entries",
            Self::PatchedFollowers => "sites patched with followers",
            Self::PatchedBefore => "sites patched from before",
            Self::PatchedShort => "sites patched by short jumps",
            Self::PatchedPunned => "sites patched by punned jumps",
            Self::Unpatched => "sites left unpatched",
            Self::PatchEntries => "jumps into patched ranges",
            Self::PatchesUndone => "patches undone",
        }
    }
}

/// How much of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WorkRow {
    /// [`Work::name`].
    pub kind: &'static str,
    /// How much.
    pub count: u64,
}

/// Amounts of every kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Amounts([u64; Work::ALL.len()]);

impl Amounts {
    pub(super) fn add(&mut self, kind: Work, n: u64) {
        let amount = &mut self.0[kind as usize];
        *amount = amount.saturating_add(n);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (kind, n) in Work::ALL.iter().zip(other.0) {
            self.add(*kind, n);
        }
    }

    /// The kinds that occurred.
    pub(super) fn occupied(&self) -> Vec<WorkRow> {
        let rows = Work::ALL.iter().zip(self.0).filter(|(_, count)| *count != 0);
        rows.map(|(kind, count)| WorkRow { kind: kind.name(), count }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_kept_by_kind_and_add_up() {
        let mut amounts = Amounts::default();
        amounts.add(Work::Interpreted, 5);
        amounts.add(Work::PatchesUndone, 1);
        let mut sum = amounts;
        sum.merge(&amounts);
        let rows = sum.occupied();
        assert_eq!(rows.iter().map(|row| row.count).collect::<Vec<_>>(), [10, 2]);
        assert_eq!((rows[0].kind, rows[1].kind), ("instructions interpreted", "patches undone"));
        for (number, kind) in Work::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number, "{kind:?}");
        }
    }
}
