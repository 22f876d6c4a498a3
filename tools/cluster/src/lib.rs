//! A real Kubernetes on one machine: a control plane and nodes, each in namespaces of its own, with containerd, kubelet and
//! kube-proxy as everywhere.
//!
//! [`own`] starts the machines and stays; [`Standing`] uses them from another process; [`remove`] takes them down and
//! leaves nothing. Who builds the programs, and where, is not decided here: [`Place`] says where they are looked for.

mod cgroups;
mod control;
mod forward;
mod image;
mod init;
mod layout;
mod network;
mod node;
mod owner;
mod pki;
mod root;
mod spec;
mod standing;

pub use image::{Entry, Image};
pub use init::run as run_machine;
pub use layout::{Options, Place, Proxy};
pub use owner::own;
pub use standing::{Standing, remains, remove, stands};
