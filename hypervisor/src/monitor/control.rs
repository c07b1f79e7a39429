//! The control channel of a domain: the only way to tell it something from outside while it runs.
//!
//! A [`Control`] may be used from any thread and from a signal handler: it sets a bit and kicks the virtual CPUs, which
//! look at the bits before each entry. That costs the exit path one load. [`Orders`] is the other end, in a virtual
//! CPU's thread: it has the times at which something is due as well.
//!
//! What may not be done in [`Control`]: anything that is not async-signal-safe.

use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::autopsy::Witness;
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
    /// Show the ledger and where the virtual CPUs are, see [`Orders::on_peek`].
    Peek,
    /// Be saved, see [`Control::on_save`]: all virtual CPUs stand still for it. Once asked, asking again before it is
    /// done changes nothing.
    Save,
}

const STOP: u32 = 1;
const PAUSE: u32 = 2;
/// One of the virtual CPUs has ended: the others follow.
const OVER: u32 = 4;
/// The postponed work may be done now.
const UNDER_WAY: u32 = 8;
/// The domain is to be saved.
const SAVE: u32 = 16;
/// The first of the bits that count how often the ledger was to be shown.
const PEEK: u32 = 32;
const PEEKS: u32 = !(PEEK - 1);

#[derive(Default)]
struct Shared {
    /// The commands that wait for the virtual CPUs, as bits.
    commands: AtomicU32,
    /// How many virtual CPUs stand still.
    standing: AtomicU32,
    /// The virtual CPUs, the one that takes input first.
    kickers: OnceLock<Box<[Arc<dyn Kick>]>>,
    /// Where there are several: their ledgers, to be shown together.
    together: Mutex<Option<Together>>,
    /// Called when all virtual CPUs stand still, with true, and when the first goes on, with false.
    on_pause: Mutex<Option<OnPause>>,
    saving: Mutex<Saving>,
}

/// Saves a domain whose virtual CPUs all stand still and have handed their state over.
pub type Save = Box<dyn FnMut() + Send>;

/// A domain on its way into a file.
#[derive(Default)]
struct Saving {
    save: Option<Save>,
    /// How many virtual CPUs have handed their state over.
    handed: usize,
    /// How often the domain was saved.
    times: u64,
    /// The last of them is at it.
    is_being_saved: bool,
}

/// Tells whether a domain stands still.
pub type OnPause = Box<dyn FnMut(bool) + Send>;

