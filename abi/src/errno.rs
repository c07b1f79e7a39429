//! Error numbers, and how a hypercall's result carries them.
//!
//! A hypercall leaves in `rax` either a value of its own or a negated error number. Source: public/errno.h.

use core::fmt;

/// The largest error number that a result can carry: `-4095..=-1` are errors, all else is a value.
const MAX_ERRNO: i32 = 4095;

/// Why a hypercall failed: a positive error number of public/errno.h.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($(#[$doc:meta])+ $name:ident = $value:literal;)+) => {
        impl Errno {
            $($(#[$doc])+ pub const $name: Self = Self($value);)+

            /// The error's name, or `None` for a number that the ABI does not define.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)+
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    /// The caller may not do this.
    EPERM = 1;
    /// The named object does not exist.
    ENOENT = 2;
    /// No such domain.
    ESRCH = 3;
    /// A device failed.
    EIO = 5;
    /// No such device or address.
    ENXIO = 6;
    /// An argument is longer than the call takes.
    E2BIG = 7;
    /// An image's format is not understood.
    ENOEXEC = 8;
    /// A descriptor does not refer to anything open.
    EBADF = 9;
    /// There is no child to wait for.
    ECHILD = 10;
    /// Not now; the same call may succeed later.
    EAGAIN = 11;
    /// Out of memory.
    ENOMEM = 12;
    /// Access is denied.
    EACCES = 13;
    /// A guest address could not be read or written.
    EFAULT = 14;
    /// The object is in use.
    EBUSY = 16;
    /// The object exists already.
    EEXIST = 17;
    /// The two sides lie on different devices.
    EXDEV = 18;
    /// No such device.
    ENODEV = 19;
    /// Not a directory.
    ENOTDIR = 20;
    /// A directory, where something else is needed.
    EISDIR = 21;
    /// An argument has a value that the call does not accept.
    EINVAL = 22;
    /// The system-wide table of open objects is full.
    ENFILE = 23;
    /// The caller's table of open objects is full.
    EMFILE = 24;
    /// No room is left, for instance no free event channel.
    ENOSPC = 28;
    /// The object may only be read.
    EROFS = 30;
    /// Too many links to one object.
    EMLINK = 31;
    /// A value lies outside the operation's domain.
    EDOM = 33;
    /// A result or an argument lies outside the range allowed.
    ERANGE = 34;
    /// The operation would deadlock.
    EDEADLK = 35;
    /// A name is too long.
    ENAMETOOLONG = 36;
    /// No lock is available.
    ENOLCK = 37;
    /// The hypercall or sub-operation is not implemented.
    ENOSYS = 38;
    /// A directory that must be empty is not.
    ENOTEMPTY = 39;
    /// The data asked for is absent.
    ENODATA = 61;
    /// A deadline has passed.
    ETIME = 62;
    /// A message is malformed.
    EBADMSG = 74;
    /// A value does not fit the type that should carry it.
    EOVERFLOW = 75;
    /// A byte sequence is not valid text.
    EILSEQ = 84;
    /// Not a socket.
    ENOTSOCK = 88;
    /// A message is too long.
    EMSGSIZE = 90;
    /// The operation is known, but not supported.
    EOPNOTSUPP = 95;
    /// The address is in use.
    EADDRINUSE = 98;
    /// The address is not available.
    EADDRNOTAVAIL = 99;
    /// No buffer space is left.
    ENOBUFS = 105;
    /// Connected already.
    EISCONN = 106;
    /// Not connected.
    ENOTCONN = 107;
    /// The other side did not answer in time.
    ETIMEDOUT = 110;
    /// The other side refused.
    ECONNREFUSED = 111;
}

impl Errno {
    /// The header's second name for [`Errno::EAGAIN`].
    pub const EWOULDBLOCK: Self = Self::EAGAIN;
    /// The header's second name for [`Errno::EDEADLK`].
    pub const EDEADLOCK: Self = Self::EDEADLK;

    /// The positive number.
    #[must_use]
    pub const fn code(self) -> i32 {
        self.0
    }

    /// The error as a hypercall's signed result: the number negated.
    #[must_use]
    pub const fn as_result(self) -> i64 {
        -(self.0 as i64)
    }

    /// The error as it stands in `rax` after the call.
    #[must_use]
    pub const fn to_rax(self) -> u64 {
        self.as_result().cast_unsigned()
    }

    /// Decodes a hypercall's `rax`: a value or an error.
    pub const fn from_rax(rax: u64) -> Result<u64, Self> {
        Self::from_result(rax.cast_signed())
    }

    /// Decodes a hypercall's signed result: a value, as it was in `rax`, or an error.
    pub const fn from_result(result: i64) -> Result<u64, Self> {
        if result < 0 && result >= -(MAX_ERRNO as i64) {
            // In range by the test above.
            Err(Self(-(result as i32)))
        } else {
            Ok(result.cast_unsigned())
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::Errno;

    #[test]
    fn errors_survive_rax() {
        assert_eq!(Errno::from_rax(Errno::EINVAL.to_rax()), Err(Errno::EINVAL));
        assert_eq!(Errno::ENOSYS.as_result(), -38);
        assert_eq!(Errno::from_result(-4095).map_err(Errno::code), Err(4095));
    }

    #[test]
    fn everything_else_is_a_value() {
        for value in
            [0, 1, 4096, i64::MAX.cast_unsigned(), i64::MIN.cast_unsigned(), (-4096_i64).cast_unsigned()]
        {
            assert_eq!(Errno::from_rax(value), Ok(value));
        }
    }
}
