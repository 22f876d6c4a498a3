//! A cluster on one machine: nodes and pods as network namespaces with cgroups and a routed link,
//! kubelet, CNI and kube-proxy emulated, the mesh's own programs real.
//!
//! ```no_run
//! use lab::{AgentOptions, ControllerOptions, Lab, PodSpec};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::builder(lab::unique_id()).nodes(2).build()?;
//! let server = lab.create(&PodSpec::new("shop", "server", "n2"))?;
//! lab.start_controller(&ControllerOptions::default())?;
//! lab.start_agent("n2", &AgentOptions::default())?;
//! let link = lab.node("n1")?.capture_uplink()?;
//! lab.label_namespace("shop", "keelson.io/mesh", Some("enabled"))?;
//! server.run(|| std::net::TcpListener::bind("[::]:80"))??;
//! assert!(!link.contains(b"a secret")?);
//! # Ok(())
//! # }
//! ```
//!
//! Each node and pod is a network namespace `k<id>-...` and a cgroup below
//! `<cgroup2>/keelson-lab-<id>`; the rest lies in `/run/keelson-lab/<id>`. Everything goes when
//! the [`Lab`] is dropped, on Ctrl-C, or with [`remove`].

mod address;
mod capture;
mod cgroup;
mod cluster;
mod cni;
mod ending;
mod http;
mod keep;
mod kube_proxy;
mod lab;
mod mesh;
mod netns;
mod node;
mod objects;
mod packet;
mod pod;
mod pod_spec;
mod process;
mod programs;
mod record;
mod remove;
mod run_dir;
mod standing;
mod tool;
mod waypoint;
mod yaml;

pub use address::MAX_NODES;
pub use capture::{Capture, CaptureCounts, CaptureOptions, Frame};
pub use cgroup::Cgroup;
pub use cni::Enrolment;
pub use http::Response;
pub use keep::{KEEP, hold};
pub use lab::{Builder, Lab, wait_until};
pub use mesh::{AGENT_ADMIN, CONTROLLER_ADMIN, cgroup2_root};
pub use netns::Netns;
pub use node::{Node, UPLINK};
pub use objects::POD_IPS;
pub use packet::Packet;
pub use pod::Pod;
pub use pod_spec::PodSpec;
pub use process::{Placement, Process};
pub use programs::{
    AgentOptions, ControllerOptions, directory as programs_directory, find as find_program,
    use_directory as use_programs_directory,
};
pub use record::ProcessRecord;
pub use remove::{all, interrupted, remove, remove_all_stale, unique_id};
pub use standing::{Standing, StandingNode, StandingPod};
pub use waypoint::{WAYPOINT_ARGS, WAYPOINT_NODES};
pub use yaml::parse as parse_yaml;
