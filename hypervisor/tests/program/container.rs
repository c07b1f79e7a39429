//! In a container: no privileges, no /dev/kvm, and a seccomp profile like the default one of container engines. The
//! process engine must work there. If a profile forbids a call that guest processes need, the error names the call.

use std::io;
use std::os::unix::process::CommandExt;

use super::{Ran, engines, paravane, ran, skip};

/// System calls that the default profiles of container engines refuse to containers without capabilities.
const DENIED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_setup,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mbind,
    libc::SYS_mount,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Runs the program under a seccomp filter that fails `denied` with EPERM and clone3 with ENOSYS, and with
/// `no_new_privs`.
fn under(denied: &[libc::c_long], args: &[&str]) -> Ran {
    let op = |code: u32, k: u32, jt: u8| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    let equal = |nr: libc::c_long, jt| op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, nr as u32, jt);
    let verdict = |verdict| op(libc::BPF_RET | libc::BPF_K, verdict, 0);
    let refuse = |errno: i32| verdict(libc::SECCOMP_RET_ERRNO | errno as u32);
    let count = u8::try_from(denied.len()).expect("broken test: too many calls for one jump");
    let mut filter =
        vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0), equal(libc::SYS_clone3, count + 2)];
    filter.extend(denied.iter().zip((1..=count).rev()).map(|(nr, rest)| equal(*nr, rest)));
    filter.extend([verdict(libc::SECCOMP_RET_ALLOW), refuse(libc::EPERM), refuse(libc::ENOSYS)]);

    let mut command = paravane(env!("CARGO_BIN_EXE_paravane"), args);
    let confine = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: makes only system calls; the closure owns `filter`, which holds the filter program.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: `confine` only makes system calls.
    unsafe { command.pre_exec(confine) };
    match ran(command, b"") {
        Ok(ran) => ran,
        Err(error) => panic!("broken test: the program cannot be run under a filter: {error}"),
    }
}

#[test]
fn the_default_profile_of_containers_is_enough() {
    if !engines().contains(&"process") {
        return skip("process", "the engine does not work here");
    }
    for image in [&[][..], &["--bare"]] {
        let args = [&["--engine", "process", "--cmdline", "test=paging"], image].concat();
        under(DENIED, &args).must_end(0).must_print("test: name=paging ok=true");
    }
}

#[test]
fn what_a_stricter_profile_forbids_is_named() {
    if !engines().contains(&"process") {
        return skip("process", "the engine does not work here");
    }
    let args = ["--engine", "process", "--cmdline", "test=paging"];
    for (call, told) in [
        (libc::SYS_seccomp, "seccomp profile"),
        (libc::SYS_execveat, "cannot execute the guest process's stub from a memfd"),
        (libc::SYS_memfd_create, "memfd"),
        (libc::SYS_timer_create, "timer"),
    ] {
        under(&[call], &args).must_end(1).must_say(told).must_say("ermitted");
    }
}
