//! What to change. Only what was found here is advised upon.

use super::kvm::KvmState;
use super::trial::Trial;
use crate::compare::HostFacts;

/// Another engine or transport must be this much cheaper before it is worth a word: measurements here are short.
const CLEARLY: f64 = 0.7;

/// What to change, the most important first.
pub fn advice(
    host: &HostFacts,
    kvm: &KvmState,
    auto: &Trial,
    engines: &[Trial],
    transports: &[Trial],
) -> Vec<String> {
    let mut advice = Vec::new();
    if let Some(what) = kvm.advice() {
        let hardware = if host.virtualized { " (this host is itself virtual: it needs nesting)" } else { "" };
        let otherwise = if auto.works() { ". Guests run without it" } else { "" };
        advice.push(format!("to use KVM: {what}{hardware}{otherwise}"));
    }
    if let Some(why) = engines.iter().find(|t| t.name == "process").and_then(|t| t.why_not.as_ref()) {
        advice.push(format!("to run guests without KVM: {why}"));
    }
    if let (KvmState::Works, Some(why)) =
        (kvm, engines.iter().find(|t| t.name == "kvm").and_then(|t| t.why_not.as_ref()))
    {
        advice.push(format!("/dev/kvm works, but no guest ran on it: {why}"));
    }
    advice.extend(cheaper("engine", auto.engine, engines));
    if auto.engine == Some("kvm") {
        advice.extend(cheaper("transport", auto.transport, transports));
    }
    if let Some(load) = host.load.filter(|load| *load > host.cpus as f64) {
        let cpus = host.cpus;
        advice.push(format!("the host is busy (load {load} on {cpus} CPUs); these times are not its best"));
    }
    if host.clocksource.as_deref().is_some_and(|clock| clock != "tsc" && clock != "kvm-clock") {
        advice.push(
            "the kernel does not trust this CPU's time-stamp counter, which guests read; their clocks may be \
             off (on a host that is itself virtual, its hypervisor should offer an invariant one)"
                .to_owned(),
        );
    }
    if cfg!(debug_assertions) {
        advice.push("this program was built without optimization; build it with --release".to_owned());
    }
    advice
}

/// One of `trials` whose hypercalls were measured to be clearly cheaper than those of the one that `auto` takes.
fn cheaper(option: &str, chosen: Option<&str>, trials: &[Trial]) -> Option<String> {
    let cost = trials.iter().find(|t| Some(t.name) == chosen)?.hypercall_ns()?;
    let better = trials.iter().find(|t| t.hypercall_ns().is_some_and(|ns| ns < cost * CLEARLY))?;
    Some(format!("hypercalls were cheaper with --{option} {} in this short measurement", better.name))
}

#[cfg(test)]
mod tests {
    use super::super::text::tests::{host, works};
    use super::*;

    #[test]
    fn what_works_needs_no_advice() {
        let (auto, kvm, process) =
            (works("auto", "kvm", 1e3), works("kvm", "kvm", 1e3), works("process", "process", 7e3));
        let all = advice(&host(), &KvmState::Works, &auto, &[kvm, process], &[]);
        assert!(all.iter().all(|a| a.contains("without optimization")), "{all:?}");
    }

    #[test]
    fn every_failure_is_told_with_its_remedy() {
        let failed = |name| Trial::failed(name, "no way".to_owned());
        let all =
            advice(&host(), &KvmState::Forbidden, &failed("auto"), &[failed("kvm"), failed("process")], &[]);
        assert!(all[0].contains("group that owns /dev/kvm") && !all[0].contains("run without it"));
        assert!(all[1].contains("without KVM: no way"));
        let all = advice(&host(), &KvmState::Works, &failed("auto"), &[failed("kvm")], &[]);
        assert!(all[0].contains("but no guest ran on it: no way"));
    }

    #[test]
    fn a_clearly_cheaper_engine_is_named() {
        let (auto, kvm) = (works("auto", "process", 7e3), works("kvm", "kvm", 1e3));
        let all =
            advice(&host(), &KvmState::Works, &auto, &[kvm.clone(), works("process", "process", 7e3)], &[]);
        assert!(all.iter().any(|a| a.contains("cheaper with --engine kvm")), "{all:?}");
        let all = advice(&host(), &KvmState::Works, &auto, &[kvm, works("process", "process", 1.1e3)], &[]);
        assert!(!all.iter().any(|a| a.contains("cheaper")), "{all:?}");
    }

    #[test]
    fn a_clearly_cheaper_transport_is_named_where_it_matters() {
        let transports = [works("pio", "kvm", 9e3), works("vmcall", "kvm", 5e3)];
        let said = |auto: &Trial| {
            let all = advice(&host(), &KvmState::Works, auto, &[], &transports);
            all.iter().any(|a| a.contains("cheaper with --transport vmcall"))
        };
        assert!(said(&works("auto", "kvm", 9e3)));
        assert!(!said(&works("auto", "process", 9e3)));
    }

    #[test]
    fn a_busy_host_is_told_so() {
        let host = HostFacts { load: Some(7.25), ..host() };
        let all = advice(&host, &KvmState::Works, &works("auto", "kvm", 1e3), &[], &[]);
        assert!(all[0].contains("load 7.25 on 2 CPUs"));
    }

    #[test]
    fn an_untrusted_counter_is_a_finding() {
        let host = HostFacts { clocksource: Some("hpet".to_owned()), ..host() };
        let auto = works("auto", "kvm", 1e3);
        let all = advice(&host, &KvmState::Works, &auto, &[], &[]);
        assert!(all[0].contains("time-stamp counter"));
    }
}