/// The ledgers of several virtual CPUs and where they are, on the way to be shown.
struct Together {
    show: Show,
    /// The count of peeks that they are for.
    peeks: u32,
    /// The sum of those that were handed over, and of how many.
    sum: Ledger,
    handed: usize,
    /// Where those were.
    witnesses: Vec<Witness>,
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
            Command::Peek => commands.fetch_add(PEEK, Ordering::SeqCst),
            Command::Save => commands.fetch_or(SAVE, Ordering::SeqCst),
        };
        self.kick_all();
    }

    fn kick_all(&self) {
        self.kickers().iter().for_each(|kicker| kicker.kick());
    }

    /// Makes the virtual CPU that takes input leave the guest, or ends its wait, without a command: there is input for
    /// it. Does nothing before it can be kicked: it then looks for input before its first entry.
    pub fn kick(&self) {
        if let Some(kicker) = self.kickers().first() {
            kicker.kick();
        }
    }

    fn kickers(&self) -> &[Arc<dyn Kick>] {
        // Pairs with the fence of `attach`: either the kickers are seen here, or what was sent is seen there.
        fence(Ordering::SeqCst);
        self.0.kickers.get().map_or(&[], |kickers| kickers)
    }

    /// From now on the domain's virtual CPUs can be kicked, by these. To be called once, before the first entry.
    pub fn attach(&self, kickers: impl IntoIterator<Item = Arc<dyn Kick>>) {
        self.0.kickers.get_or_init(|| kickers.into_iter().collect());
        fence(Ordering::SeqCst);
    }

    /// Whether the domain was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.0.commands.load(Ordering::Acquire) & STOP != 0
    }

    /// Pauses a domain that runs, and has one go on that is told to stand still.
    pub fn toggle_pause(&self) {
        self.0.commands.fetch_xor(PAUSE, Ordering::SeqCst);
        self.kick_all();
    }

    /// Whether the domain stands still after [`Command::Pause`]: its virtual CPUs are in the host and stay there.
    pub fn is_paused(&self) -> bool {
        let standing = usize::try_from(self.0.standing.load(Ordering::Acquire)).unwrap_or(0);
        standing >= self.kickers().len().max(1)
    }

    /// Has `tell` called when the domain begins to stand still, with true, and when it goes on, with false.
    pub fn on_pause(&self, tell: OnPause) {
        *self.0.on_pause.lock().unwrap_or_else(PoisonError::into_inner) = Some(tell);
    }

    /// One virtual CPU more, or less, stands still.
    fn stands(&self, stands: bool) {
        // Counted under the lock, so that what is told is in order.
        let mut on_pause = self.0.on_pause.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.is_paused();
        match stands {
            true => self.0.standing.fetch_add(1, Ordering::AcqRel),
            false => self.0.standing.fetch_sub(1, Ordering::AcqRel),
        };
        if let Some(tell) = &mut *on_pause
            && before != self.is_paused()
        {
            tell(stands);
        }
    }

    /// What [`Command::Peek`] calls where there are several virtual CPUs, with the sum of their ledgers and all of
    /// them.
    pub fn show_together(&self, show: Show) {
        let together = Together { show, peeks: 0, sum: Ledger::new(), handed: 0, witnesses: Vec::new() };
        *self.0.together.lock().unwrap_or_else(PoisonError::into_inner) = Some(together);
    }

    /// What [`Command::Save`] calls: on the thread of the virtual CPU that comes last, while the others wait.
    pub fn on_save(&self, save: Save) {
        self.saving().save = Some(save);
    }

    /// After the domain's end: calls it once more if the domain was still to be saved, so that it says why it was not.
    pub fn has_ended(&self) {
        if self.take(SAVE) {
            self.save();
        }
    }

    /// Without the lock, so that those who wait can look whether they are to end: writing a file takes its time.
    fn save(&self) {
        let save = self.saving().save.take();
        if let Some(mut save) = save {
            save();
            self.saving().save.get_or_insert(save);
        }
    }

    fn saving(&self) -> std::sync::MutexGuard<'_, Saving> {
        self.0.saving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One virtual CPU has run to its end, for whatever reason: the others end as well.
    pub fn end_all(&self) {
        self.0.commands.fetch_or(OVER, Ordering::SeqCst);
        if let [_, _, ..] = self.kickers() {
            self.kick_all();
        }
    }

    /// The guest is under way: postponed work need not wait any longer. For a virtual CPU's own thread, which needs no
    /// kick; where there are several, the first one may find it a little later.
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

/// What is seen of a guest that runs on.
#[derive(Debug)]
pub struct Look<'a> {
    /// The account of its exits so far.
    pub ledger: &'a Ledger,
    /// For how many nanoseconds it has been running.
    pub ns: u64,
    /// Where its virtual CPUs are.
    pub witnesses: Vec<Witness>,
}

