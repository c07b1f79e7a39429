//! Linux as this engine uses it: one thin function for each call, with safe signatures where they can be.
//!
//! What may not be done here: policy. A function makes its call and says what the kernel answered.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::io::Write;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

/// What a system call answered, as a result.
pub(super) fn check(answer: i64) -> io::Result<i64> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// A memfd of `size` zero bytes.
pub(super) fn memfd(name: &CStr, flags: u32, size: u64) -> io::Result<OwnedFd> {
    // SAFETY: `name` is NUL-terminated; the call has no other precondition.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), flags) }.into())?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    let file = unsafe { File::from_raw_fd(fd as RawFd) };
    file.set_len(size)?;
    Ok(file.into())
}

/// Maps `size` bytes of a memfd from `offset` on, shared, readable and writable.
pub(super) fn map_shared(fd: BorrowedFd<'_>, offset: u64, size: u64) -> io::Result<NonNull<u8>> {
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let (fd, offset) = (fd.as_raw_fd(), offset as libc::off_t);
    // SAFETY: a fresh mapping at an address that the kernel chooses overlaps no memory of this program.
    let p = unsafe { libc::mmap(std::ptr::null_mut(), size as usize, rights, libc::MAP_SHARED, fd, offset) };
    if p == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(p.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

/// Ends a mapping made by [`map_shared`], which nobody may use any more.
pub(super) fn unmap(base: NonNull<u8>, size: u64) {
    // SAFETY: the range is one that `map_shared` made, and its owner is being dropped.
    unsafe { libc::munmap(base.as_ptr().cast(), size as usize) };
}

/// Whether this process's capabilities are root's.
pub(super) fn is_root() -> bool {
    // SAFETY: has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Whether this process may map a page at `address`; maps none. An address that is in use already may be mapped.
pub(super) fn can_map(address: u64) -> bool {
    const PAGE: usize = 4096;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let at = std::ptr::without_provenance_mut(address as usize);
    // SAFETY: MAP_FIXED_NOREPLACE replaces nothing, and nobody accesses the page.
    let mapped = unsafe { libc::mmap(at, PAGE, libc::PROT_NONE, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return io::Error::last_os_error().raw_os_error() == Some(libc::EEXIST);
    }
    // SAFETY: the page that was just mapped, which nobody else knows of.
    unsafe { libc::munmap(mapped, PAGE) };
    mapped == at
}

/// Makes a part of a memfd zero, in every mapping of it, and gives its memory back.
pub(super) fn punch_hole(memfd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: touches the file only; what is mapped of it stays mapped.
    check(unsafe { libc::fallocate(memfd.as_raw_fd(), mode, offset as i64, len as i64) }.into()).map(|_| ())
}

/// Wakes who waits on a futex that processes share.
pub(super) fn futex_wake(word: &AtomicU32) {
    // SAFETY: `word` is a live, aligned u32; waking has no other precondition.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1, 0, 0, 0) };
}

/// What a seccomp listener received.
pub(super) enum Received {
    /// A thread handed over: the notification's id, which thread it was, and the call's arguments.
    Call { id: u64, thread: u32, args: [u64; 6] },
    /// A signal interrupted us, or the caller vanished between calling and being seen.
    Nothing,
    /// Nobody is left who could call.
    Gone,
}

/// Waits for a notification.
pub(super) fn receive(listener: BorrowedFd<'_>) -> Received {
    // SAFETY: plain data, for which all zeroes is a value; the kernel demands zeroes.
    let mut notif: libc::seccomp_notif = unsafe { zeroed() };
    // SAFETY: the pointer is to a structure of the size that the request encodes.
    let answer = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut notif) };
    if answer == 0 {
        return Received::Call { id: notif.id, thread: notif.pid, args: notif.data.args };
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::EINTR | libc::EAGAIN) => Received::Nothing,
        _ => Received::Gone,
    }
}

/// Answers a notification: the system call of its caller returns 0. `false` if the caller is gone.
pub(super) fn answer(listener: BorrowedFd<'_>, id: u64) -> bool {
    let answer = libc::seccomp_notif_resp { id, val: 0, error: 0, flags: 0 };
    // SAFETY: the pointer is to a structure of the size that the request encodes.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) == 0 }
}

/// Asks that a notification's two sides run on one CPU by turns (Linux 6.6); older kernels decline.
pub(super) fn hand_over_synchronously(listener: BorrowedFd<'_>) {
    const SYNC_WAKE_UP: u64 = 1;
    // SAFETY: this request takes its argument by value.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) };
}

/// Waits until the listener has a notification or the process of `pidfd` ended.
pub(super) fn wait_readable(listener: BorrowedFd<'_>, pidfd: BorrowedFd<'_>) {
    let want = |fd: BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut fds = [want(listener), want(pidfd)];
    // SAFETY: the array is live and its length is passed.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
}

/// Receives one descriptor from `socket`, and the byte that comes with it; `None` when the other side closed it without
/// sending one.
pub(super) fn receive_fd(socket: &UnixStream) -> io::Result<Option<(u8, OwnedFd)>> {
    #[repr(C, align(8))]
    struct Control([u8; 24]);
    let (mut byte, mut control) = ([0u8; 1], Control([0; 24]));
    let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: plain data, for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut iov, 1);
    (message.msg_control, message.msg_controllen) = ((&raw mut control).cast(), size_of::<Control>());
    loop {
        // SAFETY: every pointer in `message` is to a live local of the length given with it.
        let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match check(got as i64) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    // SAFETY: `message` was filled by the kernel and its control buffer is live.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, so it is the header that lies in `control`; the only kind that this socket carries
    // is one descriptor, freshly installed for us.
    let fd = unsafe { OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()) };
    Ok(Some((byte[0], fd)))
}

