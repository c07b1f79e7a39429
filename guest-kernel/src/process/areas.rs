//! What the addresses of a process are for, whether pages are there yet or not.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use super::abi::Errno;
use crate::memory::frames::PAGE_SIZE;

/// The addresses that programs have: one slot of the L4 table holds all of them.
pub const START: u64 = crate::memory::PRIVATE;
/// The end of the addresses that programs have.
pub const END: u64 = START + (1 << 30);
/// Where `mmap` begins to look.
const MAPPINGS: u64 = START + (256 << 20);
/// How far a stack grows.
pub const STACK_MAX: u64 = 8 << 20;
/// Areas that a process may have.
const MAX_AREAS: usize = 256;

/// The accesses that an area permits. One that permits any permits reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Any access at all.
    pub read: bool,
    /// Stores.
    pub write: bool,
    /// Execution.
    pub execute: bool,
}

/// What is in the pages of an area that were not touched yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The bytes from `at` on; everything else is zero.
    pub bytes: &'static [u8],
    /// The address of the first byte.
    pub at: u64,
}

/// Nothing but zeroes.
pub const ZEROES: Backing = Backing { bytes: &[], at: 0 };

/// Pages that are for the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// The first page's address.
    pub start: u64,
    /// The address after the last page.
    pub end: u64,
    /// What is permitted.
    pub rights: Rights,
    /// What is there at first.
    pub backing: Backing,
    /// Whether it grows downwards when what is below it is touched.
    pub grows: bool,
}

/// The areas of a process, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Areas(Vec<Area>);

/// The pages of `len` bytes at `start`; `None` if they are not a program's.
pub fn pages(start: u64, len: u64) -> Option<(u64, u64)> {
    let end = start.checked_add(len)?.checked_next_multiple_of(PAGE_SIZE)?;
    (len > 0 && start.is_multiple_of(PAGE_SIZE) && start >= START && end <= END).then_some((start, end))
}

impl Areas {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Area> {
        self.0.iter()
    }

    /// The area of an address. One that grows is extended to it.
    pub fn reach(&mut self, va: u64) -> Option<Area> {
        let next = self.0.partition_point(|area| area.end <= va);
        let limit = next.checked_sub(1).map_or(START, |before| self.0[before].end);
        let area = self.0.get_mut(next)?;
        if va < area.start {
            let page = va & !(PAGE_SIZE - 1);
            // A page stays free below a stack, so that an overflow is noticed.
            if !area.grows || page < area.end.saturating_sub(STACK_MAX) || page < limit + PAGE_SIZE {
                return None;
            }
            area.start = page;
        }
        Some(*area)
    }

    /// Adds an area where nothing is.
    ///
    /// # Errors
    /// When something is there, or there are too many.
    pub fn insert(&mut self, area: Area) -> Result<(), Errno> {
        let place = self.0.partition_point(|other| other.end <= area.start);
        if self.0.get(place).is_some_and(|next| next.start < area.end) || area.start >= area.end {
            return Err(Errno::NoMem);
        }
        if self.0.len() >= MAX_AREAS || self.0.try_reserve(1).is_err() {
            return Err(Errno::NoMem);
        }
        self.0.insert(place, area);
        Ok(())
    }

    /// Where `len` bytes fit, at `hint` if they do.
    pub fn find(&self, hint: u64, len: u64) -> Option<u64> {
        let free = |(start, end): (u64, u64)| !self.0.iter().any(|area| area.start < end && start < area.end);
        if pages(hint, len).is_some_and(free) {
            return Some(hint);
        }
        let mut start = MAPPINGS;
        for area in &self.0 {
            // A stack may still grow.
            let area_start = if area.grows { area.end - STACK_MAX } else { area.start };
            if start.checked_add(len)? <= area_start {
                break;
            }
            start = start.max(area.end);
        }
        pages(start, len).filter(|range| free(*range)).map(|(start, _)| start)
    }

    /// Removes everything between two pages' addresses.
    ///
    /// # Errors
    /// When that would make too many areas.
    pub fn remove(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        self.split(start)?;
        self.split(end)?;
        self.0.retain(|area| area.end <= start || end <= area.start);
        Ok(())
    }

    /// Changes what is permitted between two pages' addresses, where something must be everywhere.
    ///
    /// # Errors
    /// When there is a hole, or that would make too many areas.
    pub fn protect(&mut self, start: u64, end: u64, rights: Rights) -> Result<(), Errno> {
        let mut covered = start;
        for area in self.0.iter().filter(|area| area.start < end && start < area.end) {
            if area.start > covered {
                break;
            }
            covered = area.end;
        }
        if covered < end {
            return Err(Errno::NoMem);
        }
        self.split(start)?;
        self.split(end)?;
        let inside = self.0.iter_mut().filter(|area| start <= area.start && area.end <= end);
        inside.for_each(|area| area.rights = rights);
        Ok(())
    }

    /// Extends the area that ends at `end`, or makes one there.
    ///
    /// # Errors
    /// When something is in the way.
    pub fn extend(&mut self, from: u64, end: u64, rights: Rights) -> Result<(), Errno> {
        let place = self.0.partition_point(|other| other.end <= from);
        if self.0.get(place).is_some_and(|next| next.start < end) {
            return Err(Errno::NoMem);
        }
        match place.checked_sub(1).map(|before| &mut self.0[before]) {
            Some(area) if area.end == from && area.rights == rights && area.backing == ZEROES => {
                area.end = end
            }
            _ => self.insert(Area { start: from, end, rights, backing: ZEROES, grows: false })?,
        }
        Ok(())
    }

    /// Makes `at` a boundary between areas, if it is inside one.
    fn split(&mut self, at: u64) -> Result<(), Errno> {
        let Some(index) = self.0.iter().position(|area| area.start < at && at < area.end) else {
            return Ok(());
        };
        if self.0.len() >= MAX_AREAS || self.0.try_reserve(1).is_err() {
            return Err(Errno::NoMem);
        }
        let upper = Area { start: at, ..self.0[index] };
        self.0[index].end = at;
        self.0[index].grows = false;
        self.0.insert(index + 1, upper);
        Ok(())
    }
}
