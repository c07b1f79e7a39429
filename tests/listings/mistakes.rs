//! Tests that fail: `cargo xtask listings` looks at how they are reported.
#![no_std]
#![no_main]

use paravane_guest::Boot;

paravane_guest::test_main!();

paravane_guest::tests! {
    fn hangs(_: Boot) {
        loop {
            core::hint::spin_loop();
        }
    }

    fn panics(boot: Boot) {
        assert_eq!(boot.memory().frames(), 0, "there is memory after all");
    }

    fn passes(_: Boot) {}

    #[should_panic]
    fn returns(_: Boot) {}

    #[ignore]
    fn waits(_: Boot) {}
}
