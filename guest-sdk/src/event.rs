//! Events, which take the place of interrupts.
//!
//! A port becomes pending; when neither it nor the vCPU is masked, the hypervisor calls up. The *virtual
//! interrupt flag* is a byte in the shared page, so [`disable`] and [`enable`] cost a store and no transition.
//! Handlers run with events masked, lowest port first, each to its end, on the stack of what they interrupted.

use core::cell::UnsafeCell;
use core::sync::atomic::{Ordering, compiler_fence};

use paravane_abi::Errno;
use paravane_abi::callback::{CALLBACKF_MASK_EVENTS, CALLBACKTYPE_EVENT, CALLBACKTYPE_FAILSAFE};
use paravane_abi::event::EVTCHN_2L_NR_CHANNELS;

use crate::hypercall;
pub use crate::hypercall::event::{Port, alloc_unbound, bind_interdomain, send, status};
use crate::hypercall::trap::register_callback;
use crate::shared::SHARED;
use crate::smp;
use crate::trap::{event_entry, failsafe_entry, set_upcall_handler};

/// Ports that a domain can have.
const PORTS: usize = EVTCHN_2L_NR_CHANNELS as usize;

/// Handles an event of a port.
pub type Handler = fn(Port);

/// Handlers by port.
struct Handlers(UnsafeCell<[Option<Handler>; PORTS]>);

// SAFETY: each entry is one word, read and written by volatile accesses of this file only.
unsafe impl Sync for Handlers {}

static HANDLERS: Handlers = Handlers(UnsafeCell::new([None; PORTS]));

impl Handlers {
    fn slot(&self, port: Port) -> Option<*mut Option<Handler>> {
        let index = port.0 as usize;
        // SAFETY: in bounds by the test.
        (index < PORTS).then(|| unsafe { self.0.get().cast::<Option<Handler>>().add(index) })
    }
}

/// Masks all ports and registers the entry points of events. Events stay disabled until [`enable`].
///
/// # Errors
/// What the hypervisor answers.
pub fn install() -> Result<(), Errno> {
    SHARED.mask().iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
    set_upcall_handler(|_| dispatch());
    // SAFETY: the entry points are made for these kinds.
    unsafe {
        register_callback(CALLBACKTYPE_EVENT, CALLBACKF_MASK_EVENTS, event_entry())?;
        register_callback(CALLBACKTYPE_FAILSAFE, CALLBACKF_MASK_EVENTS, failsafe_entry())
    }
}

/// As [`bind_virq`](crate::hypercall::event::bind_virq); the vCPU that it is bound for handles it.
///
/// # Errors
/// As there.
pub fn bind_virq(virq: u32, vcpu: u32) -> Result<Port, Errno> {
    let port = hypercall::event::bind_virq(virq, vcpu)?;
    smp::set_owner(port.0 as usize, vcpu);
    Ok(port)
}

/// As [`bind_ipi`](crate::hypercall::event::bind_ipi); the vCPU that it is bound for handles it.
///
/// # Errors
/// As there.
pub fn bind_ipi(vcpu: u32) -> Result<Port, Errno> {
    let port = hypercall::event::bind_ipi(vcpu)?;
    smp::set_owner(port.0 as usize, vcpu);
    Ok(port)
}

/// Closes a port. Its number may be another port's afterwards, which vCPU 0 handles unless it is bound otherwise.
///
/// # Errors
/// `EINVAL` for a port that is closed.
pub fn close(port: Port) -> Result<(), Errno> {
    // Before the number is free: afterwards another vCPU may have got it.
    let owner = smp::owner(port.0 as usize);
    smp::set_owner(port.0 as usize, 0);
    hypercall::event::close(port).inspect_err(|_| smp::set_owner(port.0 as usize, owner))
}

/// Has another vCPU handle a port's events: not those of a virtual interrupt of one vCPU, or between vCPUs.
///
/// # Errors
/// `EINVAL` for a port that is bound to its vCPU, `ENOENT` for a vCPU that does not exist.
pub fn move_to(port: Port, vcpu: u32) -> Result<(), Errno> {
    // While it moves, each of the two vCPUs could take it for the other's. So it is masked, and what came meanwhile or
    // before is raised where it is handled from now on.
    let was_masked =
        place(port).is_none_or(|(word, bit)| SHARED.mask()[word].fetch_or(bit, Ordering::AcqRel) & bit != 0);
    let moved = hypercall::event::bind_vcpu(port, vcpu);
    if moved.is_ok() {
        smp::set_owner(port.0 as usize, vcpu);
    }
    if !was_masked {
        hypercall::event::unmask(port)?;
    }
    moved
}

