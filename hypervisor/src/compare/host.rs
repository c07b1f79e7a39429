//! Facts about this machine that a reader of the numbers needs. Whatever cannot be learned is absent.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// Where the numbers come from.
#[derive(Clone, Debug, Serialize)]
pub struct HostFacts {
    /// The CPU's name for itself.
    pub cpu: Option<String>,
    /// How many CPUs this process may use.
    pub cpus: usize,
    /// Whether the host is itself a virtual machine: its CPU says so.
    pub virtualized: bool,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// The module behind /dev/kvm.
    pub kvm_module: Option<&'static str>,
    /// What the kernel's own clock is made of.
    pub clocksource: Option<String>,
    /// The load average of the last minute.
    pub load: Option<f64>,
}

/// The modules that can be behind /dev/kvm, the most specific first.
const KVM_MODULES: [&str; 3] = ["kvm_pvm", "kvm_intel", "kvm_amd"];

impl HostFacts {
    /// Reads them from /proc and /sys.
    pub fn gather() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            cpu: field(&cpuinfo, "model name").map(str::to_owned),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            virtualized: field(&cpuinfo, "flags")
                .is_some_and(|flags| flags.split_whitespace().any(|f| f == "hypervisor")),
            kernel: line("/proc/sys/kernel/osrelease"),
            kvm_module: kvm_module(Path::new("/sys/module")),
            clocksource: line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            load: line("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse().ok()),
        }
    }
}

fn kvm_module(modules: &Path) -> Option<&'static str> {
    KVM_MODULES.into_iter().find(|name| modules.join(name).exists())
}

fn line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The value of the first `key : value` line.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().filter_map(|l| l.split_once(':')).find(|(k, _)| k.trim() == key).map(|(_, v)| v.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_cpuinfo() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2: fast\nflags\t\t: fpu hypervisor sse\n\nmodel name : b";
        assert_eq!(field(text, "model name"), Some("Some CPU @ 2: fast"));
        assert_eq!(field(text, "bogomips"), None);
    }

    #[test]
    fn a_machine_without_modules_has_no_kvm_module() {
        assert_eq!(kvm_module(Path::new("/nonexistent")), None);
    }

    #[test]
    fn this_machine_has_a_cpu() {
        assert!(HostFacts::gather().cpus >= 1);
    }
}
