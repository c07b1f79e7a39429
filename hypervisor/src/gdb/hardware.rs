//! Breakpoints and watchpoints in the debug registers (SDM vol. 3, 18.2), for engines that load them.
//!
//! There are four, and all virtual CPUs have the same.

use crate::engine::state::Breakpoints;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An instruction there is about to be executed.
    Execute,
    /// It was written.
    Write,
    /// It was read or written.
    Access,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watched {
    pub address: u64,
    pub len: u64,
    pub kind: Kind,
}

/// All of them, each in its register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hardware([Option<Watched>; 4]);

impl Watched {
    /// The four bits of DR7 that describe it; `None` if no register can hold it.
    fn bits(self) -> Option<u64> {
        let kind = match self.kind {
            Kind::Execute => 0b00,
            Kind::Write => 0b01,
            Kind::Access => 0b11,
        };
        let len = match self.len {
            1 => 0b00,
            2 => 0b01,
            4 => 0b11,
            8 => 0b10,
            _ => return None,
        };
        let fits = self.address.is_multiple_of(self.len) && (self.kind != Kind::Execute || self.len == 1);
        fits.then_some(kind | len << 2)
    }
}

impl Hardware {
    /// With one more; `None` if there is no room for it, or it fits in no register.
    pub fn with(mut self, watched: Watched) -> Option<Self> {
        watched.bits()?;
        if !self.0.contains(&Some(watched)) {
            *self.0.iter_mut().find(|slot| slot.is_none())? = Some(watched);
        }
        Some(self)
    }

    /// Without it; `None` if it is not there.
    pub fn without(mut self, watched: Watched) -> Option<Self> {
        *self.0.iter_mut().find(|slot| **slot == Some(watched))? = None;
        Some(self)
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The registers.
    pub fn registers(&self) -> Breakpoints {
        let mut registers = Breakpoints::default();
        for (n, (slot, address)) in (0u32..).zip(self.0.iter().zip(&mut registers.addresses)) {
            if let Some((watched, bits)) = slot.and_then(|watched| Some((watched, watched.bits()?))) {
                *address = watched.address;
                registers.control |= 1 << (2 * n) | bits << (16 + 4 * n);
            }
        }
        registers
    }

    /// The one that DR6 names.
    pub fn met(&self, status: u64) -> Option<Watched> {
        (0..).zip(self.0).find_map(|(n, slot): (u32, _)| slot.filter(|_| status >> n & 1 != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn watched(address: u64, len: u64, kind: Kind) -> Watched {
        Watched { address, len, kind }
    }

    #[test]
    fn four_fit_and_no_more() {
        let all =
            (0..4).try_fold(Hardware::default(), |all, n| all.with(watched(8 * n, 8, Kind::Write))).unwrap();
        assert_eq!(all.with(watched(64, 8, Kind::Write)), None);
        assert_eq!(all.with(watched(8, 8, Kind::Write)), Some(all), "it is there");
        assert_eq!(all.met(0b100), Some(watched(16, 8, Kind::Write)));
        let fewer = all.without(watched(8, 8, Kind::Write)).unwrap();
        assert_eq!((fewer.met(0b10), fewer.without(watched(8, 8, Kind::Write))), (None, None));
        assert_eq!(fewer.registers().control & 0xff, 0b0101_0001);
        assert!(!fewer.is_empty() && Hardware::default().is_empty());
    }

    #[test]
    fn what_no_register_holds_is_refused() {
        let refused = |address, len, kind| Hardware::default().with(watched(address, len, kind)).is_none();
        assert!(refused(4, 8, Kind::Write) && refused(0, 3, Kind::Write) && refused(0, 0, Kind::Access));
        assert!(refused(0, 2, Kind::Execute) && !refused(1, 1, Kind::Execute));
    }

    #[test]
    fn a_length_and_a_kind_are_bits_of_dr7() {
        let control =
            |len, kind| Hardware::default().with(watched(0, len, kind)).unwrap().registers().control;
        assert_eq!(control(1, Kind::Execute), 1);
        assert_eq!(control(4, Kind::Write), 0b1101 << 16 | 1);
        assert_eq!(control(8, Kind::Access), 0b1011 << 16 | 1);
    }
}
