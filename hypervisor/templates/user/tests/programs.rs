//! Tests of programs, each in a guest of its own.
#![no_std]
#![no_main]

use my_kernel::{End, Kernel};
use paravane_guest::Boot;

paravane_guest::test_main!();

paravane_guest::tests! {
    fn a_program_runs_and_ends(boot: Boot) {
        let mut kernel = my_kernel::start(&boot);
        assert_eq!(kernel.run("hello", 7), Ok(End::Exit(7)));
    }

    fn a_program_cannot_read_its_kernel(boot: Boot) {
        let mut kernel = my_kernel::start(&boot);
        let on_the_stack = (&raw const kernel).addr() as u64;
        let its_root = boot.memory().va(boot.root());
        for address in [Kernel::run as *const () as u64, on_the_stack, its_root] {
            match kernel.run("spy", address) {
                Ok(End::Fault { vector: 14, address: wanted, .. }) => assert_eq!(wanted, address),
                other => panic!("the program at {address:#x}: {other:?}"),
            }
        }
    }

    fn a_program_that_does_not_end_is_ended(boot: Boot) {
        let mut kernel = my_kernel::start(&boot);
        assert_eq!(kernel.run("endless", 0), Ok(End::TimedOut));
    }

    fn a_programs_memory_comes_back(boot: Boot) {
        let mut kernel = my_kernel::start(&boot);
        let before = kernel.free.frames();
        for _ in 0..3 {
            assert_eq!(kernel.run("hello", 0), Ok(End::Exit(0)));
            assert_eq!(kernel.free.frames(), before);
        }
    }
}
