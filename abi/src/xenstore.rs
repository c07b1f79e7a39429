//! The xenstore: a tree of small values shared by all domains, accessed over a ring.
//!
//! A message is an [`XsdSockmsg`] and `len` bytes after it, mostly zero-terminated strings. A reply has the request's
//! `req_id`; a watch event has `req_id` 0. Source: public/io/xs_wire.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Debugging and control of the daemon.
pub const XS_CONTROL: u32 = 0;
/// List a node's children.
pub const XS_DIRECTORY: u32 = 1;
/// Read a node's value.
pub const XS_READ: u32 = 2;
/// Read a node's permissions.
pub const XS_GET_PERMS: u32 = 3;
/// Watch a node: report changes of it and below it.
pub const XS_WATCH: u32 = 4;
/// Remove a watch.
pub const XS_UNWATCH: u32 = 5;
/// Begin a transaction.
pub const XS_TRANSACTION_START: u32 = 6;
/// End a transaction: `T` to commit, `F` to abandon.
pub const XS_TRANSACTION_END: u32 = 7;
/// Introduce a new domain to the daemon; for privileged domains.
pub const XS_INTRODUCE: u32 = 8;
/// Report that a domain has ended; for privileged domains.
pub const XS_RELEASE: u32 = 9;
/// Ask for a domain's path.
pub const XS_GET_DOMAIN_PATH: u32 = 10;
/// Write a node's value.
pub const XS_WRITE: u32 = 11;
/// Make a node without a value.
pub const XS_MKDIR: u32 = 12;
/// Remove a node and all below it.
pub const XS_RM: u32 = 13;
/// Write a node's permissions.
pub const XS_SET_PERMS: u32 = 14;
/// From the daemon: a watch fired.
pub const XS_WATCH_EVENT: u32 = 15;
/// From the daemon: the request failed; the payload names the error.
pub const XS_ERROR: u32 = 16;
/// Ask whether a domain was introduced.
pub const XS_IS_DOMAIN_INTRODUCED: u32 = 17;
/// Report that a domain has resumed; for privileged domains.
pub const XS_RESUME: u32 = 18;
/// Give a domain rights over another; for privileged domains.
pub const XS_SET_TARGET: u32 = 19;
/// Drop all watches and transactions of the caller.
pub const XS_RESET_WATCHES: u32 = 21;
/// List a node's children, a part at a time.
pub const XS_DIRECTORY_PART: u32 = 22;
/// Not a valid type.
pub const XS_INVALID: u32 = 0xffff;

/// Head of a message.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XsdSockmsg {
    /// `XS_*`.
    pub kind: u32,
    /// Chosen by the guest, returned in the reply.
    pub req_id: u32,
    /// Transaction, 0 for none.
    pub tx_id: u32,
    /// Bytes that follow, at most [`XENSTORE_PAYLOAD_MAX`].
    pub len: u32,
}

layout!(XsdSockmsg: 16 { kind @ 0, req_id @ 4, tx_id @ 8, len @ 12 });

/// In the payload of a watch event: which string is the path.
pub const XS_WATCH_PATH: usize = 0;
/// In the payload of a watch event: which string is the token.
pub const XS_WATCH_TOKEN: usize = 1;

/// Bytes in each direction's ring.
pub const XENSTORE_RING_SIZE: usize = 1024;
/// The longest payload; a longer one breaks the connection.
pub const XENSTORE_PAYLOAD_MAX: usize = 4096;
/// The longest absolute path.
pub const XENSTORE_ABS_PATH_MAX: usize = 3072;
/// The longest relative path.
pub const XENSTORE_REL_PATH_MAX: usize = 2048;

/// In `server_features`: a lost connection can be set up again.
pub const XENSTORE_SERVER_FEATURE_RECONNECTION: u32 = 1;
/// In `server_features`: `error` is used.
pub const XENSTORE_SERVER_FEATURE_ERROR: u32 = 2;
/// In `connection`: in use.
pub const XENSTORE_CONNECTED: u32 = 0;
/// In `connection`: the guest asks to set it up again.
pub const XENSTORE_RECONNECT: u32 = 1;
/// In `error`: none.
pub const XENSTORE_ERROR_NONE: u32 = 0;
/// In `error`: the connection failed.
pub const XENSTORE_ERROR_COMM: u32 = 1;
/// In `error`: an index lies outside the ring.
pub const XENSTORE_ERROR_RINGIDX: u32 = 2;
/// In `error`: a message broke the protocol.
pub const XENSTORE_ERROR_PROTO: u32 = 3;

/// The ring page: frame and event channel are in the start info. Indices are free-running and wrap at 2^32.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, Debug, PartialEq, Eq)]
pub struct XenstoreDomainInterface {
    /// IN: bytes of requests.
    pub req: [u8; XENSTORE_RING_SIZE],
    /// OUT: bytes of replies and watch events.
    pub rsp: [u8; XENSTORE_RING_SIZE],
    /// OUT: how many bytes of requests the daemon has taken.
    pub req_cons: u32,
    /// IN: how many bytes of requests the guest has put in.
    pub req_prod: u32,
    /// IN: how many bytes of replies the guest has taken.
    pub rsp_cons: u32,
    /// OUT: how many bytes of replies the daemon has put in.
    pub rsp_prod: u32,
    /// OUT: `XENSTORE_SERVER_FEATURE_*`.
    pub server_features: u32,
    /// IN/OUT: [`XENSTORE_CONNECTED`] or [`XENSTORE_RECONNECT`].
    pub connection: u32,
    /// OUT: `XENSTORE_ERROR_*`.
    pub error: u32,
}

layout!(XenstoreDomainInterface: 2076 {
    req @ 0, rsp @ 1024, req_cons @ 2048, req_prod @ 2052, rsp_cons @ 2056, rsp_prod @ 2060, server_features @ 2064,
    connection @ 2068, error @ 2072,
});
default_is_zeroed!(XenstoreDomainInterface);
