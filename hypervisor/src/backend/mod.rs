//! What stands behind the guest's devices on the host: images of disks, networks, terminals, sockets.
//!
//! What may not be done here: knowing a driver, a queue or a device.

pub mod console;
pub mod disk;
pub mod net;
pub mod unix;
pub mod vsock;
