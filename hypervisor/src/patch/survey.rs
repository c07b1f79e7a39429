//! How the sites of an image would be patched, without running it: by the same plans, and with the same knowledge, as
//! when it runs.

use std::ops::Range;

use super::arena::{Arena, Growing};
use super::flow::{Flow, explore};
use super::site::{Patch, Plan, Tactic, View, gaps_around, plan_among};
use crate::machine::memory::{Mfn, PAGE_SIZE};

/// Frames that a survey may use: more than any technique's row gives.
const FRAMES: u64 = 1 << 16;
/// How often sites are tried again that another patch drove out.
const PASSES: usize = 3;

/// Executable bytes of an image.
#[derive(Clone, Copy, Debug)]
pub struct Code<'a> {
    /// Linear address of the first one.
    pub start: u64,
    /// The bytes.
    pub bytes: &'a [u8],
}

impl<'a> Code<'a> {
    fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes.len() as u64)
    }
    fn part(&self, range: &Range<u64>) -> Option<&'a [u8]> {
        let from = usize::try_from(range.start.checked_sub(self.start)?).ok()?;
        let to = usize::try_from(range.end.checked_sub(self.start)?).ok()?;
        self.bytes.get(from..to)
    }
}

/// What a survey found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// For each site, in the order in which they were given: the address of the jump, and how it is made. `None` where
    /// nothing fits.
    pub sites: Vec<Option<(u64, Tactic)>>,
    /// Pages for stubs and their beginnings.
    pub pages: usize,
}

/// Surveys `sites`, addresses of instructions, in an image whose executable bytes are `code` and whose memory is
/// `mapped`. `functions` are in order and apart.
pub fn survey(code: &[Code<'_>], mapped: &[Range<u64>], functions: &[Range<u64>], sites: &[u64]) -> Survey {
    let explored = |function: &Range<u64>| {
        let bytes = code.iter().find_map(|code| code.part(function))?;
        explore(bytes, function.start)
    };
    let flows: Vec<Flow> = functions.iter().filter_map(explored).collect();
    let mut targets: Vec<u64> = flows.iter().flat_map(Flow::entered).collect();
    targets.sort_unstable();
    let mut known: Vec<u64> = flows.iter().flat_map(|flow| flow.begins.iter().copied()).collect();
    known.sort_unstable();
    let Some(&first) = sites.first() else { return Survey::default() };
    let is_free = |va: u64| {
        const LOWEST: u64 = 0x1_0000;
        let apart = |range: &Range<u64>| va.saturating_add(PAGE_SIZE) <= range.start || range.end <= va;
        va >= LOWEST && (va ^ first) >> 47 == 0 && mapped.iter().all(apart)
    };
    let Some(mut arena) = Arena::open(first, Mfn(0), 0..FRAMES, &is_free) else {
        return Survey { sites: vec![None; sites.len()], pages: 0 };
    };
    let mut plans: Vec<Plan> = Vec::new();
    for _ in 0..PASSES {
        for &site in sites {
            if plans.iter().any(|plan| plan.patches.iter().any(|patch| patch.moved.contains(&site))) {
                continue;
            }
            let found = one(
                site,
                code,
                &known,
                &gaps_around(functions, site),
                &targets,
                &plans,
                &mut Growing { arena: &mut arena, is_free: &is_free },
            );
            if let Some(found) = found {
                let overlaps = |one: &Patch| found.patches.iter().any(|other| one.overlaps(other));
                plans.retain(|plan| !plan.patches.iter().any(overlaps));
                plans.push(found);
            }
        }
    }
    let of_site = |site: &u64| {
        plans.iter().find_map(|plan| {
            let patch = plan.patches.iter().find(|patch| patch.moved.contains(site))?;
            Some((patch.at, plan.tactic))
        })
    };
    Survey { sites: sites.iter().map(of_site).collect(), pages: arena.overlay().count() }
}

fn one(
    site: u64,
    code: &[Code<'_>],
    known: &[u64],
    gaps: &[Range<u64>],
    targets: &[u64],
    plans: &[Plan],
    room: &mut Growing<'_>,
) -> Option<Plan> {
    let whole = code.iter().find(|code| (code.start..code.end()).contains(&site))?;
    let page = site & !(PAGE_SIZE - 1);
    let base = page.max(whole.start);
    let bytes = whole.part(&(base..page.saturating_add(PAGE_SIZE).min(whole.end())))?;
    let is_target = |at: u64| targets.binary_search(&at).is_ok();
    let is_taken = |range: &Range<u64>| plans.iter().any(|p| p.patches.iter().any(|one| one.touches(range)));
    plan_among(
        &View { base, code: bytes, is_target: &is_target, is_taken: &is_taken, known, gaps, spares: true },
        site,
        room,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// cli; ret; int3...; then a function of sti; hlt; cli; mov; ret, whose MOV is jumped to.
    #[test]
    fn a_survey_knows_what_an_installation_would() {
        let mut bytes = vec![0xfa, 0xc3];
        bytes.resize(16, 0xcc);
        bytes.extend([0xfb, 0xf4, 0xfa, 0x48, 0x89, 0xc8, 0xeb, 0xfb, 0xc3]);
        bytes.resize(64, 0xcc);
        let code = [Code { start: 0x4000_0000, bytes: &bytes }];
        let mapped = 0x4000_0000..0x4000_1000;
        let functions = [0x4000_0000..0x4000_0002, 0x4000_0010..0x4000_0019];
        let sites = [0x4000_0000, 0x4000_0010, 0x4000_0011, 0x4000_0012];
        let survey = survey(&code, std::slice::from_ref(&mapped), &functions, &sites);
        assert_eq!(survey.sites[0], Some((0x4000_0000, Tactic::Followers)));
        assert_ne!(
            survey.sites[1].map(|(_, tactic)| tactic),
            Some(Tactic::Followers),
            "the MOV is jumped to"
        );
        assert!(survey.pages >= 2);
        assert_eq!(super::survey(&[], &[], &[], &[0x1000]).sites, [None]);
        assert_eq!(super::survey(&code, &[], &functions, &[]), Survey::default());
    }
}
