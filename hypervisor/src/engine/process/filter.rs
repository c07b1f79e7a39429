//! The three seccomp filters of a guest process: what its threads may ask of Linux.
//!
//! *Listener* (both threads of a lane): a hand-over, recognised by the address of its SYSCALL instruction and its
//! number, is reported to the monitor. *Guest* (the guest thread): everything else traps to the stub, as a
//! SIGSYS that becomes an exit. Together they leave the guest thread no call at all that Linux would carry
//! out. *Mapper* (the mapper thread): mapping calls, waiting and answering, from our code only, each with
//! its arguments as we make them; anything else kills the process. Where there are several lanes a mapper waits by a
//! hand-over of its own, which no guest thread can make, instead of the other two.
//!
//! Each lane's filters know the addresses of its own copy of the stub only.
//!
//! The filters check `arch` first, so that INT 0x80 and SYSENTER (32-bit numbers) and x32 numbers never
//! match. Of several filters the most restrictive verdict counts (seccomp(2)): TRAP, USER_NOTIF, ALLOW.

use super::area::{CODE_SIZE, Lane};
use super::stub::{self, HANDOVER_NR, Place};

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Offsets in `struct seccomp_data`; arguments are two 32-bit halves each.
const NR: u32 = 0;
const ARCH: u32 = 4;
const IP: u32 = 8;
const fn arg(n: u32) -> u32 {
    16 + 8 * n
}

/// The file descriptor by which the mapper answers notifications.
pub(super) const LISTENER_FD: u64 = 0;
/// The file descriptor of machine memory in the mapper.
pub(super) const MEMORY_FD: u64 = 4;

/// A program under construction: a list of checks that all lead on, or end with a verdict.
#[derive(Debug, Default)]
struct Program(Vec<libc::sock_filter>);

impl Program {
    fn op(&mut self, code: u32, k: u32, jt: u8, jf: u8) {
        self.0.push(libc::sock_filter { code: code as u16, jt, jf, k });
    }
    fn load(&mut self, offset: u32) {
        self.op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
    }
    fn verdict(&mut self, verdict: u32) {
        self.op(libc::BPF_RET | libc::BPF_K, verdict, 0, 0);
    }
    /// Goes on if the loaded word is `value`, otherwise ends with `verdict`.
    fn must_be(&mut self, value: u32, verdict: u32) {
        self.op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 1, 0);
        self.verdict(verdict);
    }
    /// Goes on if the loaded word has no bit of `mask`, otherwise ends with `verdict`.
    fn must_lack(&mut self, mask: u32, verdict: u32) {
        self.op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, mask, 0, 1);
        self.verdict(verdict);
    }
    /// Goes on if the 64-bit field at `offset` is `value`.
    fn field_must_be(&mut self, offset: u32, value: u64, verdict: u32) {
        self.load(offset);
        self.must_be(value as u32, verdict);
        self.load(offset + 4);
        self.must_be((value >> 32) as u32, verdict);
    }
    /// `checks` and then `ALLOW`, for system call `nr` only; leaves other numbers to what follows.
    fn allow_call(&mut self, nr: i64, checks: impl FnOnce(&mut Self)) {
        let mut body = Self::default();
        checks(&mut body);
        body.verdict(libc::SECCOMP_RET_ALLOW);
        self.load(NR);
        // Every body is far shorter than the 255 instructions that a jump can skip.
        let skip = u8::try_from(body.0.len()).unwrap_or(u8::MAX);
        self.op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, nr as u32, 0, skip);
        self.0.append(&mut body.0);
    }
    fn into_words(self) -> Vec<u64> {
        let word = |f: libc::sock_filter| {
            u64::from(f.code) | u64::from(f.jt) << 16 | u64::from(f.jf) << 24 | u64::from(f.k) << 32
        };
        self.0.into_iter().map(word).collect()
    }
}

/// `yes` for the hand-over with its SYSCALL just before one of `sites`, `no` for all else.
fn hand_over_or(sites: &[u64], yes: u32, no: u32) -> Vec<u64> {
    let mut p = Program::default();
    p.load(ARCH);
    p.must_be(AUDIT_ARCH_X86_64, no);
    p.load(NR);
    p.must_be(HANDOVER_NR, no);
    for site in sites {
        // The next site is looked at if either half is another's.
        p.load(IP + 4);
        p.op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, (site >> 32) as u32, 0, 3);
        p.load(IP);
        p.op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, *site as u32, 0, 1);
        p.verdict(yes);
    }
    p.verdict(no);
    p.into_words()
}

