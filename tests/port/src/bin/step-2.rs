//! Step 2: exceptions and page tables are the SDK's as well.
#![cfg_attr(guest, no_std, no_main)]

#[cfg(guest)]
mod step {
    use paravane_guest::{Boot, power};
    use paravane_port::machine::Machine;
    use paravane_port::{bare, kernel, pv};

    struct Step;

    // ANCHOR: machine
    impl Machine for Step {
        fn write(text: &str) {
            paravane_guest::print!("{text}");
        }

        fn handle_page_faults(handler: fn(u64)) {
            pv::exceptions::handle_page_faults(handler);
        }

        fn map(page: u64) {
            pv::paging::map(page);
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
            power::power_off()
        }
    }
    // ANCHOR_END: machine

    // ANCHOR: main
    /// The start.
    pub fn main(boot: Boot) -> ! {
        pv::paging::init(&boot);
        kernel::main::<Step>(boot.cmdline().text())
    }
    // ANCHOR_END: main
}

#[cfg(guest)]
paravane_guest::entry!(step::main);
#[cfg(guest)]
paravane_guest::panic_handler!();

#[cfg(not(guest))]
fn main() {
    println!("a kernel for Paravane: the system tests boot it");
}
