//! Walks the tables of built domains and checks every rule of a paravirtual start of day.

use std::collections::BTreeSet;

use paravane_abi::addr::{INVALID_M2P_ENTRY, table_index};
use paravane_abi::pte;
use paravane_abi::shared_info::SharedInfo;
use paravane_abi::start_info::{SIF_MOD_START_PFN, SIF_VIRT_P2M_4TOOLS, StartInfo};

use crate::build::mapping::AddressLimits;
use crate::build::{BuildError, BuiltDomain, DomainConfig, build};
use crate::image::Image;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{Backing, MachineMemory, Maddr, Mfn, PAGE_SIZE};
use crate::testing::elf::{Elf, pattern, xen_number, xen_text};

const MIB: u64 = 1 << 20;

/// A configuration with a command line, ports, and nothing else.
pub fn config(initrd: Option<&[u8]>) -> DomainConfig<'_> {
    DomainConfig {
        cmdline: "bench=null-call quiet",
        initrd,
        console_port: 2,
        store_port: 1,
        features: 0b1_0001,
        limits: AddressLimits::XEN,
    }
}

/// A domain that was built, with all that is needed to look at it.
pub struct Built {
    pub memory: MachineMemory,
    pub layout: HypervisorLayout,
    pub domain: BuiltDomain,
}

pub fn try_build(elf: &[u8], mem: u64, config: &DomainConfig<'_>) -> Result<Built, BuildError> {
    let layout = HypervisorLayout::new(mem / PAGE_SIZE, 0);
    let memory = MachineMemory::new(layout.hypervisor_frames(), mem / PAGE_SIZE, Backing::Anonymous).unwrap();
    let image = Image::parse(elf).unwrap();
    let domain = build(config, &image, &memory, &layout, |n| [n as u8; 32])?;
    Ok(Built { memory, layout, domain })
}

impl Built {
    fn entry(&self, table: Mfn, va: u64, level: u32) -> u64 {
        let at = table.maddr().0 + 8 * table_index(va, level) as u64;
        self.memory.load_u64(Maddr(at)).unwrap()
    }

    /// The leaf that maps `va`; checks the entries above it. Notes the tables passed.
    fn leaf(&self, va: u64, tables: &mut BTreeSet<Mfn>) -> Option<u64> {
        let mut table = self.domain.root;
        for level in [4, 3, 2] {
            tables.insert(table);
            let entry = self.entry(table, va, level);
            if entry == 0 {
                return None;
            }
            assert_eq!(entry & 7, pte::PRESENT | pte::RW | pte::USER, "level {level} at {va:#x}");
            assert_eq!(entry & (pte::PSE | pte::NX), 0);
            table = Mfn(pte::mfn(entry));
            assert!(self.memory.is_guest_frame(table));
        }
        tables.insert(table);
        Some(self.entry(table, va, 1)).filter(|e| *e != 0)
    }

    fn read_virt(&self, va: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for (i, byte) in bytes.iter_mut().enumerate() {
            let va = va + i as u64;
            let leaf = self.leaf(va, &mut BTreeSet::new()).unwrap();
            *byte = self.memory.read_obj(Maddr((leaf & pte::ADDR_MASK) + va % PAGE_SIZE)).unwrap();
        }
        bytes
    }

    fn start_info(&self) -> StartInfo {
        let pa = self.domain.start_info_va - self.domain.virt_base;
        self.memory.read_obj(Maddr(self.memory.guest_base().maddr().0 + pa)).unwrap()
    }

