//! Hostile drivers of virtio devices: whatever they do, the host survives, and leaks no threads or descriptors.
//!
//! [`servings`](paravane_tests::soup::servings) determines how many guests are tried, or for how long. A failure names
//! its seed. The test has a process to itself, because it counts the process's threads and descriptors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use paravane::backend::disk::{Disk, Options};
use paravane::compare::Needs;
use paravane::host::busy_poll::BusyPoll;
use paravane::launch::EngineChoice;
use paravane::machine::end::DomainEnd;
use paravane::virtio::Device;
use paravane::virtio::block::Block;
use paravane::virtio::entropy::Entropy;
use paravane::virtio::vsock::Vsock;
use paravane_tests::boot::{Guest, Outcome, PATIENCE};
use paravane_tests::guests::VIRTIO_SOUP;
use paravane_tests::soup::servings::{Servings, watched};
use paravane_tests::verdict::{broken_product, broken_test, note, skip};

/// The number of guests on each engine, by default.
const SEEDS: u64 = 8;
/// The number of steps that a guest makes.
const STEPS: u64 = 4000;
const DEADLINE: Duration = Duration::from_secs(2);
const DISK_BYTES: usize = 1 << 20;

/// The files behind the devices; deleted on drop.
struct Larder {
    directory: PathBuf,
    qcow2: bool,
}

/// The files, for the plain function that makes the devices.
static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

impl Larder {
    fn new() -> Self {
        let directory = std::env::temp_dir().join(format!("paravane-virtio-soup-{}", std::process::id()));
        let made = std::fs::create_dir(&directory);
        made.unwrap_or_else(|why| broken_test(format_args!("{}: {why}", directory.display())));
        DIRECTORY.set(directory.clone()).unwrap_or_else(|_| broken_test("there are two larders"));
        for name in ["disk.raw", "readonly.raw", "neighbour"] {
            std::fs::write(directory.join(name), pattern()).unwrap_or_else(|why| broken_test(why));
        }
        let image = directory.join("disk.qcow2");
        let made =
            Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("1M").status();
        let qcow2 = made.is_ok_and(|status| status.success());
        if !qcow2 {
            skip("qemu-img", "there is no qcow2 image among the disks");
        }
        Self { directory, qcow2 }
    }

    /// Checks that the files that no guest may change are unchanged.
    fn check(&self, after: &str) {
        let read =
            |name: &str| std::fs::read(self.directory.join(name)).unwrap_or_else(|why| broken_test(why));
        for name in ["readonly.raw", "neighbour"] {
            if read(name) != pattern() {
                broken_product(format_args!("{name} was changed: {after}"));
            }
        }
        if read("disk.raw").len() != DISK_BYTES {
            broken_product(format_args!("the disk has another size: {after}"));
        }
    }

