//! The control channel of a domain: the only way to tell it something from outside while it runs.
//!
//! A [`Control`] may be used from any thread and from a signal handler: it sets a bit and kicks the virtual CPU, which
//! looks at the bits before each entry. That costs the exit path one load. [`Orders`] is the other end, in the virtual
//! CPU's thread: it has the times at which something is due as well.
//!
//! What may not be done in [`Control`]: anything that is not async-signal-safe.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, OnceLock};

use crate::ledger::Ledger;
use crate::machine::kick::Kick;
use crate::machine::time::Clock;

/// What a domain can be told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// End with [`DomainEnd::Interrupted`](crate::machine::end::DomainEnd::Interrupted). Cannot be taken back.
    Stop,
    /// Stand still: the guest is not entered until [`Command::Resume`]. System time continues.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Show the ledger, see [`Orders::on_peek`].
    Peek,
}

const STOP: u32 = 1;
const PAUSE: u32 = 2;
const PEEK: u32 = 4;
/// The postponed work may be done now.
const UNDER_WAY: u32 = 8;

#[derive(Default)]
struct Shared {
    /// The commands that wait for the virtual CPU, as bits.
    commands: AtomicU32,
    /// The virtual CPU stands still.
    stands: AtomicBool,
    kicker: OnceLock<Arc<dyn Kick>>,
}

/// The end of the channel that commands are sent from. Clones share the channel.
#[derive(Clone, Default)]
pub struct Control(Arc<Shared>);

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let commands = self.0.commands.load(Ordering::Relaxed);
        f.debug_struct("Control").field("commands", &commands).finish_non_exhaustive()
    }
}

impl Control {
    /// Tells the domain to do something. What it was told before it ran waits for it.
    pub fn send(&self, command: Command) {
        let commands = &self.0.commands;
        match command {
            Command::Stop => commands.fetch_or(STOP, Ordering::SeqCst),
            Command::Pause => commands.fetch_or(PAUSE, Ordering::SeqCst),
            Command::Resume => commands.fetch_and(!PAUSE, Ordering::SeqCst),
            Command::Peek => commands.fetch_or(PEEK, Ordering::SeqCst),
        };
        self.kick();
    }

    /// Makes the virtual CPU leave the guest, or ends its wait, without a command: there is input for it. Does nothing
    /// before it can be kicked: it then looks for input before its first entry.
    pub fn kick(&self) {
        // Pairs with the fence of `attach`: either the kicker is seen here, or what was sent is seen there.
        fence(Ordering::SeqCst);
        if let Some(kicker) = self.0.kicker.get() {
            kicker.kick();
        }
    }

    /// From now on the domain can be kicked, by `kicker`. To be called once, before the first entry.
    pub fn attach(&self, kicker: Arc<dyn Kick>) {
        self.0.kicker.get_or_init(|| kicker);
        fence(Ordering::SeqCst);
    }

    /// Whether the domain was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.0.commands.load(Ordering::Acquire) & STOP != 0
    }

    /// Pauses a domain that runs, and has one go on that is told to stand still.
    pub fn toggle_pause(&self) {
        self.0.commands.fetch_xor(PAUSE, Ordering::SeqCst);
        self.kick();
    }

    /// Whether the domain stands still after [`Command::Pause`]: its virtual CPU is in the host and stays there.
    pub fn is_paused(&self) -> bool {
        self.0.stands.load(Ordering::Acquire)
    }

    /// The guest is under way: postponed work need not wait any longer. For the virtual CPU's own thread, which needs
    /// no kick.
    pub fn guest_is_under_way(&self) {
        self.0.commands.fetch_or(UNDER_WAY, Ordering::Relaxed);
    }

    fn has(&self, command: u32) -> bool {
        self.0.commands.load(Ordering::Acquire) & command != 0
    }

    fn take(&self, command: u32) -> bool {
        self.0.commands.fetch_and(!command, Ordering::AcqRel) & command != 0
    }
}

/// Shows a ledger, given for how many nanoseconds the guest has been running. The guest waits, and does not pay for it.
pub type Show = Box<dyn FnMut(&Ledger, u64) + Send>;

