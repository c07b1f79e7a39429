//! Checks, and the line that each prints: `test: name=GROUP/NAME ok=true|false got=... want=...`.

use core::fmt::Debug;

use paravane_guest::abi::Errno;
use paravane_guest::println;

/// Counts checks.
pub struct Suite {
    group: &'static str,
    run: u32,
    failed: u32,
}

impl Suite {
    /// No check yet.
    pub const fn new() -> Self {
        Self { group: "", run: 0, failed: 0 }
    }

    /// Names the checks that follow.
    pub fn group(&mut self, group: &'static str) {
        self.group = group;
    }

    /// What is, against what should be.
    pub fn equal<T: Debug + PartialEq>(&mut self, name: &str, got: T, want: T) {
        let ok = got == want;
        self.count(ok);
        println!("test: name={}/{name} ok={ok} got={got:?} want={want:?}", self.group);
    }

    /// A call that must fail, with whatever error: the ABI does not say which.
    pub fn refused<T: Debug>(&mut self, name: &str, got: Result<T, Errno>) {
        let ok = got.is_err();
        self.count(ok);
        println!("test: name={}/{name} ok={ok} got={got:?} want=Err(any)", self.group);
    }

    /// Something that must be so.
    pub fn holds(&mut self, name: &str, got: bool) {
        self.equal(name, got, true);
    }

    /// The last line; true when all checks passed.
    pub fn finish(&self, name: &str) -> bool {
        let ok = self.failed == 0;
        println!("test: name={name} ok={ok} run={} failed={}", self.run, self.failed);
        ok
    }

    fn count(&mut self, ok: bool) {
        self.run += 1;
        self.failed += u32::from(!ok);
    }
}
