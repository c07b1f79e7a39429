//! Tests that run inside guests: each in a guest of its own, with the results of an ordinary `cargo test`.
//!
//! A test program is a kernel that begins with [`test_main!`](crate::test_main) and holds any number of tests, declared
//! by [`tests!`](crate::tests) in any of its modules:
//!
//! ```
//! # #[cfg(guest)]
//! paravane_guest::test_main!();
//!
//! paravane_guest::tests! {
//!     fn there_is_memory(boot: Boot) {
//!         assert!(boot.memory().frames() > 0);
//!     }
//!
//!     #[should_panic]
//!     fn frames_end_somewhere(boot: Boot) {
//!         boot.memory().mfn(Pfn(u64::MAX)).unwrap();
//!     }
//! }
//! # use paravane_guest::{Boot, memory::Pfn};
//! # fn main() {}
//! ```
//!
//! Its target in `Cargo.toml` has `harness = false`, because Rust's own harness needs an operating system. `paravane
//! runner`, the runner in `.cargo/config.toml`, reads the list of tests in the image and boots a guest for each, with
//! `test=NAME` as its command line. A test passes when it returns or powers off, and fails when it panics, breaks a
//! rule of the hypervisor, or takes too long.

use core::{fmt, slice};

use crate::{Boot, power, println};

/// The test is expected to panic.
pub const SHOULD_PANIC: u64 = 1;
/// The test runs only when asked for.
pub const IGNORED: u64 = 2;

/// A test, as it lies in an image's section `.paravane.tests`, where the host reads it.
#[repr(C)]
pub struct Test {
    name: *const u8,
    name_len: usize,
    run: fn(Boot),
    flags: u64,
}

// SAFETY: immutable, and its pointer is to a string in the image.
unsafe impl Sync for Test {}

impl fmt::Debug for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Test").field("name", &self.name()).field("flags", &self.flags).finish_non_exhaustive()
    }
}

impl Test {
    /// For [`tests!`](crate::tests): a test with the attributes of its function, as text.
    pub const fn new(name: &'static str, run: fn(Boot), attributes: &[&str]) -> Self {
        let mut flags = 0;
        let mut i = 0;
        while i < attributes.len() {
            let text = attributes[i].as_bytes();
            if begins_with(text, b"should_panic") {
                flags |= SHOULD_PANIC;
            } else if begins_with(text, b"ignore") {
                flags |= IGNORED;
            }
            i += 1;
        }
        Self { name: name.as_ptr(), name_len: name.len(), run, flags }
    }

    /// Its path within its crate: a test program is a crate, so the crate's own name says nothing.
    fn name(&self) -> &'static str {
        // SAFETY: the parts of the `&'static str` that `new` got.
        let name = unsafe { core::str::from_utf8_unchecked(slice::from_raw_parts(self.name, self.name_len)) };
        name.split_once("::").map_or(name, |(_, path)| path)
    }
}

const fn begins_with(text: &[u8], word: &[u8]) -> bool {
    let mut i = 0;
    while i < word.len() {
        if i >= text.len() || text[i] != word[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// Runs the test that the command line names: what [`test_main!`](crate::test_main) makes the entry point.
pub fn main(boot: Boot) -> ! {
    let tests = all();
    match boot.cmdline().get("test") {
        None => {
            println!("{} tests: `paravane runner IMAGE` runs each in a guest of its own;", tests.len());
            println!("a command line of `test=NAME` runs one of them:");
            tests.iter().for_each(|test| println!("  {}", test.name()));
            power::crash()
        }
        Some(name) => match tests.iter().find(|test| test.name() == name) {
            None => panic!("there is no test {name:?} in this image"),
            Some(test) => {
                (test.run)(boot);
                power::power_off()
            }
        },
    }
}

/// The tests of this image.
#[cfg(guest)]
fn all() -> &'static [Test] {
    // SAFETY: symbols of the link script around the section that `tests!` fills with values of this type only.
    unsafe {
        unsafe extern "C" {
            static __paravane_tests_start: u8;
            static __paravane_tests_end: u8;
        }
        let start = (&raw const __paravane_tests_start).cast::<Test>();
        let bytes = (&raw const __paravane_tests_end).addr() - start.addr();
        slice::from_raw_parts(start, bytes / size_of::<Test>())
    }
}

/// Only images have a list.
#[cfg(not(guest))]
fn all() -> &'static [Test] {
    &[]
}

/// Makes a program a test image: an entry point that runs the test that the host names, and a panic handler.
#[macro_export]
macro_rules! test_main {
    () => {
        $crate::entry!($crate::test::main);
        $crate::panic_handler!();
    };
}

/// Declares tests: functions that take a [`Boot`]. `#[should_panic]` and `#[ignore]` mean what they mean
/// in Rust's own tests. See [`test`](mod@crate::test).
#[macro_export]
macro_rules! tests {
    ($($(#[$attribute:meta])* fn $name:ident($boot:tt: $of:ty $(,)?) $body:block)*) => {
        $(
            const _: () = {
                #[used]
                #[unsafe(link_section = ".paravane.tests")]
                static TEST: $crate::test::Test = $crate::test::Test::new(
                    ::core::concat!(::core::module_path!(), "::", ::core::stringify!($name)),
                    $name,
                    &[$(::core::stringify!($attribute)),*],
                );
            };

            #[allow(unused_attributes)]
            $(#[$attribute])*
            fn $name($boot: $of) $body
        )*
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::tests! {
        /// Text that mentions should_panic.
        fn plain(_: Boot) {}

        #[should_panic]
        fn panics(_: Boot) {}
    }

    #[test]
    fn attributes_become_flags() {
        let flags = |attributes: &[&str]| Test::new("t", plain, attributes).flags;
        assert_eq!(flags(&[]), 0);
        assert_eq!(flags(&["doc = \"should_panic\""]), 0);
        assert_eq!(flags(&["should_panic(expected = \"x\")"]), SHOULD_PANIC);
        assert_eq!(flags(&["ignore", "should_panic"]), SHOULD_PANIC | IGNORED);
        assert_eq!(Test::new("a::b::c", panics, &[]).name(), "b::c");
    }
}
