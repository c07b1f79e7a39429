//! Messages on the wire: put together from whatever bytes have come, and taken apart.
//!
//! Linux writes a message's head and its payload one after the other, and tells the store only when the ring was empty
//! before: so bytes are taken as they come, and a message may be complete long after its first byte.

use std::str::FromStr;

use paravane_abi::errno::Errno;
use paravane_abi::xenstore::{XENSTORE_PAYLOAD_MAX, XS_ERROR, XsdSockmsg};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of a message's head.
const HEAD: usize = size_of::<XsdSockmsg>();

/// A message whose length says more than a message may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {0} bytes was announced, and {max} are the most", max = XENSTORE_PAYLOAD_MAX)]
pub struct TooLong(pub u32);

/// A complete request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub head: XsdSockmsg,
    /// About what.
    pub payload: Vec<u8>,
}

/// The message that is on its way.
#[derive(Debug, Default)]
pub struct Assembler {
    /// What has come of it: at most a head and [`XENSTORE_PAYLOAD_MAX`] bytes.
    bytes: Vec<u8>,
}

impl Assembler {
    fn head(&self) -> Option<XsdSockmsg> {
        XsdSockmsg::read_from_prefix(&self.bytes).ok().map(|(head, _)| head)
    }

    /// What has come of the message.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Goes on with what had come of a message; `None` if no message begins so, or it is complete.
    pub fn restore(&mut self, bytes: &[u8]) -> Option<()> {
        if bytes.len() > HEAD + XENSTORE_PAYLOAD_MAX {
            return None;
        }
        self.bytes = bytes.to_vec();
        let announced = self.head().map_or(0, |head| head.len as usize);
        (announced <= XENSTORE_PAYLOAD_MAX && self.wants() > 0).then_some(())
    }

    /// How many bytes to bring next: the rest of the head, then the rest of the payload. 0 when it is complete.
    pub fn wants(&self) -> usize {
        let whole = self.head().map_or(HEAD, |head| HEAD.saturating_add(head.len as usize));
        whole.saturating_sub(self.bytes.len())
    }

    /// Adds bytes, as many as were wanted or fewer; returns the request when it is complete.
    ///
    /// # Errors
    /// When the head, now complete, announces too much.
    pub fn add(&mut self, bytes: &[u8]) -> Result<Option<Request>, TooLong> {
        self.bytes.extend_from_slice(bytes);
        let Some(head) = self.head() else { return Ok(None) };
        if head.len as usize > XENSTORE_PAYLOAD_MAX {
            return Err(TooLong(head.len));
        }
        if self.wants() > 0 {
            return Ok(None);
        }
        let mut payload = std::mem::take(&mut self.bytes);
        payload.drain(..HEAD);
        Ok(Some(Request { head, payload }))
    }
}

/// Writes a message of `kind` that answers `head` to the end of `out`.
pub fn reply(out: &mut impl Extend<u8>, head: &XsdSockmsg, kind: u32, payload: &[u8]) {
    // Nobody makes a payload longer than a message may have.
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.extend(XsdSockmsg { kind, len, ..*head }.as_bytes().iter().copied());
    out.extend(payload.iter().copied());
}

/// Writes that the request `head` failed: the payload is the error's name.
pub fn error(out: &mut impl Extend<u8>, head: &XsdSockmsg, errno: Errno) {
    let name = errno.name().unwrap_or("EINVAL");
    reply(out, head, XS_ERROR, format!("{name}\0").as_bytes());
}

/// The zero-terminated strings that a payload consists of, without their zeroes.
///
/// # Errors
/// EINVAL when the last one is not terminated, or there is none.
pub fn strings(payload: &[u8]) -> Result<impl Iterator<Item = &[u8]>, Errno> {
    let (0, text) = payload.split_last().ok_or(Errno::EINVAL)? else { return Err(Errno::EINVAL) };
    Ok(text.split(|&byte| byte == 0))
}

/// The payload as exactly `N` zero-terminated strings.
///
/// # Errors
/// EINVAL when it is anything else.
pub fn exactly<const N: usize>(payload: &[u8]) -> Result<[&[u8]; N], Errno> {
    let found: Vec<_> = strings(payload)?.take(N + 1).collect();
    found.try_into().map_err(|_| Errno::EINVAL)
}

/// The first zero-terminated string, and all bytes after it, which need no zero.
///
/// # Errors
/// EINVAL without a zero.
pub fn string_and_rest(payload: &[u8]) -> Result<(&[u8], &[u8]), Errno> {
    let zero = payload.iter().position(|&byte| byte == 0).ok_or(Errno::EINVAL)?;
    let (text, rest) = payload.split_at(zero);
    Ok((text, rest.get(1..).unwrap_or_default()))
}

/// A decimal number, of digits only.
pub fn number<T: FromStr>(text: &[u8]) -> Option<T> {
    let text = str::from_utf8(text).ok()?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}