/// Reports hand-overs to the monitor; has no opinion on anything else.
pub(super) fn listener(lane: Lane) -> Vec<u64> {
    let sites = [Place::HandedOver, Place::Errand].map(|place| stub::address_in(lane, place));
    let sites = if lane.is_alone() { sites.get(..1) } else { Some(&sites[..]) };
    hand_over_or(sites.unwrap_or_default(), libc::SECCOMP_RET_USER_NOTIF, libc::SECCOMP_RET_ALLOW)
}

/// Traps everything but hand-overs.
pub(super) fn guest(lane: Lane) -> Vec<u64> {
    let site = stub::address_in(lane, Place::HandedOver);
    hand_over_or(&[site], libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_TRAP)
}

/// What the mapper's batches are made of, and nothing else.
pub(super) fn mapper(lane: Lane) -> Vec<u64> {
    const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    const RIGHTS: u32 = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u32;
    const SHARED: u64 = (libc::MAP_SHARED | libc::MAP_FIXED) as u64;
    let mut p = Program::default();
    p.load(ARCH);
    p.must_be(AUDIT_ARCH_X86_64, KILL);
    p.load(IP + 4);
    p.must_be((lane.start() >> 32) as u32, KILL);
    p.load(IP);
    p.op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, !(CODE_SIZE as u32 - 1), 0, 0);
    p.must_be(lane.start() as u32, KILL);
    p.allow_call(libc::SYS_mmap, |p| {
        p.load(arg(2));
        p.must_lack(!RIGHTS, KILL);
        p.load(arg(3));
        p.op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, !(libc::MAP_POPULATE as u32), 0, 0);
        p.must_be(SHARED as u32, KILL);
        p.field_must_be(arg(4), MEMORY_FD, KILL);
    });
    p.allow_call(libc::SYS_munmap, |_| {});
    p.allow_call(libc::SYS_mprotect, |p| {
        p.load(arg(2));
        p.must_lack(!RIGHTS, KILL);
    });
    p.allow_call(libc::SYS_madvise, |p| p.field_must_be(arg(2), libc::MADV_POPULATE_READ as u64, KILL));
    if lane.is_alone() {
        p.allow_call(libc::SYS_futex, |p| p.field_must_be(arg(1), libc::FUTEX_WAIT as u64, KILL));
        p.allow_call(libc::SYS_ioctl, |p| {
            p.field_must_be(arg(0), LISTENER_FD, KILL);
            p.load(arg(1));
            p.must_be(libc::SECCOMP_IOCTL_NOTIF_SEND as u32, KILL);
        });
    } else {
        p.allow_call(HANDOVER_NR.into(), |p| {
            p.field_must_be(IP, stub::address_in(lane, Place::Errand), KILL);
        });
    }
    p.allow_call(libc::SYS_exit_group, |_| {});
    p.verdict(KILL);
    p.into_words()
}

#[cfg(test)]
mod tests {
    use super::super::area::{CODE, STRIDE};
    use super::*;

