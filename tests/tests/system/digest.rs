//! Random bare kernels: every technique computes the same.
//!
//! [`servings`](paravane_tests::soup::servings) determines how many kernels are tried, or for how long. A failure names
//! its seed.

use std::time::Duration;

use paravane::image::GuestKind;
use paravane::launch::EngineChoice;
use paravane::machine::end::DomainEnd;
use paravane::technique::translate::SMALL;
use paravane::technique::{EngineNeed, TECHNIQUES, Technique};
use paravane_tests::boot::{Guest, Outcome};
use paravane_tests::images::{ENTRY, HYPERCALL_PAGE, SIZE, with_functions};
use paravane_tests::machine::engines;
use paravane_tests::soup::digest::{Diet, kernel_of};
use paravane_tests::soup::servings::{Servings, watched};
use paravane_tests::verdict::{broken_product, note};

/// The number of kernels of each diet, by default.
const SEEDS: u64 = 12;
const DEADLINE: Duration = Duration::from_secs(20);

static SMALL_CACHE: Technique = SMALL;

fn boot(technique: &'static Technique, engine: EngineChoice, seed: u64, diet: Diet) -> Outcome {
    let name = format!("digest of seed {seed} by {} on {}, {diet:?}", technique.name, engine.name());
    watched(&name.clone(), move || {
        let image = kernel_of(seed, diet);
        // What symbols say is code is translated before it runs, and nothing is wrong if it is none. Patches rely on
        // them.
        let lies = technique.name.starts_with("translate") && seed.is_multiple_of(2);
        let image = if lies { with_functions(image, &functions_anywhere()) } else { image };
        let guest = Guest {
            name: &name,
            technique: Some(technique),
            mem_bytes: 16 << 20,
            deadline: DEADLINE,
            ..Guest::new(image)
        };
        guest
            .boot_on(engine)
            .unwrap_or_else(|why| broken_product(format_args!("{name} does not start: {why}")))
    })
}

/// Functions that begin anywhere in a kernel, as often as not amid an instruction.
fn functions_anywhere() -> Vec<(u64, u64)> {
    const DISTANCE: u64 = 0x115;
    (ENTRY..HYPERCALL_PAGE + SIZE).step_by(DISTANCE as usize).map(|at| (at, DISTANCE)).collect()
}

/// The techniques that run a bare kernel outside of hardware, each with the engines to try it on.
fn ways(diet: Diet) -> Vec<(&'static Technique, Vec<EngineChoice>)> {
    let all = TECHNIQUES.iter().chain([&SMALL_CACHE]).filter(|technique| technique.runs == GuestKind::Bare);
    let of = |technique: &'static Technique| match technique.engine {
        EngineNeed::Deprivileged => Some((technique, engines().to_vec())),
        EngineNeed::Nothing => Some((technique, vec![EngineChoice::Auto])),
        EngineNeed::Ring0(_) => None,
    };
    // What does not trap is wrong, silently, where instructions have to trap.
    let right =
        |technique: &&Technique| diet == Diet::Virtualizable || !matches!(technique.name, "trap" | "patch");
    all.filter(right).filter_map(of).collect()
}

fn the_same_by_all(diet: Diet) {
    let servings = Servings::asked_for(SEEDS);
    let (mut kernels, mut runs) = (0, 0);
    for seed in servings.first..servings.first + SEEDS {
        kernels += 1;
        let mut first: Option<Outcome> = None;
        for (technique, engines) in ways(diet) {
            for engine in engines {
                let outcome = boot(technique, engine, seed, diet);
                runs += 1;
                outcome.must_end(&DomainEnd::PowerOff);
                outcome.must(outcome.text.trim_end().len() == 16, "should have printed 16 letters");
                match &first {
                    Some(first) if first.text != outcome.text => {
                        broken_product(format_args!("two techniques disagree\n{first}\n{outcome}"))
                    }
                    Some(_) => {}
                    None => first = Some(outcome),
                }
            }
        }
    }
    note(format_args!("digest, {diet:?}: {kernels} kernels from seed {} on, {runs} runs", servings.first));
}

#[test]
fn random_kernels_compute_the_same_by_every_technique() {
    the_same_by_all(Diet::Virtualizable);
}

#[test]
fn what_does_not_trap_is_right_where_nothing_has_to() {
    the_same_by_all(Diet::Sensitive);
}
