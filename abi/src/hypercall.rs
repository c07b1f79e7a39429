//! Hypercall numbers and the calling convention.
//!
//! Number in `rax`, arguments in `rdi`, `rsi`, `rdx`, `r10`, `r8`, `r9`, result in `rax`; the argument registers of a
//! call are clobbered, and also `rcx` and `r11` if the call was made with SYSCALL. A guest calls entry `number` of
//! its hypercall page, which the hypervisor fills, or executes SYSCALL itself.
//!
//! Sources: public/xen.h, public/arch-x86/xen-x86_64.h. The names are the header's without `__HYPERVISOR_`.

/// Bytes in one entry of the hypercall page: call `page + number * HYPERCALL_ENTRY_SIZE`.
pub const HYPERCALL_ENTRY_SIZE: usize = 32;
/// Entries in the hypercall page.
pub const HYPERCALL_ENTRIES: usize = 4096 / HYPERCALL_ENTRY_SIZE;

macro_rules! numbers {
    ($($(#[$doc:meta])+ $name:ident = $value:literal => $text:literal;)+) => {
        $($(#[$doc])+ pub const $name: u64 = $value;)+

        /// The name of a hypercall as the public header spells it, or `None` for a number without one.
        #[must_use]
        pub const fn name(number: u64) -> Option<&'static str> {
            match number {
                $($value => Some($text),)+
                _ => None,
            }
        }
    };
}

numbers! {
    /// Register trap handlers: a list of [`crate::trap::TrapInfo`].
    SET_TRAP_TABLE = 0 => "set_trap_table";
    /// Update page-table entries and the machine-to-physical table: [`crate::mmu::MmuUpdate`].
    MMU_UPDATE = 1 => "mmu_update";
    /// Replace the global descriptor table's frames.
    SET_GDT = 2 => "set_gdt";
    /// Set the kernel's stack, the one that frames are pushed on when a trap arrives in user mode.
    STACK_SWITCH = 3 => "stack_switch";
    /// Set the event, failsafe and system-call entry points at once; superseded by [`CALLBACK_OP`].
    SET_CALLBACKS = 4 => "set_callbacks";
    /// Set or clear the virtual CR0.TS.
    FPU_TASKSWITCH = 5 => "fpu_taskswitch";
    /// The first form of [`SCHED_OP`]: yield and block only.
    SCHED_OP_COMPAT = 6 => "sched_op_compat";
    /// Machine-wide operations of the privileged domain.
    PLATFORM_OP = 7 => "platform_op";
    /// Set a virtual debug register.
    SET_DEBUGREG = 8 => "set_debugreg";
    /// Read a virtual debug register.
    GET_DEBUGREG = 9 => "get_debugreg";
    /// Store one descriptor into a descriptor-table frame.
    UPDATE_DESCRIPTOR = 10 => "update_descriptor";
    /// Memory reservations, maps and layouts: the `XENMEM_` operations of `memory`.
    MEMORY_OP = 12 => "memory_op";
    /// Make a list of calls in one transition: [`crate::multicall::MulticallEntry`].
    MULTICALL = 13 => "multicall";
    /// Update the page-table entry that maps a virtual address.
    UPDATE_VA_MAPPING = 14 => "update_va_mapping";
    /// Ask for one timer event at an absolute system time.
    SET_TIMER_OP = 15 => "set_timer_op";
    /// The first form of [`EVENT_CHANNEL_OP`].
    EVENT_CHANNEL_OP_COMPAT = 16 => "event_channel_op_compat";
    /// Ask for the hypervisor's version and features: the `XENVER_` operations of `version`.
    XEN_VERSION = 17 => "xen_version";
    /// The hypervisor's own console: the `CONSOLEIO_` operations of `console`.
    CONSOLE_IO = 18 => "console_io";
    /// The first form of [`PHYSDEV_OP`].
    PHYSDEV_OP_COMPAT = 19 => "physdev_op_compat";
    /// Grants of memory between domains: the `GNTTABOP_` operations of `grant`.
    GRANT_TABLE_OP = 20 => "grant_table_op";
    /// Switch an assistance on or off: the `VMASST_` types of `vm_assist`.
    VM_ASSIST = 21 => "vm_assist";
    /// [`UPDATE_VA_MAPPING`] with a frame of another domain.
    UPDATE_VA_MAPPING_OTHERDOMAIN = 22 => "update_va_mapping_otherdomain";
    /// Return from a trap: an [`crate::trap::IretContext`] lies on the stack.
    IRET = 23 => "iret";
    /// Virtual CPUs: the `VCPUOP_` operations of `vcpu`.
    VCPU_OP = 24 => "vcpu_op";
    /// Set the base of FS or GS: the `SEGBASE_` kinds of `segment`.
    SET_SEGMENT_BASE = 25 => "set_segment_base";
    /// Pins, base pointers, flushes and the rest of the MMU: [`crate::mmu::MmuextOp`].
    MMUEXT_OP = 26 => "mmuext_op";
    /// Security-module operations.
    XSM_OP = 27 => "xsm_op";
    /// Register or unregister the NMI handler: the `XENNMI_` operations of `nmi`.
    NMI_OP = 28 => "nmi_op";
    /// Yield, block, poll, shut down: the `SCHEDOP_` operations of `sched`.
    SCHED_OP = 29 => "sched_op";
    /// Register an entry point: the `CALLBACKOP_` operations of `callback`.
    CALLBACK_OP = 30 => "callback_op";
    /// System-wide profiling.
    XENOPROF_OP = 31 => "xenoprof_op";
    /// Event channels: the `EVTCHNOP_` operations of `event`.
    EVENT_CHANNEL_OP = 32 => "event_channel_op";
    /// Physical devices and interrupts: the `PHYSDEVOP_` operations of `physdev`.
    PHYSDEV_OP = 33 => "physdev_op";
    /// Operations on hardware-virtualized domains.
    HVM_OP = 34 => "hvm_op";
    /// System-wide control for tools.
    SYSCTL = 35 => "sysctl";
    /// Domain control for tools.
    DOMCTL = 36 => "domctl";
    /// Load and start another kernel in place of the running ones.
    KEXEC_OP = 37 => "kexec_op";
    /// Transcendent memory, which Xen has removed.
    TMEM_OP = 38 => "tmem_op";
    /// Message rings between domains.
    ARGO_OP = 39 => "argo_op";
    /// Virtual performance counters.
    XENPMU_OP = 40 => "xenpmu_op";
    /// Operations of device models.
    DM_OP = 41 => "dm_op";
    /// The hypervisor's file system of parameters.
    HYPFS_OP = 42 => "hypfs_op";
    /// First number that the architecture defines: machine-check operations on x86.
    ARCH_0 = 48 => "arch_0";
    /// Second number that the architecture defines.
    ARCH_1 = 49 => "arch_1";
    /// Third number that the architecture defines.
    ARCH_2 = 50 => "arch_2";
    /// Fourth number that the architecture defines.
    ARCH_3 = 51 => "arch_3";
    /// Fifth number that the architecture defines.
    ARCH_4 = 52 => "arch_4";
    /// Sixth number that the architecture defines.
    ARCH_5 = 53 => "arch_5";
    /// Seventh number that the architecture defines.
    ARCH_6 = 54 => "arch_6";
    /// Eighth and last number that the architecture defines. Xen leaves it free on x86 and answers it with ENOSYS;
    /// here it is Paravane's own call, for virtio devices: [`crate::virtio`].
    PARAVANE_VIRTIO_OP = 55 => "paravane_virtio_op";
}

/// Xen's name of number 55.
pub const ARCH_7: u64 = PARAVANE_VIRTIO_OP;
