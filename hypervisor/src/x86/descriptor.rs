//! Selectors and segment descriptors (SDM vol. 3, 3.4.2 and 3.4.5).

/// In a selector: the requested privilege level.
pub const RPL: u16 = 3;
/// In a selector: the local table instead of the global one.
pub const LOCAL: u16 = 1 << 2;

/// A selector without its RPL, as error codes have it (SDM vol. 3, 6.13).
pub const fn error_of(selector: u16) -> u32 {
    (selector & !RPL) as u32
}

/// A selector's requested privilege level.
pub const fn rpl(selector: u16) -> u16 {
    selector & RPL
}

/// Whether a selector is null: the first of the global table, at any RPL.
pub const fn is_null(selector: u16) -> bool {
    selector & !RPL == 0
}

/// Bits of a descriptor.
pub mod bits {
    /// Of code and data: it was used.
    pub const ACCESSED: u64 = 1 << 40;
    /// Of data: it can be written.
    pub const WRITABLE: u64 = 1 << 41;
    /// Of code: it can be read.
    pub const READABLE: u64 = 1 << 41;
    /// Of a task state segment: it is in use.
    pub const BUSY: u64 = 1 << 41;
    /// Of code: it runs at its caller's privilege level.
    pub const CONFORMING: u64 = 1 << 42;
    /// Code, where [`NOT_SYSTEM`] is set.
    pub const CODE: u64 = 1 << 43;
    /// Code or data.
    pub const NOT_SYSTEM: u64 = 1 << 44;
    /// Position of the privilege level.
    pub const DPL_SHIFT: u32 = 45;
    /// The privilege level.
    pub const DPL: u64 = 3 << DPL_SHIFT;
    /// Present.
    pub const PRESENT: u64 = 1 << 47;
    /// Of code: 64-bit code.
    pub const LONG: u64 = 1 << 53;
    /// Operands of 32 bits, unless it is 64-bit code.
    pub const DEFAULT_32: u64 = 1 << 54;
    /// The limit counts pages.
    pub const GRANULARITY: u64 = 1 << 55;
}

/// Flat segments: base 0, no limit, accessed, of privilege level 0. For level 3, add [`bits::DPL`].
pub mod flat {
    /// 64-bit code.
    pub const CODE_64: u64 = 0x00af_9b00_0000_ffff;
    /// 32-bit code.
    pub const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
    /// Data that can be written.
    pub const DATA: u64 = 0x00cf_9300_0000_ffff;
}

/// An 8-byte segment descriptor, or the lower half of a 16-byte one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }
    /// The four bits of the type, whose meaning depends on [`Descriptor::is_system`] (SDM vol. 3, table 3-2).
    const fn system_type(self) -> u64 {
        self.0 >> 40 & 15
    }
    /// Whether it may be used.
    pub const fn is_present(self) -> bool {
        self.has(bits::PRESENT)
    }
    /// Its privilege level.
    pub const fn dpl(self) -> u16 {
        (self.0 >> bits::DPL_SHIFT & 3) as u16
    }
    /// Whether it is neither code nor data.
    pub const fn is_system(self) -> bool {
        !self.has(bits::NOT_SYSTEM)
    }
    /// Whether it is code.
    pub const fn is_code(self) -> bool {
        !self.is_system() && self.has(bits::CODE)
    }
    /// Whether it is code that runs at its caller's privilege level. Meaningful for code only.
    pub const fn is_conforming(self) -> bool {
        self.has(bits::CONFORMING)
    }
    /// Whether it is a segment of 64-bit code: L set, D clear. Meaningful for code only.
    pub const fn is_64_bit(self) -> bool {
        self.0 & (bits::LONG | bits::DEFAULT_32) == bits::LONG
    }
    /// Data, or code that can be read.
    pub const fn is_readable(self) -> bool {
        !self.is_system() && (!self.has(bits::CODE) || self.has(bits::READABLE))
    }
    /// Whether it is data that can be written.
    pub const fn is_writable_data(self) -> bool {
        self.0 & (bits::NOT_SYSTEM | bits::CODE | bits::WRITABLE) == bits::NOT_SYSTEM | bits::WRITABLE
    }
    /// Whether it is a 64-bit task state segment that is not in use.
    pub const fn is_available_tss(self) -> bool {
        self.is_system() && self.system_type() == 9
    }
    /// Whether it is a local descriptor table.
    pub const fn is_ldt(self) -> bool {
        self.is_system() && self.system_type() == 2
    }
    /// Bits 31..=0 of the base: all of it for code and data.
    pub const fn base(self) -> u64 {
        (self.0 >> 16 & 0xff_ffff) | (self.0 >> 56) << 24
    }
    /// The limit in bytes.
    pub const fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.has(bits::GRANULARITY) { raw << 12 | 0xfff } else { raw }
    }
}

