//! The techniques: each one way to run a kernel that believes it owns a machine.
//!
//! [`TECHNIQUES`] is the table that `run --technique`, `compare`, `doctor` and the tests go by. A technique is a row
//! here and a file of its own, which makes a [`Domain`] and runs its virtual CPU ([`Runner`](crate::monitor::Runner)).
//!
//! Threads: a domain is made on the thread that becomes its virtual CPU's, and stays there.
//!
//! What may not be done here: choosing an engine, or knowing an engine's kind. What an engine offers is said by its
//! [`EngineInfo`](crate::engine::EngineInfo).

#![forbid(unsafe_code)]

mod bare;
mod domain;
pub mod hvm;
mod interpret;
mod method;
mod patch;
pub mod pv;
pub mod translate;
pub mod trap;

pub use domain::{Domain, MakeError, Parts, Runners, SavedParts, Saver};

use crate::engine::Irqchip;
use crate::image::GuestKind;
use crate::machine::layout::{HypervisorLayout, OwnCode};

/// A way of virtualizing a kernel.
#[derive(Debug)]
pub struct Technique {
    /// What the command line and reports call it.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// The images that it runs.
    pub runs: GuestKind,
    /// What it needs of an engine.
    pub engine: EngineNeed,
    /// How many virtual CPUs a guest can have.
    pub max_vcpus: u32,
    /// Whether this host has what the technique needs besides an engine; if not, what is missing.
    pub available: fn() -> Result<(), String>,
    /// How many frames of shadow page tables a guest of so many frames gets.
    pub shadow_frames: fn(u64) -> u64,
    /// What code of ours runs in the guest's kernel view.
    pub own_code: OwnCode,
    /// How many frames of the hypervisor's own are written before the guest starts.
    pub own_frames: fn(&HypervisorLayout) -> u64,
    /// What the kernel's command line has to say about so many virtio devices.
    pub device_parameters: fn(usize) -> Option<String>,
    /// Why no debugger can follow its guests; `None` where one can.
    pub undebuggable: Option<&'static str>,
    /// Makes the domain.
    pub make: fn(Parts<'_>) -> Result<Box<dyn Domain>, MakeError>,
    /// Makes a saved domain anew, if the technique can be saved.
    pub restore: Option<Restore>,
}

/// Makes a saved domain anew.
pub type Restore = fn(SavedParts<'_>) -> Result<Box<dyn Domain>, MakeError>;

/// What a technique needs of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineNeed {
    /// That it runs code at CPL 3 and maps pages.
    Deprivileged,
    /// That it runs the guest's kernel at CPL 0, and maps guest-physical memory.
    Ring0(Irqchip),
    /// Nothing: the technique executes the guest itself.
    Nothing,
}

/// All techniques. Of those that run the same images, the first is taken when nothing is said.
pub static TECHNIQUES: [Technique; 9] = [
    pv::TECHNIQUE,
    trap::TECHNIQUE,
    interpret::TECHNIQUE,
    interpret::WITHOUT_CACHE,
    patch::TECHNIQUE,
    translate::TRANSLATE,
    translate::ADAPTIVE,
    hvm::TECHNIQUE,
    hvm::WITH_IRQCHIP,
];

impl Technique {
    /// The one of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TECHNIQUES.iter().find(|technique| technique.name == name)
    }

    /// Those that run such images, the one to take first.
    pub fn of(kind: GuestKind) -> impl Iterator<Item = &'static Self> {
        TECHNIQUES.iter().filter(move |technique| technique.runs == kind)
    }

    /// The reference guest's image for it.
    pub fn builtin(&self) -> &'static [u8] {
        self.runs.builtin()
    }
}

/// For a technique that needs nothing but an engine.
const fn on_any_host() -> Result<(), String> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Image;

    #[test]
    fn every_technique_has_a_name_of_its_own_and_a_guest_that_it_runs() {
        for technique in &TECHNIQUES {
            let found = Technique::named(technique.name).unwrap();
            assert!(std::ptr::eq(found, technique), "{}", technique.name);
            let kind = Image::parse(technique.builtin()).unwrap().kind().guest();
            assert_eq!(kind, technique.runs, "{}", technique.name);
        }
    }

    #[test]
    fn every_kind_of_image_has_a_technique() {
        for kind in GuestKind::ALL {
            assert!(Technique::of(kind).next().is_some(), "{kind:?}");
        }
    }
}
