//! KVM's own statistics: the exits that it handled alone.
//!
//! Format: KVM API documentation, 4.133 KVM_GET_STATS_FD. kvm-ioctls has no wrapper for it.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// More descriptors or longer names than any KVM has: a wrong header is not followed into nonsense.
const MAX_DESCRIPTORS: u32 = 1024;
const MAX_NAME: u32 = 256;

/// Every one-value statistic of a VM or vCPU that is not zero; empty where KVM does not offer them.
pub fn read(fd: &impl AsRawFd) -> Vec<(String, u64)> {
    // SAFETY: the request takes no argument and returns a new descriptor or -1.
    let stats = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_GET_STATS_FD) };
    if stats < 0 {
        return Vec::new();
    }
    // SAFETY: just returned to us, owned by nobody else.
    let file = unsafe { File::from_raw_fd(stats) };
    parse(|buf, offset| file.read_exact_at(buf, offset).is_ok()).unwrap_or_default()
}

fn parse(read: impl Fn(&mut [u8], u64) -> bool) -> Option<Vec<(String, u64)>> {
    let word = |offset: u64| {
        let mut b = [0; 4];
        read(&mut b, offset).then(|| u32::from_le_bytes(b))
    };
    let name_size = word(4)?;
    let count = word(8)?;
    let (descriptors, data) = (u64::from(word(16)?), u64::from(word(20)?));
    if count > MAX_DESCRIPTORS || name_size > MAX_NAME {
        return None;
    }
    let mut found = Vec::new();
    for n in 0..count {
        let at = descriptors + u64::from(n) * u64::from(16 + name_size);
        let values = word(at + 4)? >> 16;
        let offset = u64::from(word(at + 8)?);
        let mut name = vec![0; name_size as usize];
        let mut value = [0; 8];
        if values != 1 || !read(&mut name, at + 16) || !read(&mut value, data + offset) {
            continue;
        }
        let name: Vec<u8> = name.into_iter().take_while(|&b| b != 0).collect();
        let value = u64::from_le_bytes(value);
        if value != 0 {
            found.push((String::from_utf8_lossy(&name).into_owned(), value));
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_and_values_and_survives_nonsense() {
        let mut file = vec![0u8; 0x100];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(4, &8u32.to_le_bytes());
        put(8, &2u32.to_le_bytes());
        put(16, &0x20u32.to_le_bytes());
        put(20, &0x80u32.to_le_bytes());
        for (n, (name, value)) in [(*b"exits\0\0\0", 7u64), (*b"halt\0\0\0\0", 0)].into_iter().enumerate() {
            let at = 0x20 + n * 24;
            put(at + 4, &(1u32 << 16).to_le_bytes());
            put(at + 8, &(n as u32 * 8).to_le_bytes());
            put(at + 16, &name);
            put(0x80 + n * 8, &value.to_le_bytes());
        }
        let from = |bytes: &[u8]| {
            let bytes = bytes.to_vec();
            parse(move |buf, at| {
                let at = at as usize;
                bytes.get(at..at + buf.len()).map(|s| buf.copy_from_slice(s)).is_some()
            })
        };
        assert_eq!(from(&file), Some(vec![("exits".to_owned(), 7)]));
        assert_eq!(from(&[0xff; 64]), None);
        assert_eq!(from(&[]), None);
    }
}
