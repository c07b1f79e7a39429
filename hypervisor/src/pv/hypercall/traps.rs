//! Handlers: set_trap_table, set_callbacks, callback_op, nmi_op (public/callback.h, public/nmi.h).

use paravane_abi::addr;
use paravane_abi::callback::*;
use paravane_abi::errno::Errno;
use paravane_abi::nmi::{XENNMI_REGISTER_CALLBACK, XENNMI_UNREGISTER_CALLBACK, XennmiCallback};
use paravane_abi::segment::FLAT_KERNEL_CS;
use paravane_abi::shared_info::{ArchSharedInfo, SharedInfo};
use paravane_abi::trap::{TI_IF, TRAP_NMI, TRAP_VECTORS, TrapInfo};

use super::{Call, HypercallResult, done};
use crate::machine::memory::Maddr;
use crate::pv::vcpu::{Callback, PvVcpu};

/// A handler's address: EINVAL for what no instruction pointer can hold.
fn entry_point(address: u64) -> Result<u64, Errno> {
    if addr::is_canonical(address) { Ok(address) } else { Err(Errno::EINVAL) }
}

/// set_trap_table(table): entries up to one whose address is 0; a null table clears all.
pub fn set_trap_table(call: &mut Call<'_>) -> HypercallResult {
    let [table, ..] = call.args;
    let mut at = table.pointer::<TrapInfo>();
    if at.is_null() {
        call.vcpu.traps = [TrapInfo::default(); TRAP_VECTORS];
        return done(0);
    }
    // One entry for each vector and the terminator: a longer table only repeats itself.
    for _ in 0..=TRAP_VECTORS {
        call.spend(1);
        let trap = call.guest().read(at)?;
        if trap.address == 0 {
            break;
        }
        entry_point(trap.address)?;
        if let Some(slot) = call.vcpu.traps.get_mut(usize::from(trap.vector)) {
            *slot = trap;
        }
        at = at.next()?;
    }
    done(0)
}

/// set_callbacks(event, failsafe, syscall): the old form of three registrations.
///
/// What cannot be registered is passed over without a word, as Xen does.
pub fn set_callbacks(call: &mut Call<'_>) -> HypercallResult {
    let [event, failsafe, syscall, ..] = call.raw();
    let all =
        [(CALLBACKTYPE_EVENT, event), (CALLBACKTYPE_FAILSAFE, failsafe), (CALLBACKTYPE_SYSCALL, syscall)];
    for (kind, address) in all {
        let _ = register(call, CallbackRegister { kind, address, ..Default::default() });
    }
    done(0)
}

