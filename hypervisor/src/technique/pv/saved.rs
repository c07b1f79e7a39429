//! A paravirtual guest on its way out to a file, and in from one.

use std::sync::{Arc, Mutex, PoisonError};

use super::{PvGuest, PvRunner, Shared};
use crate::engine::Cpu;
use crate::engine::state::VectorState;
use crate::machine::memory::MachineMemory;
use crate::pv::context::PvContext;
use crate::pv::state::{
    CannotSave, DomainState, Origin, RestoreParts, State, VcpuState, restore as restore_domain,
};
use crate::pv::vcpu::VcpuId;
use crate::technique::{Domain, MakeError, SavedParts, Saver};

/// The states that vCPUs have handed over.
pub(super) struct Handed(Mutex<Vec<Option<Result<VcpuState, CannotSave>>>>);

impl Handed {
    pub(super) fn new(vcpus: usize) -> Self {
        Self(Mutex::new((0..vcpus).map(|_| None).collect()))
    }

    fn put(&self, vcpu: usize, state: Result<VcpuState, CannotSave>) {
        if let Some(slot) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(vcpu) {
            *slot = Some(state);
        }
    }

    /// All of them, once.
    fn take(&self) -> Result<Vec<VcpuState>, CannotSave> {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Also those behind one that is missing: the next time they are old.
        let taken: Vec<_> = states.iter_mut().map(Option::take).collect();
        taken.into_iter().map(|state| state.unwrap_or(Err(CannotSave::Ended))).collect()
    }
}

impl Saver for Arc<Shared> {
    fn state(&self) -> Result<State, CannotSave> {
        let mut vcpus = self.saved.take()?;
        for (number, vcpu) in (0..).zip(&mut vcpus) {
            vcpu.poll_has_ended = VcpuId::new(number).is_none_or(|id| self.bells.poll_has_ended(id));
        }
        Ok(State { domain: DomainState::of(&mut self.lock())?, vcpus })
    }

    fn memory(&self) -> &MachineMemory {
        &self.memory
    }
}

impl PvRunner {
    pub(super) fn hand_over_state(&self, cpu: &mut dyn Cpu) {
        let mut state = VcpuState::of(&self.vcpu);
        let vectors = cpu.save().map_err(|_| CannotSave::Vectors);
        let state = vectors.map(|vectors| {
            state.vectors = vectors.area().to_vec();
            state
        });
        self.shared.saved.put(self.vcpu.id.index(), state);
    }

    pub(super) fn load_vectors(&mut self, cpu: &mut dyn Cpu) {
        let Some(vectors) = self.vectors.take() else { return };
        if let Err(error) = cpu.load(&vectors) {
            PvContext { domain: &mut self.shared.lock(), vcpu: &mut self.vcpu }.kill(error);
        }
    }
}

/// Makes a saved domain anew.
pub(super) fn restore(parts: SavedParts<'_>) -> Result<Box<dyn Domain>, MakeError> {
    let info = parts.machine.info();
    let (domain, vcpus) = restore_domain(
        RestoreParts {
            memory: parts.memory,
            layout: parts.layout,
            reserved_l4: parts.machine.reserved_l4_entries(),
            stub: &|number| parts.machine.restored_stub(number),
            engine: Origin {
                m2p_va: info.m2p_va,
                call_length: info.call_length,
                tsc_khz: info.tsc_khz,
                tsc_offset: info.tsc_offset,
                upper_half: info.upper_half,
            },
            sink: parts.sink,
            input: parts.input,
            kicks: parts.kicks,
            marks: parts.marks,
        },
        &parts.state,
    )?;
    let clock = domain.clock;
    let shared = Arc::new(Shared::new(domain, info.coherence));
    let mut runners = vcpus.into_iter().zip(parts.state.vcpus).map(|(vcpu, saved)| {
        let mut runner = PvRunner::new(Arc::clone(&shared), vcpu);
        runner.vectors = (!saved.vectors.is_empty()).then(|| VectorState::from_area(saved.vectors));
        runner
    });
    let boot = runners.next().ok_or(MakeError::NoRing)?;
    let others = runners.collect();
    Ok(Box::new(PvGuest { shared, boot, others, clock }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Coherence;
    use crate::machine::kick::Kick;
    use crate::pv::vcpu::{PvVcpu, RunState};
    use crate::testing::engine::CountKicks;
    use crate::testing::pv::{FRAMES, TestDomain};

    /// A poll ends between its vCPU's hand-over and the last one's: whoever ended it may have cleared the port already.
    #[test]
    fn a_poll_that_ends_while_others_still_run_is_saved_as_ended() {
        const PORT: u32 = 9;
        let kicks = (0..2).map(|_| Arc::new(CountKicks::default()) as Arc<dyn Kick>).collect();
        let t = TestDomain::with_kicks(FRAMES, kicks);
        let mut second = PvVcpu::absent(VcpuId::new(1).unwrap(), &t.domain.log);
        second.state = RunState::Polling;
        second.polled.push(PORT);
        let bells = Arc::clone(&t.bells);
        let first = t.vcpu;
        let shared = Arc::new(Shared::new(t.domain, Coherence::OwnEntry));
        let saved = |ends: bool| {
            bells.poll(second.id, &[PORT]);
            shared.saved.put(1, Ok(VcpuState::of(&second)));
            if ends {
                bells.raise(PORT, Some(first.id)).unwrap();
                bells.forget(PORT).unwrap();
            }
            shared.saved.put(0, Ok(VcpuState::of(&first)));
            shared.state().unwrap().vcpus.iter().map(|vcpu| vcpu.poll_has_ended).collect::<Vec<_>>()
        };
        assert_eq!(saved(false), [true, false], "the first polls nothing");
        assert_eq!(saved(true), [true, true]);
    }
}
