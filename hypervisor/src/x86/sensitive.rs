//! Classes of privileged and sensitive instructions, and what each does at CPL 3.
//!
//! The one classification: for the audit, which finds these instructions in an image, and for whatever executes them in
//! a kernel's place. Popek and Goldberg (1974) call an instruction *sensitive* when it reads or changes the machine's
//! state, *privileged* when it traps outside the most privileged mode. x86 has sensitive instructions that do not trap
//! (Robin and Irvine, 2000, count seventeen): the dangerous ones, because they silently do something else. What each
//! does at CPL 3 was measured; the rules are in the Intel SDM, vol. 2.

use iced_x86::{Instruction, Mnemonic, Register};
use serde::Serialize;

/// What an instruction does at CPL 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// It completes without a fault, but reads or does something else than at CPL 0.
    Silent,
    /// It faults, or completes with another effect than at CPL 0, depending on its operands.
    Mixed,
    /// It faults, so that it can be emulated, at the cost of a trap.
    Traps,
}

impl Effect {
    /// All of them, the worst first.
    pub const ALL: [Self; 3] = [Self::Silent, Self::Mixed, Self::Traps];

    /// Its name in options and exports.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Mixed => "mixed",
            Self::Traps => "traps",
        }
    }

    /// A short description for people.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Silent => "goes wrong silently",
            Self::Mixed => "traps or goes wrong silently, depending on its operands",
            Self::Traps => "traps",
        }
    }
}

