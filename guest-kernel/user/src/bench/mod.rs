//! lmbench's latencies and bandwidths, by its names and definitions (McVoy and Staelin, 1996), and a storm of
//! processes.
//!
//! Each does something a number of times, which its last argument says, so that runs can be counted and compared. If
//! nothing is said, it does it until that takes long enough. One line has the result:
//! `bench: name=NAME ops=COUNT ok=true unit=WHAT ns=ALL each=ONE`. What is done for the first time, such as the
//! loading of pages, is done once before, uncounted. Between marks, which the reference kernel passes on to whoever
//! looks at its machine from outside, is nothing else than what is counted.

mod calls;
mod memory;
mod processes;
mod storm;

pub use calls::{signal, syscall};
pub use memory::{memory, mmap, page_fault};
pub use processes::{context, pipe, pipe_bandwidth, process, unix};
pub use storm::{assemble, compile, storm};

use crate::{eprintln, println, sys};

/// How long a batch must take to count, in nanoseconds.
const ENOUGH: u64 = 50_000_000;
/// The codes of the marks.
const BEGIN: u8 = 1;
const END: u8 = 2;

/// What is measured.
#[derive(Clone, Copy)]
struct Benchmark {
    name: &'static str,
    /// Which of several kinds; empty if there is one.
    kind: &'static str,
    /// What one operation is.
    unit: &'static str,
    /// How many operations; 0 for as many as take long enough.
    count: u64,
}

/// What a batch took.
struct Took {
    ns: u64,
    right: bool,
}

/// The file that takes marks; the reference kernel alone has one.
struct Marks(Option<u64>);

impl Marks {
    fn open() -> Self {
        Self(sys::open_to_write("/dev/mark").ok())
    }

    fn tell(&self, code: u8) {
        if let Some(file) = self.0 {
            let _ = sys::write(file, &[code]);
        }
    }

    /// Calls `f` between marks.
    fn around(&self, f: impl FnOnce() -> bool) -> Took {
        let before = sys::now();
        self.tell(BEGIN);
        let right = f();
        self.tell(END);
        Took { ns: sys::now() - before, right }
    }
}

impl Benchmark {
    /// Measures `f`, which does something that many times, prints the result, and returns the program's exit code.
    fn measure(self, f: impl FnMut(u64) -> bool) -> u64 {
        self.measure_with(f, |_, _| ())
    }

    /// The same; `more` prints further figures, which it is given the number of operations and their nanoseconds for.
    fn measure_with(self, mut f: impl FnMut(u64) -> bool, more: impl FnOnce(u64, u64)) -> u64 {
        let marks = Marks::open();
        if !f(1) {
            return self.failed();
        }
        let mut count = self.count.max(1);
        loop {
            let Took { ns, right } = marks.around(|| f(count));
            if !right {
                return self.failed();
            }
            if self.count > 0 || ns >= ENOUGH {
                self.print(count, ns);
                more(count, ns);
                println!("");
                return 0;
            }
            count *= 2;
        }
    }

    /// Prints the name and what comes after it, without the line's end.
    fn print(&self, count: u64, ns: u64) {
        let (each, part) = (ns / count, ns % count * 1000 / count);
        self.begin();
        crate::print!(" ops={count} ok=true unit={} ns={ns} each={each}.{part:03}", self.unit);
    }

    fn begin(&self) {
        let Self { name, kind, .. } = self;
        crate::print!("bench: name={name}{}{kind}", if kind.is_empty() { "" } else { "-" });
    }

    /// Says that it failed.
    fn failed(&self) -> u64 {
        self.begin();
        println!(" ops=0 ok=false why=wrong-result");
        1
    }
}

/// Calls `f` that many times, until it is false.
fn each(mut f: impl FnMut() -> bool) -> impl FnMut(u64) -> bool {
    move |count| (0..count).all(|_| f())
}

fn usage(text: &str) -> u64 {
    eprintln!("usage: {text}");
    2
}

#[inline]
fn ended_well(child: u64) -> bool {
    sys::wait(child, 0) == Ok((child, 0))
}
