//! What the processor reaches: memory through the software TLB, devices, and the record of which code is decoded.
//!
//! It implements the traits of [`crate::exec::outside`], so that the operations of `exec` run on it as they are.

use std::arch::x86_64::CpuidResult;

use super::code_map::CodeMap;
use super::outside::{Machine, Place};
use super::tlb::{Fetches, Kind, Tlb};
use crate::exec::outside::{Attempt, CpuFeatures, IoPorts, MAX_ACCESS, Memory, PageTables, Stored};
use crate::exec::virtual_cpu::VirtualCpu;
use crate::machine::memory::{Maddr, PAGE_SIZE};
use crate::machine::words::Words;
use crate::x86::exception::Exception;
use crate::x86::walk::Access;

/// Everything outside of the processor's registers.
pub(super) struct Reach<X> {
    pub machine: X,
    pub words: Words,
    pub tlb: Tlb,
    pub code: CodeMap,
    /// Something happened that the loop has to look at before it goes on: a device was accessed, or code written to.
    pub attention: bool,
    pub fetches: Fetches,
    /// The privilege level that was last told.
    user: bool,
}

impl<X: Machine> Reach<X> {
    pub fn new(machine: X, words: Words, code: CodeMap) -> Self {
        Self {
            machine,
            words,
            tlb: Tlb::new(),
            code,
            attention: false,
            fetches: Fetches::default(),
            user: false,
        }
    }

    /// Reads `SIZE` (1, 2, 4 or 8) bytes, zero-extended.
    #[inline(always)]
    pub fn load<const SIZE: usize>(&mut self, va: u64, user: bool) -> Result<u64, Exception> {
        match self.tlb.find(Kind::Read, va, SIZE as u64, user) {
            Some(at) => Ok(self.words.load::<SIZE>(at)),
            None => self.load_slowly(va, SIZE, user),
        }
    }