/// A class of privileged or sensitive instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// PUSHF, POPF.
    Flags,
    /// SGDT, SIDT, SLDT, STR, SMSW.
    StoreTables,
    /// LAR, LSL, VERR, VERW; reading a segment register.
    ReadSegment,
    /// CPUID.
    Identify,
    /// Writing a segment register.
    LoadSegment,
    /// Far CALL, JMP and RET.
    FarTransfer,
    /// IRET.
    InterruptReturn,
    /// VMCALL and the rest of the virtualization extensions.
    Virtualization,
    /// CLI, STI.
    InterruptFlag,
    /// HLT, MONITOR, MWAIT.
    Halt,
    /// MOV to and from control registers, CLTS, LMSW, XSETBV.
    ControlRegister,
    /// MOV to and from debug registers.
    DebugRegister,
    /// LGDT, LIDT, LLDT, LTR.
    LoadTables,
    /// INVLPG and its kin.
    TranslationCache,
    /// WBINVD, INVD.
    DataCache,
    /// RDMSR, WRMSR, RDPMC.
    ModelSpecific,
    /// IN, OUT, INS, OUTS.
    PortIo,
    /// SYSRET, SYSEXIT.
    SystemReturn,
    /// SWAPGS.
    SwapGs,
    /// INT n.
    SoftwareInterrupt,
    /// CLAC, STAC.
    AccessFlag,
    /// Privileged, and none of the above.
    Other,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::Flags,
        Self::StoreTables,
        Self::ReadSegment,
        Self::Identify,
        Self::LoadSegment,
        Self::FarTransfer,
        Self::InterruptReturn,
        Self::Virtualization,
        Self::InterruptFlag,
        Self::Halt,
        Self::ControlRegister,
        Self::DebugRegister,
        Self::LoadTables,
        Self::TranslationCache,
        Self::DataCache,
        Self::ModelSpecific,
        Self::PortIo,
        Self::SystemReturn,
        Self::SwapGs,
        Self::SoftwareInterrupt,
        Self::AccessFlag,
        Self::Other,
    ];

    /// Its name in options and exports.
    pub const fn id(self) -> &'static str {
        match self {
            Self::Flags => "flags",
            Self::StoreTables => "store-tables",
            Self::ReadSegment => "read-segment",
            Self::Identify => "identify",
            Self::LoadSegment => "load-segment",
            Self::FarTransfer => "far-transfer",
            Self::InterruptReturn => "interrupt-return",
            Self::Virtualization => "virtualization",
            Self::InterruptFlag => "interrupt-flag",
            Self::Halt => "halt",
            Self::ControlRegister => "control-register",
            Self::DebugRegister => "debug-register",
            Self::LoadTables => "load-tables",
            Self::TranslationCache => "translation-cache",
            Self::DataCache => "data-cache",
            Self::ModelSpecific => "model-specific",
            Self::PortIo => "port-io",
            Self::SystemReturn => "system-return",
            Self::SwapGs => "swap-gs",
            Self::SoftwareInterrupt => "software-interrupt",
            Self::AccessFlag => "access-flag",
            Self::Other => "other",
        }
    }

    /// The class of an instruction; `None` for one that does the same at every privilege level.
    pub fn of(instruction: &Instruction) -> Option<Self> {
        use Mnemonic as M;
        let class = match instruction.mnemonic() {
            M::Pushf | M::Pushfd | M::Pushfq | M::Popf | M::Popfd | M::Popfq => Self::Flags,
            M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw => Self::StoreTables,
            M::Lar | M::Lsl | M::Verr | M::Verw => Self::ReadSegment,
            M::Cpuid => Self::Identify,
            M::Lfs | M::Lgs | M::Lss | M::Pop if writes_segment(instruction) => Self::LoadSegment,
            M::Push if instruction.op0_register().is_segment_register() => Self::ReadSegment,
            M::Mov => return Self::of_mov(instruction),
            M::Iret | M::Iretd | M::Iretq => Self::InterruptReturn,
            M::Vmcall | M::Vmmcall | M::Vmfunc => Self::Virtualization,
            M::Cli | M::Sti => Self::InterruptFlag,
            M::Hlt | M::Monitor | M::Mwait => Self::Halt,
            M::Clts | M::Lmsw | M::Xsetbv => Self::ControlRegister,
            M::Lgdt | M::Lidt | M::Lldt | M::Ltr => Self::LoadTables,
            M::Invlpg | M::Invlpgb | M::Invpcid | M::Tlbsync => Self::TranslationCache,
            M::Wbinvd | M::Wbnoinvd | M::Invd => Self::DataCache,
            M::Rdmsr | M::Wrmsr | M::Wrmsrns | M::Rdmsrlist | M::Wrmsrlist | M::Rdpmc => Self::ModelSpecific,
            M::In | M::Insb | M::Insw | M::Insd | M::Out | M::Outsb | M::Outsw | M::Outsd => Self::PortIo,
            M::Sysret | M::Sysretq | M::Sysexit | M::Sysexitq => Self::SystemReturn,
            M::Swapgs => Self::SwapGs,
            M::Int => Self::SoftwareInterrupt,
            M::Clac | M::Stac => Self::AccessFlag,
            _ if is_far(instruction) => Self::FarTransfer,
            _ if instruction.is_privileged() => Self::Other,
            _ => return None,
        };
        Some(class)
    }

    fn of_mov(instruction: &Instruction) -> Option<Self> {
        let (to, from) = (instruction.op0_register(), instruction.op1_register());
        let either = |test: fn(Register) -> bool| test(to) || test(from);
        if either(Register::is_cr) {
            Some(Self::ControlRegister)
        } else if either(Register::is_dr) {
            Some(Self::DebugRegister)
        } else if to.is_segment_register() {
            Some(Self::LoadSegment)
        } else {
            from.is_segment_register().then_some(Self::ReadSegment)
        }
    }

    /// What it does at CPL 3.
    pub const fn effect(self) -> Effect {
        match self {
            Self::Flags | Self::StoreTables | Self::ReadSegment | Self::Identify => Effect::Silent,
            Self::LoadSegment | Self::FarTransfer | Self::InterruptReturn | Self::Virtualization => {
                Effect::Mixed
            }
            _ => Effect::Traps,
        }
    }

    /// A description for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flags => "flags register (PUSHF, POPF)",
            Self::StoreTables => "reading descriptor tables and machine status (SGDT, SIDT, SLDT, STR, SMSW)",
            Self::ReadSegment => "reading segments and their rights (MOV, PUSH, LAR, LSL, VERR, VERW)",
            Self::Identify => "identification (CPUID)",
            Self::LoadSegment => "loading segments (MOV, POP, LFS, LGS, LSS)",
            Self::FarTransfer => "far CALL, JMP and RET",
            Self::InterruptReturn => "return from an interrupt (IRET)",
            Self::Virtualization => "calls of another hypervisor (VMCALL, VMMCALL, VMFUNC)",
            Self::InterruptFlag => "interrupt flag (CLI, STI)",
            Self::Halt => "waiting (HLT, MONITOR, MWAIT)",
            Self::ControlRegister => "control registers (MOV CRn, CLTS, LMSW, XSETBV)",
            Self::DebugRegister => "debug registers (MOV DRn)",
            Self::LoadTables => "descriptor tables (LGDT, LIDT, LLDT, LTR)",
            Self::TranslationCache => "translation cache (INVLPG, INVPCID)",
            Self::DataCache => "data caches (WBINVD, INVD)",
            Self::ModelSpecific => "model-specific registers (RDMSR, WRMSR, RDPMC)",
            Self::PortIo => "port I/O (IN, OUT, INS, OUTS)",
            Self::SystemReturn => "return from a system call (SYSRET, SYSEXIT)",
            Self::SwapGs => "exchange of GS (SWAPGS)",
            Self::SoftwareInterrupt => "software interrupts (INT n)",
            Self::AccessFlag => "supervisor access to user pages (CLAC, STAC)",
            Self::Other => "other privileged instructions",
        }
    }
}

fn writes_segment(instruction: &Instruction) -> bool {
    instruction.mnemonic() != Mnemonic::Pop || instruction.op0_register().is_segment_register()
}

