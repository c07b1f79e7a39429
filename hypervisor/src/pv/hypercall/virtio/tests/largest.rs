//! Activations of as many frames and regions as there may be: what they hold, how many fit into one entry of the
//! guest, and, for who asks, what they cost.

use std::time::{Duration, Instant};

use paravane_abi::multicall::MulticallEntry;

use super::*;
use crate::machine::memory::Mfn;
use crate::pv::hypercall::Outcome;
use crate::testing::pv::{FRAMES, SCRATCH};

/// A guest with more frames than a device may have.
const GUEST: u64 = 2 * VIRTIO_MAX_REGION_FRAMES;
const ARGUMENT: u64 = va(BUFFER);

fn large() -> Machine {
    machine_on(domain_of(GUEST), vec![Box::new(Entropy)])
}

impl Machine {
    /// Regions of equal size with gaps between them, the last frames first.
    fn regions(&self, count: u64) -> Vec<VirtioRegion> {
        let frames = VIRTIO_MAX_REGION_FRAMES / count;
        let page = |n| FRAMES + (count - 1 - n) * (GUEST - FRAMES) / count;
        let region = |n| VirtioRegion { address: AT + n * frames * 4096, mfn: self.t.mfn(page(n)), frames };
        (0..count).map(region).collect()
    }
    /// Puts an activation where it can be made again and again.
    fn prepare(&mut self, regions: &[VirtioRegion]) {
        let (activate, queue, _) = self.request();
        self.t.write_at(va(LISTS), &queue).unwrap();
        for (offset, region) in (0x100..).step_by(size_of::<VirtioRegion>()).zip(regions) {
            self.t.write_at(va(LISTS) + offset, region).unwrap();
        }
        let activate = VirtioActivate { region_count: regions.len() as u32, ..activate };
        self.t.write_at(ARGUMENT, &activate).unwrap();
    }
    fn refs(&self, regions: &[VirtioRegion]) -> Vec<u64> {
        let frames = regions.iter().flat_map(|r| r.mfn..r.mfn + r.frames);
        frames.map(|mfn| self.t.mmu.frame(Mfn(mfn)).unwrap().refs()).collect()
    }
    fn op(&mut self, op: u32) -> Result<u64, Errno> {
        self.t.call(nr::PARAVANE_VIRTIO_OP, [op.into(), ARGUMENT])
    }
    /// How many of forty operations, of these in turn, one entry makes.
    fn made_at_once(&mut self, ops: [u32; 2]) -> u64 {
        const COUNT: u64 = 40;
        for (n, op) in (0..COUNT).zip(ops.into_iter().cycle()) {
            let args = [op.into(), ARGUMENT, 0, 0, 0, 0];
            let entry = MulticallEntry { op: nr::PARAVANE_VIRTIO_OP, result: 0, args };
            self.t.write_at(va(SCRATCH) + n * size_of::<MulticallEntry>() as u64, &entry).unwrap();
        }
        match self.t.dispatch(nr::MULTICALL, [va(SCRATCH), COUNT, 0, 0, 0, 0]) {
            Ok(Outcome::Again([_, left, ..])) => COUNT - left,
            other => panic!("all at once: {other:?}"),
        }
    }
}

/// With the last frame not the guest's: everything else was looked at, and some held, before that was seen.
fn spoilt(m: &Machine, mut regions: Vec<VirtioRegion>) -> Vec<VirtioRegion> {
    let last = regions.last_mut().unwrap();
    last.mfn = m.t.mfn(GUEST - 1) + 2 - last.frames;
    regions
}

#[test]
fn every_frame_is_held_and_let_go() {
    for count in [1, VIRTIO_MAX_REGIONS as u64] {
        let mut m = large();
        let regions = m.regions(count);
        m.prepare(&regions);
        assert_eq!(m.op(VIRTIOP_ACTIVATE), Ok(0));
        assert_eq!(m.refs(&regions), vec![1; VIRTIO_MAX_REGION_FRAMES as usize]);
        m.reset();
        assert_eq!(m.refs(&regions), vec![0; VIRTIO_MAX_REGION_FRAMES as usize]);
        let bad = spoilt(&m, regions.clone());
        m.prepare(&bad);
        assert_eq!(m.op(VIRTIOP_ACTIVATE), Err(Errno::EPERM));
        assert_eq!(m.refs(&regions), vec![0; VIRTIO_MAX_REGION_FRAMES as usize]);
    }
}

#[test]
fn a_multicall_of_them_is_interrupted() {
    let mut m = large();
    let bad = spoilt(&m, m.regions(VIRTIO_MAX_REGIONS as u64));
    m.prepare(&bad);
    assert_eq!(
        m.made_at_once([VIRTIOP_ACTIVATE; 2]),
        8,
        "refused, an eighth of what a multicall may do each"
    );
    let good = m.regions(VIRTIO_MAX_REGIONS as u64);
    m.prepare(&good);
    assert_eq!(m.made_at_once([VIRTIOP_ACTIVATE, VIRTIOP_RESET]), 1, "a device that starts is enough");
    assert_eq!(m.made_at_once([VIRTIOP_RESET; 2]), 1, "as is one that stops");
    m.reset();
}

#[test]
#[ignore = "a measurement: run it alone, in release"]
fn measure() {
    fn timed(m: &mut Machine, op: u32) -> (Duration, Result<u64, Errno>) {
        let start = Instant::now();
        let result = m.op(op);
        (start.elapsed(), result)
    }
    fn show(what: &str, regions: u64, mut times: Vec<Duration>) {
        times.sort();
        let us = |time: Duration| time.as_nanos() as f64 / 1000.0;
        println!(
            "{what:8} {regions:2} regions: best {:6.0}, median {:6.0} us",
            us(times[0]),
            us(times[times.len() / 2])
        );
    }
    for count in [1, VIRTIO_MAX_REGIONS as u64] {
        let [mut first, mut again, mut reset, mut refused, mut refusals] = [const { Vec::new() }; 5];
        for _ in 0..100 {
            let mut m = large();
            let good = m.regions(count);
            let bad = spoilt(&m, good.clone());
            for times in [&mut first, &mut again] {
                m.prepare(&good);
                let (time, result) = timed(&mut m, VIRTIOP_ACTIVATE);
                assert_eq!(result, Ok(0));
                times.push(time);
                loop {
                    let (time, result) = timed(&mut m, VIRTIOP_RESET);
                    if result == Ok(0) {
                        break reset.push(time);
                    }
                }
            }
            m.prepare(&bad);
            let (time, result) = timed(&mut m, VIRTIOP_ACTIVATE);
            assert_eq!(result, Err(Errno::EPERM));
            refused.push(time);
            let start = Instant::now();
            m.made_at_once([VIRTIOP_ACTIVATE; 2]);
            refusals.push(start.elapsed());
        }
        show("first", count, first);
        show("again", count, again);
        show("reset", count, reset);
        show("refused", count, refused);
        show("an entry", count, refusals);
    }
}
