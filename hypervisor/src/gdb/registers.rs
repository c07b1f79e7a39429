//! The registers as gdb knows them: their order, their description, and what they are made of.
//!
//! The description is gdb's for the i386 family (its manual, "i386 Features"), with one group of our own for system
//! registers, which can be read only. The upper halves of YMM0 to YMM15 are always described; a processor without them
//! has zeroes.

use gdbstub::arch::{Arch, RegId, Registers};

use crate::engine::state::VectorState;
use crate::x86::registers::{Regs, SystemRegisters};
use crate::x86::rflags::TF;
use crate::x86::xsave::{FCW, HEADER_END, MXCSR, X87_REGISTERS, XMM_REGISTERS, XSTATE_BV, YMM_HIGH};

/// x86-64, as a guest has it.
#[derive(Debug)]
pub(super) enum Amd64 {}

impl Arch for Amd64 {
    type Usize = u64;
    type Registers = All;
    type BreakpointKind = usize;
    type RegId = NoId;

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("target.xml"))
    }
}

/// Registers are read and written together.
#[derive(Debug)]
pub(super) enum NoId {}

impl RegId for NoId {
    fn from_raw_id(_: usize) -> Option<(Self, Option<std::num::NonZeroUsize>)> {
        None
    }
}

/// x87, SSE and AVX registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Vectors {
    st: [[u8; 10]; 8],
    /// fctrl, fstat, ftag, fiseg, fioff, foseg, fooff, fop.
    control: [u32; 8],
    xmm: [[u8; 16]; 16],
    mxcsr: u32,
    ymm_high: [[u8; 16]; 16],
}

/// All registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct All {
    /// rax rbx rcx rdx rsi rdi rbp rsp r8..r15 rip.
    general: [u64; 17],
    eflags: u32,
    /// cs ss ds es fs gs.
    selectors: [u32; 6],
    fs_base: u64,
    gs_base: u64,
    /// `None` where they cannot be had.
    vectors: Option<Box<Vectors>>,
    /// k_gs_base cr0 cr2 cr3 cr4.
    system: [u64; 5],
}

/// Bytes of all of them, in gdb's order.
const LENGTH: usize = 17 * 8 + 7 * 4 + 8 * 10 + 8 * 4 + 16 * 16 + 4 + 2 * 8 + 16 * 16 + 5 * 8;

impl All {
    pub fn new(regs: &Regs, system: SystemRegisters, vectors: Option<&VectorState>) -> Self {
        let r = regs;
        let s = r.selectors;
        Self {
            general: [
                r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12,
                r.r13, r.r14, r.r15, r.rip,
            ],
            // The upper half is reserved.
            eflags: r.rflags as u32,
            selectors: [s.cs, s.ss, s.ds, s.es, s.fs, s.gs].map(u32::from),
            fs_base: r.fs_base,
            gs_base: r.gs_base,
            vectors: vectors.map(|state| Box::new(Vectors::of(&state.spelled_out()))),
            system: [system.other_gs_base, system.cr0, system.cr2, system.cr3, system.cr4],
        }
    }

    /// What `regs` become: everything but the selectors and TF, which are the hypervisor's.
    pub fn put(&self, regs: &mut Regs) {
        let r = regs;
        [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15, r.rip,
        ] = self.general;
        r.rflags = (r.rflags & (TF | !0xffff_ffff)) | (u64::from(self.eflags) & !TF);
        (r.fs_base, r.gs_base) = (self.fs_base, self.gs_base);
    }

    /// What a vector state becomes.
    pub fn put_vectors(&self, state: &VectorState) -> Option<VectorState> {
        let vectors = self.vectors.as_ref()?;
        let mut area = state.spelled_out();
        vectors.put(&mut area);
        Some(VectorState::from_area(area))
    }
}

/// The `N` bytes at `at`, or zeroes.
fn bytes<const N: usize>(area: &[u8], at: usize) -> [u8; N] {
    area.get(at..).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or([0; N])
}

fn set(area: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = at.checked_add(bytes.len()).and_then(|end| area.get_mut(at..end)) {
        place.copy_from_slice(bytes);
    }
}

fn word16(area: &[u8], at: usize) -> u32 {
    u16::from_le_bytes(bytes(area, at)).into()
}

fn word32(area: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(area, at))
}

