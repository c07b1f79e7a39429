//! Kernels built with the SDK contain no instruction that silently fails at CPL 3.

use paravane::audit::{Effect, Policy, Subject, audit};
use paravane_tests::guests::{HELLO, HELLO_HIGH};

#[test]
fn kernels_made_with_the_sdk_are_clean() {
    let strict = Policy::new(Effect::ALL.to_vec(), Vec::new(), Vec::new());
    for image in [HELLO, HELLO_HIGH] {
        let audit = audit(image).unwrap();
        assert_eq!(audit.subject, Subject::Paravirtual);
        assert!(audit.coverage.instructions > 1_000, "{:?}", audit.coverage);
        assert_eq!(strict.total(&audit), 0, "{:#?}", audit.findings);
    }
}