/// A gate of a 64-bit interrupt descriptor table (SDM vol. 3, 6.14.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Address of the handler.
    pub handler: u64,
    /// The handler's code segment.
    pub selector: u16,
    /// Which stack of the TSS the handler runs on, 1 to 7; 0 for none in particular.
    pub stack: u8,
    /// The type, and the bit that tells code and data from system descriptors: [`Gate::INTERRUPT`] or
    /// [`Gate::TRAP`], or what is no gate.
    pub kind: u8,
    /// The lowest privilege level from which INT n may enter.
    pub dpl: u16,
    /// Whether it may be used.
    pub present: bool,
}

impl Gate {
    /// Bytes of a gate.
    pub const SIZE: u64 = 16;
    /// The type of a gate that clears IF.
    pub const INTERRUPT: u8 = 0xe;
    /// The type of a gate that leaves IF as it is.
    pub const TRAP: u8 = 0xf;

    /// From the two words of the table.
    pub const fn from_words(low: u64, high: u64) -> Self {
        Self {
            handler: low & 0xffff | low >> 32 & 0xffff_0000 | high << 32,
            selector: (low >> 16) as u16,
            stack: (low >> 32 & 7) as u8,
            kind: (low >> 40 & 0x1f) as u8,
            dpl: Descriptor(low).dpl(),
            present: Descriptor(low).is_present(),
        }
    }

    /// The two words of the table.
    pub const fn words(self) -> [u64; 2] {
        let Self { handler, selector, stack, kind, dpl, present } = self;
        let low = handler & 0xffff
            | (selector as u64) << 16
            | (stack as u64 & 7) << 32
            | (kind as u64 & 0x1f) << 40
            | (dpl as u64 & 3) << bits::DPL_SHIFT
            | if present { bits::PRESENT } else { 0 }
            | (handler >> 16 & 0xffff) << 48;
        [low, handler >> 32]
    }
}

/// Offsets in a 64-bit task state segment (SDM vol. 3, 7.7).
pub mod tss {
    /// The stack pointer for entries to CPL 0.
    pub const RSP0: u64 = 4;
    /// The first of the seven stack pointers that gates can name.
    pub const IST1: u64 = 36;
    /// Where the I/O bitmap begins: 2 bytes.
    pub const IO_BITMAP: u64 = 102;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Of a table's words only reserved bits get lost on the way through a [`Gate`].
        #[test]
        fn gates_have_their_words(low: u64, high: u32) {
            const RESERVED: u64 = 0xf8 << 32;
            let gate = Gate::from_words(low, high.into());
            prop_assert_eq!(gate.words(), [low & !RESERVED, high.into()]);
        }
    }

    #[test]
    fn flat_segments_are_what_their_names_say() {
        let [code, code_32, data] = [flat::CODE_64, flat::CODE_32, flat::DATA].map(Descriptor);
        assert!(code.is_code() && code.is_64_bit() && code.is_readable() && !code.is_conforming());
        assert!(code_32.is_code() && !code_32.is_64_bit());
        assert!(data.is_writable_data() && !data.is_code());
        for flat in [code, code_32, data] {
            assert!(flat.is_present() && !flat.is_system());
            assert_eq!((flat.base(), flat.limit(), flat.dpl()), (0, u32::MAX, 0));
            assert_eq!(Descriptor(flat.0 | bits::DPL).dpl(), 3);
        }
    }
}