/// Sends `signal` to a thread of a process that was not waited for, so that its number is its own. May be called from a
/// signal handler.
pub(super) fn signal_thread(process: u32, thread: u32, signal: i32) {
    // SAFETY: no memory is involved.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal) };
}

/// The calling thread's number.
pub(super) fn this_thread() -> u32 {
    // SAFETY: has no precondition.
    unsafe { libc::gettid() }.unsigned_abs()
}

/// Sends `signal` to the process of `pidfd`. May be called from a signal handler.
pub(super) fn signal(pidfd: RawFd, signal: i32) {
    // SAFETY: a descriptor that is not a pidfd is refused; no memory is involved.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, 0, 0) };
}

/// How a process ended, once it has; reaps it. `None` while it lives, unless `block`.
pub(super) fn reap(pidfd: BorrowedFd<'_>, block: bool) -> Option<Ended> {
    wait_for(pidfd, if block { 0 } else { libc::WNOHANG })
}

/// The same without reaping it: its number stays its own.
pub(super) fn peek(pidfd: BorrowedFd<'_>, block: bool) -> Option<Ended> {
    wait_for(pidfd, libc::WNOWAIT | if block { 0 } else { libc::WNOHANG })
}

fn wait_for(pidfd: BorrowedFd<'_>, options: i32) -> Option<Ended> {
    // SAFETY: plain data, for which all zeroes is a value.
    let mut info: libc::siginfo_t = unsafe { zeroed() };
    let options = options | libc::WEXITED | libc::__WALL;
    loop {
        // SAFETY: `info` is live; the descriptor is borrowed.
        let answer =
            unsafe { libc::waitid(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, &raw mut info, options) };
        if answer == 0 {
            break;
        }
        if io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            // Reaped by someone else in our process: it ended, and how is lost.
            return Some(Ended::Unknown);
        }
    }
    // SAFETY: waitid filled the fields that a child's end has.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    match info.si_code {
        _ if pid == 0 => None,
        libc::CLD_EXITED => Some(Ended::Status(status)),
        libc::CLD_KILLED | libc::CLD_DUMPED => Some(Ended::Signal(status)),
        _ => Some(Ended::Unknown),
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself, with this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody can say any more.
    Unknown,
}

