//! The machine as Paravane has it: hypercalls, memory that is shared with the hypervisor, and no instruction that needs
//! privilege.

pub mod exceptions;
pub mod paging;
pub mod timer;
