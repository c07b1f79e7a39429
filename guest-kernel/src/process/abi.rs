//! Linux's numbers and structures for x86-64 (its `asm/unistd_64.h` and `uapi` headers), so that a program runs there,
//! too.
#![forbid(unsafe_code)]

/// Numbers of system calls.
pub mod number {
    #![allow(missing_docs)]
    pub const READ: u64 = 0;
    pub const WRITE: u64 = 1;
    pub const OPEN: u64 = 2;
    pub const CLOSE: u64 = 3;
    pub const LSEEK: u64 = 8;
    pub const MMAP: u64 = 9;
    pub const MPROTECT: u64 = 10;
    pub const MUNMAP: u64 = 11;
    pub const BRK: u64 = 12;
    pub const RT_SIGACTION: u64 = 13;
    pub const RT_SIGPROCMASK: u64 = 14;
    pub const RT_SIGRETURN: u64 = 15;
    pub const PIPE: u64 = 22;
    pub const SCHED_YIELD: u64 = 24;
    pub const DUP2: u64 = 33;
    pub const PAUSE: u64 = 34;
    pub const NANOSLEEP: u64 = 35;
    pub const GETPID: u64 = 39;
    pub const SOCKETPAIR: u64 = 53;
    pub const FORK: u64 = 57;
    pub const EXECVE: u64 = 59;
    pub const EXIT: u64 = 60;
    pub const WAIT4: u64 = 61;
    pub const KILL: u64 = 62;
    pub const GETPPID: u64 = 110;
    pub const ARCH_PRCTL: u64 = 158;
    pub const GETTID: u64 = 186;
    pub const CLOCK_GETTIME: u64 = 228;
    pub const EXIT_GROUP: u64 = 231;
    pub const PIPE2: u64 = 293;
}

/// An error number; a system call answers with its negation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Errno {
    Perm = 1,
    NoEnt = 2,
    Srch = 3,
    Intr = 4,
    TooBig = 7,
    NoExec = 8,
    BadF = 9,
    Child = 10,
    Again = 11,
    NoMem = 12,
    Acces = 13,
    Fault = 14,
    Inval = 22,
    NFile = 23,
    MFile = 24,
    SPipe = 29,
    RoFs = 30,
    Pipe = 32,
    NoSys = 38,
}

/// What a system call answers.
pub type Answer = Result<u64, Errno>;

/// Answers as the value of RAX.
pub fn rax(answer: Answer) -> u64 {
    answer.unwrap_or_else(|errno| (errno as u64).wrapping_neg())
}

/// `PROT_*` and `MAP_*`.
pub mod map {
    #![allow(missing_docs)]
    pub const READ: u64 = 1;
    pub const WRITE: u64 = 2;
    pub const EXEC: u64 = 4;
    pub const SHARED: u64 = 1;
    pub const PRIVATE: u64 = 2;
    pub const FIXED: u64 = 0x10;
    pub const ANONYMOUS: u64 = 0x20;
}

/// Numbers of signals.
pub mod signal {
    #![allow(missing_docs)]
    pub const INT: u8 = 2;
    pub const ILL: u8 = 4;
    pub const TRAP: u8 = 5;
    pub const BUS: u8 = 7;
    pub const FPE: u8 = 8;
    pub const KILL: u8 = 9;
    pub const SEGV: u8 = 11;
    pub const PIPE: u8 = 13;
    pub const CHLD: u8 = 17;
    pub const CONT: u8 = 18;
    pub const STOP: u8 = 19;
    pub const URG: u8 = 23;
    pub const WINCH: u8 = 28;
}

/// `ARCH_SET_FS` and `ARCH_SET_GS` of `arch_prctl`.
pub const ARCH_SET_GS: u64 = 0x1001;
/// See [`ARCH_SET_GS`].
pub const ARCH_SET_FS: u64 = 0x1002;
/// `WNOHANG` of `wait4`.
pub const WNOHANG: u64 = 1;
/// `O_ACCMODE` of `open`: nothing but reads is possible.
pub const O_ACCMODE: u64 = 3;
/// `CLOCK_REALTIME`, and the last clock that answers with the time since the start.
pub const CLOCK_MONOTONIC_COARSE: u64 = 6;

/// The status that `wait4` reports for `exit(code)`.
pub const fn exited(code: u64) -> u32 {
    (code as u32 & 0xff) << 8
}

/// The status that `wait4` reports for a process that a signal ended.
pub const fn killed(signal: u8) -> u32 {
    signal as u32 & 0x7f
}
