//! The reference guest's image: connects the machine layer's entry point to the kernel's start.
#![cfg_attr(guest, no_std, no_main)]

#[cfg(guest)]
guest_kernel::entry!(guest_kernel::boot::start);

#[cfg(not(guest))]
fn main() {
    println!("a kernel for Paravane: boot it with `paravane run`");
}