fn is_far(instruction: &Instruction) -> bool {
    instruction.is_jmp_far()
        || instruction.is_jmp_far_indirect()
        || instruction.is_call_far()
        || instruction.is_call_far_indirect()
        || instruction.mnemonic() == Mnemonic::Retf
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn class(code: &[u8]) -> Option<Class> {
        let instruction = Decoder::with_ip(64, code, 0x1000, DecoderOptions::NONE).decode();
        assert_eq!(instruction.len(), code.len(), "{code:x?}");
        Class::of(&instruction)
    }

    #[test]
    fn the_instructions_of_each_class() {
        let cases: &[(Class, &[&[u8]])] = &[
            (Class::Flags, &[&[0x9c], &[0x9d], &[0x66, 0x9d]]),
            (
                Class::StoreTables,
                &[
                    &[0x0f, 0x01, 0x00],
                    &[0x0f, 0x01, 0x08],
                    &[0x0f, 0x00, 0xc0],
                    &[0x0f, 0x00, 0xc8],
                    &[0x0f, 0x01, 0xe0],
                ],
            ),
            (
                Class::ReadSegment,
                &[
                    &[0x8c, 0xc8],
                    &[0x8c, 0x10],
                    &[0x0f, 0xa0],
                    &[0x0f, 0x02, 0xc1],
                    &[0x0f, 0x03, 0xc1],
                    &[0x0f, 0x00, 0xe0],
                    &[0x0f, 0x00, 0xe8],
                ],
            ),
            (Class::Identify, &[&[0x0f, 0xa2]]),
            (Class::LoadSegment, &[&[0x8e, 0xd0], &[0x0f, 0xa1], &[0x0f, 0xb2, 0x00], &[0x0f, 0xb5, 0x00]]),
            (Class::FarTransfer, &[&[0xcb], &[0x48, 0xcb], &[0xff, 0x18], &[0xff, 0x28], &[0xca, 8, 0]]),
            (Class::InterruptReturn, &[&[0xcf], &[0x48, 0xcf]]),
            (Class::Virtualization, &[&[0x0f, 0x01, 0xc1], &[0x0f, 0x01, 0xd9]]),
            (Class::InterruptFlag, &[&[0xfa], &[0xfb]]),
            (Class::Halt, &[&[0xf4], &[0x0f, 0x01, 0xc8], &[0x0f, 0x01, 0xc9]]),
            (
                Class::ControlRegister,
                &[
                    &[0x0f, 0x20, 0xd8],
                    &[0x0f, 0x22, 0xd8],
                    &[0x44, 0x0f, 0x22, 0xc0],
                    &[0x0f, 0x06],
                    &[0x0f, 0x01, 0xf0],
                    &[0x0f, 0x01, 0xd1],
                ],
            ),
            (Class::DebugRegister, &[&[0x0f, 0x21, 0xf8], &[0x0f, 0x23, 0xf8]]),
            (
                Class::LoadTables,
                &[&[0x0f, 0x01, 0x10], &[0x0f, 0x01, 0x18], &[0x0f, 0x00, 0xd0], &[0x0f, 0x00, 0xd8]],
            ),
            (Class::TranslationCache, &[&[0x0f, 0x01, 0x38], &[0x66, 0x0f, 0x38, 0x82, 0x00]]),
            (Class::DataCache, &[&[0x0f, 0x09], &[0x0f, 0x08]]),
            (Class::ModelSpecific, &[&[0x0f, 0x32], &[0x0f, 0x30], &[0x0f, 0x33]]),
            (Class::PortIo, &[&[0xe6, 0x80], &[0xee], &[0xec], &[0xed], &[0x6c], &[0xf3, 0x6f]]),
            (Class::SystemReturn, &[&[0x48, 0x0f, 0x07], &[0x0f, 0x07], &[0x0f, 0x35]]),
            (Class::SwapGs, &[&[0x0f, 0x01, 0xf8]]),
            (Class::SoftwareInterrupt, &[&[0xcd, 0x80]]),
            (Class::AccessFlag, &[&[0x0f, 0x01, 0xca], &[0x0f, 0x01, 0xcb]]),
            (Class::Other, &[&[0x0f, 0xc7, 0x30]]),
        ];
        for (expected, codes) in cases {
            for code in *codes {
                assert_eq!(class(code), Some(*expected), "{code:x?}");
            }
        }
    }

    #[test]
    fn options_and_exports_agree_on_names() {
        assert!(Class::ALL.iter().all(|c| serde_json::to_value(c).unwrap() == c.id()));
        assert!(Effect::ALL.iter().all(|e| serde_json::to_value(e).unwrap() == e.id()));
        assert!(Class::ALL.is_sorted() && Effect::ALL.is_sorted());
    }

    #[test]
    fn what_a_kernel_may_use() {
        let harmless: &[&[u8]] = &[
            &[0x90],
            &[0xcc],
            &[0x0f, 0x0b],
            &[0x0f, 0x05],
            &[0x0f, 0x31],
            &[0xc3],
            &[0x50],
            &[0x58],
            &[0x48, 0x89, 0xd8],
            &[0xf3, 0x0f, 0xae, 0xd0],
            &[0x0f, 0xae, 0xe8],
            &[0xff, 0x10],
            &[0xe8, 0, 0, 0, 0],
            &[0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0],
        ];
        for code in harmless {
            assert_eq!(class(code), None, "{code:x?}");
        }
    }
}