    /// Stores the low `SIZE` (1, 2, 4 or 8) bytes of `value`; whether that is all, or the loop must look at
    /// [`Reach::attention`].
    #[inline(always)]
    pub fn store<const SIZE: usize>(&mut self, va: u64, value: u64, user: bool) -> Result<bool, Exception> {
        match self.tlb.find(Kind::Write, va, SIZE as u64, user) {
            Some(at) => {
                self.words.store::<SIZE>(at, value);
                Ok(true)
            }
            None => {
                let bytes = value.to_le_bytes();
                self.write_bytes(va, bytes.get(..SIZE).unwrap_or(&bytes), user)?;
                Ok(!self.attention)
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn load_slowly(&mut self, va: u64, size: usize, user: bool) -> Result<u64, Exception> {
        let mut bytes = [0; 8];
        self.read_bytes(va, bytes.get_mut(..size).unwrap_or(&mut [0; 8]), user)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Where `va` is, for this kind of access; remembered if it is memory.
    fn place(&mut self, va: u64, kind: Kind, user: bool) -> Result<Place, Exception> {
        if let Some(at) = self.tlb.find(kind, va, 1, user) {
            return Ok(Place::Memory { at, level: 1 });
        }
        let access = Access { write: kind == Kind::Write, user, fetch: false };
        let place = self.machine.translate(va, access)?;
        if let Place::Memory { at, level } = place
            && (kind == Kind::Read || !self.code.has(at))
        {
            let large = (level > 1).then(|| PAGE_SIZE << (9 * (u32::from(level) - 1)));
            self.tlb.enter(kind, va, at, user, large);
        }
        Ok(place)
    }

    /// The one or two pieces of an access, each within a page: where it is and how long. Both are looked up before a
    /// byte moves.
    fn pieces(
        &mut self,
        va: u64,
        len: usize,
        kind: Kind,
        user: bool,
    ) -> Result<[(Place, usize); 2], Exception> {
        debug_assert!(len <= PAGE_SIZE as usize);
        let in_first = (PAGE_SIZE - va % PAGE_SIZE).min(len as u64);
        let first = self.place(va, kind, user)?;
        let rest = len - in_first as usize;
        let second = if rest == 0 { first } else { self.place(va.wrapping_add(in_first), kind, user)? };
        Ok([(first, in_first as usize), (second, rest)])
    }

    /// Reads at most a page.
    pub fn read_bytes(&mut self, va: u64, buf: &mut [u8], user: bool) -> Result<(), Exception> {
        let [(first, len), (second, _)] = self.pieces(va, buf.len(), Kind::Read, user)?;
        let (head, tail) = buf.split_at_mut(len);
        for (place, part) in [(first, head), (second, tail)].into_iter().filter(|(_, part)| !part.is_empty())
        {
            match place {
                Place::Memory { at, .. } => self.read_memory(at, part),
                Place::Bus(address) => {
                    self.attention = true;
                    self.machine.bus_in(address, part);
                }
            }
        }
        Ok(())
    }

    /// Reads memory within a frame. A word is read as a whole.
    fn read_memory(&self, at: Maddr, part: &mut [u8]) {
        let word = match part.len() {
            1 => self.words.load::<1>(at),
            2 => self.words.load::<2>(at),
            4 => self.words.load::<4>(at),
            8 => self.words.load::<8>(at),
            _ => {
                // A translation yields memory only.
                let _ = self.words.memory().read(at, part);
                return;
            }
        };
        for (to, byte) in part.iter_mut().zip(word.to_le_bytes()) {
            *to = byte;
        }
    }

    /// Stores at most a page.
    #[cold]
    #[inline(never)]
    pub fn write_bytes(&mut self, va: u64, bytes: &[u8], user: bool) -> Result<Stored, Exception> {
        let [(first, len), (second, _)] = self.pieces(va, bytes.len(), Kind::Write, user)?;
        let (head, tail) = bytes.split_at(len);
        let mut stored = Stored::Memory;
        for (place, part) in [(first, head), (second, tail)].into_iter().filter(|(_, part)| !part.is_empty())
        {
            match place {
                Place::Memory { at, .. } => self.write_memory(at, part),
                Place::Bus(address) => {
                    self.attention = true;
                    self.machine.bus_out(address, part);
                    stored = Stored::Bus;
                }
            }
        }
        Ok(stored)
    }

    /// Stores to memory within a frame, and notes where it was code.
    pub fn write_memory(&mut self, at: Maddr, part: &[u8]) {
        let mut bytes = [0; 8];
        for (to, byte) in bytes.iter_mut().zip(part) {
            *to = *byte;
        }
        let word = u64::from_le_bytes(bytes);
        match part.len() {
            1 => self.words.store::<1>(at, word),
            2 => self.words.store::<2>(at, word),
            4 => self.words.store::<4>(at, word),
            8 => self.words.store::<8>(at, word),
            _ => {
                // A translation yields memory only.
                let _ = self.words.memory().write(at, part);
            }
        }
        if self.code.stored(at, part.len()) {
            self.attention = true;
        }
    }

    /// Whether a store would fault now.
    pub fn check_write(&mut self, va: u64, len: usize, user: bool) -> Result<(), Exception> {
        if self.tlb.find(Kind::Write, va, len as u64, user).is_some() {
            return Ok(());
        }
        self.pieces(va, len, Kind::Write, user).map(drop)
    }

    /// Changes `SIZE` (1, 2, 4 or 8) bytes by `change`, whose result besides the new value is returned, with whether
    /// that is all (see [`Reach::store`]).
    #[inline(always)]
    pub fn modify<const SIZE: usize, R>(
        &mut self,
        va: u64,
        user: bool,
        change: impl FnOnce(u64) -> (u64, R),
    ) -> Result<(R, bool), Exception> {
        match self.tlb.find(Kind::Write, va, SIZE as u64, user) {
            Some(at) => {
                let (new, result) = change(self.words.load::<SIZE>(at));
                self.words.store::<SIZE>(at, new);
                Ok((result, true))
            }
            None => {
                self.check_write(va, SIZE, user)?;
                let (new, result) = change(self.load_slowly(va, SIZE, user)?);
                self.store::<SIZE>(va, new, user).map(|all| (result, all))
            }
        }
    }

    /// Where code at `va` is.
    pub fn fetch_place(&mut self, va: u64, user: bool) -> Result<Maddr, Exception> {
        match self.machine.translate(va, Access { write: false, user, fetch: true })? {
            Place::Memory { at, .. } => Ok(at),
            // An empty bus reads all ones, which is not a valid instruction.
            Place::Bus(_) => Err(Exception::undefined()),
        }
    }
}

impl<X: Machine> Memory for &mut Reach<X> {
    type Failure = X::Failure;

    fn read(&mut self, va: u64, buf: &mut [u8], user: bool) -> Attempt<(), Self> {
        debug_assert!(buf.len() <= MAX_ACCESS);
        Ok(self.read_bytes(va, buf, user)?)
    }

    fn write(&mut self, va: u64, bytes: &[u8], user: bool) -> Attempt<Stored, Self> {
        Ok(self.write_bytes(va, bytes, user)?)
    }

    fn probe_write(&mut self, va: u64, len: usize, user: bool) -> Attempt<(), Self> {
        Ok(self.check_write(va, len, user)?)
    }
}

impl<X: Machine> IoPorts for &mut Reach<X> {
    type Event = X::Event;

    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        self.attention = true;
        self.machine.port_in(port, size)
    }

    fn port_out(&mut self, port: u16, size: u8, value: u32) -> Option<X::Event> {
        self.attention = true;
        self.machine.port_out(port, size, value)
    }
}

impl<X: Machine> PageTables for &mut Reach<X> {
    /// Also called when only the privilege level changes. Entries are tagged with that, and stay.
    fn activate(&mut self, cpu: &VirtualCpu) -> Result<(), X::Failure> {
        if self.user != cpu.user {
            self.user = cpu.user;
            return Ok(());
        }
        self.tlb.flush();
        self.fetches.clear();
        self.machine.activate(cpu)
    }

    fn flush_page(&mut self, va: u64) {
        self.tlb.flush_page(va);
        self.fetches.clear();
    }

    fn flush_all(&mut self) {
        self.tlb.flush();
        self.fetches.clear();
    }
}

impl<X: Machine> CpuFeatures for &mut Reach<X> {
    fn cpuid(&self, function: u32, index: u32, osxsave: bool) -> CpuidResult {
        self.machine.cpuid(function, index, osxsave)
    }

    fn available_state(&self) -> u64 {
        // No XSAVE.
        0
    }
}
