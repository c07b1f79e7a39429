//! Tests of the kernel's first steps, each in a guest of its own.
#![no_std]
#![no_main]

use paravane_guest::Boot;

paravane_guest::test_main!();

paravane_guest::tests! {
    fn there_is_memory(boot: Boot) {
        assert!(boot.memory().frames() > 0);
    }

    fn some_of_it_is_free(boot: Boot) {
        assert!(boot.free_frames().iter().any(|range| !range.is_empty()));
    }
}
