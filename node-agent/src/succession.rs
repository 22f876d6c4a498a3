//! How one agent takes over from another that runs, so that no connection notices.
//!
//! One agent of a node is in charge: it holds `agent.lock` in the runtime directory and may write the
//! kernel's maps. Another that is started beside it gets ready first (configuration, certificates,
//! listeners inside every captured pod), then asks the one in charge over `succession.sock` to pause,
//! makes everything its own, and tells it to drain. Whoever ends in the middle, or hangs, leaves one
//! of the two in charge, or nobody: captured pods are refused then, never let through.
//!
//! ```text
//! successor                      in charge
//!   hello            ->          refuses another protocol
//!                    <-  hello
//!   (gets ready)                 (goes on as if nothing were)
//!   pause            ->          enrols no more, reports no more, keeps carrying
//!                    <-  paused
//!   (LISTENERS, programs, CNI socket)
//!   drain            ->          gives up agent.lock, GOAWAY, drains
//!                    <-  draining
//!                    <-  gone    how its connections ended
//! ```

mod incumbent;
mod lock;
mod successor;
mod wire;

pub use incumbent::{Incumbent, Stage, bind, serve};
pub use lock::{Lock, Post};
pub use successor::{Predecessor, apply};
pub use wire::Who;
