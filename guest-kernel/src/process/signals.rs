//! Signals: what is pending, what a process does about it, and the frame that a handler finds.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use paravane_guest::user::{Registers, UserContext};

use super::abi::{Errno, signal};

/// Numbers of signals are below this.
pub const SIGNALS: u8 = 65;
const SA_SIGINFO: u64 = 4;
const SA_RESTORER: u64 = 0x0400_0000;
const SA_RESTART: u64 = 0x1000_0000;
const SA_NODEFER: u64 = 0x4000_0000;
const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;
/// Signals that cannot be handled, ignored or blocked.
const UNSTOPPABLE: u64 = bit(signal::KILL) | bit(signal::STOP);

/// What a process does about a signal: the kernel's `struct sigaction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Action {
    /// The handler's address, or 0 for the default, or 1 to ignore it.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: u64,
    /// Signals that are blocked while it runs.
    pub mask: u64,
}

impl Action {
    /// Its size.
    pub const BYTES: usize = 32;

    /// From the bytes of the structure.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let [handler, flags, restorer, mask] = words(bytes);
        Self { handler, flags, restorer, mask }
    }

    /// The bytes of the structure.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let all = [self.handler, self.flags, self.restorer, self.mask];
        bytes.chunks_exact_mut(8).zip(all).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
        bytes
    }

    /// Whether a system call that it interrupts begins again.
    pub const fn restarts(&self) -> bool {
        self.flags & SA_RESTART != 0
    }
}

fn words<const BYTES: usize, const WORDS: usize>(bytes: &[u8; BYTES]) -> [u64; WORDS] {
    core::array::from_fn(|i| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
        u64::from_le_bytes(word)
    })
}

const fn bit(signal: u8) -> u64 {
    1 << (signal - 1)
}

/// What a pending signal leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The process ends.
    End(u8),
    /// A handler runs.
    Handle(u8, Action),
}

/// The signals of a process.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    pending: u64,
    /// Signals that wait until they are no longer blocked.
    pub blocked: u64,
    actions: Vec<(u8, Action)>,
}

impl Signals {
    /// The action of a signal.
    pub fn action(&self, number: u8) -> Action {
        self.actions.iter().find(|(of, _)| *of == number).map_or(Action::default(), |(_, action)| *action)
    }

    /// Sets the action of a signal.
    ///
    /// # Errors
    /// For signals that have none.
    pub fn set_action(&mut self, number: u8, action: Action) -> Result<(), Errno> {
        if !(1..SIGNALS).contains(&number) || UNSTOPPABLE & bit(number) != 0 {
            return Err(Errno::Inval);
        }
        self.actions.retain(|(of, _)| *of != number);
        self.actions.try_reserve(1).map_err(|_| Errno::NoMem)?;
        self.actions.push((number, action));
        self.drop_ignored();
        Ok(())
    }

    /// After `execve` there are no handlers.
    pub fn reset(&mut self) {
        self.actions.retain(|(_, action)| action.handler == SIG_IGN);
        self.drop_ignored();
    }

    /// A signal that waits, blocked, is no longer pending once it is ignored (POSIX's 2.4.3).
    fn drop_ignored(&mut self) {
        let ignored = (1..SIGNALS).filter(|number| self.is_ignored(*number)).map(bit);
        self.pending &= !ignored.fold(0, |all, one| all | one);
    }

    /// A child has its parent's actions, and no pending signals.
    pub fn for_child(&self) -> Self {
        Self { pending: 0, ..self.clone() }
    }

    /// Makes a signal pending, unless it is one that the process ignores.
    pub fn raise(&mut self, number: u8) {
        if (1..SIGNALS).contains(&number) && !self.is_ignored(number) {
            self.pending |= bit(number);
        }
    }

    fn is_ignored(&self, number: u8) -> bool {
        let by_default = matches!(number, signal::CHLD | signal::CONT | signal::URG | signal::WINCH);
        match self.action(number).handler {
            SIG_DFL => by_default,
            handler => handler == SIG_IGN,
        }
    }

    /// Sets which signals are blocked.
    pub fn block(&mut self, mask: u64) {
        self.blocked = mask & !UNSTOPPABLE;
    }

    /// The signal that is to be delivered next.
    fn next(&self) -> Option<u8> {
        let ready = self.pending & !self.blocked;
        (ready != 0).then(|| ready.trailing_zeros() as u8 + 1)
    }

    /// Whether one is to be delivered.
    pub fn is_ready(&self) -> bool {
        self.next().is_some()
    }

    /// Whether the system call that the next one interrupts begins again.
    pub fn restarts(&self) -> bool {
        self.next().is_none_or(|number| self.action(number).restarts())
    }

    /// Takes the next signal.
    pub fn take(&mut self) -> Option<Delivery> {
        let number = self.next()?;
        self.pending &= !bit(number);
        let action = self.action(number);
        Some(match action.handler {
            SIG_DFL | SIG_IGN => Delivery::End(number),
            _ => Delivery::Handle(number, action),
        })
    }

