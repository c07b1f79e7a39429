//! The image that executes the sensitive instructions that need not trap: see `guest_kernel::fidelity`.
#![cfg_attr(all(guest, machine = "bare"), no_std, no_main)]

#[cfg(all(guest, machine = "bare"))]
guest_kernel::entry!(guest_kernel::fidelity::start);

#[cfg(not(all(guest, machine = "bare")))]
fn main() {
    println!("a kernel for a bare PC: boot it with `paravane compare --fidelity`");
}
