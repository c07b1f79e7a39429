//! Tests with devices, each in a guest of its own: `.cargo/config.toml` says which devices a guest has.
#![no_std]
#![no_main]

use paravane_guest::Boot;

paravane_guest::test_main!();

paravane_guest::tests! {
    fn random_bytes_differ(boot: Boot) {
        my_kernel::start(&boot);
        let (mut first, mut second) = ([0; 32], [0; 32]);
        assert!(my_kernel::random(&boot, &mut first).is_some());
        assert!(my_kernel::random(&boot, &mut second).is_some());
        assert_ne!(first, second);
    }

    fn a_missing_disk_is_no_error(boot: Boot) {
        my_kernel::start(&boot);
        assert_eq!(my_kernel::first_sector(&boot), None);
    }
}
