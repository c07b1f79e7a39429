//! A reset waits for requests in work.

use std::sync::Condvar;

use super::*;

/// An image whose operations wait until it is opened. The flags: whether an operation has begun, and whether it is
/// open.
#[derive(Default)]
struct Gate(Mutex<(bool, bool)>, Condvar);

impl Gate {
    fn pass(&self) -> io::Result<()> {
        self.0.lock().unwrap().0 = true;
        self.1.notify_all();
        drop(self.1.wait_while(self.0.lock().unwrap(), |(_, open)| !*open).unwrap());
        Ok(())
    }
    fn wait_for_somebody(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |(came, _)| !*came).unwrap());
    }
    fn open(&self) {
        self.0.lock().unwrap().1 = true;
        self.1.notify_all();
    }
}

impl Image for Arc<Gate> {
    fn bytes(&self) -> u64 {
        SECTORS * SECTOR
    }
    fn limits(&self) -> Limits {
        Limits { block: SECTOR, discard: None }
    }
    fn read(&self, buffers: &mut [libc::iovec], _: u64) -> io::Result<()> {
        self.pass()?;
        // The buffers are memory of the test's bench, which lives as long as the request.
        fill_all(buffers, 9);
        Ok(())
    }
    fn write(&self, _: &mut [libc::iovec], _: u64) -> io::Result<()> {
        self.pass()
    }
    fn flush(&self) -> io::Result<()> {
        self.pass()
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        self.pass()
    }
    fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        self.pass()
    }
}

#[test]
fn a_reset_waits_for_what_is_in_work() {
    let gate = Arc::new(Gate::default());
    let options = Scratch::new("gate", 0).options();
    let mut bench = Bench::new(block(Arc::new(gate.clone()), None, &options));
    let mut rings = bench.start(FLUSH, 1, 16);
    let ring = &mut rings[0];
    read_under_way(&bench, ring);
    gate.wait_for_somebody();
    assert!(!bench.slot.reset(), "a request in work is not cancelled");
    gate.open();
    bench.reset();
    assert_eq!((ring.next_used(), bench.get(STATUS, 1)), (Some((0, 513)), vec![0]));
    assert!(bench.get(DATA, 512) == [9; 512]);
}
