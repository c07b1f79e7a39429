//! Event channels.

use core::sync::atomic::{AtomicU32, Ordering};

use paravane_guest::abi::Errno;
use paravane_guest::abi::domid::DOMID_SELF;
use paravane_guest::abi::event::{EVTCHNSTAT_CLOSED, EVTCHNSTAT_UNBOUND, EVTCHNSTAT_VIRQ};
use paravane_guest::abi::virq::{NR_VIRQS, VIRQ_DEBUG};
use paravane_guest::event::{self, Port};
use paravane_guest::hypercall::sched;
use paravane_guest::time;

use super::Bench;

static COUNT: AtomicU32 = AtomicU32::new(0);

fn count(_: Port) {
    COUNT.fetch_add(1, Ordering::Relaxed);
}

fn taken() -> u32 {
    COUNT.swap(0, Ordering::Relaxed)
}

pub(super) fn run(bench: &mut Bench) {
    bindings(bench);
    delivery(bench);
    loopback(bench);
    waiting(bench);
}

fn bindings(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let state = |port| event::status(port).map(|s| s.status);
    let bound = event::bind_virq(VIRQ_DEBUG, 0);
    suite.holds("bind-virq", bound.is_ok());
    let port = bound.unwrap_or(Port(0));
    suite.equal("status-of-virq", state(port), Ok(EVTCHNSTAT_VIRQ));
    suite.equal("bind-virq-twice", event::bind_virq(VIRQ_DEBUG, 0), Err(Errno::EEXIST));
    suite.equal("bind-virq-unknown", event::bind_virq(NR_VIRQS, 0), Err(Errno::EINVAL));
    suite.equal("bind-virq-no-vcpu", event::bind_virq(VIRQ_DEBUG, 4000), Err(Errno::ENOENT));
    suite.equal("bind-ipi-no-vcpu", event::bind_ipi(4000), Err(Errno::ENOENT));
    suite.equal("send-to-virq", event::send(port), Err(Errno::EINVAL));
    suite.equal("close", event::close(port), Ok(()));
    suite.equal("close-twice", event::close(port), Err(Errno::EINVAL));
    suite.equal("status-of-closed", state(port), Ok(EVTCHNSTAT_CLOSED));
    suite.equal("send-to-closed", event::send(port), Err(Errno::EINVAL));
    suite.equal("send-to-impossible", event::send(Port(u32::MAX)), Err(Errno::EINVAL));
    suite.equal("status-of-impossible", state(Port(u32::MAX)), Err(Errno::EINVAL));
    let unbound = event::alloc_unbound(DOMID_SELF);
    suite.equal("status-of-unbound", unbound.and_then(state), Ok(EVTCHNSTAT_UNBOUND));
    suite.equal("send-to-unbound", unbound.and_then(event::send), Ok(()));
    suite.equal("close-unbound", unbound.and_then(event::close), Ok(()));
    let stranger = event::bind_interdomain(0x7000, Port(1));
    suite.equal("bind-to-no-domain", stranger, Err(Errno::ESRCH));
}

fn delivery(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let Ok(port) = event::bind_ipi(0) else { return suite.holds("bind-ipi", false) };
    event::disable();
    event::handle(port, count);
    suite.equal("send", event::send(port), Ok(()));
    suite.equal("not-while-disabled", (taken(), event::is_pending(port)), (0, true));
    event::enable();
    suite.equal("when-enabled", (taken(), event::is_pending(port)), (1, false));
    let _ = event::send(port);
    suite.equal("at-once-while-enabled", taken(), 1);
    event::mask(port);
    let _ = event::send(port);
    suite.equal("not-while-masked", (taken(), event::is_pending(port)), (0, true));
    event::unmask(port);
    suite.equal("when-unmasked", taken(), 1);
    event::mask(port);
    let _ = event::send(port);
    let unmasked = paravane_guest::hypercall::event::unmask(port);
    suite.equal("when-unmasked-by-hypercall", (unmasked, taken()), (Ok(()), 1));
    let sent = (0..1000).filter(|_| event::send(port).is_ok()).count();
    suite.equal("a-thousand", (sent, taken()), (1000, 1000));
    suite.equal("close-bound", event::close(port), Ok(()));
}

fn loopback(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let near = event::alloc_unbound(DOMID_SELF);
    let far = near.and_then(|near| event::bind_interdomain(DOMID_SELF, near));
    let (Ok(near), Ok(far)) = (near, far) else { return suite.holds("loopback", false) };
    event::handle(near, count);
    taken();
    suite.equal("send-to-other-end", (event::send(far), taken()), (Ok(()), 1));
    suite.equal("closing-one-end", event::close(far), Ok(()));
    suite.equal("leaves-the-other", event::status(near).map(|s| s.status), Ok(EVTCHNSTAT_UNBOUND));
    let _ = event::close(near);
}

fn waiting(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let Ok(port) = event::bind_ipi(0) else { return suite.holds("bind-ipi", false) };
    event::handle(port, count);
    taken();
    event::disable();
    let _ = event::send(port);
    suite.equal("block-with-something-pending", (event::block(), taken()), (Ok(()), 1));
    suite.holds("block-enables", event::is_enabled());
    event::mask(port);
    let _ = event::send(port);
    suite.equal("poll-pending-port", sched::poll(&[port], 0), Ok(()));
    suite.holds("take", event::take(port) && !event::take(port));
    let deadline = time::now() + 1_000_000;
    suite.equal("poll-deadline", sched::poll(&[port], deadline), Ok(()));
    suite.holds("poll-waits-for-it", time::now() >= deadline);
    suite.equal("poll-impossible-port", sched::poll(&[Port(u32::MAX)], 0), Err(Errno::EINVAL));
    suite.equal("poll-too-many", sched::poll(&[port; 129], 0), Err(Errno::EINVAL));
    let _ = event::close(port);
}
