//! A TAP interface in a network namespace of the test, with a packet socket at its other side.

mod offloads;

use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};

use vm_memory::VolatileSlice;

use crate::backend::net::tap::*;
use crate::testing::skip::skip;

const NAME: &str = "pvtest0";
/// IEEE's first Ethernet type for local experiments: no other program sends it here.
const ETHERTYPE: u16 = 0x88b5;

/// Runs `test` in a thread with its own network namespace, or skips it.
pub(super) fn in_own_network(test: impl FnOnce() + Send + 'static) {
    let ran = std::thread::spawn(move || {
        // SAFETY: only this thread gets another network namespace, and it has no sockets yet.
        let entered = check(unsafe { libc::unshare(libc::CLONE_NEWNET) });
        entered.and_then(|()| std::fs::metadata(CLONE_DEVICE)).map(|_| test())
    });
    if let Err(why) = ran.join().unwrap() {
        skip("tap", format_args!("a network namespace and {CLONE_DEVICE} are needed: {why}"));
    }
}

/// Gives an interface an IPv4 address in a network of 256 addresses.
pub(super) fn set_address(name: &str, address: [u8; 4]) {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    for (address, what) in [(address, libc::SIOCSIFADDR), ([255, 255, 255, 0], libc::SIOCSIFNETMASK)] {
        let mut request = Request::new(name, libc::AF_INET).unwrap();
        // A `struct sockaddr_in`: family, port, address.
        request.rest[2..6].copy_from_slice(&address);
        request.call(&socket, what as _).unwrap();
    }
}

/// Gives an interface an IPv6 address with a prefix of 64 bits, without duplicate address detection, so that it can
/// be used at once. The header is followed by a `struct ifaddrmsg`, with the address as its only attribute.
///
/// # Errors
/// When the host has no IPv6.
pub(super) fn set_address6(name: &str, address: [u8; 16]) -> io::Result<()> {
    let message = [libc::AF_INET6 as u8, 64, libc::IFA_F_NODAD as u8, 0];
    let attribute = [20u16.to_ne_bytes(), libc::IFA_ADDRESS.to_ne_bytes()].concat();
    let body = [&message, &index(name).to_ne_bytes()[..], &attribute, &address].concat();
    ask(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &body)?;
    // A thread of the kernel adds the address's route later. Until then packets for the address are not accepted.
    let (began, patience) = (std::time::Instant::now(), std::time::Duration::from_secs(60));
    while !is_local(address)? {
        if began.elapsed() > patience {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Whether the kernel has a local route for an address: one with the flag `RTF_LOCAL` (linux/ipv6_route.h).
fn is_local(address: [u8; 16]) -> io::Result<bool> {
    const RTF_LOCAL: u32 = 0x8000_0000;
    let address: String = address.iter().map(|byte| format!("{byte:02x}")).collect();
    let routes = std::fs::read_to_string("/proc/thread-self/net/ipv6_route")?;
    // The fields are address and prefix length; the ninth is the flags.
    let flags = |line: &str| u32::from_str_radix(line.split_whitespace().nth(8)?, 16).ok();
    let mut to_it = routes.lines().filter(|line| line.starts_with(&format!("{address} 80 ")));
    Ok(to_it.any(|line| flags(line).is_some_and(|flags| flags & RTF_LOCAL != 0)))
}

/// The host's address on an interface.
pub(super) fn mac_of(name: &str) -> [u8; 6] {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    let mut request = Request::new(name, 0).unwrap();
    request.call(&socket, libc::SIOCGIFHWADDR as _).unwrap();
    request.rest[..6].try_into().unwrap()
}

fn index(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: the name ends with NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "{}", io::Error::last_os_error());
    index
}

fn socket(domain: i32, kind: i32, protocol: i32) -> OwnedFd {
    // SAFETY: the call takes no pointer.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: nothing else owns the new descriptor.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The other side of the interface.
fn wire(interface: u32) -> File {
    let protocol = ETHERTYPE.to_be();
    let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, protocol.into());
    // SAFETY: all zeroes are a valid socket address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = interface as i32;
    let len = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: the address is live and has the given length.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) }).unwrap();
    File::from(socket)
}