    /// What a filter says of a call; an interpreter of the few instructions that filters here consist of.
    fn run(program: &[u64], arch: u32, nr: u32, ip: u64, args: [u64; 6]) -> u32 {
        let mut data = vec![nr, arch, ip as u32, (ip >> 32) as u32];
        data.extend(args.iter().flat_map(|a| [*a as u32, (*a >> 32) as u32]));
        let (mut acc, mut pc) = (0u32, 0usize);
        loop {
            let w = program[pc];
            let (code, jt, jf, k) =
                (w as u16 as u32, (w >> 16) as u8 as usize, (w >> 24) as u8 as usize, (w >> 32) as u32);
            pc += 1;
            let taken = match code {
                c if c == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    acc = data[k as usize / 4];
                    continue;
                }
                c if c == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => {
                    acc &= k;
                    continue;
                }
                c if c == libc::BPF_RET | libc::BPF_K => return k,
                c if c == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => acc == k,
                c if c == libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K => acc & k != 0,
                other => panic!("instruction {other:#x}"),
            };
            pc += if taken { jt } else { jf };
        }
    }

    const X86_64: u32 = AUDIT_ARCH_X86_64;
    const I386: u32 = 0x4000_0003;

    #[test]
    fn only_the_hand_over_passes_the_guest_filter() {
        for lane in Lane::all(1).into_iter().chain(Lane::all(3)) {
            let (guest, listener) = (guest(lane), listener(lane));
            let there = stub::address_in(lane, Place::HandedOver);
            let errand = stub::address_in(lane, Place::Errand);
            let (trap, allow) = (libc::SECCOMP_RET_TRAP, libc::SECCOMP_RET_ALLOW);
            assert_eq!(run(&guest, X86_64, HANDOVER_NR, there, [7; 6]), allow);
            assert_eq!(run(&listener, X86_64, HANDOVER_NR, there, [7; 6]), libc::SECCOMP_RET_USER_NOTIF);
            let elsewhere = [there + 1, there ^ 1 << 32, 0, u64::MAX, there ^ STRIDE, there + STRIDE, errand];
            let elsewhere = elsewhere.map(|ip| (X86_64, HANDOVER_NR, ip));
            for (arch, nr, ip) in elsewhere.into_iter().chain([
                (X86_64, HANDOVER_NR | 0x4000_0000, there),
                (X86_64, libc::SYS_write as u32, there),
                (I386, HANDOVER_NR, there),
            ]) {
                assert_eq!(run(&guest, arch, nr, ip, [0; 6]), trap);
                if ip != errand || lane.is_alone() {
                    assert_eq!(run(&listener, arch, nr, ip, [0; 6]), allow);
                }
            }
        }
    }

    /// Where a mapper waits by a hand-over, only its lane's mapper can make it.
    #[test]
    fn an_errand_is_the_mapper_s_alone() {
        for lane in Lane::all(3) {
            let errand = stub::address_in(lane, Place::Errand);
            let (kill, notify) = (libc::SECCOMP_RET_KILL_PROCESS, libc::SECCOMP_RET_USER_NOTIF);
            let (mapper, listener) = (mapper(lane), listener(lane));
            assert_eq!(run(&mapper, X86_64, HANDOVER_NR, errand, [0; 6]), libc::SECCOMP_RET_ALLOW);
            assert_eq!(run(&listener, X86_64, HANDOVER_NR, errand, [0; 6]), notify);
            for ip in [errand ^ STRIDE, errand + 2, stub::address_in(lane, Place::HandedOver)] {
                assert_eq!(run(&mapper, X86_64, HANDOVER_NR, ip, [0; 6]), kill);
            }
            for (nr, arg) in [(libc::SYS_futex, libc::FUTEX_WAIT as u64), (libc::SYS_ioctl, 0)] {
                let args = [0, if arg == 0 { libc::SECCOMP_IOCTL_NOTIF_SEND } else { arg }, 0, 0, 0, 0];
                assert_eq!(run(&mapper, X86_64, nr as u32, lane.start() + 0x80, args), kill);
            }
        }
    }

    #[test]
    fn no_number_passes_from_elsewhere() {
        let guest = guest(Lane::first(1));
        for nr in (0..1024).chain(0x4000_0000..0x4000_0400).chain([u32::MAX]) {
            assert_eq!(run(&guest, X86_64, nr, 0x40_1000, [0; 6]), libc::SECCOMP_RET_TRAP);
            assert_eq!(run(&guest, I386, nr, 0x40_1000, [0; 6]), libc::SECCOMP_RET_TRAP);
        }
    }

    #[test]
    fn the_mapper_maps_machine_memory_only() {
        let p = mapper(Lane::first(1));
        let call = |nr: i64, args| run(&p, X86_64, nr as u32, CODE + 0x80, args);
        let (allow, kill) = (libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_KILL_PROCESS);
        let flags = (libc::MAP_SHARED | libc::MAP_FIXED) as u64;
        assert_eq!(call(libc::SYS_mmap, [0x1000, 0x1000, 7, flags, 4, 0]), allow);
        assert_eq!(call(libc::SYS_mmap, [0x1000, 0x1000, 3, flags | 0x8000, 4, 0]), allow);
        assert_eq!(call(libc::SYS_mmap, [0x1000, 0x1000, 3, flags | 0x20, 4, 0]), kill, "anonymous");
        assert_eq!(call(libc::SYS_mmap, [0x1000, 0x1000, 3, flags, 0, 0]), kill, "the listener");
        assert_eq!(call(libc::SYS_mmap, [0x1000, 0x1000, 3, 2, 4, 0]), kill, "private");
        assert_eq!(call(libc::SYS_munmap, [0, 0x1000, 0, 0, 0, 0]), allow);
        assert_eq!(call(libc::SYS_ioctl, [0, libc::SECCOMP_IOCTL_NOTIF_SEND, 0, 0, 0, 0]), allow);
        assert_eq!(call(libc::SYS_ioctl, [0, libc::SECCOMP_IOCTL_NOTIF_ADDFD, 0, 0, 0, 0]), kill);
        assert_eq!(call(libc::SYS_futex, [0, libc::FUTEX_WAKE as u64, 0, 0, 0, 0]), kill);
        for nr in [libc::SYS_openat, libc::SYS_execve, libc::SYS_clone, libc::SYS_mremap, libc::SYS_ptrace] {
            assert_eq!(call(nr, [0; 6]), kill);
        }
        assert_eq!(run(&p, X86_64, libc::SYS_munmap as u32, 0x40_0000, [0; 6]), kill, "not our code");
        assert_eq!(run(&p, I386, libc::SYS_munmap as u32, CODE, [0; 6]), kill);
    }
}
