//! The rooms of `hypervisor/src`, and which of them may use which.
//!
//! A new tie between rooms is a decision, and is added here first. `cargo xtask architecture` compares this table with
//! the source in both directions, and draws `docs/architecture.svg` from it.

/// A module of the crate root.
pub(crate) struct Room {
    pub(crate) name: &'static str,
    /// A short description.
    pub(crate) what: &'static str,
    /// Rooms, or modules of rooms (`room::module`), that its product code names, separated by spaces.
    pub(crate) may_use: &'static str,
    /// Whether it has `unsafe`. Every other room forbids it.
    pub(crate) has_unsafe: bool,
}

/// Ties that no row may allow.
pub(crate) struct Principle {
    pub(crate) from: &'static [&'static str],
    pub(crate) never: &'static [&'static str],
    pub(crate) why: &'static str,
}

/// The rules to check.
pub(crate) struct Table {
    pub(crate) rooms: &'static [Room],
    pub(crate) principles: &'static [Principle],
    /// Unintended ties (from a room, to a module) that still exist. Each must be removed.
    pub(crate) exceptions: &'static [(&'static str, &'static str)],
}

pub(crate) const TABLE: Table = Table { rooms: ROOMS, principles: PRINCIPLES, exceptions: EXCEPTIONS };

const fn room(name: &'static str, what: &'static str, may_use: &'static str) -> Room {
    Room { name, what, may_use, has_unsafe: false }
}

const fn with_unsafe(name: &'static str, what: &'static str, may_use: &'static str) -> Room {
    Room { name, what, may_use, has_unsafe: true }
}

/// From the top down: a room is used by those above it.
const ROOMS: &[Room] = &[
    with_unsafe(
        "cli",
        "the program: arguments, terminal, signals, output",
        "compare launch gdb technique trace snapshot monitor autopsy audit image virtio backend engine ledger machine \
         host x86 text",
    ),
    room(
        "compare",
        "techniques side by side, workload by workload",
        "launch technique audit image virtio backend engine ledger machine host text",
    ),
    room(
        "launch",
        "from a configuration to a running guest",
        "gdb technique trace snapshot monitor pv autopsy build image virtio engine ledger machine host x86 text",
    ),
    room(
        "technique",
        "the ways to virtualize a kernel",
        "monitor pv bare patch translate autopsy build image virtio mmu engine ledger machine host x86",
    ),
    room(
        "gdb",
        "a debugger: breakpoints, steps, gdb's protocol",
        "monitor autopsy backend::unix engine ledger machine host x86 text",
    ),
    room("trace", "every exit, written to a file and read again", "monitor image ledger host text"),
    room("snapshot", "a domain in a file, written and read again", "machine host text"),
    with_unsafe(
        "monitor",
        "the loop of a vCPU: enter, exit, account, handle",
        "autopsy engine mmu::log ledger machine host x86",
    ),
    room("pv", "Xen's machine: domain, hypercalls, events, store", "exec virtio mmu ledger machine host x86"),
    room(
        "bare",
        "the PC that a bare kernel sees, and its exits",
        "interpreter exec virtio mmu engine ledger machine host x86",
    ),
    room("autopsy", "why a guest ended where it did", "audit image x86"),
    room("audit", "instructions that do not work at CPL 3", "patch image machine x86 text"),
    room("patch", "jumps to stubs in a kernel's code", "codegen exec mmu ledger machine x86"),
    room("translate", "a bare kernel's code as code of ours", "codegen exec mmu machine host x86"),
    room("codegen", "our code in the guest's kernel view", "exec machine host x86"),
    room("interpreter", "a processor in software", "exec machine x86"),
    room("exec", "what one instruction does", "x86"),
    room("build", "from an image to a domain's first state", "image machine text"),
    room("image", "files that hold kernels", "machine text"),
    room("virtio", "device fronts: queues and protocols", "backend machine host"),
    with_unsafe("backend", "behind devices: disks, networks, consoles", "machine host text"),
    room("mmu", "who may write page tables", "machine host x86"),
    with_unsafe(
        "engine",
        "enters a guest and maps its pages",
        "mmu::log mmu::space mmu::crossing machine host x86",
    ),
    room("ledger", "which exits there were, and their cost", "x86 text"),
    with_unsafe("machine", "memory, layout, time, both ends of the console", "host"),
    with_unsafe("host", "Linux behind safe functions", "text"),
    room("x86", "facts of the architecture", ""),
    room("text", "names, times and sizes for people", ""),
];

const PRINCIPLES: &[Principle] = &[
    Principle {
        from: &["engine"],
        never: &["pv", "bare", "exec", "build", "technique", "launch", "monitor", "virtio", "backend"],
        why: "engines run code and map pages; nothing else",
    },
    Principle {
        from: &["engine"],
        never: &["mmu::direct", "mmu::shadow"],
        why: "an engine hears of entries that were written, whoever decided on them",
    },
    Principle {
        from: &["mmu"],
        never: &["engine", "pv", "bare", "exec", "monitor"],
        why: "who may write a page table is decided without an engine and without a domain",
    },
    Principle {
        from: &["pv", "exec", "bare"],
        never: &["engine::kvm", "engine::process", "monitor", "technique", "launch"],
        why: "what a guest asks for or trips over is the same on every engine",
    },
    Principle {
        from: &["pv"],
        never: &["bare", "engine"],
        why: "a paravirtual guest has no PC, and asks no engine",
    },
    Principle { from: &["exec", "bare"], never: &["pv"], why: "a bare guest has no Xen" },
    Principle {
        from: &["exec"],
        never: &["engine", "mmu", "ledger", "machine", "virtio", "bare"],
        why: "an instruction does the same on every machine, however its guest is run",
    },
    Principle {
        from: &["interpreter"],
        never: &["engine", "mmu", "ledger", "virtio", "bare", "pv", "host"],
        why: "a processor in software executes instructions, whoever's they are",
    },
    Principle {
        from: &["virtio"],
        never: &["pv", "bare", "exec", "engine", "monitor"],
        why: "a device does not know its transport",
    },
    Principle {
        from: &["backend"],
        never: &["virtio", "pv", "bare", "exec", "engine", "monitor"],
        why: "a back end can serve any kind of front",
    },
    Principle {
        from: &["x86", "text", "ledger", "host", "machine"],
        never: &["engine", "mmu", "pv", "bare", "exec", "virtio", "backend", "monitor"],
        why: "it is used by all of these",
    },
    Principle {
        from: &["monitor"],
        never: &["pv", "bare", "technique", "launch", "virtio"],
        why: "the loop of a vCPU is the same for every technique",
    },
    Principle { from: &["technique"], never: &["launch"], why: "a technique runs on what it is given" },
    Principle {
        from: &["monitor", "pv", "exec", "bare", "mmu", "engine", "virtio", "backend", "ledger"],
        never: &["cli", "compare"],
        why: "what runs a guest knows no command",
    },
];

const EXCEPTIONS: &[(&str, &str)] = &[("x86", "machine")];
