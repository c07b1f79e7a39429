//! The reference guest's image: links the kernel, whose machine layer has the entry point.
#![cfg_attr(guest, no_std, no_main)]

#[cfg(all(guest, machine = "bare"))]
use guest_kernel as _;

#[cfg(all(guest, machine = "pv"))]
paravane_guest::entry!(guest_kernel::machine::pv::main);

#[cfg(not(guest))]
fn main() {
    println!("a kernel for Paravane: boot it with `paravane run`");
}
