//! What the mesh is made of and what may happen in it: identities, workloads, services, policies
//! and the decisions on them. Everything here is pure: no I/O, no clock, no wire format.

pub mod address;
pub mod balance;
pub mod identity;
pub mod outbound;
pub mod policy;
pub mod reason;
pub mod service;
pub mod state;
mod text;
pub mod workload;

pub use address::{Family, GatewayAddress, GatewayDestination, NetworkAddress};
pub use identity::{Identity, TrustDomain};
pub use policy::{Policy, PolicyKey, PolicyKind};
pub use reason::{Ending, Flag, Reason, Security};
pub use service::{Service, ServiceKey};
pub use state::{MeshState, Tombstone};
pub use text::{Interner, NameError};
pub use workload::{ServicePorts, Workload, WorkloadUid};
