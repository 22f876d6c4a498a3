//! What manifests mean: objects in, resources for node agents out, and a sentence about everything that is wrong.
//!
//! [`memory`] reads a folder and keeps what was good in it, [`store`] takes the facts of each object, [`index`] makes the
//! resources of them, which a [`snapshot`] holds, and [`diagnostics`] has all that is to be said at one moment. The
//! controller runs it on and on, the command line once: [`validate`]. It is synchronous, and knows neither network nor clock.

mod batch;
pub mod blocked;
pub mod diagnostics;
pub mod index;
mod l7;
pub mod lint;
pub mod memory;
pub mod resource;
pub mod snapshot;
pub mod store;
pub mod validate;

pub use batch::Batch;
