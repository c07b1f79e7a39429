//! Ethernet addresses.

#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use crate::host::random;

/// A text that is not the address of one station.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a MAC address that a guest can have: give six bytes like 02:11:22:33:44:55, the first one even"
)]
pub struct BadMac(pub String);

/// The address of one station: neither a group address nor zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A random, locally administered address, so that a collision is unlikely.
    pub fn random() -> Self {
        let mut bytes = [0; 6];
        // If there are no random bytes, zeroes make a valid address, too.
        random::fill(&mut bytes);
        let [first, rest @ ..] = bytes;
        let [a, b, c, d, e] = rest;
        // Bit 0: group address. Bit 1: locally administered.
        Self([first & !1 | 2, a, b, c, d, e])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part =
                parts.next().filter(|part| part.bytes().all(|b| b.is_ascii_hexdigit())).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        let [first, ..] = bytes;
        if parts.next().is_some() || first & 1 != 0 || bytes == [0; 6] { Err(bad()) } else { Ok(Self(bytes)) }
    }
}
