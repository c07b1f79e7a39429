//! All programs in one file.
#![cfg_attr(guest, no_std, no_main)]

#[cfg(guest)]
use paravane_user as _;

#[cfg(not(guest))]
fn main() {
    println!("programs for the reference kernel: `paravane run --initrd FILE` with what its build made");
}
