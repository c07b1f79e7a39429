//! Over a TAP interface, in a new network namespace.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;

use super::guest::{Guest, everywhere};
use super::http::{connect, drain_source, fetch, fill_sink};
use super::icmp;
use super::namespace::{GUEST, HOST, TAP, check, with_tap};

const MIB: u64 = 1 << 20;

fn guest_at(port: u16) -> SocketAddr {
    (GUEST, port).into()
}

/// Starts a guest's shell with the interface and more options.
fn shell(options: &[&str], more: &[&str]) -> Guest {
    let net = format!("tap={TAP}");
    Guest::start(options, &[&["--net", &net][..], more].concat())
}

fn with_address() -> [String; 2] {
    ["--cmdline".to_owned(), format!("ip={GUEST}/24 gateway={HOST}")]
}

fn shell_with_address(options: &[&str], more: &[&str]) -> Guest {
    let [cmdline, text] = with_address();
    shell(options, &[&[&cmdline[..], &text][..], more].concat())
}

#[test]
fn the_guest_and_the_host_ping_each_other() {
    with_tap("tap::the_guest_and_the_host_ping_each_other", |_| {
        for options in everywhere() {
            let mut guest = shell_with_address(options, &[]);
            guest.type_in(&format!("ping {HOST} 5\n"));
            guest.must_say(&format!("ping: target={HOST} sent=5 received=5"));
            guest.type_in("serve\n");
            guest.must_say(&format!("net: address {GUEST}/24"));
            // No data, an odd length, and the most that fits into a frame.
            icmp::ping(GUEST, &[0, 1, 56, 1472]);
            guest.type_in("\x03");
            guest.must_say("net: done");
            // Nobody has this address. Ctrl-C may be typed ahead.
            guest.type_in("ping 10.7.0.99 1000\nmem\x03");
            guest.must_say("received=0");
            guest.type_in("ping 10.7.0\nping\nping 10.7.0.1 0\n");
            guest.must_say("ping: 10.7.0 is not an IPv4 address");
            guest.must_say("ping:  is not an IPv4 address");
            guest.must_say("sent=0 received=0");
            guest.end("halt\n");
        }
    });
}

#[test]
fn pages_and_streams_are_right_to_the_last_byte() {
    with_tap("tap::pages_and_streams_are_right_to_the_last_byte", |_| {
        for options in everywhere() {
            let mut guest = shell_with_address(options, &[]);
            guest.type_in("serve\n");
            guest.must_say("net: address");
            let build = if options.contains(&"--bare") { "bare" } else { "pv" };
            for number in 1..=6 {
                let page = fetch(guest_at(80), "/");
                let wanted = [format!("machine: {build}"), format!("request: {number}")];
                assert!(wanted.iter().all(|part| page.contains(part)), "{options:?}: {page}");
            }
            fill_sink(guest_at(9), guest_at(80), 4 * MIB + 1);
            drain_source(guest_at(19), 4 * MIB + 1);
            // Both at the same time.
            let source = thread::spawn(|| drain_source(guest_at(19), MIB));
            assert!(fetch(guest_at(80), "/other").starts_with("HTTP/1.1 404 "));
            source.join().unwrap();
            guest.type_in("\x04");
            guest.must_say("net: done");
            guest.end("halt\n");
        }
    });
}

