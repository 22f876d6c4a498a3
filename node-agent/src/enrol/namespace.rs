//! Which network namespace is that of a pod which is known by its processes only.
//!
//! A process may make a namespace of its own in which it may do everything (`unshare -Urn`), and be in the
//! pod's cgroup all the same. The pod's is the one that is tied to the node: nobody inside can tie another.

use std::{
    fmt, io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::PathBuf,
};

use crate::host::{
    netns::{self, Netns},
    pod_net,
};

/// Why no namespace is taken for the pod's.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Its processes are in several, and none or more than one of them is tied to the node.
    Disagree {
        /// In how many.
        namespaces: usize,
        /// How many of these are tied to the node.
        tied: usize,
    },
    /// All are in the node's own.
    Node,
    /// None can be entered now.
    Error(io::Error),
}

impl Refusal {
    /// As the metric names it; none for what passes by itself.
    pub(super) fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Disagree { .. } => Some("namespaces_disagree"),
            Self::Node => Some("node_namespace"),
            Self::Error(_) => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disagree { namespaces, tied } => write!(
                f,
                "its processes are in {namespaces} network namespaces, {tied} of which have an interface that leads to the node: the CNI must name the pod's"
            ),
            Self::Node => f.write_str("its processes are in the node's own network namespace"),
            Self::Error(error) => error.fmt(f),
        }
    }
}

/// The pod's namespace among those that its processes are in, each named once.
pub(super) fn choose(paths: &[PathBuf]) -> Result<(PathBuf, Netns), Refusal> {
    let node = netns::home().map_err(Refusal::Error)?;
    let inode = node.metadata().map_err(Refusal::Error)?.ino();
    let mut last = None;
    let mut found = Vec::new();
    for path in paths {
        match Netns::open(path) {
            Ok(netns) => found.push((path.clone(), netns)),
            // The process has ended meanwhile.
            Err(error) => last = Some(error),
        }
    }
    if let (true, Some(error)) = (found.is_empty(), last) {
        return Err(Refusal::Error(error));
    }
    found.retain(|(_, netns)| u64::from(netns.inode()) != inode);
    let namespaces = found.len();
    if namespaces > 1 {
        let tied = |netns: &Netns| netns.run(|| pod_net::leads_to(node.as_fd()));
        found.retain(|(_, netns)| matches!(tied(netns), Ok(Ok(true))));
    }
    let tied = found.len();
    match (found.pop(), namespaces) {
        (Some(one), _) if tied == 1 => Ok(one),
        (None, 0) => Err(Refusal::Node),
        _ => Err(Refusal::Disagree { namespaces, tied }),
    }
}
