//! The engine's contract, run on this engine by each transport that works here.

use super::gdt::Gdt;
use super::*;
use crate::engine::{Coherence, Exit, Machine};
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{Backing, MachineMemory, Maddr};
use crate::testing::engine::{CODE_VA, TEXT, World, code};
use crate::testing::skip::skip;
use crate::x86::exception::Fault;

fn world(transport: Transport) -> Option<World> {
    let make = |memory: &MachineMemory, layout: &HypervisorLayout| {
        KvmMachine::new(memory, layout, Some(transport), 1).map(|e| Box::new(e) as Box<dyn Machine>)
    };
    match World::new(Backing::Anonymous, make) {
        Ok(world) => Some(world),
        Err(why @ (KvmError::Absent | KvmError::Permission)) => {
            skip("kvm", why);
            None
        }
        Err(why @ KvmError::Vmcall(_)) => {
            skip("hardware-kvm", why);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A machine with two vCPUs, of which nothing is cached that the other's gate has changed.
#[test]
fn a_change_by_one_gate_is_known_to_all() {
    let make = |memory: &MachineMemory, layout: &HypervisorLayout| {
        KvmMachine::new(memory, layout, None, 2).map(|e| Box::new(e) as Box<dyn Machine>)
    };
    match World::with_vcpus(Backing::Anonymous, 2, make) {
        Ok(w) if w.engine.info().coherence == Coherence::EveryCpu => {
            skip("software-kvm", "on hardware each vCPU catches up by itself");
        }
        Ok(mut w) => crate::testing::engine::several::no_late_store(&mut w, 2000),
        Err(why @ (KvmError::Absent | KvmError::Permission)) => skip("kvm", why),
        Err(error) => panic!("{error}"),
    }
}

/// A guest can jump to 32-bit code of its own, where SYSCALL goes elsewhere (to CSTAR, AMD) or nowhere (Intel). It
/// never leads to ring 0 at an address of the guest's.
fn syscall_in_compatibility_mode(w: &mut World) {
    if host::usable_kind() == HostKind::Software {
        return skip("hardware-kvm", "no compatibility mode on a software KVM: a guest that tries it dies");
    }
    let frame = w.frame();
    w.map(0, frame, TEXT);
    w.memory.write(frame.maddr(), &code!("mov rbx, cr0", "cli")).unwrap();
    w.regs.rax = CODE_VA + 0x100;
    w.regs.rcx = Gdt::on(host::usable_kind()).user32_cs().into();
    w.load(&code!("push rcx", "push rax", "retfq"));
    let page = w.mfn_of(CODE_VA).maddr();
    w.memory.write(Maddr(page.0 + 0x100), &code!("syscall")).unwrap();
    w.regs.rbx = 0x5a5a;
    let exit = w.run();
    let undefined = Exit::Fault(Fault { vector: 6, error_code: 0, address: 0 });
    assert!(exit == Exit::Syscall || exit == undefined, "{exit:?} at {:#x}", w.regs.rip);
    assert_eq!(w.regs.rbx, 0x5a5a);
}

/// A port that the TSS opens is found open; one that is closed, closed, and the guest dies of neither.
#[test]
fn a_closed_port_is_noticed() {
    let layout = HypervisorLayout::new(64, 0);
    let memory = MachineMemory::new(layout.hypervisor_frames(), 64, Backing::Anonymous).unwrap();
    let mut machine = match KvmMachine::new(&memory, &layout, Some(Transport::Pio), 1) {
        Ok(machine) => machine,
        Err(why @ (KvmError::Absent | KvmError::Permission)) => return skip("kvm", why),
        Err(error) => panic!("{error}"),
    };
    assert!(machine.port_is_open(&memory));
    machine.gate().close_port(&memory, true).unwrap();
    assert!(!machine.port_is_open(&memory));
}

/// Without a request a transport is chosen that works, and the machine says which.
#[test]
fn a_transport_is_found() {
    let make = |memory: &MachineMemory, layout: &HypervisorLayout| {
        KvmMachine::new(memory, layout, None, 1).map(|e| Box::new(e) as Box<dyn Machine>)
    };
    match World::new(Backing::Anonymous, make) {
        Ok(mut w) => {
            assert_eq!(w.engine.info().transport, "pio");
            crate::testing::engine::cases::hypercall_by_the_page(&mut w);
        }
        Err(why @ (KvmError::Absent | KvmError::Permission)) => skip("kvm", why),
        Err(error) => panic!("{error}"),
    }
}

macro_rules! by_transport {
    ($module:ident, $transport:path) => {
        mod $module {
            use super::*;

            fn world() -> Option<World> {
                super::world($transport)
            }

            crate::testing::engine::contract!(world);

            #[test]
            fn syscall_in_compatibility_mode() {
                if let Some(mut w) = world() {
                    super::syscall_in_compatibility_mode(&mut w);
                }
            }

            #[test]
            #[ignore = "a measurement: run it alone, in release"]
            fn measure() {
                if let Some(mut w) = world() {
                    crate::testing::engine::measure::print(&mut w);
                }
            }
        }
    };
}

by_transport!(pio, Transport::Pio);
by_transport!(vmcall, Transport::Vmcall);
