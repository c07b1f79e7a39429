//! The network: set an interface up once; send and receive 10 000 frames.
//!
//! The other end is a peer that counts the frames that it receives and sends frames on request. Requests are *control
//! frames*: type 0x88b5, then `PVNP`, an operation, a count and a size. Results are verified by the peer's counts and
//! by the number in each of its frames.
#![forbid(unsafe_code)]

use paravane_guest::virtio::kicks;

use crate::device;
use crate::device::net::Net;
use crate::kernel::Kernel;

use super::measure::{Failure, Measured, Outcome, Workload, measure};

const FRAMES: u32 = 10_000;
/// How many completions a wait is for: half of the queue. The device works on the other half while the kernel wakes
/// up; a wait for fewer would often end before it began, and cost its exit all the same.
const BATCH: u16 = 128;
/// Frames that are put into the queue before the device is notified, as a stack does when it has more to send.
const BURST: u64 = 16;
/// The peer's address.
const PEER: [u8; 6] = [0x02, 0, 0, 0, 0x88, 0xb5];
/// The type of the peer's frames and of requests to it.
const CONTROL_TYPE: [u8; 2] = [0x88, 0xb5];
/// The type of frames that the peer only counts: the second type for local experiments.
const DATA_TYPE: [u8; 2] = [0x88, 0xb6];
const MAGIC: &[u8] = b"PVNP";
const OPERATION_SEND: u16 = 1;
const OPERATION_REPORT: u16 = 2;
const CONTROL_LEN: usize = 60;

pub const SETUP: Workload = Workload {
    name: "net-setup",
    what: "set a network interface up, from nothing to its first usable queue",
    unit: "device",
    run: setup,
};

pub const SEND_SMALL: Workload = Workload {
    name: "net-send-64",
    what: "send 10000 frames of 64 bytes",
    unit: "frame",
    run: |kernel| send(kernel, 64),
};

pub const SEND_BIG: Workload = Workload {
    name: "net-send-1500",
    what: "send 10000 frames of 1500 bytes",
    unit: "frame",
    run: |kernel| send(kernel, 1500),
};

pub const FLOOD_SMALL: Workload = Workload {
    name: "net-flood-64",
    what: "send 10000 frames of 64 bytes without a check of their arrival",
    unit: "frame",
    run: |kernel| flood(kernel, 64),
};

pub const FLOOD_BIG: Workload = Workload {
    name: "net-flood-1500",
    what: "send 10000 frames of 1500 bytes without a check of their arrival",
    unit: "frame",
    run: |kernel| flood(kernel, 1500),
};

pub const RECEIVE_SMALL: Workload = Workload {
    name: "net-receive-64",
    what: "receive 10000 frames of 64 bytes",
    unit: "frame",
    run: |kernel| receive(kernel, 64),
};

pub const RECEIVE_BIG: Workload = Workload {
    name: "net-receive-1500",
    what: "receive 10000 frames of 1500 bytes",
    unit: "frame",
    run: |kernel| receive(kernel, 1500),
};

fn setup(kernel: &mut Kernel) -> Result<Outcome, Failure> {
    let count = device::prepare(kernel)?;
    device::without_interrupts(|| {
        // A rehearsal: it finds out whether there is a device, and touches the queues' memory for the first time.
        drop(device::open(&kernel.memory, count, Net::KIND).and_then(Net::new)?);
        let (net, measured) =
            measure(&mut kernel.memory, |memory| device::open(memory, count, Net::KIND).and_then(Net::new));
        let mut net = net?;
        net.check()?;
        // A first frame there and back shows that the queues work.
        net.open()?;
        report(&mut net)?;
        Ok(Outcome::new(1, measured))
    })
}

fn send(kernel: &mut Kernel, size: usize) -> Result<Outcome, Failure> {
    let transport = device::find(kernel, Net::KIND)?;
    device::without_interrupts(|| {
        let mut net = ready(transport)?;
        // Resets the peer's counts.
        report(&mut net)?;
        let before = kicks().sent;
        let (done, measured) = measure(&mut kernel.memory, |_| send_all(&mut net, size));
        done?;
        let sent = kicks().sent - before;
        let arrived = report(&mut net)?;
        Failure::unless(arrived == (u64::from(FRAMES), u64::from(FRAMES) * size as u64), "frames-lost")?;
        Ok(outcome(measured, sent))
    })
}

