//! Checks. Each prints a line `test: name=GROUP/NAME ok=true|false got=... want=...`.

use core::fmt::Debug;

use paravane_guest::abi::Errno;
use paravane_guest::println;

/// Runs checks and counts them.
pub struct Suite {
    group: &'static str,
    run: u32,
    failed: u32,
}

impl Suite {
    /// A suite without checks.
    pub const fn new() -> Self {
        Self { group: "", run: 0, failed: 0 }
    }

    /// Sets the group of the checks that follow.
    pub fn group(&mut self, group: &'static str) {
        self.group = group;
    }

    /// Checks that `got` equals `want`.
    pub fn equal<T: Debug + PartialEq>(&mut self, name: &str, got: T, want: T) {
        let ok = got == want;
        self.count(ok);
        println!("test: name={}/{name} ok={ok} got={got:?} want={want:?}", self.group);
    }

    /// Checks that a call failed. For calls whose error number the ABI leaves open.
    pub fn refused<T: Debug>(&mut self, name: &str, got: Result<T, Errno>) {
        let ok = got.is_err();
        self.count(ok);
        println!("test: name={}/{name} ok={ok} got={got:?} want=Err(any)", self.group);
    }

    /// Checks a condition.
    pub fn holds(&mut self, name: &str, got: bool) {
        self.equal(name, got, true);
    }

    /// Prints the last line, with the counts; true if all checks passed.
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
