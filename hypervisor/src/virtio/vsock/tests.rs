//! The socket device, between a test's rings and programs of the host.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use zerocopy::FromBytes;

use super::packet::{HOST_CID, NO_MORE_RECEIVING, NO_MORE_SENDING, Ports, STREAM, op};
use super::*;
use crate::testing::virtio::{BUFFERS, Bench, Ring};

const CID: u64 = 42;
/// Bytes of each receive buffer.
const EMPTY: u64 = 4096;
const OUT: u64 = BUFFERS + 0x4_0000;

/// The driver of a socket device, and the path of the host's socket.
struct Guest {
    bench: Bench,
    rings: Vec<Ring>,
    /// The number of received packets, modulo 2^16: the last known used index of the receive ring.
    received: u16,
    path: PathBuf,
}

impl Drop for Guest {
    fn drop(&mut self) {
        for path in [self.path.clone(), crate::backend::vsock::path_of_port(&self.path, 9)] {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Guest {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("paravane-vsock-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let bench = Bench::new(Vsock::new(CID, &path).unwrap());
        let mut guest = Self { bench, rings: Vec::new(), received: 0, path };
        guest.start();
        guest
    }
    fn start(&mut self) {
        self.rings = self.bench.start(0, 3, 8);
        self.received = 0;
        for n in 0..8u16 {
            self.rings[0].chain(n, &[(BUFFERS + u64::from(n) * EMPTY, EMPTY as u32, true)]);
        }
        self.bench.slot.kick(0);
    }
    /// The socket of a program that listens on port 9 of the host.
    fn host_listener(&self) -> UnixListener {
        UnixListener::bind(crate::backend::vsock::path_of_port(&self.path, 9)).unwrap()
    }
    fn header(ports: Ports, op: u16) -> Header {
        Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID.into(),
            src_port: ports.guest.into(),
            dst_port: ports.host.into(),
            kind: STREAM.into(),
            op: op.into(),
            buf_alloc: 0x1_0000.into(),
            ..Header::default()
        }
    }
    fn send_as(&mut self, header: Header, bytes: &[u8]) {
        self.bench.put(OUT, &[header.as_bytes(), bytes].concat());
        self.rings[1].chain(0, &[(OUT, (HEADER_LEN + bytes.len()) as u32, false)]);
        assert_eq!(self.bench.run(1, &mut self.rings[1]), (0, 0));
    }
    fn send(&mut self, ports: Ports, op: u16, bytes: &[u8]) {
        let len = (bytes.len() as u32).into();
        self.send_as(Header { len, ..Self::header(ports, op) }, bytes);
    }
    /// Whether there is a received packet.
    fn has_packet(&self) -> bool {
        self.rings[0].used_index() != self.received
    }
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let (bench, ring) = (&self.bench, &mut self.rings[0]);
        let mut used = None;
        bench.interrupts.wait_until(|| {
            used = used.or_else(|| ring.next_used());
            used.is_some()
        });
        let (head, len) = used.unwrap();
        self.received = self.received.wrapping_add(1);
        let at = BUFFERS + u64::from(head) * EMPTY;
        let bytes = bench.get(at, len as usize);
        ring.chain(head as u16, &[(at, EMPTY as u32, true)]);
        bench.slot.kick(0);
        let (header, rest) = Header::read_from_prefix(&bytes).unwrap();
        let is_refusal = header.op.get() == op::RST;
        assert!(is_refusal || (header.src_cid.get(), header.kind.get()) == (HOST_CID, STREAM), "{header:?}");
        assert_eq!(header.dst_cid.get(), CID);
        assert_eq!(header.len.get() as usize, rest.len());
        (header, rest.to_vec())
    }
    /// Receives a packet, which must have these ports and this operation; returns its bytes.
    fn expect(&mut self, ports: Ports, op: u16) -> Vec<u8> {
        let (header, bytes) = self.receive();
        let got = Ports { host: header.src_port.get(), guest: header.dst_port.get() };
        assert_eq!((got, header.op.get()), (ports, op), "{header:?}");
        bytes
    }
    /// Receives a packet, which must be a shutdown; returns its flags.
    fn expect_shutdown(&mut self) -> u32 {
        let (header, _) = self.receive();
        assert_eq!(header.op.get(), op::SHUTDOWN);
        header.flags.get()
    }
    /// Connects the guest to port 9 of the host.
    fn call_host(&mut self, listener: &UnixListener) -> (Ports, UnixStream) {
        let ports = Ports { host: 9, guest: 1000 };
        self.send(ports, op::REQUEST, &[]);
        let (socket, _) = listener.accept().unwrap();
        self.expect(ports, op::RESPONSE);
        (ports, socket)
    }
}

#[test]
fn the_guest_calls_the_host_and_the_host_hangs_up() {
    let mut guest = Guest::new();
    let listener = guest.host_listener();
    let (ports, mut socket) = guest.call_host(&listener);
    guest.send(ports, op::RW, b"hello, host");
    let mut got = [0; 11];
    socket.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello, host");
    socket.write_all(b"hello, guest").unwrap();
    assert_eq!(guest.expect(ports, op::RW), b"hello, guest");
    socket.write_all(b"bye").unwrap();
    drop(socket);
    let mut said = Vec::new();
    let mut shut = 0;
    while shut != NO_MORE_RECEIVING | NO_MORE_SENDING {
        let (header, bytes) = guest.receive();
        said.extend(bytes);
        match header.op.get() {
            op::RW => {}
            op::SHUTDOWN => shut |= header.flags.get(),
            other => panic!("{other}"),
        }
    }
    assert_eq!(said, b"bye");
    guest.send(ports, op::RST, &[]);
    guest.send(ports, op::RW, b"?");
    guest.expect(ports, op::RST);
}

#[test]
fn a_program_calls_the_guest() {
    let mut guest = Guest::new();
    let mut socket = UnixStream::connect(&guest.path).unwrap();
    socket.write_all(b"CONNECT 52\nearly").unwrap();
    let (header, _) = guest.receive();
    assert_eq!((header.op.get(), header.dst_port.get()), (op::REQUEST, 52));
    let ports = Ports { host: header.src_port.get(), guest: 52 };
    guest.send(ports, op::RESPONSE, &[]);
    let answer = format!("OK {}\n", ports.host);
    let mut got = vec![0; answer.len()];
    socket.read_exact(&mut got).unwrap();
    assert_eq!(got, answer.as_bytes());
    assert_eq!(guest.expect(ports, op::RW), b"early");
    // The guest closes.
    let flags = (NO_MORE_RECEIVING | NO_MORE_SENDING).into();
    guest.send_as(Header { flags, ..Guest::header(ports, op::SHUTDOWN) }, &[]);
    guest.expect(ports, op::RST);
    assert_eq!(socket.read(&mut got).unwrap(), 0);
}

#[test]
fn one_direction_can_be_closed() {
    let mut guest = Guest::new();
    let listener = guest.host_listener();
    let (ports, mut socket) = guest.call_host(&listener);
    guest.send(ports, op::RW, b"all");
    let flags = NO_MORE_SENDING.into();
    guest.send_as(Header { flags, ..Guest::header(ports, op::SHUTDOWN) }, &[]);
    let mut got = String::new();
    socket.read_to_string(&mut got).unwrap();
    assert_eq!(got, "all");
    socket.write_all(b"answer").unwrap();
    assert_eq!(guest.expect(ports, op::RW), b"answer");
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    // Both directions are closed now, which the host's kernel may report in one event or in two.
    while guest.expect_shutdown() & NO_MORE_SENDING == 0 {}
    // Sending after a shutdown of sending ends the connection.
    guest.send(ports, op::RW, b"more");
    loop {
        let (header, _) = guest.receive();
        if header.op.get() == op::RST {
            break;
        }
    }
}

#[test]
fn sending_to_a_guest_that_receives_no_more_is_an_error() {
    let mut guest = Guest::new();
    let listener = guest.host_listener();
    let (ports, mut socket) = guest.call_host(&listener);
    let shutdown = Header { flags: NO_MORE_RECEIVING.into(), ..Guest::header(ports, op::SHUTDOWN) };
    guest.send_as(shutdown, &[]);
    assert_eq!(socket.write(b"in vain").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    // The other direction still works.
    guest.send(ports, op::RW, b"still here");
    let mut got = [0; 10];
    socket.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still here");
}

#[test]
fn wrong_packets_are_refused() {
    let mut guest = Guest::new();
    let ports = Ports { host: 9, guest: 1000 };
    guest.send(ports, op::REQUEST, &[]);
    guest.expect(ports, op::RST);
    let _listener = guest.host_listener();
    let right = Guest::header(ports, op::REQUEST);
    for wrong in [
        Header { src_cid: 41.into(), ..right },
        Header { dst_cid: 3.into(), ..right },
        Header { kind: 2.into(), ..right },
        Header { op: 0.into(), ..right },
        Header { op: 8.into(), ..right },
        Header { op: op::RW.into(), ..right },
        Header { op: op::RESPONSE.into(), ..right },
    ] {
        guest.send_as(wrong, &[]);
        let (refusal, _) = guest.receive();
        assert_eq!(refusal.op.get(), op::RST);
        // The answer comes from the packet's destination, so that the guest can assign it to the packet.
        assert_eq!(
            (refusal.src_cid, refusal.src_port, refusal.dst_port, refusal.kind),
            (wrong.dst_cid, wrong.dst_port, wrong.src_port, wrong.kind)
        );
    }
    guest.send(ports, op::REQUEST, &[]);
    guest.expect(ports, op::RESPONSE);
    guest.send(ports, op::REQUEST, &[]);
    guest.expect(ports, op::RST);
    assert_eq!(guest.bench.slot.status(), 0xf);
    // A caller with a malformed request, and one that the guest refuses.
    let mut socket = UnixStream::connect(&guest.path).unwrap();
    socket.write_all(b"HELO\n").unwrap();
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    let mut socket = UnixStream::connect(&guest.path).unwrap();
    socket.write_all(b"CONNECT 1\n").unwrap();
    let (header, _) = guest.receive();
    guest.send(Ports { host: header.src_port.get(), guest: 1 }, op::RST, &[]);
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
}

#[test]
fn the_host_sends_no_more_than_the_guest_has_room_for() {
    let mut guest = Guest::new();
    let listener = guest.host_listener();
    let ports = Ports { host: 9, guest: 1000 };
    let with_room = |op, buf_alloc: u32, fwd_cnt: u32| {
        let (buf_alloc, fwd_cnt) = (buf_alloc.into(), fwd_cnt.into());
        Header { buf_alloc, fwd_cnt, ..Guest::header(ports, op) }
    };
    guest.send_as(with_room(op::REQUEST, 100, 0), &[]);
    let (mut socket, _) = listener.accept().unwrap();
    guest.expect(ports, op::RESPONSE);
    socket.write_all(&[7; 250]).unwrap();
    assert_eq!(guest.expect(ports, op::RW).len(), 100);
    guest.expect(ports, op::CREDIT_REQUEST);
    // Impossible counts mean no room, not a lot of room.
    guest.send_as(with_room(op::CREDIT_UPDATE, 100, 101), &[]);
    guest.send_as(with_room(op::CREDIT_UPDATE, 150, 100), &[]);
    assert_eq!(guest.expect(ports, op::RW).len(), 150);
    guest.expect(ports, op::CREDIT_REQUEST);
    guest.send_as(with_room(op::CREDIT_REQUEST, 150, 250), &[]);
    guest.expect(ports, op::CREDIT_UPDATE);
}

#[test]
fn the_guest_may_send_as_much_as_there_is_room_for() {
    let mut guest = Guest::new();
    let listener = guest.host_listener();
    let (ports, mut socket) = guest.call_host(&listener);
    let part = vec![5; 0x8000];
    // What the socket takes is passed on at once. Then the buffer fills, which the guest can see from the credit.
    let (mut sent, mut forwarded) = (0u32, 0u32);
    while sent.wrapping_sub(forwarded) + 0x8000 <= BUFFER as u32 {
        guest.send(ports, op::RW, &part);
        sent += 0x8000;
        guest.send(ports, op::CREDIT_REQUEST, &[]);
        // The answer, and perhaps a credit update that was due anyway.
        forwarded = guest.receive().0.fwd_cnt.get();
        while guest.has_packet() {
            forwarded = guest.receive().0.fwd_cnt.get();
        }
    }
    let mut got = vec![0; sent as usize];
    socket.read_exact(&mut got).unwrap();
    assert!(got.iter().all(|&b| b == 5));
    // The guest gets a credit update without asking.
    while forwarded < sent - BUFFER as u32 / 4 {
        let (header, _) = guest.receive();
        assert_eq!(header.op.get(), op::CREDIT_UPDATE);
        forwarded = header.fwd_cnt.get();
    }
}

#[test]
fn more_than_there_is_room_for_ends_the_connection() {
    let mut guest = Guest::new();
    let listener = guest.host_listener();
    let (ports, _socket) = guest.call_host(&listener);
    for _ in 0..64 {
        guest.send(ports, op::RW, &vec![5; 0x1_0000]);
    }
    loop {
        let (header, _) = guest.receive();
        if header.op.get() == op::RST {
            break;
        }
    }
    assert_eq!(guest.bench.slot.status(), 0xf);
}

#[test]
fn a_reset_ends_connections_and_the_device_can_be_started_again() {
    let mut guest = Guest::new();
    let listener = guest.host_listener();
    let (_, mut socket) = guest.call_host(&listener);
    guest.bench.reset();
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    guest.start();
    let (ports, mut socket) = guest.call_host(&listener);
    socket.write_all(b"again").unwrap();
    assert_eq!(guest.expect(ports, op::RW), b"again");
}

#[test]
fn connections_are_limited() {
    let mut guest = Guest::new();
    let listener = guest.host_listener();
    let mut sockets = Vec::new();
    for port in 0..table::MAX_CONNECTIONS as u32 {
        let ports = Ports { host: 9, guest: port };
        guest.send(ports, op::REQUEST, &[]);
        guest.expect(ports, op::RESPONSE);
        sockets.push(listener.accept().unwrap());
    }
    let ports = Ports { host: 9, guest: 1 << 20 };
    guest.send(ports, op::REQUEST, &[]);
    guest.expect(ports, op::RST);
    guest.send(Ports { host: 9, guest: 0 }, op::RST, &[]);
    guest.send(ports, op::REQUEST, &[]);
    guest.expect(ports, op::RESPONSE);
}

#[test]
fn malformed_buffers_stop_the_device() {
    type Chain = &'static [(u64, u32, bool)];
    let bad: &[(usize, Chain)] = &[
        (1, &[(OUT, 43, false)]),
        (1, &[(OUT, 44, true)]),
        (1, &[(OUT, 44, false), (OUT, 8, true)]),
        // The header at this address says 100 bytes.
        (1, &[(OUT, 44 + 99, false)]),
        (0, &[(BUFFERS, 43, true)]),
        (0, &[(BUFFERS, 100, false)]),
    ];
    for &(queue, chain) in bad {
        let mut guest = Guest::new();
        guest.bench.reset();
        guest.rings = guest.bench.start(0, 3, 8);
        guest.bench.put(OUT, Header { len: 100.into(), ..Header::default() }.as_bytes());
        guest.rings[queue].chain(0, chain);
        guest.bench.slot.kick(queue as u16);
        assert!(matches!(guest.bench.offence(), Broken::Request(_)), "{chain:?}");
    }
}

fn random_header() -> impl Strategy<Value = Header> {
    let fields = (0..10u16, 0..4u32, 0..4u32, 0..4u32, any::<u32>(), any::<u32>());
    fields.prop_map(|(op, host, guest, flags, buf_alloc, fwd_cnt)| Header {
        flags: flags.into(),
        buf_alloc: buf_alloc.into(),
        fwd_cnt: fwd_cnt.into(),
        ..Guest::header(Ports { host: 7 + host, guest }, op)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_packets_do_harm(packets in proptest::collection::vec((random_header(), 0..3000u32), 1..60)) {
        let mut guest = Guest::new();
        let listener = guest.host_listener();
        listener.set_nonblocking(true).unwrap();
        let mut sockets = Vec::new();
        for (header, len) in packets {
            let bytes = vec![1; len as usize];
            guest.send_as(Header { len: len.into(), ..header }, &bytes);
            if let Ok((socket, _)) = listener.accept() {
                let _ = (&socket).write_all(&[2; 5000]);
                sockets.push(socket);
            }
            while guest.has_packet() {
                guest.receive();
            }
        }
        prop_assert_eq!(guest.bench.slot.status(), 0xf);
        guest.bench.reset();
        prop_assert_eq!(guest.bench.slot.link().last_offence(), None);
    }
}