/// Sets the handler of a port and unmasks the port. False for a port that cannot exist.
pub fn handle(port: Port, handler: Handler) -> bool {
    let Some(slot) = HANDLERS.slot(port) else { return false };
    // SAFETY: a slot of the table, written in one access.
    unsafe { slot.write_volatile(Some(handler)) };
    unmask(port);
    true
}

/// Binds a virtual interrupt of the calling vCPU and sets its handler.
///
/// # Errors
/// As for [`bind_virq`].
pub fn handle_virq(virq: u32, handler: Handler) -> Result<Port, Errno> {
    let port = bind_virq(virq, smp::id())?;
    handle(port, handler);
    Ok(port)
}

/// Stops upcalls for one port. Events that arrive meanwhile stay pending.
pub fn mask(port: Port) {
    if let Some((word, bit)) = place(port) {
        SHARED.mask()[word].fetch_or(bit, Ordering::AcqRel);
    }
}

/// Allows upcalls for one port, and handles an event that is pending. No transition, unless the port is another vCPU's.
pub fn unmask(port: Port) {
    let Some((word, bit)) = place(port) else { return };
    if smp::owner(port.0 as usize) != smp::id() {
        // Only the hypervisor reaches the other vCPU; it refuses no port that there can be.
        let _ = hypercall::event::unmask(port);
        return;
    }
    SHARED.mask()[word].fetch_and(!bit, Ordering::AcqRel);
    // An event that arrived while the port was masked raised no upcall: raise it now, as the hypervisor would.
    if SHARED.pending()[word].load(Ordering::Acquire) & bit != 0 {
        SHARED.pending_selector().fetch_or(1 << word, Ordering::AcqRel);
        SHARED.upcall_pending().store(1, Ordering::Release);
        if is_enabled() {
            enable();
        }
    }
}

/// Whether a port has a pending event.
pub fn is_pending(port: Port) -> bool {
    place(port).is_some_and(|(word, bit)| SHARED.pending()[word].load(Ordering::Acquire) & bit != 0)
}

/// Clears a port's pending event without calling its handler, for code that polls with the port masked; returns
/// whether there was one.
pub fn take(port: Port) -> bool {
    place(port).is_some_and(|(word, bit)| SHARED.pending()[word].fetch_and(!bit, Ordering::AcqRel) & bit != 0)
}

/// Whether upcalls are allowed.
pub fn is_enabled() -> bool {
    SHARED.upcall_mask().load(Ordering::Relaxed) == 0
}

/// Disallows upcalls: the virtual CLI.
pub fn disable() {
    SHARED.upcall_mask().store(1, Ordering::Relaxed);
    // Only this vCPU uses the mask, so only the compiler could move accesses across the store.
    compiler_fence(Ordering::SeqCst);
}

