//! What the reference guest can do and verify. A new workload is a row here and a file in the guest.
//!
//! Four kinds, which the report keeps apart: whole jobs of a kernel, jobs that need the machine not at all, single
//! operations, repeated and counted in cycles, and programs that the kernel runs, which the host can run as well.

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
    /// The program and its arguments, separated by commas, if it is one.
    pub program: Option<&'static str>,
    /// Whether it is measured only when asked for, by its name or with the whole suite.
    pub on_request: bool,
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
    /// What a user program asks of its kernel, and the kernel of the machine.
    Program,
}

impl Workload {
    /// A job that needs no device.
    pub const fn new(name: &'static str, about: &'static str) -> Self {
        let (needs, kind) = (Needs::Nothing, Kind::Job);
        Self { name, about, needs, kind, only: None, program: None, on_request: false }
    }

    /// Code that asks nothing of the machine.
    pub const fn compute(name: &'static str, about: &'static str) -> Self {
        Self { kind: Kind::Compute, ..Self::new(name, about) }
    }

    /// One operation, repeated.
    pub const fn nano(name: &'static str, about: &'static str) -> Self {
        Self { kind: Kind::Nano, ..Self::new(name, about) }
    }

    /// A program, which prints its line about `name`.
    pub const fn program(name: &'static str, words: &'static str, about: &'static str) -> Self {
        Self { kind: Kind::Program, program: Some(words), ..Self::new(name, about) }
    }

    /// The same, measured only when asked for.
    pub const fn on_request(self) -> Self {
        Self { on_request: true, ..self }
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
    // lmbench's, by its names and definitions (`guest-kernel/user/src/bench`), and a storm of processes.
    Workload::program("lat_syscall-null", "lat_syscall,null,1000", "getppid, 1000 times"),
    Workload::program("lat_syscall-read", "lat_syscall,read,1000", "a byte from /dev/zero, 1000 times")
        .on_request(),
    Workload::program("lat_syscall-write", "lat_syscall,write,1000", "a byte to /dev/null, 1000 times")
        .on_request(),
    Workload::program("lat_syscall-open", "lat_syscall,open,1000", "open and close a file, 1000 times")
        .on_request(),
    Workload::program("lat_sig-install", "lat_sig,install,1000", "set a signal's handler, 1000 times")
        .on_request(),
    Workload::program(
        "lat_sig-catch",
        "lat_sig,catch,1000",
        "a signal to itself and its handler, 1000 times",
    )
    .on_request(),
    Workload::program("lat_proc-fork", "lat_proc,fork,50", "fork, exit and wait, 50 times"),
    Workload::program("lat_proc-exec", "lat_proc,exec,20", "fork, exec, exit and wait, 20 times")
        .on_request(),
    Workload::program("lat_proc-sh", "lat_proc,sh,10", "the same by way of a shell, 10 times").on_request(),
    Workload::program(
        "lat_proc-fork-1000",
        "lat_proc,fork-1000,5",
        "fork and exit of a process that has written to 1000 pages, 5 times",
    )
    .on_request(),
    Workload::program("lat_ctx-2", "lat_ctx,2,1000", "1000 switches of 2 processes, by way of pipes"),
    Workload::program("lat_ctx-4", "lat_ctx,4,1000", "1000 switches of 4 processes, by way of pipes")
        .on_request(),
    Workload::program("lat_ctx-8", "lat_ctx,8,1000", "1000 switches of 8 processes, by way of pipes")
        .on_request(),
    Workload::program("lat_ctx-16", "lat_ctx,16,1008", "1008 switches of 16 processes, by way of pipes")
        .on_request(),
    Workload::program("lat_pipe", "lat_pipe,500", "a byte there and back by pipes, 500 times").on_request(),
    Workload::program("lat_unix", "lat_unix,500", "a byte there and back by a pair of sockets, 500 times")
        .on_request(),
    Workload::program("lat_mmap", "lat_mmap,20", "map 1 MiB, touch 64 of its pages, unmap it, 20 times")
        .on_request(),
    Workload::program("lat_pagefault", "lat_pagefault,1024", "the first touch of 1024 pages"),
    Workload::program("bw_mem-rd", "bw_mem,rd,20", "read 1 MiB, 20 times").on_request(),
    Workload::program("bw_mem-wr", "bw_mem,wr,20", "write 1 MiB, 20 times").on_request(),
    Workload::program("bw_mem-cp", "bw_mem,cp,20", "copy 1 MiB, 20 times").on_request(),
    Workload::program("bw_pipe", "bw_pipe,50", "64 KiB through a pipe, 50 times").on_request(),
    Workload::program("storm", "storm,8", "8 jobs of a build, of 3 short processes each, 2 jobs at a time"),
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

    #[test]
    fn a_program_is_named_by_its_words_without_the_number() {
        for workload in WORKLOADS {
            let Some(words) = workload.program else { continue };
            let (words, number) = words.rsplit_once(',').unwrap();
            assert_eq!(
                (words.replace(',', "-"), number.parse::<u64>().is_ok()),
                (workload.name.to_owned(), true)
            );
        }
    }
}
