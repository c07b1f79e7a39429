//! Machine-wide operations of the privileged domain, `platform_op(op)`: numbers only.
//!
//! Paravane's domains are not privileged; the numbers serve to name refused operations. Source: public/platform.h.

/// Version that an operation carries.
pub const XENPF_INTERFACE_VERSION: u32 = 0x0300_0001;
/// Set the wall clock, 32-bit seconds.
pub const XENPF_SETTIME32: u32 = 17;
/// Add a memory type range.
pub const XENPF_ADD_MEMTYPE: u32 = 31;
/// Remove a memory type range.
pub const XENPF_DEL_MEMTYPE: u32 = 32;
/// Read a memory type range.
pub const XENPF_READ_MEMTYPE: u32 = 33;
/// Load microcode.
pub const XENPF_MICROCODE_UPDATE: u32 = 35;
/// Enable a workaround for a platform.
pub const XENPF_PLATFORM_QUIRK: u32 = 39;
/// Ask for a processor's model.
pub const XENPF_GET_CPU_VERSION: u32 = 48;
/// Call an EFI runtime service.
pub const XENPF_EFI_RUNTIME_CALL: u32 = 49;
/// Ask for data of the firmware.
pub const XENPF_FIRMWARE_INFO: u32 = 50;
/// Put the machine to sleep.
pub const XENPF_ENTER_ACPI_SLEEP: u32 = 51;
/// Change a processor's frequency.
pub const XENPF_CHANGE_FREQ: u32 = 52;
/// Ask for the processors' idle times.
pub const XENPF_GETIDLETIME: u32 = 53;
/// Report a processor's power states to the hypervisor.
pub const XENPF_SET_PROCESSOR_PMINFO: u32 = 54;
/// Ask for a processor's identifiers.
pub const XENPF_GET_CPUINFO: u32 = 55;
/// Bring a processor online.
pub const XENPF_CPU_ONLINE: u32 = 56;
/// Take a processor offline.
pub const XENPF_CPU_OFFLINE: u32 = 57;
/// A processor was plugged in.
pub const XENPF_CPU_HOTADD: u32 = 58;
/// Memory was plugged in.
pub const XENPF_MEM_HOTADD: u32 = 59;
/// Park processors.
pub const XENPF_CORE_PARKING: u32 = 60;
/// Access machine registers.
pub const XENPF_RESOURCE_OP: u32 = 61;
/// Set the wall clock, 64-bit seconds.
pub const XENPF_SETTIME64: u32 = 62;
/// Ask for the hypervisor's symbols.
pub const XENPF_GET_SYMBOL: u32 = 63;
