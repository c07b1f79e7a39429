//! `sched_op` except for waiting (see `events`) and shutdown, and the rest of `xen_version` and `event_channel_op`.

use paravane_guest::abi::Errno;
use paravane_guest::abi::domid::DOMID_SELF;
use paravane_guest::abi::event::*;
use paravane_guest::abi::hypercall::*;
use paravane_guest::abi::sched::*;

use super::Bench;
use super::raw::{does, nowhere, raw};

pub(super) fn run(bench: &mut Bench) {
    let (privileged, paravane) = (bench.privileged, bench.paravane);
    let suite = &mut bench.suite;
    suite.equal("yield", raw(SCHED_OP, [SCHEDOP_YIELD.into(), 0]), Ok(0));
    suite.equal("compat-yield", raw(SCHED_OP_COMPAT, [SCHEDOP_YIELD.into(), 0]), Ok(0));
    suite.equal("compat-poll", raw(SCHED_OP_COMPAT, [SCHEDOP_POLL.into(), 0]), Err(Errno::ENOSYS));
    let watch = |id, timeout| does(SCHED_OP, SCHEDOP_WATCHDOG, SchedWatchdog { id, timeout });
    if paravane {
        // Xen 4.17 starts a watchdog that fires at once.
        suite.equal("watchdog-of-no-time", watch(0, 0), Err(Errno::EINVAL));
    }
    suite.equal("watchdogs", (watch(0, 9999), watch(0, 9999)), (Ok(1), Ok(2)));
    // Xen 4.17 returns this error as a 32-bit number.
    let many = watch(0, 9999).or_else(|errno| Ok::<_, Errno>(errno.to_rax())).map(|rax| rax as u32);
    suite.equal("watchdog-too-many", many, Ok(Errno::ENOSPC.to_rax() as u32));
    suite.equal("watchdog-is-fed", watch(2, 9998), Ok(0));
    suite.equal("watchdog-unknown", watch(3, 9999), Err(Errno::EINVAL));
    suite.equal("watchdogs-end", (watch(1, 0), watch(2, 0)), (Ok(0), Ok(0)));
    suite.equal("watchdog-ended", watch(1, 9999), Err(Errno::EINVAL));
    let remote = |domain_id| {
        let op = SchedRemoteShutdown { domain_id, _pad: 0, reason: SHUTDOWN_POWEROFF };
        does(SCHED_OP, SCHEDOP_REMOTE_SHUTDOWN, op)
    };
    suite.equal("remote-shutdown-of-no-domain", remote(9), Err(Errno::ESRCH));
    if !privileged {
        suite.equal("remote-shutdown-of-domain-0", remote(0), Err(Errno::EPERM));
        let pin = does(SCHED_OP, SCHEDOP_PIN_OVERRIDE, SchedPinOverride { pcpu: 0 });
        suite.equal("pin-override", pin, Err(Errno::EPERM));
        let code = does(SCHED_OP, SCHEDOP_SHUTDOWN_CODE, SchedShutdown { reason: SHUTDOWN_POWEROFF });
        suite.equal("shutdown-code", code, Ok(0));
    }
    for command in
        [SCHEDOP_SHUTDOWN, SCHEDOP_SHUTDOWN_CODE, SCHEDOP_POLL, SCHEDOP_WATCHDOG, SCHEDOP_REMOTE_SHUTDOWN]
    {
        suite.equal("argument-nowhere", nowhere(SCHED_OP, command), Err(Errno::EFAULT));
    }
    events(bench);
}

fn events(bench: &mut Bench) {
    let (privileged, paravane) = (bench.privileged, bench.paravane);
    let suite = &mut bench.suite;
    for command in (EVTCHNOP_BIND_INTERDOMAIN..=EVTCHNOP_RESET).filter(|c| *c != EVTCHNOP_BIND_PIRQ) {
        suite.equal("event-argument-nowhere", nowhere(EVENT_CHANNEL_OP, command), Err(Errno::EFAULT));
    }
    let reset = does(EVENT_CHANNEL_OP, EVTCHNOP_RESET, EvtchnReset { dom: 9 });
    suite.equal("reset-of-no-domain", reset, Err(Errno::ESRCH));
    let alloc = |dom| {
        let op = EvtchnAllocUnbound { dom, remote_dom: DOMID_SELF, port: 0 };
        does(EVENT_CHANNEL_OP, EVTCHNOP_ALLOC_UNBOUND, op)
    };
    let bind = |remote_dom| {
        let op = EvtchnBindInterdomain { remote_dom, remote_port: 1, ..EvtchnBindInterdomain::default() };
        does(EVENT_CHANNEL_OP, EVTCHNOP_BIND_INTERDOMAIN, op)
    };
    let status = |dom| {
        does(EVENT_CHANNEL_OP, EVTCHNOP_STATUS, EvtchnStatus { dom, port: 1, ..EvtchnStatus::default() })
    };
    let asked = |dom| [alloc(dom), bind(dom), status(dom)];
    suite.equal("ports-of-no-domain", asked(9999), [Err(Errno::ESRCH); 3]);
    if !privileged {
        suite.equal("ports-of-domain-0", [alloc(0), status(0)], [Err(Errno::EPERM); 2]);
    }
    if paravane {
        suite.equal("no-port-of-domain-0", bind(0), Err(Errno::EINVAL));
    }
    let vcpu = |port, vcpu| does(EVENT_CHANNEL_OP, EVTCHNOP_BIND_VCPU, EvtchnBindVcpu { port, vcpu });
    suite.equal("bind-vcpu-of-no-port", vcpu(u32::MAX, 0), Err(Errno::EINVAL));
    suite.equal("bind-vcpu-absent", vcpu(1, 4000), Err(Errno::ENOENT));
    let unmask = does(EVENT_CHANNEL_OP, EVTCHNOP_UNMASK, EvtchnUnmask { port: u32::MAX });
    suite.equal("unmask-no-port", unmask, Err(Errno::EINVAL));
}