    /// Checks the tables of a qcow2 image. Clusters that a killed guest leaked are not an error.
    fn check_image(&self) {
        if self.qcow2 {
            let image = self.directory.join("disk.qcow2");
            let checked = Command::new("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(image).status();
            let code = checked.unwrap_or_else(|why| broken_test(why)).code();
            if !matches!(code, Some(0 | 3)) {
                broken_product(format_args!("qemu-img check finds the image corrupt: {code:?}"));
            }
        }
    }
}

impl Drop for Larder {
    fn drop(&mut self) {
        // A directory that remains among the temporary files harms nobody.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn pattern() -> Vec<u8> {
    (0..DISK_BYTES / 8).flat_map(|n| (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

fn disk(path: PathBuf, readonly: bool) -> Box<dyn Device> {
    let options = Options { path, format: None, readonly, direct: false };
    let disk = Disk::open(&options).unwrap_or_else(|why| broken_test(why));
    Box::new(Block::new(disk, 1, None).unwrap_or_else(|why| broken_test(why)))
}

fn devices() -> Vec<Box<dyn Device>> {
    let directory: &Path = DIRECTORY.get().unwrap_or_else(|| broken_test("there is no larder"));
    let mut devices =
        vec![disk(directory.join("disk.raw"), false), disk(directory.join("readonly.raw"), true)];
    let image = directory.join("disk.qcow2");
    if image.exists() {
        devices.push(disk(image, false));
    }
    for needs in [Needs::Network, Needs::Console] {
        devices.extend(needs.provide().unwrap_or_else(|why| broken_test(why)));
    }
    devices.push(Box::new(Entropy));
    let socket = Vsock::new(3, &directory.join("socket")).unwrap_or_else(|why| broken_test(why));
    devices.push(Box::new(socket));
    devices
}

fn boot(engine: EngineChoice, seed: u64) -> Outcome {
    let name = format!("virtio soup of seed {seed} on {}", engine.name());
    watched(&name.clone(), move || {
        let cmdline = format!("seed={seed} steps={STEPS}");
        let guest = Guest {
            name: &name,
            cmdline: &cmdline,
            mem_bytes: 16 << 20,
            devices,
            deadline: DEADLINE,
            ..Guest::new(VIRTIO_SOUP)
        };
        guest
            .boot_on(engine)
            .unwrap_or_else(|why| broken_product(format_args!("{name} does not start: {why}")))
    })
}

/// The numbers of descriptors and threads of this process.
fn held() -> [usize; 2] {
    ["/proc/self/fd", "/proc/self/task"]
        .map(|path| std::fs::read_dir(path).unwrap_or_else(|why| broken_test(why)).count())
}

/// Waits until the numbers are as before: a joined thread stays in /proc until the kernel has removed it, and no event
/// announces that.
fn must_hold(before: [usize; 2], after: &str) {
    let start = Instant::now();
    while held() != before {
        if start.elapsed() > PATIENCE {
            let now = held();
            broken_product(format_args!("descriptors and threads {before:?} became {now:?}: {after}"));
        }
        std::thread::yield_now();
    }
}

/// Adds up what the guest prints about its devices: for each type, the requests offered and used.
fn count(outcome: &Outcome, sum: &mut BTreeMap<u64, [u64; 2]>) {
    for line in outcome.text.lines().filter(|line| line.starts_with("soup: ")) {
        let field = |key: &str| {
            let word = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            word.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let [offered, used] = sum.entry(field("kind")).or_default();
        *offered += field("offered");
        *used += field("used");
    }
}

#[test]
fn hostile_drivers_harm_nobody_else() {
    let larder = Larder::new();
    let servings = Servings::asked_for(SEEDS);
    let mut before = BTreeMap::new();
    let mut sum = BTreeMap::new();
    let (mut guests, mut finished, mut stops) = (0u64, 0u64, 0);
    servings.on_each_engine(|engine, seed| {
        // The first guest makes what the process then keeps.
        let held = *before.entry(engine.name()).or_insert_with(|| {
            boot(engine, seed);
            // Busy polling opens a file for the whole program when a poll first finds nothing. This opens it now, not
            // at a time that depends on the host's load.
            BusyPoll::default().look(|| false);
            held()
        });
        let outcome = boot(engine, seed);
        let name = outcome.name.clone();
        guests += 1;
        match &outcome.end {
            DomainEnd::Killed(why) => {
                let one_line = !why.is_empty() && !why.contains('\n');
                outcome.must(one_line, "should have died with one line that says why");
            }
            DomainEnd::PowerOff => finished += 1,
            _ => {}
        }
        stops += outcome.report.devices.iter().map(|device| device.stops).sum::<u64>();
        count(&outcome, &mut sum);
        drop(outcome);
        must_hold(held, &name);
        larder.check(&name);
    });
    larder.check_image();
    note(format_args!(
        "virtio soup: {guests} guests from seed {} on: {finished} finished; {stops} stops; \
         requests offered and used by type: {sum:?}",
        servings.first
    ));
    // If devices do no work, the test shows nothing.
    let kinds: Vec<u64> = sum.keys().copied().collect();
    if guests > 0 && (kinds != [1, 2, 3, 4, 19] || stops < guests) {
        broken_test(format_args!("devices were left in peace: {stops} stops; {sum:?}"));
    }
    for (kind, [_, used]) in &sum {
        if *used < guests {
            broken_test(format_args!("devices of type {kind} did nothing: {sum:?}"));
        }
    }
}
