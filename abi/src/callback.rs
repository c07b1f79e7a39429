//! Entry points other than traps: `callback_op(op, arg)`.
//!
//! Source: public/callback.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Register an entry point: [`CallbackRegister`].
pub const CALLBACKOP_REGISTER: u32 = 0;
/// Unregister an entry point: [`CallbackUnregister`].
pub const CALLBACKOP_UNREGISTER: u32 = 1;

/// Entered when events are pending and not masked. Always with events masked.
pub const CALLBACKTYPE_EVENT: u16 = 0;
/// Entered when the hypervisor cannot load the guest's segment registers.
pub const CALLBACKTYPE_FAILSAFE: u16 = 1;
/// Entered by SYSCALL from 64-bit user mode.
pub const CALLBACKTYPE_SYSCALL: u16 = 2;
/// Entered by SYSENTER, on former 32-bit hypervisors.
pub const CALLBACKTYPE_SYSENTER_DEPRECATED: u16 = 3;
/// Entered by an NMI. Always with events masked.
pub const CALLBACKTYPE_NMI: u16 = 4;
/// Entered by SYSENTER from 32-bit user mode.
pub const CALLBACKTYPE_SYSENTER: u16 = 5;
/// Entered by SYSCALL from 32-bit user mode.
pub const CALLBACKTYPE_SYSCALL32: u16 = 7;

/// In `flags`: mask events on entry.
pub const CALLBACKF_MASK_EVENTS: u16 = 1 << 0;

/// Argument of [`CALLBACKOP_REGISTER`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallbackRegister {
    /// IN: `CALLBACKTYPE_*`.
    pub kind: u16,
    /// IN: 0 or [`CALLBACKF_MASK_EVENTS`].
    pub flags: u16,
    /// Padding.
    pub _pad: u32,
    /// IN: virtual address of the entry point.
    pub address: u64,
}

layout!(CallbackRegister: 16 { kind @ 0, flags @ 2, address @ 8 });

/// Argument of [`CALLBACKOP_UNREGISTER`].
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallbackUnregister {
    /// IN: `CALLBACKTYPE_*`.
    pub kind: u16,
    /// Not used.
    pub _unused: u16,
}

layout!(CallbackUnregister: 4 { kind @ 0, _unused @ 2 });