    /// Everything that holds for every paravirtual domain.
    fn check(&self) {
        let d = &self.domain;
        assert_eq!((d.cr3, d.rsi), (d.root.maddr().0, d.start_info_va));
        self.check_mapping();
        self.check_lists();
        let info = self.start_info();
        assert_eq!(info.nr_pages, self.memory.guest_frames());
        assert_eq!(&info.magic, b"xen-3.0-x86_64\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(info.shared_info, self.layout.shared_info.maddr().0);
        assert!(info.cmd_line.starts_with(b"bench=null-call quiet\0"));
        assert_eq!((info.store_evtchn, info.console_evtchn), (1, 2));
        assert_eq!(Some(Mfn(info.store_mfn)), d.store_mfn);
        assert_eq!(Some(Mfn(info.console_mfn)), d.console_mfn);
        assert_eq!(info.nr_pt_frames, d.pt_frames.end.0 - d.pt_frames.start.0);
        let tables = &mut BTreeSet::new();
        assert_eq!(self.leaf(info.pt_base, tables).map(pte::mfn), Some(d.root.0), "pt_base maps the L4");
        assert_ne!(info.flags & SIF_VIRT_P2M_4TOOLS, 0);

        let shared: SharedInfo = self.memory.read_obj(self.layout.shared_info.maddr()).unwrap();
        assert!(shared.vcpu_info.iter().all(|v| v.evtchn_upcall_mask == 1));
        // In order, apart, the stack last.
        assert!(d.pieces.windows(2).all(|w| w[0].pfns.end <= w[1].pfns.start), "{:?}", d.pieces);
    }

    /// The initial mapping: contiguous from PFN 0, right rights, right end, nothing beside it.
    fn check_mapping(&self) {
        let d = &self.domain;
        let mut tables = BTreeSet::new();
        let end = d.virt_base.wrapping_add(d.mapped_bytes);
        assert_eq!(end % (4 * MIB), 0);
        assert!(d.rsp + 512 * 1024 <= d.virt_base + (d.mapped_bytes - 1) + 1, "spare room");
        for pfn in 0..d.mapped_bytes / PAGE_SIZE {
            let leaf = self.leaf(d.virt_base + pfn * PAGE_SIZE, &mut tables).expect("mapped");
            let mfn = self.memory.pfn_to_mfn(pfn).unwrap();
            assert_eq!(pte::mfn(leaf), mfn.0);
            let rw = if d.pt_frames.contains(&mfn) { 0 } else { pte::RW };
            assert_eq!(leaf & (pte::PRESENT | pte::RW | pte::USER | pte::NX), 5 | rw, "pfn {pfn:#x}");
        }
        let own: BTreeSet<Mfn> = (d.pt_frames.start.0..d.pt_frames.end.0).map(Mfn).collect();
        assert_eq!(tables, own, "every table is needed, and is where it is said to be");
        if end != 0 {
            assert_eq!(self.leaf(end, &mut tables), None, "nothing behind");
        }
        for slot in 256..272 {
            assert_eq!(self.memory.load_u64(Maddr(d.root.maddr().0 + slot * 8)), Ok(0));
        }
        let stack = self.leaf(d.rsp - 1, &mut tables).unwrap();
        assert_ne!(stack & pte::RW, 0);
    }

    /// The list of frames and the machine-to-physical table are each other's inverse.
    fn check_lists(&self) {
        let list = self.start_info().mfn_list;
        for pfn in 0..self.memory.guest_frames() {
            let va = list + pfn * 8;
            let leaf = self.leaf(va, &mut BTreeSet::new()).expect("the list is mapped");
            assert_ne!(leaf & pte::RW, 0, "the guest may write the list");
            let mfn = self.memory.load_u64(Maddr((leaf & pte::ADDR_MASK) + va % PAGE_SIZE)).unwrap();
            assert_eq!(Some(Mfn(mfn)), self.memory.pfn_to_mfn(pfn));
            let back = Maddr(Mfn(self.layout.m2p.start).maddr().0 + mfn * 8);
            assert_eq!(self.memory.load_u64(back), Ok(pfn));
        }
        let m2p = (self.layout.m2p.end - self.layout.m2p.start) * 512;
        for mfn in (0..self.memory.guest_base().0).chain(self.memory.frames()..m2p) {
            let entry = Maddr(Mfn(self.layout.m2p.start).maddr().0 + mfn * 8);
            assert_eq!(self.memory.load_u64(entry), Ok(INVALID_M2P_ENTRY), "mfn {mfn:#x}");
        }
    }
}

#[test]
fn low_zero_and_high_linked_images() {
    for (virt_base, paddr_offset, load) in [
        (0x4000_0000, 0x4000_0000, 0x10_0000),
        (0x4000_0000, 0, 0x10_0000),
        (0, 0, 0),
        (0, 0, 0x10_0000),
        (0xffff_ffff_8000_0000, 0, 0x100_0000),
        (0x4000_0000 - 0x3000, 0, 0),
    ] {
        let elf = Elf::pv(virt_base, paddr_offset, load, &[]);
        let built = try_build(&elf.bytes(), 64 * MIB, &config(None)).unwrap();
        built.check();
        let d = &built.domain;
        assert_eq!((d.entry_rip, d.virt_base), (virt_base + load, virt_base));
        assert_eq!(built.read_virt(virt_base + load, 0x1000), pattern(0x1000));
        let stubs: Vec<u8> = (0..128).flat_map(|n| [n; 32]).collect();
        assert_eq!(built.read_virt(virt_base + load + 0x1000, 0x1000), stubs);
        let mut data = pattern(0x123);
        data.resize(0x2800, 0);
        assert_eq!(built.read_virt(virt_base + load + 0x3000, 0x2800), data, "data, then zeroed bss");
        let info = built.start_info();
        assert_eq!((info.mod_start, info.mod_len, info.first_p2m_pfn, info.nr_p2m_frames), (0, 0, 0, 0));
        assert_eq!(d.rsp, d.virt_base + d.mapped_pfn_of("boot stack").end * PAGE_SIZE);
    }
}

impl BuiltDomain {
    fn mapped_pfn_of(&self, name: &str) -> std::ops::Range<u64> {
        self.pieces.iter().find(|p| p.name == name).unwrap().pfns.clone()
    }
}

#[test]
fn an_initrd_inside_the_mapping() {
    let initrd = pattern(0x5003);
    let elf = Elf::pv(0x4000_0000, 0, 0x10_0000, &[]);
    let built = try_build(&elf.bytes(), 16 * MIB, &config(Some(&initrd))).unwrap();
    built.check();
    let info = built.start_info();
    assert_eq!((info.mod_start, info.mod_len), (0x4010_6000, 0x5003));
    assert_eq!(info.flags & SIF_MOD_START_PFN, 0);
    assert_eq!(built.read_virt(info.mod_start, 0x5003), initrd);
}

#[test]
fn as_linux_wants_it() {
    let initrd = pattern(0x5003);
    let notes = [xen_number(15, 0x80_0000_0000), xen_number(16, 1)];
    let elf = Elf::pv(0xffff_ffff_8000_0000, 0, 0x100_0000, &notes);
    let built = try_build(&elf.bytes(), 64 * MIB, &config(Some(&initrd))).unwrap();
    built.check_p2m_outside(0x80_0000_0000, 3);
    let info = built.start_info();
    assert_ne!(info.flags & SIF_MOD_START_PFN, 0);
    assert_eq!(info.mod_start, built.domain.mapped_bytes / PAGE_SIZE, "right behind the mapping");
    let at = Maddr(built.memory.pfn_to_mfn(info.mod_start).unwrap().maddr().0);
    let mut copy = vec![0; initrd.len()];
    built.memory.read(at, &mut copy).unwrap();
    assert_eq!(copy, initrd);
}

#[test]
fn a_p2m_that_shares_tables_with_the_kernel() {
    // 64 MiB take 32 pages of list: the same L3, then the same L2, then even the same L1.
    for (init_p2m, own) in [(0x1000_0000, 2), (0x3f00_0000, 2), (0x4000_0000, 1), (0x403d_f000, 0)] {
        let elf = Elf::pv(0x4040_0000 - 0x1000, 0, 0, &[xen_number(15, init_p2m)]);
        let built = try_build(&elf.bytes(), 64 * MIB, &config(None)).unwrap();
        built.check_p2m_outside(init_p2m, own);
    }
}

impl Built {
    fn check_p2m_outside(&self, va: u64, own_tables: u64) {
        let info = self.start_info();
        assert_eq!(info.mfn_list, va);
        let list_pages = self.memory.guest_frames() / 512;
        assert_eq!(info.nr_p2m_frames, list_pages + own_tables, "{va:#x}");
        let mut tables = BTreeSet::new();
        for page in 0..list_pages {
            let leaf = self.leaf(va + page * PAGE_SIZE, &mut tables).unwrap();
            assert_eq!(Some(Mfn(pte::mfn(leaf))), self.memory.pfn_to_mfn(info.first_p2m_pfn + page));
        }
        let pfn_of = |mfn: &Mfn| self.memory.mfn_to_pfn(*mfn).unwrap();
        let range = info.first_p2m_pfn + list_pages..info.first_p2m_pfn + info.nr_p2m_frames;
        let own = tables.iter().filter(|mfn| !self.domain.pt_frames.contains(mfn)).map(pfn_of);
        assert!(own.eq(range), "its own tables are those that the start info counts");
        self.check_mapping();
        self.check_lists();
    }
}

#[test]
fn init_p2m_that_xen_ignores() {
    for init_p2m in [0x4000_0000, 0x8000_0000, 0x1800] {
        let elf = Elf::pv(0x4000_0000, 0, 0, &[xen_number(15, init_p2m)]);
        let built = try_build(&elf.bytes(), 16 * MIB, &config(None)).unwrap();
        built.check();
        assert_eq!(built.start_info().nr_p2m_frames, 0);
    }
}

#[test]
fn a_p2m_that_would_run_into_the_kernel() {
    let elf = Elf::pv(0x4000_0000, 0, 0, &[xen_number(15, 0x4000_0000 - 0x1000)]);
    let err = try_build(&elf.bytes(), 16 * MIB, &config(None)).map(|_| ()).unwrap_err();
    assert!(matches!(err, BuildError::VirtualRange { va: 0x3fff_f000, .. }), "{err}");
}

#[test]
fn too_little_memory_says_how_much_is_needed() {
    let mut elf = Elf::pv(0x4000_0000, 0, 0x10_0000, &[]);
    elf.phdrs[1].memsz = 30 * MIB;
    for mem in [0, 2 * MIB, 16 * MIB, 32 * MIB - PAGE_SIZE] {
        let err = try_build(&elf.bytes(), mem, &config(None)).map(|_| ()).unwrap_err();
        assert_eq!(err, BuildError::TooLittleMemory { given: mem, needed: 32 * MIB });
        assert!(err.to_string().contains("raise --mem to 32M"), "{err}");
    }
    try_build(&elf.bytes(), 32 * MIB, &config(None)).unwrap().check();
    let linux = Elf::pv(0x4000_0000, 0, 0, &[xen_number(15, 0x1000)]).bytes();
    let err = try_build(&linux, 0, &config(None)).map(|_| ()).unwrap_err();
    assert!(matches!(err, BuildError::TooLittleMemory { given: 0, .. }));
    // An absurd size is an answer too.
    elf.phdrs[1].memsz = 1 << 45;
    let err = try_build(&elf.bytes(), 16 * MIB, &config(None)).map(|_| ()).unwrap_err();
    assert!(matches!(err, BuildError::TooLittleMemory { needed, .. } if needed > 1 << 45));
}

#[test]
fn what_the_configuration_rules_out() {
    let elf = |notes: &[Vec<u8>]| Elf::pv(0xffff_ffff_8000_0000, 0, 0x10_0000, notes).bytes();
    let fails = |elf: &[u8], config| try_build(elf, 16 * MIB, &config).map(|_| ()).unwrap_err();
    let long = "x".repeat(1024);
    let with = |cmdline| DomainConfig { cmdline, ..config(None) };
    assert_eq!(fails(&elf(&[]), with(&long)), BuildError::CmdlineTooLong { len: 1024 });
    assert!(try_build(&elf(&[]), 16 * MIB, &with(&long[1..])).is_ok());
    assert_eq!(fails(&elf(&[]), with("a\0b")), BuildError::CmdlineZero);
    let limits = AddressLimits { lower_half_start: 0, lower_half_end: 1 << 47, upper_half: false };
    let low = DomainConfig { limits, ..config(None) };
    assert!(matches!(fails(&elf(&[]), low), BuildError::VirtualRange { .. }));
    let wants = elf(&[xen_text(10, "!writable_page_tables|!supervisor_mode_kernel")]);
    assert_eq!(fails(&wants, config(None)), BuildError::Feature("supervisor_mode_kernel"));
}
