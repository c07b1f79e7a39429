//! The TCP/IP stack on its interface: the address, the state of the link, and the loop that drives the stack for an
//! application.

use alloc::vec::Vec;

use smoltcp::iface::{Config, Context, Interface, SocketHandle, SocketSet};
use smoltcp::socket::dhcpv4;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address, Ipv4Cidr};

use crate::cmdline::text;
use crate::device::net::Net;
use crate::device::{self, DeviceError};
use crate::kernel::Kernel;
use crate::machine::{Current, Machine};
use crate::{console, println};

/// What an application asks the loop to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Call it again at once: it has done something.
    Again,
    /// Call it when something has happened, or at this time of [`Machine::clock`].
    Wait(Option<u64>),
    /// End the loop.
    Done,
}

/// A use of the network: a service or a client.
pub trait Application {
    /// Printed after the address, once there is one.
    const OFFER: &'static str;
    /// Does the work that can be done now.
    fn step(&mut self, stack: &mut Stack) -> Step;
}

/// The stack as applications see it.
pub struct Stack {
    /// The sockets of the application and of DHCP.
    pub sockets: SocketSet<'static>,
    interface: Interface,
    dhcp: Option<SocketHandle>,
    address: Option<Ipv4Cidr>,
    up: bool,
    offer: &'static str,
}

/// Drives the stack for an application until it is done. The address is the command line's (`ip=10.0.0.2/24`, with
/// `gateway=10.0.0.1` for a gateway), or DHCP's.
///
/// # Errors
/// When there is no network device, or it stops working.
pub fn run<A: Application>(
    kernel: &mut Kernel,
    make: impl FnOnce(&mut SocketSet<'static>) -> A,
) -> Result<A, DeviceError> {
    let cmdline = kernel.cmdline;
    let transport = device::find(kernel, Net::KIND)?;
    device::without_interrupts(|| {
        let mut net = Net::new(transport)?;
        net.check()?;
        net.open()?;
        let mut stack = Stack::new(&mut net, cmdline, A::OFFER);
        let mut application = make(&mut stack.sockets);
        stack.drive(&mut net, &mut application)?;
        Ok(application)
    })
}

fn now() -> Instant {
    Instant::from_micros((Current::clock() / 1000) as i64)
}

impl Stack {
    fn new(net: &mut Net, cmdline: &str, offer: &'static str) -> Self {
        let mut config = Config::new(EthernetAddress(net.mac()).into());
        config.random_seed = Current::clock();
        let interface = Interface::new(config, net, now());
        let sockets = SocketSet::new(Vec::new());
        let mut stack = Self { sockets, interface, dhcp: None, address: None, up: true, offer };
        stack.follow_link(net.link_is_up());
        match text(cmdline, "ip").and_then(|ip| ip.parse::<Ipv4Cidr>().ok()) {
            Some(address) => stack.configure(address, text(cmdline, "gateway").and_then(|g| g.parse().ok())),
            None => {
                println!("net: asking for an address");
                stack.dhcp = Some(stack.sockets.add(dhcpv4::Socket::new()));
            }
        }
        stack
    }

    /// Our address, if we have one.
    pub fn address(&self) -> Option<Ipv4Cidr> {
        self.address
    }

    /// The context that a socket needs to connect, and the sockets.
    pub fn context(&mut self) -> (&mut Context, &mut SocketSet<'static>) {
        (self.interface.context(), &mut self.sockets)
    }

    fn configure(&mut self, address: Ipv4Cidr, gateway: Option<Ipv4Address>) {
        self.forget_address();
        self.interface.update_ip_addrs(|all| {
            // There is room for at least one.
            let _ = all.push(IpCidr::Ipv4(address));
        });
        if let Some(gateway) = gateway {
            // As above.
            let _ = self.interface.routes_mut().add_default_ipv4_route(gateway);
        }
        self.address = Some(address);
        println!("net: address {address}{}", self.offer);
    }

    fn forget_address(&mut self) {
        self.interface.update_ip_addrs(|all| all.clear());
        self.interface.routes_mut().remove_default_ipv4_route();
        self.address = None;
    }

    fn drive(&mut self, net: &mut Net, application: &mut impl Application) -> Result<(), DeviceError> {
        loop {
            self.interface.poll(now(), net, &mut self.sockets);
            self.follow_dhcp();
            if let Some(up) = net.link_change()? {
                self.follow_link(up);
            }
            let wake = match application.step(self) {
                Step::Again => continue,
                Step::Wait(wake) => wake,
                Step::Done => break,
            };
            net.tell();
            if net.is_idle() {
                self.wait(wake);
            }
        }
        // The application's last packets are sent before the device is reset.
        self.interface.poll(now(), net, &mut self.sockets);
        net.tell();
        net.drain()
    }

    /// Waits for a frame, a typed byte, the stack's next deadline, or `wake`.
    fn wait(&mut self, wake: Option<u64>) {
        let clock = Current::clock();
        let delay = self.interface.poll_delay(now(), &self.sockets).map(|delay| delay.total_micros());
        if delay == Some(0) || wake.is_some_and(|wake| wake <= clock) {
            return;
        }
        let next = delay.map(|us| clock + us * 1000).into_iter().chain(wake).min();
        if let Some(next) = next {
            Current::arm_timer(next);
        }
        // A byte that `receive` takes here raises no interrupt any more, so there is no wait then.
        if !console::receive() {
            Current::wait();
        }
    }

    fn follow_link(&mut self, up: bool) {
        if core::mem::replace(&mut self.up, up) == up {
            return;
        }
        println!("net: the link is {}", if up { "up" } else { "down" });
        // The link may lead to another network now.
        if let Some(handle) = self.dhcp.filter(|_| up) {
            self.sockets.get_mut::<dhcpv4::Socket>(handle).reset();
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
            Some(dhcpv4::Event::Deconfigured) => self.forget_address(),
        }
    }
}
