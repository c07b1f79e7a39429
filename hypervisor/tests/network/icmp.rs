//! Pings from the host, over a raw socket like the program `ping`.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::namespace::check;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const IDENT: u16 = 0x7465;
/// Length of an IPv4 header without options, which the guest's stack does not send.
const IP_HEADER: usize = 20;

/// The largest number of times that a request is sent.
const TRIES: usize = 30;

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// A message with its checksum.
fn echo(kind: u8, number: u16, data: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0][..], &IDENT.to_be_bytes(), &number.to_be_bytes(), data].concat();
    let sum = checksum(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    message
}

/// Sends `target` an echo request for each length in `lens`, and waits for the reply. Needs CAP_NET_RAW.
pub fn ping(target: Ipv4Addr, lens: &[usize]) {
    // SAFETY: takes only numbers, and returns a new descriptor.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP) };
    check(fd).unwrap_or_else(|e| panic!("broken test: no raw socket: {e}"));
    // SAFETY: the descriptor is new, so nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let patience = libc::timeval { tv_sec: 1, tv_usec: 0 };
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(target).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: both structures are valid, and the lengths are theirs.
    unsafe {
        let len = size_of::<libc::timeval>() as u32;
        let option = (&raw const patience).cast();
        check(libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, option, len))
            .unwrap();
        let len = size_of::<libc::sockaddr_in>() as u32;
        check(libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len)).unwrap();
    }
    for (number, len) in (0..).zip(lens) {
        let data: Vec<u8> = (0..*len).map(|i| (i % 256) as u8 ^ number as u8).collect();
        let (request, wanted) = (echo(ECHO_REQUEST, number, &data), echo(ECHO_REPLY, number, &data));
        // A guest that must first resolve the host's address by ARP may lose the reply meanwhile.
        let answered = (0..TRIES).any(|_| {
            // SAFETY: the buffer is valid, and the length is its own.
            let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
            assert_eq!(usize::try_from(sent), Ok(request.len()), "{}", io::Error::last_os_error());
            is_answered(&socket, &wanted)
        });
        assert!(answered, "broken product: no echo of {len} bytes");
    }
}

/// Whether this message arrives before the socket's timeout.
fn is_answered(socket: &OwnedFd, wanted: &[u8]) -> bool {
    let mut packet = [0; 2048];
    loop {
        // SAFETY: the buffer is valid, and the length is its own.
        let got = unsafe { libc::recv(socket.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len(), 0) };
        let Ok(got) = usize::try_from(got) else { return false };
        if packet.get(IP_HEADER..got) == Some(wanted) {
            return true;
        }
    }
}
