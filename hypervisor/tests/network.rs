//! The reference guest on the host's network: an address by DHCP, and a page that the host fetches.
//!
//! Needs passt, which needs no privileges, and an engine; what is absent is said.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

fn skip(why: &str) {
    // Past the harness's capture: a skip is to be seen.
    let _ = writeln!(std::io::stderr(), "SKIP: {why}");
}

fn has_passt() -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|dir: PathBuf| dir.join("passt").is_file())
}

/// A guest that serves.
struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Server {
    /// Starts one whose web server is this host's `port`.
    fn start(options: &[&str], port: u16) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_paravane"))
            .args(["run", "--timeout", "60s", "--cmdline", "serve", "--net", &format!("user,tcp={port}:80")])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// The line that contains `part`; nothing if there is none to the end.
    fn line_with(&mut self, part: &str) -> Option<String> {
        self.output.by_ref().lines().map_while(Result::ok).find(|line| line.contains(part))
    }
}

/// A port that nobody listens on at this moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn fetch(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: guest\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_page_is_fetched_from_the_guest() {
    if !has_passt() {
        return skip("passt is not installed: no network without privileges");
    }
    for (build, options) in [("pv", &[][..]), ("bare", &["--bare"])] {
        let port = free_port();
        let mut server = Server::start(options, port);
        let Some(address) = server.line_with("net: address ") else {
            let status = server.child.wait().unwrap();
            assert_eq!(status.code(), Some(1), "{build}: no address");
            return skip("no guest with a network runs here");
        };
        assert!(address.contains("http on port 80"), "{address}");
        for number in 1..=6 {
            let page = fetch(port, "/");
            assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{build}: {page}");
            let wanted = [format!("machine: {build}"), format!("request: {number}")];
            assert!(wanted.iter().all(|part| page.contains(part)), "{build}: {page}");
        }
        assert!(fetch(port, "/other").starts_with("HTTP/1.1 404 "));
        // Ctrl-D ends it.
        server.child.stdin.take().unwrap().write_all(&[4]).unwrap();
        assert!(server.line_with("net: done").is_some(), "{build}: it did not end");
        assert!(server.child.wait().unwrap().success());
    }
}
