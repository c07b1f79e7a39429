//! A kernel written as if it had the machine, and what it is told.
//!
//! It executes every sensitive instruction that does not trap, or need not trap, outside of ring 0: the "seventeen" of
//! Robin and Irvine (USENIX Security 2000), as far as 64-bit code has them, IRETQ within a ring, and CPUID. For each
//! it prints what a machine answers and what came:
//!
//! ```text
//! fidelity popf: machine=interrupts-off here=interrupts-on wrong
//! ```
//!
//! The last word is `right`; `wrong`, which a kernel would not have noticed; or `trapped`, after a fault that a machine
//! does not raise. Values have no blanks; a line about several forms of an instruction has a value for each, and the
//! worst verdict. A line `fidelity popf: begin` comes before each, so that an instruction that ends the domain is
//! known; `skip=NAME,NAME` on the command line leaves such ones out. The last line is `fidelity: done`. The rest of the
//! reference kernel avoids all of these instructions, so that it can be run by trap-and-emulate; this image shows why
//! it must. `docs/seventeen.md` explains each.

use core::fmt;

use crate::machine::bare::BareMmu;
use crate::machine::{Boot, Current, Machine, Shutdown};
use crate::{cmdline, exception, println};

mod flags;
mod guard;
mod identify;
mod segments;
mod tables;
mod transfers;

/// What an instruction did.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It gave this value.
    Value(u64),
    /// It had this effect.
    Effect(&'static str),
    /// It raised this exception.
    Fault(u64),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => write!(f, "{value:#x}"),
            Self::Effect(effect) => f.write_str(effect),
            Self::Fault(guard::GENERAL_PROTECTION) => f.write_str("#GP"),
            Self::Fault(guard::PAGE_FAULT) => f.write_str("#PF"),
            Self::Fault(vector) => write!(f, "#{vector}"),
        }
    }
}

/// A form of an instruction: what a machine answers, and what came.
type Form = fn() -> (Answer, Answer);

/// All instructions by name, each in one or more forms.
const ALL: [(&str, &[Form]); 17] = [
    ("popf", &[flags::popf]),
    ("pushf", &[flags::pushf]),
    ("sgdt", &[tables::sgdt]),
    ("sidt", &[tables::sidt]),
    ("sldt", &[tables::sldt]),
    ("str", &[tables::task]),
    ("smsw", &[tables::smsw]),
    ("lar", &[segments::lar]),
    ("lsl", &[segments::lsl]),
    ("verr", &[segments::verr]),
    ("verw", &[segments::verw]),
    ("mov-segment", &[segments::mov_cs, segments::mov_ss]),
    ("push-segment", &[segments::push_fs]),
    ("pop-segment", &[segments::pop_fs]),
    ("far-transfer", &[transfers::far_call, transfers::far_jmp, transfers::far_ret]),
    ("iretq", &[transfers::iretq]),
    ("cpuid", &[identify::cpuid]),
];

/// The most forms of one.
const FORMS: usize = 3;

/// Answers, separated by commas.
struct Answers<'a>(&'a [Answer]);

impl fmt::Display for Answers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(number, answer)| {
            let separator = if number == 0 { "" } else { "," };
            write!(f, "{separator}{answer}")
        })
    }
}

/// Tries all forms of an instruction and prints its line.
fn report(name: &str, forms: &[Form]) {
    println!("fidelity {name}: begin");
    let (mut machine, mut here) = ([Answer::Value(0); FORMS], [Answer::Value(0); FORMS]);
    for (form, (machine, here)) in forms.iter().zip(machine.iter_mut().zip(&mut here)) {
        (*machine, *here) = form();
    }
    let (machine, here) = (&machine[..forms.len()], &here[..forms.len()]);
    let mut differing = here.iter().zip(machine).filter(|(here, machine)| here != machine);
    let verdict = match differing.clone().next() {
        None => "right",
        Some(_) if differing.all(|(here, _)| matches!(here, Answer::Fault(_))) => "trapped",
        Some(_) => "wrong",
    };
    println!("fidelity {name}: machine={} here={} {verdict}", Answers(machine), Answers(here));
}

/// Runs all of them and powers off.
///
/// # Safety
/// Called once, on a stack of at least 32 KiB, with interrupts off.
pub unsafe fn start(boot: Boot, _: BareMmu) -> ! {
    println!(
        "paravane fidelity {}: the machine's answers, and those that come here",
        env!("CARGO_PKG_VERSION")
    );
    Current::install_handlers(exception::handle);
    tables::load();
    guard::install();
    let skipped = cmdline::text(boot.cmdline, "skip").unwrap_or("");
    for (name, forms) in ALL {
        if !skipped.split(',').any(|skipped| skipped == name) {
            report(name, forms);
        }
    }
    println!("fidelity: done");
    Current::shutdown(Shutdown::PowerOff)
}