/// Allows upcalls: the virtual STI. Pending events are handled before it returns.
pub fn enable() {
    loop {
        compiler_fence(Ordering::SeqCst);
        SHARED.upcall_mask().store(0, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        // The hypervisor makes an upcall for events that arrive from here on, but not for those that arrived before.
        if SHARED.upcall_pending().load(Ordering::Relaxed) == 0 {
            return;
        }
        disable();
        dispatch();
    }
}

/// Runs `f` with events disabled, and restores the previous state.
pub fn without<R>(f: impl FnOnce() -> R) -> R {
    let enabled = is_enabled();
    disable();
    let result = f();
    if enabled {
        enable();
    }
    result
}

/// Blocks until an event is pending, and handles it. Events are enabled afterwards.
///
/// # Errors
/// Never for a PV domain.
pub fn block() -> Result<(), Errno> {
    crate::hypercall::sched::block()
}

/// Whether an upcall would be made if events were enabled.
pub(crate) fn is_upcall_pending() -> bool {
    SHARED.upcall_pending().load(Ordering::Acquire) != 0
}

/// Handles all pending events. Called with events disabled.
pub(crate) fn dispatch() {
    while SHARED.upcall_pending().swap(0, Ordering::AcqRel) != 0 {
        let mut words = SHARED.pending_selector().swap(0, Ordering::AcqRel);
        while words != 0 {
            let word = words.trailing_zeros() as usize;
            words &= words - 1;
            dispatch_word(word);
        }
    }
}

fn dispatch_word(word: usize) {
    let id = smp::id();
    let mask = &SHARED.mask()[word];
    let pending = &SHARED.pending()[word];
    let mut ready = pending.load(Ordering::Acquire) & !mask.load(Ordering::Acquire);
    while ready != 0 {
        let bit = ready & ready.wrapping_neg();
        ready ^= bit;
        let port = Port(word as u32 * 64 + bit.trailing_zeros());
        if smp::owner(port.0 as usize) != id {
            // Its own vCPU is told as well: by who raised it, or by `move_to`.
            continue;
        }
        pending.fetch_and(!bit, Ordering::AcqRel);
        // SAFETY: a slot of the table, read in one access.
        match HANDLERS.slot(port).and_then(|slot| unsafe { slot.read_volatile() }) {
            Some(handler) => handler(port),
            // No handler: mask the port, so that it raises no further upcall.
            None => drop(mask.fetch_or(bit, Ordering::AcqRel)),
        }
    }
}

fn place(port: Port) -> Option<(usize, u64)> {
    let index = port.0 as usize;
    (index < PORTS).then_some((index / 64, 1 << (index % 64)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fresh_shared_page;
    use core::sync::atomic::AtomicU32;

    /// Makes a port pending, as the hypervisor does.
    fn fire(port: Port) {
        let (word, bit) = place(port).unwrap();
        SHARED.pending()[word].fetch_or(bit, Ordering::AcqRel);
        if SHARED.mask()[word].load(Ordering::Acquire) & bit == 0 {
            SHARED.pending_selector().fetch_or(1 << word, Ordering::AcqRel);
            SHARED.upcall_pending().store(1, Ordering::Release);
        }
    }

    static SEEN: AtomicU32 = AtomicU32::new(0);

    fn note(port: Port) {
        SEEN.store(SEEN.load(Ordering::Relaxed) * 100 + port.0, Ordering::Relaxed);
    }

    #[test]
    fn enabling_handles_what_waited_in_order() {
        let _turn = fresh_shared_page();
        SEEN.store(0, Ordering::Relaxed);
        handle(Port(71), note);
        handle(Port(3), note);
        fire(Port(71));
        fire(Port(3));
        assert_eq!(SEEN.load(Ordering::Relaxed), 0, "nothing happens while events are disabled");
        enable();
        assert_eq!(SEEN.load(Ordering::Relaxed), 371);
        assert!(!is_pending(Port(3)) && is_enabled());
    }

    #[test]
    fn a_masked_port_waits_for_its_unmasking() {
        let _turn = fresh_shared_page();
        SEEN.store(0, Ordering::Relaxed);
        handle(Port(5), note);
        mask(Port(5));
        enable();
        fire(Port(5));
        assert_eq!((SEEN.load(Ordering::Relaxed), is_pending(Port(5))), (0, true));
        unmask(Port(5));
        assert_eq!((SEEN.load(Ordering::Relaxed), is_pending(Port(5))), (5, false));
    }

    #[test]
    fn an_event_from_a_handler_is_not_lost() {
        let _turn = fresh_shared_page();
        SEEN.store(0, Ordering::Relaxed);
        handle(Port(1), |port| {
            note(port);
            if SEEN.load(Ordering::Relaxed) < 100 {
                fire(Port(1));
            }
        });
        fire(Port(1));
        enable();
        assert_eq!(SEEN.load(Ordering::Relaxed), 101);
    }

    #[test]
    fn ports_without_handler_are_masked_and_impossible_ones_refused() {
        let _turn = fresh_shared_page();
        unmask(Port(9));
        fire(Port(9));
        enable();
        assert_eq!(SHARED.mask()[0].load(Ordering::Relaxed) & (1 << 9), 1 << 9);
        assert!(!handle(Port(4096), note) && !is_pending(Port(u32::MAX)) && !take(Port(4096)));
        unmask(Port(4096));
    }

    #[test]
    fn nesting_keeps_events_disabled() {
        let _turn = fresh_shared_page();
        enable();
        without(|| {
            without(|| ());
            assert!(!is_enabled());
        });
        assert!(is_enabled());
    }
}
