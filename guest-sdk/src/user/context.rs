//! The state of a program while it does not run.
#![forbid(unsafe_code)]

use crate::trap::TrapFrame;

/// General registers of a program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rip: u64,
    pub rflags: u64,
    pub rsp: u64,
}

/// Flags that a program may set: status flags, TF, DF, RF, AC, ID.
const USER_FLAGS: u64 = 0x0025_0dd5;
/// RFLAGS.IF and the bit that is always set: a program can always be interrupted.
const FIXED_FLAGS: u64 = 0x202;

impl Registers {
    pub(super) fn of(frame: &TrapFrame) -> Self {
        let TrapFrame { r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, .. } =
            *frame;
        let TrapFrame { rip, rflags, rsp, .. } = *frame;
        Self { r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, rip, rflags, rsp }
    }

    /// RFLAGS as a program may run with them, whatever was put there.
    pub const fn checked_flags(&self) -> u64 {
        self.rflags & USER_FLAGS | FIXED_FLAGS
    }

    pub(super) fn frame(&self, selectors: (u16, u16)) -> TrapFrame {
        let Self {
            r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, rip, rsp, ..
        } = *self;
        TrapFrame {
            r15,
            r14,
            r13,
            r12,
            rbp,
            rbx,
            r11,
            r10,
            r9,
            r8,
            rax,
            rcx,
            rdx,
            rsi,
            rdi,
            vector: 0,
            error_code: 0,
            rip,
            cs: selectors.0.into(),
            rflags: self.checked_flags(),
            rsp,
            ss: selectors.1.into(),
        }
    }
}

/// Bytes of an XSAVE area (SDM vol. 1, 13.4) up to the end of AVX-512's state.
const VECTOR_BYTES: usize = 2688;
/// Offset and initial values of FCW and MXCSR (SDM vol. 1, 13.4.1 and 13.6).
const FCW: (usize, [u8; 2]) = (0, 0x037f_u16.to_le_bytes());
const MXCSR: (usize, [u8; 4]) = (24, 0x1f80_u32.to_le_bytes());
/// Bits of MXCSR that every processor has.
const MXCSR_MASK: u32 = 0xffff;
/// XSTATE_BV, the first word after the legacy area.
const XSTATE_BV: usize = LEGACY_BYTES;
/// Bytes of the legacy area, which FXSAVE writes.
const LEGACY_BYTES: usize = 512;

/// x87, SSE and AVX registers of a program, as FXSAVE or XSAVE write them.
#[repr(C, align(64))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VectorState([u8; VECTOR_BYTES]);

impl VectorState {
    /// The state that a program starts with.
    pub const fn new() -> Self {
        let mut bytes = [0; VECTOR_BYTES];
        [bytes[FCW.0], bytes[FCW.0 + 1]] = FCW.1;
        [bytes[MXCSR.0], bytes[MXCSR.0 + 1], bytes[MXCSR.0 + 2], bytes[MXCSR.0 + 3]] = MXCSR.1;
        Self(bytes)
    }

    /// The part that FXSAVE writes: x87 and SSE registers.
    pub fn legacy(&self) -> &[u8] {
        self.0.split_at(LEGACY_BYTES).0
    }

    /// Sets x87 and SSE registers from 512 bytes in the form of FXSAVE; whatever is there can be loaded afterwards.
    pub fn set_legacy(&mut self, bytes: &[u8; LEGACY_BYTES]) {
        self.0[..LEGACY_BYTES].copy_from_slice(bytes);
        let mxcsr =
            u32::from_le_bytes([bytes[MXCSR.0], bytes[MXCSR.0 + 1], bytes[MXCSR.0 + 2], bytes[MXCSR.0 + 3]]);
        self.0[MXCSR.0..MXCSR.0 + 4].copy_from_slice(&(mxcsr & MXCSR_MASK).to_le_bytes());
        self.0[XSTATE_BV] |= 3;
    }

    /// The area, for the instructions that save and load it.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }
}

impl Default for VectorState {
    fn default() -> Self {
        Self::new()
    }
}

/// The state of a program while it does not run: all its registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserContext {
    /// General registers. The kernel may change all of them; flags that are the kernel's own are not loaded.
    pub registers: Registers,
    /// The base of FS: where thread-local storage is.
    pub fs_base: u64,
    /// The base of GS. A program can set both bases by instructions of its own, if the processor has them; what it set
    /// so is lost when another program runs.
    pub gs_base: u64,
    /// Vector registers.
    pub vectors: VectorState,
}

impl UserContext {
    /// A program that begins at `entry` with its stack at `stack` and everything else zero.
    pub fn new(entry: u64, stack: u64) -> Self {
        let registers = Registers { rip: entry, rsp: stack, ..Registers::default() };
        Self { registers, ..Self::default() }
    }
}

/// Why user mode was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Left {
    /// The program executed SYSCALL; its registers say what it wants.
    Syscall,
    /// The program raised an exception. RIP is at the instruction, as the vector's definition has it.
    Fault {
        /// The vector (SDM vol. 3, 6.3).
        vector: u8,
        /// The error code; 0 for vectors without one.
        error: u64,
        /// The address of a page fault.
        address: u64,
    },
    /// Events arrived, and were handled.
    Interrupted,
}