/// callback_op(command, argument).
pub fn callback_op(call: &mut Call<'_>) -> HypercallResult {
    let [command, argument, ..] = call.args;
    match command.low32() {
        CALLBACKOP_REGISTER => {
            let op = call.guest().read(argument.pointer())?;
            register(call, op)?;
            done(0)
        }
        CALLBACKOP_UNREGISTER => {
            let op: CallbackUnregister = call.guest().read(argument.pointer())?;
            if op.kind == CALLBACKTYPE_NMI {
                return unregister_nmi(call);
            }
            // The others can be replaced and not taken back.
            slot(call.vcpu, op.kind).and(Err(Errno::EINVAL))
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn register(call: &mut Call<'_>, op: CallbackRegister) -> Result<(), Errno> {
    let callback =
        Callback { address: entry_point(op.address)?, mask_events: op.flags & CALLBACKF_MASK_EVENTS != 0 };
    if op.kind == CALLBACKTYPE_NMI {
        return register_nmi(call, op.address);
    }
    *slot(call.vcpu, op.kind)? = callback;
    Ok(())
}

fn slot(vcpu: &mut PvVcpu, kind: u16) -> Result<&mut Callback, Errno> {
    match kind {
        CALLBACKTYPE_EVENT => Ok(&mut vcpu.event),
        CALLBACKTYPE_FAILSAFE => Ok(&mut vcpu.failsafe),
        CALLBACKTYPE_SYSCALL => Ok(&mut vcpu.syscall),
        CALLBACKTYPE_SYSCALL32 => Ok(&mut vcpu.syscall32),
        CALLBACKTYPE_SYSENTER => Ok(&mut vcpu.sysenter),
        _ => Err(Errno::ENOSYS),
    }
}

/// nmi_op(command, argument).
pub fn nmi_op(call: &mut Call<'_>) -> HypercallResult {
    let [command, argument, ..] = call.args;
    match command.low32() {
        XENNMI_REGISTER_CALLBACK => {
            let op: XennmiCallback = call.guest().read(argument.pointer())?;
            register_nmi(call, entry_point(op.handler_address)?)?;
            done(0)
        }
        XENNMI_UNREGISTER_CALLBACK => unregister_nmi(call),
        _ => Err(Errno::ENOSYS),
    }
}

/// The NMI callback is vector 2's handler, entered with events masked.
fn register_nmi(call: &mut Call<'_>, address: u64) -> Result<(), Errno> {
    let trap = TrapInfo { vector: TRAP_NMI, flags: TI_IF, cs: FLAT_KERNEL_CS, address, ..Default::default() };
    if let Some(slot) = call.vcpu.traps.get_mut(usize::from(TRAP_NMI)) {
        *slot = trap;
    }
    // A reason that was noted before there was a handler is delivered now.
    let reason = std::mem::offset_of!(SharedInfo, arch) + std::mem::offset_of!(ArchSharedInfo, nmi_reason);
    let at = Maddr(call.upcall().shared_info.0 + reason as u64);
    if call.domain.memory.load_u64(at).map_err(|_| Errno::EFAULT)? != 0 {
        call.vcpu.nmi.pending = true;
    }
    Ok(())
}

fn unregister_nmi(call: &mut Call<'_>) -> HypercallResult {
    if let Some(slot) = call.vcpu.traps.get_mut(usize::from(TRAP_NMI)) {
        *slot = TrapInfo::default();
    }
    done(0)
}

#[cfg(test)]
mod tests {
    use paravane_abi::hypercall as nr;
    use paravane_abi::trap::TRAP_PAGE_FAULT;

    use crate::pv::hypercall::traps::*;
    use crate::testing::pv::{NOWHERE, SCRATCH, TestDomain, va};

    const NOT_CANONICAL: u64 = 1 << 47;

    #[test]
    fn a_trap_table_ends_with_a_null_address_and_stops_at_the_first_error() {
        let mut t = TestDomain::new();
        let entry = |vector, address| TrapInfo { vector, address, ..Default::default() };
        let table = [entry(14, 0x1000), entry(255, 0x2000), entry(3, 0), entry(4, 0x3000)];
        t.write_at(va(SCRATCH), &table).unwrap();
        assert_eq!(t.call(nr::SET_TRAP_TABLE, [va(SCRATCH)]), Ok(0));
        let addresses = |t: &TestDomain| [14, 255, 3, 4].map(|v: usize| t.vcpu.traps[v].address);
        assert_eq!(addresses(&t), [0x1000, 0x2000, 0, 0]);

        t.write_at(va(SCRATCH), &[entry(3, 0x4000), entry(4, NOT_CANONICAL)]).unwrap();
        assert_eq!(t.call(nr::SET_TRAP_TABLE, [va(SCRATCH)]), Err(Errno::EINVAL));
        assert_eq!(addresses(&t), [0x1000, 0x2000, 0x4000, 0], "what came before stays");
        assert_eq!(t.call(nr::SET_TRAP_TABLE, [NOWHERE]), Err(Errno::EFAULT));
        assert_eq!(t.call(nr::SET_TRAP_TABLE, [0]), Ok(0));
        assert_eq!(t.vcpu.traps[usize::from(TRAP_PAGE_FAULT)], TrapInfo::default());
    }

    #[test]
    fn a_table_without_an_end_is_left_after_every_vector() {
        let mut t = TestDomain::new();
        let entry = TrapInfo { vector: 7, address: 0x1000, ..Default::default() };
        for pfn in SCRATCH..SCRATCH + 3 {
            t.write_at(va(pfn), &[entry; 256]).unwrap();
        }
        assert_eq!(t.call(nr::SET_TRAP_TABLE, [va(SCRATCH)]), Ok(0));
    }

    #[test]
    fn callbacks_are_replaced_and_never_taken_back() {
        let mut t = TestDomain::new();
        let register =
            |kind, address| CallbackRegister { kind, flags: CALLBACKF_MASK_EVENTS, address, _pad: 0 };
        for kind in [0, 1, 2, 5, 7] {
            assert_eq!(
                t.op(nr::CALLBACK_OP, CALLBACKOP_REGISTER, register(kind, 0x1000)).map(|r| r.0),
                Ok(0)
            );
            let bad = t.op(nr::CALLBACK_OP, CALLBACKOP_REGISTER, register(kind, NOT_CANONICAL));
            assert_eq!(bad.map(|r| r.0), Err(Errno::EINVAL));
            let gone = t.op(nr::CALLBACK_OP, CALLBACKOP_UNREGISTER, CallbackUnregister { kind, _unused: 0 });
            assert_eq!(gone.map(|r| r.0), Err(Errno::EINVAL), "type {kind}");
            assert_eq!(*slot(&mut t.vcpu, kind).unwrap(), Callback { address: 0x1000, mask_events: true });
        }
        for kind in [3, 6, 99] {
            let unknown = t.op(nr::CALLBACK_OP, CALLBACKOP_REGISTER, register(kind, 0x1000));
            assert_eq!(unknown.map(|r| r.0), Err(Errno::ENOSYS));
            let unknown =
                t.op(nr::CALLBACK_OP, CALLBACKOP_UNREGISTER, CallbackUnregister { kind, _unused: 0 });
            assert_eq!(unknown.map(|r| r.0), Err(Errno::ENOSYS));
        }
        assert_eq!(t.call(nr::CALLBACK_OP, [9, va(SCRATCH)]), Err(Errno::ENOSYS));
        assert_eq!(t.call(nr::CALLBACK_OP, [0, NOWHERE]), Err(Errno::EFAULT));
        assert_eq!(t.call(nr::CALLBACK_OP, [1, NOWHERE]), Err(Errno::EFAULT));
    }

    #[test]
    fn set_callbacks_passes_over_what_is_wrong() {
        let mut t = TestDomain::new();
        assert_eq!(t.call(nr::SET_CALLBACKS, [0x1000, NOT_CANONICAL, 0x3000]), Ok(0));
        let v = &t.vcpu;
        assert_eq!((v.event.address, v.failsafe.address, v.syscall.address), (0x1000, 0, 0x3000));
    }

    #[test]
    fn the_nmi_handler_is_vector_2s() {
        let mut t = TestDomain::new();
        let op = |address| XennmiCallback { handler_address: address, pad: 0 };
        assert_eq!(t.op(nr::NMI_OP, XENNMI_REGISTER_CALLBACK, op(0x5000)).map(|r| r.0), Ok(0));
        assert_eq!((t.vcpu.traps[2].address, t.vcpu.traps[2].flags), (0x5000, TI_IF));
        assert!(!t.vcpu.nmi.pending, "nothing happened yet");
        assert_eq!(t.op(nr::NMI_OP, 0, op(NOT_CANONICAL)).map(|r| r.0), Err(Errno::EINVAL));
        assert_eq!(t.call(nr::NMI_OP, [0, NOWHERE]), Err(Errno::EFAULT));
        assert_eq!(t.call(nr::NMI_OP, [2, 0]), Err(Errno::ENOSYS));
        assert_eq!(t.call(nr::NMI_OP, [1, 0]), Ok(0));
        assert_eq!(t.vcpu.traps[2].address, 0);
        let again = CallbackUnregister { kind: CALLBACKTYPE_NMI, _unused: 0 };
        assert_eq!(t.op(nr::CALLBACK_OP, CALLBACKOP_UNREGISTER, again).map(|r| r.0), Ok(0));
    }
}
