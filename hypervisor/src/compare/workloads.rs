//! What the reference guest can do and verify. A new workload is a row here and a file in the guest.
//!
//! Three kinds, which the report keeps apart: whole jobs of a kernel, jobs that need the machine not at all, and
//! single operations, repeated and counted in cycles.

use serde::Serialize;

use super::Needs;
use crate::image::GuestKind;

/// Something that the reference guest can do and verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// What `bench=` calls it.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// The devices that it needs.
    pub needs: Needs,
    /// What is learned from it.
    pub kind: Kind,
    /// The only kernels that have such an operation, if not all have.
    pub only: Option<GuestKind>,
}

/// What is learned from a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// What a job of a kernel costs.
    Job,
    /// What code costs that asks nothing of the machine: a job as well, and counted in cycles.
    Compute,
    /// What one operation costs, in cycles by the guest's own time-stamp counter.
    Nano,
}

impl Workload {
    /// A job that needs no device.
    pub const fn new(name: &'static str, about: &'static str) -> Self {
        Self { name, about, needs: Needs::Nothing, kind: Kind::Job, only: None }
    }

    /// Code that asks nothing of the machine.
    pub const fn compute(name: &'static str, about: &'static str) -> Self {
        Self { kind: Kind::Compute, ..Self::new(name, about) }
    }

    /// One operation, repeated.
    pub const fn nano(name: &'static str, about: &'static str) -> Self {
        Self { kind: Kind::Nano, ..Self::new(name, about) }
    }

    /// The same with a device.
    pub const fn with(self, needs: Needs) -> Self {
        Self { needs, ..self }
    }

    /// The same for kernels of one kind alone.
    pub const fn only(self, kind: GuestKind) -> Self {
        Self { only: Some(kind), ..self }
    }
}

/// The workloads of the reference guest.
pub static WORKLOADS: &[Workload] = &[
    Workload::new("null-call", "ask the machine the least, 1000 times"),
    Workload::new("console-4k", "print 4096 bytes in one write"),
    Workload::new("console-virtio-4k", "print 4096 bytes in one write on a virtio console")
        .with(Needs::Console),
    Workload::new("map-512", "map, touch, protect and unmap 512 scattered pages"),
    Workload::new("map-4096", "map, touch, protect and unmap 4096 scattered pages"),
    Workload::new("address-space", "make, use and destroy 16 address spaces of 128 pages"),
    Workload::new("timer-1000", "1000 ticks of a timer, 250 us apart"),
    Workload::new("one-shot-1000", "1000 timers of 100 us, each set when the one before has expired"),
    Workload::compute("alu", "9 instructions for each word of 32 KiB"),
    Workload::compute("fib", "fib(24), recursively"),
    Workload::new("net-setup", "set a network interface up, from nothing to its first usable queue")
        .with(Needs::Network),
    Workload::new("block-setup", "set a disk up, from nothing to its first usable queue").with(Needs::Disk),
    Workload::new("block-read-qd1", "read 1000 blocks of 4 KiB, one at a time").with(Needs::Disk),
    Workload::new("block-read-qd32", "read 1000 blocks of 4 KiB, 32 at a time").with(Needs::Disk),
    Workload::new("block-read-64k", "read 1000 blocks of 64 KiB, 32 at a time").with(Needs::Disk),
    Workload::new("net-send-64", "send 10000 frames of 64 bytes").with(Needs::Network),
    Workload::new("net-send-1500", "send 10000 frames of 1500 bytes").with(Needs::Network),
    Workload::new("net-receive-64", "receive 10000 frames of 64 bytes").with(Needs::Network),
    Workload::new("net-receive-1500", "receive 10000 frames of 1500 bytes").with(Needs::Network),
    // The seven of Adams and Agesen (ASPLOS 2006), then others.
    Workload::nano("syscall", "a system call of a user program, and the return from it"),
    Workload::nano("in", "IN AL, DX of the UART's line status").only(GuestKind::Bare),
    Workload::nano("cr8wr", "MOV CR8, 0").only(GuestKind::Bare),
    Workload::nano("callret", "CALL of a leaf of one ADD, RET"),
    Workload::nano("pgfault", "load from a page that is not mapped; the handler moves on"),
    Workload::nano("divzero", "DIV by 0; the handler moves on"),
    Workload::nano("ptemod", "toggle a bit that only software reads in the entry of a page in use"),
    Workload::nano("ptemap", "map a page, read it, unmap it"),
    Workload::nano("clisti", "interrupts off, and on again"),
    Workload::nano("cr3rd", "MOV from CR3").only(GuestKind::Bare),
    Workload::nano("cr3wr", "make the same address space the current one"),
    Workload::nano("iret", "IRETQ within the kernel, its frame included"),
    Workload::nano("indirect-1", "CALL through a table, always of the same function"),
    Workload::nano("indirect-4", "CALL through a table, 4 functions in turn"),
    Workload::nano("indirect-16", "CALL through a table, 16 functions in turn"),
    Workload::nano("smc", "store into an instruction's immediate, then run it"),
    Workload::nano("null", "the hypercall that does nothing: XENVER_version").only(GuestKind::Pv),
    Workload::nano("update-1", "one page-table entry by one mmu_update").only(GuestKind::Pv),
    Workload::nano("update-512", "page-table entries, 512 by one mmu_update").only(GuestKind::Pv),
    Workload::nano("upcall", "an event to oneself, to its handler").only(GuestKind::Pv),
];

impl Workload {
    /// The one of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        WORKLOADS.iter().find(|workload| workload.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_has_a_name_of_its_own() {
        for workload in WORKLOADS {
            let found = Workload::named(workload.name).unwrap();
            assert!(std::ptr::eq(found, workload), "{}", workload.name);
        }
    }
}
