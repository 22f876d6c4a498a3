//! Who is at the other end: what the wire shows, who is refused and why, how certificates come and go.

mod issuing;
mod rotation;
mod servers;
mod strangers;
mod wire;
