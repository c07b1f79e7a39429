//! See `snapshot` in the library.
#![cfg_attr(guest, no_std, no_main)]

#[cfg(guest)]
paravane_guest::entry!(paravane_test_guests::snapshot::main);
#[cfg(guest)]
paravane_guest::panic_handler!();

#[cfg(not(guest))]
fn main() {
    println!("a kernel for Paravane: the system tests boot it");
}
