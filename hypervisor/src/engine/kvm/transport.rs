//! How the hypercall page, and a bare SYSCALL, enter the host.
//!
//! * `pio`: the page's stub is an `OUT` that the TSS allows at CPL 3: one exit, the gate is not involved. SYSCALL
//!   arrives at an `OUT` in the gate.
//! * `vmcall`: the stub is a SYSCALL into the gate, which leaves by VMCALL and, answered, goes back by IRETQ. No port
//!   is open to the guest. KVM hands the call to user space where KVM_CAP_EXIT_HYPERCALL says so (KVM API
//!   documentation, 8.33) and only from CPL 0, so SYSCALL must raise the privilege level, as hardware does.
//!
//! Without a request the choice is `pio` if it works, else `vmcall`. `pio` needs one instruction at either end, and its
//! way back changes no segment, where `vmcall` needs a dozen and two changes of ring: it was the faster one wherever
//! both were measured (docs/hardware-kvm.md). Whether it works depends on whether KVM, and what KVM itself runs on,
//! honours the I/O bitmap of the guest's TSS; one `OUT` before the guest starts finds out. Software KVM is not tried:
//! `pio` is all that it can have, and a VMCALL there would never end.

use kvm_bindings::kvm_enable_cap;
use kvm_ioctls::{Cap, VmFd};

use super::error::{KvmError, refused};
use super::gate;
use super::host::{self, HostKind};

/// A way into the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `OUT` to a port that the guest may use.
    Pio,
    /// VMCALL, issued by the gate.
    Vmcall,
}

impl Transport {
    /// As it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pio => "pio",
            Self::Vmcall => "vmcall",
        }
    }
}

/// Makes KVM ready for a transport.
pub fn prepare(transport: Transport, vm: &VmFd) -> Result<(), KvmError> {
    match transport {
        Transport::Pio => Ok(()),
        Transport::Vmcall => allow_vmcall(vm),
    }
}

fn allow_vmcall(vm: &VmFd) -> Result<(), KvmError> {
    // There VMCALL at CPL 0 never ends, and SYSCALL does not get to CPL 0 in the first place.
    if host::usable_kind() == HostKind::Software {
        return Err(KvmError::Vmcall("a KVM with hardware support (this one, kvm_pvm, interprets ring 0)"));
    }
    const MAP_GPA_RANGE: i32 = 1 << gate::MAP_GPA_RANGE;
    if vm.check_extension_int(Cap::ExitHypercall) & MAP_GPA_RANGE == 0 {
        return Err(KvmError::Vmcall("KVM_CAP_EXIT_HYPERCALL (Linux 5.14 or newer)"));
    }
    let cap = kvm_enable_cap {
        cap: Cap::ExitHypercall as u32,
        args: [1 << gate::MAP_GPA_RANGE, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap).map_err(refused("KVM_ENABLE_CAP of KVM_CAP_EXIT_HYPERCALL"))
}

/// Bytes of the instruction by which a stub leaves: `OUT imm8, AL` and SYSCALL alike.
pub const CALL_LENGTH: u64 = 2;
/// `iret`'s number: its stub also builds the part of the frame that SYSCALL would have clobbered.
const IRET: u32 = paravane_abi::hypercall::IRET as u32;

const PUSH_RCX: &[u8] = &[0x51];
const PUSH_R11: &[u8] = &[0x41, 0x53];
const PUSH_RAX: &[u8] = &[0x50];
const POP_RCX: &[u8] = &[0x59];
const POP_R11: &[u8] = &[0x41, 0x5b];
const SYSCALL: &[u8] = &[0x0f, 0x05];
const RET: &[u8] = &[0xc3];

/// The hypercall page's entry `number`: `mov eax, number`, the way into the host, `ret`. SYSCALL clobbers rcx and
/// r11, which a call by the page must not (public/arch-x86/xen-x86_64.h), so they are kept on the stack; iret
/// pushes them, and rax, as part of its frame and does not come back.
pub fn hypercall_stub(transport: Transport, number: u32) -> [u8; 32] {
    let number_bytes = number.to_le_bytes();
    let load: [&[u8]; 2] = [&[0xb8], &number_bytes];
    let out: &[u8] = &[0xe6, gate::EXIT_PORT];
    let leave = if transport == Transport::Pio { out } else { SYSCALL };
    match (transport, number) {
        (_, IRET) => assemble(&[PUSH_RCX, PUSH_R11, PUSH_RAX, load[0], load[1], leave]),
        (Transport::Pio, _) => assemble(&[load[0], load[1], leave, RET]),
        (Transport::Vmcall, _) => {
            assemble(&[PUSH_RCX, PUSH_R11, load[0], load[1], leave, POP_R11, POP_RCX, RET])
        }
    }
}

/// The entry of `iret` where a return may need no exit: it goes on at `target`. Rcx is in the frame by then.
pub fn fast_iret_stub(target: u64) -> [u8; 32] {
    const MOV_RCX: &[u8] = &[0x48, 0xb9];
    const JMP_RCX: &[u8] = &[0xff, 0xe1];
    let (number, target) = (IRET.to_le_bytes(), target.to_le_bytes());
    assemble(&[PUSH_RCX, PUSH_R11, PUSH_RAX, &[0xb8], &number, MOV_RCX, &target, JMP_RCX])
}

/// The parts one after the other, then INT3.
fn assemble(parts: &[&[u8]]) -> [u8; 32] {
    const INT3: u8 = 0xcc;
    let mut stub = [INT3; 32];
    for (slot, byte) in stub.iter_mut().zip(parts.iter().copied().flatten()) {
        *slot = *byte;
    }
    stub
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stubs_load_their_number_and_leave() {
        let pio = |n| hypercall_stub(Transport::Pio, n);
        assert_eq!(pio(1)[..9], [0xb8, 1, 0, 0, 0, 0xe6, 0x7e, 0xc3, 0xcc]);
        assert_eq!(pio(23)[..12], [0x51, 0x41, 0x53, 0x50, 0xb8, 23, 0, 0, 0, 0xe6, 0x7e, 0xcc]);
        let vmcall = |n| hypercall_stub(Transport::Vmcall, n);
        let call = [0x51, 0x41, 0x53, 0xb8, 1, 0, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3, 0xcc];
        assert_eq!(vmcall(1)[..15], call);
        assert_eq!(vmcall(23)[..12], [0x51, 0x41, 0x53, 0x50, 0xb8, 23, 0, 0, 0, 0x0f, 0x05, 0xcc]);
    }
}