/// Offsets in the legacy region (SDM vol. 1, table 10-2).
const FSW: usize = FCW + 2;
const FTW: usize = FCW + 4;
const FOP: usize = FCW + 6;
const FIP: usize = FCW + 8;
const FDP: usize = FCW + 16;
/// The bit of the AVX component.
const AVX: u8 = 1 << 2;
/// A register's tag when it is empty (SDM vol. 1, 8.1.7).
const EMPTY: u32 = 0b11;

impl Vectors {
    /// Out of an XSAVE area with x87 and SSE state spelled out.
    fn of(area: &[u8]) -> Self {
        let mut all = Self::default();
        for (n, st) in all.st.iter_mut().enumerate() {
            *st = bytes(area, X87_REGISTERS.start + 16 * n);
        }
        for (n, xmm) in all.xmm.iter_mut().enumerate() {
            *xmm = bytes(area, XMM_REGISTERS.start + 16 * n);
        }
        if bytes::<1>(area, XSTATE_BV)[0] & AVX != 0 {
            for (n, ymm) in all.ymm_high.iter_mut().enumerate() {
                *ymm = bytes(area, YMM_HIGH.start + 16 * n);
            }
        }
        let status = word16(area, FSW);
        let in_use = bytes::<1>(area, FTW)[0];
        all.control = [
            word16(area, FCW),
            status,
            all.full_tags(in_use, status),
            word32(area, FIP + 4),
            word32(area, FIP),
            word32(area, FDP + 4),
            word32(area, FDP),
            word16(area, FOP),
        ];
        all.mxcsr = word32(area, MXCSR);
        all
    }

    /// The tags of the physical registers, two bits each, from one that says whether they are in use (SDM vol. 1,
    /// 10.5.1.1).
    fn full_tags(&self, in_use: u8, status: u32) -> u32 {
        let top = status >> 11 & 7;
        (0..8u32).fold(0, |tags, physical| {
            let st = self.st.get(((physical + 8 - top) % 8) as usize).copied().unwrap_or_default();
            let [mantissa @ .., low, high] = st;
            let exponent = u16::from_le_bytes([low, high]) & 0x7fff;
            let tag = match (in_use >> physical & 1, exponent) {
                (0, _) => EMPTY,
                (_, 0) if mantissa == [0; 8] => 0b01,
                (_, 0 | 0x7fff) => 0b10,
                _ if mantissa[7] & 0x80 == 0 => 0b10,
                _ => 0b00,
            };
            tags | tag << (2 * physical)
        })
    }

    fn put(&self, area: &mut Vec<u8>) {
        let has_high = self.ymm_high.iter().any(|ymm| *ymm != [0; 16]);
        if has_high && area.len() < YMM_HIGH.end {
            area.resize(YMM_HIGH.end.max(HEADER_END), 0);
        }
        for (n, st) in self.st.iter().enumerate() {
            set(area, X87_REGISTERS.start + 16 * n, st);
        }
        for (n, xmm) in self.xmm.iter().enumerate() {
            set(area, XMM_REGISTERS.start + 16 * n, xmm);
        }
        let mut marked = bytes::<1>(area, XSTATE_BV)[0];
        if has_high || marked & AVX != 0 {
            for (n, ymm) in self.ymm_high.iter().enumerate() {
                set(area, YMM_HIGH.start + 16 * n, ymm);
            }
            marked |= AVX;
            set(area, XSTATE_BV, &[marked]);
        }
        let [control, status, tags, fip_high, fip, fdp_high, fdp, opcode] = self.control;
        let in_use = (0..8)
            .fold(0u8, |in_use, n| if tags >> (2 * n) & EMPTY == EMPTY { in_use } else { in_use | 1 << n });
        // Each is 16 bits wide.
        for (at, value) in [(FCW, control), (FSW, status), (FOP, opcode)] {
            set(area, at, &(value as u16).to_le_bytes());
        }
        set(area, FTW, &[in_use]);
        for (at, value) in
            [(FIP, fip), (FIP + 4, fip_high), (FDP, fdp), (FDP + 4, fdp_high), (MXCSR, self.mxcsr)]
        {
            set(area, at, &value.to_le_bytes());
        }
    }
}