#[test]
fn the_guest_fetches_a_page_of_the_host() {
    with_tap("tap::the_guest_fetches_a_page_of_the_host", |_| {
        let server = TcpListener::bind((HOST, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        for options in everywhere() {
            let mut guest = shell_with_address(options, &[]);
            guest.type_in(&format!("fetch {HOST}:{port}\n"));
            let (mut stream, from) = server.accept().unwrap();
            assert_eq!(from.ip(), GUEST);
            let mut request = [0; 18];
            stream.read_exact(&mut request).unwrap();
            assert_eq!(&request, b"GET / HTTP/1.0\r\n\r\n");
            let page = "a line of the page\n".repeat(5000);
            stream.write_all(page.as_bytes()).unwrap();
            drop(stream);
            guest.must_say("fetch: a line of the page");
            guest.must_say(&format!("fetch: target={HOST}:{port} bytes={} complete=true", page.len()));
            // No server listens there.
            guest.type_in(&format!("fetch {HOST}:1\n"));
            guest.must_say("bytes=0 complete=false");
            guest.end("halt\n");
        }
    });
}

#[test]
fn dhcp_gives_the_guest_an_address() {
    with_tap("tap::dhcp_gives_the_guest_an_address", |_| {
        let server = dhcp::socket();
        for options in everywhere() {
            let mut guest = shell(options, &[]);
            guest.type_in("serve\n");
            let address = Ipv4Addr::new(10, 7, 0, 77);
            dhcp::lease(&server, address);
            guest.must_say(&format!("net: address {address}/24"));
            icmp::ping(address, &[56]);
            guest.type_in("\x04");
            guest.must_say("net: done");
            guest.type_in(&format!("ping {HOST} 2\n"));
            dhcp::lease(&server, address);
            guest.must_say("sent=2 received=2");
            guest.end("halt\n");
        }
    });
}

/// The interface disappears during a transfer. The guest reports it and goes on, and so do its other devices.
#[test]
fn an_interface_that_vanishes_is_a_link_that_is_down() {
    with_tap("tap::an_interface_that_vanishes_is_a_link_that_is_down", |tap| {
        for options in everywhere() {
            let mut guest = shell_with_address(options, &["--rng"]);
            guest.type_in("serve\n");
            guest.must_say("net: address");
            let mut source = connect(guest_at(19));
            source.read_exact(&mut [0; 100_000]).unwrap();
            tap.delete();
            guest.must_say("net: the link is down");
            guest.type_in("\x04");
            guest.must_say("net: done");
            guest.type_in("rng 4\nping 10.7.0.1 1\n");
            guest.must_say("rng 4");
            assert_eq!(guest.must_say("\n").trim().len(), 8, "four random bytes");
            guest.must_say("net: the link is down");
            guest.must_say("sent=1 received=0");
            guest.end("halt\n");
            tap.make_again();
        }
    });
}

/// A minimal DHCP server (RFC 2131), which gives every client the same address.
mod dhcp {
    use super::*;

    /// The offsets of the fields in a message, and of its options.
    const XID: std::ops::Range<usize> = 4..8;
    const CHADDR: std::ops::Range<usize> = 28..44;
    const OPTIONS: usize = 240;
    const COOKIE: [u8; 4] = [99, 130, 83, 99];

    pub fn socket() -> UdpSocket {
        let socket = UdpSocket::bind("0.0.0.0:67").unwrap();
        socket.set_broadcast(true).unwrap();
        let (name, len) = (TAP.as_ptr().cast(), TAP.len() as u32);
        // SAFETY: the name is valid, and the length is its own.
        let bound = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name, len)
        };
        check(bound).unwrap();
        socket
    }

    /// The type of a message: its option 53.
    fn kind(message: &[u8]) -> Option<u8> {
        let mut rest = message.get(OPTIONS..)?;
        loop {
            match *rest {
                [0, ..] => rest = &rest[1..],
                [53, 1, kind, ..] => return Some(kind),
                [255, ..] | [] | [_] => return None,
                [_, len, ..] => rest = rest.get(2 + usize::from(len)..)?,
            }
        }
    }

    /// Answers until it has granted a request.
    pub fn lease(socket: &UdpSocket, address: Ipv4Addr) {
        let mut message = [0; 2048];
        loop {
            let (len, _) = socket.recv_from(&mut message).unwrap();
            let message = &message[..len];
            // The reply to DISCOVER is OFFER, to REQUEST ACK.
            let answer = match kind(message) {
                Some(1) => 2,
                Some(3) => 5,
                _ => continue,
            };
            let mut reply = vec![0; OPTIONS];
            reply[..4].copy_from_slice(&[2, 1, 6, 0]);
            reply[XID].copy_from_slice(&message[XID]);
            reply[16..20].copy_from_slice(&address.octets());
            reply[20..24].copy_from_slice(&HOST.octets());
            reply[CHADDR].copy_from_slice(&message[CHADDR]);
            reply[236..240].copy_from_slice(&COOKIE);
            reply.extend([53, 1, answer, 1, 4, 255, 255, 255, 0, 51, 4, 0, 0, 14, 16]);
            for option in [3, 54] {
                reply.extend([option, 4]);
                reply.extend(HOST.octets());
            }
            reply.push(255);
            socket.send_to(&reply, "255.255.255.255:68").unwrap();
            if answer == 5 {
                return;
            }
        }
    }
}
