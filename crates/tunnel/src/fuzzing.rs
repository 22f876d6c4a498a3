//! What `cargo xtask fuzz` gives arbitrary bytes to. It is compiled for that only.

pub use crate::secure::fuzzing::records;
pub use crate::thin::fuzzing::frames;
