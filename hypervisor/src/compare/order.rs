//! The order in which techniques are read, which is that of the field's history: each took away what its predecessor
//! paid for.
//!
//! Interpretation pays for each instruction; trap-and-emulate for the privileged ones alone; a patch for the first
//! time of each; translation for each block once, and needs no instruction to trap; a paravirtual kernel asks for what
//! the others guess; and hardware gives the kernel a privileged mode of its own.

/// Variants stand beside what they vary.
const READING: [&str; 11] = [
    "interpret-nocache",
    "interpret",
    "trap",
    "patch",
    "patch-adaptive",
    "translate",
    "translate-adaptive",
    "pv",
    "hvm-shadow",
    "hvm",
    "hvm-irqchip",
];

/// These techniques, in the order in which they are read; unknown ones come last.
pub fn reading(techniques: &[&'static str]) -> Vec<&'static str> {
    let place = |name: &str| READING.iter().position(|known| *known == name).unwrap_or(READING.len());
    let mut ordered = techniques.to_vec();
    ordered.sort_by_key(|name| place(name));
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::technique::TECHNIQUES;

    #[test]
    fn each_technique_has_its_place_in_history() {
        for technique in &TECHNIQUES {
            assert!(READING.contains(&technique.name), "{}", technique.name);
        }
        assert_eq!(reading(&["new", "pv", "trap", "interpret"]), ["interpret", "trap", "pv", "new"]);
    }
}
