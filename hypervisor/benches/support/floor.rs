//! A virtual machine with the fewest possible KVM calls: the cost that every program on KVM has.
//!
//! Its guest can exit from CPL 3 in two ways: by an `OUT` that the I/O bitmap allows, and by a fault whose IDT stub
//! makes that `OUT`. Registers are passed in the shared page (`kvm_run`), as in the engine. It uses no code of the
//! engine, which would otherwise be compared with itself.

use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, SyncReg, VcpuExit, VcpuFd, VmFd};
use paravane::machine::memory::{Backing, MachineMemory, Maddr, Mfn};

/// The page tables of levels 4 to 1 are in the first frames; they map themselves and what follows one to one.
const TABLES: u64 = 4;
const USER_CODE: u64 = 0x4000;
const GATE_CODE: u64 = 0x5000;
const DESCRIPTORS: u64 = 0x6000;
const GATE_STACK_TOP: u64 = 0x8000;
const FRAMES: u64 = 8;

const IDT: u64 = DESCRIPTORS + 0x800;
const TSS: u64 = DESCRIPTORS + 0x100;
const TSS_LIMIT: u32 = 104 + PORT as u32 / 8 + 1;
const PORT: u8 = 0x7e;

/// `out PORT, al; jmp` to it.
const CALLS: (u64, [u8; 4]) = (USER_CODE, [0xe6, PORT, 0xeb, 0xfc]);
/// `cli; jmp` to it.
const FAULTS: (u64, [u8; 3]) = (USER_CODE + 0x10, [0xfa, 0xeb, 0xfd]);
const CLI_LEN: u64 = 1;
const GP_FAULT: u64 = 13;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED_DIRTY: u64 = 3 << 5;

/// The smallest virtual machine.
pub struct Floor {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: MachineMemory,
}

type Failure = Box<dyn std::error::Error>;

impl Floor {
    /// Makes the machine. Its guest then executes `OUT` in an endless loop.
    pub fn new() -> Result<Self, Failure> {
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        let memory = MachineMemory::new(0, FRAMES, Backing::Anonymous)?;
        fill(&memory)?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: memory.len(),
            userspace_addr: memory.host_address(),
        };
        // SAFETY: the returned structure holds the memory, which is unmapped only after the VM has been dropped.
        unsafe { vm.set_user_memory_region(region) }?;
        let mut vcpu = vm.create_vcpu(0)?;
        vcpu.set_sync_valid_reg(SyncReg::Register);
        vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
        vcpu.sync_regs_mut().sregs = long_mode(&vcpu.get_sregs()?);
        let mut floor = Self { vcpu, _vm: vm, memory };
        floor.resume_at(CALLS.0);
        Ok(floor)
    }

    /// Runs to the next exit.
    pub fn run(&mut self) -> Result<(), Failure> {
        match self.vcpu.run()? {
            VcpuExit::IoOut(port, _) if port == u16::from(PORT) => {}
            other => return Err(format!("the floor's guest stopped with {other:?}").into()),
        }
        self.vcpu.get_kvm_run().kvm_dirty_regs = 0;
        Ok(())
    }

    /// How long `count` exits by `OUT` take, each answered with a register.
    pub fn calls(&mut self, count: u32) -> Result<Duration, Failure> {
        self.resume_at(CALLS.0);
        self.run()?;
        let start = Instant::now();
        for answer in 0..count {
            self.vcpu.sync_regs_mut().regs.rax = answer.into();
            self.vcpu.set_sync_dirty_reg(SyncReg::Register);
            self.run()?;
        }
        Ok(start.elapsed())
    }

    /// How long `count` exits by a privileged instruction take, each stepped over.
    pub fn faults(&mut self, count: u32) -> Result<Duration, Failure> {
        self.resume_at(FAULTS.0);
        self.run()?;
        let start = Instant::now();
        for _ in 0..count {
            let mut frame = [0u64; 6];
            let size = std::mem::size_of_val(&frame) as u64;
            let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut frame);
            self.memory.read(Maddr(GATE_STACK_TOP - size), bytes)?;
            let [_error, rip, ..] = frame;
            self.resume_at(rip + CLI_LEN);
            self.run()?;
        }
        Ok(start.elapsed())
    }

    /// Sets up execution at CPL 3 at this address.
    fn resume_at(&mut self, rip: u64) {
        let shared = self.vcpu.sync_regs_mut();
        shared.regs = kvm_regs { rip, rflags: 0x202, rax: shared.regs.rax, ..kvm_regs::default() };
        shared.sregs.cs = segment(0x33, 11, 3);
        shared.sregs.ss = segment(0x2b, 3, 3);
        self.vcpu.set_sync_dirty_reg(SyncReg::Register);
        self.vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
    }
}

