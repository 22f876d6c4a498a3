//! The benchmark: the same traffic without a mesh, through Keelson and through others, in turns.

pub mod load;
pub mod usage;