impl Registers for All {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.general[16]
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        let mut put = |bytes: &[u8]| bytes.iter().for_each(|byte| write_byte(Some(*byte)));
        self.general.iter().for_each(|value| put(&value.to_le_bytes()));
        put(&self.eflags.to_le_bytes());
        self.selectors.iter().for_each(|value| put(&value.to_le_bytes()));
        match &self.vectors {
            Some(v) => {
                v.st.iter().for_each(|st| put(st));
                v.control.iter().for_each(|value| put(&value.to_le_bytes()));
                v.xmm.iter().for_each(|xmm| put(xmm));
                put(&v.mxcsr.to_le_bytes());
            }
            None => (0..8 * 10 + 8 * 4 + 16 * 16 + 4).for_each(|_| write_byte(None)),
        }
        let mut put = |bytes: &[u8]| bytes.iter().for_each(|byte| write_byte(Some(*byte)));
        put(&self.fs_base.to_le_bytes());
        put(&self.gs_base.to_le_bytes());
        match &self.vectors {
            Some(v) => v.ymm_high.iter().for_each(|ymm| put(ymm)),
            None => (0..16 * 16).for_each(|_| write_byte(None)),
        }
        let mut put = |bytes: &[u8]| bytes.iter().for_each(|byte| write_byte(Some(*byte)));
        self.system.iter().for_each(|value| put(&value.to_le_bytes()));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        if bytes.len() < LENGTH {
            return Err(());
        }
        let mut from = Reader(bytes);
        for value in &mut self.general {
            *value = u64::from_le_bytes(from.take()?);
        }
        self.eflags = u32::from_le_bytes(from.take()?);
        for value in &mut self.selectors {
            *value = u32::from_le_bytes(from.take()?);
        }
        let mut v = Box::<Vectors>::default();
        for st in &mut v.st {
            *st = from.take()?;
        }
        for value in &mut v.control {
            *value = u32::from_le_bytes(from.take()?);
        }
        for xmm in &mut v.xmm {
            *xmm = from.take()?;
        }
        v.mxcsr = u32::from_le_bytes(from.take()?);
        self.fs_base = u64::from_le_bytes(from.take()?);
        self.gs_base = u64::from_le_bytes(from.take()?);
        for ymm in &mut v.ymm_high {
            *ymm = from.take()?;
        }
        self.vectors = Some(v);
        for value in &mut self.system {
            *value = u64::from_le_bytes(from.take()?);
        }
        Ok(())
    }
}

/// Takes bytes off the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ()> {
        let (first, rest) = self.0.split_first_chunk().ok_or(())?;
        self.0 = rest;
        Ok(*first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(all: &All) -> Vec<Option<u8>> {
        let mut bytes = Vec::new();
        all.gdb_serialize(|byte| bytes.push(byte));
        bytes
    }

    /// What the description says and what is sent have the same length: gdb would take one register for another.
    #[test]
    fn the_description_fits() {
        let xml = Amd64::target_description_xml().unwrap();
        let bits = xml.split("bitsize=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        let bits: usize = bits.map(|bits| bits.parse::<usize>().unwrap()).sum();
        assert_eq!(bits, LENGTH * 8);
        assert_eq!(written(&All::default()).len(), LENGTH);
        let state = VectorState::reset();
        assert_eq!(
            written(&All::new(&Regs::default(), SystemRegisters::default(), Some(&state))).len(),
            LENGTH
        );
    }

    proptest! {
        #[test]
        fn what_is_read_can_be_written_back(area in prop::collection::vec(any::<u8>(), YMM_HIGH.end)) {
            let mut area = area;
            area[XSTATE_BV..HEADER_END].fill(0);
            area[XSTATE_BV] = 7;
            // Reserved bytes, and those of the tag word and of the registers' paddings.
            area[FTW + 1] = 0;
            area[28..32].fill(0);
            area[XMM_REGISTERS.end..XSTATE_BV].fill(0);
            for st in 0..8 {
                area[X87_REGISTERS.start + 16 * st + 10..X87_REGISTERS.start + 16 * (st + 1)].fill(0);
            }
            let state = VectorState::from_area(area);
            let all = All::new(&Regs::default(), SystemRegisters::default(), Some(&state));
            let bytes: Vec<u8> = written(&all).into_iter().map(Option::unwrap).collect();
            let mut back = All::default();
            back.gdb_deserialize(&bytes).unwrap();
            prop_assert_eq!(&back, &all);
            prop_assert_eq!(back.put_vectors(&VectorState::reset()), Some(state.clone()));
        }

        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..LENGTH + 8)) {
            let mut all = All::default();
            prop_assert_eq!(all.gdb_deserialize(&bytes).is_ok(), bytes.len() >= LENGTH);
            let mut regs = Regs::default();
            all.put(&mut regs);
            let _ = all.put_vectors(&VectorState::reset());
        }
    }
}
