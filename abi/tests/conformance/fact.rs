//! A fact: a number of the crate, and the C expression for it in Xen's headers.

/// One number to compare.
pub struct Fact {
    /// The name of the number in the crate, for messages.
    pub claim: String,
    /// The number in the crate.
    pub value: i128,
    /// The C expression for it.
    pub c: String,
}

impl Fact {
    pub fn new(claim: String, value: impl TryInto<i128>, c: String) -> Self {
        let Ok(value) = value.try_into() else { panic!("{claim} does not fit 128 bits") };
        Self { claim, value, c }
    }
}

/// The C name if one is given, or else the crate's name.
macro_rules! c_name {
    ($same:ident) => {
        stringify!($same)
    };
    ($same:ident, $c:literal) => {
        $c
    };
}

/// `module { NAME, OTHER = "c_name" }`: a function that lists the constants as facts.
macro_rules! constants {
    ($($module:ident { $($name:ident $(= $c:literal)?),+ $(,)? })+) => {
        pub fn facts() -> Vec<Fact> {
            vec![$($(Fact::new(
                format!("{}::{}", stringify!($module), stringify!($name)),
                paravane_abi::$module::$name,
                $crate::fact::c_name!($name $(, $c)?).to_owned(),
            )),+),+]
        }
    };
}

/// `module { Name = "struct name" { field, kind = "type" } }`: a function that lists sizes and offsets as facts.
macro_rules! structures {
    ($($module:ident { $($name:ident = $c:literal { $($field:ident $(= $cf:literal)?),+ $(,)? })+ })+) => {
        pub fn facts() -> Vec<Fact> {
            use paravane_abi as abi;
            let mut facts = Vec::new();
            $($(
                let name = format!("{}::{}", stringify!($module), stringify!($name));
                facts.push(Fact::new(
                    format!("size of {name}"),
                    size_of::<abi::$module::$name>(),
                    format!("sizeof({})", $c),
                ));
                $(
                    let field = $crate::fact::c_name!($field $(, $cf)?);
                    facts.push(Fact::new(
                        format!("offset of {name}::{}", stringify!($field)),
                        std::mem::offset_of!(abi::$module::$name, $field),
                        format!("offsetof({}, {field})", $c),
                    ));
                    facts.push(Fact::new(
                        format!("size of {name}::{}", stringify!($field)),
                        $crate::fact::size_of_field(|s: &abi::$module::$name| &s.$field),
                        format!("sizeof((({} *)0)->{field})", $c),
                    ));
                )+
            )+)+
            facts
        }
    };
}

/// The size of the field that a closure borrows from a structure: a field's size without an instance.
pub const fn size_of_field<S, F>(_: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

pub(crate) use {c_name, constants, structures};
