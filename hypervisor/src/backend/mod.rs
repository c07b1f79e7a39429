//! Back ends: the host's side of a guest's devices. Disk images, networks, terminals, sockets.
//!
//! Each kind has one interface for all kinds of front: [`net::backend::Backend`], [`console::backend::Backend`],
//! [`disk::Disk`]. A front is a virtio device today; it could be one end of a Xen ring.
//!
//! Threads: back ends are opened by the main thread and then used by the device's thread. Disks and passt have
//! threads of their own besides. Only a console's `write` may also be called on a vCPU's thread, for an emergency
//! write. Nothing here is async-signal-safe.
//!
//! What may not be done here: naming a front, a queue or a transport; waiting for the guest.

pub mod console;
pub mod disk;
pub mod net;
pub mod unix;
pub mod vsock;