/// Work that is postponed until the guest is under way: until it prints something, waits, or has run for a while.
pub struct Postponed {
    /// Does it.
    pub work: Box<dyn FnOnce() + Send>,
    /// The system time at which it is done in any case.
    pub by: u64,
}

/// The virtual CPU's end of the channel, with what is to be done at a certain time.
pub struct Orders {
    control: Control,
    clock: Clock,
    /// System time at which the loop began.
    pub(super) began: u64,
    /// A [`Command::Stop`] at this system time.
    pub stop_at: Option<u64>,
    /// To be done once the guest is under way.
    pub postponed: Option<Postponed>,
    /// What [`Command::Peek`] calls.
    pub on_peek: Option<Show>,
    /// Called when the virtual CPU begins to stand still, with true, and when it goes on, with false.
    pub on_pause: Option<Box<dyn FnMut(bool) + Send>>,
}

impl Orders {
    /// Nothing but the commands of `control`. `clock` is the domain's.
    pub fn new(control: Control, clock: Clock) -> Self {
        Self {
            control,
            clock,
            began: clock.now(),
            stop_at: None,
            postponed: None,
            on_peek: None,
            on_pause: None,
        }
    }

    /// The clock that all times here are in.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The first time at which something is due.
    pub(super) fn due(&self) -> Option<u64> {
        self.stop_at.into_iter().chain(self.postponed.as_ref().map(|p| p.by)).min()
    }

    /// Whether there is anything to do.
    pub(super) fn has_any(&self) -> bool {
        self.control.has(u32::MAX) || self.due().is_some_and(|due| self.clock.now() >= due)
    }

    /// Whether the domain is to end.
    pub(super) fn says_stop(&self) -> bool {
        self.control.has(STOP) || self.stop_at.is_some_and(|time| self.clock.now() >= time)
    }

    /// Whether the virtual CPU is to stand still.
    pub(super) fn says_pause(&self) -> bool {
        self.control.has(PAUSE)
    }

    /// Tells those who wait for it whether the virtual CPU stands still.
    pub(super) fn stands(&mut self, stands: bool) {
        self.control.0.stands.store(stands, Ordering::Release);
        if let Some(tell) = &mut self.on_pause {
            tell(stands);
        }
    }

    /// Does what takes no decision of the loop: shows the ledger, and does the postponed work when it is time.
    pub(super) fn obey(&mut self, ledger: &Ledger) {
        if self.control.take(PEEK)
            && let Some(show) = &mut self.on_peek
        {
            show(ledger, self.clock.now().saturating_sub(self.began));
        }
        let under_way = self.control.take(UNDER_WAY);
        let now = self.clock.now();
        if let Some(postponed) = self.postponed.take_if(|p| under_way || p.by <= now) {
            (postponed.work)();
        }
    }

    /// The guest waits: a good time for the postponed work.
    pub(super) fn guest_waits(&mut self) {
        if let Some(postponed) = self.postponed.take() {
            (postponed.work)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::engine::CountKicks;

    #[test]
    fn a_command_kicks_whom_there_is_to_kick_and_waits_for_the_rest() {
        let (control, kicks) = (Control::default(), Arc::new(CountKicks::default()));
        control.send(Command::Pause);
        assert_eq!(kicks.count(), 0);
        control.attach(kicks.clone());
        let orders = Orders::new(control.clone(), Clock::new(1_000_000, 0));
        assert!(orders.has_any() && orders.says_pause(), "it was sent before");
        control.send(Command::Resume);
        assert!(!orders.has_any() && !orders.says_pause());
        control.send(Command::Stop);
        control.send(Command::Resume);
        assert!(orders.says_stop() && control.is_stopping(), "it cannot be taken back");
        assert_eq!(kicks.count(), 3);
    }

    #[test]
    fn a_stop_may_come_at_a_time() {
        let mut orders = Orders::new(Control::default(), Clock::new(1_000_000, 0));
        assert!(!orders.has_any());
        orders.stop_at = Some(u64::MAX);
        assert!(!orders.has_any() && orders.due() == Some(u64::MAX));
        orders.stop_at = Some(0);
        assert!(orders.has_any() && orders.says_stop());
    }
}
