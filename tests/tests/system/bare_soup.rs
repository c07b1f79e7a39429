//! Random bare kernels: each prints the same and ends the same, however it is virtualized.
//!
//! [`servings`](paravane_tests::soup::servings) determines how many kernels are tried, or for how long. A failure names
//! its seed.

use std::time::Duration;

use paravane::image::GuestKind;
use paravane::launch::EngineChoice;
use paravane::machine::end::DomainEnd;
use paravane::technique::{EngineNeed, TECHNIQUES, Technique};
use paravane_tests::boot::{Guest, Outcome};
use paravane_tests::machine::engines_for;
use paravane_tests::soup::bare::bare_soup;
use paravane_tests::soup::servings::{Servings, watched};
use paravane_tests::verdict::{broken_product, note};

/// The number of kernels on each engine, by default.
const SEEDS: u64 = 8;
/// Ends a kernel that loops.
const DEADLINE: Duration = Duration::from_secs(20);

fn boot(engine: EngineChoice, technique: &'static Technique, seed: u64) -> Outcome {
    let name = format!("bare soup of seed {seed} by {} on {}", technique.name, engine.name());
    watched(&name.clone(), move || {
        let guest = Guest {
            name: &name,
            technique: Some(technique),
            mem_bytes: 8 << 20,
            deadline: DEADLINE,
            ..Guest::new(bare_soup(seed))
        };
        guest
            .boot_on(engine)
            .unwrap_or_else(|why| broken_product(format_args!("{name} does not start: {why}")))
    })
}

#[test]
fn random_bare_kernels_do_the_same_by_every_technique() {
    let servings = Servings::asked_for(SEEDS);
    let (mut kernels, mut finished) = (0u64, 0u64);
    let of_bare = TECHNIQUES.iter().filter(|technique| technique.runs == GuestKind::Bare);
    let techniques: Vec<_> = of_bare.filter(|technique| !engines_for(technique).is_empty()).collect();
    servings.on_each_engine(|engine, seed| {
        let mut first: Option<Outcome> = None;
        for &technique in &techniques {
            let engine = match technique.engine {
                EngineNeed::Deprivileged => engine,
                EngineNeed::Nothing => EngineChoice::Auto,
                EngineNeed::Ring0(_) => EngineChoice::Kvm,
            };
            let outcome = boot(engine, technique, seed);
            kernels += 1;
            finished += u64::from(outcome.end == DomainEnd::PowerOff);
            match &first {
                None => first = Some(outcome),
                Some(first) if first.end == outcome.end && first.text == outcome.text => {}
                Some(first) => broken_product(format_args!(
                    "{}: {:?} after {:?}, and {}: {:?} after {:?}",
                    first.name, first.end, first.text, outcome.name, outcome.end, outcome.text
                )),
            }
        }
    });
    note(format_args!(
        "bare soup: {kernels} runs from seed {} on, {finished} of them to the power-off",
        servings.first
    ));
    if finished < kernels {
        broken_product(format_args!("{finished} of {kernels} kernels got to their end"));
    }
}