fn fill(memory: &MachineMemory) -> Result<(), Failure> {
    let table = PRESENT | WRITABLE | USER | ACCESSED_DIRTY;
    for level in 1..TABLES {
        memory.store_u64(Mfn(level - 1).maddr(), Mfn(level).maddr().0 | table)?;
    }
    for frame in 0..FRAMES {
        let user = if frame == USER_CODE >> 12 { USER } else { 0 };
        let entry = Mfn(frame).maddr().0 | PRESENT | WRITABLE | ACCESSED_DIRTY | user;
        memory.store_u64(Maddr(Mfn(TABLES - 1).maddr().0 + frame * 8), entry)?;
    }
    memory.write(Maddr(CALLS.0), &CALLS.1)?;
    memory.write(Maddr(FAULTS.0), &FAULTS.1)?;
    memory.write(Maddr(GATE_CODE), &[0xe6, PORT])?;
    // Linux's GDT, as in the engine; the TSS's limit includes the bitmap of one open port.
    for (selector, descriptor) in [
        (0x10, 0x00af_9b00_0000_ffff),
        (0x18, 0x00cf_9300_0000_ffff),
        (0x28, 0x00cf_f300_0000_ffff),
        (0x30, 0x00af_fb00_0000_ffff_u64),
        (0x40, u64::from(TSS_LIMIT) | TSS << 16 | 0x8b << 40),
    ] {
        memory.store_u64(Maddr(DESCRIPTORS + selector), descriptor)?;
    }
    memory.write_obj(Maddr(TSS + 4), &GATE_STACK_TOP)?;
    memory.write_obj(Maddr(TSS + 102), &104u16)?;
    memory.write(Maddr(TSS + 104), &[0xff; PORT as usize / 8 + 2])?;
    memory.write_obj(Maddr(TSS + 104 + u64::from(PORT) / 8), &!(1u8 << (PORT % 8)))?;
    let gate = (GATE_CODE & 0xffff) | 0x10 << 16 | 0x8e << 40;
    memory.store_u64(Maddr(IDT + GP_FAULT * 16), gate)?;
    Ok(())
}

fn segment(selector: u16, kind: u8, dpl: u8) -> kvm_segment {
    let code = u8::from(kind == 11);
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        dpl,
        db: 1 - code,
        s: 1,
        l: code,
        g: 1,
        ..kvm_segment::default()
    }
}

/// PE, NE, PG; PAE; LME, LMA.
fn long_mode(reset: &kvm_sregs) -> kvm_sregs {
    let mut sregs = kvm_sregs {
        cr0: 1 | 1 << 5 | 1 << 31,
        cr3: 0,
        cr4: 1 << 5,
        efer: 1 << 8 | 1 << 10,
        cs: segment(0x33, 11, 3),
        ss: segment(0x2b, 3, 3),
        ds: segment(0x2b, 3, 3),
        es: segment(0x2b, 3, 3),
        ..*reset
    };
    (sregs.gdt.base, sregs.gdt.limit) = (DESCRIPTORS, 0x4f);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 32 * 16 - 1);
    sregs.tr = kvm_segment {
        base: TSS,
        limit: TSS_LIMIT,
        selector: 0x40,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    sregs
}