/// Sends without verifying arrival, for interfaces without the peer.
fn flood(kernel: &mut Kernel, size: usize) -> Result<Outcome, Failure> {
    let transport = device::find(kernel, Net::KIND)?;
    device::without_interrupts(|| {
        let mut net = ready(transport)?;
        // A rehearsal: it touches all buffers for the first time.
        send_all(&mut net, size)?;
        let before = kicks().sent;
        let (done, measured) = measure(&mut kernel.memory, |_| send_all(&mut net, size));
        done?;
        Ok(outcome(measured, kicks().sent - before))
    })
}

fn send_all(net: &mut Net, size: usize) -> Result<(), Failure> {
    let source = net.mac();
    for number in 0..u64::from(FRAMES) {
        while !net.can_send() {
            net.tell();
            net.wait_sent(BATCH)?;
            net.reclaim()?;
        }
        net.halves().1.send(size, |frame| {
            frame[..6].copy_from_slice(&PEER);
            frame[6..12].copy_from_slice(&source);
            frame[12..14].copy_from_slice(&DATA_TYPE);
            frame[14..22].copy_from_slice(&number.to_le_bytes());
        })?;
        if number % BURST == BURST - 1 {
            net.tell();
        }
    }
    net.tell();
    while net.unsent() != 0 {
        net.wait_sent(net.unsent() as u16)?;
        net.reclaim()?;
    }
    Ok(())
}

fn receive(kernel: &mut Kernel, size: usize) -> Result<Outcome, Failure> {
    let transport = device::find(kernel, Net::KIND)?;
    device::without_interrupts(|| {
        let mut net = ready(transport)?;
        let before = kicks().sent;
        let (done, measured) = measure(&mut kernel.memory, |_| {
            ask(&mut net, OPERATION_SEND, FRAMES, size as u32)?;
            receive_all(&mut net, size)
        });
        done?;
        Ok(outcome(measured, kicks().sent - before))
    })
}

/// Receives all frames; each has its number, in order, at its beginning and at its end.
fn receive_all(net: &mut Net, size: usize) -> Result<(), Failure> {
    let (mut number, total) = (0u64, u64::from(FRAMES));
    while number < total {
        net.wait_received((total - number).min(u64::from(BATCH)) as u16)?;
        while let Some(right) = net.receive(|frame| {
            let bytes = number.to_le_bytes();
            frame.len() == size
                && frame[12..14] == CONTROL_TYPE
                && frame[14..22] == bytes
                && frame[size - 1] == bytes[0]
        })? {
            Failure::unless(right, "wrong-frame")?;
            number += 1;
        }
        net.refill();
    }
    Ok(())
}

fn ready(transport: device::DeviceTransport) -> Result<Net, Failure> {
    let mut net = Net::new(transport)?;
    net.check()?;
    net.open()?;
    Ok(net)
}

fn outcome(measured: Measured, kicks: u64) -> Outcome {
    let mut outcome = Outcome::new(u64::from(FRAMES), measured);
    outcome.figures = &["kicks", "kicks-suppressed"];
    outcome.values = [kicks, u64::from(FRAMES).saturating_sub(kicks), 0];
    outcome
}

/// Sends the peer a control frame.
fn ask(net: &mut Net, operation: u16, count: u32, size: u32) -> Result<(), Failure> {
    let source = net.mac();
    Ok(net.send(CONTROL_LEN, |frame| {
        frame.fill(0);
        frame[..6].copy_from_slice(&PEER);
        frame[6..12].copy_from_slice(&source);
        frame[12..14].copy_from_slice(&CONTROL_TYPE);
        frame[14..18].copy_from_slice(MAGIC);
        frame[18..20].copy_from_slice(&operation.to_le_bytes());
        frame[20..24].copy_from_slice(&count.to_le_bytes());
        frame[24..28].copy_from_slice(&size.to_le_bytes());
    })?)
}

/// How many frames and bytes the peer has received since the last request for a report.
fn report(net: &mut Net) -> Result<(u64, u64), Failure> {
    ask(net, OPERATION_REPORT, 0, 0)?;
    loop {
        net.wait_received(1)?;
        let answer = net.receive(|frame| {
            let word = |at: usize| {
                frame.get(at..at + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
            };
            let is_report = frame.get(14..20) == Some(&[b'P', b'V', b'N', b'P', OPERATION_REPORT as u8, 0]);
            if is_report { word(28).zip(word(36)) } else { None }
        })?;
        net.refill();
        if let Some(Some(counted)) = answer {
            // The request itself has been sent, because the peer has answered it.
            while net.unsent() != 0 {
                net.wait_sent(net.unsent() as u16)?;
                net.reclaim()?;
            }
            return Ok(counted);
        }
    }
}
