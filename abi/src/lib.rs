//! The hypercall ABI of Paravane: the numbers, layouts, flags and error codes of Xen's public x86-64 PV interface.
//!
//! The hypervisor and the guest SDK are both built from this description. A test compiles a C program against Xen's
//! public headers and compares every number with it (`tests/conformance/`). `docs/abi.md` says what each call does;
//! this crate has its numbers and layouts.
//!
//! # Principles
//!
//! * **No behaviour.** Constants, structures, and `const` helpers that decode a number. Nothing here allocates, or
//!   fails other than by its return value.
//! * **No extensions**, except [`hypercall::PARAVANE_VIRTIO_OP`] and its structures in [`virtio`], for which Xen's PV
//!   interface has no equivalent.
//! * **Names are the headers'**, in Rust's case: `XENMEM_populate_physmap` is [`memory::XENMEM_POPULATE_PHYSMAP`],
//!   `struct sched_poll` is [`sched::SchedPoll`]. Hypercall numbers lose their prefix: `__HYPERVISOR_iret` is
//!   [`hypercall::IRET`]. A field called `type` is `kind`, one called `in` is `in_`.
//! * **Types are those of the interface.** Hypercall numbers are `u64`, as in `rax`; sub-operations are `u32`; flags
//!   have the type of their field. A guest handle is a `u64`: a virtual address of the guest, which must be checked
//!   before it is used. A C union is as many raw fields as its largest member needs; the documentation says what they
//!   mean for each member.
//! * **Every byte is named.** Padding is a field, so that every structure is [`zerocopy::FromBytes`] and
//!   [`zerocopy::IntoBytes`]: it is read from guest memory and written to it as bytes, without `unsafe`.
//! * **Layouts are checked when this crate compiles**: each structure's size and offsets are written beside it in
//!   numbers.
//! * **IN** marks fields that the caller writes, **OUT** fields that the hypervisor writes. In shared pages the guest
//!   writes IN.
//!
//! # Map
//!
//! | Concern | Modules |
//! | --- | --- |
//! | The call itself | [`hypercall`], [`errno`], [`multicall`], [`domid`] |
//! | Boot | [`elfnote`], [`features`], [`start_info`], [`hvm_start`], [`version`], [`cpuid`] |
//! | Memory | [`addr`], [`pte`], [`mmu`], [`memory`], [`grant`], [`vm_assist`] |
//! | Traps and segments | [`trap`], [`callback`], [`segment`], [`debugreg`], [`nmi`] |
//! | vCPUs and time | [`vcpu`], [`context`], [`sched`], [`shared_info`] |
//! | Events | [`event`], [`virq`], [`shared_info`] |
//! | Services over rings | [`console`], [`xenstore`] |
//! | Devices, by Paravane's one extension | [`virtio`] |
//! | Hardware, mostly numbers | [`physdev`], [`platform`], [`pmu`] |
//!
//! The sources named in the modules are Xen's public headers, which Debian's `libxen-dev` installs under
//! `/usr/include/xen` (`public/xen.h` is `/usr/include/xen/xen.h`), and Intel's Software Developer's Manual (SDM).
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
mod layout;

pub mod addr;
pub mod callback;
pub mod console;
pub mod context;
pub mod cpuid;
pub mod debugreg;
pub mod domid;
pub mod elfnote;
pub mod errno;
pub mod event;
pub mod features;
pub mod grant;
pub mod hvm_start;
pub mod hypercall;
pub mod memory;
pub mod mmu;
pub mod multicall;
pub mod nmi;
pub mod physdev;
pub mod platform;
pub mod pmu;
pub mod pte;
pub mod sched;
pub mod segment;
pub mod shared_info;
pub mod start_info;
pub mod trap;
pub mod vcpu;
pub mod version;
pub mod virq;
pub mod virtio;
pub mod vm_assist;
pub mod xenstore;

pub use domid::DomId;
pub use errno::Errno;
