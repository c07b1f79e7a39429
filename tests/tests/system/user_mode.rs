//! The SDK's user mode, as programs see it: `tests/guests/src/user_mode.rs` has the checks.

use paravane::machine::end::DomainEnd;
use paravane_tests::boot::Guest;
use paravane_tests::guests::USER_MODE;

#[test]
fn programs_run_and_cannot_reach_their_kernel() {
    for outcome in (Guest { name: "user-mode", ..Guest::new(USER_MODE) }).boot() {
        let failed: Vec<_> = outcome.text.lines().filter(|line| line.contains(" ok=false ")).collect();
        outcome.must(failed.is_empty(), format_args!("went otherwise: {failed:#?}"));
        outcome.must_end(&DomainEnd::PowerOff).must_print("test: name=user-mode ok=true run=");
    }
}
