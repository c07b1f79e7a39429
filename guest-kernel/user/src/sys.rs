//! System calls.
#![allow(missing_docs)] // the names are the calls'

use core::arch::{asm, naked_asm};

/// An error number.
pub type Errno = u64;
/// What a system call answers.
pub type Answer = Result<u64, Errno>;

// Linux's `uapi` headers.
pub const EINTR: Errno = 4;
pub const ECHILD: Errno = 10;
pub const EFAULT: Errno = 14;
pub const SIGINT: u64 = 2;
pub const SIGKILL: u64 = 9;
pub const SIGUSR1: u64 = 10;
pub const SIGSEGV: u64 = 11;
pub const SIGCHLD: u64 = 17;
pub const SA_RESTART: u64 = 0x1000_0000;
pub const READ: u64 = 1;
pub const WRITE: u64 = 2;

/// Makes a system call.
pub fn call<const N: usize>(number: u64, arguments: [u64; N]) -> Answer {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&arguments);
    let result: u64;
    // SAFETY: the callers here pass addresses of what they own, or of what is meant to fail.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") all[0],
            in("rsi") all[1],
            in("rdx") all[2],
            in("r10") all[3],
            in("r8") all[4],
            in("r9") all[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    if result > u64::MAX - 4096 { Err(result.wrapping_neg()) } else { Ok(result) }
}

pub fn read(file: u64, into: &mut [u8]) -> Answer {
    call(0, [file, into.as_mut_ptr() as u64, into.len() as u64])
}

pub fn write(file: u64, from: &[u8]) -> Answer {
    call(1, [file, from.as_ptr() as u64, from.len() as u64])
}

/// Writes all of it.
pub fn write_all(file: u64, mut from: &[u8]) -> Result<(), Errno> {
    while !from.is_empty() {
        let count = write(file, from)?;
        from = &from[count as usize..];
    }
    Ok(())
}

/// A text that ends with a zero, for the kernel.
#[derive(Debug)]
pub struct Text([u8; 256]);

impl Text {
    /// `parts` one after the other, cut at 255 bytes.
    pub fn of(parts: &[&str]) -> Self {
        let mut text = [0; 256];
        let bytes = parts.iter().flat_map(|part| part.bytes());
        text.iter_mut().take(255).zip(bytes).for_each(|(to, byte)| *to = byte);
        Self(text)
    }

    pub fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }
}

pub fn open(path: &str) -> Answer {
    call(2, [Text::of(&[path]).address(), 0, 0])
}

/// Opens for writing.
pub fn open_to_write(path: &str) -> Answer {
    call(2, [Text::of(&[path]).address(), 1, 0])
}

pub fn close(file: u64) -> Answer {
    call(3, [file])
}

/// Maps zeroes.
pub fn map(len: u64, rights: u64) -> Answer {
    const PRIVATE_ANONYMOUS: u64 = 0x22;
    call(9, [0, len, rights, PRIVATE_ANONYMOUS, u64::MAX, 0])
}

pub fn protect(at: u64, len: u64, rights: u64) -> Answer {
    call(10, [at, len, rights])
}

pub fn unmap(at: u64, len: u64) -> Answer {
    call(11, [at, len])
}

pub fn pipe() -> Result<[u64; 2], Errno> {
    let mut ends = [0_u32; 2];
    call(22, [ends.as_mut_ptr() as u64])?;
    Ok(ends.map(u64::from))
}

/// Two connected sockets of the family `AF_UNIX`.
pub fn socket_pair() -> Result<[u64; 2], Errno> {
    let mut ends = [0_u32; 2];
    call(53, [1, 1, 0, ends.as_mut_ptr() as u64])?;
    Ok(ends.map(u64::from))
}

pub fn yield_now() {
    let _ = call(24, []);
}

pub fn duplicate(file: u64, to: u64) -> Answer {
    call(33, [file, to])
}

pub fn sleep(nanoseconds: u64) -> Answer {
    let time = [nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000];
    call(35, [time.as_ptr() as u64, 0])
}

pub fn pid() -> u64 {
    call(39, []).unwrap_or(0)
}

pub fn parent() -> u64 {
    call(110, []).unwrap_or(0)
}

/// 0 in the child.
pub fn fork() -> Answer {
    call(57, [])
}

/// Runs a program with arguments in place of this one. Returns when that failed.
pub fn execute(path: &str, arguments: &[&str]) -> Errno {
    let mut texts = [const { Text([0; 256]) }; 16];
    let mut list = [0; 17];
    for ((text, slot), argument) in texts.iter_mut().zip(&mut list).zip(arguments) {
        *text = Text::of(&[argument]);
        *slot = text.address();
    }
    let no_environment = [0_u64];
    let path = Text::of(&[path]);
    call(59, [path.address(), list.as_ptr() as u64, no_environment.as_ptr() as u64]).err().unwrap_or(0)
}

pub fn exit(code: u64) -> ! {
    loop {
        let _ = call(231, [code]);
    }
}

/// Waits for a child, or any (`u64::MAX`): which one, and its status.
pub fn wait(which: u64, options: u64) -> Result<(u64, u32), Errno> {
    let mut status = 0_u32;
    let pid = call(61, [which, (&raw mut status) as u64, options, 0])?;
    // SAFETY: the kernel wrote it.
    Ok((pid, unsafe { (&raw const status).read_volatile() }))
}

pub fn kill(pid: u64, signal: u64) -> Answer {
    call(62, [pid, signal])
}

/// Nanoseconds of the monotonic clock.
pub fn now() -> u64 {
    let mut time = [0_u64; 2];
    let _ = call(228, [1, time.as_mut_ptr() as u64]);
    // SAFETY: the kernel wrote it.
    let [seconds, nanoseconds] = unsafe { (&raw const time).read_volatile() };
    seconds * 1_000_000_000 + nanoseconds
}

/// `struct sigaction` of the kernel.
#[repr(C)]
struct Action {
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64,
}

/// Handles a signal.
pub type Handler = extern "C" fn(u64, *const u8, *mut u8);

/// Sets the handler of a signal; `flags` are `SA_*` besides those that every handler here has.
pub fn handle(signal: u64, handler: Handler, flags: u64) -> Answer {
    handle_at(signal, handler as *const () as u64, flags)
}

/// Sets the address of a signal's handler, where there may be none.
pub fn handle_at(signal: u64, handler: u64, flags: u64) -> Answer {
    const SIGINFO_AND_RESTORER: u64 = 0x0400_0004;
    let restorer = return_from_signal as *const () as u64;
    let action = Action { handler, flags: flags | SIGINFO_AND_RESTORER, restorer, mask: 0 };
    call(13, [signal, (&raw const action) as u64, 0, 8])
}

/// Makes a signal do what it does by default, or nothing.
pub fn ignore(signal: u64, ignored: bool) -> Answer {
    let action = Action { handler: ignored.into(), flags: 0, restorer: 0, mask: 0 };
    call(13, [signal, (&raw const action) as u64, 0, 8])
}

#[unsafe(naked)]
unsafe extern "C" fn return_from_signal() {
    naked_asm!("mov eax, 15", "syscall", "ud2")
}
