//! Templates on the processor: single steps, at each of which the guest's state is compared.

mod encodings;
