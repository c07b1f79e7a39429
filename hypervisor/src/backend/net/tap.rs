//! `--net tap=NAME`: frames through a TAP interface of the host, with its checksum and segmentation offloads.
//!
//! The kernel's header (`IFF_VNET_HDR`) is virtio's, so offloads pass in both directions without a look into the
//! frame, and frames longer than 2 KiB are not copied between the interface and guest memory. Each frame takes one
//! system call: TAP has no batches.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

use zerocopy::IntoBytes;

use super::backend::{Backend, MAX_FRAME, Received, Sent, Watch};
use super::header;
use super::header::{HEADER_LEN, Header, has, offload};
use super::scatter_list::ScatterList;

const CLONE_DEVICE: &str = "/dev/net/tun";

/// A text that cannot be the name of an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a valid interface name: give 1 to 15 bytes without `/`, `%`, `:` and blanks")]
pub struct BadName(pub String);

/// A TAP interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name is not valid.
    #[error(transparent)]
    Name(#[from] BadName),
    /// The kernel has no TAP, or this user may not use it.
    #[error("cannot open {CLONE_DEVICE}: {error}; {hint}", error = .0, hint = open_hint(.0))]
    Open(io::Error),
    /// It belongs to another user, or does not exist and this user must not create it.
    #[error(
        "no permission for the TAP interface {name}: if there is none, make it for your user with `sudo ip tuntap \
         add {name} mode tap user $USER && sudo ip link set {name} up`; if it is another user's, make one of \
         another name; or use `--net user`, which needs no privileges"
    )]
    Permission {
        /// The interface.
        name: String,
    },
    /// Another program has it open.
    #[error("the TAP interface {name} is in use by another program; make another one for this guest")]
    Busy {
        /// The interface.
        name: String,
    },
    /// Any other error.
    #[error("cannot use {name} as a TAP interface: {error}{}", use_hint(error))]
    Use {
        /// The interface.
        name: String,
        /// What the kernel said.
        error: io::Error,
    },
}

fn open_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "most systems let every user open it, this one does not: ask its administrator, or use `--net user`"
        }
        _ => "load the module (`sudo modprobe tun`), or in a container pass the device in",
    }
}

fn use_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EINVAL) => "; an interface of another kind has this name: give another",
        _ => "",
    }
}

/// An open TAP interface.
#[derive(Debug)]
pub struct Tap {
    file: File,
    up: bool,
    /// The interface had no room for the last frame.
    waiting: bool,
    /// What the driver has accepted.
    features: u64,
    /// A short frame to be sent is assembled here. On receiving, it takes the bytes that do not fit into the guest's
    /// buffers, which shows that the frame is too long.
    room: Box<[u8]>,
}

/// `struct ifreq` of netdevice(7), with the fields that flags need.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}
const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

impl Request {
    fn new(name: &str, flags: libc::c_int) -> Result<Self, TapError> {
        check_name(name)?;
        let flags = libc::c_short::from_le_bytes([flags.to_le_bytes()[0], flags.to_le_bytes()[1]]);
        let mut request = Self { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
        request.name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        Ok(request)
    }
    fn name(&self) -> String {
        CStr::from_bytes_until_nul(&self.name)
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }
    fn call(&mut self, fd: &impl AsRawFd, what: libc::c_ulong) -> io::Result<()> {
        // SAFETY: every caller passes a request that takes a `struct ifreq`, and `Request` is as long.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), what as _, std::ptr::from_mut(self)) })
    }
}

/// Checks that an interface can have this name.
pub fn check_name(name: &str) -> Result<(), BadName> {
    let is_good = |b: u8| !matches!(b, b'/' | b'%' | b':' | 0) && !b.is_ascii_whitespace();
    let is_name = !name.is_empty() && name.len() < libc::IFNAMSIZ && name.bytes().all(is_good);
    if is_name { Ok(()) } else { Err(BadName(name.to_owned())) }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Tap {
    /// Checks that this program can open the device that makes interfaces.
    ///
    /// # Errors
    /// When it cannot; the message says what to do.
    pub fn available() -> Result<(), TapError> {
        let file = OpenOptions::new().read(true).write(true).open(CLONE_DEVICE);
        file.map(drop).map_err(TapError::Open)
    }

    /// Opens the interface called `name`. If there is none, the kernel creates it, which takes CAP_NET_ADMIN.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let mut request = Request::new(name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(CLONE_DEVICE);
        let file = file.map_err(TapError::Open)?;
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TapError::Permission { name: name.to_owned() },
            Some(libc::EBUSY) => TapError::Busy { name: name.to_owned() },
            _ => TapError::Use { name: name.to_owned(), error },
        };
        request.call(&file, libc::TUNSETIFF as _).map_err(failed)?;
        let len = HEADER_LEN as libc::c_int;
        // SAFETY: the request takes the address of an int.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &len) }).map_err(failed)?;
        set_up(&request.name());
        let mut tap = Self::on(file);
        // Its former user may have accepted offloads.
        tap.accept(0).map_err(failed)?;
        Ok(tap)
    }