/// Sends a request of `kind` to the kernel (rtnetlink(7)), with `body` after the header.
fn ask(kind: u16, flags: libc::c_int, body: &[u8]) -> io::Result<()> {
    let mut netlink = File::from(socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE));
    let flags = (flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let len = 16 + body.len() as u32;
    let header = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8]].concat();
    netlink.write_all(&[&header[..], body].concat())?;
    let mut answer = [0; 256];
    let len = io::Read::read(&mut netlink, &mut answer)?;
    assert!(len >= 20, "{:?}", &answer[..len]);
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// Deletes an interface. The header is followed by a `struct ifinfomsg`.
fn delete(interface: u32) {
    let body = [&[0; 4], &interface.to_ne_bytes()[..], &[0; 8]].concat();
    ask(libc::RTM_DELLINK, 0, &body).unwrap();
}

fn frame(len: usize, fill: u8) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 9], &ETHERTYPE.to_be_bytes()].concat();
    frame.resize(len, fill);
    frame
}

fn send(tap: &mut Tap, header: Header, mut frame: Vec<u8>) -> Sent {
    let mut pieces = ScatterList::default();
    let slice = VolatileSlice::from(&mut frame[..]);
    pieces.push(&slice.subslice(0, 20).unwrap()).unwrap();
    pieces.push(&slice.offset(20).unwrap()).unwrap();
    tap.send(&header, &mut pieces)
}

/// Receives the next frame of the test. The kernel sends frames of its own on a new interface, which are ignored.
fn receive(tap: &mut Tap, room: usize) -> (Received, Vec<u8>) {
    loop {
        let mut memory = vec![0; room];
        let mut pieces = ScatterList::default();
        pieces.push(&VolatileSlice::from(&mut memory[..])).unwrap();
        let received = tap.receive(&mut pieces);
        drop(pieces);
        let strange = memory.get(HEADER_LEN + 12..HEADER_LEN + 14) != Some(&ETHERTYPE.to_be_bytes()[..]);
        if !(strange && matches!(received, Received::Frame(_) | Received::Lost)) {
            return (received, memory);
        }
    }
}

#[test]
fn frames_pass_both_ways() {
    in_own_network(|| {
        let mut tap = Tap::open(NAME).unwrap();
        let mut wire = wire(index(NAME));
        assert!(matches!(Tap::open(NAME), Err(TapError::Busy { .. })));
        tap.accept(u64::MAX).unwrap();
        tap.accept(0).unwrap();
        assert_eq!(send(&mut tap, Header::default(), frame(60, 7)), Sent::Done);
        let mut got = [0; 2048];
        assert_eq!(io::Read::read(&mut wire, &mut got).unwrap(), 60);
        assert_eq!(got[..60], frame(60, 7));
        // If the kernel refuses a header, the frame is lost and the link stays up.
        let refused = Header { flags: 1, csum_start: 2000, ..Header::default() };
        assert_eq!((send(&mut tap, refused, frame(60, 8)), tap.is_up()), (Sent::Done, true));

        for fill in [1, 2, 3] {
            wire.write_all(&frame(1000, fill)).unwrap();
        }
        assert_eq!(tap.watch(true).map(|watch| watch.events), Some(libc::POLLIN));
        let (received, memory) = receive(&mut tap, 1526);
        assert_eq!((received, &memory[HEADER_LEN..1012]), (Received::Frame(1012), &frame(1000, 1)[..]));
        assert_eq!(receive(&mut tap, 1011).0, Received::Lost);
        assert_eq!(receive(&mut tap, 1012).0, Received::Frame(1012));
        assert_eq!(receive(&mut tap, 1526).0, Received::Nothing);
    });
}

