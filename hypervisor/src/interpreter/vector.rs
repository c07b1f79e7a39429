//! The vector registers, and the part of the x87 state that FXSAVE moves.

use crate::x86::xsave::{FCW, FCW_RESET, MXCSR, MXCSR_RESET, X87_REGISTERS, XMM_REGISTERS};

/// Bytes of the area that FXSAVE writes and FXRSTOR reads (SDM vol. 1, 10.5.1).
pub(super) const AREA: usize = 512;
/// The bits of MXCSR that there are: those of every processor with SSE2 and denormals-are-zero.
pub(super) const MXCSR_MASK: u32 = 0xffff;
const MXCSR_MASK_AT: usize = MXCSR + 4;

/// XMM0..=XMM15, MXCSR, and the x87 state, which is kept but not computed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VectorRegisters {
    pub xmm: [u128; 16],
    pub mxcsr: u32,
    /// As FXSAVE lays it out: control, status, tags and pointers, then the registers.
    x87: [u8; X87_REGISTERS.end],
}

impl Default for VectorRegisters {
    fn default() -> Self {
        let mut registers = Self { xmm: [0; 16], mxcsr: MXCSR_RESET, x87: [0; X87_REGISTERS.end] };
        registers.reset_x87();
        registers
    }
}

impl VectorRegisters {
    /// FNINIT.
    pub fn reset_x87(&mut self) {
        for byte in self.x87.iter_mut().take(MXCSR) {
            *byte = 0;
        }
        self.set_control(FCW_RESET);
    }

    /// The x87 control word.
    pub fn control(&self) -> u16 {
        u16::from_le_bytes([self.x87[FCW], self.x87[FCW + 1]])
    }

    /// The x87 status word.
    pub fn status(&self) -> u16 {
        u16::from_le_bytes([self.x87[FCW + 2], self.x87[FCW + 3]])
    }

    /// FLDCW.
    pub fn set_control(&mut self, word: u16) {
        [self.x87[FCW], self.x87[FCW + 1]] = word.to_le_bytes();
    }

    /// What FXSAVE stores; what is beyond the registers is left as it is.
    pub fn save(&self, area: &mut [u8; AREA]) {
        area[..self.x87.len()].copy_from_slice(&self.x87);
        area[MXCSR..MXCSR + 4].copy_from_slice(&self.mxcsr.to_le_bytes());
        area[MXCSR_MASK_AT..MXCSR_MASK_AT + 4].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        for (to, from) in area[XMM_REGISTERS].chunks_exact_mut(16).zip(self.xmm) {
            to.copy_from_slice(&from.to_le_bytes());
        }
    }

    /// FXRSTOR; `None`, and no change, if MXCSR has bits that there are not.
    pub fn load(&mut self, area: &[u8; AREA]) -> Option<()> {
        let mxcsr = u32::from_le_bytes(*area.get(MXCSR..)?.first_chunk()?);
        if mxcsr & !MXCSR_MASK != 0 {
            return None;
        }
        self.mxcsr = mxcsr;
        self.x87.copy_from_slice(area.get(..X87_REGISTERS.end)?);
        for (to, from) in self.xmm.iter_mut().zip(area.get(XMM_REGISTERS)?.as_chunks::<16>().0) {
            *to = u128::from_le_bytes(*from);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_can_be_loaded() {
        let mut registers = VectorRegisters::default();
        registers.xmm[15] = u128::MAX - 5;
        registers.mxcsr = 0x1fbf;
        registers.set_control(0x27f);
        let mut area = [0; AREA];
        registers.save(&mut area);
        let mut others = VectorRegisters::default();
        others.load(&area).unwrap();
        let mut again = [0; AREA];
        others.save(&mut again);
        assert_eq!((again, others.xmm, others.mxcsr), (area, registers.xmm, registers.mxcsr));
        assert_eq!(others.control(), 0x27f);
        area[MXCSR + 2] = 1;
        assert_eq!(others.clone().load(&area), None);
    }
}
