//! Nothing is writable and executable: the direct map, once the kernel's image is loaded.

use core::ops::Range;

use paravane_abi::pte;

use super::error::PagingError;
use super::mmu::Mmu;
use crate::hypercall::Hypercalls;
use crate::memory::Pfn;

/// The parts of an image that are not data, as addresses of whole pages.
#[derive(Clone, Debug)]
pub(crate) struct ImageParts {
    pub(crate) code: Range<u64>,
    pub(crate) constants: Range<u64>,
}

impl ImageParts {
    /// The entry for the page at `va`, given the one that it has.
    fn entry(&self, va: u64, entry: u64) -> u64 {
        if self.code.contains(&va) {
            entry & !pte::RW
        } else if self.constants.contains(&va) {
            entry & !pte::RW | pte::NX
        } else {
            entry | pte::NX
        }
    }
}

impl<H: Hypercalls> Mmu<'_, H> {
    /// Gives each page of the direct map the accesses that its part of the image has.
    pub(crate) fn protect(&mut self, image: &ImageParts) -> Result<(), PagingError> {
        for pfn in (0..self.memory.frames()).map(Pfn) {
            let va = self.memory.va(pfn);
            // The direct map has no tables beyond its end.
            let Some((table, index)) = self.leaf(self.kernel_root, va) else { break };
            let old = self.read(table, index);
            let new = image.entry(va, old);
            if pte::is_present(old) && new != old {
                // SAFETY: no compiled code stores to code or constants, or executes anything but code.
                unsafe { self.write(table, index, new) }?;
            }
        }
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::machine::machine;
    use super::*;

    #[test]
    fn nothing_is_writable_and_executable() {
        let (_, mut mmu, _) = machine();
        let at = |mmu: &Mmu<'_, _>, pfn| mmu.memory().va(Pfn(pfn));
        let image = ImageParts { code: at(&mmu, 20)..at(&mmu, 22), constants: at(&mmu, 22)..at(&mmu, 23) };
        mmu.protect(&image).unwrap();
        let (mut code, mut constants, mut others) = (0, 0, 0);
        for pfn in 0..mmu.direct_map_end(Pfn(0)).0 {
            let (table, index) = mmu.leaf(mmu.kernel_root, at(&mmu, pfn)).unwrap();
            match (mmu.read(table, index) & (pte::RW | pte::NX), pfn) {
                (0, 20 | 21) => code += 1,
                (pte::NX, 22) => constants += 1,
                (access, _) if access & pte::NX != 0 => others += 1,
                (access, _) => panic!("frame {pfn}: {access:#x}"),
            }
        }
        assert!(code == 2 && constants == 1 && others > 100, "{code} {constants} {others}");
    }
}