/// With a socket in place of the interface; each datagram is a header and a frame.
#[test]
fn what_the_driver_did_not_accept_is_kept_from_it() {
    let (ours, other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    other.set_nonblocking(true).unwrap();
    let mut tap = Tap::on(File::from(OwnedFd::from(other)));
    let mut receive_with = |features: u64, flags: u8, gso_type: u8| {
        tap.features = features;
        let header = Header { flags, gso_type, ..Header::default() };
        ours.send(&[header.as_bytes(), &frame(60, 1)].concat()).unwrap();
        let mut memory = [0; 2048];
        let mut pieces = ScatterList::default();
        pieces.push(&VolatileSlice::from(&mut memory[..])).unwrap();
        let received = tap.receive(&mut pieces);
        drop(pieces);
        (received, memory[0])
    };
    let csum = 1 << offload::GUEST_CSUM;
    assert_eq!(receive_with(0, 0, 0), (Received::Frame(72), 0));
    assert_eq!(receive_with(0, 2, 0), (Received::Frame(72), 0), "not told of a checksum that is right");
    assert_eq!(receive_with(csum, 2, 0), (Received::Frame(72), 2));
    assert_eq!(receive_with(0, 1, 0).0, Received::Lost);
    assert_eq!(receive_with(csum, 1, 1).0, Received::Lost);
    assert_eq!(receive_with(csum | 1 << offload::GUEST_TSO4, 1, 1), (Received::Frame(72), 1));
}

#[test]
fn an_interface_that_is_deleted_is_a_link_that_is_down() {
    in_own_network(|| {
        for poll in [true, false] {
            let mut tap = Tap::open(NAME).unwrap();
            delete(index(NAME));
            assert!(tap.is_up(), "nobody has noticed");
            if poll {
                let watch = tap.watch(false).unwrap();
                let mut fd = libc::pollfd { fd: watch.fd, events: watch.events, revents: 0 };
                // SAFETY: the pollfd is live.
                assert_eq!(unsafe { libc::poll(&mut fd, 1, -1) }, 1);
                tap.ready(fd.revents);
            } else {
                assert_eq!(send(&mut tap, Header::default(), frame(60, 0)), Sent::Done);
            }
            assert!(!tap.is_up() && tap.watch(true).is_none());
            assert_eq!(receive(&mut tap, 1526).0, Received::Nothing);
            assert!(tap.accept(0).is_ok(), "a device without a link can still be activated");
        }
    });
}

#[test]
fn an_interface_that_is_down_only_loses_frames() {
    in_own_network(|| {
        let mut tap = Tap::open(NAME).unwrap();
        let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        Request::new(NAME, 0).unwrap().call(&socket, libc::SIOCSIFFLAGS as _).unwrap();
        assert_eq!(send(&mut tap, Header::default(), frame(60, 0)), Sent::Done);
        assert!(tap.is_up());
    });
}

#[test]
fn names_that_no_interface_has() {
    for name in ["", "sixteen-bytes-it", "a/b", "a b", "a%d", "a:1"] {
        assert!(matches!(Tap::open(name), Err(TapError::Name(_))), "{name}");
    }
    let closed = TapError::Open(io::ErrorKind::PermissionDenied.into()).to_string();
    let absent = TapError::Open(io::ErrorKind::NotFound.into()).to_string();
    assert!(!closed.contains("modprobe") && absent.contains("modprobe"), "{closed} {absent}");
    let error = io::Error::from_raw_os_error(libc::EINVAL);
    let other = TapError::Use { name: "lo".into(), error }.to_string();
    assert!(other.ends_with("of another kind has this name: give another"), "{other}");
    let permission = TapError::Permission { name: "tap7".into() }.to_string();
    assert!(permission.contains("sudo ip tuntap add tap7 mode tap user $USER"), "{permission}");
}

#[test]
fn offloads_follow_the_features() {
    use offload::{GUEST_CSUM, GUEST_TSO4, HOST_TSO4};
    assert_eq!(offloads(0), 0);
    assert_eq!(offloads(1 << GUEST_CSUM | 1 << HOST_TSO4), libc::TUN_F_CSUM as libc::c_uint);
    assert_eq!(
        offloads(1 << GUEST_CSUM | 1 << GUEST_TSO4),
        (libc::TUN_F_CSUM | libc::TUN_F_TSO4) as libc::c_uint
    );
}
