//! TCP/IP over the network device: an address, replies to pings, a few services, and their clients.
//!
//! The stack is smoltcp. One loop drives it, with interrupts off but while it waits; it runs when somebody asks for it
//! and at no other time.
#![forbid(unsafe_code)]

use crate::device::DeviceError;
use crate::kernel::Kernel;
use crate::println;

mod fetch;
mod phy;
mod ping;
mod services;
mod stack;

use fetch::Fetch;
use ping::Ping;
use services::Services;

/// Serves until Ctrl-C or Ctrl-D is typed.
pub fn serve(kernel: &mut Kernel) {
    match stack::run(kernel, Services::new) {
        Ok(_) => println!("net: done"),
        Err(error) => complain(error),
    }
}

/// Asks `target` for so many echoes.
pub fn ping(kernel: &mut Kernel, target: &str, count: u16) {
    let Ok(target) = target.parse() else { return println!("ping: {target}: no IPv4 address") };
    match stack::run(kernel, |sockets| Ping::new(sockets, target, count)) {
        Ok(ping) => println!("ping: {ping}"),
        Err(error) => complain(error),
    }
}

/// Fetches the page `/` from the web server at `target`, an address with or without a port.
pub fn fetch(kernel: &mut Kernel, target: &str) {
    let Some(target) = fetch::target(target) else {
        return println!("fetch: {target}: no IPv4 address, with or without a port");
    };
    match stack::run(kernel, |sockets| Fetch::new(sockets, target)) {
        Ok(fetch) => println!("fetch: {fetch}"),
        Err(error) => complain(error),
    }
}

fn complain(error: DeviceError) {
    match error {
        DeviceError::Absent => println!("no network; start me with one, e.g. `paravane run --net user`"),
        error => println!("net: {error}"),
    }
}
