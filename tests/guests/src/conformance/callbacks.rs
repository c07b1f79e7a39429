//! Registering entry points: `set_trap_table`, `set_callbacks`, `callback_op`, `nmi_op`.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU32, Ordering};

use paravane_guest::abi::Errno;
use paravane_guest::abi::callback::*;
use paravane_guest::abi::hypercall::*;
use paravane_guest::abi::nmi::{XENNMI_REGISTER_CALLBACK, XENNMI_UNREGISTER_CALLBACK, XennmiCallback};
use paravane_guest::abi::trap::TrapInfo;
use paravane_guest::abi::vcpu::VCPUOP_SEND_NMI;

use super::Bench;
use super::calls::NOWHERE;
use super::raw::{does, nowhere, raw};

const NOT_CANONICAL: u64 = 1 << 47;
/// A valid address for a handler. The handlers that are registered here are never entered.
const SOMEWHERE: u64 = 0x1000;

static NMIS: AtomicU32 = AtomicU32::new(0);

// SAFETY: this is a page of the image, and only its address is used.
unsafe extern "C" {
    /// The page that the hypervisor fills.
    static hypercall_page: u8;
}

/// Counts and returns.
#[unsafe(naked)]
unsafe extern "C" fn nmi() {
    naked_asm!(
        "lock inc dword ptr [rip + {count}]",
        "pop rcx",
        "pop r11",
        "push 0",
        "jmp {page} + {iret}",
        count = sym NMIS,
        page = sym hypercall_page,
        iret = const IRET as usize * HYPERCALL_ENTRY_SIZE,
    )
}

pub(super) fn run(bench: &mut Bench) {
    tables(bench);
    types(bench);
    nmis(bench);
}

fn tables(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let entry = |vector, address| TrapInfo { vector, address, ..TrapInfo::default() };
    let set = |table: &[TrapInfo]| raw(SET_TRAP_TABLE, [table.as_ptr() as u64]);
    suite.equal("table-of-nothing", set(&[entry(3, 0)]), Ok(0));
    suite.equal("table-not-canonical", set(&[entry(200, NOT_CANONICAL), entry(0, 0)]), Err(Errno::EINVAL));
    suite.equal("table-nowhere", raw(SET_TRAP_TABLE, [NOWHERE]), Err(Errno::EFAULT));
    suite.equal("table-of-a-free-vector", set(&[entry(200, SOMEWHERE), entry(0, 0)]), Ok(0));
    let passed_over = raw(SET_CALLBACKS, [NOT_CANONICAL, NOT_CANONICAL, SOMEWHERE]);
    suite.equal("callbacks-not-canonical", passed_over, Ok(0));
}

fn types(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let register = |kind, address| {
        let op = CallbackRegister { kind, flags: CALLBACKF_MASK_EVENTS, address, _pad: 0 };
        does(CALLBACK_OP, CALLBACKOP_REGISTER, op)
    };
    let unregister = |kind| does(CALLBACK_OP, CALLBACKOP_UNREGISTER, CallbackUnregister { kind, _unused: 0 });
    // The event callback stays unchanged, because other checks need it.
    for (name, kind) in [
        ("failsafe", CALLBACKTYPE_FAILSAFE),
        ("syscall", CALLBACKTYPE_SYSCALL),
        ("sysenter", CALLBACKTYPE_SYSENTER),
        ("syscall32", CALLBACKTYPE_SYSCALL32),
    ] {
        suite.equal(name, register(kind, SOMEWHERE), Ok(0));
    }
    for kind in [0, 1, 2, 5, 7] {
        suite.equal("register-not-canonical", register(kind, NOT_CANONICAL), Err(Errno::EINVAL));
        suite.equal("unregister", unregister(kind), Err(Errno::EINVAL));
    }
    for kind in [6, 99] {
        suite.equal("register-unknown", register(kind, SOMEWHERE), Err(Errno::ENOSYS));
        suite.equal("unregister-unknown", unregister(kind), Err(Errno::ENOSYS));
    }
    suite.equal("unknown-operation", nowhere(CALLBACK_OP, 9), Err(Errno::ENOSYS));
    suite.equal("register-nowhere", nowhere(CALLBACK_OP, CALLBACKOP_REGISTER), Err(Errno::EFAULT));
    suite.equal("unregister-nowhere", nowhere(CALLBACK_OP, CALLBACKOP_UNREGISTER), Err(Errno::EFAULT));
}

fn nmis(bench: &mut Bench) {
    let suite = &mut bench.suite;
    let send = |argument: u64| raw(VCPU_OP, [VCPUOP_SEND_NMI.into(), 0, argument]);
    suite.equal("nmi-with-an-argument", send(NOWHERE), Err(Errno::EINVAL));
    let callback = |handler_address| XennmiCallback { handler_address, pad: 0 };
    let register = |address| does(NMI_OP, XENNMI_REGISTER_CALLBACK, callback(address));
    suite.equal("nmi-register", register(nmi as *const () as u64), Ok(0));
    suite.equal("nmi-arrives", (send(0), NMIS.load(Ordering::Relaxed)), (Ok(0), 1));
    suite.equal("nmi-arrives-again", (send(0), NMIS.load(Ordering::Relaxed)), (Ok(0), 2));
    suite.equal("nmi-register-not-canonical", register(NOT_CANONICAL), Err(Errno::EINVAL));
    suite.equal("nmi-register-nowhere", nowhere(NMI_OP, XENNMI_REGISTER_CALLBACK), Err(Errno::EFAULT));
    suite.equal("nmi-unregister", raw(NMI_OP, [XENNMI_UNREGISTER_CALLBACK.into(), 0]), Ok(0));
    suite.equal("nmi-unknown", nowhere(NMI_OP, 2), Err(Errno::ENOSYS));
    let kind = CALLBACKTYPE_NMI;
    let again = does(CALLBACK_OP, CALLBACKOP_UNREGISTER, CallbackUnregister { kind, _unused: 0 });
    suite.equal("nmi-unregister-as-a-callback", again, Ok(0));
}
