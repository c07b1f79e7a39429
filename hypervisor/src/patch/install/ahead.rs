//! What is patched before it traps: what certainly is code, because the kernel's symbols or its IDT say so.

use std::ops::Range;

use super::super::flow::Flow;
use super::super::kernel::{Kernel, flow_of, gate_targets};
use super::Patcher;

/// How much of a handler that no symbol delimits is looked at.
const HANDLER: u64 = 1024;
/// How far from a site the functions are looked at that may give way to a jump.
const AROUND: u64 = 160;
/// How many pieces of handlers are looked at.
const PIECES: usize = 512;
/// How many tables of handlers are looked at, in the whole life of a domain.
const TABLES: u32 = 16;

impl Patcher {
    /// Patches all that direct control flow reaches in the kernel's functions, once an instruction that is known by
    /// their symbols traps: then its code is where they say.
    pub(super) fn prepare(&mut self, k: &mut Kernel<'_>) {
        let first = self.function_of(k.regs.rip).and_then(|function| flow_of(k, function));
        if first.is_none_or(|flow| flow.begins.binary_search(&k.regs.rip).is_err()) {
            return;
        }
        self.prepared = true;
        let flows: Vec<Flow> = self.functions.iter().filter_map(|function| flow_of(k, function)).collect();
        self.patch_all(k, &flows);
        self.prepare_handlers(k);
    }

    /// Patches what the gates of the kernel's IDT lead to, once for each table that it loads: handlers are assembly,
    /// and often no symbol says where they end.
    pub(super) fn prepare_handlers(&mut self, k: &mut Kernel<'_>) {
        let (last, count) = self.handlers;
        if !self.prepared || last == k.cpu.idt || count >= TABLES {
            return;
        }
        self.handlers = (k.cpu.idt, count + 1);
        let mut open = gate_targets(k);
        let mut seen: Vec<u64> = Vec::new();
        let mut flows = Vec::new();
        while let Some(start) = open.pop().filter(|_| seen.len() < PIECES) {
            let next = self.functions.partition_point(|function| function.end <= start);
            let end = self.functions.get(next).map_or(u64::MAX, |function| function.start);
            let Err(place) = seen.binary_search(&start) else { continue };
            seen.insert(place, start);
            // In a function that symbols name: it has been looked at.
            if end <= start {
                continue;
            }
            let piece = start..end.min(start.saturating_add(HANDLER));
            if let Some(flow) = flow_of(k, &piece) {
                open.extend(flow.targets.iter().filter(|target| !piece.contains(target)));
                flows.push(flow);
            }
        }
        self.patch_all(k, &flows);
    }

    fn patch_all(&mut self, k: &mut Kernel<'_>, flows: &[Flow]) {
        let mut known: Vec<u64> = flows.iter().flat_map(|flow| flow.begins.iter().copied()).collect();
        known.sort_unstable();
        let mut targets: Vec<u64> = flows.iter().flat_map(Flow::entered).collect();
        targets.sort_unstable();
        targets.dedup();
        targets.retain(|target| self.targets.binary_search(target).is_err());
        // What was not known to be a target may be hidden by a jump.
        self.undo(k, |site| site.jumps.iter().any(|jump| targets.iter().any(|at| jump.entry(*at).is_some())));
        self.targets.extend(targets);
        self.targets.sort_unstable();
        // Twice, for those that a neighbour drove out.
        for flow in flows.iter().chain(flows) {
            for &site in &flow.sensitive {
                let Some(maddr) = k.code_at(site) else { continue };
                if !self.covers(site) && self.may_try(maddr) {
                    self.patch(k, site, maddr, &known);
                }
            }
        }
    }

    /// Where instructions are known to begin in the functions within reach of a short jump.
    pub(super) fn known_around(&self, k: &Kernel<'_>, site: u64) -> Vec<u64> {
        let from = self.functions.partition_point(|f| f.end <= site.saturating_sub(AROUND));
        let to = self.functions.partition_point(|f| f.start < site.saturating_add(AROUND));
        // Where symbols do not say what is code, nothing is known.
        let near = self.functions.get(from..to).filter(|_| self.prepared).unwrap_or_default();
        near.iter().filter_map(|function| flow_of(k, function)).flat_map(|flow| flow.begins).collect()
    }

    /// The function that symbols say `at` is in.
    pub(super) fn function_of(&self, at: u64) -> Option<&Range<u64>> {
        let after = self.functions.partition_point(|function| function.start <= at);
        self.functions.get(after.checked_sub(1)?).filter(|function| function.contains(&at))
    }
}
