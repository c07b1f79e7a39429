//! What to use in place of each class of privileged and sensitive instructions.

use crate::x86::sensitive::Class;

/// What the SDK, or the interface below it, offers in its place.
pub(super) const fn instead(class: Class) -> &'static str {
    match class {
        Class::Flags => "event::is_enabled, event::without: IF always reads 1 and ignores what is written",
        Class::StoreTables => "nothing: the tables are the hypervisor's; remember what you passed to it",
        Class::ReadSegment => "constants: the interface fixes the selectors",
        Class::Identify => "hypercall::version::features, or CPUID by Xen's forced-emulation prefix",
        Class::LoadSegment => "hypercall::trap::set_segment_base for FS and GS; the rest is flat",
        Class::FarTransfer => "a near call, jump or return: the kernel has one code segment",
        Class::InterruptReturn => "the SDK's trap entry code, which ends in the iret hypercall",
        Class::Virtualization => "the hypercall page, or a bare SYSCALL",
        Class::InterruptFlag => "event::disable and event::enable: one store, no transition",
        Class::Halt => "event::block",
        Class::ControlRegister => {
            "CR3: AddressSpace::switch; CR2: TrapFrame::fault_address; CR0.TS: hypercall::trap::fpu_taskswitch"
        }
        Class::DebugRegister => "the hypercalls set_debugreg and get_debugreg",
        Class::LoadTables => {
            "trap::install for the IDT; the hypercalls set_gdt and stack_switch for GDT and TSS"
        }
        Class::TranslationCache => "Queue::invalidate: it joins the batch that changes the tables",
        Class::DataCache => "nothing: memory is coherent here",
        Class::ModelSpecific => "FS and GS base: hypercall::trap::set_segment_base; time: time::now",
        Class::PortIo => "console, power, and event channels: there is no PC behind the ports",
        Class::SystemReturn => "the iret hypercall with VGCF_IN_SYSCALL",
        Class::SwapGs => "nothing: the hypervisor exchanges GS on the way in and out of user mode",
        Class::SoftwareInterrupt => "a function call, or event::handle",
        Class::AccessFlag => "nothing: kernel and user pages are equally accessible at CPL 3",
        Class::Other => "no replacement is known",
    }
}
