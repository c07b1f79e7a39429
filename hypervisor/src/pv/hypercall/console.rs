//! The console: console_io, and the ring in the console page.

use std::mem::offset_of;

use paravane_abi::console::{
    CONSOLEIO_READ, CONSOLEIO_WRITE, XENCONS_IN_SIZE, XENCONS_OUT_SIZE, XenconsInterface, mask_xencons_idx,
};
use paravane_abi::errno::Errno;

use super::{Call, HypercallResult, Outcome, done};
use crate::ledger::BatchKind;
use crate::machine::memory::{BadMachineAddress, MachineMemory, Maddr};
use crate::pv::context::PvContext;
use crate::pv::domain::{PvConsole, PvDomain};
use crate::pv::event::HostService;
use crate::pv::guest_pointer::GuestSlice;

/// Bytes that one entry moves before the guest may be interrupted.
const CHUNK: usize = 4096;

/// console_io(command, count, buffer).
///
/// Xen refuses this to a domU unless built for debugging; here it is always allowed, and a guest that falls
/// back to the ring when refused works on both.
pub fn console_io(call: &mut Call<'_>) -> HypercallResult {
    let [command, count, buffer, ..] = call.args;
    let buffer = GuestSlice::<u8>::new(buffer.word(), count.low32().into());
    let count = usize::try_from(count.low32()).map_err(|_| Errno::E2BIG)?;
    let now = count.min(CHUNK);
    call.spend(now as u64);
    match command.low32() {
        CONSOLEIO_WRITE => {
            let mut bytes = [0; CHUNK];
            let part = bytes.get_mut(..now).ok_or(Errno::EINVAL)?;
            call.guest().read_slice(buffer.first(), part)?;
            call.vcpu.ledger.batch(BatchKind::ConsoleBytes, now as u64);
            call.domain.console.sink.write(part);
            let left = (count - now) as u64;
            if left > 0 {
                return Ok(Outcome::Again([
                    command.word(),
                    left,
                    buffer.after(now as u64).first().address(),
                    0,
                    0,
                    0,
                ]));
            }
            done(0)
        }
        CONSOLEIO_READ => {
            let mut read = 0;
            while read < now && !call.domain.console.input.is_empty() {
                let at = buffer.after(read as u64).first();
                // Before a byte is taken from the input: it could not be put back.
                call.guest().check_writable(at)?;
                let Some(byte) = call.domain.console.input.pop() else { break };
                call.guest().write(at, &byte)?;
                read += 1;
            }
            done(read as u64)
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// Moves bytes both ways through the ring and tells the guest if anything moved.
pub fn service(cx: &mut PvContext<'_>) {
    let PvDomain { memory, console, .. } = &mut *cx.domain;
    let ledger = &mut cx.vcpu.ledger;
    let moved = drain(memory, console).and_then(|out| {
        if out > 0 {
            ledger.batch(BatchKind::ConsoleBytes, out as u64);
        }
        Ok((out > 0) | fill(memory, console)?)
    });
    match moved {
        Ok(true) => {
            if let Some(port) = cx.domain.events.service_port(HostService::Console) {
                // A shared page that is not there would have failed the ring first.
                let _ = cx.raise(port);
            }
        }
        Ok(false) => {}
        Err(e) => cx.kill(e),
    }
}

fn index(memory: &MachineMemory, ring: Maddr, field: usize) -> Result<u32, BadMachineAddress> {
    memory.read_obj(Maddr(ring.0 + field as u64))
}

/// Guest to host. An index difference beyond the ring's size is a guest's lie: at most one ring is taken.
fn drain(memory: &MachineMemory, console: &mut PvConsole) -> Result<usize, BadMachineAddress> {
    let ring = console.ring;
    let prod = index(memory, ring, offset_of!(XenconsInterface, out_prod))?;
    let cons = index(memory, ring, offset_of!(XenconsInterface, out_cons))?;
    let count = (prod.wrapping_sub(cons) as usize).min(XENCONS_OUT_SIZE);
    if count == 0 {
        return Ok(0);
    }
    let mut bytes = [0; XENCONS_OUT_SIZE];
    let base = ring.0 + offset_of!(XenconsInterface, out) as u64;
    let start = mask_xencons_idx(cons, XENCONS_OUT_SIZE);
    let first = count.min(XENCONS_OUT_SIZE - start);
    let (head, tail) = bytes.split_at_mut(first);
    memory.read(Maddr(base + start as u64), head)?;
    if let Some(wrapped) = tail.get_mut(..count - first) {
        memory.read(Maddr(base), wrapped)?;
    }
    console.sink.write(bytes.get(..count).unwrap_or_default());
    memory.write_obj(Maddr(ring.0 + offset_of!(XenconsInterface, out_cons) as u64), &prod)?;
    Ok(count)
}

/// Host to guest: as many typed bytes as there is room for. True if there were any.
fn fill(memory: &MachineMemory, console: &PvConsole) -> Result<bool, BadMachineAddress> {
    if console.input.is_empty() {
        return Ok(false);
    }
    let ring = console.ring;
    let cons = index(memory, ring, offset_of!(XenconsInterface, in_cons))?;
    let mut prod = index(memory, ring, offset_of!(XenconsInterface, in_prod))?;
    let mut room = XENCONS_IN_SIZE.saturating_sub(prod.wrapping_sub(cons) as usize);
    let mut any = false;
    while room > 0
        && let Some(byte) = console.input.pop()
    {
        let at = offset_of!(XenconsInterface, in_) + mask_xencons_idx(prod, XENCONS_IN_SIZE);
        memory.write_obj(Maddr(ring.0 + at as u64), &byte)?;
        prod = prod.wrapping_add(1);
        room -= 1;
        any = true;
    }
    memory.write_obj(Maddr(ring.0 + offset_of!(XenconsInterface, in_prod) as u64), &prod)?;
    Ok(any)
}

#[cfg(test)]
mod tests {
    use paravane_abi::domid::DOMID_SELF;
    use paravane_abi::hypercall as nr;
    use paravane_abi::mmu::{MMUEXT_PIN_L1_TABLE, MmuextOp};

    use crate::machine::console::{CaptureSink, ConsoleInput};
    use crate::machine::memory::Backing;
    use crate::pv::hypercall::console::*;
    use crate::testing::pv::{CONSOLE, FREE, NOWHERE, RO, TestDomain, va};

    #[test]
    fn console_io_moves_bytes_in_parts() {
        let mut t = TestDomain::new();
        let text = "0123456789".repeat(1000);
        t.guest().write_bytes(va(FREE), text.as_bytes()).unwrap();
        let write = u64::from(CONSOLEIO_WRITE);
        assert_eq!(t.call(nr::CONSOLE_IO, [write, 10_000, va(FREE)]), Ok(0));
        assert_eq!(t.output.text(), text);
        assert_eq!(t.call(nr::CONSOLE_IO, [write, 1, NOWHERE]), Err(Errno::EFAULT));
        t.input.push(b"typed");
        let read = u64::from(CONSOLEIO_READ);
        assert_eq!(t.call(nr::CONSOLE_IO, [read, 3, va(FREE)]), Ok(3));
        assert_eq!(t.call(nr::CONSOLE_IO, [read, 99, va(FREE) + 3]), Ok(2));
        assert_eq!(t.read_at::<[u8; 5]>(va(FREE)), Ok(*b"typed"));
        t.input.push(b"kept");
        assert_eq!(t.call(nr::CONSOLE_IO, [read, 4, NOWHERE]), Err(Errno::EFAULT));
        assert_eq!(
            t.call(nr::CONSOLE_IO, [read, 4, va(FREE)]),
            Ok(4),
            "no byte was lost to the page that is not there"
        );
        assert_eq!(t.call(nr::CONSOLE_IO, [2, 0, 0]), Err(Errno::ENOSYS));
    }

    #[test]
    fn the_rings_frame_never_becomes_a_page_table() {
        let mut t = TestDomain::new();
        // A page that nobody maps writable may be pinned as an L1 table; the host's indices must not land in one.
        for (pfn, result) in [(FREE + 1, Ok(0)), (CONSOLE, Err(Errno::EINVAL))] {
            let (mfn, read_only) = (t.mfn(pfn), t.entry(pfn, RO));
            t.map(pfn, read_only).unwrap();
            let pin = MmuextOp { cmd: MMUEXT_PIN_L1_TABLE, arg1: mfn, ..Default::default() };
            t.write_at(va(FREE), &pin).unwrap();
            let pinned = t.call(nr::MMUEXT_OP, [va(FREE), 1, 0, u64::from(DOMID_SELF)]);
            assert_eq!(pinned, result, "page {pfn}");
        }
    }

    fn setup() -> (MachineMemory, PvConsole, CaptureSink) {
        let sink = CaptureSink::default();
        let console =
            PvConsole { ring: Maddr(0), sink: Box::new(sink.clone()), input: ConsoleInput::default() };
        (MachineMemory::new(1, 0, Backing::Anonymous).unwrap(), console, sink)
    }

    fn set(m: &MachineMemory, field: usize, value: u32) {
        m.write_obj(Maddr(field as u64), &value).unwrap();
    }

    #[test]
    fn output_wraps() {
        let (m, mut c, sink) = setup();
        let out = offset_of!(XenconsInterface, out);
        m.write(Maddr((out + XENCONS_OUT_SIZE - 2) as u64), b"he").unwrap();
        m.write(Maddr(out as u64), b"llo").unwrap();
        set(&m, offset_of!(XenconsInterface, out_cons), u32::MAX - 1);
        set(&m, offset_of!(XenconsInterface, out_prod), 3);
        assert_eq!(drain(&m, &mut c), Ok(5));
        assert_eq!(sink.text(), "hello");
        assert_eq!(drain(&m, &mut c), Ok(0));
    }

    #[test]
    fn lying_indices_move_at_most_one_ring() {
        let (m, mut c, sink) = setup();
        set(&m, offset_of!(XenconsInterface, out_prod), 0x8000_0000);
        assert_eq!(drain(&m, &mut c), Ok(XENCONS_OUT_SIZE));
        assert_eq!(sink.text().len(), XENCONS_OUT_SIZE);
        c.input.push(b"x");
        set(&m, offset_of!(XenconsInterface, in_prod), 5000);
        assert_eq!(fill(&m, &c), Ok(false), "a full ring takes nothing");
    }

    #[test]
    fn input_arrives_in_order() {
        let (m, c, _) = setup();
        c.input.push(b"ab");
        assert_eq!(fill(&m, &c), Ok(true));
        assert_eq!(m.read_obj::<[u8; 2]>(Maddr(0)), Ok(*b"ab"));
        assert_eq!(fill(&m, &c), Ok(false));
    }
}
