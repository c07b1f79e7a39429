//! The network device as smoltcp's `Device`: frames are read and written in place, without a copy.

use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use crate::device::net::{MAX_FRAME, Net, Receiver, Sender};

/// A received frame.
pub struct Received<'a>(&'a mut Receiver);

/// Room for a frame to send.
pub struct Room<'a>(&'a mut Sender);

impl Device for Net {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Room<'a>;

    /// Only while there is room for an answer, which the stack may send.
    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Room<'_>)> {
        let (receiver, sender) = self.halves();
        let room = has_room(sender);
        (receiver.has_frame() && room).then_some((Received(receiver), Room(sender)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        let (_, sender) = self.halves();
        has_room(sender).then_some(Room(sender))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        capabilities
    }
}

fn has_room(sender: &mut Sender) -> bool {
    // A device that returns a buffer that it does not have gets no more frames.
    sender.reclaim().is_ok() && sender.can_send()
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let mut f = Some(f);
        let mut see = |frame: &[u8]| f.take().map(|f| f(frame));
        match self.0.receive(&mut see) {
            Ok(Some(Some(result))) => result,
            // There was no valid frame after all: the stack discards an empty one.
            _ => match see(&[]) {
                Some(result) => result,
                None => unreachable!("a frame is seen once"),
            },
        }
    }
}

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut f = Some(f);
        let mut fill = |frame: &mut [u8]| f.take().map(|f| f(frame));
        match self.0.send(len, &mut fill) {
            Ok(Some(result)) => result,
            // Cannot happen: the stack respects the greatest length, and there was room. The frame would be lost, as
            // on a wire.
            _ => match fill(&mut alloc::vec![0; len]) {
                Some(result) => result,
                None => unreachable!("a frame is written once"),
            },
        }
    }
}