/// The highest limit on the size of core dumps that this process, and those that it makes, may set.
pub(super) fn hard_core_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live local; where the call fails it stays 0.
    unsafe { libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) };
    limit.rlim_max
}

/// The running kernel's version, as (major, minor).
pub(super) fn kernel_version() -> (u32, u32) {
    // SAFETY: plain data, for which all zeroes is a value.
    let mut names: libc::utsname = unsafe { zeroed() };
    // SAFETY: `names` is live.
    unsafe { libc::uname(&raw mut names) };
    let mut numbers = names.release.iter().map(|c| *c as u8).take_while(|c| *c != 0);
    let mut number = || {
        numbers.by_ref().map_while(|c| char::from(c).to_digit(10)).fold(0u32, |n, d| n.saturating_mul(10) + d)
    };
    (number(), number())
}

/// A timer on the monotonic clock that sends `signal` with `value` to the calling thread. The kernel's own id,
/// for which libc has no type that a signal handler could use.
pub(super) fn make_timer(signal: i32, value: usize) -> io::Result<i32> {
    // SAFETY: plain data, for which all zeroes is a value.
    let mut event: libc::sigevent = unsafe { zeroed() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = signal;
    event.sigev_value.sival_ptr = std::ptr::without_provenance_mut(value);
    // SAFETY: has no precondition.
    event.sigev_notify_thread_id = unsafe { libc::gettid() };
    let mut timer = -1i32;
    // SAFETY: both pointers are to live locals; the kernel stores an int.
    let answer = unsafe {
        libc::syscall(libc::SYS_timer_create, libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
    };
    check(answer)?;
    Ok(timer)
}

/// Sets a timer to go off in `ns` and then every `interval_ns`; 0 stops it. May be called in a signal handler.
pub(super) fn set_timer(timer: i32, ns: i64, interval_ns: i64) {
    let time = |ns: i64| libc::timespec { tv_sec: ns / 1_000_000_000, tv_nsec: ns % 1_000_000_000 };
    let when = libc::itimerspec { it_interval: time(interval_ns), it_value: time(ns) };
    // SAFETY: `when` is a live local; the kernel refuses an id that does not name a timer.
    unsafe { libc::syscall(libc::SYS_timer_settime, timer, 0, &raw const when, 0) };
}

/// Ends a timer.
pub(super) fn delete_timer(timer: i32) {
    // SAFETY: the kernel refuses an id that does not name a timer.
    unsafe { libc::syscall(libc::SYS_timer_delete, timer) };
}

/// CPU time that a thread of another process has used; `None` if it is gone, or /proc is not to be had. May be called
/// in a signal handler.
pub(super) fn thread_time_ns(process: u32, thread: u32) -> Option<u64> {
    let mut path = [0u8; 64];
    let mut text = path.as_mut_slice();
    write!(text, "/proc/{process}/task/{thread}/schedstat\0").ok()?;
    let mut words = [0u8; 64];
    // SAFETY: the path ends with a NUL, the buffer is live and of the length given, the descriptor is ours alone.
    let len = unsafe {
        let fd = libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return None;
        }
        let len = libc::read(fd, words.as_mut_ptr().cast(), words.len());
        libc::close(fd);
        len
    };
    let words = words.get(..usize::try_from(len).ok()?)?;
    let first = words.split(|byte| *byte == b' ').next()?;
    std::str::from_utf8(first).ok()?.parse().ok()
}

/// CPU time that a process has used; 0 if it is gone. May be called in a signal handler.
pub(super) fn cpu_time_ns(pid: u32) -> u64 {
    // The id of a process's clock (clock_getcpuclockid(3) makes the same).
    const SCHEDULED_TIME: i32 = 2;
    let clock = (!(pid as i32)) << 3 | SCHEDULED_TIME;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a live local; the kernel refuses an id that does not name a clock.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
