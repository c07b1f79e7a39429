//! The kernel on bare x86-64.
#![cfg_attr(guest, no_std, no_main)]

#[cfg(guest)]
mod step {
    use paravane_port::machine::Machine;
    use paravane_port::{bare, kernel};

    struct Bare;

    // ANCHOR: machine
    impl Machine for Bare {
        fn write(text: &str) {
            bare::serial::write(text);
        }

        fn handle_page_faults(handler: fn(u64)) {
            bare::exceptions::handle_page_faults(handler);
        }

        fn map(page: u64) {
            bare::paging::map(page);
        }

        fn start_ticks(tick: fn()) {
            bare::timer::start(tick);
        }

        fn stop_ticks() {
            bare::timer::stop();
        }

        fn without_interrupts<R>(f: impl FnOnce() -> R) -> R {
            bare::cpu::without_interrupts(f)
        }

        fn wait_until(done: impl FnMut() -> bool) {
            bare::cpu::wait_until(done)
        }

        fn power_off() -> ! {
            bare::cpu::power_off()
        }
    }
    // ANCHOR_END: machine

    /// The start.
    pub fn main(cmdline: &str) -> ! {
        kernel::main::<Bare>(cmdline)
    }
}

#[cfg(guest)]
paravane_port::bare_entry!(step::main);

#[cfg(not(guest))]
fn main() {
    println!("a kernel for a bare PC: the system tests boot it");
}
