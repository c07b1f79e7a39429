//! The xenstore's port: the guest has put something into the ring, or taken something out.

use super::Call;
use crate::pv::event::HostService;
use crate::pv::store::Turn;

/// Serves the ring until nothing is left to do or this entry has done enough. True if there is more to do: then the
/// guest must notify again.
pub fn service(call: &mut Call<'_>) -> bool {
    let mut moved = false;
    let more = loop {
        match call.domain.store.server().turn(&call.domain.memory) {
            Ok(turn) => {
                let Turn { cost, more, .. } = turn;
                moved |= turn.moved;
                call.spend(cost);
                if !more || call.is_spent() {
                    break more;
                }
            }
            Err(e) => {
                call.context().kill(e);
                break false;
            }
        }
    };
    if moved && let Some(port) = call.domain.events.service_port(HostService::Store) {
        // A shared page that is not there would have failed the ring first.
        let _ = call.context().raise(port);
    }
    more
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use paravane_abi::errno::Errno;
    use paravane_abi::event::{EVTCHNOP_SEND, EvtchnSend};
    use paravane_abi::hypercall as nr;
    use paravane_abi::xenstore::{
        XENSTORE_RING_SIZE, XS_MKDIR, XS_READ, XS_RM, XS_WATCH, XenstoreDomainInterface, XsdSockmsg,
    };
    use zerocopy::IntoBytes;

    use crate::pv::domain::STORE_PORT;
    use crate::pv::hypercall::{Outcome, PREEMPT_AFTER};
    use crate::testing::pv::{FREE, RO, SCRATCH, STORE, TestDomain, va};

    fn field(t: &TestDomain, field: usize) -> u32 {
        t.read_at(va(STORE) + field as u64).unwrap()
    }

    /// Puts a request into an empty ring.
    fn put(t: &TestDomain, kind: u32, payload: &[u8]) {
        let prod = field(t, offset_of!(XenstoreDomainInterface, req_prod));
        let head = XsdSockmsg { kind, len: payload.len() as u32, ..Default::default() };
        let bytes = [head.as_bytes(), payload].concat();
        for (n, byte) in (0..).zip(&bytes) {
            let at = u64::from(prod.wrapping_add(n)) % XENSTORE_RING_SIZE as u64;
            t.write_at(va(STORE) + at, byte).unwrap();
        }
        let index = va(STORE) + offset_of!(XenstoreDomainInterface, req_prod) as u64;
        t.write_at(index, &prod.wrapping_add(bytes.len() as u32)).unwrap();
    }

    /// Notifies the store; how often the guest was interrupted meanwhile.
    fn notify(t: &mut TestDomain) -> Result<u32, Errno> {
        t.write_at(va(SCRATCH), &EvtchnSend { port: STORE_PORT }).unwrap();
        let args = [EVTCHNOP_SEND.into(), va(SCRATCH), 0, 0, 0, 0];
        let mut interrupted = 0;
        while let Outcome::Again(again) = t.dispatch(nr::EVENT_CHANNEL_OP, args)? {
            assert_eq!(again, args);
            interrupted += 1;
        }
        // The replies are taken, unread.
        let prod = field(t, offset_of!(XenstoreDomainInterface, rsp_prod));
        let index = va(STORE) + offset_of!(XenstoreDomainInterface, rsp_cons) as u64;
        t.write_at(index, &prod).unwrap();
        Ok(interrupted)
    }

    #[test]
    fn a_request_is_answered_and_the_port_raised() {
        let mut t = TestDomain::new();
        assert_eq!(notify(&mut t), Ok(0));
        assert_eq!(t.upcall().is_pending(&t.memory, STORE_PORT), Ok(false), "nothing was asked");
        put(&t, XS_READ, b"domid\0");
        assert_eq!(notify(&mut t), Ok(0));
        assert_eq!(t.upcall().is_pending(&t.memory, STORE_PORT), Ok(true));
        let at = va(STORE) + offset_of!(XenstoreDomainInterface, rsp) as u64;
        assert_eq!(t.read_at::<[u8; 17]>(at).unwrap()[16], b'1');
    }

    #[test]
    fn long_work_is_interrupted() {
        let mut t = TestDomain::new();
        for n in 0..900 {
            put(&t, XS_MKDIR, format!("data/{}/{n}\0", n % 10).as_bytes());
            notify(&mut t).unwrap();
        }
        for n in 0..100 {
            put(&t, XS_WATCH, format!("error\0{n}\0").as_bytes());
            notify(&mut t).unwrap();
        }
        put(&t, XS_RM, b"data\0");
        // Nine hundred changes, of which each of a hundred watches might want to hear.
        assert!(notify(&mut t).unwrap() >= 90_000 / PREEMPT_AFTER as u32);
        put(&t, XS_MKDIR, b"data/a\0");
        assert_eq!(notify(&mut t), Ok(0));
    }

    #[test]
    fn the_rings_frame_never_becomes_a_page_table() {
        let mut t = TestDomain::new();
        for (pfn, result) in [(FREE + 1, Ok(0)), (STORE, Err(Errno::EINVAL))] {
            let (mfn, read_only) = (t.mfn(pfn), t.entry(pfn, RO));
            t.map(pfn, read_only).unwrap();
            let pin = paravane_abi::mmu::MmuextOp {
                cmd: paravane_abi::mmu::MMUEXT_PIN_L1_TABLE,
                arg1: mfn,
                ..Default::default()
            };
            t.write_at(va(FREE), &pin).unwrap();
            let this = u64::from(paravane_abi::domid::DOMID_SELF);
            assert_eq!(t.call(nr::MMUEXT_OP, [va(FREE), 1, 0, this]), result, "page {pfn}");
        }
    }
}
