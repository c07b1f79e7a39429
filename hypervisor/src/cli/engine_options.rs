//! The choices that several commands offer, in the words of the command line.

use clap::ValueEnum;
use clap::builder::PossibleValuesParser;

use crate::launch::{EngineChoice, TransportChoice};
use crate::technique::TECHNIQUES;

/// `--technique` and `--baseline`: the names of the table.
pub(super) fn technique_names() -> PossibleValuesParser {
    PossibleValuesParser::new(TECHNIQUES.each_ref().map(|technique| technique.name))
}

/// `--engine`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum EngineArg {
    /// The best that works here: hardware KVM, a sandboxed process, software KVM, in this order
    #[default]
    Auto,
    /// KVM, through /dev/kvm
    Kvm,
    /// A sandboxed process; needs no /dev/kvm
    Process,
    /// None, for techniques that execute the guest themselves
    Interpreter,
}

impl From<EngineArg> for EngineChoice {
    fn from(arg: EngineArg) -> Self {
        match arg {
            EngineArg::Auto => Self::Auto,
            EngineArg::Kvm => Self::Kvm,
            EngineArg::Process => Self::Process,
            EngineArg::Interpreter => Self::Interpreter,
        }
    }
}

/// `--transport`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum TransportArg {
    /// Whatever is best on this machine
    #[default]
    Auto,
    /// An OUT to a port that the guest may use
    Pio,
    /// VMCALL, issued by the ring-0 gate
    Vmcall,
}

impl From<TransportArg> for TransportChoice {
    fn from(arg: TransportArg) -> Self {
        match arg {
            TransportArg::Auto => Self::Auto,
            TransportArg::Pio => Self::Pio,
            TransportArg::Vmcall => Self::Vmcall,
        }
    }
}
