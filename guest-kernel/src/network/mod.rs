//! TCP/IP over the network device: an address, replies to pings, and a few services.
//!
//! The stack is smoltcp. One loop drives it, with interrupts off but while it waits; it runs when somebody asks for it
//! and at no other time.

use alloc::vec::Vec;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::dhcpv4;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address, Ipv4Cidr};

use crate::command::text;
use crate::device::net::Net;
use crate::device::{self, DeviceError};
use crate::kernel::Kernel;
use crate::machine::{Current, Machine};
use crate::{console, println};

mod phy;
mod services;

use services::Services;

const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04;

/// Serves until Ctrl-C or Ctrl-D is typed. The address is what the command line says: `ip=10.0.0.2/24`, with
/// `gateway=10.0.0.1` if there is one, or by DHCP.
pub fn serve(kernel: &mut Kernel) {
    let cmdline = kernel.cmdline;
    let outcome = device::find(kernel, Net::KIND).and_then(|transport| {
        device::quietly(|| {
            let mut net = Net::new(transport)?;
            net.check()?;
            net.open()?;
            Server::new(&mut net, cmdline).run(&mut net)
        })
    });
    match outcome {
        Ok(()) => println!("net: done"),
        Err(DeviceError::Absent) => println!("no network; start me with one, e.g. `paravane run --net user`"),
        Err(error) => println!("net: {error}"),
    }
}

fn now() -> Instant {
    Instant::from_micros((Current::clock() / 1000) as i64)
}

struct Server {
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: Option<SocketHandle>,
    services: Services,
}

impl Server {
    fn new(net: &mut Net, cmdline: &str) -> Self {
        let mut config = Config::new(EthernetAddress(net.mac()).into());
        config.random_seed = Current::clock();
        let interface = Interface::new(config, net, now());
        let mut sockets = SocketSet::new(Vec::new());
        let services = Services::new(&mut sockets);
        let mut server = Self { interface, sockets, dhcp: None, services };
        match text(cmdline, "ip").and_then(|ip| ip.parse::<Ipv4Cidr>().ok()) {
            Some(address) => server.configure(address, text(cmdline, "gateway").and_then(|g| g.parse().ok())),
            None => {
                println!("net: asking for an address");
                server.dhcp = Some(server.sockets.add(dhcpv4::Socket::new()));
            }
        }
        server
    }

    fn configure(&mut self, address: Ipv4Cidr, gateway: Option<Ipv4Address>) {
        self.interface.update_ip_addrs(|all| {
            all.clear();
            // There is room for one at least.
            let _ = all.push(IpCidr::Ipv4(address));
        });
        let routes = self.interface.routes_mut();
        routes.remove_default_ipv4_route();
        if let Some(gateway) = gateway {
            // As above.
            let _ = routes.add_default_ipv4_route(gateway);
        }
        println!("net: address {address}; {}", services::OFFER);
    }

    fn run(&mut self, net: &mut Net) -> Result<(), DeviceError> {
        loop {
            self.interface.poll(now(), net, &mut self.sockets);
            self.follow_dhcp();
            let busy = self.services.serve(&mut self.sockets);
            if let Some(INTERRUPT | END) = console::try_read() {
                return Ok(());
            }
            if busy {
                continue;
            }
            net.tell();
            net.check()?;
            if net.is_idle() {
                self.wait();
            }
        }
    }

    /// Until a frame, a typed byte, or what the stack has to do next.
    fn wait(&mut self) {
        match self.interface.poll_delay(now(), &self.sockets).map(|delay| delay.total_micros()) {
            Some(0) => return,
            Some(us) => Current::arm_timer(Current::clock() + us * 1000),
            None => {}
        }
        Current::console_receive();
        if console::is_idle() {
            Current::wait();
        }
    }

    fn follow_dhcp(&mut self) {
        let Some(handle) = self.dhcp else { return };
        match self.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
            None => {}
            Some(dhcpv4::Event::Configured(config)) => {
                let (address, router) = (config.address, config.router);
                self.configure(address, router);
            }
            Some(dhcpv4::Event::Deconfigured) => {
                self.interface.update_ip_addrs(|all| all.clear());
                self.interface.routes_mut().remove_default_ipv4_route();
            }
        }
    }
}