/// Shows what is seen of a guest. The guest waits, and does not pay for it.
pub type Show = Box<dyn FnMut(Look<'_>) + Send>;

/// Work that is postponed until the guest is under way: until it prints something, waits, or has run for a while.
pub struct Postponed {
    /// Does it.
    pub work: Box<dyn FnOnce() + Send>,
    /// The system time at which it is done in any case.
    pub by: u64,
}

/// A virtual CPU's end of the channel, with what is to be done at a certain time.
pub struct Orders {
    control: Control,
    /// The count of peeks that were obeyed.
    peeks: u32,
    clock: Clock,
    /// System time at which the loop began.
    pub(super) began: u64,
    /// A [`Command::Stop`] at this system time.
    pub stop_at: Option<u64>,
    /// To be done once the guest is under way.
    pub postponed: Option<Postponed>,
    /// What [`Command::Peek`] calls where there is one virtual CPU; see [`Control::show_together`] for more.
    pub on_peek: Option<Show>,
}

impl Orders {
    /// Nothing but the commands of `control`. `clock` is the domain's.
    pub fn new(control: Control, clock: Clock) -> Self {
        Self { control, peeks: 0, clock, began: clock.now(), stop_at: None, postponed: None, on_peek: None }
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
        let commands = self.control.0.commands.load(Ordering::Acquire);
        commands != self.peeks || self.due().is_some_and(|due| self.clock.now() >= due)
    }

    /// Whether the domain is to end.
    pub(super) fn says_stop(&self) -> bool {
        self.control.has(STOP | OVER) || self.stop_at.is_some_and(|time| self.clock.now() >= time)
    }

    /// Whether the virtual CPU is to stand still.
    pub(super) fn says_pause(&self) -> bool {
        self.control.has(PAUSE)
    }

    /// Whether the domain is to be saved.
    pub(super) fn says_save(&self) -> bool {
        self.control.has(SAVE)
    }

    /// The virtual CPU has handed its state over. The last one saves the domain and lets all go on; the others wait,
    /// by `wait`, which a kick ends, until that is done or the domain is to end.
    pub(super) fn save_together(&self, wait: impl Fn()) {
        let mut saving = self.control.saving();
        if saving.is_being_saved {
            // One that waits no longer, because the domain is to end, comes by again.
            return;
        }
        saving.handed += 1;
        let times = saving.times;
        if saving.handed < self.control.kickers().len() {
            drop(saving);
            while !self.says_stop() && self.control.saving().times == times {
                wait();
            }
            return;
        }
        saving.is_being_saved = true;
        drop(saving);
        self.control.save();
        let mut saving = self.control.saving();
        (saving.handed, saving.is_being_saved) = (0, false);
        // First of the two: one that goes on must not find the command that it has obeyed.
        self.control.take(SAVE);
        saving.times += 1;
        drop(saving);
        self.control.kick_all();
    }

    /// Tells those who wait for it whether the virtual CPU stands still.
    pub(super) fn stands(&self, stands: bool) {
        self.control.stands(stands);
    }

    /// Whether somebody wants to look at the guest, who has not been shown it: [`Orders::show`].
    pub(super) fn wants_a_look(&mut self) -> bool {
        let peeks = self.control.0.commands.load(Ordering::Acquire) & PEEKS;
        std::mem::replace(&mut self.peeks, peeks) != peeks
    }

    /// Does the postponed work when it is time.
    pub(super) fn do_postponed(&mut self) {
        // The work is the first virtual CPU's; another one that takes the bit has cost nothing but a little patience.
        let under_way = self.control.take(UNDER_WAY);
        let now = self.clock.now();
        if let Some(postponed) = self.postponed.take_if(|p| under_way || p.by <= now) {
            (postponed.work)();
        }
    }

    /// Shows the guest: several virtual CPUs together, by the last one that hands its own over. None waits for it.
    pub(super) fn show(&mut self, ledger: &Ledger, witness: Option<Witness>) {
        let ns = self.clock.now().saturating_sub(self.began);
        if let Some(show) = &mut self.on_peek {
            return show(Look { ledger, ns, witnesses: witness.into_iter().collect() });
        }
        let mut together = self.control.0.together.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Together { show, peeks, sum, handed, witnesses }) = &mut *together else { return };
        // Another virtual CPU may be a peek behind: what it has to show for that one nobody waits for.
        if *peeks != self.peeks {
            if (self.peeks.wrapping_sub(*peeks)).cast_signed() < 0 {
                return;
            }
            (*peeks, *sum, *handed) = (self.peeks, Ledger::new(), 0);
            witnesses.clear();
        }
        sum.merge(ledger);
        witnesses.extend(witness);
        *handed += 1;
        if *handed >= self.control.kickers().len() {
            let mut witnesses = std::mem::take(witnesses);
            witnesses.sort_by_key(Witness::vcpu);
            show(Look { ledger: sum, ns, witnesses });
            (*sum, *handed) = (Ledger::new(), 0);
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
    use crate::autopsy::Testimony;
    use crate::testing::engine::CountKicks;

    #[test]
    fn a_command_kicks_whom_there_is_to_kick_and_waits_for_the_rest() {
        let (control, kicks) = (Control::default(), Arc::new(CountKicks::default()));
        control.send(Command::Pause);
        assert_eq!(kicks.count(), 0);
        control.attach([kicks.clone() as Arc<dyn Kick>]);
        let orders = Orders::new(control.clone(), Clock::new(1_000_000, 0));
        assert!(orders.has_any() && orders.says_pause(), "it was sent before");
        orders.stands(true);
        assert!(control.is_paused());
        orders.stands(false);
        control.send(Command::Resume);
        assert!(!orders.has_any() && !orders.says_pause());
        control.send(Command::Stop);
        control.send(Command::Resume);
        assert!(orders.says_stop() && control.is_stopping(), "it cannot be taken back");
        assert_eq!(kicks.count(), 3);
    }

    #[test]
    fn all_virtual_cpus_are_told_and_stand_before_the_domain_does() {
        let (control, kicks) = (Control::default(), [(); 2].map(|()| Arc::new(CountKicks::default())));
        control.attach(kicks.iter().map(|kicks| kicks.clone() as Arc<dyn Kick>));
        let mut orders = [(); 2].map(|()| Orders::new(control.clone(), Clock::new(1_000_000, 0)));
        let paused = Arc::new(Mutex::new(Vec::new()));
        let tells = paused.clone();
        control.on_pause(Box::new(move |stands| tells.lock().unwrap().push(stands)));
        let shown = Arc::new(Mutex::new(Vec::new()));
        let told = shown.clone();
        control.show_together(Box::new(move |look| {
            let vcpus: Vec<u32> = look.witnesses.iter().map(Witness::vcpu).collect();
            told.lock().unwrap().push((look.ledger.exits(), vcpus));
        }));
        let counts = || kicks.each_ref().map(|kicks| kicks.count());
        control.send(Command::Pause);
        control.kick();
        assert_eq!(counts(), [2, 1], "input is one's business");
        orders[0].stands(true);
        assert!(!control.is_paused() && paused.lock().unwrap().is_empty());
        orders[1].stands(true);
        assert!(control.is_paused());
        orders.iter().for_each(|orders| orders.stands(false));
        assert_eq!(*paused.lock().unwrap(), [true, false], "of the domain, not of one virtual CPU");
        control.send(Command::Resume);
        control.send(Command::Peek);
        let mut ledger = Ledger::new();
        ledger.record(crate::ledger::Cause::Kick, 1);
        let look = |orders: &mut Orders, vcpu| {
            assert!(orders.has_any() && orders.wants_a_look());
            let testimony = Testimony { vcpu, ..Testimony::default() };
            orders.show(&ledger, Some(Witness::new(testimony, &mut |_| None)));
            assert!(!orders.has_any() && !orders.wants_a_look());
        };
        let [first, second] = &mut orders;
        look(second, 1);
        look(first, 0);
        let both = (2, vec![0, 1]);
        assert_eq!(*shown.lock().unwrap(), std::slice::from_ref(&both), "once, and everything");
        // One is asked again before the other has answered: each is in the sum once all the same.
        control.send(Command::Peek);
        look(first, 0);
        control.send(Command::Peek);
        look(first, 0);
        look(second, 1);
        assert_eq!(*shown.lock().unwrap(), [both.clone(), both]);
        control.end_all();
        assert!(orders.iter().all(Orders::says_stop) && !control.is_stopping());
        assert_eq!(counts(), [7, 6]);
    }

    #[test]
    fn the_last_virtual_cpu_saves_and_all_go_on() {
        let (control, kicks) = (Control::default(), [(); 2].map(|()| Arc::new(CountKicks::default())));
        control.attach(kicks.iter().map(|kicks| kicks.clone() as Arc<dyn Kick>));
        let saved = Arc::new(AtomicU32::new(0));
        let count = saved.clone();
        control.on_save(Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        let orders = || Orders::new(control.clone(), Clock::new(1_000_000, 0));
        for times in 1..=2 {
            control.send(Command::Save);
            let obey = |orders: Orders| {
                assert!(orders.has_any() && orders.says_save());
                orders.save_together(std::thread::yield_now);
                assert!(!orders.has_any(), "it was obeyed");
            };
            std::thread::scope(|scope| {
                let [one, other] = [(); 2].map(|()| scope.spawn(|| obey(orders())));
                one.join().unwrap();
                other.join().unwrap();
            });
            assert_eq!(saved.load(Ordering::Relaxed), times);
        }
        // One that waits for another which does not come any more.
        control.send(Command::Save);
        control.end_all();
        orders().save_together(std::thread::yield_now);
        assert_eq!(saved.load(Ordering::Relaxed), 2);
        // Whoever asked is told, once.
        for _ in 0..2 {
            control.has_ended();
            assert_eq!(saved.load(Ordering::Relaxed), 3);
        }
    }

    #[test]
    fn one_that_is_to_end_does_not_wait_for_the_file() {
        use std::sync::mpsc;
        use std::time::Duration;
        let (control, kicks) = (Control::default(), [(); 2].map(|()| Arc::new(CountKicks::default())));
        control.attach(kicks.iter().map(|kicks| kicks.clone() as Arc<dyn Kick>));
        let (to_file, out) = mpsc::channel();
        let (end, count) = (control.clone(), Arc::new(AtomicU32::new(0)));
        let files = count.clone();
        control.on_save(Box::new(move || {
            end.end_all();
            assert_eq!(out.recv_timeout(Duration::from_secs(20)), Ok(()), "it waits for the file");
            files.fetch_add(1, Ordering::Relaxed);
        }));
        control.send(Command::Save);
        let obey = || {
            let orders = Orders::new(control.clone(), Clock::new(1_000_000, 0));
            orders.save_together(std::thread::yield_now);
            if count.load(Ordering::Relaxed) == 0 {
                // This is the one that does not write; on its way out it may come by again.
                orders.save_together(std::thread::yield_now);
                to_file.send(()).unwrap();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(obey);
            obey();
        });
        assert_eq!(count.load(Ordering::Relaxed), 1);
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
