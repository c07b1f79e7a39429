//! Domain identifiers, and the reserved ones that do not name a domain.
//!
//! Source: public/xen.h.

/// A domain identifier: 16 bits, of which the top one is always clear.
pub type DomId = u16;

/// Ordinary domains have identifiers below this one.
pub const DOMID_FIRST_RESERVED: DomId = 0x7ff0;
/// The calling domain itself.
pub const DOMID_SELF: DomId = 0x7ff0;
/// Owner of device memory, as a foreign domain of page-table updates.
pub const DOMID_IO: DomId = 0x7ff1;
/// The hypervisor's own memory, as a foreign domain of page-table updates; for privileged domains.
pub const DOMID_XEN: DomId = 0x7ff2;
/// Owner of pages shared copy-on-write.
pub const DOMID_COW: DomId = 0x7ff3;
/// The owner of a page is unknown, or no domain is meant.
pub const DOMID_INVALID: DomId = 0x7ff4;
/// The idle domain.
pub const DOMID_IDLE: DomId = 0x7fff;
/// The bits that an identifier may use.
pub const DOMID_MASK: DomId = 0x7fff;
