//! The guest's frames as its image sees them: addressed from 0, and nothing beyond.
//!
//! The builders write through this and so cannot reach a hypervisor frame, whatever an image says.

use crate::machine::memory::{Backing, BadMachineAddress, MachineMemory, Maddr, PAGE_SIZE};

/// What fills one table page.
pub(super) type Words = [u64; 512];

/// Words of a list that are written at once: each write has a price of its own, and so has each page of the chunk.
const CHUNK: usize = 8 * 512;

/// Pseudo-physical memory while it is being filled.
#[derive(Clone, Copy, Debug)]
pub(super) struct GuestFrames<'a>(pub &'a MachineMemory);

impl GuestFrames<'_> {
    /// Writes at a pseudo-physical address.
    pub fn write(&self, pa: u64, bytes: &[u8]) -> Result<(), BadMachineAddress> {
        self.0.write(self.maddr(pa, bytes.len())?, bytes)
    }
    /// Writes what only the guest is going to read: see [`MachineMemory::fill`].
    pub fn fill(&self, pa: u64, bytes: &[u8]) -> Result<(), BadMachineAddress> {
        self.0.fill(self.maddr(pa, bytes.len())?, bytes)
    }

    /// Has the host find memory for what the guest is about to touch: see [`MachineMemory::populate`].
    ///
    /// Not if it is a memfd: a guest process's own fault on a page costs no more than this for it.
    pub fn populate(&self, pa: u64, len: u64) {
        if self.0.backing() == Backing::Anonymous
            && let Ok(maddr) = self.maddr(pa, len as usize)
        {
            self.0.populate(maddr, len);
        }
    }

    /// The machine address of `len` bytes at `pa`, if the guest has them.
    fn maddr(&self, pa: u64, len: usize) -> Result<Maddr, BadMachineAddress> {
        let limit = self.0.guest_frames() * PAGE_SIZE;
        let inside = pa.checked_add(len as u64).is_some_and(|end| end <= limit);
        let maddr = self.0.guest_base().maddr().0.checked_add(pa).filter(|_| inside);
        maddr.map(Maddr).ok_or(BadMachineAddress { addr: pa, len })
    }
}

/// Writes `count` consecutive words, word `i` being `word(i)`, a few pages' worth at a time.
///
/// `put` gets the byte offset of each chunk.
pub(super) fn write_words(
    count: u64,
    word: impl Fn(u64) -> u64,
    mut put: impl FnMut(u64, &[u8]) -> Result<(), BadMachineAddress>,
) -> Result<(), BadMachineAddress> {
    use zerocopy::IntoBytes;
    let mut chunk = [0; CHUNK];
    let mut first = 0;
    while first < count {
        let mut filled = 0;
        for (slot, index) in chunk.iter_mut().zip(first..count) {
            *slot = word(index);
            filled += 1;
        }
        put(first * 8, chunk.get(..filled).unwrap_or_default().as_bytes())?;
        first += filled as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::build::guest_frames::*;

    #[test]
    fn only_guest_frames_are_written() {
        let m = MachineMemory::new(2, 2, Backing::Anonymous).unwrap();
        let guest = GuestFrames(&m);
        assert!(guest.write(2 * PAGE_SIZE - 1, &[7]).is_ok());
        assert_eq!(m.read_obj::<u8>(Maddr(4 * PAGE_SIZE - 1)), Ok(7));
        assert!(guest.write(2 * PAGE_SIZE - 1, &[7, 7]).is_err());
        assert!(guest.write(u64::MAX, &[7]).is_err());
        assert!(guest.fill(2 * PAGE_SIZE - 1, &[7, 7]).is_err());
        assert!(guest.write(0u64.wrapping_sub(2 * PAGE_SIZE), &[7]).is_err(), "no way round to frame 0");
    }

    #[test]
    fn words_come_in_order_and_in_chunks() {
        const COUNT: u64 = 2 * CHUNK as u64 + 6;
        let mut out = Vec::new();
        write_words(
            COUNT,
            |i| i * 3,
            |at, bytes| {
                assert_eq!(at, out.len() as u64);
                out.extend_from_slice(bytes);
                Ok(())
            },
        )
        .unwrap();
        let words: Vec<u64> = out.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect();
        assert_eq!(words, (0..COUNT).map(|i| i * 3).collect::<Vec<_>>());
    }
}
