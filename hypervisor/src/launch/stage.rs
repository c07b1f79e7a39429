//! What a guest is built on: a technique, memory of the layout that it wants, and an engine; and what is taken when
//! there is no engine.

use super::available::{self, TooLittle};
use super::engines::Setup;
use super::select::{self, SelectError};
use super::start::Steps;
use super::{Config, EngineChoice, TransportChoice};
use crate::build::mapping::AddressLimits;
use crate::build::{BuildError, Written};
use crate::engine::Machine;
use crate::image::GuestKind;
use crate::machine::layout::HypervisorLayout;
use crate::machine::memory::{CreateError, MachineMemory, PAGE_SIZE};
use crate::technique::{EngineNeed, Technique};

/// Everything that is needed before the domain is built.
pub(super) struct Stage {
    pub technique: &'static Technique,
    pub layout: HypervisorLayout,
    pub memory: MachineMemory,
    pub machine: Box<dyn Machine>,
    /// Why this engine.
    pub why: String,
}

/// There is no such stage.
#[derive(Debug)]
pub(super) enum StageError {
    Engine(SelectError),
    Memory(CreateError),
    TooLittle(TooLittle),
}

impl From<SelectError> for StageError {
    fn from(error: SelectError) -> Self {
        Self::Engine(error)
    }
}

impl From<CreateError> for StageError {
    fn from(error: CreateError) -> Self {
        Self::Memory(error)
    }
}

impl From<TooLittle> for StageError {
    fn from(error: TooLittle) -> Self {
        Self::TooLittle(error)
    }
}

/// What is asked for.
pub(super) struct Wanted<'a> {
    pub config: &'a Config,
    pub virt_base: u64,
    /// What building the domain writes.
    pub written: Written,
    /// Whether the kernel fits into what an engine can map.
    pub check: &'a dyn Fn(AddressLimits) -> Result<(), BuildError>,
}

impl Wanted<'_> {
    /// A stage for this technique.
    pub fn stage(&self, technique: &'static Technique, steps: &mut Steps) -> Result<Stage, StageError> {
        let Self { config, virt_base, written, check } = self;
        let frames = config.mem_bytes / PAGE_SIZE;
        let layout = HypervisorLayout::with_vcpus(
            frames,
            (technique.shadow_frames)(frames),
            technique.own_code,
            config.vcpus,
        );
        let own = (technique.own_frames)(&layout) * PAGE_SIZE;
        available::check(config.mem_bytes, written.fixed, written.growing + own)?;
        let plan = select::plan(technique, config.engine, config.transport, *virt_base, check)?;
        let memory = MachineMemory::new(layout.hypervisor_frames(), frames, plan.backing())?;
        steps.done("map memory");
        let setup = Setup {
            memory: &memory,
            layout: &layout,
            transport: config.transport,
            virt_base: *virt_base,
            need: technique.engine,
            vcpus: config.vcpus,
        };
        let (machine, why) = plan.engine(setup)?;
        Ok(Stage { technique, layout, memory, machine, why })
    }
}

/// What runs such an image without an engine, where none works here and neither a technique nor an engine was asked
/// for.
pub(super) fn last_resort(
    config: &Config,
    kind: GuestKind,
    error: &SelectError,
) -> Option<&'static Technique> {
    let asked = config.technique.is_some()
        || config.engine != EngineChoice::Auto
        || config.transport != TransportChoice::Auto;
    let none = matches!(error, SelectError::Nothing(_) | SelectError::Kernel(_));
    let without_engine = |technique: &&Technique| technique.engine == EngineNeed::Nothing;
    Technique::of(kind).find(without_engine).filter(|_| none && !asked)
}
