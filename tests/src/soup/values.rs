//! Argument values: right, nearly right, and wrong.

use paravane_abi::grant::*;
use paravane_abi::{addr, domid, pte};
use zerocopy::IntoBytes;

use super::*;
use crate::images::HYPERCALL_PAGE;

impl Cook {
    /// A number that could have a meaning in the ABI.
    pub(super) fn value(&mut self) -> u64 {
        match self.random.below(12) {
            0..3 => self.random.below(16),
            3 => self.count(),
            4 => self.domain(),
            5 => self.address(),
            6 => self.frame(),
            7 => self.slot(),
            8 => self.entry(),
            9 => self.mapped(),
            // Pairs of small numbers, for structures with 32-bit fields.
            10 => self.random.below(16) << 32 | self.domain() << 16 | self.random.below(16),
            _ => self.random.any() >> self.random.below(64),
        }
    }

    /// An element of a grant operation; about every second one makes sense.
    pub(super) fn element(&mut self, op: u64) -> Vec<u8> {
        let (r, handle) = (self.random.below(GRANT_ENTRIES) as u32, self.random.below(4) as u32);
        let dom = self.random.one_of(&[1, 1, 1, domid::DOMID_SELF, 0]);
        let (host_addr, new_addr) = (self.mapped(), self.mapped());
        let [source, dest] = [0, 1].map(|_| GnttabCopyPtr {
            u: self.random.below(GRANT_ENTRIES),
            domid: dom,
            offset: self.random.below(0x1100) as u16,
            ..GnttabCopyPtr::default()
        });
        let mut bytes = match u32::try_from(op).expect("a small number") {
            GNTTABOP_MAP_GRANT_REF => {
                let flags =
                    self.random.below(16) as u32 | self.random.one_of(&[0, 0, 0, GNTMAP_CONTAINS_PTE]);
                let host_addr = if flags & GNTMAP_CONTAINS_PTE == 0 { host_addr } else { self.slot() };
                let map =
                    GnttabMapGrantRef { host_addr, flags, r#ref: r, dom, ..GnttabMapGrantRef::default() };
                map.as_bytes().to_vec()
            }
            GNTTABOP_UNMAP_GRANT_REF => {
                let dev_bus_addr = self.random.one_of(&[0, self.frame_base << 12]);
                GnttabUnmapGrantRef { host_addr, dev_bus_addr, handle, status: 0, _pad: 0 }
                    .as_bytes()
                    .to_vec()
            }
            GNTTABOP_UNMAP_AND_REPLACE => {
                GnttabUnmapAndReplace { host_addr, new_addr, handle, status: 0, _pad: 0 }.as_bytes().to_vec()
            }
            GNTTABOP_TRANSFER => {
                let transfer =
                    GnttabTransfer { mfn: self.frame(), domid: dom, r#ref: r, ..GnttabTransfer::default() };
                transfer.as_bytes().to_vec()
            }
            GNTTABOP_COPY => {
                let (len, flags) = (self.random.below(0x1100) as u16, self.random.one_of(&[3, 3, 1, 2, 0]));
                GnttabCopy { source, dest, len, flags, ..GnttabCopy::default() }.as_bytes().to_vec()
            }
            _ => (0..ELEMENT_BYTES / 8).flat_map(|_| self.value().to_le_bytes()).collect(),
        };
        bytes.resize(ELEMENT_BYTES as usize, 0);
        bytes
    }

    /// The first entries of the grant table, most of which grant free pages to the kernel itself.
    pub(super) fn grants(&mut self) -> Vec<u8> {
        let entry = |_| {
            let flags = self.random.one_of(&[1, 1, 1, 1 | GTF_READONLY, GTF_ACCEPT_TRANSFER, 0, 0xffff]);
            let domid = self.random.one_of(&[1, 1, 1, 1, 0]);
            GrantEntryV1 { flags, domid, frame: self.frame() as u32 }.as_bytes().to_vec()
        };
        (0..GRANT_ENTRIES).flat_map(entry).collect()
    }

    pub(super) fn count(&mut self) -> u64 {
        let many = [0, 8, 300, 1 << 20, 1 << 31 | 1, u64::MAX];
        if self.random.below(4) > 0 { 1 + self.random.below(3) } else { self.random.one_of(&many) }
    }

    pub(super) fn domain(&mut self) -> u64 {
        let others = [0, 1, 9, domid::DOMID_IO.into(), domid::DOMID_XEN.into()];
        if self.random.below(4) > 0 { domid::DOMID_SELF.into() } else { self.random.one_of(&others) }
    }

    /// The address of a structure, perhaps.
    pub(super) fn address(&mut self) -> u64 {
        let wrong = [
            0,
            0x7fff_ffff_f000,
            addr::HYPERVISOR_VIRT_START,
            1 << 47,
            u64::MAX - 7,
            ENTRY + DATA + DATA_BYTES - 4,
        ];
        match self.random.below(16) {
            0 => self.random.one_of(&wrong),
            1 => self.mapped(),
            _ => ENTRY + DATA + self.random.below(DATA_BYTES / 8) * 8,
        }
    }

    /// An address in the initial mapping, often one that the kernel does not use.
    pub(super) fn mapped(&mut self) -> u64 {
        let page = self.page();
        VIRT_BASE + page * addr::PAGE_SIZE + self.random.below(512) * 8
    }

    /// A page: a free one, or one after the image, where lists, tables and the stack are.
    pub(super) fn page(&mut self) -> u64 {
        let image_end = (HYPERCALL_PAGE + SIZE - VIRT_BASE) / addr::PAGE_SIZE;
        match self.random.below(4) {
            0 => image_end + self.random.below(24),
            1 => self.random.below(PAGES),
            _ => self.random.below(64),
        }
    }

    pub(super) fn frame(&mut self) -> u64 {
        match self.random.below(8) {
            0 if self.random.below(2) == 0 => self.shared.start + self.random.below(3),
            0 => self.random.below(self.frame_base),
            1 => self.random.one_of(&[PAGES + self.frame_base, u64::MAX >> 12, u64::MAX]),
            _ => self.frame_base + self.page(),
        }
    }

    /// The machine address of a page-table entry, perhaps with a command.
    pub(super) fn slot(&mut self) -> u64 {
        let entry = self.frame().wrapping_mul(addr::PAGE_SIZE).wrapping_add(self.random.below(512) * 8);
        if self.random.below(4) > 0 { entry } else { entry | self.random.below(8) }
    }

    pub(super) fn entry(&mut self) -> u64 {
        let flags = [0, 1, 3, 5, 7, 0x67, 0x65, 0x27, pte::NX | 7, 0x87, 0x107];
        pte::make(self.frame(), self.random.one_of(&flags))
    }
}
