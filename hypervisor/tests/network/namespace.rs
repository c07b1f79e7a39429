//! A new network namespace for a test, with a TAP interface in it.
//!
//! Without privileges, this needs a user namespace, which only a single-threaded process can enter. So the test runs a
//! second time, in a child process that enters the namespace before it executes this program.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::skip;

/// The environment variable that marks the process in the namespace.
const INSIDE: &str = "PARAVANE_TEST_NAMESPACE";
const CLONE_DEVICE: &str = "/dev/net/tun";
/// The interface's name.
pub const TAP: &str = "pvtest0";
/// The addresses of the host and the guest on it.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

pub fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Runs `test`, whose name with its module is `name`, in a namespace with a TAP interface, or reports a skip.
pub fn with_tap(name: &str, test: impl FnOnce(&Tap)) {
    if std::env::var_os(INSIDE).is_some() {
        match Tap::make() {
            Ok(tap) => test(&tap),
            Err(why) => skip("tap", format_args!("no TAP interface can be made: {why}")),
        }
        return;
    }
    let this = std::env::current_exe().unwrap();
    let mut command = Command::new(this);
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(INSIDE, "1").stdin(Stdio::null());
    command.stdout(Stdio::piped());
    // SAFETY: `enter` makes system calls only.
    unsafe { command.pre_exec(enter) };
    let child = match command.spawn() {
        Ok(child) => child,
        Err(why) => return skip("tap", format_args!("no network namespace can be entered: {why}")),
    };
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{name} in its namespace:\n{said}");
}

/// Enters a new network namespace, inside a new user namespace if necessary.
fn enter() -> io::Result<()> {
    // SAFETY: only numbers, here and in the next three.
    if check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).is_ok() {
        return Ok(());
    }
    // SAFETY: as above.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    // SAFETY: as above.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) })?;
    write_to(c"/proc/self/setgroups", format_args!("deny"))?;
    write_to(c"/proc/self/uid_map", format_args!("0 {user} 1"))?;
    write_to(c"/proc/self/gid_map", format_args!("0 {group} 1"))
}

/// Writes to a file in /proc without allocating, because between fork and exec that is not allowed.
fn write_to(path: &CStr, text: std::fmt::Arguments<'_>) -> io::Result<()> {
    let mut bytes = [0; 64];
    let mut cursor = io::Cursor::new(&mut bytes[..]);
    cursor.write_fmt(text)?;
    let len = cursor.position();
    // SAFETY: the path ends with NUL, and the buffer has at least `len` bytes.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        check(fd)?;
        let wrote = libc::write(fd, bytes.as_ptr().cast(), len as usize);
        let result = if wrote < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        libc::close(fd);
        result
    }
}

/// `struct ifreq` with flags or an IPv4 address (netdevice(7)).
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}
const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

impl Request {
    fn new(value: &[u8]) -> Self {
        let mut request = Self { name: [0; libc::IFNAMSIZ], value: [0; 24] };
        request.name[..TAP.len()].copy_from_slice(TAP.as_bytes());
        request.value[..value.len()].copy_from_slice(value);
        request
    }
    fn address(address: Ipv4Addr) -> Self {
        // `struct sockaddr_in`: family, port, address.
        Self::new(&[&(libc::AF_INET as u16).to_ne_bytes()[..], &[0; 2], &address.octets()].concat())
    }
    fn call(&mut self, fd: &impl AsRawFd, what: libc::c_ulong) -> io::Result<()> {
        // SAFETY: every request here takes a `struct ifreq`, and `Request` has its layout.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), what as _, std::ptr::from_mut(self)) })
    }
}

/// A TAP interface that exists until it is deleted, or the namespace ends.
pub struct Tap;

impl Tap {
    fn make() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(CLONE_DEVICE)?;
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
        Request::new(&flags.to_ne_bytes()).call(&file, libc::TUNSETIFF as _)?;
        // SAFETY: the request takes a number.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST as _, 1) })?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        Request::address(HOST).call(&socket, libc::SIOCSIFADDR as _)?;
        Request::address(MASK).call(&socket, libc::SIOCSIFNETMASK as _)?;
        let up = (libc::IFF_UP | libc::IFF_RUNNING) as u16;
        Request::new(&up.to_ne_bytes()).call(&socket, libc::SIOCSIFFLAGS as _)?;
        Ok(Self)
    }

    /// Makes the interface again after [`Tap::delete`].
    pub fn make_again(&self) {
        Self::make().unwrap_or_else(|e| panic!("broken test: no interface a second time: {e}"));
    }

    /// Deletes it: RTM_DELLINK, a header and a `struct ifinfomsg` (rtnetlink(7)).
    pub fn delete(&self) {
        let name = std::ffi::CString::new(TAP).unwrap();
        // SAFETY: the name ends with NUL.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        assert_ne!(index, 0, "broken test: {}", io::Error::last_os_error());
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: takes only numbers, and returns a new descriptor.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        check(fd).unwrap();
        // SAFETY: the descriptor is new, so nothing else owns it.
        let mut netlink = unsafe { File::from_raw_fd(fd) };
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let header =
            [&32u32.to_ne_bytes()[..], &libc::RTM_DELLINK.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]];
        let message = [&header.concat()[..], &[0; 4], &index.to_ne_bytes(), &[0; 8]].concat();
        netlink.write_all(&message).unwrap();
        let mut answer = [0; 64];
        let len = netlink.read(&mut answer).unwrap();
        assert!(len >= 20 && answer[16..20] == [0; 4], "broken test: not deleted: {:?}", &answer[..len]);
    }
}
