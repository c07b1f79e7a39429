//! Every exit, accounted for: by kind, by cause, by time.
//!
//! The monitor tells a [`Ledger`] what each exit was and how long the host worked on it; the ledger keeps
//! fixed arrays of counts and histograms and is read when the domain has ended. A guest brackets what it wants
//! measured with marks ([`MARK_BEGIN`], [`MARK_END`]); what happened between them is kept apart, so that a
//! [`Region`] is exact rather than a difference of sums.
//!
//! Recording runs on a virtual CPU's thread, on the exit path; reading, anywhere, once the domain has ended or while
//! its virtual CPU waits. Not signal-safe.
//!
//! What may not be done here: allocating, formatting, logging or locking while recording. Reading may.

#![forbid(unsafe_code)]

mod batch;
mod cause;
mod hardware;
mod histogram;
mod name;
mod region;
mod sites;
mod table;
mod tally;
mod work;

pub use crate::text::units::{nanos, nanos_f64};
pub use batch::{BatchKind, BatchSizes};
pub use cause::{Cause, MmioDevice, PortDevice, PrivOp, VirtioRegister};
pub use hardware::{HardwareExit, HardwareExits};
pub use region::{ExitRow, Region};
pub use sites::Arrival;
pub use table::{StatLine, exit_table, stat_table};
pub use tally::Tally;
pub use work::{Work, WorkRow};

use batch::Batches;
use sites::{Sites, Span};
use tally::Tallies;
use work::Amounts;

/// The mark that opens a measured region.
pub const MARK_BEGIN: u8 = 1;
/// The mark that closes it.
pub const MARK_END: u8 = 2;

/// One span of a domain's life: what is recorded while it is the current one goes here.
#[derive(Clone, Debug, Default)]
struct Account {
    tallies: Tallies,
    batches: Batches,
    work: Amounts,
}

impl Account {
    fn merge(&mut self, other: &Self) {
        self.tallies.merge(&other.tallies);
        self.batches.merge(&other.batches);
        self.work.merge(&other.work);
    }
}

/// What a domain's vCPU did that needed the host.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    outside: Account,
    inside: Account,
    sites: Sites,
    /// When the open region began, on the monitor's monotonic clock.
    open_since: Option<u64>,
    region_ns: u64,
    stretches: u64,
}

impl Ledger {
    /// An empty ledger, with all the memory that it will ever need.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty ledger of a kernel whose privileged instructions trap: it counts at which [sites](Self::site).
    pub fn with_sites() -> Self {
        Self { sites: Sites::new(), ..Self::default() }
    }

    /// Counts one exit and the `ns` nanoseconds between the guest's leaving and its being entered again.
    ///
    /// `ns` must not contain the time for which the guest chose to sleep: that is neither its work nor the host's. The
    /// exit of a mark never belongs to a region.
    pub fn record(&mut self, cause: Cause, ns: u64) {
        let is_mark = matches!(cause, Cause::PortOut(PortDevice::Mark));
        let account = if is_mark { &mut self.outside } else { self.current() };
        account.tallies.record(cause, ns);
    }

    /// Counts one batch of `n` requests that crossed into the host together.
    pub fn batch(&mut self, kind: BatchKind, n: u64) {
        self.current().batches.record(kind, n);
    }

    /// Counts `n` of what is no exit.
    pub fn work(&mut self, kind: Work, n: u64) {
        self.current().work.add(kind, n);
    }

    /// Notes that the kernel's instruction at `at` brought the guest to the host, for an exit of this cause; one that
    /// is no instruction's own is not counted.
    pub fn site(&mut self, at: u64, cause: Cause, arrival: Arrival) {
        if cause.is_instruction() {
            let is_mark = matches!(cause, Cause::PortOut(PortDevice::Mark));
            self.sites.note(at, arrival, self.in_region() && !is_mark);
        }
    }

    /// The addresses of the kernel's privileged instructions that trapped more than once, in order.
    pub fn trapped_again(&self) -> Vec<u64> {
        self.sites.trapped(Span::Whole)
    }

    /// Notes a mark at `now_ns` on a monotonic clock: 1 opens a region, 2 closes it, others mean nothing.
    ///
    /// For the fairest wall time pass the moment of re-entry for a begin and that of the exit for an end.
    /// Several stretches add up to one region. A begin within a region and an end outside one are ignored.
    pub fn mark(&mut self, value: u8, now_ns: u64) {
        match (value, self.open_since) {
            (MARK_BEGIN, None) => self.open_since = Some(now_ns),
            (MARK_END, Some(since)) => {
                self.region_ns = self.region_ns.saturating_add(now_ns.saturating_sub(since));
                self.stretches += 1;
                self.open_since = None;
            }
            _ => {}
        }
    }

