//! The hypercall ABI of Paravane: the numbers, layouts, flags and error codes of Xen's public x86-64 PV interface.
//!
//! Hypervisor and guest SDK are built from this one description, and a test compiles a C program against Xen's public
//! headers and compares every number in it (`tests/conformance/`). What a call means is in `docs/abi.md`; here is what it
//! looks like.
//!
//! # Principles
//!
//! * **No behaviour.** Constants, structures, and `const` helpers that take a number apart. Nothing here can fail, allocate
//!   or be tested in more than one way.
//! * **Nothing of our own**, except [`hypercall::PARAVANE_VIRTIO_OP`], the one call that Xen's PV interface has no place for, and its [`virtio`].
//! * **Names are the header's**, in Rust's case: `XENMEM_populate_physmap` is [`memory::XENMEM_POPULATE_PHYSMAP`],
//!   `struct sched_poll` is [`sched::SchedPoll`]. Hypercall numbers lose their prefix: `__HYPERVISOR_iret` is
//!   [`hypercall::IRET`]. A field called `type` is `kind`, one called `in` is `in_`.
//! * **Types are the wire's.** Hypercall numbers are `u64`, as `rax` holds them; sub-operations `u32`; flags have the type of
//!   the field that they go into. A guest handle is a `u64`: a virtual address of the guest, to be checked by whoever
//!   follows it. A C union is as many raw fields as its largest member needs; the documentation says when they mean what.
//! * **No byte without a name.** Padding is a field, so that every structure is [`zerocopy::FromBytes`] and
//!   [`zerocopy::IntoBytes`]: it comes out of guest memory and goes into it as bytes, without `unsafe`.
//! * **Layouts are proved when this crate compiles**: size and offsets stand in numbers beside each structure.
//! * **IN** is what the caller writes, **OUT** what the hypervisor writes. In pages that both share, IN is the guest's.
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
//! | Devices, by our one extension | [`virtio`] |
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
