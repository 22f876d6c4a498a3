//! The benchmark: the same traffic without a mesh, through Keelson and through others, in turns.
//!
//! [`run()`] measures, [`report`] says what came out. Nothing here decides whether a number is good
//! enough for a release; [`budget`] holds what was promised.

pub mod budget;
mod ebpf;
pub mod load;
pub mod machine;
pub mod modes;
pub mod output;
mod progress;
pub mod push;
pub mod report;
pub mod results;
pub mod routes;
pub mod run;
pub mod scale;
pub mod scenario;
pub mod site;
pub mod statistics;
mod syscalls;
pub mod usage;

pub use run::{Options, run};