    /// Adds what another virtual CPU of the same domain did. Their regions are each its own.
    pub fn merge(&mut self, other: &Self) {
        self.outside.merge(&other.outside);
        self.inside.merge(&other.inside);
        self.sites.merge(&other.sites);
        self.region_ns = self.region_ns.saturating_add(other.region_ns);
        self.stretches += other.stretches;
        self.open_since = self.open_since.or(other.open_since);
    }

    /// Whether a region has begun and not ended.
    pub fn in_region(&self) -> bool {
        self.open_since.is_some()
    }

    /// What happened between the marks; nothing if no region was closed, or the last one never was.
    pub fn region(&self) -> Option<Region> {
        if self.stretches == 0 || self.in_region() {
            return None;
        }
        Some(Self::told(self.region_ns, &self.inside, self.sites.rows(Span::Inside)))
    }

    /// The whole life of the domain, marks and regions included, which lasted `ns`.
    pub fn whole(&self, ns: u64) -> Region {
        let mut all = self.outside.clone();
        all.merge(&self.inside);
        Self::told(ns, &all, self.sites.rows(Span::Whole))
    }

    fn told(ns: u64, account: &Account, sites: Vec<WorkRow>) -> Region {
        let mut region = Region::new(ns, &account.tallies, &account.batches, &account.work);
        region.work.extend(sites);
        region
    }

    /// How many exits were recorded in all.
    pub fn exits(&self) -> u64 {
        self.outside.tallies.total_count() + self.inside.tallies.total_count()
    }

    fn current(&mut self) -> &mut Account {
        if self.open_since.is_some() { &mut self.inside } else { &mut self.outside }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIN: Cause = Cause::Hypercall(26);
    const CLI: Cause = Cause::PrivilegedInstruction(PrivOp::Cli);
    const MARK: Cause = Cause::PortOut(PortDevice::Mark);

    fn bracketed(f: impl FnOnce(&mut Ledger)) -> Ledger {
        let mut ledger = Ledger::new();
        ledger.record(CLI, 5);
        ledger.mark(MARK_BEGIN, 100);
        ledger.record(MARK, 1);
        f(&mut ledger);
        ledger.mark(MARK_END, 350);
        ledger.record(MARK, 1);
        ledger
    }

    #[test]
    fn a_region_holds_what_lies_between_the_marks() {
        let ledger = bracketed(|l| {
            l.record(PIN, 30);
            l.record(PIN, 10);
            l.batch(BatchKind::MmuExt, 3);
            l.work(Work::Callouts, 2);
        });
        let region = ledger.region().unwrap();
        assert_eq!((region.ns, region.traps(), region.handling_ns()), (250, 2, 40));
        assert_eq!(region.exits.len(), 1);
        assert_eq!((region.exits[0].min_ns, region.exits[0].max_ns), (10, 30));
        assert_eq!((region.batches.len(), region.work[0].count), (1, 2));
        let whole = ledger.whole(1000);
        assert_eq!((whole.traps(), ledger.exits(), whole.ns), (5, 5, 1000));
        assert_eq!(whole.batches, region.batches);
    }

    #[test]
    fn stretches_add_up_and_stray_marks_do_not_count() {
        let mut ledger = bracketed(|l| l.mark(MARK_BEGIN, 300));
        ledger.mark(MARK_END, 9_000);
        ledger.mark(7, 9_001);
        ledger.mark(MARK_BEGIN, 10_000);
        ledger.record(CLI, 2);
        assert_eq!(ledger.region(), None, "an open region has no result");
        ledger.mark(MARK_END, 10_050);
        let region = ledger.region().unwrap();
        assert_eq!((region.ns, region.traps()), (300, 1));
    }

    #[test]
    fn what_several_vcpus_did_adds_up() {
        let mut ledger = bracketed(|l| l.record(PIN, 30));
        let mut other = Ledger::new();
        other.record(PIN, 7);
        ledger.merge(&other);
        assert_eq!((ledger.exits(), ledger.region().unwrap().traps()), (5, 1));
        ledger.merge(&bracketed(|l| l.record(PIN, 3)));
        let region = ledger.region().unwrap();
        assert_eq!((region.ns, region.traps(), region.handling_ns()), (500, 2, 33));
    }

    #[test]
    fn without_marks_there_is_no_region() {
        assert_eq!(Ledger::new().region(), None);
        assert_eq!(Ledger::new().whole(0).traps(), 0);
    }
}
