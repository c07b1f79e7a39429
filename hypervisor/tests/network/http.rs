//! A browser, and what drives the guest's sink and source.

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

/// The answer to a request for `path`, to its end.
pub fn fetch(from: SocketAddr, path: &str) -> String {
    let mut stream = connect(from);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: guest\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The byte at a place of the stream that the guest's source sends, and that these tests send to its sink.
pub fn byte_at(place: u64) -> u8 {
    (place % 251) as u8
}

/// The first `len` bytes of that stream.
pub fn stream_of(len: u64) -> Vec<u8> {
    (0..len).map(byte_at).collect()
}

/// Sends the sink at `sink` so many bytes; what the page at `page` says of it must be right.
pub fn fill_sink(sink: SocketAddr, page: SocketAddr, len: u64) {
    let bytes = stream_of(len);
    let mut stream = connect(sink);
    stream.write_all(&bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    // The guest closes when it has taken everything.
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    // The sums of services.rs.
    let (a, b) = bytes.iter().fold((0u64, 0u64), |(a, b), byte| {
        let a = a.wrapping_add((*byte).into());
        (a, b.wrapping_add(a))
    });
    let wanted = format!("sunk: {len} bytes, sums {a:x} {b:x}");
    let page = fetch(page, "/");
    assert!(page.contains(&wanted), "broken product: {wanted:?} is not in\n{page}");
}

/// Takes so many bytes from the source, each of which must be right. It says something first, which the source does not
/// care for: passt, before a repair of 2023, did not complete the handshake of a connection whose caller keeps silent.
pub fn drain_source(source: SocketAddr, len: u64) {
    let mut stream = connect(source);
    stream.write_all(b"?").unwrap();
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    stream.read_exact(&mut bytes).unwrap();
    let wrong = (0..).zip(&bytes).find(|(place, byte)| **byte != byte_at(*place));
    assert_eq!(wrong, None, "broken product: a wrong byte");
}