    /// An exception of the process: delivered at once, and the end if it is blocked, ignored or has no handler.
    pub fn force(&mut self, number: u8) -> Delivery {
        let action = self.action(number);
        let handled = !matches!(action.handler, SIG_DFL | SIG_IGN) && self.blocked & bit(number) == 0;
        if handled { Delivery::Handle(number, action) } else { Delivery::End(number) }
    }

    /// A handler begins: what is blocked from now on.
    pub fn enter(&mut self, number: u8, action: &Action) {
        let own = if action.flags & SA_NODEFER == 0 { bit(number) } else { 0 };
        self.block(self.blocked | action.mask | own);
    }
}

/// Bytes of the x87 and SSE state, as FXSAVE writes it.
const VECTORS: usize = 512;
/// Bytes of `struct rt_sigframe`: the return address, `struct ucontext`, `siginfo_t`.
const FRAME: usize = 8 + UCONTEXT + 128;
const UCONTEXT: usize = 40 + MCONTEXT + 8;
const MCONTEXT: usize = 256;
/// Offsets in the frame.
const REGISTERS: usize = 8 + 40;
const VECTORS_AT: usize = REGISTERS + 184;
const MASK: usize = 8 + 40 + MCONTEXT;
const INFO: usize = 8 + UCONTEXT;
/// A program may use that much below its stack pointer.
const RED_ZONE: u64 = 128;

/// What a handler finds on its stack.
#[derive(Debug)]
pub struct SignalFrame {
    /// Where the frame is.
    pub at: u64,
    /// Its bytes.
    pub bytes: [u8; FRAME],
    /// Where the vector registers are.
    pub vectors_at: u64,
    /// The vector registers.
    pub vectors: [u8; VECTORS],
}

/// Puts words into the bytes of a frame.
fn put(bytes: &mut [u8], at: usize, word: u64) {
    bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
}

/// The general registers in the order of `struct sigcontext`.
fn in_order(r: &Registers) -> [u64; 18] {
    [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax,
        r.rcx, r.rsp, r.rip, r.rflags,
    ]
}

/// Makes a process begin its handler; returns what has to be written to its stack first. `address` is the address of a
/// page fault.
pub fn begin(
    context: &mut UserContext,
    number: u8,
    action: &Action,
    blocked: u64,
    address: u64,
) -> SignalFrame {
    let old = context.registers;
    let vectors_at = old.rsp.wrapping_sub(RED_ZONE + VECTORS as u64) & !63;
    // As after a call: a multiple of 16, and the return address.
    let at = (vectors_at.wrapping_sub(FRAME as u64) & !15).wrapping_sub(8);
    let mut bytes = [0; FRAME];
    put(&mut bytes, 0, if action.flags & SA_RESTORER != 0 { action.restorer } else { 0 });
    for (i, word) in in_order(&old).into_iter().enumerate() {
        put(&mut bytes, REGISTERS + i * 8, word);
    }
    put(&mut bytes, VECTORS_AT, vectors_at);
    put(&mut bytes, MASK, blocked);
    put(&mut bytes, INFO, number.into());
    put(&mut bytes, INFO + 16, address);
    let mut vectors = [0; VECTORS];
    vectors.copy_from_slice(context.vectors.legacy());
    let r = &mut context.registers;
    (r.rip, r.rsp, r.rax, r.rdi) = (action.handler, at, 0, number.into());
    let details = [at + INFO as u64, at + 8];
    [r.rsi, r.rdx] = if action.flags & SA_SIGINFO != 0 { details } else { [0; 2] };
    // The handler is a function, which is called with DF and TF clear.
    r.rflags &= !0x500;
    SignalFrame { at, bytes, vectors_at, vectors }
}

/// The bytes of a frame that a return from a handler reads, which begin after the return address.
pub const RETURNED: usize = FRAME - 8 - 128;

/// Restores what was interrupted from the frame of its handler; returns what is to be blocked, and where the vector
/// registers are.
pub fn end(context: &mut UserContext, bytes: &[u8; RETURNED]) -> (u64, u64) {
    let all: [u64; RETURNED / 8] = words(bytes);
    let word = |at: usize| all[(at - 8) / 8];
    let r = &mut context.registers;
    let registers = [
        &mut r.r8,
        &mut r.r9,
        &mut r.r10,
        &mut r.r11,
        &mut r.r12,
        &mut r.r13,
        &mut r.r14,
        &mut r.r15,
        &mut r.rdi,
        &mut r.rsi,
        &mut r.rbp,
        &mut r.rbx,
        &mut r.rdx,
        &mut r.rax,
        &mut r.rcx,
        &mut r.rsp,
        &mut r.rip,
        &mut r.rflags,
    ];
    registers.into_iter().enumerate().for_each(|(i, to)| *to = word(REGISTERS + i * 8));
    (word(MASK), word(VECTORS_AT))
}
