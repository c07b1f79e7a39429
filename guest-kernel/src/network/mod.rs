//! TCP/IP over the network device: an address, replies to pings, a few services, and a few clients.
//!
//! The stack is smoltcp. One loop drives it, with interrupts off except while it waits. It runs only while a command
//! needs it.
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
        Err(error) => report(error),
    }
}

/// Pings `target` so many times.
pub fn ping(kernel: &mut Kernel, target: &str, count: u16) {
    let Ok(target) = target.parse() else { return println!("ping: {target} is not an IPv4 address") };
    match stack::run(kernel, |sockets| Ping::new(sockets, target, count)) {
        Ok(ping) => println!("ping: {ping}"),
        Err(error) => report(error),
    }
}

/// Fetches the page `/` from the web server at `target`, an address with or without a port.
pub fn fetch(kernel: &mut Kernel, target: &str) {
    let Some(target) = fetch::target(target) else {
        return println!("fetch: {target} is not an IPv4 address with or without a port");
    };
    match stack::run(kernel, |sockets| Fetch::new(sockets, target)) {
        Ok(fetch) => println!("fetch: {fetch}"),
        Err(error) => report(error),
    }
}

fn report(error: DeviceError) {
    match error {
        DeviceError::Absent => {
            println!("no network device; start the guest with one: `paravane run --net user`")
        }
        error => println!("net: {error}"),
    }
}
