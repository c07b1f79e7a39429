//! Why KVM cannot be used, and what to do about it.

use crate::host::limit::Advice;
use crate::machine::memory::BadMachineAddress;

/// Why the KVM engine could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no /dev/kvm.
    #[error("there is no /dev/kvm: this machine offers no KVM; load a kvm module")]
    Absent,
    /// /dev/kvm may not be opened.
    #[error("cannot open /dev/kvm: permission denied; add yourself to the kvm group")]
    Permission,
    /// Another failure to open it.
    #[error("cannot open /dev/kvm: {0}{advice}", advice = Advice::of_files(.0))]
    Open(std::io::Error),
    /// A capability is missing.
    #[error("this KVM lacks {0}, which Paravane needs; use a newer kernel")]
    Missing(&'static str),
    /// VMCALL was asked for and cannot work.
    #[error("--transport vmcall needs {0}; use --transport pio")]
    Vmcall(&'static str),
    /// Neither transport works.
    #[error(
        "this KVM gives a guest at CPL 3 no way into the host: the port that its TSS opens is closed, and \
         KVM_CAP_EXIT_HYPERCALL is missing; use a newer kernel"
    )]
    NoWay,
    /// Several virtual CPUs would disagree about the time.
    #[error(
        "this KVM cannot give its virtual CPUs the same time-stamp counter (KVM_VCPU_TSC_OFFSET is missing); use --vcpus 1, \
         or Linux 5.16 or newer"
    )]
    Clocks,
    /// The timer of its deadlines could not be made.
    #[error("cannot make a timer: {0}{advice}", advice = Advice::of_timer(.0))]
    Timer(std::io::Error),
    /// A set-up call failed.
    #[error("KVM refused {step}: {error}{}", Advice::of_files(error))]
    Refused {
        /// The call.
        step: &'static str,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// More memory than the gate's page tables can map.
    #[error("a guest on KVM can have {largest_gib} GiB at most; lower --mem to {largest_gib}G")]
    TooLarge {
        /// The largest guest, in GiB.
        largest_gib: u64,
    },
    /// A kernel cannot run at CPL 0.
    #[error(
        "a kernel at CPL 0 needs KVM with hardware support (VMX or SVM); this one is in software, which interprets CPL \
         0 and knows no SSE there"
    )]
    Ring0,
    /// The layout does not fit machine memory.
    #[error("cannot install the gate: {0}")]
    Gate(#[from] BadMachineAddress),
}

pub(super) fn refused(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |e| KvmError::Refused { step, error: std::io::Error::from_raw_os_error(e.errno()) }
}
