//! An HTTP client, and clients of the guest's sink and source services.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// A guard against hangs.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)
        .unwrap_or_else(|e| panic!("broken product: nobody answers at {to}: {e}"));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The whole answer to a request for `path`.
pub fn fetch(from: SocketAddr, path: &str) -> String {
    let mut stream = connect(from);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: guest\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The byte at an offset in the stream that the guest's source sends, and that these tests send to its sink.
pub fn byte_at(place: u64) -> u8 {
    (place % 251) as u8
}

/// The first `len` bytes of that stream.
pub fn stream_of(len: u64) -> Vec<u8> {
    (0..len).map(byte_at).collect()
}

/// Sends `len` bytes to the sink at `sink`, and checks what the page at `page` reports.
pub fn fill_sink(sink: SocketAddr, page: SocketAddr, len: u64) {
    let bytes = stream_of(len);
    let mut stream = connect(sink);
    stream.write_all(&bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    // The guest closes the connection once it has received everything.
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    // The checksums of services.rs.
    let (a, b) = bytes.iter().fold((0u64, 0u64), |(a, b), byte| {
        let a = a.wrapping_add((*byte).into());
        (a, b.wrapping_add(a))
    });
    let wanted = format!("sunk: {len} bytes, sums {a:x} {b:x}");
    let page = fetch(page, "/");
    assert!(page.contains(&wanted), "broken product: {wanted:?} is not in\n{page}");
}

/// Receives and checks `len` bytes from the source. It first sends something, which the source ignores: passt, before a
/// fix in 2023, did not complete the handshake of a connection whose client sends nothing.
pub fn drain_source(source: SocketAddr, len: u64) {
    let mut stream = connect(source);
    stream.write_all(b"?").unwrap();
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    stream.read_exact(&mut bytes).unwrap();
    let wrong = (0..).zip(&bytes).find(|(place, byte)| **byte != byte_at(*place));
    assert_eq!(wrong, None, "broken product: a wrong byte");
}
