//! Tests of the whole kernel, each in a guest of its own.
#![no_std]
#![no_main]

use my_kernel::timer;
use paravane_guest::{Boot, time};

paravane_guest::test_main!();

paravane_guest::tests! {
    fn memory_is_free_after_the_start(boot: Boot) {
        let kernel = my_kernel::start(&boot);
        assert!(kernel.free.frames() > boot.memory().frames() / 2);
    }

    fn sleep_takes_its_time(boot: Boot) {
        my_kernel::start(&boot);
        let before = time::now();
        timer::sleep(20_000_000);
        assert!(time::now() - before >= 20_000_000);
    }

    #[should_panic]
    fn code_cannot_be_written(boot: Boot) {
        my_kernel::start(&boot);
        let code = my_kernel::start as *const () as *mut u8;
        // SAFETY: it is not: the page is read-only.
        unsafe { code.write_volatile(0xcc) };
    }

    #[should_panic]
    fn a_null_pointer_is_a_fault(boot: Boot) {
        my_kernel::start(&boot);
        // SAFETY: it is not: nothing is mapped there, and the handler of page faults panics.
        unsafe { core::ptr::null::<u8>().read_volatile() };
    }
}
