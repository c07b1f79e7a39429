//! The two ways of seeing a guest's address space.

/// Which of an address space's two shadows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// What virtual CPL 0 sees: all that is mapped.
    #[default]
    Kernel,
    /// What virtual CPL 3 sees: user pages only.
    User,
}