    fn on(file: File) -> Self {
        Self { file, up: true, waiting: false, features: 0, room: vec![0; MAX_FRAME].into_boxed_slice() }
    }

    /// Whether the driver may receive this frame. The frame may have arrived for a former driver that had accepted
    /// other offloads. Clears the checksum flags for a driver without GUEST_CSUM (virtio 1.2, section 5.1.6.4.1).
    fn admits(&self, frame: &ScatterList<'_>) -> bool {
        let mut start = [0; 2];
        frame.copy_out(0, &mut start);
        let [flags, gso_type] = start;
        let right = header::received(flags, gso_type, self.features);
        if let Some(right) = right.filter(|right| *right != flags) {
            frame.copy_in(0, &[right]);
        }
        right.is_some()
    }

    /// Handles a failed read or write: only some errors mean that the interface is gone.
    fn failed(&mut self, error: &io::Error) {
        // EBADFD: the interface was deleted while it was open. Not EIO: it is down, and may be set up again. Not
        // EINVAL: the kernel rejects this frame's header.
        if matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV | libc::EBADF)) {
            self.up = false;
        }
    }
}

/// Brings the interface up if this user may do so; otherwise that is for its owner to do.
fn set_up(name: &str) {
    // Any socket will do.
    let Ok(socket) = std::os::unix::net::UnixDatagram::unbound() else { return };
    let Ok(mut request) = Request::new(name, 0) else { return };
    if request.call(&socket, libc::SIOCGIFFLAGS as _).is_ok()
        && request.flags & libc::IFF_UP as libc::c_short == 0
    {
        request.flags |= libc::IFF_UP as libc::c_short;
        let _ = request.call(&socket, libc::SIOCSIFFLAGS as _);
    }
}

/// The offloads (`TUN_F_*`) that the kernel may leave to a driver that has accepted `features`.
fn offloads(features: u64) -> libc::c_uint {
    let all = [
        (offload::GUEST_CSUM, libc::TUN_F_CSUM),
        (offload::GUEST_TSO4, libc::TUN_F_TSO4),
        (offload::GUEST_TSO6, libc::TUN_F_TSO6),
    ];
    all.iter()
        .filter(|(bit, _)| has(features, *bit))
        .fold(0, |flags, (_, flag)| flags | *flag as libc::c_uint)
}

impl Backend for Tap {
    fn features(&self) -> u64 {
        use offload::{CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6};
        1 << CSUM | 1 << GUEST_CSUM | 1 << GUEST_TSO4 | 1 << GUEST_TSO6 | 1 << HOST_TSO4 | 1 << HOST_TSO6
    }
    fn accept(&mut self, features: u64) -> io::Result<()> {
        self.features = features;
        let flags = libc::c_ulong::from(offloads(features));
        // SAFETY: the request takes a number.
        let result = check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD as _, flags) });
        match result {
            Err(error) => {
                self.failed(&error);
                // If the interface is gone, the link is down, and the device goes on.
                if self.up { Err(error) } else { Ok(()) }
            }
            Ok(()) => Ok(()),
        }
    }
    fn is_up(&self) -> bool {
        self.up
    }
    fn watch(&self, receive: bool) -> Option<Watch> {
        let read = if receive { libc::POLLIN } else { 0 };
        let write = if self.waiting { libc::POLLOUT } else { 0 };
        self.up.then(|| Watch { fd: self.file.as_raw_fd(), events: read | write })
    }
    fn ready(&mut self, revents: libc::c_short) {
        if revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0 {
            self.up = false;
        }
        self.waiting = false;
    }
    fn send(&mut self, header: &Header, frame: &mut ScatterList<'_>) -> Sent {
        if self.up
            && let Err(error) = frame.write_to(self.file.as_fd(), header.as_bytes(), &mut self.room)
        {
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
                self.waiting = true;
                return Sent::Later;
            }
            self.failed(&error);
        }
        Sent::Done
    }
    fn receive(&mut self, into: &mut ScatterList<'_>) -> Received {
        if !self.up {
            return Received::Nothing;
        }
        match into.read_from(self.file.as_fd(), &mut self.room) {
            Ok(len) if (HEADER_LEN..=into.bytes()).contains(&len) && self.admits(into) => {
                Received::Frame(len)
            }
            Ok(_) => Received::Lost,
            Err(error) => {
                self.failed(&error);
                Received::Nothing
            }
        }
    }
}

#[cfg(test)]
mod tests;
