//! A misbehaving driver for every virtio device. `seed=N` determines its steps, `steps=N` their number.
//!
//! Most of what it does is nearly right, so that the devices get work and stop in the middle of it. Rings, buffers and
//! tables of all devices are in one arena, which is all that the devices see unless an activation names other frames.

mod arena;
mod driver;
mod request;

use paravane_guest::{Boot, power, println};

use self::driver::Driver;
use crate::chance::Chance;

/// The largest number of devices that are driven.
const DEVICES: usize = 8;

/// The entry point.
pub fn main(boot: Boot) -> ! {
    let number = |key| boot.cmdline().get(key).and_then(|text| text.parse().ok()).unwrap_or(1);
    let (seed, steps): (u64, u64) = (number("seed"), number("steps"));
    let mut chance = Chance::new(seed);
    let mut drivers = [const { None }; DEVICES];
    for (id, driver) in (0..).zip(&mut drivers) {
        *driver = Driver::new(id, &boot);
    }
    let count = drivers.iter().flatten().count();
    assert!(count > 0, "there are no devices");
    for _ in 0..steps {
        let n = chance.below(count as u64) as usize;
        if let Some(driver) = &mut drivers[n] {
            driver.step(&mut chance);
        }
    }
    for driver in drivers.iter_mut().flatten() {
        driver.count_used();
        let Driver { entry, activations, offered, used, .. } = driver;
        println!("soup: kind={} activations={activations} offered={offered} used={used}", entry.kind);
    }
    power::power_off()
}
