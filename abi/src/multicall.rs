//! Several hypercalls in one transition.
//!
//! `multicall(entries, count)`: each entry is made in order, its result stored in it. Source: public/xen.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Arguments that an entry has room for.
pub const MULTICALL_ARGS: usize = 6;

/// One call of the list.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MulticallEntry {
    /// IN: hypercall number.
    pub op: u64,
    /// OUT: the value that the call by itself would have left in `rax`.
    pub result: u64,
    /// IN: arguments in order; the hypervisor may overwrite them.
    pub args: [u64; MULTICALL_ARGS],
}

layout!(MulticallEntry: 64 { op @ 0, result @ 8, args @ 16 });
